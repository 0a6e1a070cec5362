/* test_columns_slow.c: members that answer late or not at all, under sanitizers: reads given up
 * while the engine still has them, members that sit out and come back, and what is left at the end.
 *
 * The engine's threads read by preadv, which is this program's own here: it makes reads of one file
 * wait for as long as the test likes.
 */
#define _GNU_SOURCE
#undef NDEBUG
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../columns.h"
#include "../engine.h"
#include "../erasure.h"

enum { CELL = 4096, ROWS = 64, WIDTH = 4, K = 3, ZONE = 7, SLOW = 1, AT_ONCE = 6, TURNS = 3000 };

static struct rf_columns *columns;
static int files[WIDTH];
static uint32_t crcs[ROWS * WIDTH];

/* ---- the member that is slow ---- */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t answered = PTHREAD_COND_INITIALIZER;
static bool silent; /* the slow file's reads wait */
static ino_t slow_inode;
static atomic_uint waiting; /* of them */

ssize_t preadv(int fd, const struct iovec *vectors, int count, off_t offset)
{
    struct stat status;
    if (fstat(fd, &status) == 0 && status.st_ino == slow_inode) {
        pthread_mutex_lock(&mutex);
        atomic_fetch_add(&waiting, 1);
        while (silent)
            pthread_cond_wait(&answered, &mutex);
        atomic_fetch_sub(&waiting, 1);
        pthread_mutex_unlock(&mutex);
    }
    return syscall(SYS_preadv, fd, vectors, (long)count, (long)offset, 0L);
}

static void be_silent(bool so)
{
    pthread_mutex_lock(&mutex);
    silent = so;
    pthread_cond_broadcast(&answered);
    pthread_mutex_unlock(&mutex);
}

/* ---- what is read ---- */

static uint64_t stamp_of(uint64_t row, uint64_t column)
{
    uint64_t sum = 0;
    if (column < K)
        return (row << 8 | column) * 0x9e3779b97f4a7c15u | 1;
    for (uint64_t c = 0; c < K; c++)
        sum ^= stamp_of(row, c);
    return sum;
}

static void cell_check(const uint8_t *cell, uint64_t stamp)
{
    for (size_t at = 0; at < CELL; at += 8)
        assert(memcmp(cell + at, &stamp, 8) == 0);
}

static void files_make(void)
{
    for (uint32_t c = 0; c < WIDTH; c++) {
        char name[] = "columns-slow-XXXXXX";
        files[c] = mkostemp(name, O_CLOEXEC);
        assert(files[c] >= 0 && unlink(name) == 0);
        for (uint32_t row = 0; row < ROWS; row++) {
            uint64_t cell[CELL / 8];
            for (size_t w = 0; w < CELL / 8; w++)
                cell[w] = stamp_of(row, c);
            assert(pwrite(files[c], cell, CELL, (off_t)row * CELL) == CELL);
            crcs[row * WIDTH + c] = rf_crc32c(0, (uint8_t *)cell, CELL);
        }
    }
    struct stat status;
    assert(fstat(files[SLOW], &status) == 0);
    slow_inode = status.st_ino;
}

static void columns_make(void)
{
    int32_t fds[WIDTH], members[WIDTH];
    uint64_t offsets[WIDTH] = {0};
    struct rf_look looks[WIDTH];
    for (int32_t c = 0; c < WIDTH; c++) {
        fds[c] = fcntl(files[c], F_DUPFD_CLOEXEC, 0);
        members[c] = c;
        rf_look_at(fds[c], &looks[c]);
        assert(looks[c].inode != 0 && !looks[c].is_direct);
    }
    columns = rf_columns_new(CELL, 4, 1 << 20);
    assert(rf_columns_zone_put_seen(columns, ZONE, WIDTH, K, ROWS, fds, offsets, members, looks) ==
           0);
    rf_columns_rows_put(columns, ZONE, 0, ROWS, crcs);
}

static int recipe_put(uint32_t lost)
{
    uint8_t ones[WIDTH];
    for (uint32_t c = 0; c < WIDTH; c++)
        ones[c] = c != lost;
    return rf_columns_recipe_put(columns, ZONE, lost, ones);
}

/* ---- a read; its memory is freed when it is its own again ---- */

struct request {
    uint64_t row, column;
    uint8_t *out;
    atomic_int users; /* the reader, and the engine */
    sem_t done;
    int result;
};

