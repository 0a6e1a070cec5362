/* known_inner.h: the structures behind known.h, shared by known*.c and nobody else.
 *
 * Everything here is called with known->mutex held.
 */
#ifndef RAIDFS_KNOWN_INNER_H
#define RAIDFS_KNOWN_INNER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "ensure.h"
#include "known.h"

enum {
    NAME_BYTES_MAX = 255,
    CHUNK_INODES = 32, /* whose references are counted side by side */
};
static const uint64_t NOWHERE = 0;         /* where a name leads that doesn't exist */
static const uint64_t UNSURE = UINT64_MAX; /* where a name leads that was forgotten, in a
                                            * directory wholly known */

enum kind { KIND_INODE, KIND_NAME, KIND_DIRECTORY, KINDS };

/* The head of all that is found by hashing and evicted when unused. */
struct entry {
    struct entry *next;          /* of the same bucket */
    struct entry *newer, *older; /* by last use */
    uint32_t bucket;
    uint16_t name_nbytes;
    uint8_t kind;
};

struct known_inode {
    struct entry entry;
    struct rf_inode inode;
};

struct known_name {
    struct entry entry;
    struct known_directory *directory;
    struct known_name *previous, *next; /* of the same directory */
    uint64_t ino;                       /* or NOWHERE, UNSURE */
    uint8_t bytes[];
};

/* Lives while it has names or is complete. */
struct known_directory {
    struct entry entry;
    uint64_t ino;
    struct known_name *first;
    uint64_t existing; /* names that lead to an inode */
    bool complete;
};

struct entry_table {
    struct entry **buckets;
    uint32_t mask; /* buckets - 1 */
    uint64_t key[2];
    struct entry *newest, *oldest;
    uint64_t nbytes, nbytes_max;
    uint64_t counts[KINDS];
    uint64_t complete;
    uint64_t evicted;
};

/* References of CHUNK_INODES inodes whose numbers follow each other. */
struct chunk {
    struct chunk *next; /* of the same bucket */
    uint64_t number;    /* ino / CHUNK_INODES */
    uint32_t watched;   /* a bit per inode */
    uint16_t used;      /* counts above 0 */
    bool wide;          /* counts of 64 bits instead of 32 */
    uint64_t counts[];  /* by count_of and count_set only */
};

struct reference_table {
    struct chunk **buckets;
    uint64_t mask; /* buckets - 1 */
    uint64_t key;
    uint64_t chunks, wide_chunks;
    uint64_t inodes;
    uint64_t watched;
    uint64_t *unreferenced; /* a queue with room for all that are watched */
    uint64_t unreferenced_room;
    _Atomic uint64_t unreferenced_count;
};

struct rf_known {
    pthread_mutex_t mutex;
    struct entry_table entries;
    struct reference_table references;
    uint64_t hits, negative_hits, misses;
};

/* known_entries.c */
int entries_start(struct entry_table *table, uint64_t nbytes_max, const uint64_t key[2]);
void entries_end(struct entry_table *table);
struct known_inode *inode_find(const struct entry_table *table, uint64_t ino);
/* Found or made, and used last; its attributes are the caller's to fill. NULL: out of memory. */
struct known_inode *inode_get(struct entry_table *table, uint64_t ino);
struct known_directory *directory_find(const struct entry_table *table, uint64_t ino);
struct known_directory *directory_get(struct entry_table *table, uint64_t ino);
struct known_name *name_find(const struct entry_table *table, uint64_t parent, const uint8_t *bytes,
                             uint32_t nbytes);
/* Found or made; new ones lead NOWHERE. Used last, its directory after it. */
struct known_name *name_get(struct entry_table *table, uint64_t parent, const uint8_t *bytes,
                            uint32_t nbytes);
void name_lead(struct known_name *name, uint64_t ino);
void directory_complete(struct entry_table *table, struct known_directory *directory, bool is);
void inode_drop(struct entry_table *table, struct known_inode *inode);
/* What else is known of the directory stays; the directory goes if there is nothing left of it. */
void name_drop(struct entry_table *table, struct known_name *name);
/* With all its names. */
void directory_drop(struct entry_table *table, struct known_directory *directory);
/* Of inodes first..last, in `buckets` buckets from `at` on: what is known of them, as directories,
 * too. Where to go on, or 0. */
uint64_t entries_forget_between(struct entry_table *table, uint64_t first, uint64_t last,
                                uint64_t at, uint64_t buckets);
void entry_touch(struct entry_table *table, struct entry *entry);
/* Makes the entries fit their room again. Whatever was found before may be gone. */
void entries_trim(struct entry_table *table);

/* known_references.c */
int references_start(struct reference_table *table, uint64_t key);
void references_end(struct reference_table *table);
int references_add(struct reference_table *table, uint64_t ino, uint64_t count);
uint64_t references_count(const struct reference_table *table, uint64_t ino);
uint64_t references_take(struct reference_table *table, uint64_t ino, uint64_t count);
/* As far as there is room; how many there are. */
uint64_t references_all(const struct reference_table *table, uint64_t *inos, uint64_t room);
int64_t references_watch(struct reference_table *table, uint64_t ino);
uint32_t references_unreferenced(struct reference_table *table, uint64_t *inos, uint32_t room);
uint64_t references_nbytes(const struct reference_table *table);

#endif
