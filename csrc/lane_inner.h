/* lane_inner.h: the structures behind lane.h, shared by lane*.c and nobody else. */
#ifndef RAIDFS_LANE_INNER_H
#define RAIDFS_LANE_INNER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "columns.h"
#include "engine.h"
#include "gate.h"
#include "known.h"
#include "lane.h"
#include "ensure.h"
#include "lane_protocol.h"
#include "pages.h"

enum {
    HEAD_BYTES = 80,   /* fuse_in_header and fuse_write_in: what comes before a WRITE's payload */
    HEAD_ROOM = 512,   /* so that a request with a name can be made contiguous */
    SPARE_CELLS = 64,  /* taken from the pages at a time */
    ANSWER_PARTS = 2,  /* header and data */
    TRIES_MAX = 3,     /* of a request that found what it knew to be out of date */
    BASES_MAX = 2,     /* pages that a WRITE covers in part */
    BUFFERS_KEPT = 16, /* for READs, that stay when nobody uses them */
    ERRNO_MAX = 511,   /* that the kernel takes */
    OTHER_OPCODES = RF_LANE_OPCODES - 1,
};

/* What is to happen with a request. */
enum outcome { DONE, COUNTED, CARRY, FORWARD }; /* COUNTED: done with, but not served here */

/* Counters only: a lane has one set, and each worker one of its own, so that workers don't fight
 * for them. */
struct counters {
    atomic_ulong served[RF_LANE_OPCODES], carried[RF_LANE_OPCODES], forwarded[RF_LANE_OPCODES];
    atomic_ulong bytes_read, bytes_written, reads_memory, reads_engine, writes_put, bases_read;
    atomic_ulong parked, queued, refused, lost, notified, credits_spent;
};

/* A request as it was received: its first bytes in `head`, from byte HEAD_BYTES on in the cells. */
struct request {
    _Alignas(64) uint8_t head[HEAD_ROOM];
    uint64_t nbytes;
    uint32_t way; /* the descriptor it came by, and its answer leaves by */
    uint8_t **cells;
};

/* An answer that waits for the gate. */
struct answer {
    struct answer *next;
    struct read_buffer *buffer; /* the data; NULL: `bytes` has it all */
    uint64_t nbytes;            /* of the data */
    uint64_t offset;            /* of the data, in the buffer */
    uint64_t unique;
    int32_t error;
    uint32_t way;
    uint32_t opcode;
    uint8_t bytes[];
};

/* Whole pages that a READ is answered from, or the scattered payload of a WRITE; goes along with
 * the request when that has to wait for members. */
struct read_buffer {
    struct read_buffer *next;
    struct rf_lane *lane;
    uint8_t *out; /* aligned to 4096 */
    uint64_t *addresses;
    uint64_t offset, nbytes; /* of the answer, in `out` */
    uint64_t forgets;        /* of columns, before the addresses were looked up */
    uint32_t way;
    _Alignas(8) uint8_t head[HEAD_BYTES]; /* the request */
    struct answer answer;
};

/* Old content of the pages that a WRITE covers in part. */
struct bases {
    uint32_t count;
    struct rf_base known[BASES_MAX];
    uint64_t addresses[BASES_MAX];
    uint64_t forgets; /* of columns, before the addresses were looked up */
    uint8_t *bytes;   /* BASES_MAX cells, aligned to 4096; NULL until needed */
};

/* A WRITE that waits: for credits (parked) or for bases. */
struct held_write {
    struct held_write *next;
    struct rf_lane *lane;
    _Alignas(8) uint8_t head[HEAD_BYTES];
    uint64_t nbytes;
    uint32_t way;
    uint32_t cells_count;
    struct bases bases;
    uint8_t *cells[];
};

/* A request in the hands of Python. */
struct carried {
    struct carried *next; /* in the queue */
    uint64_t id, unique, nbytes;
    uint32_t way, opcode;
    bool taken;
    _Alignas(8) uint8_t bytes[];
};

struct crew {
    pthread_t thread;
    bool started;
    atomic_bool stopping; /* asked to end before the others */
    atomic_bool ended;
};

