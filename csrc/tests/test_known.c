/* test_known.c: known under sanitizers: one who changes names and attributes, many who ask.
 *
 * The exact comparison with a model is tests/test_1_known.py; here the sanitizers look for races
 * and for entries used after they were evicted, and the threads check what can be said for certain
 * while others are at work:
 *   - what a name leads to is never answered wrong while nobody is changing it;
 *   - attributes are whole, and as new as the last change that was over before the question;
 *   - no reference is lost or counted twice, and each watched inode is reported exactly once.
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

#include "../known.h"

enum { ASKERS = 3, DIRECTORIES = 5, NAMES = 20, ROUNDS = 40000, INOS = ROUNDS + 100 };

static struct rf_known *known;
static atomic_bool stop;

/* The truth of each name: `turn` is odd while it changes. */
static struct {
    _Atomic uint64_t turn, ino;
} truth[DIRECTORIES][NAMES];
static _Atomic uint64_t versions[INOS]; /* of the attributes */
static _Atomic uint64_t referred[INOS]; /* what the askers hold */
static uint8_t must_report[INOS], reported[INOS];

static uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static uint32_t name_of(uint64_t number, uint8_t *name)
{
    return (uint32_t)sprintf((char *)name, "name that is %llu%s", (unsigned long long)number,
                             number % 2 ? " and long enough to be hashed in several words" : "");
}

static struct rf_inode attributes_of(uint64_t ino, uint64_t version)
{
    return (struct rf_inode){.ino = ino,
                             .generation = ino ^ version,
                             .size = version,
                             .cells = version * 3,
                             .mtime_ns = -(int64_t)version,
                             .mode = (uint32_t)version,
                             .no_xattrs = version % 2};
}

static void check_attributes(const struct rf_inode *got, uint64_t ino, uint64_t version)
{
    struct rf_inode whole = attributes_of(ino, got->size);
    assert(memcmp(got, &whole, sizeof(whole)) == 0);
    assert(got->size >= version);
}

/* ---- those who ask ---- */

struct asker {
    uint64_t state;
    uint32_t *held; /* references by ino */
    uint64_t asked, found;
};

static void ask_name(struct asker *asker)
{
    uint64_t directory = random_next(&asker->state) % DIRECTORIES;
    uint64_t number = random_next(&asker->state) % NAMES;
    uint8_t name[80];
    uint32_t nbytes = name_of(number, name);
    struct rf_inode got;
    uint64_t turn = atomic_load(&truth[directory][number].turn);
    uint64_t ino = atomic_load(&truth[directory][number].ino);
    uint64_t version = ino ? atomic_load(&versions[ino]) : 0;
    int result = rf_known_lookup(known, directory + 1, name, nbytes, &got);
    bool steady = turn % 2 == 0 && atomic_load(&truth[directory][number].turn) == turn;
    asker->asked++;
    assert(result == 1 || result == 0 || result == -ENOENT);
    if (result == 1) {
        asker->found++;
        asker->held[got.ino]++;
        atomic_fetch_add(&referred[got.ino], 1);
        assert(!steady || got.ino == ino);
        check_attributes(&got, got.ino, got.ino == ino ? version : 0);
    }
    assert(result != 0 || !steady || ino == 0);
}

static void ask_attributes(struct asker *asker)
{
    uint64_t ino = random_next(&asker->state) % INOS;
    uint64_t version = atomic_load(&versions[ino]);
    struct rf_inode got;
    if (rf_known_getattr(known, ino, &got) == 1)
        check_attributes(&got, ino, version);
}

static void give_back(struct asker *asker, uint64_t ino, uint32_t count)
{
    assert(rf_known_references(known, ino) >= asker->held[ino]);
    asker->held[ino] -= count;
    atomic_fetch_sub(&referred[ino], count);
    (void)rf_known_release(known, ino, count);
}

