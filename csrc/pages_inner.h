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

#include "ensure.h"
#include "pages.h"
#include "pages_pool.h"

enum {
    LEAF_PAGES = 256,
    FEW_ENTRIES = 4, /* that a layer holds without a table of its own */
};
static const uint64_t SIZE_MAX_BYTES = INT64_MAX; /* of a file */
static const uint64_t NO_CUT = UINT64_MAX;

enum entry_kind { FREE, CELL, MARK };

/* What a layer has of one page. */
struct entry {
    uint64_t index : 62;
    uint64_t kind : 2;
    union {
        uint8_t *cell;
        uint64_t address; /* of a mark: the cell on the members that the page shares, 0: a hole */
    };
};

/* What one generation changed in one file. `entries` is a hash table by page index. */
struct layer {
    uint64_t ino;
    struct generation *generation;
    struct layer *older; /* of the same file */
    struct layer *next;  /* of the same generation, in the order of first change */
    uint64_t cut;        /* pages from here up, of older layers and leaves, are holes; NO_CUT */
    uint32_t count;      /* entries that aren't free */
    uint32_t marks;      /* of these */
    uint32_t holes;      /* of the marks */
    uint32_t mask;       /* entries - 1 */
    struct entry *entries;
    struct entry few[FEW_ENTRIES];
};

struct generation {
    uint64_t number;
    struct generation *newer;
    struct layer *first, *last;
    uint64_t files; /* layers whose file a seal reports */
    uint64_t cells;
    uint64_t cuts;
    uint64_t marks;
};

/* A resident file; lies in the table itself, so it moves when files are added or removed. */
struct file {
    uint64_t ino; /* 0: the place is free */
    uint64_t size : 63;
    uint64_t dropped : 1;
    int64_t mtime_ns;
    int64_t ctime_ns;
    int64_t atime_ns;
    struct layer *newest;
    uint32_t vouched; /* RF_SERVE_... and RF_NO_ATIME */
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
    uint64_t marks;
    uint64_t credits;
    uint64_t lane_files, lane_files_max; /* first dirtied by the lane, in the open generation */
    uint32_t served;                     /* what rf_pages_serve said */
    struct pool cells;
    struct pool layers;
    struct leaf_cache leaves;
};

/* pages.c: the lookup rule and what follows from it */

/* What memory knows of a page; of cells in `cell`, of SHARED and AT in `address`. Only the lane's
 * lookup tells AT, and with it ELSEWHERE means that the leaf isn't cached. */
enum place { ZERO, IN_CELL, SHARED, AT, ELSEWHERE };

struct found {
    enum place place;
    uint8_t *cell;
    uint64_t address;
};

static inline bool needs_base(const struct found *found)
{
    return found->place != ZERO && found->place != IN_CELL;
}

struct found look_up(const struct rf_pages *pages, const struct file *file, uint64_t index);
/* The same, and behind the last layer the leaf if it is cached. */
struct found look_up_leaf(struct rf_pages *pages, const struct file *file, uint64_t index);

/* One contiguous range of a file, page by page. */
struct walk {
    uint64_t index;
    uint32_t from, to; /* the part of the page: [from, to), never empty */
    uint64_t done;     /* bytes before it */
};

static inline bool range_ok(uint64_t offset, uint64_t nbytes)
{
    return offset <= SIZE_MAX_BYTES && nbytes <= SIZE_MAX_BYTES - offset;
}

static inline uint64_t page_count(const struct rf_pages *pages, uint64_t size)
{
    return (size + pages->cell_bytes - 1) >> pages->cell_shift;
}

static inline void walk_part(const struct rf_pages *pages, uint64_t nbytes, struct walk *walk)
{
    uint64_t left = nbytes - walk->done, room = pages->cell_bytes - walk->from;
    walk->to = walk->from + (uint32_t)(left < room ? left : room);
}

static inline struct walk walk_start(const struct rf_pages *pages, uint64_t offset, uint64_t nbytes)
{
    struct walk walk = {.index = offset >> pages->cell_shift,
                        .from = (uint32_t)(offset & (pages->cell_bytes - 1))};
    walk_part(pages, nbytes, &walk);
    return walk;
}

