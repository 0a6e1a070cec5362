/* engine.c: batches, their jobs, and who is told when they are done. See engine.h.
 *
 * A batch is cut into jobs, one per chain, and each goes where it costs least (processor time of a
 * batch of five chains, Linux 6.18, in microseconds):
 *   small writes into the page cache   one thread does neighbouring ones one after the other (20;
 *                                      a thread each: 65; ring: 60): the write itself takes one or
 *                                      two, and waking somebody for it ten
 *   the same with syncs that are over  likewise: memory lies beneath, or a cache that survives the
 *   at once, as the last ones were     loss of power, and there is nothing to wait for
 *   other buffered writes, with syncs  a thread each (250): the kernel would hand them from the
 *                                      ring to threads of its own (270 to 380)
 *   reads, and everything O_DIRECT     the ring (a read of 4 KiB with O_DIRECT 36, cached 29;
 *                                      threads: 109, 55)
 * Large ones and syncs have a job each since they wait for their medium, and members should do so
 * side by side. Without a ring, threads do its part.
 */
#define _GNU_SOURCE
#undef NDEBUG
#include "engine_inner.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum {
    SMALL_CHAIN_BYTES_MAX = 64 << 10,
    SMALL_JOB_BYTES_MAX = 256 << 10,
    QUICK_SYNC_NS = 20000,
    COUNTED_SYNC_NS_MAX = 8 * QUICK_SYNC_NS, /* one that was interrupted says little */
    THREADS_MAX = 64,
    THREADS_MOST = 256, /* with those that stand in for stuck ones */
};

struct rf_engine {
    struct rf_threads *threads;
    struct rf_ring *ring; /* NULL: threads do everything */
    int ring_only;
    uint32_t threads_count;       /* at first */
    atomic_int_least64_t sync_ns; /* how long syncs by threads took lately */
    int event_fd;
    pthread_mutex_t mutex;
    pthread_cond_t idle;
    uint32_t batches;             /* submitted and not done */
    uint64_t *ids;                /* the finished */
    uint32_t ids_count, ids_room; /* ids_room >= ids_count + ids_promised, always */
    uint32_t ids_promised;        /* started and not finished */
};

/* ---- ios ---- */

uint32_t rf_chain_end(const struct rf_io *ios, uint32_t at, uint32_t end)
{
    uint32_t chain = ios[at].chain;
    while (at < end && ios[at].chain == chain)
        at++;
    return at;
}

int rf_ios_failed(const struct rf_io *ios, uint32_t count)
{
    int failed = 0;
    for (uint32_t i = 0; i < count; i++)
        failed |= ios[i].result;
    return failed != 0;
}

uint64_t rf_io_bytes(const struct rf_io *io)
{
    if (io->op == RF_SYNC)
        return 0;
    return io->cells ? io->cells * io->nbytes : io->nbytes;
}

size_t rf_io_vectors(const struct rf_io *io, uint64_t done, struct iovec *vectors, size_t room)
{
    if (io->cells)
        return rf_gather((const uint64_t *)(uintptr_t)io->address, io->cells, io->nbytes, done,
                         vectors, room);
    vectors[0].iov_base = (void *)(uintptr_t)(io->address + done);
    vectors[0].iov_len = io->nbytes - done;
    return 1;
}

int rf_io_advance(struct rf_io *io, int64_t moved, uint64_t *done)
{
    if (moved == -EINTR || moved == -EAGAIN) /* EAGAIN: a ring short of something for a moment */
        return 1;
    /* With O_DIRECT the end of a file that isn't a multiple of a sector shows as EINVAL. */
    int at_odd_end = moved == -EINVAL && io->op == RF_READ && *done % 512 != 0;
    if (moved < 0 && !at_odd_end) {
        io->result = (int32_t)moved;
        return 0;
    }
    io->result = 0;
    if (io->op == RF_SYNC)
        return 0;
    if (moved > 0)
        *done += (uint64_t)moved;
    if (*done >= rf_io_bytes(io))
        return 0;
    if (moved > 0)
        return 1;
    /* A file that takes nothing and says no error would be asked for ever. */
    io->result = io->op == RF_READ ? -ENODATA : -EIO;
    return 0;
}

static int64_t transfer(const struct rf_io *io, uint64_t done)
{
    struct iovec vectors[RF_VECTORS_MAX];
    int count = (int)rf_io_vectors(io, done, vectors, RF_VECTORS_MAX);
    off_t offset = (off_t)(io->offset + done);
    int64_t moved = io->op == RF_READ ? preadv(io->fd, vectors, count, offset)
                                      : pwritev(io->fd, vectors, count, offset);
    return moved < 0 ? -errno : moved;
}