static atomic_uint late;

static void request_drop(struct request *request)
{
    if (atomic_fetch_sub(&request->users, 1) != 1)
        return;
    sem_destroy(&request->done);
    free(request->out);
    free(request);
}

static void request_done(void *context, int result)
{
    struct request *request = context;
    if (result == -ECANCELED) {
        atomic_fetch_add(&late, 1);
    } else {
        request->result = result;
        sem_post(&request->done);
    }
    if (result != -ETIMEDOUT)
        request_drop(request);
}

static struct request *request_begin(struct rf_engine *engine, uint64_t row, uint64_t column)
{
    struct request *request = malloc(sizeof *request);
    *request = (struct request){.row = row, .column = column, .out = malloc(CELL)};
    atomic_init(&request->users, 2);
    sem_init(&request->done, 0, 0);
    uint64_t address = (uint64_t)ZONE << 32 | row << 8 | column;
    int error =
        rf_columns_read_start(columns, engine, &address, 1, request->out, request_done, request);
    if (error) {
        request->result = error;
        sem_post(&request->done);
        request_drop(request);
    }
    return request;
}

static int request_end(struct request *request)
{
    while (sem_wait(&request->done) != 0)
        continue;
    int result = request->result;
    if (result == 0)
        cell_check(request->out, stamp_of(request->row, request->column));
    request_drop(request);
    return result;
}

static void wait_for(atomic_uint *counter, uint32_t count)
{
    while (atomic_load(counter) != count)
        usleep(200);
}

/* ---- one thing after the other ---- */

static void test_silent_member(void)
{
    int error = 0;
    struct rf_engine *engine = rf_engine_new(0, 2, &error);
    struct request *stuck[AT_ONCE], *other;
    struct rf_columns_wait waits[WIDTH];
    columns_make();
    assert(rf_columns_waiting(columns, waits, WIDTH) == 0);
    be_silent(true);
    for (uint32_t i = 0; i < AT_ONCE; i++)
        stuck[i] = request_begin(engine, i, SLOW);
    wait_for(&waiting, 2);
    other = request_begin(engine, 9, 0); /* waits for a thread, as all threads are stuck */
    assert(rf_columns_waiting(columns, waits, WIDTH) == 2);
    assert(waits[0].member == SLOW && waits[0].reads == AT_ONCE && waits[0].oldest_ns > 0);
    assert(rf_columns_waiting(columns, waits, 1) == 1);
    rf_engine_relieve(engine, AT_ONCE);
    assert(request_end(other) == 0);
    wait_for(&waiting, AT_ONCE);
    assert(rf_columns_give_up(columns, SLOW, 1000000000000) == 0);
    assert(rf_columns_give_up(columns, 0, 0) == 0);
    assert(rf_columns_give_up(columns, SLOW, 0) == AT_ONCE);
    assert(rf_columns_waiting(columns, waits, WIDTH) == 0);
    for (uint32_t i = 0; i < AT_ONCE; i++)
        assert(request_end(stuck[i]) == -ETIMEDOUT);
    struct rf_columns_statistics told;
    rf_columns_statistics(columns, &told);
    assert(told.stuck == AT_ONCE && told.given_up == AT_ONCE && atomic_load(&late) == 0);

    assert(recipe_put(SLOW) == -EINVAL);
    assert(recipe_put(0) == -EINVAL);
    rf_columns_sit_out(columns, SLOW, 1);
    assert(request_end(request_begin(engine, 3, SLOW)) == -ENOENT);
    assert(recipe_put(SLOW) == 0);
    for (uint64_t row = 0; row < ROWS; row++)
        assert(request_end(request_begin(engine, row, SLOW)) == 0);
    rf_columns_sit_out(columns, 2, 1); /* which the recipe needs */
    assert(request_end(request_begin(engine, 3, SLOW)) == -ENOENT);
    assert(recipe_put(SLOW) == -EINVAL);
    rf_columns_sit_out(columns, 2, 0);
    assert(request_end(request_begin(engine, 3, 2)) == 0);

    be_silent(false);
    wait_for(&late, AT_ONCE);
    rf_columns_sit_out(columns, SLOW, 0);
    assert(request_end(request_begin(engine, 3, SLOW)) == 0);
    rf_engine_free(engine); /* all is told now */
    uint64_t counts[RF_LATENCIES], reads = 0;
    rf_columns_latencies(columns, SLOW, counts);
    for (uint32_t i = 0; i < RF_LATENCIES; i++)
        reads += counts[i];
    assert(reads == AT_ONCE + 1);
    rf_columns_latencies(columns, 99, counts);
    rf_columns_statistics(columns, &told);
    assert(told.stuck == 0);
    rf_columns_free(columns);
}