static inline bool walk_more(const struct walk *walk, uint64_t nbytes)
{
    return walk->done < nbytes;
}

static inline void walk_next(const struct rf_pages *pages, uint64_t nbytes, struct walk *walk)
{
    walk->done += walk->to - walk->from;
    walk->index++;
    walk->from = 0;
    walk_part(pages, nbytes, walk);
}

/* Bytes of the page that lie within the size. */
uint32_t page_valid(const struct rf_pages *pages, const struct file *file, uint64_t index);
/* Whether writing [from, to) of a page leaves old content in it. */
bool keeps_old(const struct rf_pages *pages, const struct file *file, const struct walk *walk);
/* The first and the last part of a range, the only ones that can be written in part: how many. */
int range_ends(const struct rf_pages *pages, uint64_t offset, uint64_t nbytes, struct walk *ends);
/* The old content of a page, or NULL: zeros. `base` is for a page that isn't in a cell. */
const uint8_t *old_content(const struct rf_pages *pages, const struct file *file, uint64_t index,
                           const struct rf_base *base);
/* cell[from, to) becomes what it was in `old` (NULL: zeros), of which `valid` bytes count. */
void fill_old(uint8_t *cell, const uint8_t *old, uint32_t from, uint32_t to, uint32_t valid);
/* NULL: none is given for that page. */
const struct rf_base *base_find(const struct rf_base *bases, uint32_t base_count, uint64_t index);
/* The open layer with room in it and in the pool for `more` cells; NULL: out of memory. */
struct layer *layer_open_for(struct rf_pages *pages, struct file *file, uint64_t more);
/* Cells that a write would add to the open generation. */
uint64_t write_cost(const struct rf_pages *pages, const struct file *file, uint64_t offset,
                    uint64_t nbytes);
/* A write (nbytes > 0) with the bases that it needs; one not given stands for zeros. Returns how
 * many cells it added, or -ENOMEM. */
int64_t write_range(struct rf_pages *pages, struct file *file, uint64_t offset, const uint8_t *data,
                    uint64_t nbytes, int64_t now_ns, const struct rf_base *bases,
                    uint32_t base_count);

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
static inline bool layer_is_open(const struct rf_pages *pages, const struct file *file)
{
    return file->newest && file->newest->generation == pages->open;
}

static inline uint32_t layer_cells(const struct layer *layer)
{
    return layer->count - layer->marks;
}

/* NULL: the layer has nothing of that page. Not to be kept beyond the next change of the layer. */
const struct entry *layer_find(const struct rf_pages *pages, const struct layer *layer,
                               uint64_t index);
int layer_reserve(struct rf_pages *pages, struct layer *layer, uint64_t more);
/* Only after layer_reserve. The cell becomes the page's, instead of what the layer had of it. */
void layer_put_cell(struct rf_pages *pages, struct layer *layer, uint64_t index, uint8_t *cell);
void layer_put_mark(struct rf_pages *pages, struct layer *layer, uint64_t index, uint64_t address);
/* Forgets what the layer has of the page, and gives back its cell. What was reserved stays. */
void layer_forget(struct rf_pages *pages, struct layer *layer, uint64_t index);
/* The same for the pages of [first, end); what was reserved may be gone. */
void layer_cut(struct rf_pages *pages, struct layer *layer, uint64_t first, uint64_t end);
/* Of a layer that nobody looks at any more: gives back what `places` entries from `place` on hold;
 * returns how many of them did. */
uint64_t layer_drain(struct rf_pages *pages, struct layer *layer, uint64_t place, uint64_t places);
/* Gives back the layer and its cells; its links are the caller's. */
void layer_end(struct rf_pages *pages, struct layer *layer);

/* pages_leaf.c */
int leaf_cache_start(struct leaf_cache *cache, uint64_t nbytes_max, uint64_t key);
void leaf_cache_end(struct leaf_cache *cache);
void leaf_cache_forget(struct leaf_cache *cache, uint64_t ino, uint64_t first_number);
/* Whether the leaf of the page is cached, and if so the address. */
bool leaf_cache_address(struct leaf_cache *cache, uint64_t ino, uint64_t index, uint64_t *address);

#endif
