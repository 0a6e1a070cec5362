/* test_steps.c: steps over a system that reads and writes only a part at a time, is interrupted,
 * fails in the middle, or would have to wait; in memory that the sanitizers watch. */
#define _GNU_SOURCE
#undef NDEBUG
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../steps.h"
#include "../erasure.h"

/* A second copy of steps.c over these. A column whose descriptor is `uncached` can't be read
 * without waiting from `cached_bytes` on. */
static int calls, write_fails_after;
static int uncached = -1;
static off_t cached_bytes;

static ssize_t miserly_preadv2(int fd, const struct iovec *vectors, int count, off_t offset,
                               int flags)
{
    assert(count == 1);
    if (++calls % 5 == 0) {
        errno = EINTR;
        return -1;
    }
    if (flags & RWF_NOWAIT && fd == uncached && offset >= cached_bytes) {
        errno = EAGAIN;
        return -1;
    }
    return pread(fd, vectors->iov_base, vectors->iov_len < 5000 ? vectors->iov_len : 5000, offset);
}

static ssize_t miserly_pwritev(int fd, const struct iovec *vectors, int count, off_t offset)
{
    assert(count == 1);
    if (++calls % 7 == 0) {
        errno = EINTR;
        return -1;
    }
    if (write_fails_after >= 0 && write_fails_after-- == 0) {
        errno = ENOSPC;
        return -1;
    }
    return pwrite(fd, vectors->iov_base, vectors->iov_len < 3000 ? vectors->iov_len : 3000, offset);
}

#define preadv2 miserly_preadv2
#define pwritev miserly_pwritev
#define rf_step_check miserly_step_check
#define rf_step_make miserly_step_make
#include "../steps.c"
#undef rf_step_check
#undef rf_step_make

enum { ROWS = 300, BYTES = 4096, WIDTH = 3 };

static int files[WIDTH + 1]; /* two of data, their sum, and where that is made anew */
static uint32_t crcs[ROWS * WIDTH];
static uint8_t there[ROWS * WIDTH], wrong[ROWS * WIDTH], good[ROWS];
static const uint32_t sources[] = {0, 1}, made[] = {2};
static const uint8_t ones[] = {1, 1};

static int file_new(void)
{
    FILE *file = tmpfile();
    assert(file != NULL);
    return fileno(file);
}

static void write_all(int fd, const uint8_t *content)
{
    assert(pwrite(fd, content, ROWS * BYTES, 0) == ROWS * BYTES);
}

static void make_columns(void)
{
    static uint8_t content[WIDTH][ROWS * BYTES];
    for (size_t i = 0; i < ROWS * BYTES; i++) {
        content[0][i] = (uint8_t)(i * 2654435761u >> 20);
        content[1][i] = (uint8_t)(i * 40503u >> 7);
        content[2][i] = content[0][i] ^ content[1][i];
    }
    for (uint32_t column = 0; column < WIDTH; column++) {
        files[column] = file_new();
        write_all(files[column], content[column]);
        for (uint32_t row = 0; row < ROWS; row++) {
            crcs[row * WIDTH + column] = rf_crc32c(0, content[column] + row * BYTES, BYTES);
            there[row * WIDTH + column] = 1;
        }
    }
    files[WIDTH] = file_new();
}

/* Nobody else's memory lies beside it. */
static uint8_t *room_new(size_t cells)
{
    void *room = NULL;
    assert(posix_memalign(&room, 4096, cells * BYTES) == 0);
    return room;
}

static uint32_t check(uint32_t column, uint32_t cells, int nowait)
{
    uint8_t *room = room_new(cells);
    struct rf_place place = {.fd = files[column], .nowait = nowait};
    memset(wrong, 0, sizeof wrong);
    uint32_t count = miserly_step_check(&place, ROWS, BYTES, WIDTH, crcs + column, there + column,
                                        wrong + column, room, (uint64_t)cells * BYTES + 17);
    free(room);
    for (uint32_t i = 0, left = count; i < ROWS * WIDTH; i++)
        assert(!wrong[i] || (i % WIDTH == column && left-- > 0));
    return count;
}

static int make_step(uint32_t cells, uint32_t first, int nowait, uint32_t *failed)
{
    uint8_t *room = room_new(cells * 3);
    struct rf_place places[] = {{files[0], nowait, 0}, {files[1], nowait, 0}};
    struct rf_target target = {.column = 2, .first = first, .place = {.fd = files[WIDTH]}};
    assert(ftruncate(files[WIDTH], 0) == 0);
    struct rf_step step = {.rows = ROWS,
                           .cell_bytes = BYTES,
                           .width = WIDTH,
                           .crcs = crcs,
                           .there = there,
                           .sources_count = 2,
                           .sources = sources,
                           .places = places,
                           .made_count = 1,
                           .made = made,
                           .coefficients = ones,
                           .targets_count = 1,
                           .targets = &target,
                           .room = room,
                           .room_bytes = (uint64_t)cells * 3 * BYTES};
    int error = miserly_step_make(&step, good, failed);
    free(room);
    return error;
}

/* Rows [begin, end) are as they should be where `good` says so, others were not written. */
static void check_made(uint32_t begin)
{
    static uint8_t found[ROWS * BYTES], right[ROWS * BYTES], zeros[BYTES];
    memset(found, 0, sizeof found);
    assert(pread(files[2], right, sizeof right, 0) == (ssize_t)sizeof right);
    assert(pread(files[WIDTH], found, sizeof found, 0) >= 0);
    for (uint32_t row = 0; row < ROWS; row++) {
        const uint8_t *expected = good[row] && row >= begin ? right + row * BYTES : zeros;
        assert(memcmp(found + row * BYTES, expected, BYTES) == 0);
    }
}

static uint32_t good_rows(void)
{
    uint32_t count = 0;
    for (uint32_t row = 0; row < ROWS; row++)
        count += good[row];
    return count;
}

int main(void)
{
    make_columns();
    write_fails_after = -1;
    uint32_t failed = 99;
    for (uint32_t cells = 1; cells <= 1000; cells = cells * 3 + 1) {
        assert(check(1, cells, 1) == 0);
        assert(make_step(cells, 0, 1, &failed) == 0 && good_rows() == ROWS);
        check_made(0);
        assert(make_step(cells, 77, 0, &failed) == 0 && good_rows() == ROWS);
        check_made(77);
    }
    crcs[5 * WIDTH + 1] ^= 1; /* a source, and what comes out */
    crcs[290 * WIDTH + 2] ^= 1;
    assert(check(1, 10, 0) == 1 && wrong[5 * WIDTH + 1]);
    assert(make_step(10, 0, 0, &failed) == 0 && good_rows() == ROWS - 2 && !good[5] && !good[290]);
    check_made(0);
    there[290 * WIDTH + 2] = 0; /* nobody's: neither wrong nor written */
    assert(make_step(10, 0, 0, &failed) == 0 && good_rows() == ROWS - 1 && good[290]);
    good[290] = 0;
    check_made(0);
    uncached = files[1];
    cached_bytes = 40 * BYTES + 10;
    assert(check(1, 10, 1) == ROWS - 40 + 1 && check(1, 10, 0) == 1);
    assert(make_step(10, 0, 1, &failed) == 0 && good_rows() == 40 - 1);
    check_made(0);
    write_fails_after = 30;
    assert(make_step(10, 0, 0, &failed) == -ENOSPC && failed == 0);
    for (int column = 0; column <= WIDTH; column++)
        close(files[column]);
    printf("steps ok\n");
    return 0;
}
