/* known_references.c: how often the kernel was told of each inode and has not forgotten it.
 *
 *  1. Exact for any history: a count that outgrows 32 bits makes its chunk one of 64 bits, and only
 *     a count beyond 2^64 - 1 stays there.
 *  2. Below 8 bytes for each inode where numbers lie close together, below 256 for a lone one;
 *     nothing for those without references.
 *  3. Releasing can't fail: the room in which it leaves an inode was taken when it was watched.
 */
#include <errno.h>
#include <string.h>

#include "known_inner.h"

enum { BUCKETS_MIN = 64, QUEUE_MIN = 16, MALLOC_BYTES = 8 };

int references_start(struct reference_table *table, uint64_t key)
{
    *table = (struct reference_table){
        .buckets = calloc(BUCKETS_MIN, sizeof(struct chunk *)),
        .mask = BUCKETS_MIN - 1,
        .key = key,
    };
    return table->buckets ? 0 : -ENOMEM;
}

void references_end(struct reference_table *table)
{
    if (table->buckets)
        for (uint64_t i = 0; i <= table->mask; i++)
            for (struct chunk *chunk = table->buckets[i]; chunk;) {
                struct chunk *next = chunk->next;
                free(chunk);
                chunk = next;
            }
    free(table->buckets);
    free(table->unreferenced);
}

/* ---- chunks ---- */

static struct chunk **bucket_of(const struct reference_table *table, uint64_t number)
{
    return &table->buckets[hash_u64(number ^ table->key) & table->mask];
}

/* Where the chunk hangs, or would. */
static struct chunk **chunk_place(const struct reference_table *table, uint64_t number)
{
    struct chunk **place = bucket_of(table, number);
    while (*place && (*place)->number != number)
        place = &(*place)->next;
    return place;
}

static uint64_t chunk_nbytes(bool wide)
{
    uint64_t count_nbytes = wide ? sizeof(uint64_t) : sizeof(uint32_t);
    return sizeof(struct chunk) + CHUNK_INODES * count_nbytes;
}

uint64_t references_nbytes(const struct reference_table *table)
{
    return table->chunks * (chunk_nbytes(false) + MALLOC_BYTES) +
           table->wide_chunks * (chunk_nbytes(true) - chunk_nbytes(false)) +
           (table->mask + 1) * sizeof(struct chunk *) + table->unreferenced_room * sizeof(uint64_t);
}

/* Without memory the table just stays as it is. */
static void buckets_resize(struct reference_table *table, uint64_t buckets)
{
    struct chunk **old = table->buckets, **new = calloc(buckets, sizeof(struct chunk *));
    uint64_t old_buckets = table->mask + 1;
    if (!new)
        return;
    table->buckets = new;
    table->mask = buckets - 1;
    for (uint64_t i = 0; i < old_buckets; i++)
        for (struct chunk *chunk = old[i]; chunk;) {
            struct chunk *next = chunk->next, **bucket = bucket_of(table, chunk->number);
            chunk->next = *bucket;
            *bucket = chunk;
            chunk = next;
        }
    free(old);
}

static struct chunk *chunk_add(struct reference_table *table, uint64_t number)
{
    struct chunk *chunk = calloc(1, chunk_nbytes(false));
    if (!chunk)
        return NULL;
    chunk->number = number;
    if (table->chunks > table->mask)
        buckets_resize(table, (table->mask + 1) * 2);
    struct chunk **bucket = bucket_of(table, number);
    chunk->next = *bucket;
    *bucket = chunk;
    table->chunks++;
    return chunk;
}

static void chunk_remove(struct reference_table *table, struct chunk *chunk)
{
    ENSURE(!chunk->watched);
    *chunk_place(table, chunk->number) = chunk->next;
    table->chunks--;
    table->wide_chunks -= chunk->wide;
    free(chunk);
    if (table->mask + 1 > BUCKETS_MIN && table->chunks * 8 < table->mask)
        buckets_resize(table, (table->mask + 1) / 2);
}

static uint64_t count_of(const struct chunk *chunk, uint64_t ino)
{
    uint64_t at = ino % CHUNK_INODES;
    return chunk->wide ? chunk->counts[at] : ((const uint32_t *)chunk->counts)[at];
}

static void count_set(struct chunk *chunk, uint64_t ino, uint64_t count)
{
    uint64_t at = ino % CHUNK_INODES;
    if (chunk->wide)
        chunk->counts[at] = count;
    else
        ((uint32_t *)chunk->counts)[at] = (uint32_t)count;
}

