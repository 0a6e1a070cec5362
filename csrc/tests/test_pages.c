/* test_pages.c: pages under sanitizers: writers, readers and a flusher at once, and the edges.
 *
 * The exact comparison with a model is tests/test_1_pages_model.py, and the lane's calls are in
 * test_pages_lane.c; here the sanitizers look for races
 * and for cells used after they were given back, and each thread checks what it can know for
 * certain:
 *   - a writer owns its files, so what it reads back, from memory or else from `members`, is what
 * it wrote last, wherever the flusher is;
 *   - a sealed cell is whole (all its words carry one stamp) and stays as it is until retired.
 */
#undef NDEBUG
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../pages.h"

enum { CELL = 4096, WORDS = CELL / 8, WRITERS = 3, FILES = 4, PAGES = 24, ROUNDS = 20000 };

static struct rf_pages *pages;

/* What a volume would hold: the stamp of each page, 0 for a hole. */
static uint64_t members[WRITERS * FILES + 1][PAGES];
static pthread_mutex_t members_mutex = PTHREAD_MUTEX_INITIALIZER;
static atomic_bool stop;

static uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void stamp_fill(uint64_t *words, uint64_t count, uint64_t stamp)
{
    for (uint64_t i = 0; i < count; i++)
        words[i] = stamp;
}

static uint64_t stamp_of(const uint64_t *words, uint64_t count)
{
    for (uint64_t i = 1; i < count; i++)
        assert(words[i] == words[0]);
    return words[0];
}

/* Reads a file page by page and compares with the stamps its writer remembers. */
static void check_file(uint64_t ino, const uint64_t *stamps, uint64_t size)
{
    static _Thread_local uint64_t content[PAGES * WORDS];
    uint64_t elsewhere[PAGES], addresses[PAGES];
    int64_t count =
        rf_pages_read(pages, ino, 0, (uint8_t *)content, size, elsewhere, addresses, PAGES);
    assert(count >= 0);
    pthread_mutex_lock(&members_mutex);
    for (int64_t i = 0; i < count; i++)
        stamp_fill(content + elsewhere[i] * WORDS, WORDS, members[ino][elsewhere[i]]);
    pthread_mutex_unlock(&members_mutex);
    for (uint64_t i = 0; i < size / CELL; i++)
        assert(stamp_of(content + i * WORDS, WORDS) == stamps[i]);
}

struct writer {
    uint64_t first_ino, seed;
};

static void *write_files(void *argument)
{
    const struct writer *writer = argument;
    uint64_t state = writer->seed, stamps[FILES][PAGES] = {{0}}, size[FILES] = {0};
    uint64_t *data = malloc(PAGES * CELL);
    assert(data);
    for (uint64_t i = 0; i < FILES; i++)
        assert(rf_pages_load(pages, writer->first_ino + i, 0, 0, 0, 0) == 1);
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        uint64_t file = random_next(&state) % FILES, ino = writer->first_ino + file;
        uint64_t first = random_next(&state) % PAGES, count = random_next(&state) % 5 + 1;
        uint64_t stamp = writer->first_ino << 32 | round, missing[2];
        int64_t change;
        if (first + count > PAGES)
            count = PAGES - first;
        switch (random_next(&state) % 8) {
        default:
            stamp_fill(data, count * WORDS, stamp);
            stamp_fill(stamps[file] + first, count, stamp);
            assert(rf_pages_missing(pages, ino, first * CELL, count * CELL, missing) == 0);
            assert(rf_pages_write(pages, ino, first * CELL, (uint8_t *)data, count * CELL,
                                  (int64_t)round, NULL, 0) >= 0);
            if (size[file] < (first + count) * CELL)
                size[file] = (first + count) * CELL;
            break;
        case 0:
            assert(rf_pages_truncate(pages, ino, first * CELL, (int64_t)round, NULL, &change) == 0);
            for (uint64_t i = first; i < PAGES; i++)
                stamps[file][i] = 0;
            size[file] = first * CELL;
            break;
        case 1:
            check_file(ino, stamps[file], size[file]);
            break;
        case 2: /* forgotten if nothing needs it; then it comes back as it was */
            if (rf_pages_evict(pages, ino))
                assert(rf_pages_load(pages, ino, size[file], 0, 0, 0) == 1);
            check_file(ino, stamps[file], size[file]);
            break;
        case 3: {
            uint64_t leaf[256] = {stamp}, index = first, address;
            uint8_t known;
            assert(rf_pages_leaf_put(pages, ino, first % 3, leaf) == 0);
            (void)rf_pages_leaf(pages, ino, first % 3, leaf);
            assert(rf_pages_leaf_lookup(pages, ino, &index, 1, &address, &known) <= 1);
            rf_pages_leaf_forget(pages, ino, 1);
            break;
        }
        }
    }
    for (uint64_t i = 0; i < FILES; i++)
        check_file(writer->first_ino + i, stamps[i], size[i]);
    free(data);
    return NULL;
}

