/* columns_inner.h: the structures behind columns.h, shared by columns*.c and nobody else.
 *
 * Fields are guarded by columns->mutex, unless they are atomic or never change.
 */
#ifndef RAIDFS_COLUMNS_INNER_H
#define RAIDFS_COLUMNS_INNER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "columns.h"
#include "gf256.h"

enum {
    COLUMNS_MAX = RF_SOURCES_MAX, /* of a zone */
    SLAB_ROWS = 256,
    ADDRESS_ROW_SHIFT = 8,
    ADDRESS_ZONE_SHIFT = 32,
    ROWS_MAX = 1 << (ADDRESS_ZONE_SHIFT - ADDRESS_ROW_SHIFT),
    LATEST_COUNT = 64, /* members whose latest descriptor is remembered */
    SPARES = 4,        /* pieces of memory for rebuilding that are kept for the next time */
    LATENCIES = RF_LATENCIES,
};

struct rf_rebuild; /* what a read of lost columns needs: columns_reading.h */

/* In a list by age of use, whose ring begins and ends at a head. */
struct rf_link {
    struct rf_link *newer, *older;
};

/* What is known of a member besides where its columns are; kept for as long as the columns. */
struct rf_member {
    struct rf_member *next;
    int32_t id;
    bool sits_out;                     /* guarded */
    atomic_ulong latencies[LATENCIES]; /* how many reads by the engine took how long */
};

/* An open file. Held by the columns in it and by the readers that use it. */
struct rf_descriptor {
    atomic_uint references;
    int fd;
    int32_t member;
    struct rf_member *whose; /* guarded until it is put; NULL: there was no memory */
    bool never_waits;        /* its file system keeps all in memory */
    atomic_bool cannot_tell; /* there are no reads from it that don't wait */
    bool shared;             /* by several columns: guarded */
    dev_t device;
    ino_t inode;
    atomic_ulong *open; /* counts all of them */
};

struct rf_slab {
    struct rf_link link;
    struct rf_zone *zone;
    uint32_t number;
    uint32_t rows; /* known, from the slab's first on */
    uint32_t crcs[];
};

struct rf_column {
    struct rf_descriptor *descriptor; /* NULL: lost */
    uint64_t offset;
    int32_t member;
    uint8_t *recipe; /* coefficients by column, or NULL */
};

/* Held by the table and by readers. */
struct rf_zone {
    struct rf_link link;
    struct rf_zone *next; /* of the same bucket */
    atomic_uint references;
    atomic_bool forgotten; /* its rows hold nothing any more */
    uint64_t number;
    uint32_t width, rows, slabs_count;
    struct rf_slab **slabs;
    struct rf_column columns[];
};

struct rf_columns {
    pthread_mutex_t mutex;
    uint32_t cell_bytes, zones_max;
    uint64_t slab_bytes_max;
    uint32_t zero_crc; /* of a cell of zeros */
    uint32_t zones_count, buckets_mask;
    uint64_t slabs_count, slab_bytes;
    struct rf_zone **buckets;
    struct rf_link zones, slabs; /* by age */
    struct rf_descriptor *latest[LATEST_COUNT];
    struct rf_rebuild *spares[SPARES]; /* or NULL */
    struct rf_member *members;
    pthread_mutex_t waits_mutex; /* guards what follows; may be taken with `mutex` held by nobody */
    struct rf_link waits;        /* reads that the engine has, not given up; by age */
    uint64_t stuck;              /* given up, and still not over */
    bool orphaned;               /* to be freed when none of them is left */
    atomic_ulong forgets, given_up;
    atomic_ulong descriptors, reads, cells_read, cells_rebuilt, unknown, waiting, failed;
};

/* With the mutex held: what to read the column by; NULL: it is lost, or its member sits out. */
static inline struct rf_descriptor *rf_column_usable(const struct rf_column *column)
{
    struct rf_descriptor *descriptor = column->descriptor;
    return descriptor && descriptor->whose && descriptor->whose->sits_out ? NULL : descriptor;
}

void rf_list_add(struct rf_link *head, struct rf_link *link);
void rf_list_remove(struct rf_link *link);

/* Frees them, whoever reads. */
void rf_columns_end(struct rf_columns *columns);

/* With the mutex held. NULL: not known. What is found becomes the newest. */
struct rf_zone *rf_columns_find(struct rf_columns *columns, uint64_t number);
struct rf_slab *rf_columns_find_slab(struct rf_columns *columns, struct rf_zone *zone,
                                     uint32_t number);

/* At any time. The last one closes, or frees. */
void rf_descriptor_release(struct rf_descriptor *descriptor);
void rf_zone_release(struct rf_zone *zone);

void rf_rebuild_free(struct rf_rebuild *rebuild);

#endif
