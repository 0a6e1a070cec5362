/* columns_reading.h: one reading of cells, from its plan to its end; shared by columns_read.c,
 * at whose head the order of things stands, and columns_wait.c.
 */
#ifndef RAIDFS_COLUMNS_READING_H
#define RAIDFS_COLUMNS_READING_H

#include "columns_inner.h"

enum { CELLS_MOST = 1 << 24 }; /* of one call */

/* Consecutive rows of one column. */
struct run {
    struct rf_zone *zone;
    struct rf_descriptor *descriptor; /* NULL: lost, or its member sits out */
    uint64_t next;                    /* the address that would continue it; 0: none */
    uint64_t offset;                  /* in the file */
    uint32_t row, column;
    uint32_t first, count; /* of `order`, or of the sources fetched */
};

/* How one lost run is the sum of others. */
struct recipe {
    uint32_t run, sources_count, first; /* of `places`: sources_count for each cell of the run */
    uint8_t columns[COLUMNS_MAX], coefficients[COLUMNS_MAX];
};

/* What lost columns need besides. Room for all is made beforehand. */
struct rf_rebuild {
    uint32_t recipes_room, sources_room;
    uint32_t recipes_count, fetches_count, sources_count, places_count;
    struct recipe *recipes;
    struct run *fetches;
    const uint8_t **places; /* where sources lie; NULL: zeros */
    uint32_t *crcs;         /* of sources fetched */
    uint8_t *sources;       /* aligned to a page */
};

struct reading {
    struct rf_link wait; /* through the engine, until it is over or given up */
    struct rf_columns *columns;
    const uint64_t *addresses;
    uint32_t count;
    uint8_t *out;
    uint32_t cells, runs_count, lost_count; /* cells asked for; runs; lost cells among them */
    struct run *runs;
    uint32_t *order;  /* indexes of the request, run by run */
    uint32_t *crcs;   /* by index of the request */
    uint32_t *run_of; /* by index of the request */
    struct rf_rebuild *rebuild;
    /* Only through the engine: */
    uint64_t *memory; /* where cells go, in the order of `order` */
    struct rf_io *ios;
    struct rf_member **whose; /* by io; NULL: nobody's */
    uint32_t ios_count;
    int64_t begun_ns;
    bool given_up;
    void (*done)(void *context, int result);
    void *context;
};

static inline uint8_t *rf_cell_at(const struct reading *reading, uint32_t index)
{
    return reading->out + (size_t)index * reading->columns->cell_bytes;
}

/* Nobody outside calls these, so that the compiler may put them where they are called. */
#pragma GCC visibility push(hidden)

/* Plans, with as much memory as that turns out to need. 0: zones and descriptors are held. */
int rf_reading_plan(struct reading *reading);
/* Lets go of what a plan holds (if one was made) and counts; the result for the caller. */
int rf_reading_finish(struct reading *reading, bool planned, int result);
/* The arrays of a reading that has many cells, or is to outlive its caller; freed as `runs`. */
bool rf_reading_arrays(struct reading *reading);

/* 0 if what was read matches its checksums, else -EIO. */
int rf_reading_check_run(const struct reading *reading, const struct run *run);
int rf_reading_check_fetch(const struct reading *reading, const struct run *fetch);
/* Makes the lost cells out of their sources, which are all there. */
int rf_reading_rebuild(const struct reading *reading);

#pragma GCC visibility pop

#endif
