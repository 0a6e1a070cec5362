/* engine_ring.c: jobs done through io_uring, by the bare system calls.
 *
 *  1. One thread owns the ring: it alone submits and reaps. The kernel ties requests to the thread
 *     that submitted them (they die with it, and their completions interrupt it), so none is ever
 *     submitted by a thread of somebody else.
 *  2. At most one request of a job is in flight: the next io of a chain begins when the one before
 *     it ended well, and a short transfer goes on where it stopped. So nothing depends on what the
 *     kernel means by linked requests.
 *  3. No more requests are in flight than the ring has entries; further jobs wait their turn.
 */
#define _GNU_SOURCE
#undef NDEBUG
#include "engine_inner.h"

#include <assert.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    ENTRIES = 256,
    SLOTS = ENTRIES - 1, /* one entry is that of the wake-up */
    WAKE = SLOTS,        /* as user data; otherwise the number of a slot */
    PART_BYTES_MAX = 1 << 30,
    REGISTER_IOWQ_MAX_WORKERS = 19, /* newer than the oldest headers that this compiles with */
};

/* Newer than the oldest headers that this compiles with. */
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif

/* The request of one job. */
struct slot {
    struct rf_job *job;
    uint32_t at;          /* the io that is in flight */
    int64_t begun_ns;     /* when its first request went out, if it reads */
    uint64_t done;        /* bytes of it that are moved */
    struct iovec *pieces; /* room for RF_VECTORS_MAX, once a gather needed them */
    uint32_t next;        /* free slots form a list */
};

struct mapped {
    void *start;
    size_t nbytes;
};

struct rf_ring {
    int fd;
    int wake_fd;
    uint64_t woken; /* what the wake-up reads */
    struct mapped rings, entries_map;
    uint32_t *sq_head, *sq_tail, *sq_mask, *sq_array;
    uint32_t *cq_head, *cq_tail, *cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
    uint32_t filled; /* our tail of the submission queue */

    struct slot slots[SLOTS];
    uint32_t free_slot; /* SLOTS: none */
    uint32_t in_flight;
    struct rf_jobs queue; /* taken from the inbox, without a slot yet */

    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t ready;
    struct rf_jobs inbox;
    int stopping;
    int started; /* 1: serving; negative: why not */
};

/* ---- the kernel's side ---- */

static int ring_enter(int fd, uint32_t submit, uint32_t complete)
{
    return (int)syscall(__NR_io_uring_enter, fd, submit, complete, IORING_ENTER_GETEVENTS, NULL, 0);
}

static int ring_setup(struct io_uring_params *params)
{
    /* Completions are then handled when we ask for them, not by interrupting: Linux 6.1. */
    memset(params, 0, sizeof *params);
    params->flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
    int fd = (int)syscall(__NR_io_uring_setup, ENTRIES, params);
    if (fd < 0 && errno == EINVAL) {
        memset(params, 0, sizeof *params);
        fd = (int)syscall(__NR_io_uring_setup, ENTRIES, params);
    }
    return fd < 0 ? -errno : fd;
}

static int map(int fd, uint64_t offset, size_t nbytes, struct mapped *mapped)
{
    void *start =
        mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, (off_t)offset);
    if (start == MAP_FAILED)
        return -errno;
    *mapped = (struct mapped){start, nbytes};
    return 0;
}

static void unmap(struct mapped *mapped)
{
    if (mapped->start != NULL)
        munmap(mapped->start, mapped->nbytes);
}

/* What can't be read without waiting the kernel gives to threads of its own, by default a handful:
 * as many as a member that doesn't answer could take, and with them all others' reads. Linux 5.15;
 * before that such members can do so. */
static void allow_workers(int fd)
{
    uint32_t most[2] = {ENTRIES, 0}; /* for files; for all else, as it is */
    syscall(__NR_io_uring_register, fd, REGISTER_IOWQ_MAX_WORKERS, most, 2);
}

