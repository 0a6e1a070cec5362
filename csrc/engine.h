/* engine.h: reads, writes and syncs of many descriptors at once, off the caller's thread.
 *
 *  1. A batch's ios and the buffers that they name belong to the engine until `done` was called (or
 *     its id was among the finished), which happens exactly once, also after errors.
 *  2. The ios of one chain are done in order, the first that fails (or comes up short) ends its
 *     chain; chains don't wait for each other's success.
 *  3. `done` is called on a thread of the engine that holds no lock: it may submit more.
 *  4. `rf_engine_free` returns when everything submitted before it has been done and told.
 */
#ifndef RAIDFS_ENGINE_H
#define RAIDFS_ENGINE_H

#include <stdint.h>

enum { RF_READ, RF_WRITE, RF_SYNC }; /* RF_SYNC: fdatasync */

struct rf_io {
    int32_t op;
    int32_t fd;
    uint64_t offset;  /* in the file */
    uint64_t address; /* of the buffer; with cells > 0, of an array of that many cells' addresses
                         (uint64_t), nbytes each */
    uint64_t nbytes;  /* of the buffer, or of one cell */
    uint32_t cells;
    uint32_t chain;   /* adjacent ios with the same number are one chain */
    int32_t result;   /* 0 or -errno; -ENODATA: the file ended early; -ECANCELED: an earlier one of
                         its chain failed */
    uint32_t took_us; /* of a read: 0 until it is over, then how long it took, at least 1; others
                         may look at it meanwhile (__atomic_load_n) */
};

/* Whether any of them has a result but 0. */
int rf_ios_failed(const struct rf_io *ios, uint32_t count);

struct rf_engine;

/* ring: 0 all by `threads` threads (1..64); 1 what io_uring is better at by io_uring; 2 all by it,
 * to compare. NULL with a negative *error: the kernel has or allows no ring; -ENOMEM; -EAGAIN, the
 * system gives no more threads. */
struct rf_engine *rf_engine_new(int ring, uint32_t threads, int *error);
void rf_engine_free(struct rf_engine *engine);

typedef void (*rf_engine_done)(void *context);

/* 0, or -EINVAL (count 0, an unknown op), -ENOMEM: then `done` is never called. */
int rf_engine_submit(struct rf_engine *engine, struct rf_io *ios, uint32_t count,
                     rf_engine_done done, void *context);

/* As submit; later `id` is among the finished, and the eventfd is readable. */
int rf_engine_start(struct rf_engine *engine, struct rf_io *ios, uint32_t count, uint64_t id);

/* An eventfd, not blocking: reading it resets it. It is the engine's. */
int rf_engine_eventfd(struct rf_engine *engine);

/* Takes at most `room` ids of what `start` began and is done; how many. */
uint32_t rf_engine_finished(struct rf_engine *engine, uint64_t *ids, uint32_t room);

/* So many of its jobs are stuck and will not end soon: with threads, it shall have as many more
 * than at first (at most 256 in all). May be called at any time; fewer do no harm. */
void rf_engine_relieve(struct rf_engine *engine, uint32_t stuck);

/* Whether `run` would be through with such a batch sooner than another thread could be woken: small
 * writes, and syncs where those of late were over at once. */
int rf_engine_at_once(struct rf_engine *engine, const struct rf_io *ios, uint32_t count);

/* As submit, but returns when done. From any thread but the engine's own. What needs no second
 * thread is done on the caller's. */
int rf_engine_run(struct rf_engine *engine, struct rf_io *ios, uint32_t count);

#endif