/* A thread that takes requests from one descriptor. */
struct worker {
    struct crew crew;
    struct rf_lane *lane;
    int fd;
    struct request request;
    struct read_buffer *buffer;
    struct bases bases;
    uint8_t **spare;
    uint32_t spare_count;
    struct iovec *vectors; /* the head, then all cells */
    _Alignas(64) struct counters counters;
};

/* How requests come and answers leave. */
struct transport {
    /* Waits for a request. Its bytes; 0: none, ask again; -errno: no more will come. */
    int64_t (*take)(struct worker *worker);
    /* 0 or -errno. Waits for nobody. */
    int (*reply)(struct rf_lane *lane, uint32_t way, const struct iovec *parts, int count);
};

struct queue_of_carried {
    pthread_mutex_t mutex;
    struct carried *first, **last; /* not yet taken */
    struct carried **places;       /* by the lower half of the id */
    uint32_t places_count, free_hint;
    uint32_t count; /* taken or not */
    uint32_t serial;
    uint64_t *released;
    uint32_t released_count, released_room;
};

/* What the servant, a thread, has to do. */
struct servant {
    struct crew crew;
    pthread_mutex_t mutex;
    pthread_cond_t wanted;
    struct answer *answers, **answers_last;
    struct held_write *ready, **ready_last;   /* with bases: to be tried */
    struct held_write *parked, **parked_last; /* without credits */
    atomic_uint parked_count;
    uint64_t parked_cells;
    atomic_ulong resumes; /* rf_lane_resume was called so often */
    bool resume, pass_on;
    struct read_buffer *buffer; /* its own, to put scattered payloads into */
};

struct notice {
    struct notice *next;
    uint64_t nbytes;
    uint8_t bytes[];
};

/* Passes notifications on; the only thread that waits for the kernel to answer. */
struct notifier {
    struct crew crew;
    pthread_mutex_t mutex;
    pthread_cond_t wanted;
    struct notice *first, **last;
};

struct rf_lane {
    struct rf_lane_setup setup;
    const struct transport *transport;
    uint32_t cells_count; /* of each worker: what a request may fill */
    uint64_t buffer_bytes;
    uint32_t buffer_pages;
    uint32_t ways_count;
    int ways[RF_LANE_THREADS_MAX];
    int socket_fd;
    uint32_t library_bytes_max; /* an answer from the library can't be longer */
    int event_fd, late_fd;
    _Atomic int64_t late_ns; /* the timer is set to this time, or was */
    struct worker *workers[RF_LANE_THREADS_MAX];
    struct crew returner;
    struct servant servant;
    struct notifier notifier;
    struct queue_of_carried queue;
    pthread_mutex_t buffers_mutex;
    struct read_buffer *buffers;
    uint32_t buffers_kept;
    atomic_bool stopping, ended, asking, stopped;
    bool started, abandoned;
    atomic_uint in_engine;     /* requests that wait for members there */
    atomic_ulong spent_lately; /* credits, since Python was asked for more */
    atomic_ulong offered;      /* INIT flags of the kernel */
    atomic_ulong agreed;       /* INIT flags of our answer */
    atomic_uint offered_minor;
    struct counters counters;
};

/* The counters of the worker that this thread is. */
extern _Thread_local struct counters *lane_own_counters;

static inline struct counters *tally(struct rf_lane *lane)
{
    return lane_own_counters ? lane_own_counters : &lane->counters;
}

static inline void count(atomic_ulong *counter, uint64_t more)
{
    atomic_fetch_add_explicit(counter, more, memory_order_relaxed);
}

static inline void count_opcode(atomic_ulong *counters, uint32_t opcode)
{
    count(counters + (opcode < OTHER_OPCODES ? opcode : OTHER_OPCODES), 1);
}

static inline const struct fuse_in_header *header_of(const uint8_t *head)
{
    return (const struct fuse_in_header *)head;
}

static inline const void *body_of(const uint8_t *head)
{
    return head + sizeof(struct fuse_in_header);
}

/* lane.c */
bool lane_stopping(struct rf_lane *lane);
void lane_end(struct rf_lane *lane);
/* There is something for Python. */
void lane_raise(struct rf_lane *lane);
/* There is something for Python that nobody waits for. */
void lane_raise_late(struct rf_lane *lane);
/* How many cells the payload of a request of so many bytes lies in. */
uint32_t lane_cells_used(const struct rf_lane *lane, uint64_t nbytes);
struct read_buffer *lane_buffer_take(struct rf_lane *lane);
void lane_buffer_give(struct read_buffer *buffer);
void lane_buffer_free(struct read_buffer *buffer);