int64_t rf_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int64_t timed_sync(struct rf_engine *engine, int fd)
{
    int64_t begun = rf_now_ns();
    int64_t result = fdatasync(fd) ? -errno : 0;
    int64_t took = rf_now_ns() - begun;
    int64_t lately = atomic_load_explicit(&engine->sync_ns, memory_order_relaxed);
    took = took < COUNTED_SYNC_NS_MAX ? took : COUNTED_SYNC_NS_MAX;
    atomic_store_explicit(&engine->sync_ns, lately + (took - lately) / 8, memory_order_relaxed);
    return result;
}

static void perform(struct rf_engine *engine, struct rf_io *io)
{
    uint64_t done = 0;
    int64_t moved, begun_ns = io->op == RF_READ ? rf_now_ns() : 0;
    if (io->op != RF_SYNC && rf_io_bytes(io) == 0) {
        io->result = 0;
        rf_io_over(io, begun_ns);
        return;
    }
    do {
        if (io->op == RF_SYNC)
            moved = timed_sync(engine, io->fd);
        else
            moved = transfer(io, done);
    } while (rf_io_advance(io, moved, &done));
    rf_io_over(io, begun_ns);
}

void rf_job_perform(struct rf_job *job)
{
    struct rf_io *ios = job->batch->ios;
    for (uint32_t at = job->first; at < job->end;) {
        uint32_t end = rf_chain_end(ios, at, job->end);
        int failed = 0;
        for (; at < end; at++) {
            if (failed)
                ios[at].result = -ECANCELED;
            else
                perform(job->batch->engine, &ios[at]);
            failed = failed || ios[at].result != 0;
        }
    }
}

/* ---- batches ---- */

static void batch_finished(struct rf_batch *batch)
{
    struct rf_engine *engine = batch->engine;
    batch->done(batch->context);
    free(batch);
    pthread_mutex_lock(&engine->mutex);
    if (--engine->batches == 0)
        pthread_cond_broadcast(&engine->idle);
    pthread_mutex_unlock(&engine->mutex);
}

void rf_job_finished(struct rf_job *job)
{
    struct rf_batch *batch = job->batch;
    if (atomic_fetch_sub_explicit(&batch->jobs_left, 1, memory_order_acq_rel) == 1)
        batch_finished(batch);
}

/* Where the chain [at, end) is best done; its bytes. */
static enum rf_way way_of(struct rf_engine *engine, const struct rf_io *ios, uint32_t at,
                          uint32_t end, uint64_t *nbytes)
{
    int64_t lately = atomic_load_explicit(&engine->sync_ns, memory_order_relaxed);
    int reads = 1, quick = 1;
    *nbytes = 0;
    for (uint32_t i = at; i < end; i++) {
        reads = reads && ios[i].op == RF_READ;
        quick =
            quick && (ios[i].op == RF_WRITE || (ios[i].op == RF_SYNC && lately < QUICK_SYNC_NS));
        *nbytes += rf_io_bytes(&ios[i]);
    }
    if (reads)
        return RF_BY_RING;
    int flags = fcntl(ios[at].fd, F_GETFL);
    if (flags >= 0 && flags & O_DIRECT)
        return RF_BY_RING;
    return quick && *nbytes <= SMALL_CHAIN_BYTES_MAX ? RF_WITH_OTHERS : RF_BY_THREAD;
}

/* Deals the ios to jobs; how many. */
static uint32_t deal(struct rf_batch *batch)
{
    uint32_t jobs = 0;
    uint64_t job_bytes = 0;
    for (uint32_t at = 0; at < batch->count;) {
        uint32_t end = rf_chain_end(batch->ios, at, batch->count);
        uint64_t nbytes;
        enum rf_way way = way_of(batch->engine, batch->ios, at, end, &nbytes);
        struct rf_job *last = jobs > 0 ? &batch->jobs[jobs - 1] : NULL;
        if (way == RF_WITH_OTHERS && last != NULL && last->way == RF_WITH_OTHERS &&
            job_bytes + nbytes <= SMALL_JOB_BYTES_MAX) {
            last->end = end;
            job_bytes += nbytes;
        } else {
            batch->jobs[jobs++] =
                (struct rf_job){.batch = batch, .first = at, .end = end, .way = way};
            job_bytes = nbytes;
        }
        at = end;
    }
    return jobs;
}

