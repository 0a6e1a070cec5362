/* pages_leaf.c: the cache of leaves: where pages lie on members, as the flusher left it.
 *
 * Its words: a leaf is known by (ino, number) and holds the addresses of the 256 pages from
 * 256 * number on. A head is an entry of the same hash table with the number HEAD, from which all
 * cached leaves of one file hang, so that a file is forgotten without a search. Leaves know nothing
 * of the dirty pages: whoever asks must have asked rf_pages_read first.
 *
 *  1. Memory counted for entries stays within nbytes_max after every call.
 *  2. The leaf that goes first is the one unused for longest.
 *  3. Trailing holes cost nothing: a leaf of a file of one page takes 100 bytes, not two thousand.
 *  4. A leaf that was put and is all holes is known to be so; that is not the same as not cached.
 */
#include <errno.h>
#include <string.h>

#include "pages_inner.h"

struct leaf {
    uint64_t ino;
    uint64_t number;
    struct leaf *chain; /* of the hash bucket */
    union {
        struct leaf *newer; /* a leaf: by last use */
        struct leaf *first; /* a head: the leaves of the file */
    };
    struct leaf *older;
    struct leaf *next, *previous; /* of the same file */
    uint32_t count;               /* addresses; the rest are holes */
    uint64_t addresses[];
};

enum { BUCKETS_MIN = 64, MALLOC_BYTES = 16 /* that malloc adds to each */ };
static const uint64_t HEAD = UINT64_MAX;

int leaf_cache_start(struct leaf_cache *cache, uint64_t nbytes_max, uint64_t key)
{
    *cache = (struct leaf_cache){.mask = BUCKETS_MIN - 1, .nbytes_max = nbytes_max, .key = key};
    cache->buckets = calloc(BUCKETS_MIN, sizeof(struct leaf *));
    return cache->buckets ? 0 : -ENOMEM;
}

void leaf_cache_end(struct leaf_cache *cache)
{
    for (uint64_t i = 0; cache->buckets && i <= cache->mask; i++)
        for (struct leaf *leaf = cache->buckets[i], *chain; leaf; leaf = chain) {
            chain = leaf->chain;
            free(leaf);
        }
    free(cache->buckets);
    cache->buckets = NULL;
}

static uint64_t leaf_nbytes(const struct leaf *leaf)
{
    return sizeof(struct leaf) + leaf->count * sizeof(uint64_t) + MALLOC_BYTES;
}

static struct leaf **leaf_bucket(const struct leaf_cache *cache, uint64_t ino, uint64_t number)
{
    return &cache->buckets[hash_u64(hash_u64(ino ^ cache->key) + number) & cache->mask];
}

static struct leaf *leaf_find(const struct leaf_cache *cache, uint64_t ino, uint64_t number)
{
    struct leaf *leaf = *leaf_bucket(cache, ino, number);
    while (leaf && (leaf->ino != ino || leaf->number != number))
        leaf = leaf->chain;
    return leaf;
}

static void buckets_resize(struct leaf_cache *cache, uint64_t count)
{
    struct leaf **old = cache->buckets;
    uint64_t old_count = cache->mask + 1;
    struct leaf **buckets = calloc(count, sizeof(struct leaf *));
    if (!buckets)
        return; /* chains grow longer, that is all */
    cache->buckets = buckets;
    cache->mask = count - 1;
    for (uint64_t i = 0; i < old_count; i++)
        for (struct leaf *leaf = old[i], *chain; leaf; leaf = chain) {
            chain = leaf->chain;
            struct leaf **bucket = leaf_bucket(cache, leaf->ino, leaf->number);
            leaf->chain = *bucket;
            *bucket = leaf;
        }
    free(old);
}

static void bucket_link(struct leaf_cache *cache, struct leaf *leaf)
{
    struct leaf **bucket = leaf_bucket(cache, leaf->ino, leaf->number);
    leaf->chain = *bucket;
    *bucket = leaf;
    cache->nbytes += leaf_nbytes(leaf);
    if (++cache->entries > cache->mask + 1)
        buckets_resize(cache, (cache->mask + 1) * 2);
}

static void bucket_unlink_and_free(struct leaf_cache *cache, struct leaf *leaf)
{
    struct leaf **link = leaf_bucket(cache, leaf->ino, leaf->number);
    while (*link != leaf)
        link = &(*link)->chain;
    *link = leaf->chain;
    cache->nbytes -= leaf_nbytes(leaf);
    cache->entries--;
    free(leaf);
    if (cache->mask + 1 > BUCKETS_MIN && cache->entries * 8 < cache->mask)
        buckets_resize(cache, (cache->mask + 1) / 2);
}

static void use_link(struct leaf_cache *cache, struct leaf *leaf)
{
    leaf->newer = NULL;
    leaf->older = cache->newest;
    if (cache->newest)
        cache->newest->newer = leaf;
    else
        cache->oldest = leaf;
    cache->newest = leaf;
}

static void use_unlink(struct leaf_cache *cache, struct leaf *leaf)
{
    if (leaf->newer)
        leaf->newer->older = leaf->older;
    else
        cache->newest = leaf->older;
    if (leaf->older)
        leaf->older->newer = leaf->newer;
    else
        cache->oldest = leaf->newer;
}