/* The columns are given back while a member still has not answered. */
static void test_end_before_answer(void)
{
    int error = 0;
    struct rf_engine *engine = rf_engine_new(0, 2, &error);
    columns_make();
    atomic_store(&late, 0);
    be_silent(true);
    struct request *one = request_begin(engine, 1, SLOW), *two = request_begin(engine, 2, SLOW);
    wait_for(&waiting, 2);
    assert(rf_columns_give_up(columns, SLOW, 0) == 2);
    assert(request_end(one) == -ETIMEDOUT && request_end(two) == -ETIMEDOUT);
    rf_columns_free(columns);
    be_silent(false);
    rf_engine_free(engine);
    assert(atomic_load(&late) == 2);
}

static void test_latency_counts(void)
{
    uint32_t before = 0;
    for (uint64_t us = 0; us <= UINT32_MAX; us += us / 64 + 1) {
        uint32_t count = rf_latency((uint32_t)us);
        assert(count >= before && count < RF_LATENCIES);
        before = count;
    }
    assert(rf_latency(UINT32_MAX) == RF_LATENCIES - 1 && rf_latency(1) == 0 && rf_latency(4) == 8);
}

/* ---- all at once ---- */

static atomic_bool stop;
static atomic_uint good, given_up;

static void *reader(void *argument)
{
    unsigned state = (unsigned)(uintptr_t)&state;
    while (!atomic_load(&stop)) {
        struct request *requests[AT_ONCE];
        for (uint32_t i = 0; i < AT_ONCE; i++)
            requests[i] = request_begin(argument, (uint64_t)rand_r(&state) % ROWS,
                                        (uint64_t)rand_r(&state) % K);
        for (uint32_t i = 0; i < AT_ONCE; i++) {
            int result = request_end(requests[i]);
            assert(result == 0 || result == -ETIMEDOUT || result == -ENOENT);
            atomic_fetch_add(result == 0 ? &good : &given_up, 1);
        }
    }
    return NULL;
}

static void test_all_at_once(int ring, uint32_t turns)
{
    int error = 0;
    struct rf_engine *engine = rf_engine_new(ring, 4, &error);
    if (!engine)
        engine = rf_engine_new(0, 4, &error);
    columns_make();
    atomic_store(&stop, false);
    pthread_t threads[2];
    for (int t = 0; t < 2; t++)
        assert(pthread_create(&threads[t], NULL, reader, engine) == 0);
    for (uint32_t turn = 0; turn < turns; turn++) {
        struct rf_columns_wait waits[2];
        be_silent(turn % 3 == 1);
        usleep(turn % 3 == 1 ? 200 : 50);
        rf_columns_waiting(columns, waits, 2);
        rf_columns_give_up(columns, SLOW, turn % 2 ? 0 : 100000);
        if (turn % 16 == 0)
            rf_engine_relieve(engine, turn % 8);
        if (turn % 5 == 0) {
            rf_columns_sit_out(columns, SLOW, turn % 2);
            recipe_put(SLOW);
        }
        if (turn % 50 == 0)
            rf_columns_sit_out(columns, 0, turn % 100 == 0);
    }
    be_silent(false);
    rf_columns_give_up(columns, SLOW, 0);
    atomic_store(&stop, true);
    for (int t = 0; t < 2; t++)
        pthread_join(threads[t], NULL);
    rf_columns_free(columns);
    rf_engine_free(engine);
}

int main(int argc, char **argv)
{
    uint32_t turns = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : TURNS;
    files_make();
    test_latency_counts();
    test_silent_member();
    test_end_before_answer();
    test_all_at_once(0, turns);
    test_all_at_once(1, turns);
    assert(atomic_load(&good) > turns && atomic_load(&given_up) > 0);
    printf("columns_slow: %u reads, %u given up or unknown\n", atomic_load(&good),
           atomic_load(&given_up));
    return 0;
}