static int ring_open(struct rf_ring *ring)
{
    /* Linux 5.6: one map for both rings, nothing dropped, vectors copied at submission, READ/WRITE
     */
    const uint32_t needed = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP |
                            IORING_FEAT_SUBMIT_STABLE | IORING_FEAT_RW_CUR_POS;
    struct io_uring_params params;
    ring->fd = ring_setup(&params);
    if (ring->fd < 0)
        return ring->fd;
    if ((params.features & needed) != needed)
        return -ENOSYS;
    allow_workers(ring->fd);
    size_t sq_bytes = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
    size_t cq_bytes = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    int error =
        map(ring->fd, IORING_OFF_SQ_RING, sq_bytes > cq_bytes ? sq_bytes : cq_bytes, &ring->rings);
    if (!error)
        error = map(ring->fd, IORING_OFF_SQES, params.sq_entries * sizeof(struct io_uring_sqe),
                    &ring->entries_map);
    if (error)
        return error;
    uint8_t *start = ring->rings.start;
    ring->sq_head = (uint32_t *)(start + params.sq_off.head);
    ring->sq_tail = (uint32_t *)(start + params.sq_off.tail);
    ring->sq_mask = (uint32_t *)(start + params.sq_off.ring_mask);
    ring->sq_array = (uint32_t *)(start + params.sq_off.array);
    ring->cq_head = (uint32_t *)(start + params.cq_off.head);
    ring->cq_tail = (uint32_t *)(start + params.cq_off.tail);
    ring->cq_mask = (uint32_t *)(start + params.cq_off.ring_mask);
    ring->cqes = (struct io_uring_cqe *)(start + params.cq_off.cqes);
    ring->sqes = ring->entries_map.start;
    return 0;
}

/* An entry of the submission queue, zeroed; the kernel sees it at the next ring_enter. */
static struct io_uring_sqe *entry_new(struct rf_ring *ring, uint64_t user_data)
{
    assert(ring->filled - __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE) < ENTRIES);
    uint32_t index = ring->filled++ & *ring->sq_mask;
    struct io_uring_sqe *entry = &ring->sqes[index];
    memset(entry, 0, sizeof *entry);
    entry->user_data = user_data;
    ring->sq_array[index] = index;
    return entry;
}

static void wait_for_wake(struct rf_ring *ring)
{
    struct io_uring_sqe *entry = entry_new(ring, WAKE);
    entry->opcode = IORING_OP_READ;
    entry->fd = ring->wake_fd;
    entry->addr = (uint64_t)(uintptr_t)&ring->woken;
    entry->len = sizeof ring->woken;
}

/* ---- slots ---- */

static void slot_transfer(struct rf_ring *ring, uint32_t number, const struct rf_io *io)
{
    struct slot *slot = &ring->slots[number];
    struct iovec one, *vectors = io->cells && slot->pieces ? slot->pieces : &one;
    size_t room = vectors == &one ? 1 : RF_VECTORS_MAX;
    size_t count = rf_io_vectors(io, slot->done, vectors, room);
    struct io_uring_sqe *entry = entry_new(ring, number);
    int reads = io->op == RF_READ;
    entry->fd = io->fd;
    entry->off = io->offset + slot->done;
    if (count == 1) {
        size_t nbytes = vectors[0].iov_len;
        entry->opcode = reads ? IORING_OP_READ : IORING_OP_WRITE;
        entry->addr = (uint64_t)(uintptr_t)vectors[0].iov_base;
        entry->len = (uint32_t)(nbytes < PART_BYTES_MAX ? nbytes : PART_BYTES_MAX);
    } else {
        entry->opcode = reads ? IORING_OP_READV : IORING_OP_WRITEV;
        entry->addr = (uint64_t)(uintptr_t)vectors;
        entry->len = (uint32_t)count;
    }
}

