/* gather.h: the vectors that move cells lying anywhere in memory to or from contiguous bytes.
 *
 *  1. Cells that lie side by side in memory (parity does) become one vector, so that the number of
 *     system calls is that of 1024 pieces of memory, not of 1024 cells.
 */
#ifndef RAIDFS_GATHER_H
#define RAIDFS_GATHER_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum { RF_VECTORS_MAX = 1024 }; /* IOV_MAX of Linux */

/* Fills at most `room` vectors with the bytes of the cells from byte `done` on; how many. */
static inline size_t rf_gather(const uint64_t *addresses, size_t count, size_t cell_bytes,
                               uint64_t done, struct iovec *vectors, size_t room)
{
    assert(cell_bytes > 0);
    size_t used = 0;
    size_t within = (size_t)(done % cell_bytes);
    uint64_t end = 0; /* where the last vector ends in memory */
    for (size_t i = (size_t)(done / cell_bytes); i < count; i++) {
        assert(addresses[i] != 0);
        uint64_t start = addresses[i] + within;
        size_t nbytes = cell_bytes - within;
        if (used > 0 && start == end) {
            vectors[used - 1].iov_len += nbytes;
        } else {
            if (used == room)
                break;
            vectors[used].iov_base = (void *)(uintptr_t)start;
            vectors[used++].iov_len = nbytes;
        }
        end = start + nbytes;
        within = 0;
    }
    return used;
}

#endif
