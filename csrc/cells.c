/* cells.c: gathers cells from anywhere in memory into one contiguous write.
 *
 *  1. Either all bytes of all cells are handed to the kernel, in order, or an error is returned.
 */
#define _GNU_SOURCE
#undef NDEBUG
#include "cells.h"
#include "gather.h"

#include <errno.h>
#include <sys/uio.h>

int rf_write_cells(int fd, uint64_t offset_bytes, const uint64_t *addresses, size_t count,
                   size_t cell_bytes)
{
    struct iovec vectors[RF_VECTORS_MAX];
    uint64_t done = 0;
    while (done < (uint64_t)count * cell_bytes) {
        size_t used = rf_gather(addresses, count, cell_bytes, done, vectors, RF_VECTORS_MAX);
        ssize_t written = pwritev(fd, vectors, (int)used, (off_t)(offset_bytes + done));
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            return -errno;
        if (written == 0)
            return -EIO; /* a file that takes nothing and says no error would be asked for ever */
        done += (uint64_t)written;
    }
    return 0;
}