/* The slot's io, or what is left of it, goes to the kernel. */
static void slot_submit(struct rf_ring *ring, uint32_t number)
{
    struct slot *slot = &ring->slots[number];
    const struct rf_io *io = &slot->job->batch->ios[slot->at];
    if (io->op == RF_READ && slot->done == 0)
        slot->begun_ns = rf_now_ns();
    if (io->op == RF_SYNC) {
        struct io_uring_sqe *entry = entry_new(ring, number);
        entry->opcode = IORING_OP_FSYNC;
        entry->fd = io->fd;
        entry->fsync_flags = IORING_FSYNC_DATASYNC;
        return;
    }
    /* Without memory for the vectors a gather goes piece by piece. */
    if (io->cells > 1 && slot->pieces == NULL)
        slot->pieces = malloc(RF_VECTORS_MAX * sizeof *slot->pieces);
    slot_transfer(ring, number, io);
}

/* The slot's io is over: to the next one that is to be tried. 0: the job has none left. */
static int slot_next(struct slot *slot)
{
    struct rf_io *ios = slot->job->batch->ios;
    uint32_t end = slot->job->end;
    int failed = ios[slot->at].result != 0;
    uint32_t chain_end = rf_chain_end(ios, slot->at, end);
    slot->at++;
    if (failed)
        for (; slot->at < chain_end; slot->at++)
            ios[slot->at].result = -ECANCELED;
    slot->done = 0;
    return slot->at < end;
}

/* Ios of no bytes are done without the kernel. 0: the job has none left. */
static int slot_skip_empty(struct slot *slot)
{
    for (;;) {
        struct rf_io *io = &slot->job->batch->ios[slot->at];
        if (io->op == RF_SYNC || rf_io_bytes(io) > 0)
            return 1;
        io->result = 0;
        rf_io_over(io, rf_now_ns());
        if (!slot_next(slot))
            return 0;
    }
}

static void slot_free(struct rf_ring *ring, uint32_t number)
{
    struct rf_job *job = ring->slots[number].job;
    ring->slots[number].job = NULL;
    ring->slots[number].next = ring->free_slot;
    ring->free_slot = number;
    ring->in_flight--;
    rf_job_finished(job);
}

static void begin_jobs(struct rf_ring *ring)
{
    while (ring->free_slot != SLOTS) {
        struct rf_job *job = rf_jobs_take(&ring->queue);
        if (job == NULL)
            return;
        uint32_t number = ring->free_slot;
        struct slot *slot = &ring->slots[number];
        ring->free_slot = slot->next;
        ring->in_flight++;
        slot->job = job;
        slot->at = job->first;
        slot->done = 0;
        if (slot_skip_empty(slot))
            slot_submit(ring, number);
        else
            slot_free(ring, number);
    }
}

/* ---- the thread ---- */

static void reaped(struct rf_ring *ring, uint64_t user_data, int32_t moved)
{
    if (user_data == WAKE) {
        wait_for_wake(ring);
        return;
    }
    assert(user_data < SLOTS && ring->slots[user_data].job != NULL);
    uint32_t number = (uint32_t)user_data;
    struct slot *slot = &ring->slots[number];
    struct rf_io *io = &slot->job->batch->ios[slot->at];
    int more = rf_io_advance(io, moved, &slot->done);
    if (!more) {
        rf_io_over(io, slot->begun_ns);
        more = slot_next(slot) && slot_skip_empty(slot);
    }
    if (more)
        slot_submit(ring, number);
    else
        slot_free(ring, number);
}

/* Whether to go on: jobs that have come are in the queue. */
static int take_inbox(struct rf_ring *ring)
{
    pthread_mutex_lock(&ring->mutex);
    if (ring->inbox.first != NULL) {
        if (ring->queue.first == NULL)
            ring->queue.first = ring->inbox.first;
        else
            ring->queue.last->next = ring->inbox.first;
        ring->queue.last = ring->inbox.last;
        ring->inbox.first = NULL;
    }
    int more = !ring->stopping || ring->queue.first != NULL || ring->in_flight > 0;
    pthread_mutex_unlock(&ring->mutex);
    return more;
}

static void enter(struct rf_ring *ring)
{
    __atomic_store_n(ring->sq_tail, ring->filled, __ATOMIC_RELEASE);
    uint32_t submit = ring->filled - __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE);
    if (ring_enter(ring->fd, submit, 1) >= 0)
        return;
    /* EAGAIN, EBUSY: the kernel lacks memory, or wants its completions reaped first. */
    assert(errno == EINTR || errno == EAGAIN || errno == EBUSY);
    if (errno == EAGAIN)
        usleep(1000);
}

