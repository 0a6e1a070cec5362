/* engine_inner.h: what the files of the engine share. Not for others. */
#ifndef RAIDFS_ENGINE_INNER_H
#define RAIDFS_ENGINE_INNER_H

#include "engine.h"
#include "gather.h"

#include <pthread.h>
#include <stdatomic.h>

struct rf_batch;

/* How a job is done; engine.c says why. */
enum rf_way { RF_WITH_OTHERS, RF_BY_THREAD, RF_BY_RING };

/* Ios [first, end) of a batch, whole chains, done one after the other. */
struct rf_job {
    struct rf_job *next;
    struct rf_batch *batch;
    uint32_t first, end;
    enum rf_way way;
};

struct rf_batch {
    struct rf_engine *engine;
    struct rf_io *ios;
    uint32_t count;
    atomic_uint jobs_left;
    rf_engine_done done;
    void *context;
    uint64_t id;
    struct rf_job jobs[];
};

/* Jobs in the order of their coming. */
struct rf_jobs {
    struct rf_job *first, *last;
};

static inline void rf_jobs_add(struct rf_jobs *jobs, struct rf_job *job)
{
    job->next = NULL;
    if (jobs->first == NULL)
        jobs->first = job;
    else
        jobs->last->next = job;
    jobs->last = job;
}

static inline struct rf_job *rf_jobs_take(struct rf_jobs *jobs)
{
    struct rf_job *job = jobs->first;
    if (job != NULL)
        jobs->first = job->next;
    return job;
}

/* Told by whoever did the last io of a job; after this the job is gone. */
void rf_job_finished(struct rf_job *job);

/* The first io after `at` that is not of its chain, or `end`. */
uint32_t rf_chain_end(const struct rf_io *ios, uint32_t at, uint32_t end);

/* What is left of an io of which `done` bytes are moved; at most `room` vectors: how many. */
size_t rf_io_vectors(const struct rf_io *io, uint64_t done, struct iovec *vectors, size_t room);
uint64_t rf_io_bytes(const struct rf_io *io);

/* One transfer of an io has returned `moved` bytes or -errno, `done` bytes were moved before. 1:
 * the rest is still to be moved (or all of it again); 0: it is over, its result is set. */
int rf_io_advance(struct rf_io *io, int64_t moved, uint64_t *done);

int64_t rf_now_ns(void);

/* A read that began then is over. */
static inline void rf_io_over(struct rf_io *io, int64_t begun_ns)
{
    int64_t took_us = io->op == RF_READ ? (rf_now_ns() - begun_ns) / 1000 : 0;
    if (took_us > UINT32_MAX)
        took_us = UINT32_MAX;
    __atomic_store_n(&io->took_us, took_us > 0 ? (uint32_t)took_us : 1, __ATOMIC_RELEASE);
}

/* Does all ios of a job on this thread, blocking. */
void rf_job_perform(struct rf_job *job);

/* A thread with all signals masked, since they are for others. 0 or -errno. */
int rf_thread_new(pthread_t *thread, void *(*run)(void *), void *argument);

/* engine_threads.c */
struct rf_threads;
/* `room`: the most that there can be. */
struct rf_threads *rf_threads_new(uint32_t count, uint32_t room, int *error);
void rf_threads_free(struct rf_threads *threads);
/* So many in all, if the system gives them. */
void rf_threads_grow(struct rf_threads *threads, uint32_t count);
void rf_threads_submit(struct rf_threads *threads, struct rf_job *jobs, uint32_t count);

/* engine_ring.c */
struct rf_ring;
struct rf_ring *rf_ring_new(int *error);
void rf_ring_free(struct rf_ring *ring);
void rf_ring_submit(struct rf_ring *ring, struct rf_job *jobs, uint32_t count);

#endif