/* Makes the counts of the chunk at `place` 64 bits wide. */
static struct chunk *chunk_widen(struct reference_table *table, struct chunk **place)
{
    struct chunk *old = *place, *new = calloc(1, chunk_nbytes(true));
    if (!new)
        return NULL;
    memcpy(new, old, sizeof(*old));
    new->wide = true;
    for (uint64_t i = 0; i < CHUNK_INODES; i++)
        count_set(new, i, count_of(old, i));
    *place = new;
    table->wide_chunks++;
    free(old);
    return new;
}

static uint32_t bit_of(uint64_t ino)
{
    return (uint32_t)1 << ino % CHUNK_INODES;
}

/* ---- counting ---- */

int references_add(struct reference_table *table, uint64_t ino, uint64_t count)
{
    if (count == 0)
        return 0;
    struct chunk **place = chunk_place(table, ino / CHUNK_INODES), *chunk = *place;
    uint64_t before = chunk ? count_of(chunk, ino) : 0;
    uint64_t after = before + count < before ? UINT64_MAX : before + count;
    if (!chunk)
        chunk = chunk_add(table, ino / CHUNK_INODES);
    if (chunk && after > UINT32_MAX && !chunk->wide) {
        struct chunk *wide = chunk_widen(table, chunk_place(table, chunk->number));
        if (!wide && chunk->used == 0)
            chunk_remove(table, chunk);
        chunk = wide;
    }
    if (!chunk)
        return -ENOMEM;
    count_set(chunk, ino, after);
    if (before == 0) {
        chunk->used++;
        table->inodes++;
    }
    return 0;
}

uint64_t references_count(const struct reference_table *table, uint64_t ino)
{
    const struct chunk *chunk = *chunk_place(table, ino / CHUNK_INODES);
    return chunk ? count_of(chunk, ino) : 0;
}

uint64_t references_all(const struct reference_table *table, uint64_t *inos, uint64_t room)
{
    uint64_t found = 0;
    for (uint64_t bucket = 0; bucket <= table->mask && found < room; bucket++)
        for (const struct chunk *chunk = table->buckets[bucket]; chunk; chunk = chunk->next)
            for (uint64_t i = 0; i < CHUNK_INODES && found < room; i++)
                if (count_of(chunk, i) > 0)
                    inos[found++] = chunk->number * CHUNK_INODES + i;
    return table->inodes;
}

uint64_t references_take(struct reference_table *table, uint64_t ino, uint64_t count)
{
    struct chunk *chunk = *chunk_place(table, ino / CHUNK_INODES);
    uint64_t before = chunk ? count_of(chunk, ino) : 0;
    if (before == 0)
        return 0;
    uint64_t after = count < before ? before - count : 0;
    count_set(chunk, ino, after);
    if (after > 0)
        return after;
    if (chunk->watched & bit_of(ino)) {
        chunk->watched &= ~bit_of(ino);
        table->watched--;
        uint64_t listed = atomic_load(&table->unreferenced_count);
        ENSURE(listed < table->unreferenced_room);
        table->unreferenced[listed] = ino;
        atomic_store(&table->unreferenced_count, listed + 1);
    }
    table->inodes--;
    if (--chunk->used == 0)
        chunk_remove(table, chunk);
    return 0;
}

/* ---- watching ---- */

int64_t references_watch(struct reference_table *table, uint64_t ino)
{
    struct chunk *chunk = *chunk_place(table, ino / CHUNK_INODES);
    uint64_t count = chunk ? count_of(chunk, ino) : 0;
    if (count == 0)
        return 0;
    if (!(chunk->watched & bit_of(ino))) {
        uint64_t needed = table->watched + atomic_load(&table->unreferenced_count) + 1;
        if (needed > table->unreferenced_room) {
            uint64_t room = needed < QUEUE_MIN ? QUEUE_MIN : needed * 2;
            uint64_t *queue = realloc(table->unreferenced, room * sizeof(uint64_t));
            if (!queue)
                return -ENOMEM;
            table->unreferenced = queue;
            table->unreferenced_room = room;
        }
        chunk->watched |= bit_of(ino);
        table->watched++;
    }
    return count > INT64_MAX ? INT64_MAX : (int64_t)count;
}

uint32_t references_unreferenced(struct reference_table *table, uint64_t *inos, uint32_t room)
{
    uint64_t listed = atomic_load(&table->unreferenced_count);
    uint32_t count = listed < room ? (uint32_t)listed : room;
    if (count == 0)
        return 0;
    memcpy(inos, table->unreferenced + (listed - count), count * sizeof(uint64_t));
    listed -= count;
    atomic_store(&table->unreferenced_count, listed);
    if (listed == 0 && table->watched == 0) {
        free(table->unreferenced);
        table->unreferenced = NULL;
        table->unreferenced_room = 0;
    }
    return count;
}
