/* pages.h: the resident state of files: sizes, times, dirty pages by generation, cached leaves.
 *
 * The only interface to it, for Python (through raidfs/pages.py) and for C threads alike. Any
 * thread may call any function at any time, except rf_pages_free. What the words mean and what is
 * promised stands at the head of pages.c.
 *
 * Functions return a count or 0, or a negative errno; after an error nothing has changed.
 *   -ENOENT  the file is not resident
 *   -ESTALE  the file was dropped
 *   -EAGAIN  the base of a page is needed and was not given, or (seal) the arrays are too short
 *   -EINVAL  an argument makes no sense: inode 0, beyond 2^63-1, no such sealed generation
 *   -ENOMEM  out of memory
 */
#ifndef RAIDFS_PAGES_H
#define RAIDFS_PAGES_H

#include <stdint.h>

struct rf_pages;

/* The content of one page below the pages of memory: cell_bytes bytes. */
struct rf_base {
    uint64_t index;
    const uint8_t *bytes;
};

struct rf_attributes {
    uint64_t size;
    int64_t mtime_ns;
    int64_t ctime_ns;
};

struct rf_pages_statistics {
    uint64_t generation;         /* the open one */
    uint64_t generations_sealed; /* sealed and not yet retired */
    uint64_t resident;           /* files */
    uint64_t open_files;         /* files dirtied in the open generation */
    uint64_t open_cells;
    uint64_t dirty_cells; /* open and sealed */
    uint64_t table_bytes; /* the table of resident files */
    uint64_t layer_bytes; /* memory of the layers, without big page tables */
    uint64_t cell_pool_bytes;
    uint64_t cell_pool_free_bytes;
    uint64_t leaves;
    uint64_t leaf_bytes;
    uint64_t leaf_hits;
    uint64_t leaf_misses;
};

/* cell_bytes: a power of two, 4096..65536. pool_bytes_kept: how much memory of freed cells stays
 * for the next ones instead of going back to the system. NULL: out of memory or arguments wrong. */
struct rf_pages *rf_pages_new(uint32_t cell_bytes, uint64_t leaf_bytes_max,
                              uint64_t pool_bytes_kept, uint64_t generation);
void rf_pages_free(struct rf_pages *pages);

/* 1: now resident, 0: it was already and is unchanged. */
int rf_pages_load(struct rf_pages *pages, uint64_t ino, uint64_t size, int64_t mtime_ns,
                  int64_t ctime_ns);
int rf_pages_resident(struct rf_pages *pages, uint64_t ino);
/* 1: forgotten (or was not resident), 0: kept, since generations still need it. */
int rf_pages_evict(struct rf_pages *pages, uint64_t ino);
int rf_pages_drop(struct rf_pages *pages, uint64_t ino);

int rf_pages_attributes(struct rf_pages *pages, uint64_t ino, struct rf_attributes *out);
/* Cells of the file, in all generations. */
int64_t rf_pages_cells(struct rf_pages *pages, uint64_t ino);
/* A NULL time stays as it is. */
int rf_pages_set_times(struct rf_pages *pages, uint64_t ino, const int64_t *mtime_ns,
                       const int64_t *ctime_ns);

/* Cells that a write would add to the open generation. */
int64_t rf_pages_cost(struct rf_pages *pages, uint64_t ino, uint64_t offset, uint64_t nbytes);
/* How many (0..2) pages need a base for a write; their indexes, ascending, into `indexes`. */
int rf_pages_missing(struct rf_pages *pages, uint64_t ino, uint64_t offset, uint64_t nbytes,
                     uint64_t *indexes);
/* Cells added to the open generation. Bases that turn out not to be needed are ignored. */
int64_t rf_pages_write(struct rf_pages *pages, uint64_t ino, uint64_t offset, const uint8_t *data,
                       uint64_t nbytes, int64_t now_ns, const struct rf_base *bases,
                       uint32_t base_count);
/* Fills the parts of `out` that memory knows; the indexes of the other pages, ascending, go into
 * `elsewhere`, whose room must do for all pages touched; returns how many. */
int64_t rf_pages_read(struct rf_pages *pages, uint64_t ino, uint64_t offset, uint8_t *out,
                      uint64_t nbytes, uint64_t *elsewhere, uint64_t room);
/* 1 and the index of the page whose base a truncate needs, or 0. */
int rf_pages_missing_tail(struct rf_pages *pages, uint64_t ino, uint64_t size, uint64_t *index);
/* `change`: by how much the number of cells of the open generation changed. */
int rf_pages_truncate(struct rf_pages *pages, uint64_t ino, uint64_t size, int64_t now_ns,
                      const uint8_t *base, int64_t *change);

/* Files that a seal would report now; a hint for the room of its arrays. */
uint64_t rf_pages_open_files(struct rf_pages *pages);
uint64_t rf_pages_generation(struct rf_pages *pages);
uint64_t rf_pages_open_cells(struct rf_pages *pages);
uint64_t rf_pages_dirty_cells(struct rf_pages *pages);
/* Closes the open generation and opens the next; how many files it dirtied. `sealed` gets the
 * number of the generation closed. -EAGAIN: `room` is too small, nothing is sealed. */
int64_t rf_pages_seal(struct rf_pages *pages, uint64_t room, uint64_t *inos, int64_t *sizes,
                      int64_t *mtimes_ns, int64_t *ctimes_ns, uint64_t *sealed);
int rf_pages_sealed_counts(struct rf_pages *pages, uint64_t generation, uint64_t *cells,
                           uint64_t *cuts);
/* The arrays have the room that rf_pages_sealed_counts said. Sorted by (ino, index); by ino. */
int rf_pages_sealed_cells(struct rf_pages *pages, uint64_t generation, uint64_t *inos,
                          uint64_t *indexes, uint64_t *addresses);
int rf_pages_sealed_cuts(struct rf_pages *pages, uint64_t generation, uint64_t *inos,
                         uint64_t *first_pages);
/* Only the oldest sealed generation can be retired (-EINVAL). */
int rf_pages_retire(struct rf_pages *pages, uint64_t generation);

/* 1 and 256 addresses, or 0. */
int rf_pages_leaf(struct rf_pages *pages, uint64_t ino, uint64_t number, uint64_t *addresses);
int rf_pages_leaf_put(struct rf_pages *pages, uint64_t ino, uint64_t number,
                      const uint64_t *addresses);
void rf_pages_leaf_forget(struct rf_pages *pages, uint64_t ino, uint64_t first_number);
/* For each page its address and 1, or 0 and 0: leaf not cached. Returns how many are known. */
int64_t rf_pages_leaf_lookup(struct rf_pages *pages, uint64_t ino, const uint64_t *indexes,
                             uint64_t count, uint64_t *addresses, uint8_t *known);

void rf_pages_statistics(struct rf_pages *pages, struct rf_pages_statistics *out);

#endif