static void *ask(void *argument)
{
    struct asker *asker = argument;
    asker->held = calloc(INOS, sizeof(*asker->held));
    assert(asker->held);
    while (!atomic_load(&stop)) {
        ask_name(asker);
        ask_attributes(asker);
        uint64_t ino = random_next(&asker->state) % INOS;
        if (asker->held[ino])
            give_back(asker, ino, 1 + (uint32_t)(random_next(&asker->state) % asker->held[ino]));
    }
    for (uint64_t ino = 0; ino < INOS; ino++)
        if (asker->held[ino])
            give_back(asker, ino, asker->held[ino]);
    free(asker->held);
    return NULL;
}

/* ---- the one who changes ---- */

static void drain(void)
{
    uint64_t inos[7];
    uint32_t count;
    while ((count = rf_known_unreferenced(known, inos, 7)))
        for (uint32_t i = 0; i < count; i++) {
            assert(must_report[inos[i]] && !reported[inos[i]]);
            reported[inos[i]] = 1;
        }
}

static void lose(uint64_t ino)
{
    rf_known_inode_forget(known, ino);
    int64_t references = rf_known_watch(known, ino);
    assert(references >= 0);
    must_report[ino] = references > 0;
}

/* A name comes, goes or is made to lead elsewhere. */
static void change_name(uint64_t directory, uint64_t number, uint64_t *next_ino, uint64_t choice)
{
    uint8_t name[80];
    uint32_t nbytes = name_of(number, name);
    uint64_t old = atomic_load(&truth[directory][number].ino), ino = choice % 3 ? ++*next_ino : 0;
    atomic_fetch_add(&truth[directory][number].turn, 1);
    rf_known_name_forget(known, directory + 1, name, nbytes);
    atomic_store(&truth[directory][number].ino, ino);
    if (ino) {
        struct rf_inode inode = attributes_of(ino, 0);
        assert(rf_known_tell(known, &inode, directory + 1, name, nbytes, 0) == 0);
    } else if (choice % 2) {
        rf_known_name_removed(known, directory + 1, name, nbytes);
    } else {
        assert(rf_known_name_put(known, directory + 1, name, nbytes, 0) == 0);
    }
    atomic_fetch_add(&truth[directory][number].turn, 1);
    if (old)
        lose(old);
}

static void change_attributes(uint64_t directory, uint64_t number)
{
    uint64_t ino = atomic_load(&truth[directory][number].ino);
    if (!ino)
        return;
    rf_known_inode_forget(known, ino);
    uint64_t version = atomic_load(&versions[ino]) + 1;
    struct rf_inode inode = attributes_of(ino, version);
    atomic_store(&versions[ino], version);
    assert(rf_known_inode_put(known, &inode) == 0);
}

/* Makes all names of a directory known. */
static void list_directory(uint64_t directory)
{
    uint64_t names = 0;
    uint8_t name[80];
    for (uint64_t number = 0; number < NAMES; number++) {
        uint64_t ino = atomic_load(&truth[directory][number].ino);
        names += ino != 0;
        if (ino)
            assert(rf_known_name_put(known, directory + 1, name, name_of(number, name), ino) == 0);
    }
    assert(rf_known_directory_put(known, directory + 1, names) >= 0);
}

static uint64_t change(uint64_t rounds)
{
    uint64_t state = 12345, next_ino = 10, complete = 0;
    for (uint64_t round = 0; round < rounds; round++) {
        uint64_t directory = random_next(&state) % DIRECTORIES,
                 number = random_next(&state) % NAMES;
        struct rf_known_statistics statistics;
        switch (random_next(&state) % 16) {
        default:
            change_attributes(directory, number);
            break;
        case 0 ... 4:
            change_name(directory, number, &next_ino, random_next(&state) % 6);
            break;
        case 5:
            list_directory(directory);
            break;
        case 6:
            if (round % 8 == 0)
                rf_known_directory_forget(known, directory + 1);
            break;
        case 7:
            drain();
            rf_known_statistics(known, &statistics);
            assert(statistics.nbytes <= statistics.nbytes_max);
            complete += statistics.complete;
            break;
        }
    }
    return complete;
}

