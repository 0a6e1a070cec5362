/* lane_ensure.h: assert() that stays on, for the gate and the lane: Python's own flags for
 * extensions define NDEBUG. */
#ifndef RAIDFS_LANE_ENSURE_H
#define RAIDFS_LANE_ENSURE_H

#include <stdio.h>
#include <stdlib.h>

#ifndef ENSURE
#define ENSURE(condition)                                                                          \
    do {                                                                                           \
        if (__builtin_expect(!(condition), 0)) {                                                   \
            fprintf(stderr, "raidfs: %s:%d: must be true: %s\n", __FILE__, __LINE__, #condition);  \
            abort();                                                                               \
        }                                                                                          \
    } while (0)
#endif

#endif
