/* pages_pool.c: memory for cells and layers.
 *
 * malloc would do, but keeps small pieces for ever where a burst of dirty files left one piece in
 * each of its heaps' pages; here a chunk that is unused goes back to the system as a whole.
 *
 *  1. A chunk lies at a multiple of its size, so masking its address finds the chunk of a thing.
 *  2. After pool_give or pool_trim at most `chunks_kept` chunks are unused; the others are
 *     unmapped.
 *  3. In the list of open chunks the partly used stand before the unused, and are drawn from first.
 *  4. What was freed last is taken first: it is still in the CPU's cache.
 *  5. Chunks of HUGE_BYTES ask for huge pages: the first touch of a fresh page of 4 KiB costs more
 *     than the copy into it (measured: 1300 ns, and 200 ns in a huge page).
 */
#include "pages_pool.h"

#include <errno.h>
#include <sys/mman.h>

#include "pages_inner.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define FORBID(address, nbytes) __asan_poison_memory_region(address, nbytes)
#define ALLOW(address, nbytes) __asan_unpoison_memory_region(address, nbytes)
#else
#define FORBID(address, nbytes) ((void)0)
#define ALLOW(address, nbytes) ((void)0)
#endif

enum { HUGE_BYTES = 2 << 20 };

struct pool_chunk {
    struct pool_chunk *open_next, *open_previous;
    struct pool_chunk *all_next, *all_previous;
    uint32_t used;
    uint32_t touched;  /* things from 0 up that were ever taken */
    uint32_t returned; /* entries of `stack`: taken and given back */
    uint16_t stack[];
};

static size_t rounded_up(size_t value, size_t align)
{
    return (value + align - 1) & ~(align - 1);
}

void pool_start(struct pool *pool, size_t thing_bytes, size_t chunk_bytes, size_t align,
                size_t bytes_kept)
{
    size_t things = chunk_bytes / thing_bytes;
    size_t first = 0;
    for (;; things--) {
        first = rounded_up(sizeof(struct pool_chunk) + things * sizeof(uint16_t), align);
        if (first + things * thing_bytes <= chunk_bytes)
            break;
    }
    ENSURE(things > 0 && things <= UINT16_MAX);
    *pool = (struct pool){
        .thing_bytes = thing_bytes,
        .chunk_bytes = chunk_bytes,
        .first_offset = first,
        .chunk_things = (uint32_t)things,
    };
    pool_keep(pool, bytes_kept);
}

void pool_keep(struct pool *pool, size_t bytes_kept)
{
    size_t chunks = bytes_kept / pool->chunk_bytes;
    /* At least one, or one thing, taken and given, would map and unmap each time. */
    pool->chunks_kept = chunks < 1 ? 1 : chunks < UINT32_MAX ? (uint32_t)chunks : UINT32_MAX;
    pool_trim(pool);
}

/* A mapping of chunk_bytes at a multiple of chunk_bytes, or NULL. The kernel puts mappings side by
 * side, so after one that lies right, the plain request mostly does, too. */
static void *map_aligned(size_t chunk_bytes)
{
    const int protection = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS;
    char *start = mmap(NULL, chunk_bytes, protection, flags, -1, 0);
    if (start == MAP_FAILED)
        return NULL;
    if (((uintptr_t)start & (chunk_bytes - 1)) == 0)
        return start;
    munmap(start, chunk_bytes);
    start = mmap(NULL, 2 * chunk_bytes, protection, flags, -1, 0);
    if (start == MAP_FAILED)
        return NULL;
    char *aligned = (char *)rounded_up((uintptr_t)start, chunk_bytes);
    if (aligned > start)
        munmap(start, (size_t)(aligned - start));
    munmap(aligned + chunk_bytes, chunk_bytes - (size_t)(aligned - start));
    return aligned;
}

static void open_unlink(struct pool *pool, struct pool_chunk *chunk)
{
    if (chunk->open_previous)
        chunk->open_previous->open_next = chunk->open_next;
    else
        pool->open_first = chunk->open_next;
    if (chunk->open_next)
        chunk->open_next->open_previous = chunk->open_previous;
    else
        pool->open_last = chunk->open_previous;
    chunk->open_next = chunk->open_previous = NULL;
}