static void run(uint64_t nbytes_max)
{
    pthread_t threads[ASKERS];
    struct asker askers[ASKERS];
    struct rf_known_statistics statistics;
    known = rf_known_new(nbytes_max);
    assert(known);
    atomic_store(&stop, false);
    memset(truth, 0, sizeof(truth));
    memset(versions, 0, sizeof(versions));
    memset(must_report, 0, sizeof(must_report));
    memset(reported, 0, sizeof(reported));
    for (uint64_t i = 0; i < ASKERS; i++) {
        askers[i] = (struct asker){.state = 99 + i};
        assert(pthread_create(&threads[i], NULL, ask, &askers[i]) == 0);
    }
    uint64_t complete = change(ROUNDS);
    atomic_store(&stop, true);
    uint64_t found = 0, asked = 0;
    for (int i = 0; i < ASKERS; i++) {
        pthread_join(threads[i], NULL);
        found += askers[i].found;
        asked += askers[i].asked;
    }
    drain();
    assert(memcmp(must_report, reported, sizeof(reported)) == 0);
    assert(!rf_known_any_unreferenced(known));
    rf_known_statistics(known, &statistics);
    assert(statistics.referenced == 0 && statistics.watched == 0 && statistics.unreferenced == 0);
    for (uint64_t ino = 0; ino < INOS; ino++)
        assert(rf_known_references(known, ino) == 0 && atomic_load(&referred[ino]) == 0);
    for (uint64_t directory = 1; directory <= DIRECTORIES; directory++)
        rf_known_directory_forget(known, directory);
    rf_known_statistics(known, &statistics);
    assert(statistics.names == 0 && statistics.directories == 0 && statistics.complete == 0);
    printf("known: %llu bytes: %llu of %llu lookups found, %llu directories seen complete, "
           "%llu evicted\n",
           (unsigned long long)nbytes_max, (unsigned long long)found, (unsigned long long)asked,
           (unsigned long long)complete, (unsigned long long)statistics.evicted);
    rf_known_free(known);
}

/* ---- the edges ---- */

static void test_what_is_no_name(void)
{
    struct rf_inode got, inode = attributes_of(2, 1);
    uint8_t longest[256];
    memset(longest, 'n', sizeof(longest));
    known = rf_known_new(1 << 20);
    assert(rf_known_directory_put(known, 1, 0) == 1);
    assert(rf_known_lookup(known, 1, (const uint8_t *)"x", 1, &got) == 0);
    assert(rf_known_lookup(known, 1, longest, 255, &got) == 0);
    assert(rf_known_lookup(known, 1, longest, 256, &got) == -ENOENT);
    const char *odd[] = {".", "..", "a/b", ""};
    for (int i = 0; i < 4; i++) {
        const uint8_t *name = (const uint8_t *)odd[i];
        uint32_t nbytes = (uint32_t)strlen(odd[i]);
        assert(rf_known_lookup(known, 1, name, nbytes, &got) == -ENOENT);
        assert(rf_known_name_put(known, 1, name, nbytes, 2) == -EINVAL);
        assert(rf_known_tell(known, &inode, 1, name, nbytes, 1) == 0);
        rf_known_name_forget(known, 1, name, nbytes);
        rf_known_name_removed(known, 1, name, nbytes);
    }
    assert(rf_known_lookup(known, 1, (const uint8_t *)"a\0b", 3, &got) == -ENOENT);
    assert(rf_known_tell(known, &inode, 0, NULL, 0, 0) == 0);
    assert(rf_known_references(known, 2) == 4 && rf_known_getattr(known, 2, &got) == 1);
    assert(got.no_xattrs == 1);
    assert(rf_known_inode_forget(known, 2) == 1 && rf_known_inode_forget(known, 2) == 0);
    assert(rf_known_getattr(known, 2, &got) == -ENOENT);
    inode.ino = 0;
    assert(rf_known_inode_put(known, &inode) == -EINVAL);
    assert(rf_known_tell(known, &inode, 1, NULL, 0, 1) == -EINVAL);
    assert(rf_known_directory_put(known, 0, 0) == -EINVAL);
    assert(rf_known_release(known, 2, UINT64_MAX) == 0);
    rf_known_free(known);
    rf_known_free(NULL);
}

