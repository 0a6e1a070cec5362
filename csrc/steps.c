/* steps.c: many rows of columns in one call; what is promised stands in steps.h. */
#define _GNU_SOURCE
#include "steps.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/uio.h>

#include "ensure.h"
#include "erasure.h"
#include "gf256.h"

enum { PIECE_ROWS_MAX = 128 }; /* of rf_step_make: what its stack is enough for */

/* All of it, or false. */
static bool read_piece(const struct rf_place *place, uint64_t at, uint8_t *out, size_t nbytes)
{
    while (nbytes > 0) {
        struct iovec vector = {out, nbytes};
        ssize_t got = preadv2(place->fd, &vector, 1, (off_t)(place->offset + at),
                              place->nowait ? RWF_NOWAIT : 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        out += got;
        at += (uint64_t)got;
        nbytes -= (size_t)got;
    }
    return true;
}

/* 0 or -errno. */
static int write_piece(const struct rf_place *place, uint64_t at, const uint8_t *from,
                       size_t nbytes)
{
    while (nbytes > 0) {
        struct iovec vector = {(void *)(uintptr_t)from, nbytes};
        ssize_t done = pwritev(place->fd, &vector, 1, (off_t)(place->offset + at));
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -errno;
        if (done == 0)
            return -EIO; /* it takes nothing and says no error: it would be asked for ever */
        from += done;
        at += (uint64_t)done;
        nbytes -= (size_t)done;
    }
    return 0;
}

/* ---- looking at a column ---- */

uint32_t rf_step_check(const struct rf_place *place, uint32_t rows, uint32_t cell_bytes,
                       uint32_t width, const uint32_t *crcs, const uint8_t *there, uint8_t *wrong,
                       uint8_t *room, uint64_t room_bytes)
{
    uint32_t count = 0, most = (uint32_t)(room_bytes / cell_bytes);
    ENSURE(most > 0 && width > 0);
    for (uint32_t row = 0; row < rows; row += most) {
        uint32_t here = rows - row < most ? rows - row : most;
        bool wanted = false;
        for (uint32_t r = row; r < row + here && !wanted; r++)
            wanted = there[(size_t)r * width];
        if (!wanted)
            continue;
        bool had = read_piece(place, (uint64_t)row * cell_bytes, room, (size_t)here * cell_bytes);
        for (uint32_t r = row; r < row + here; r++) {
            size_t cell = (size_t)r * width;
            if (!there[cell])
                continue;
            const uint8_t *content = room + (size_t)(r - row) * cell_bytes;
            if (!had || rf_crc32c(0, content, cell_bytes) != crcs[cell]) {
                wrong[cell] = 1;
                count++;
            }
        }
    }
    return count;
}

/* ---- making columns ---- */

/* Some rows of a step. Buffers lie in `room`, those of sources first, `most` cells each. */
struct piece {
    const struct rf_step *step;
    uint32_t row, rows, most;
    uint64_t addresses[RF_SOURCES_MAX * PIECE_ROWS_MAX]; /* [source][row] */
    uint32_t crcs[(RF_SOURCES_MAX + RF_OUTPUTS_MAX) * PIECE_ROWS_MAX];
};

static uint8_t *buffer_of(const struct piece *piece, uint32_t number)
{
    return piece->step->room + (size_t)number * piece->most * piece->step->cell_bytes;
}

static bool is_there(const struct piece *piece, uint32_t row, uint32_t column)
{
    return piece->step->there[(size_t)(piece->row + row) * piece->step->width + column];
}

static bool read_sources(struct piece *piece)
{
    const struct rf_step *step = piece->step;
    for (uint32_t s = 0; s < step->sources_count; s++) {
        uint8_t *buffer = buffer_of(piece, s);
        if (!read_piece(&step->places[s], (uint64_t)piece->row * step->cell_bytes, buffer,
                        (size_t)piece->rows * step->cell_bytes))
            return false;
        for (uint32_t r = 0; r < piece->rows; r++) {
            uint8_t *cell = buffer + (size_t)r * step->cell_bytes;
            piece->addresses[s * piece->rows + r] =
                is_there(piece, r, step->sources[s]) ? (uint64_t)(uintptr_t)cell : 0;
        }
    }
    return true;
}

/* The checksums of one column, those found, against those that it should have. */
static void compare(const struct piece *piece, uint32_t number, uint32_t column, uint8_t *good)
{
    const struct rf_step *step = piece->step;
    for (uint32_t r = 0; r < piece->rows; r++) {
        uint32_t right = step->crcs[(size_t)(piece->row + r) * step->width + column];
        if (is_there(piece, r, column) && piece->crcs[number * piece->rows + r] != right)
            good[piece->row + r] = 0;
    }
}

static void make(struct piece *piece, uint8_t *good)
{
    const struct rf_step *step = piece->step;
    /* what is made lies by column, `rows` cells each: one after the other, as rf_encode wants it */
    rf_encode(step->coefficients, step->made_count, step->sources_count, piece->addresses,
              buffer_of(piece, step->sources_count), piece->rows, step->cell_bytes, piece->crcs);
    memset(good + piece->row, 1, piece->rows);
    for (uint32_t s = 0; s < step->sources_count; s++)
        compare(piece, s, step->sources[s], good);
    for (uint32_t m = 0; m < step->made_count; m++)
        compare(piece, step->sources_count + m, step->made[m], good);
}

static const uint8_t *content_of(const struct piece *piece, uint32_t column)
{
    const struct rf_step *step = piece->step;
    for (uint32_t m = 0; m < step->made_count; m++) {
        if (step->made[m] == column)
            return buffer_of(piece, step->sources_count) +
                   (size_t)m * piece->rows * step->cell_bytes;
    }
    for (uint32_t s = 0; s < step->sources_count; s++) {
        if (step->sources[s] == column)
            return buffer_of(piece, s);
    }
    ENSURE(false); /* a target is one of those read or made */
    return NULL;
}

static bool is_to_write(const struct piece *piece, const struct rf_target *target,
                        const uint8_t *good, uint32_t row)
{
    return good[piece->row + row] && piece->row + row >= target->first &&
           is_there(piece, row, target->column);
}

static int write_target(const struct piece *piece, const struct rf_target *target,
                        const uint8_t *good)
{
    const size_t cell_bytes = piece->step->cell_bytes;
    const uint8_t *content = content_of(piece, target->column);
    for (uint32_t r = 0; r < piece->rows;) {
        uint32_t begin = r;
        while (r < piece->rows && is_to_write(piece, target, good, r))
            r++;
        if (r == begin) {
            r++;
            continue;
        }
        int error = write_piece(&target->place, (uint64_t)(piece->row + begin) * cell_bytes,
                                content + begin * cell_bytes, (r - begin) * cell_bytes);
        if (error)
            return error;
    }
    return 0;
}

int rf_step_make(const struct rf_step *step, uint8_t *good, uint32_t *failed)
{
    uint32_t columns = step->sources_count + step->made_count;
    ENSURE(step->sources_count >= 1 && step->sources_count <= RF_SOURCES_MAX);
    ENSURE(step->made_count <= RF_OUTPUTS_MAX);
    uint64_t fit = step->room_bytes / ((uint64_t)columns * step->cell_bytes);
    ENSURE(fit > 0);
    struct piece piece = {.step = step,
                          .most = fit < PIECE_ROWS_MAX ? (uint32_t)fit : PIECE_ROWS_MAX};
    memset(good, 0, step->rows);
    for (; piece.row < step->rows; piece.row += piece.rows) {
        uint32_t left = step->rows - piece.row;
        piece.rows = left < piece.most ? left : piece.most;
        if (!read_sources(&piece))
            return 0;
        make(&piece, good);
        for (uint32_t t = 0; t < step->targets_count; t++) {
            int error = write_target(&piece, &step->targets[t], good);
            if (error) {
                *failed = t;
                return error;
            }
        }
    }
    return 0;
}