static struct rf_batch *batch_new(struct rf_engine *engine, struct rf_io *ios, uint32_t count,
                                  rf_engine_done done, void *context, int *error)
{
    *error = -EINVAL;
    if (count == 0)
        return NULL;
    uint32_t chains = 1;
    for (uint32_t i = 0; i < count; i++) {
        if (ios[i].op != RF_READ && ios[i].op != RF_WRITE && ios[i].op != RF_SYNC)
            return NULL;
        chains += i > 0 && ios[i].chain != ios[i - 1].chain;
    }
    *error = -ENOMEM;
    struct rf_batch *batch = malloc(sizeof *batch + chains * sizeof batch->jobs[0]);
    if (batch == NULL)
        return NULL;
    *error = 0;
    batch->engine = engine;
    batch->ios = ios;
    batch->count = count;
    batch->done = done;
    batch->context = context;
    return batch;
}

static int by_ring(const struct rf_engine *engine, const struct rf_job *job)
{
    return engine->ring != NULL && (engine->ring_only || job->way == RF_BY_RING);
}

/* Hands jobs [from, jobs) of a batch to those who do them. Once the last is handed out, the batch
 * may be gone. */
static void hand_out(struct rf_engine *engine, struct rf_batch *batch, uint32_t from, uint32_t jobs)
{
    while (from < jobs) {
        int ring = by_ring(engine, &batch->jobs[from]);
        uint32_t end = from + 1;
        while (end < jobs && by_ring(engine, &batch->jobs[end]) == ring)
            end++;
        if (ring)
            rf_ring_submit(engine->ring, &batch->jobs[from], end - from);
        else
            rf_threads_submit(engine->threads, &batch->jobs[from], end - from);
        from = end;
    }
}

static uint32_t batch_begin(struct rf_engine *engine, struct rf_batch *batch)
{
    uint32_t jobs = deal(batch);
    atomic_init(&batch->jobs_left, jobs);
    pthread_mutex_lock(&engine->mutex);
    engine->batches++;
    pthread_mutex_unlock(&engine->mutex);
    return jobs;
}

int rf_engine_submit(struct rf_engine *engine, struct rf_io *ios, uint32_t count,
                     rf_engine_done done, void *context)
{
    int error;
    struct rf_batch *batch = batch_new(engine, ios, count, done, context, &error);
    if (batch != NULL)
        hand_out(engine, batch, 0, batch_begin(engine, batch));
    return error;
}

/* ---- told by id ---- */

static void tell_id(void *context)
{
    struct rf_batch *batch = context;
    struct rf_engine *engine = batch->engine;
    pthread_mutex_lock(&engine->mutex);
    assert(engine->ids_count < engine->ids_room && engine->ids_promised > 0);
    engine->ids_promised--;
    int first = engine->ids_count == 0;
    engine->ids[engine->ids_count++] = batch->id;
    pthread_mutex_unlock(&engine->mutex);
    if (first) { /* else it is readable already, or about to be */
        int error = eventfd_write(engine->event_fd, 1);
        assert(error == 0);
    }
}

/* Makes sure that one more id can be told without asking for memory then. */
static int promise_id(struct rf_engine *engine)
{
    int error = 0;
    pthread_mutex_lock(&engine->mutex);
    if (engine->ids_count + engine->ids_promised == engine->ids_room) {
        uint32_t room = engine->ids_room ? 2 * engine->ids_room : 64;
        uint64_t *ids = realloc(engine->ids, room * sizeof *ids);
        if (ids == NULL) {
            error = -ENOMEM;
        } else {
            engine->ids = ids;
            engine->ids_room = room;
        }
    }
    if (!error)
        engine->ids_promised++;
    pthread_mutex_unlock(&engine->mutex);
    return error;
}

int rf_engine_start(struct rf_engine *engine, struct rf_io *ios, uint32_t count, uint64_t id)
{
    int error;
    struct rf_batch *batch = batch_new(engine, ios, count, tell_id, NULL, &error);
    if (batch == NULL)
        return error;
    error = promise_id(engine);
    if (error) {
        free(batch);
        return error;
    }
    batch->id = id;
    batch->context = batch;
    hand_out(engine, batch, 0, batch_begin(engine, batch));
    return 0;
}

int rf_engine_eventfd(struct rf_engine *engine)
{
    return engine->event_fd;
}

