/* steps.h: many rows of columns in one call, for whoever goes through all of them: cells compared
 * with their checksums, or columns made anew out of others.
 *
 * What there is to know of cells is by row, then by column: of `width` columns, crcs[row * width +
 * column] is a cell's CRC-32C, and there[row * width + column] is 1 if it was ever written; else it
 * is absent, zeros by definition, and neither read for its own sake nor compared nor written.
 *
 *  1. No cell counts as good, or is written, but for such as match their checksums, each of them
 *     and whatever it was made of.
 *  2. Nothing waits for a column with `nowait`: what the kernel hasn't cached counts as not to be
 *     had.
 *  3. Cells are moved in pieces that fit `room`, so that they are still in the CPU's cache when
 *     they are looked at; nothing is allocated, or kept between calls. All may run in parallel.
 *  4. What isn't good here is not said to be bad: whoever calls looks closer.
 */
#ifndef RAIDFS_STEPS_H
#define RAIDFS_STEPS_H

#include <stdint.h>

/* Where the step's first row of a column lies, in an open file. */
struct rf_place {
    int32_t fd;
    int32_t nowait;
    uint64_t offset;
};

/* Where a column that is made is to lie; rows before `first` are not written. */
struct rf_target {
    uint32_t column;
    uint32_t first;
    struct rf_place place;
};

struct rf_step {
    uint32_t rows, cell_bytes, width;
    const uint32_t *crcs;
    const uint8_t *there;
    /* What is read: columns, and where they lie. */
    uint32_t sources_count;
    const uint32_t *sources;
    const struct rf_place *places;
    /* What is made of these: columns, and coefficients[made][source]. */
    uint32_t made_count;
    const uint32_t *made;
    const uint8_t *coefficients;
    /* What is written, of columns read or made. */
    uint32_t targets_count;
    const struct rf_target *targets;
    uint8_t *room; /* aligned to 4096; for one cell of each source and of each that is made, or
                      more of them */
    uint64_t room_bytes;
};

/* Reads `rows` cells of one column: crcs, there and wrong point to the column's first. wrong[row *
 * width] becomes 1 for cells that are there and could not be read, or don't match; others are left
 * alone. How many became so. `room` is aligned to 4096, for a cell or more. */
uint32_t rf_step_check(const struct rf_place *place, uint32_t rows, uint32_t cell_bytes,
                       uint32_t width, const uint32_t *crcs, const uint8_t *there, uint8_t *wrong,
                       uint8_t *room, uint64_t room_bytes);

/* Reads the sources, makes what is to be made, writes both to the targets. good[row]: 1 if
 * all cells of the row, of sources and of those made, matched, and were written where they were to
 * be; else nothing of the row was written. After a read that failed the rest of the rows is left
 * as not good. 0, or the negative errno of a write that failed, and *failed is the target. */
int rf_step_make(const struct rf_step *step, uint8_t *good, uint32_t *failed);

#endif
