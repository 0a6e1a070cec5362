/* leaf_runs.h: the addresses of a leaf as the metadata keeps them (schema.sql, leaf.cells).
 *
 * Either plain words, or runs within which each page lies one row (256) above the page before, or
 * which are holes; whichever is shorter. Trailing holes are left off.
 */
#ifndef RAIDFS_LEAF_RUNS_H
#define RAIDFS_LEAF_RUNS_H

#include <stdint.h>

enum { RF_RUNS_PAGES = 256, RF_RUNS_BYTES_MAX = 2049 };

/* Writes at most RF_RUNS_BYTES_MAX bytes to `out`; how many. 0: all holes. count: at most 256. */
uint32_t rf_leaf_encode(const uint64_t *addresses, uint32_t count, uint8_t *out);

/* Fills all 256 addresses. 0, or -EINVAL: no leaf looks like that. */
int rf_leaf_decode(const uint8_t *data, uint64_t nbytes, uint64_t *addresses);

#endif
