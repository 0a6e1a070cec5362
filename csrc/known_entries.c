/* known_entries.c: inodes, names and directories: one hash table, one order of use, one bound.
 *
 *  1. A directory is more recently used than each of its names: using a name uses the directory
 *     after it. So a directory that has become the oldest entry has no names left.
 *  2. `existing` counts the directory's names that lead to an inode. While it is complete, a name
 *     that has no entry doesn't exist; dropping an entry that leads to an inode, or is unsure, ends
 *     that, unless the caller knows the name to be gone and makes it lead NOWHERE first.
 *  3. The buckets don't grow: their number follows from nbytes_max, and untouched ones cost no
 *     memory. So no call ever waits for a table to be rebuilt.
 */
#include <errno.h>
#include <string.h>

#include "known_inner.h"

enum { BUCKETS_MIN = 64, BUCKETS_MAX = 1 << 24, ENTRY_BYTES_TYPICAL = 160, MALLOC_BYTES = 16 };

int entries_start(struct entry_table *table, uint64_t nbytes_max, const uint64_t key[2])
{
    uint64_t buckets = BUCKETS_MIN;
    while (buckets < BUCKETS_MAX && buckets * ENTRY_BYTES_TYPICAL < nbytes_max)
        buckets *= 2;
    *table = (struct entry_table){
        .buckets = calloc(buckets, sizeof(struct entry *)),
        .mask = (uint32_t)(buckets - 1),
        .key = {key[0], key[1]},
        .nbytes_max = nbytes_max,
    };
    return table->buckets ? 0 : -ENOMEM;
}

void entries_end(struct entry_table *table)
{
    for (struct entry *entry = table->oldest; entry;) {
        struct entry *newer = entry->newer;
        free(entry);
        entry = newer;
    }
    free(table->buckets);
}

/* ---- the order of use ---- */

static void order_remove(struct entry_table *table, struct entry *entry)
{
    if (entry->newer)
        entry->newer->older = entry->older;
    else
        table->newest = entry->older;
    if (entry->older)
        entry->older->newer = entry->newer;
    else
        table->oldest = entry->newer;
}

static void order_add(struct entry_table *table, struct entry *entry)
{
    entry->newer = NULL;
    entry->older = table->newest;
    if (table->newest)
        table->newest->newer = entry;
    else
        table->oldest = entry;
    table->newest = entry;
}

void entry_touch(struct entry_table *table, struct entry *entry)
{
    if (table->newest == entry)
        return;
    order_remove(table, entry);
    order_add(table, entry);
}

/* ---- the buckets ---- */

static uint32_t number_bucket(const struct entry_table *table, uint64_t ino, enum kind kind)
{
    return (uint32_t)hash_u64(hash_u64(ino ^ table->key[0]) + table->key[1] + kind) & table->mask;
}

static uint32_t name_bucket(const struct entry_table *table, uint64_t parent, const uint8_t *bytes,
                            uint32_t nbytes)
{
    uint64_t hash = hash_u64(parent ^ table->key[0]) + nbytes, word;
    for (; nbytes >= 8; bytes += 8, nbytes -= 8) {
        memcpy(&word, bytes, 8);
        hash = hash_u64(hash ^ word) + table->key[1];
    }
    word = 0;
    memcpy(&word, bytes, nbytes);
    return (uint32_t)hash_u64(hash ^ word) & table->mask;
}

static uint64_t entry_nbytes(const struct entry *entry)
{
    switch (entry->kind) {
    case KIND_INODE:
        return sizeof(struct known_inode) + MALLOC_BYTES;
    case KIND_NAME:
        return sizeof(struct known_name) + entry->name_nbytes + MALLOC_BYTES;
    default:
        return sizeof(struct known_directory) + MALLOC_BYTES;
    }
}

static void entry_add(struct entry_table *table, struct entry *entry, uint32_t bucket)
{
    entry->bucket = bucket;
    entry->next = table->buckets[bucket];
    table->buckets[bucket] = entry;
    order_add(table, entry);
    table->counts[entry->kind]++;
    table->nbytes += entry_nbytes(entry);
}

static void entry_free(struct entry_table *table, struct entry *entry)
{
    struct entry **at = &table->buckets[entry->bucket];
    while (*at != entry)
        at = &(*at)->next;
    *at = entry->next;
    order_remove(table, entry);
    table->counts[entry->kind]--;
    table->nbytes -= entry_nbytes(entry);
    free(entry);
}

/* ---- inodes ---- */

struct known_inode *inode_find(const struct entry_table *table, uint64_t ino)
{
    struct entry *entry = table->buckets[number_bucket(table, ino, KIND_INODE)];
    for (; entry; entry = entry->next)
        if (entry->kind == KIND_INODE && ((struct known_inode *)entry)->inode.ino == ino)
            break;
    return (struct known_inode *)entry;
}

struct known_inode *inode_get(struct entry_table *table, uint64_t ino)
{
    struct known_inode *inode = inode_find(table, ino);
    if (inode) {
        entry_touch(table, &inode->entry);
        return inode;
    }
    inode = calloc(1, sizeof(*inode));
    if (!inode)
        return NULL;
    inode->entry.kind = KIND_INODE;
    inode->inode.ino = ino;
    entry_add(table, &inode->entry, number_bucket(table, ino, KIND_INODE));
    return inode;
}

void inode_drop(struct entry_table *table, struct known_inode *inode)
{
    entry_free(table, &inode->entry);
}

/* ---- directories ---- */

