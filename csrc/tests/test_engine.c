/* test_engine.c: batches through threads and through the ring: order, errors, floods, the end. */
#define _GNU_SOURCE
#undef NDEBUG
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../engine_inner.h"

enum { CELLS = 2100, BYTES = 4096, FLOOD = 1500, SUBMITTERS = 4 };

static int fd;
static uint8_t *memory; /* CELLS cells of noise */

static struct rf_engine *engine_new(int ring)
{
    int error = 1;
    struct rf_engine *engine = rf_engine_new(ring, 3, &error);
    assert(engine != NULL && error == 0);
    return engine;
}

static struct rf_io io_of(int op, uint64_t offset, const void *buffer, uint64_t nbytes,
                          uint32_t chain)
{
    return (struct rf_io){.op = op,
                          .fd = fd,
                          .offset = offset,
                          .address = (uint64_t)(uintptr_t)buffer,
                          .nbytes = nbytes,
                          .chain = chain,
                          .result = 1};
}

/* ---- the parts, by themselves ---- */

/* A gather that the kernel takes in odd pieces comes out as the same bytes. */
static void test_transfers_in_pieces(void)
{
    uint64_t addresses[5] = {0, 2, 3, 1, 4}; /* cells; then where they lie */
    for (size_t i = 0; i < 5; i++)
        addresses[i] = (uint64_t)(uintptr_t)(memory + addresses[i] * BYTES);
    struct rf_io io = io_of(RF_WRITE, 0, addresses, BYTES, 0);
    io.cells = 5;
    uint8_t *out = malloc(5 * BYTES);
    uint64_t done = 0, before = 0;
    struct iovec vectors[2];
    do {
        size_t count = rf_io_vectors(&io, done, vectors, 2), moved = 0;
        assert(count >= 1 && count <= 2);
        for (size_t i = 0; i < count && moved < 3000; i++) {
            size_t part = vectors[i].iov_len < 3000 - moved ? vectors[i].iov_len : 3000 - moved;
            memcpy(out + done + moved, vectors[i].iov_base, part);
            moved += part;
        }
        before = done;
        if (rf_io_advance(&io, -EINTR, &done) != 1 || done != before)
            abort();
        if (!rf_io_advance(&io, (int64_t)moved, &done))
            break;
    } while (1);
    assert(io.result == 0 && done == 5 * BYTES);
    for (size_t i = 0; i < 5; i++)
        assert(memcmp(out + i * BYTES, (void *)(uintptr_t)addresses[i], BYTES) == 0);
    free(out);
    done = 100;
    assert(rf_io_advance(&io, 0, &done) == 0 && io.result == -EIO);
    io.op = RF_READ;
    assert(rf_io_advance(&io, 0, &done) == 0 && io.result == -ENODATA);
    assert(rf_io_advance(&io, -EINVAL, &done) == 0 && io.result == -ENODATA);
    done = 512;
    assert(rf_io_advance(&io, -EINVAL, &done) == 0 && io.result == -EINVAL);
}

/* ---- both kinds ---- */

static void test_chains(struct rf_engine *engine)
{
    uint8_t *back = calloc(4, BYTES);
    struct rf_io ios[] = {
        io_of(RF_WRITE, 0, memory, BYTES, 7), io_of(RF_SYNC, 0, NULL, 0, 7),
        io_of(RF_READ, 0, back, BYTES, 7),    io_of(RF_WRITE, BYTES, memory + BYTES, 2 * BYTES, 8),
        io_of(RF_WRITE, 0, NULL, 0, 8),       io_of(RF_READ, BYTES, back + BYTES, 2 * BYTES, 8),
    };
    assert(rf_engine_run(engine, ios, 6) == 0);
    for (int i = 0; i < 6; i++)
        assert(ios[i].result == 0);
    assert(memcmp(back, memory, 3 * BYTES) == 0);
    free(back);
}

static void test_errors(struct rf_engine *engine)
{
    uint8_t *back = calloc(2, BYTES);
    assert(ftruncate(fd, 0) == 0 && ftruncate(fd, BYTES + 100) == 0);
    struct rf_io ios[] = {
        io_of(RF_READ, 0, back, BYTES, 1),     /* fine */
        io_of(RF_READ, BYTES, back, BYTES, 1), /* the file ends in it */
        io_of(RF_WRITE, 0, memory, BYTES, 1),  /* so this is not done */
        io_of(RF_SYNC, 0, NULL, 0, 1),
        io_of(RF_WRITE, 8 * BYTES, memory, 10, 2), /* bad descriptor, below */
        io_of(RF_WRITE, 8 * BYTES, memory, 10, 2),
        io_of(RF_READ, 0, back + BYTES, BYTES, 3), /* another chain: fine, and still zeros */
        io_of(RF_SYNC, 0, NULL, 0, 4),             /* bad descriptor, below */
        io_of(RF_READ, 1 << 30, back, BYTES, 5),   /* beyond the end */
    };
    ios[4].fd = ios[7].fd = -1;
    assert(rf_engine_run(engine, ios, 9) == 0);
    const int expected[] = {0,          -ENODATA, -ECANCELED, -ECANCELED, -EBADF,
                            -ECANCELED, 0,        -EBADF,     -ENODATA};
    for (int i = 0; i < 9; i++)
        assert(ios[i].result == expected[i]);
    for (int i = 0; i < BYTES; i++)
        assert(back[BYTES + i] == 0);
    ios[3].op = 9;
    assert(rf_engine_run(engine, ios, 4) == -EINVAL && rf_engine_run(engine, ios, 0) == -EINVAL);
    free(back);
}