static void leaf_remove(struct leaf_cache *cache, struct leaf *leaf)
{
    struct leaf *head = leaf_find(cache, leaf->ino, HEAD);
    ENSURE(head);
    use_unlink(cache, leaf);
    if (leaf->next)
        leaf->next->previous = leaf->previous;
    if (leaf->previous)
        leaf->previous->next = leaf->next;
    else
        head->first = leaf->next;
    if (!head->first)
        bucket_unlink_and_free(cache, head);
    bucket_unlink_and_free(cache, leaf);
    cache->leaves--;
}

void leaf_cache_forget(struct leaf_cache *cache, uint64_t ino, uint64_t first_number)
{
    struct leaf *head = leaf_find(cache, ino, HEAD);
    for (struct leaf *leaf = head ? head->first : NULL, *next; leaf; leaf = next) {
        next = leaf->next;
        if (leaf->number >= first_number)
            leaf_remove(cache, leaf);
    }
}

/* The leaf, now the last used one; counts. */
static struct leaf *leaf_use(struct leaf_cache *cache, uint64_t ino, uint64_t number)
{
    struct leaf *leaf = leaf_find(cache, ino, number);
    if (!leaf) {
        cache->misses++;
        return NULL;
    }
    cache->hits++;
    if (cache->newest != leaf) {
        use_unlink(cache, leaf);
        use_link(cache, leaf);
    }
    return leaf;
}

bool leaf_cache_address(struct leaf_cache *cache, uint64_t ino, uint64_t index, uint64_t *address)
{
    const struct leaf *leaf = leaf_use(cache, ino, index / LEAF_PAGES);
    uint64_t place = index % LEAF_PAGES;
    *address = leaf && place < leaf->count ? leaf->addresses[place] : 0;
    return leaf != NULL;
}

static int leaf_put(struct leaf_cache *cache, uint64_t ino, uint64_t number,
                    const uint64_t *addresses)
{
    uint32_t count = LEAF_PAGES;
    while (count > 0 && addresses[count - 1] == 0)
        count--;
    struct leaf *leaf = leaf_find(cache, ino, number);
    if (leaf) /* mostly with another count; and if memory is out, the old one must not stay */
        leaf_remove(cache, leaf);
    leaf = malloc(sizeof(struct leaf) + count * sizeof(uint64_t));
    struct leaf *head = leaf_find(cache, ino, HEAD);
    if (leaf && !head) {
        head = calloc(1, sizeof(struct leaf));
        if (head) {
            head->ino = ino;
            head->number = HEAD;
            bucket_link(cache, head);
        }
    }
    if (!leaf || !head) {
        free(leaf);
        return -ENOMEM;
    }
    *leaf = (struct leaf){.ino = ino, .number = number, .next = head->first, .count = count};
    memcpy(leaf->addresses, addresses, count * sizeof(uint64_t));
    if (head->first)
        head->first->previous = leaf;
    head->first = leaf;
    bucket_link(cache, leaf);
    use_link(cache, leaf);
    cache->leaves++;
    while (cache->nbytes > cache->nbytes_max && cache->oldest)
        leaf_remove(cache, cache->oldest);
    return 0;
}

int rf_pages_leaf(struct rf_pages *pages, uint64_t ino, uint64_t number, uint64_t *addresses)
{
    if (number == HEAD)
        return 0;
    pthread_mutex_lock(&pages->mutex);
    const struct leaf *leaf = leaf_use(&pages->leaves, ino, number);
    if (leaf) {
        memcpy(addresses, leaf->addresses, leaf->count * sizeof(uint64_t));
        memset(addresses + leaf->count, 0, (LEAF_PAGES - leaf->count) * sizeof(uint64_t));
    }
    pthread_mutex_unlock(&pages->mutex);
    return leaf != NULL;
}

int rf_pages_leaf_put(struct rf_pages *pages, uint64_t ino, uint64_t number,
                      const uint64_t *addresses)
{
    if (number == HEAD)
        return -EINVAL;
    pthread_mutex_lock(&pages->mutex);
    int result = leaf_put(&pages->leaves, ino, number, addresses);
    pthread_mutex_unlock(&pages->mutex);
    return result;
}

void rf_pages_leaf_forget(struct rf_pages *pages, uint64_t ino, uint64_t first_number)
{
    pthread_mutex_lock(&pages->mutex);
    leaf_cache_forget(&pages->leaves, ino, first_number);
    pthread_mutex_unlock(&pages->mutex);
}

int64_t rf_pages_leaf_lookup(struct rf_pages *pages, uint64_t ino, const uint64_t *indexes,
                             uint64_t count, uint64_t *addresses, uint8_t *known)
{
    const struct leaf *leaf = NULL;
    uint64_t number = HEAD; /* of `leaf`, which may be NULL: not cached */
    int64_t found = 0;
    pthread_mutex_lock(&pages->mutex);
    for (uint64_t i = 0; i < count; i++) {
        if (indexes[i] / LEAF_PAGES != number) {
            number = indexes[i] / LEAF_PAGES;
            leaf = leaf_use(&pages->leaves, ino, number);
        }
        uint64_t place = indexes[i] % LEAF_PAGES;
        known[i] = leaf != NULL;
        addresses[i] = leaf && place < leaf->count ? leaf->addresses[place] : 0;
        found += leaf != NULL;
    }
    pthread_mutex_unlock(&pages->mutex);
    return found;
}