static void serve(struct rf_ring *ring)
{
    wait_for_wake(ring);
    while (take_inbox(ring)) {
        begin_jobs(ring);
        enter(ring);
        uint32_t head = *ring->cq_head;
        while (head != __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE)) {
            struct io_uring_cqe cqe = ring->cqes[head & *ring->cq_mask];
            __atomic_store_n(ring->cq_head, ++head, __ATOMIC_RELEASE);
            reaped(ring, cqe.user_data, cqe.res);
        }
    }
}

static void ring_close(struct rf_ring *ring)
{
    unmap(&ring->entries_map);
    unmap(&ring->rings);
    if (ring->fd >= 0)
        close(ring->fd); /* the wake-up's read ends with it */
}

/* Promise 1 begins here: the ring is also made by the thread that owns it. */
static void *run(void *argument)
{
    struct rf_ring *ring = argument;
    int error = ring_open(ring);
    pthread_mutex_lock(&ring->mutex);
    ring->started = error ? error : 1;
    pthread_cond_signal(&ring->ready);
    pthread_mutex_unlock(&ring->mutex);
    if (!error)
        serve(ring);
    ring_close(ring);
    return NULL;
}

/* ---- for the engine ---- */

static void ring_destroy(struct rf_ring *ring)
{
    for (uint32_t i = 0; i < SLOTS; i++)
        free(ring->slots[i].pieces);
    if (ring->wake_fd >= 0)
        close(ring->wake_fd);
    pthread_cond_destroy(&ring->ready);
    pthread_mutex_destroy(&ring->mutex);
    free(ring);
}

static int ring_start(struct rf_ring *ring)
{
    ring->wake_fd = eventfd(0, EFD_CLOEXEC);
    if (ring->wake_fd < 0)
        return -errno;
    int error = rf_thread_new(&ring->thread, run, ring);
    if (error)
        return error;
    pthread_mutex_lock(&ring->mutex);
    while (ring->started == 0)
        pthread_cond_wait(&ring->ready, &ring->mutex);
    pthread_mutex_unlock(&ring->mutex);
    if (ring->started > 0)
        return 0;
    pthread_join(ring->thread, NULL);
    return ring->started;
}

struct rf_ring *rf_ring_new(int *error)
{
    struct rf_ring *ring = calloc(1, sizeof *ring);
    *error = -ENOMEM;
    if (ring == NULL)
        return NULL;
    ring->fd = -1;
    for (uint32_t i = 0; i < SLOTS; i++)
        ring->slots[i].next = i + 1;
    pthread_mutex_init(&ring->mutex, NULL);
    pthread_cond_init(&ring->ready, NULL);
    *error = ring_start(ring);
    if (*error == 0)
        return ring;
    ring_destroy(ring);
    return NULL;
}

static void wake(struct rf_ring *ring)
{
    int error = eventfd_write(ring->wake_fd, 1);
    assert(error == 0);
}

void rf_ring_free(struct rf_ring *ring)
{
    if (ring == NULL)
        return;
    pthread_mutex_lock(&ring->mutex);
    ring->stopping = 1;
    pthread_mutex_unlock(&ring->mutex);
    wake(ring);
    pthread_join(ring->thread, NULL);
    assert(ring->in_flight == 0 && ring->queue.first == NULL && ring->inbox.first == NULL);
    ring_destroy(ring);
}

void rf_ring_submit(struct rf_ring *ring, struct rf_job *jobs, uint32_t count)
{
    pthread_mutex_lock(&ring->mutex);
    int first = ring->inbox.first == NULL; /* else it has been woken, and didn't look yet */
    for (uint32_t i = 0; i < count; i++)
        rf_jobs_add(&ring->inbox, &jobs[i]);
    if (first)
        wake(ring);
    pthread_mutex_unlock(&ring->mutex); /* after this the ring may be gone */
}