/* The system takes a part, then says why it takes no more. */
static void test_a_short_write(struct rf_engine *engine)
{
    assert(ftruncate(fd, 0) == 0);
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit before, low;
    getrlimit(RLIMIT_FSIZE, &before);
    low = before;
    low.rlim_cur = 3 * BYTES;
    setrlimit(RLIMIT_FSIZE, &low);
    struct rf_io ios[] = {
        io_of(RF_WRITE, 2 * BYTES, memory, 2 * BYTES, 1),
        io_of(RF_WRITE, 0, memory, BYTES, 1),
        io_of(RF_SYNC, 0, NULL, 0, 2),
    };
    assert(rf_engine_run(engine, ios, 3) == 0);
    setrlimit(RLIMIT_FSIZE, &before);
    assert(ios[0].result == -EFBIG && ios[1].result == -ECANCELED && ios[2].result == 0);
    uint8_t found[BYTES];
    assert(pread(fd, found, BYTES, 2 * BYTES) == BYTES && memcmp(found, memory, BYTES) == 0);
}

static void test_gathers(struct rf_engine *engine)
{
    uint64_t *addresses = malloc(CELLS * sizeof *addresses);
    uint8_t *found = malloc((size_t)CELLS * BYTES), *scattered = malloc((size_t)CELLS * BYTES);
    uint64_t *targets = malloc(CELLS * sizeof *targets);
    for (size_t i = 0; i < CELLS; i++) { /* in any order, some neighbours */
        size_t at = i / 7 % 2 ? i : i * 1009 % CELLS;
        addresses[i] = (uint64_t)(uintptr_t)(memory + at * BYTES);
        targets[i] = (uint64_t)(uintptr_t)(scattered + (i * 1009 % CELLS) * BYTES);
    }
    struct rf_io ios[] = {
        io_of(RF_WRITE, 3 * BYTES, addresses, BYTES, 1),
        io_of(RF_SYNC, 0, NULL, 0, 1),
        io_of(RF_READ, 3 * BYTES, found, (uint64_t)CELLS * BYTES, 1),
        io_of(RF_READ, 3 * BYTES, targets, BYTES, 1),
    };
    ios[0].cells = ios[3].cells = CELLS;
    assert(rf_engine_run(engine, ios, 4) == 0);
    for (size_t i = 0; i < CELLS; i++) {
        assert(memcmp(found + i * BYTES, (void *)(uintptr_t)addresses[i], BYTES) == 0);
        assert(memcmp(found + i * BYTES, (void *)(uintptr_t)targets[i], BYTES) == 0);
    }
    for (int i = 0; i < 4; i++)
        assert(ios[i].result == 0);
    free(addresses);
    free(targets);
    free(found);
    free(scattered);
}

/* More chains than the ring has entries, and more ids than are asked for at once. */
static void test_flood_by_id(struct rf_engine *engine)
{
    struct rf_io *ios = malloc(FLOOD * sizeof *ios);
    uint8_t *back = malloc((size_t)FLOOD * 8), *told = calloc(FLOOD, 1);
    assert(ftruncate(fd, 0) == 0);
    for (uint32_t i = 0; i < FLOOD; i++)
        ios[i] = io_of(RF_WRITE, i * 8, memory + i * 8, 8, i);
    assert(rf_engine_run(engine, ios, FLOOD) == 0);
    for (uint32_t i = 0; i < FLOOD; i++)
        ios[i] = io_of(RF_READ, i * 8, back + i * 8, 8, i);
    assert(rf_engine_run(engine, ios, FLOOD) == 0 && memcmp(back, memory, FLOOD * 8) == 0);
    memset(back, 0, FLOOD * 8);
    for (uint32_t i = 0; i < FLOOD; i++)
        assert(rf_engine_start(engine, &ios[i], 1, i) == 0);
    for (uint32_t count = 0; count < FLOOD;) {
        struct pollfd wait = {.fd = rf_engine_eventfd(engine), .events = POLLIN};
        assert(poll(&wait, 1, 60000) == 1);
        eventfd_t value;
        assert(eventfd_read(wait.fd, &value) == 0);
        uint64_t ids[10];
        uint32_t got;
        while ((got = rf_engine_finished(engine, ids, 10)) > 0) {
            for (uint32_t i = 0; i < got; i++)
                assert(ids[i] < FLOOD && told[ids[i]]++ == 0 && ios[ids[i]].result == 0);
            count += got;
        }
    }
    assert(memcmp(back, memory, FLOOD * 8) == 0);
    free(ios);
    free(back);
    free(told);
}