struct known_directory *directory_find(const struct entry_table *table, uint64_t ino)
{
    struct entry *entry = table->buckets[number_bucket(table, ino, KIND_DIRECTORY)];
    for (; entry; entry = entry->next)
        if (entry->kind == KIND_DIRECTORY && ((struct known_directory *)entry)->ino == ino)
            break;
    return (struct known_directory *)entry;
}

struct known_directory *directory_get(struct entry_table *table, uint64_t ino)
{
    struct known_directory *directory = directory_find(table, ino);
    if (directory) {
        entry_touch(table, &directory->entry);
        return directory;
    }
    directory = calloc(1, sizeof(*directory));
    if (!directory)
        return NULL;
    directory->entry.kind = KIND_DIRECTORY;
    directory->ino = ino;
    entry_add(table, &directory->entry, number_bucket(table, ino, KIND_DIRECTORY));
    return directory;
}

void directory_complete(struct entry_table *table, struct known_directory *directory, bool is)
{
    table->complete += (uint64_t)is - (uint64_t)directory->complete;
    directory->complete = is;
}

static void directory_free(struct entry_table *table, struct known_directory *directory)
{
    ENSURE(!directory->first && !directory->existing);
    directory_complete(table, directory, false);
    entry_free(table, &directory->entry);
}

/* ---- names ---- */

struct known_name *name_find(const struct entry_table *table, uint64_t parent, const uint8_t *bytes,
                             uint32_t nbytes)
{
    struct entry *entry = table->buckets[name_bucket(table, parent, bytes, nbytes)];
    for (; entry; entry = entry->next) {
        if (entry->kind != KIND_NAME || entry->name_nbytes != nbytes)
            continue;
        const struct known_name *name = (struct known_name *)entry;
        if (name->directory->ino == parent && memcmp(name->bytes, bytes, nbytes) == 0)
            break;
    }
    return (struct known_name *)entry;
}

struct known_name *name_get(struct entry_table *table, uint64_t parent, const uint8_t *bytes,
                            uint32_t nbytes)
{
    struct known_name *name = name_find(table, parent, bytes, nbytes);
    if (name) {
        entry_touch(table, &name->entry);
        entry_touch(table, &name->directory->entry);
        return name;
    }
    name = calloc(1, sizeof(*name) + nbytes);
    if (!name)
        return NULL;
    struct known_directory *directory = directory_get(table, parent);
    if (!directory) {
        free(name);
        return NULL;
    }
    name->entry.kind = KIND_NAME;
    name->entry.name_nbytes = (uint16_t)nbytes;
    memcpy(name->bytes, bytes, nbytes);
    name->directory = directory;
    name->next = directory->first;
    if (directory->first)
        directory->first->previous = name;
    directory->first = name;
    entry_add(table, &name->entry, name_bucket(table, parent, bytes, nbytes));
    entry_touch(table, &directory->entry);
    return name;
}

static bool exists(uint64_t ino)
{
    return ino != NOWHERE && ino != UNSURE;
}

void name_lead(struct known_name *name, uint64_t ino)
{
    name->directory->existing += (uint64_t)exists(ino) - (uint64_t)exists(name->ino);
    name->ino = ino;
}

void name_drop(struct entry_table *table, struct known_name *name)
{
    struct known_directory *directory = name->directory;
    if (name->ino != NOWHERE)
        directory_complete(table, directory, false);
    name_lead(name, NOWHERE);
    if (name->next)
        name->next->previous = name->previous;
    if (name->previous)
        name->previous->next = name->next;
    else
        directory->first = name->next;
    entry_free(table, &name->entry);
    if (!directory->first && !directory->complete)
        directory_free(table, directory);
}

void directory_drop(struct entry_table *table, struct known_directory *directory)
{
    directory_complete(table, directory, true); /* so that it lives until its last name is gone */
    while (directory->first) {
        name_lead(directory->first, NOWHERE);
        name_drop(table, directory->first);
    }
    directory_free(table, directory);
}

/* ---- many ---- */

/* The first of a bucket that is, or is a directory of, one of the inodes. */
static struct entry *find_between(const struct entry_table *table, uint64_t bucket, uint64_t first,
                                  uint64_t last)
{
    struct entry *entry = table->buckets[bucket];
    for (; entry; entry = entry->next) {
        uint64_t ino = 0;
        if (entry->kind == KIND_INODE)
            ino = ((struct known_inode *)entry)->inode.ino;
        else if (entry->kind == KIND_DIRECTORY)
            ino = ((struct known_directory *)entry)->ino;
        if (entry->kind != KIND_NAME && ino >= first && ino <= last)
            break;
    }
    return entry;
}

uint64_t entries_forget_between(struct entry_table *table, uint64_t first, uint64_t last,
                                uint64_t at, uint64_t buckets)
{
    for (; buckets > 0 && at <= table->mask; at++, buckets--)
        for (struct entry *entry; (entry = find_between(table, at, first, last));)
            if (entry->kind == KIND_INODE)
                inode_drop(table, (struct known_inode *)entry);
            else
                directory_drop(table, (struct known_directory *)entry);
    return at <= table->mask ? at : 0;
}

/* ---- the bound ---- */

void entries_trim(struct entry_table *table)
{
    while (table->nbytes > table->nbytes_max) {
        struct entry *entry = table->oldest;
        table->evicted++;
        if (entry->kind == KIND_NAME)
            name_drop(table, (struct known_name *)entry);
        else if (entry->kind == KIND_INODE)
            inode_drop(table, (struct known_inode *)entry);
        else
            directory_free(table, (struct known_directory *)entry); /* 1: it has no names */
    }
}
