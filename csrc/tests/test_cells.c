/* test_cells.c: gathered writes, also with a system that takes only a part at a time. */
#define _GNU_SOURCE
#undef NDEBUG
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../cells.h"

/* A second copy of cells.c over a pwritev that writes at most 1000 bytes of one vector, is
 * interrupted every third time, and at last finds the file full if `full_after` calls were made. */
static int calls, full_after;

static ssize_t miserly_pwritev(int fd, const struct iovec *vectors, int count, off_t offset_bytes)
{
    assert(count >= 1 && count <= 1024);
    if (++calls == full_after) {
        errno = ENOSPC;
        return -1;
    }
    if (calls % 3 == 0) {
        errno = EINTR;
        return -1;
    }
    size_t nbytes = vectors->iov_len < 1000 ? vectors->iov_len : 1000;
    return pwrite(fd, vectors->iov_base, nbytes, offset_bytes);
}

#define pwritev miserly_pwritev
#define rf_write_cells miserly_write_cells
#include "../cells.c"
#undef rf_write_cells

enum { CELLS = 2100, BYTES = 4096, OFFSET = 12288 };

static uint64_t addresses[CELLS];
static uint8_t expected[CELLS * BYTES], found[CELLS * BYTES];

/* Cells in any order, some of them neighbours in memory and in the file. */
static void make_cells(uint8_t *memory)
{
    for (size_t i = 0; i < CELLS; i++) {
        size_t at = i / 7 % 2 ? i : i * 1009 % CELLS;
        addresses[i] = (uint64_t)(uintptr_t)(memory + at * BYTES);
        memcpy(expected + i * BYTES, memory + at * BYTES, BYTES);
    }
}

static void check(int fd, size_t count)
{
    assert(pread(fd, found, count * BYTES, OFFSET) == (ssize_t)(count * BYTES));
    assert(memcmp(found, expected, count * BYTES) == 0);
    assert(ftruncate(fd, 0) == 0);
}

int main(void)
{
    FILE *file = tmpfile();
    uint8_t *memory = malloc((size_t)CELLS * BYTES);
    assert(file != NULL && memory != NULL);
    int fd = fileno(file);
    for (size_t i = 0; i < (size_t)CELLS * BYTES; i++)
        memory[i] = (uint8_t)(i * 2654435761u >> 20);
    make_cells(memory);
    assert(rf_write_cells(fd, OFFSET, addresses, 0, BYTES) == 0);
    assert(rf_write_cells(fd, OFFSET, addresses, CELLS, BYTES) == 0);
    check(fd, CELLS);
    assert(miserly_write_cells(fd, OFFSET, addresses, 100, BYTES) == 0);
    check(fd, 100);
    full_after = calls + 20;
    assert(miserly_write_cells(fd, OFFSET, addresses, 100, BYTES) == -ENOSPC);
    assert(rf_write_cells(-1, OFFSET, addresses, 1, BYTES) == -EBADF);
    free(memory);
    fclose(file);
    printf("cells ok\n");
    return 0;
}