/* lane_device.c */
extern const struct transport device_transport;
int worker_start_cells(struct worker *worker);
void worker_end_cells(struct worker *worker);
/* New cells in the place of those that a request took along; false: the lane is stopping. */
bool worker_refill(struct worker *worker, uint32_t used);

/* lane_reply.c */
/* Inside the gate; what became of it. */
int lane_answer_inside(struct rf_lane *lane, uint32_t way, uint64_t unique, int32_t error,
                       const void *data, uint64_t nbytes);
/* Goes through the gate, and waits for it. */
int lane_answer(struct rf_lane *lane, uint32_t way, uint64_t unique, int32_t error,
                const void *data, uint64_t nbytes);
/* Never waits: where the gate is shut, the servant does. -ENOMEM: nothing happened. */
int lane_answer_soon(struct rf_lane *lane, uint32_t way, uint64_t unique, int32_t error,
                     const void *data, uint64_t nbytes);
void lane_answer_read_soon(struct read_buffer *buffer);
/* For requests that can't be answered otherwise: from any thread but those that must not wait. */
void lane_refuse(struct rf_lane *lane, const struct fuse_in_header *in, uint32_t way, int error);
/* Whether the kernel wants no answer to it. */
bool lane_one_way(uint32_t opcode);

/* lane_servant.c */
void *servant_main(void *lane);
int servant_begin(struct rf_lane *lane);
void servant_end(struct rf_lane *lane);
void servant_queue_answer(struct rf_lane *lane, struct answer *answer);
void servant_try(struct held_write *held);
uint64_t servant_resumes(struct rf_lane *lane);
/* `resumes` is of before the WRITE was refused. `untried`: it only queues behind others. */
void servant_park(struct held_write *held, bool untried, uint64_t resumes);
void lane_ask_for_credits(struct rf_lane *lane);

/* lane_carry.c */
int carry_begin(struct rf_lane *lane);
void carry_end(struct rf_lane *lane);
/* Copies the request into the queue; on failure it is answered. */
void lane_carry(struct rf_lane *lane, const uint8_t *head, uint64_t nbytes, uint32_t way,
                uint8_t *const *cells);
/* false: out of memory. */
bool carry_released(struct rf_lane *lane, uint64_t ino);

/* lane_forward.c */
void lane_forward(struct worker *worker);
void *returner_main(void *lane);
void *notifier_main(void *lane);
void notifier_end(struct rf_lane *lane);

/* lane_init.c */
/* The request, before it is forwarded. */
void init_request(struct rf_lane *lane, uint8_t *head, uint64_t nbytes);
/* The answer (fuse_init_out); its new length, for which there is room. */
uint64_t init_answer(struct rf_lane *lane, uint8_t *body, uint64_t nbytes);

/* lane_open.c */
/* Whether a request opens a file with O_DIRECT. */
bool open_is_direct(const uint8_t *head, uint64_t nbytes);
/* The answer to it. */
void open_answer(struct rf_lane *lane, uint32_t opcode, uint8_t *body, uint64_t nbytes);

/* lane_serve.c */
void lane_serve(struct worker *worker);

/* lane_read.c */
enum outcome serve_read(struct worker *worker);
int64_t lane_now_ns(void);

/* lane_write.c */
enum outcome serve_write(struct worker *worker);
/* Tries a WRITE that was held; it is gone then. False: it lacks credits and is still the caller's.
 * `buffer` is for a scattered payload. */
bool held_try(struct held_write *held, struct read_buffer *buffer);
/* Carries it; it is gone then. */
void held_carry(struct held_write *held);
void held_free(struct held_write *held);

/* lane_attributes.c */
enum outcome serve_getattr(struct worker *worker);
enum outcome serve_lookup(struct worker *worker);
enum outcome serve_getxattr(struct worker *worker);
enum outcome serve_listxattr(struct worker *worker);
enum outcome serve_forget(struct worker *worker);
enum outcome serve_batch_forget(struct worker *worker);
enum outcome serve_release(struct worker *worker);

#endif
