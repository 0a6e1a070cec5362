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
 * and those of the rf_pages_lane_ calls, which serve the kernel without asking Python, besides:
 *   -EPERM   nobody vouched that the file may be read, or written, that way
 *   -EUSERS  the file would be dirtied first by the lane, and as many as may be already were
 *   -EDQUOT  more cells would become dirty than there are credits for
 *   -EAGAIN  a leaf isn't cached, or a base isn't given or no longer the one to take
 */
#ifndef RAIDFS_PAGES_H
#define RAIDFS_PAGES_H

#include <stdint.h>

struct rf_pages;

/* The content of one page below the cells in memory: cell_bytes bytes. */
struct rf_base {
    uint64_t index;
    const uint8_t *bytes;
    uint64_t address; /* the cell that they were read from; only the lane's calls look at it */
};

struct rf_attributes {
    uint64_t size;
    int64_t mtime_ns;
    int64_t ctime_ns;
    int64_t atime_ns;
};

struct rf_pages_statistics {
    uint64_t generation;         /* the open one */
    uint64_t generations_sealed; /* sealed and not yet retired */
    uint64_t resident;           /* files */
    uint64_t open_files;         /* files dirtied in the open generation */
    uint64_t open_cells;
    uint64_t dirty_cells; /* open and sealed */
    uint64_t marks;       /* open and sealed */
    uint64_t credits;     /* not yet spent by the lane */
    uint64_t lane_files;  /* dirtied first by the lane in the open generation */
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
/* Another value for pool_bytes_kept; what is too much then goes back at once. */
void rf_pages_keep(struct rf_pages *pages, uint64_t pool_bytes_kept);

/* 1: now resident, 0: it was already and is unchanged. */
int rf_pages_load(struct rf_pages *pages, uint64_t ino, uint64_t size, int64_t mtime_ns,
                  int64_t ctime_ns, int64_t atime_ns);
int rf_pages_resident(struct rf_pages *pages, uint64_t ino);
/* 1: forgotten (or was not resident), 0: kept, since generations still need it. */
int rf_pages_evict(struct rf_pages *pages, uint64_t ino);
int rf_pages_drop(struct rf_pages *pages, uint64_t ino);

int rf_pages_attributes(struct rf_pages *pages, uint64_t ino, struct rf_attributes *out);
/* Cells of the file, in all generations, and those on the members that pages came to share. */
int64_t rf_pages_cells(struct rf_pages *pages, uint64_t ino);
/* A NULL time stays as it is. */
int rf_pages_set_times(struct rf_pages *pages, uint64_t ino, const int64_t *mtime_ns,
                       const int64_t *ctime_ns, const int64_t *atime_ns);

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
 * `elsewhere`, and into `addresses` the cells they share (0: the leaf says), whose room must do for
 * all pages touched; returns how many. */
int64_t rf_pages_read(struct rf_pages *pages, uint64_t ino, uint64_t offset, uint8_t *out,
                      uint64_t nbytes, uint64_t *elsewhere, uint64_t *addresses, uint64_t room);
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
                      int64_t *mtimes_ns, int64_t *ctimes_ns, int64_t *atimes_ns, uint64_t *sealed);
int rf_pages_sealed_counts(struct rf_pages *pages, uint64_t generation, uint64_t *cells,
                           uint64_t *cuts, uint64_t *marks);
/* The arrays have the room that rf_pages_sealed_counts said. Sorted by (ino, index); by ino. */
int rf_pages_sealed_cells(struct rf_pages *pages, uint64_t generation, uint64_t *inos,
                          uint64_t *indexes, uint64_t *addresses);
int rf_pages_sealed_cuts(struct rf_pages *pages, uint64_t generation, uint64_t *inos,
                         uint64_t *first_pages);
/* Addresses: the cell that the page shares, 0: it is a hole. No page has a cell and a mark. */
int rf_pages_sealed_marks(struct rf_pages *pages, uint64_t generation, uint64_t *inos,
                          uint64_t *indexes, uint64_t *addresses);
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

/* ---- marks: pages of a layer without a cell of their own ---- */

enum { RF_MARKS_AT_ONCE = 65536 };
/* Whole pages become holes: those of [first_page, + count) that begin below the size; count is at
 * most RF_MARKS_AT_ONCE. Returns how many open cells were given back. */
int64_t rf_pages_punch(struct rf_pages *pages, uint64_t ino, uint64_t first_page, uint64_t count,
                       int64_t now_ns);
/* Whole pages become those cells on the members (0: holes); count is at most RF_MARKS_AT_ONCE.
 * `size`: the new size if larger; all pages must begin below it. A cell must hold zeros where its
 * page lies beyond the size, and stay on the members until the open generation is retired. Returns
 * how many open cells were given back. */
int64_t rf_pages_share(struct rf_pages *pages, uint64_t ino, uint64_t first_page,
                       const uint64_t *addresses, uint64_t count, uint64_t size, int64_t now_ns);
