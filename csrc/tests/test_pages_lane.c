/* test_pages_lane.c: the lane's calls under sanitizers: threads that write, put and read beside
 * seals, flushes, marks, and somebody who grants, takes back, vouches and stops vouching.
 *
 * The exact comparison with a model is tests/test_1_pages_model.py. Here each thread owns its files
 * and checks that it reads what it wrote last. A cell on the members is written once, so its
 * address can stand for its content: it is the stamp that fills it.
 */
#undef NDEBUG
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../pages.h"

enum { CELL = 4096, WORDS = CELL / 8, THREADS = 3, FILES = 4, PAGES = 24, ROUNDS = 12000 };
enum { INOS = THREADS * FILES + 1, ROOM = 64 };

static struct rf_pages *pages;
static uint64_t members[INOS][PAGES]; /* what the leaves say: stamps, 0 for a hole */
static pthread_mutex_t members_mutex = PTHREAD_MUTEX_INITIALIZER;
static atomic_bool stop;
static atomic_ulong served, carried;

static uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void stamp_fill(uint8_t *bytes, uint64_t nbytes, uint64_t stamp)
{
    for (uint64_t i = 0; i < nbytes / 8; i++)
        ((uint64_t *)bytes)[i] = stamp;
}

static uint64_t stamp_of(const uint8_t *bytes)
{
    const uint64_t *words = (const uint64_t *)bytes;
    for (uint64_t i = 1; i < WORDS; i++)
        assert(words[i] == words[0]);
    return words[0];
}

/* One of the threads and what it remembers of its files. */
struct owner {
    uint64_t first_ino, state, round;
    uint64_t stamps[FILES][PAGES], sizes[FILES]; /* in pages */
    uint8_t *data;                               /* PAGES cells */
    uint8_t *base;                               /* two */
};

/* The address that memory has of a page in no cell: what it shares, or what its leaf says. */
static uint64_t address_below(uint64_t ino, uint64_t index)
{
    uint8_t kind;
    uint64_t address;
    assert(rf_pages_map(pages, ino, index, 1, &kind, &address) == 0);
    if (kind == RF_PAGE_SHARED)
        return address;
    pthread_mutex_lock(&members_mutex);
    address = kind == RF_PAGE_LEAF ? members[ino][index] : 0;
    pthread_mutex_unlock(&members_mutex);
    return address;
}

/* As Python does what the lane can't. */
static void write_carried(struct owner *owner, uint64_t ino, uint64_t offset, uint64_t nbytes)
{
    int64_t result;
    atomic_fetch_add(&carried, 1);
    do {
        uint64_t indexes[2];
        struct rf_base bases[2];
        int count = rf_pages_missing(pages, ino, offset, nbytes, indexes);
        assert(count >= 0);
        for (int i = 0; i < count; i++) {
            stamp_fill(owner->base + i * CELL, CELL, address_below(ino, indexes[i]));
            bases[i] = (struct rf_base){indexes[i], owner->base + i * CELL, 0};
        }
        result = rf_pages_write(pages, ino, offset, owner->data, nbytes, 1, bases, (uint32_t)count);
    } while (result == -EAGAIN);
    assert(result >= 0);
}

static int64_t lane_write(struct owner *owner, uint64_t ino, uint64_t offset, uint64_t nbytes)
{
    uint64_t indexes[2], addresses[2];
    uint8_t known[2];
    struct rf_base bases[2];
    int count = rf_pages_lane_missing(pages, ino, offset, nbytes, indexes, addresses, known);
    for (int i = 0; i < count; i++) {
        if (!known[i])
            return -EAGAIN;
        stamp_fill(owner->base + i * CELL, CELL, addresses[i]);
        bases[i] = (struct rf_base){indexes[i], owner->base + i * CELL, addresses[i]};
    }
    return rf_pages_lane_write(pages, ino, offset, owner->data, nbytes, 1, bases,
                               count > 0 ? (uint32_t)count : 0);
}

static int64_t lane_put(struct owner *owner, uint64_t ino, uint64_t offset, uint64_t nbytes)
{
    uint32_t count = (uint32_t)(nbytes / CELL);
    uint8_t *cells[PAGES];
    assert(rf_pages_cells_take(pages, count, cells) == 0);
    for (uint32_t i = 0; i < count; i++)
        memcpy(cells[i], owner->data + i * CELL, CELL);
    int64_t result = rf_pages_lane_put(pages, ino, offset, nbytes, cells, 1, NULL, 0);
    for (uint32_t i = 0; i < count; i++)
        assert((cells[i] == NULL) == (result >= 0));
    rf_pages_cells_give(pages, count, cells);
    return result;
}