static void open_push_first(struct pool *pool, struct pool_chunk *chunk)
{
    chunk->open_previous = NULL;
    chunk->open_next = pool->open_first;
    if (pool->open_first)
        pool->open_first->open_previous = chunk;
    else
        pool->open_last = chunk;
    pool->open_first = chunk;
}

static void open_push_last(struct pool *pool, struct pool_chunk *chunk)
{
    chunk->open_next = NULL;
    chunk->open_previous = pool->open_last;
    if (pool->open_last)
        pool->open_last->open_next = chunk;
    else
        pool->open_first = chunk;
    pool->open_last = chunk;
}

static int chunk_add(struct pool *pool)
{
    struct pool_chunk *chunk = map_aligned(pool->chunk_bytes);
    if (!chunk)
        return -ENOMEM;
    if (pool->chunk_bytes == HUGE_BYTES)
        (void)madvise(chunk, HUGE_BYTES, MADV_HUGEPAGE);
    FORBID((char *)chunk + pool->first_offset, pool->chunk_bytes - pool->first_offset);
    chunk->all_next = pool->all; /* the rest is zero: the mapping is new */
    if (pool->all)
        pool->all->all_previous = chunk;
    pool->all = chunk;
    open_push_last(pool, chunk);
    pool->chunks++;
    pool->chunks_unused++;
    pool->things_free += pool->chunk_things;
    return 0;
}

/* Of a chunk that is in the list of open ones. */
static void chunk_remove(struct pool *pool, struct pool_chunk *chunk)
{
    open_unlink(pool, chunk);
    if (chunk->all_previous)
        chunk->all_previous->all_next = chunk->all_next;
    else
        pool->all = chunk->all_next;
    if (chunk->all_next)
        chunk->all_next->all_previous = chunk->all_previous;
    pool->chunks--;
    pool->chunks_unused--;
    pool->things_free -= pool->chunk_things;
    ALLOW(chunk, pool->chunk_bytes);
    munmap(chunk, pool->chunk_bytes);
}

int pool_reserve(struct pool *pool, uint64_t count)
{
    while (pool->things_free < count)
        if (chunk_add(pool) < 0)
            return -ENOMEM;
    return 0;
}

void *pool_take(struct pool *pool)
{
    struct pool_chunk *chunk = pool->open_first;
    ENSURE(chunk);
    uint32_t place = chunk->returned ? chunk->stack[--chunk->returned] : chunk->touched++;
    if (chunk->used++ == 0)
        pool->chunks_unused--;
    if (chunk->used == pool->chunk_things)
        open_unlink(pool, chunk);
    pool->things_free--;
    void *thing = (char *)chunk + pool->first_offset + place * pool->thing_bytes;
    ALLOW(thing, pool->thing_bytes);
    return thing;
}

void pool_give(struct pool *pool, void *thing)
{
    uintptr_t start = (uintptr_t)thing & ~(uintptr_t)(pool->chunk_bytes - 1);
    struct pool_chunk *chunk = (struct pool_chunk *)start;
    size_t place = ((uintptr_t)thing - start - pool->first_offset) / pool->thing_bytes;
    ENSURE(chunk->used > 0 && place < chunk->touched);
    FORBID(thing, pool->thing_bytes);
    chunk->stack[chunk->returned++] = (uint16_t)place;
    pool->things_free++;
    if (chunk->used-- == pool->chunk_things)
        open_push_first(pool, chunk);
    if (chunk->used > 0)
        return;
    pool->chunks_unused++;
    open_unlink(pool, chunk);
    open_push_last(pool, chunk);
    pool_trim(pool);
}

void pool_trim(struct pool *pool)
{
    while (pool->chunks_unused > pool->chunks_kept) {
        ENSURE(pool->open_last->used == 0); /* promise 3 */
        chunk_remove(pool, pool->open_last);
    }
}

void pool_end(struct pool *pool)
{
    for (struct pool_chunk *chunk = pool->all, *next; chunk; chunk = next) {
        next = chunk->all_next;
        ALLOW(chunk, pool->chunk_bytes);
        munmap(chunk, pool->chunk_bytes);
    }
    *pool = (struct pool){0};
}
