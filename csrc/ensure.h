/* ensure.h: what all of csrc may use: an assert that stays on, and one hash. */
#ifndef RAIDFS_ENSURE_H
#define RAIDFS_ENSURE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* assert() that stays on: Python's own flags for extensions define NDEBUG. */
#define ENSURE(condition)                                                                          \
    do {                                                                                           \
        if (__builtin_expect(!(condition), 0)) {                                                   \
            fprintf(stderr, "raidfs: %s:%d: must be true: %s\n", __FILE__, __LINE__, #condition);  \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* The finalizer of MurmurHash3: each bit of the result depends on each bit of x. */
static inline uint64_t hash_u64(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdULL;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ULL;
    return x ^ (x >> 33);
}

#endif