/* Copies a sealed generation to the members: cuts, then cells; retires it a little later. */
static void flush(uint64_t generation)
{
    uint64_t cells, cuts, marks;
    assert(rf_pages_sealed_counts(pages, generation, &cells, &cuts, &marks) == 0);
    assert(marks == 0);
    uint64_t *inos = calloc(cells + cuts + 1, 8), *indexes = calloc(cells + cuts + 1, 8);
    uint64_t *addresses = calloc(cells + 1, 8), *found = calloc(cells + 1, 8);
    assert(inos && indexes && addresses && found);
    assert(rf_pages_sealed_cells(pages, generation, inos, indexes, addresses) == 0);
    for (uint64_t i = 0; i < cells; i++) {
        assert(i == 0 || inos[i] > inos[i - 1] || indexes[i] > indexes[i - 1]);
        found[i] = stamp_of((const uint64_t *)(uintptr_t)addresses[i], WORDS);
    }
    assert(rf_pages_sealed_cuts(pages, generation, inos + cells, indexes + cells) == 0);
    pthread_mutex_lock(&members_mutex);
    for (uint64_t i = cells; i < cells + cuts; i++)
        for (uint64_t index = indexes[i]; index < PAGES; index++)
            members[inos[i]][index] = 0;
    for (uint64_t i = 0; i < cells; i++) {
        assert(stamp_of((const uint64_t *)(uintptr_t)addresses[i], WORDS) == found[i]);
        members[inos[i]][indexes[i]] = found[i];
    }
    pthread_mutex_unlock(&members_mutex);
    assert(rf_pages_retire(pages, generation) == 0);
    free(inos);
    free(indexes);
    free(addresses);
    free(found);
}

/* Keeps up to three generations sealed. */
static void *seal_and_flush(void *argument)
{
    (void)argument;
    uint64_t inos[64], sealed = 0, oldest = 1;
    int64_t sizes[64], mtimes[64], ctimes[64], atimes[64];
    struct rf_pages_statistics statistics;
    while (!atomic_load(&stop) || oldest <= sealed) {
        if (!atomic_load(&stop))
            assert(rf_pages_seal(pages, 64, inos, sizes, mtimes, ctimes, atimes, &sealed) >= 0);
        while (oldest <= sealed && (sealed - oldest >= 3 || atomic_load(&stop)))
            flush(oldest++);
        rf_pages_statistics(pages, &statistics);
        assert(statistics.generations_sealed == sealed + 1 - oldest);
    }
    return NULL;
}

static void test_threads(void)
{
    pthread_t threads[WRITERS], flusher;
    struct writer writers[WRITERS];
    pages = rf_pages_new(CELL, 4096, 0, 1);
    assert(pages);
    assert(pthread_create(&flusher, NULL, seal_and_flush, NULL) == 0);
    for (int i = 0; i < WRITERS; i++) {
        writers[i] = (struct writer){1 + (uint64_t)i * FILES, 88172645463325252ULL + (uint64_t)i};
        assert(pthread_create(&threads[i], NULL, write_files, &writers[i]) == 0);
    }
    for (int i = 0; i < WRITERS; i++)
        assert(pthread_join(threads[i], NULL) == 0);
    atomic_store(&stop, true);
    assert(pthread_join(flusher, NULL) == 0);
    rf_pages_free(pages);
}

