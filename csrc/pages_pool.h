/* pages_pool.h: things of one size, taken from and given back to the system in chunks. */
#ifndef RAIDFS_PAGES_POOL_H
#define RAIDFS_PAGES_POOL_H

#include <stddef.h>
#include <stdint.h>

struct pool_chunk;

struct pool {
    size_t thing_bytes;
    size_t chunk_bytes;    /* a power of two; chunks lie at multiples of it */
    size_t first_offset;   /* of the first thing in a chunk, behind the chunk's head */
    uint32_t chunk_things; /* things in a chunk */
    uint32_t chunks_kept;  /* unused chunks that are not given back */
    uint32_t chunks_unused;
    uint64_t chunks;
    uint64_t things_free;          /* in all chunks */
    struct pool_chunk *open_first; /* chunks with free things: partly used ones first */
    struct pool_chunk *open_last;
    struct pool_chunk *all;
};

/* Things lie at multiples of `align` (a power of two, at most 4096). */
void pool_start(struct pool *pool, size_t thing_bytes, size_t chunk_bytes, size_t align,
                size_t bytes_kept);
void pool_end(struct pool *pool);
/* Makes sure that the next `count` pool_take succeed; 0 or -ENOMEM. */
int pool_reserve(struct pool *pool, uint64_t count);
/* Content undefined. Only after pool_reserve. */
void *pool_take(struct pool *pool);
void pool_give(struct pool *pool, void *thing);
void pool_keep(struct pool *pool, size_t bytes_kept);
/* Gives back what a reserve took too much. */
void pool_trim(struct pool *pool);

#endif