uint32_t rf_engine_finished(struct rf_engine *engine, uint64_t *ids, uint32_t room)
{
    pthread_mutex_lock(&engine->mutex);
    uint32_t count = engine->ids_count < room ? engine->ids_count : room;
    for (uint32_t i = 0; i < count; i++)
        ids[i] = engine->ids[i];
    for (uint32_t i = count; i < engine->ids_count; i++)
        engine->ids[i - count] = engine->ids[i];
    engine->ids_count -= count;
    pthread_mutex_unlock(&engine->mutex);
    return count;
}

/* ---- waiting ---- */

struct waiter {
    pthread_mutex_t mutex;
    pthread_cond_t told;
    int done;
};

static void tell_waiter(void *context)
{
    struct waiter *waiter = context;
    pthread_mutex_lock(&waiter->mutex);
    waiter->done = 1;
    pthread_cond_signal(&waiter->told);
    pthread_mutex_unlock(&waiter->mutex); /* after this the waiter may be gone */
}

int rf_engine_at_once(struct rf_engine *engine, const struct rf_io *ios, uint32_t count)
{
    uint64_t all = 0;
    if (engine->ring_only ||
        atomic_load_explicit(&engine->sync_ns, memory_order_relaxed) >= QUICK_SYNC_NS)
        return 0;
    for (uint32_t at = 0; at < count;) {
        uint32_t end = rf_chain_end(ios, at, count);
        uint64_t nbytes;
        if (way_of(engine, ios, at, end, &nbytes) != RF_WITH_OTHERS)
            return 0;
        all += nbytes;
        at = end;
    }
    return all <= SMALL_JOB_BYTES_MAX;
}

int rf_engine_run(struct rf_engine *engine, struct rf_io *ios, uint32_t count)
{
    struct waiter waiter = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};
    int error;
    struct rf_batch *batch = batch_new(engine, ios, count, tell_waiter, &waiter, &error);
    if (batch == NULL)
        return error;
    uint32_t jobs = batch_begin(engine, batch);
    hand_out(engine, batch, engine->ring_only ? 0 : 1, jobs);
    if (!engine->ring_only) {
        rf_job_perform(&batch->jobs[0]);
        rf_job_finished(&batch->jobs[0]);
    }
    pthread_mutex_lock(&waiter.mutex);
    while (!waiter.done)
        pthread_cond_wait(&waiter.told, &waiter.mutex);
    pthread_mutex_unlock(&waiter.mutex);
    pthread_cond_destroy(&waiter.told);
    pthread_mutex_destroy(&waiter.mutex);
    return 0;
}

/* ---- life ---- */

int rf_thread_new(pthread_t *thread, void *(*run)(void *), void *argument)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(thread, NULL, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -error;
}

static int engine_fill(struct rf_engine *engine, int ring, uint32_t threads)
{
    int error;
    engine->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (engine->event_fd < 0)
        return -errno;
    engine->threads = rf_threads_new(threads, THREADS_MOST, &error);
    engine->threads_count = threads;
    engine->ring_only = ring == 2;
    if (!error && ring)
        engine->ring = rf_ring_new(&error);
    return error;
}

struct rf_engine *rf_engine_new(int ring, uint32_t threads, int *error)
{
    *error = -EINVAL;
    if (threads == 0 || threads > THREADS_MAX)
        return NULL;
    struct rf_engine *engine = calloc(1, sizeof *engine);
    *error = -ENOMEM;
    if (engine == NULL)
        return NULL;
    pthread_mutex_init(&engine->mutex, NULL);
    pthread_cond_init(&engine->idle, NULL);
    atomic_init(&engine->sync_ns, COUNTED_SYNC_NS_MAX);
    *error = engine_fill(engine, ring, threads);
    if (*error) {
        rf_engine_free(engine);
        return NULL;
    }
    return engine;
}

void rf_engine_relieve(struct rf_engine *engine, uint32_t stuck)
{
    uint32_t more = THREADS_MOST - engine->threads_count;
    rf_threads_grow(engine->threads, engine->threads_count + (stuck < more ? stuck : more));
}

void rf_engine_free(struct rf_engine *engine)
{
    if (engine == NULL)
        return;
    pthread_mutex_lock(&engine->mutex);
    while (engine->batches > 0)
        pthread_cond_wait(&engine->idle, &engine->mutex);
    pthread_mutex_unlock(&engine->mutex);
    rf_ring_free(engine->ring);
    rf_threads_free(engine->threads);
    if (engine->event_fd >= 0)
        close(engine->event_fd);
    free(engine->ids);
    pthread_cond_destroy(&engine->idle);
    pthread_mutex_destroy(&engine->mutex);
    free(engine);
}