/* ---- many at once ---- */

struct again {
    struct rf_engine *engine;
    struct rf_io ios[2];
    uint8_t bytes[64], more[64];
    int rounds;
    atomic_int *left;
};

/* From the engine's own thread: the next round. */
static void once_more(void *context)
{
    struct again *again = context;
    assert(again->ios[0].result == 0 && again->ios[1].result == 0);
    if (--again->rounds == 0) {
        atomic_fetch_sub(again->left, 1);
        return;
    }
    assert(rf_engine_submit(again->engine, again->ios, 2, once_more, again) == 0);
}

static void *submit_many(void *argument)
{
    struct rf_engine *engine = argument;
    atomic_int left;
    enum { BATCHES = 40 };
    struct again *all = calloc(BATCHES, sizeof *all);
    atomic_init(&left, BATCHES);
    for (int i = 0; i < BATCHES; i++) {
        all[i].engine = engine;
        all[i].rounds = 20;
        all[i].left = &left;
        all[i].ios[0] = io_of(i % 3 ? RF_WRITE : RF_READ, 64 * (uint64_t)i, all[i].bytes, 64, 1);
        all[i].ios[1] = io_of(i % 5 ? RF_READ : RF_SYNC, 64 * (uint64_t)i, all[i].more, 64,
                              (uint32_t)(1 + i % 2)); /* one chain, or two side by side */
        assert(rf_engine_submit(engine, all[i].ios, 2, once_more, &all[i]) == 0);
    }
    while (atomic_load(&left) > 0) {
        uint8_t own[8];
        struct rf_io io = io_of(RF_READ, 0, own, 8, 0);
        assert(rf_engine_run(engine, &io, 1) == 0 && io.result == 0);
    }
    free(all);
    return NULL;
}

static void test_many_submitters(struct rf_engine *engine)
{
    pthread_t threads[SUBMITTERS];
    assert(ftruncate(fd, 0) == 0 && ftruncate(fd, 64 * 64) == 0);
    for (int i = 0; i < SUBMITTERS; i++)
        assert(pthread_create(&threads[i], NULL, submit_many, engine) == 0);
    for (int i = 0; i < SUBMITTERS; i++)
        pthread_join(threads[i], NULL);
}

static void count_down(void *context)
{
    atomic_fetch_sub((atomic_int *)context, 1);
}

/* What was submitted is done and told before the engine is gone. */
static void test_the_end_while_busy(int ring)
{
    struct rf_engine *engine = engine_new(ring);
    atomic_int left;
    atomic_init(&left, 400);
    struct rf_io *ios = malloc(800 * sizeof *ios);
    uint8_t *back = malloc(400 * 100);
    for (uint32_t i = 0; i < 400; i++) {
        ios[2 * i] = io_of(RF_WRITE, i * 100, memory + i * 100, 100, 0);
        ios[2 * i + 1] = io_of(RF_READ, i * 100, back + i * 100, 100, 0);
        assert(rf_engine_submit(engine, ios + 2 * i, 2, count_down, &left) == 0);
    }
    rf_engine_free(engine);
    assert(atomic_load(&left) == 0 && memcmp(back, memory, 400 * 100) == 0);
    free(ios);
    free(back);
}

/* ---- kernels without a ring ---- */

static void test_ring_refused(int with)
{
    pid_t child = fork();
    if (child == 0) {
        struct sock_filter rules[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)with),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        struct sock_fprog program = {.len = 4, .filter = rules};
        assert(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
        assert(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
        int error = 0;
        assert(rf_engine_new(1, 2, &error) == NULL && error == -with);
        struct rf_engine *engine = engine_new(0);
        test_chains(engine);
        rf_engine_free(engine);
        _exit(0);
    }
    int status;
    assert(waitpid(child, &status, 0) == child && status == 0);
}

int main(int argc, char **argv)
{
    FILE *file = tmpfile();
    memory = malloc((size_t)CELLS * BYTES);
    assert(file != NULL && memory != NULL);
    fd = fileno(file);
    for (size_t i = 0; i < (size_t)CELLS * BYTES; i++)
        memory[i] = (uint8_t)(i * 2654435761u >> 20);
    int rings =
        argc < 2 || strcmp(argv[1], "threads") != 0 ? 2 : 0; /* without io_uring: `threads` */
    test_transfers_in_pieces();
    test_ring_refused(ENOSYS);
    test_ring_refused(EPERM);
    for (int ring = 0; ring <= rings; ring++) {
        struct rf_engine *engine = engine_new(ring);
        test_chains(engine);
        test_errors(engine);
        test_a_short_write(engine);
        test_gathers(engine);
        test_flood_by_id(engine);
        test_many_submitters(engine);
        rf_engine_free(engine);
        test_the_end_while_busy(ring);
    }
    int error = 0;
    assert(rf_engine_new(0, 0, &error) == NULL && error == -EINVAL);
    free(memory);
    fclose(file);
    printf("engine ok\n");
    return 0;
}