static void test_arguments(void)
{
    uint64_t index, sealed, cells, cuts, marks, ino;
    int64_t change, size, mtime, ctime, atime;
    uint8_t data[CELL] = {1};
    assert(!rf_pages_new(1000, 0, 0, 1) && !rf_pages_new(1 << 17, 0, 0, 1));
    assert(!rf_pages_new(5000, 0, 0, 1));
    rf_pages_free(NULL);
    pages = rf_pages_new(CELL, 0, 0, 9);
    assert(rf_pages_write(pages, 1, 0, data, 1, 1, NULL, 0) == -ENOENT);
    assert(rf_pages_load(pages, 0, 0, 0, 0, 0) == -EINVAL);
    assert(rf_pages_load(pages, 1, (uint64_t)1 << 63, 0, 0, 0) == -EINVAL);
    assert(rf_pages_load(pages, 1, 5000, 0, 0, 0) == 1);
    assert(rf_pages_load(pages, 1, 0, 0, 0, 0) == 0);
    assert(rf_pages_write(pages, 1, INT64_MAX, data, 1, 1, NULL, 0) == -EINVAL);
    assert(rf_pages_write(pages, 1, UINT64_MAX, data, 2, 1, NULL, 0) == -EINVAL);
    assert(rf_pages_write(pages, 1, 1, data, 1, 1, NULL, 0) == -EAGAIN);
    assert(rf_pages_truncate(pages, 1, 100, 1, NULL, &change) == -EAGAIN);
    assert(rf_pages_truncate(pages, 1, (uint64_t)1 << 63, 1, NULL, &change) == -EINVAL);
    assert(rf_pages_missing_tail(pages, 1, 100, &index) == 1 && index == 0);
    assert(rf_pages_read(pages, 1, 0, data, CELL, &index, &cells, 0) == -EINVAL);
    assert(rf_pages_punch(pages, 1, 0, RF_MARKS_AT_ONCE + 1, 1) == -EINVAL);
    assert(rf_pages_punch(pages, 1, UINT64_MAX, 1, 1) == -EINVAL);
    assert(rf_pages_share(pages, 1, 1, &index, 2, 0, 1) == -EINVAL);
    assert(rf_pages_open_files(pages) == 0 && rf_pages_dirty_cells(pages) == 0);
    assert(rf_pages_write(pages, 1, INT64_MAX - 1, data, 1, 1, NULL, 0) == 1);
    assert(rf_pages_seal(pages, 0, &ino, &size, &mtime, &ctime, &atime, &sealed) == -EAGAIN);
    assert(rf_pages_seal(pages, 1, &ino, &size, &mtime, &ctime, &atime, &sealed) == 1);
    assert(sealed == 9 && ino == 1 && size == INT64_MAX && rf_pages_generation(pages) == 10);
    assert(rf_pages_sealed_counts(pages, 9, &cells, &cuts, &marks) == 0);
    assert(cells == 1 && cuts == 0 && marks == 0);
    assert(rf_pages_sealed_counts(pages, 10, &cells, &cuts, &marks) == -EINVAL);
    assert(rf_pages_drop(pages, 0) == -EINVAL && rf_pages_drop(pages, 1) == 0);
    assert(rf_pages_set_times(pages, 1, NULL, NULL, NULL) == -ESTALE);
    assert(rf_pages_retire(pages, 10) == -EINVAL);
    rf_pages_free(pages); /* with a sealed and an open layer still there */
}

int main(void)
{
    test_arguments();
    test_threads();
    puts("pages: ok");
    return 0;
}
