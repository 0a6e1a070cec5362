/* cells.c: gathers cells from anywhere in memory into one contiguous write.
 *
 *  1. Either all bytes of all cells are handed to the kernel, in order, or an error is returned.
 *  2. Cells that lie side by side in memory (parity does) become one vector, so that the number of
 *     system calls is that of 1024 pieces of memory, not of 1024 cells.
 */
#define _GNU_SOURCE
#undef NDEBUG
#include "cells.h"

#include <assert.h>
#include <errno.h>
#include <sys/uio.h>

enum { VECTORS_MAX = 1024 }; /* IOV_MAX of Linux */

/* Writes all of vectors[0..count), which it uses up. Returns 0 or -errno. */
static int write_all(int fd, uint64_t offset_bytes, struct iovec *vectors, size_t count)
{
    while (count > 0) {
        ssize_t written = pwritev(fd, vectors, (int)count, (off_t)offset_bytes);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            return -errno;
        if (written == 0)
            return -EIO; /* a file that takes nothing and says no error would be asked for ever */
        offset_bytes += (uint64_t)written;
        size_t left = (size_t)written;
        while (count > 0 && left >= vectors->iov_len) {
            left -= vectors->iov_len;
            vectors++;
            count--;
        }
        if (count > 0) {
            vectors->iov_base = (char *)vectors->iov_base + left;
            vectors->iov_len -= left;
        }
    }
    return 0;
}

int rf_write_cells(int fd, uint64_t offset_bytes, const uint64_t *addresses, size_t count,
                   size_t cell_bytes)
{
    assert(cell_bytes > 0);
    struct iovec vectors[VECTORS_MAX];
    size_t done = 0;
    while (done < count) {
        size_t used = 0, cells = 0;
        uint64_t end = 0; /* where the last vector ends in memory */
        for (; done + cells < count; cells++) {
            uint64_t address = addresses[done + cells];
            assert(address != 0);
            if (used > 0 && address == end) {
                vectors[used - 1].iov_len += cell_bytes;
            } else {
                if (used == VECTORS_MAX)
                    break;
                vectors[used].iov_base = (void *)(uintptr_t)address;
                vectors[used++].iov_len = cell_bytes;
            }
            end = address + cell_bytes;
        }
        int error = write_all(fd, offset_bytes, vectors, used);
        if (error)
            return error;
        offset_bytes += (uint64_t)cells * cell_bytes;
        done += cells;
    }
    return 0;
}