/* Of each page, by the newest layers that know: */
enum { RF_PAGE_ZERO, RF_PAGE_CELL, RF_PAGE_SHARED, RF_PAGE_LEAF };
/* `addresses`: of the shared ones, else 0. 0, or -ENOENT. */
int rf_pages_map(struct rf_pages *pages, uint64_t ino, uint64_t first_page, uint64_t count,
                 uint8_t *kinds, uint64_t *addresses);
/* 1 and the lowest page >= first_page with a cell or mark in any layer, or 0. A cut may hide it. */
int rf_pages_next_entry(struct rf_pages *pages, uint64_t ino, uint64_t first_page, uint64_t *index);

/* ---- the lane: what C threads do without asking Python ---- */

/* What Python vouches for, of a file: it may be read, or written, and nothing else needs to happen
 * but what the calls below do. The order that keeps this right: Python takes a vouch back before it
 * changes what it vouched for, and gives it again only in a state that is current. */
enum { RF_SERVE_READS = 1, RF_SERVE_WRITES = 2, RF_NO_ATIME = 4 };
/* Replaces the flags; a file just loaded has none. 0, -ENOENT or -ESTALE. */
int rf_pages_vouch(struct rf_pages *pages, uint64_t ino, uint32_t flags);
/* For all files: of RF_SERVE_READS and RF_SERVE_WRITES those missing here are served to nobody,
 * whatever was vouched; without RF_SERVE_WRITES no atime changes, either. At first none is
 * missing. */
void rf_pages_serve(struct rf_pages *pages, uint32_t flags);

/* Credits: cells that the lane may make dirty; for each of them room on the members is promised. */
void rf_pages_grant(struct rf_pages *pages, uint64_t cells);
/* How many were taken back. */
uint64_t rf_pages_take_back(struct rf_pages *pages, uint64_t cells_max);
/* Both of one moment; the lane only turns credits into dirty cells, so their sum stays. */
void rf_pages_claims(struct rf_pages *pages, uint64_t *dirty, uint64_t *credits);
/* How many files the lane may dirty first in each generation. Python must reserve for each of them
 * the room that a new version of its inode takes in the metadata. At first none. */
void rf_pages_allow_files(struct rf_pages *pages, uint64_t files_max);

/* Cells for the payload of writes to land in: cell_bytes each, at multiples of 4096, content
 * undefined. 0, or -ENOMEM: none was taken. */
int rf_pages_cells_take(struct rf_pages *pages, uint32_t count, uint8_t **cells);
/* NULLs are skipped. */
void rf_pages_cells_give(struct rf_pages *pages, uint32_t count, uint8_t **cells);

/* How many (0..2) pages need a base for a write by the lane; for each its index, the cell it lies
 * in and 1; or 0 and 0: the leaf isn't cached. Known holes need no base. */
int rf_pages_lane_missing(struct rf_pages *pages, uint64_t ino, uint64_t offset, uint64_t nbytes,
                          uint64_t *indexes, uint64_t *addresses, uint8_t *known);
/* As rf_pages_write; what it adds to the open generation is taken from the credits. */
int64_t rf_pages_lane_write(struct rf_pages *pages, uint64_t ino, uint64_t offset,
                            const uint8_t *data, uint64_t nbytes, int64_t now_ns,
                            const struct rf_base *bases, uint32_t base_count);
/* The same for a payload that lies page by page in cells[0..n), all from rf_pages_cells_take;
 * `offset` is a multiple of cell_bytes. The cells become the file's: their pointers are NULL
 * afterwards, and nothing is copied but what completes a short last page. */
int64_t rf_pages_lane_put(struct rf_pages *pages, uint64_t ino, uint64_t offset, uint64_t nbytes,
                          uint8_t **cells, int64_t now_ns, const struct rf_base *bases,
                          uint32_t base_count);
/* `out` begins with the page that holds `offset` and consists of whole pages, `room` of them, as do
 * `addresses`. What memory knows is filled in; addresses[i] is the cell that page i must be read
 * from, or 0: done. Returns the bytes of the reply: nbytes, or what the file has of them. Brings
 * atime up to date as fs/file.py does ("relatime"), where RF_NO_ATIME doesn't forbid it. */
int64_t rf_pages_lane_read(struct rf_pages *pages, uint64_t ino, uint64_t offset, uint64_t nbytes,
                           int64_t now_ns, uint8_t *out, uint64_t *addresses, uint64_t room);
/* Attributes, and cells as rf_pages_cells tells, of one moment. 0 or -ENOENT. */
int rf_pages_lane_attributes(struct rf_pages *pages, uint64_t ino, struct rf_attributes *out,
                             uint64_t *cells);

void rf_pages_statistics(struct rf_pages *pages, struct rf_pages_statistics *out);

#endif