static void test_nothing_fits(void)
{
    struct rf_inode got, inode = attributes_of(2, 1);
    known = rf_known_new(0);
    assert(rf_known_tell(known, &inode, 1, (const uint8_t *)"x", 1, 1) == 0);
    assert(rf_known_getattr(known, 2, &got) == -ENOENT);
    assert(rf_known_lookup(known, 1, (const uint8_t *)"x", 1, &got) == -ENOENT);
    assert(rf_known_directory_put(known, 1, 0) == 0);
    assert(rf_known_lookup(known, 1, (const uint8_t *)"x", 1, &got) == -ENOENT);
    assert(rf_known_references(known, 2) == 1);
    rf_known_free(known);
}

static void test_counts_of_any_width(void)
{
    known = rf_known_new(0);
    for (uint64_t ino = 1; ino < 40; ino++)
        assert(rf_known_refer(known, ino, ino) == 0);
    assert(rf_known_refer(known, 5, UINT32_MAX) == 0);
    assert(rf_known_references(known, 5) == (uint64_t)UINT32_MAX + 5);
    assert(rf_known_refer(known, 70, UINT64_MAX) == 0 && rf_known_refer(known, 70, 9) == 0);
    assert(rf_known_references(known, 70) == UINT64_MAX);
    assert(rf_known_watch(known, 70) == INT64_MAX && rf_known_watch(known, 70) == INT64_MAX);
    assert(rf_known_watch(known, 71) == 0);
    for (uint64_t ino = 1; ino < 40; ino++)
        assert(rf_known_references(known, ino) == ino + (ino == 5 ? UINT32_MAX : 0));
    assert(rf_known_release(known, 5, UINT32_MAX) == 5 && rf_known_release(known, 5, 5) == 0);
    assert(rf_known_release(known, 5, 1) == 0);
    assert(!rf_known_any_unreferenced(known));
    assert(rf_known_release(known, 70, UINT64_MAX) == 0 && rf_known_any_unreferenced(known));
    uint64_t inos[2];
    assert(rf_known_unreferenced(known, inos, 0) == 0);
    assert(rf_known_unreferenced(known, inos, 2) == 1 && inos[0] == 70);
    assert(rf_known_unreferenced(known, inos, 2) == 0);
    rf_known_free(known);
}

static void test_many_at_once(void)
{
    enum { INODES = 300 };
    const uint64_t view = (uint64_t)1 << 40;
    uint64_t inos[2 * INODES], at = 0;
    struct rf_inode inode = {0}, got;
    known = rf_known_new(4 << 20);
    for (uint64_t base = 0; base <= view; base += view)
        for (uint64_t i = 1; i <= INODES; i++) {
            inode.ino = base + i;
            assert(rf_known_tell(known, &inode, base + 1, (const uint8_t *)&i, 1 + (i > 255), 1) ==
                   0);
        }
    do
        at = rf_known_forget_between(known, view, 2 * view - 1, at);
    while (at);
    for (uint64_t i = 1; i <= INODES; i++) {
        assert(rf_known_getattr(known, i, &got) == 1 && got.ino == i);
        assert(rf_known_getattr(known, view + i, &got) == -ENOENT);
        assert(rf_known_lookup(known, view + 1, (const uint8_t *)"x", 1, &got) == -ENOENT);
    }
    assert(rf_known_referenced(known, inos, 0) == 2 * INODES);
    assert(rf_known_referenced(known, inos, INODES / 7) == 2 * INODES);
    assert(rf_known_referenced(known, inos, 2 * INODES) == 2 * INODES);
    uint64_t sum = 0;
    for (int i = 0; i < 2 * INODES; i++)
        sum += inos[i];
    assert(sum == (uint64_t)INODES * (INODES + 1) + INODES * view);
    struct rf_known_statistics statistics;
    for (at = rf_known_forget_between(known, 0, UINT64_MAX, 0); at;)
        at = rf_known_forget_between(known, 0, UINT64_MAX, at);
    rf_known_statistics(known, &statistics);
    assert(statistics.nbytes == 0 && statistics.complete == 0);
    rf_known_free(known);
}

int main(void)
{
    test_what_is_no_name();
    test_nothing_fits();
    test_counts_of_any_width();
    test_many_at_once();
    run(4 << 20);
    run(6000); /* a part of the names at a time */
    run(500);  /* two or three entries */
    return 0;
}