static void change(struct owner *owner, uint64_t file, bool put)
{
    uint64_t ino = owner->first_ino + file, first = random_next(&owner->state) % PAGES;
    uint64_t count = random_next(&owner->state) % 5 + 1, stamp = ino << 32 | owner->round;
    if (first + count > PAGES)
        count = PAGES - first;
    uint64_t offset = first * CELL, nbytes = count * CELL;
    if (random_next(&owner->state) % 3 == 0 && first < owner->sizes[file]) {
        /* A part of a page, with what is there already: the rest must become that, too. */
        stamp = owner->stamps[file][first];
        count = 1;
        offset += 1000;
        nbytes = 2000;
        put = false;
    }
    stamp_fill(owner->data, nbytes, stamp);
    int64_t result;
    do {
        result =
            put ? lane_put(owner, ino, offset, nbytes) : lane_write(owner, ino, offset, nbytes);
        if (result == -EDQUOT)
            sched_yield();
    } while (result == -EDQUOT);
    assert(result >= 0 || result == -EAGAIN || result == -EPERM || result == -EUSERS);
    if (result < 0)
        write_carried(owner, ino, offset, nbytes);
    else
        atomic_fetch_add(&served, 1);
    for (uint64_t i = first; i < first + count; i++)
        owner->stamps[file][i] = stamp;
    if (owner->sizes[file] < first + count)
        owner->sizes[file] = first + count;
}

static void check(struct owner *owner, uint64_t file)
{
    uint64_t ino = owner->first_ino + file, size = owner->sizes[file];
    uint64_t addresses[PAGES], elsewhere[PAGES], cells;
    struct rf_attributes attributes;
    assert(rf_pages_lane_attributes(pages, ino, &attributes, &cells) == 0);
    assert(attributes.size == size * CELL);
    int64_t now_ns = (int64_t)owner->round << 40;
    int64_t result =
        rf_pages_lane_read(pages, ino, 0, PAGES * CELL, now_ns, owner->data, addresses, PAGES);
    if (result >= 0) {
        assert((uint64_t)result == size * CELL);
        for (uint64_t i = 0; i < size; i++)
            if (addresses[i])
                stamp_fill(owner->data + i * CELL, CELL, addresses[i]);
        atomic_fetch_add(&served, 1);
    } else {
        assert(result == -EAGAIN || result == -EPERM || result == -EUSERS);
        int64_t count =
            rf_pages_read(pages, ino, 0, owner->data, size * CELL, elsewhere, addresses, PAGES);
        for (int64_t i = 0; i < count; i++)
            stamp_fill(owner->data + elsewhere[i] * CELL, CELL, address_below(ino, elsewhere[i]));
        atomic_fetch_add(&carried, 1);
    }
    for (uint64_t i = 0; i < size; i++)
        assert(stamp_of(owner->data + i * CELL) == owner->stamps[file][i]);
}

/* A page becomes a hole, or what another page of the thread's files was. */
static void mark(struct owner *owner, uint64_t file)
{
    uint64_t ino = owner->first_ino + file, first = random_next(&owner->state) % PAGES;
    uint64_t other = random_next(&owner->state) % FILES;
    uint64_t address = owner->stamps[other][random_next(&owner->state) % PAGES];
    if (first >= owner->sizes[file])
        return;
    if (random_next(&owner->state) % 2) {
        address = 0;
        assert(rf_pages_punch(pages, ino, first, 1, 1) >= 0);
    } else {
        assert(rf_pages_share(pages, ino, first, &address, 1, 0, 1) >= 0);
    }
    owner->stamps[file][first] = address;
}

static void truncate_pages(struct owner *owner, uint64_t file)
{
    uint64_t size = random_next(&owner->state) % PAGES;
    int64_t change;
    assert(rf_pages_truncate(pages, owner->first_ino + file, size * CELL, 1, NULL, &change) == 0);
    for (uint64_t i = size; i < PAGES; i++)
        owner->stamps[file][i] = 0;
    owner->sizes[file] = size;
}

static void *own_files(void *argument)
{
    struct owner *owner = argument;
    owner->data = malloc(PAGES * CELL);
    owner->base = malloc(2 * CELL);
    assert(owner->data && owner->base);
    for (owner->round = 1; owner->round <= ROUNDS; owner->round++) {
        uint64_t file = random_next(&owner->state) % FILES;
        switch (random_next(&owner->state) % 10) {
        default:
            change(owner, file, true);
            break;
        case 0:
        case 1:
        case 2:
            change(owner, file, false);
            break;
        case 3:
        case 4:
            check(owner, file);
            break;
        case 5:
            mark(owner, file);
            break;
        case 6:
            truncate_pages(owner, file);
            break;
        }
    }
    for (uint64_t file = 0; file < FILES; file++)
        check(owner, file);
    free(owner->data);
    free(owner->base);
    return NULL;
}

