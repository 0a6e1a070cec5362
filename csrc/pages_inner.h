/* pages_inner.h: the structures behind pages.h, shared by pages*.c and nobody else.
 *
 * Everything here is called with pages->mutex held, unless it says otherwise.
 */
#ifndef RAIDFS_PAGES_INNER_H
#define RAIDFS_PAGES_INNER_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "pages.h"
#include "pages_pool.h"

/* assert() that stays on: Python's own flags for extensions define NDEBUG. */
#define ENSURE(condition)                                                                          \
    do {                                                                                           \
        if (__builtin_expect(!(condition), 0)) {                                                   \
            fprintf(stderr, "raidfs: %s:%d: must be true: %s\n", __FILE__, __LINE__, #condition);  \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

enum {
    LEAF_PAGES = 256,
    FEW_CELLS = 4, /* that a layer holds without a table of its own */
};
static const uint64_t SIZE_MAX_BYTES = INT64_MAX; /* of a file */
static const uint64_t NO_CUT = UINT64_MAX;

struct cell_entry {
    uint64_t index;
    uint8_t *cell; /* NULL: the entry is free */
};

/* What one generation changed in one file. `entries` is a hash table by page index. */
struct layer {
    uint64_t ino;
    struct generation *generation;
    struct layer *older; /* of the same file */
    struct layer *next;  /* of the same generation, in the order of first change */
    uint64_t cut;        /* pages from here up, of older layers and leaves, are holes; NO_CUT */
    uint32_t count;
    uint32_t mask; /* entries - 1 */
    struct cell_entry *entries;
    struct cell_entry few[FEW_CELLS];
};

struct generation {
    uint64_t number;
    struct generation *newer;
    struct layer *first, *last;
    uint64_t files; /* layers whose file a seal reports */
    uint64_t cells;
    uint64_t cuts;
};

/* A resident file; lies in the table itself, so it moves when files are added or removed. */
struct file {
    uint64_t ino; /* 0: the place is free */
    uint64_t size : 63;
    uint64_t dropped : 1;
    int64_t mtime_ns;
    int64_t ctime_ns;
    struct layer *newest;
};

struct file_table {
    struct file *files;
    uint64_t mask; /* places - 1 */
    uint64_t count;
};

struct leaf;

struct leaf_cache {
    struct leaf **buckets;
    uint64_t mask;    /* buckets - 1 */
    uint64_t entries; /* leaves and heads */
    uint64_t leaves;
    uint64_t nbytes, nbytes_max;
    uint64_t hits, misses;
    struct leaf *newest, *oldest; /* by last use */
    uint64_t key;
};

struct rf_pages {
    pthread_mutex_t mutex;
    uint32_t cell_bytes;
    uint32_t cell_shift;
    uint64_t key; /* of the hashes, so that nobody can choose offsets that collide */
    struct file_table table;
    struct generation *oldest, *open;
    uint64_t generations_sealed;
    uint64_t dirty_cells;
    struct pool cells;
    struct pool layers;
    struct leaf_cache leaves;
};

/* The finalizer of MurmurHash3: each bit of the result depends on each bit of x. */
static inline uint64_t hash_u64(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdULL;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ULL;
    return x ^ (x >> 33);
}

/* pages_files.c */
/* Locks the mutex and finds a file that may be changed. NULL: `error` says why; it is unlocked. */
struct file *file_enter(struct rf_pages *pages, uint64_t ino, int *error);

/* pages_table.c */
int file_table_start(struct file_table *table);
void file_table_end(struct file_table *table);
struct file *file_find(const struct rf_pages *pages, uint64_t ino);
/* The new file is all zeros but for its number; NULL: out of memory. It must not be there yet. */
struct file *file_add(struct rf_pages *pages, uint64_t ino);
void file_remove(struct rf_pages *pages, struct file *file);

/* The layer of the open generation, made if there is none; NULL: out of memory. */
struct layer *layer_open(struct rf_pages *pages, struct file *file);
uint8_t *layer_find(const struct rf_pages *pages, const struct layer *layer, uint64_t index);
int layer_reserve(struct rf_pages *pages, struct layer *layer, uint64_t more);
/* Only after layer_reserve and pool_reserve; `index` has no cell yet. Content undefined. */
uint8_t *layer_add(struct rf_pages *pages, struct layer *layer, uint64_t index);
/* Gives back the cells of [first, end). */
void layer_cut(struct rf_pages *pages, struct layer *layer, uint64_t first, uint64_t end);
/* Gives back the layer and its cells; its links are the caller's. */
void layer_end(struct rf_pages *pages, struct layer *layer);

/* pages_leaf.c */
int leaf_cache_start(struct leaf_cache *cache, uint64_t nbytes_max, uint64_t key);
void leaf_cache_end(struct leaf_cache *cache);
void leaf_cache_forget(struct leaf_cache *cache, uint64_t ino, uint64_t first_number);

#endif
