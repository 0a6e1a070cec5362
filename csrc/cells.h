/* cells.h: moves cells between memory and a file. The addresses are those of the caller's buffers.
 */
#ifndef RAIDFS_CELLS_H
#define RAIDFS_CELLS_H

#include <stddef.h>
#include <stdint.h>

/* Writes `count` cells of `cell_bytes`, each at its own address in memory, one after the other into
 * the file from `offset_bytes` on. Goes on after short writes and signals. Returns 0 or -errno;
 * after an error it is unknown which of the cells are written. */
int rf_write_cells(int fd, uint64_t offset_bytes, const uint64_t *addresses, size_t count,
                   size_t cell_bytes);

#endif