/* Cuts, then cells and marks become what the leaves say; then the generation is retired. */
static void flush(uint64_t generation)
{
    uint64_t cells, cuts, marks;
    assert(rf_pages_sealed_counts(pages, generation, &cells, &cuts, &marks) == 0);
    uint64_t most = cells + cuts + marks + 1;
    uint64_t *inos = calloc(most, 8), *indexes = calloc(most, 8), *addresses = calloc(most, 8);
    assert(inos && indexes && addresses);
    assert(rf_pages_sealed_cuts(pages, generation, inos, indexes) == 0);
    pthread_mutex_lock(&members_mutex);
    for (uint64_t i = 0; i < cuts; i++)
        for (uint64_t index = indexes[i]; index < PAGES; index++)
            members[inos[i]][index] = 0;
    assert(rf_pages_sealed_cells(pages, generation, inos, indexes, addresses) == 0);
    for (uint64_t i = 0; i < cells; i++)
        members[inos[i]][indexes[i]] = stamp_of((const uint8_t *)(uintptr_t)addresses[i]);
    assert(rf_pages_sealed_marks(pages, generation, inos, indexes, addresses) == 0);
    for (uint64_t i = 0; i < marks; i++)
        members[inos[i]][indexes[i]] = addresses[i];
    for (uint64_t ino = 1; ino < INOS; ino++) { /* what is cached must be what is true */
        uint64_t leaf[256] = {0};
        memcpy(leaf, members[ino], sizeof(members[ino]));
        assert(rf_pages_leaf_put(pages, ino, 0, leaf) == 0);
    }
    pthread_mutex_unlock(&members_mutex);
    assert(rf_pages_retire(pages, generation) == 0);
    free(inos);
    free(indexes);
    free(addresses);
}

/* The event loop: seals, flushes, and rules what the lane may do. */
static void *rule(void *argument)
{
    (void)argument;
    uint64_t inos[ROOM], sealed = 0, oldest = 1, state = 99, dirty, credits;
    int64_t sizes[ROOM], mtimes[ROOM], ctimes[ROOM], atimes[ROOM];
    while (!atomic_load(&stop)) {
        assert(rf_pages_seal(pages, ROOM, inos, sizes, mtimes, ctimes, atimes, &sealed) >= 0);
        while (sealed - oldest >= 3)
            flush(oldest++);
        uint64_t ino = random_next(&state) % (INOS - 1) + 1;
        assert(rf_pages_vouch(pages, ino, random_next(&state) % 4 ? 3 : 0) == 0);
        rf_pages_serve(pages, random_next(&state) % 8 ? 3 : 1);
        rf_pages_allow_files(pages, random_next(&state) % 16);
        if (random_next(&state) % 8 == 0)
            (void)rf_pages_take_back(pages, random_next(&state) % 64);
        rf_pages_claims(pages, &dirty, &credits);
        if (credits < 500)
            rf_pages_grant(pages, 100);
        rf_pages_leaf_forget(pages, ino, 0);
    }
    while (oldest <= sealed)
        flush(oldest++);
    return NULL;
}

int main(void)
{
    static struct owner owners[THREADS];
    pthread_t threads[THREADS], ruler;
    struct rf_pages_statistics statistics;
    pages = rf_pages_new(CELL, 8192, 0, 1);
    assert(pages);
    for (uint64_t ino = 1; ino < INOS; ino++)
        assert(rf_pages_load(pages, ino, 0, 0, 0, 0) == 1);
    assert(pthread_create(&ruler, NULL, rule, NULL) == 0);
    for (int i = 0; i < THREADS; i++) {
        owners[i].first_ino = 1 + (uint64_t)i * FILES;
        owners[i].state = 88172645463325252ULL + (uint64_t)i;
        assert(pthread_create(&threads[i], NULL, own_files, &owners[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++)
        assert(pthread_join(threads[i], NULL) == 0);
    atomic_store(&stop, true);
    assert(pthread_join(ruler, NULL) == 0);
    rf_pages_statistics(pages, &statistics);
    assert(statistics.generations_sealed == 0 && statistics.resident == INOS - 1);
    printf("pages, lane: ok, %lu served, %lu carried\n", atomic_load(&served),
           atomic_load(&carried));
    rf_pages_free(pages);
    return 0;
}
