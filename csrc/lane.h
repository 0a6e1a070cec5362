/* lane.h: the lane: between the kernel's requests and whoever answers them.
 *
 * It owns the FUSE device. Of each request one of three things happens:
 *   served     answered here, by threads of its own, from what Python has vouched for
 *   carried    put into a queue for Python (rf_lane_take), which answers by rf_lane_reply
 *   forwarded  sent unchanged through a SEQPACKET socket to a FUSE library, which takes the socket
 *              for the device; its answers come back the same way
 * All answers leave under the gate. What is promised stands at the head of lane.c.
 *
 * Any thread may call any function at any time, but rf_lane_start, rf_lane_stop and rf_lane_free
 * one after the other. Functions that return int return 0 or more, or a negative errno.
 */
#ifndef RAIDFS_LANE_H
#define RAIDFS_LANE_H

#include <stdint.h>

struct rf_pages;
struct rf_columns;
struct rf_known;
struct rf_gate;
struct rf_engine;
struct rf_lane;

/* What may be served; requests of which the bit is not set are carried or forwarded. */
enum {
    RF_LANE_READ = 1,
    RF_LANE_WRITE = 2,
    RF_LANE_GETATTR = 4,
    RF_LANE_LOOKUP = 8,
    RF_LANE_FORGET = 16,
    RF_LANE_RELEASE = 32, /* and RELEASEDIR: answered at once, Python is told (rf_lane_released) */
    RF_LANE_FLUSH = 64,   /* answered ENOSYS, so that the kernel doesn't ask again */
    RF_LANE_XATTR = 128,  /* GETXATTR and LISTXATTR of inodes that have none */
};

enum { RF_LANE_THREADS_MAX = 64, RF_LANE_OPCODES = 64 };

struct rf_lane_setup {
    struct rf_pages *pages; /* all of these outlive the lane */
    struct rf_columns *columns;
    struct rf_known *known;
    struct rf_gate *gate;
    struct rf_engine *engine; /* NULL: reads of members block a thread of the lane */
    uint32_t cell_bytes;
    uint32_t max_write; /* of one request, READ or WRITE; a multiple of 4096 and of cell_bytes */
    uint32_t max_background;
    uint32_t max_readahead; /* 0: what the kernel offers */
    uint64_t init_add;      /* flags of the answer to INIT, flags2 above flags: set, if offered */
    uint64_t init_remove;   /* taken away */
    uint64_t cache_ns;      /* for how long the kernel may keep names and attributes */
    uint64_t fleeting_ino;  /* but not the attributes of this inode, nor the names in it; 0: none */
    uint64_t carry;         /* bit per opcode: carried, where it isn't served */
    uint32_t serve;         /* RF_LANE_... */
    uint32_t ask_cells;     /* rf_lane_wants says so each time this many credits were spent */
};

struct rf_request {
    uint64_t id;     /* for rf_lane_reply */
    uint64_t unique; /* the kernel's number of it */
    uint64_t nbytes;
    const uint8_t *bytes; /* fuse_in_header and all that follows it, contiguous */
    uint32_t opcode;
    uint32_t padding;
};

struct rf_lane_statistics {
    uint64_t served[64]; /* by opcode; [63]: all opcodes from there up */
    uint64_t carried[64];
    uint64_t forwarded[64];
    uint64_t bytes_read; /* by READs and WRITEs served */
    uint64_t bytes_written;
    uint64_t reads_memory; /* READs served of which nothing had to come from members */
    uint64_t reads_engine; /* that waited for members in the engine */
    uint64_t writes_put;   /* WRITEs served of which no byte was copied */
    uint64_t bases_read;   /* pages of which the old content was read for a WRITE */
    uint64_t parked;       /* WRITEs that waited for credits, ever */
    uint64_t parked_now;
    uint64_t carried_now; /* taken or not, unanswered */
    uint64_t queued;      /* answers that had to wait for the gate in a queue */
    uint64_t refused;     /* requests that made no sense */
    uint64_t lost;        /* answers that the device didn't take */
    uint64_t notified;    /* notifications passed to the kernel */
    uint64_t credits_spent;
};

/* NULL: out of memory, or a setup that makes no sense. */
struct rf_lane *rf_lane_new(const struct rf_lane_setup *setup);
/* Begins: one thread per descriptor of the device (the first and its clones; any SEQPACKET socket
 * may play the device). `socket_fd`: this side of the pair to the FUSE library. All descriptors
 * stay the caller's, to be closed after rf_lane_stop. Once. */
int rf_lane_start(struct rf_lane *lane, const int *device_fds, uint32_t count, int socket_fd);
/* A descriptor of the same mount, to be read by another thread. */
int rf_lane_clone(int device_fd);
/* Ends all threads. What is unanswered stays so, and later answers are dropped. Not while the gate
 * is shut. */
void rf_lane_stop(struct rf_lane *lane);
/* Stopped, or never started. */
void rf_lane_free(struct rf_lane *lane);

/* ---- for Python ---- */

/* Readable when there is something to do that somebody waits for; not blocking; reading it resets
 * it. After that ask all of these until they say that there is no more: rf_lane_take,
 * rf_lane_released, rf_lane_wants, rf_known_unreferenced, rf_lane_ended. The lane's; closed by
 * rf_lane_free. */
int rf_lane_eventfd(struct rf_lane *lane);
/* The same for rf_lane_released and rf_known_unreferenced, which nobody waits for: readable some
 * milliseconds later, so that one who asks meanwhile anyway is spared it. */
int rf_lane_late_fd(struct rf_lane *lane);
/* The next carried request: 1, or 0: there is none. Its bytes are valid until its reply. */
int rf_lane_take(struct rf_lane *lane, struct rf_request *request);
/* Answers a carried request: `error` is 0 or a positive errno, then without data. The answer leaves
 * at once or, where the gate is shut, when it is opened; this never waits for that. One that the
 * kernel wants no answer to (FORGET) is just forgotten; one to an open with O_DIRECT gets the flags
 * for that. -ENOENT: there is no such request;
 * -EINVAL: no such errno; -ENOMEM (where the gate is shut): try again. */
int rf_lane_reply(struct rf_lane *lane, uint64_t id, int32_t error, const uint8_t *data,
                  uint64_t nbytes);
/* Inodes of files and directories RELEASEd by the kernel, one for each open: how many. */
uint32_t rf_lane_released(struct rf_lane *lane, uint64_t *inos, uint32_t room);
/* 1 if WRITEs are parked (then `cells` is at most how many credits they need) or `ask_cells`
 * credits have been spent since the last call; else 0. */
int rf_lane_wants(struct rf_lane *lane, uint64_t *cells);
/* Parked WRITEs are tried again, on a thread of the lane; those still without credits ask again at
 * once, so call this only after some were granted. */
void rf_lane_resume(struct rf_lane *lane);
/* Parked WRITEs are carried. */
void rf_lane_pass_on(struct rf_lane *lane);
/* 1: the filesystem is unmounted, no more requests will come. */
int rf_lane_ended(struct rf_lane *lane);
/* Hands the kernel a notification (fuse_out_header with unique 0 and what follows it) and returns
 * when the kernel is through with it: invalidating an inode waits for its dirty pages, so that
 * requests must go on being answered meanwhile, and this is for threads that nobody waits for. */
int rf_lane_notify(struct rf_lane *lane, const uint8_t *bytes, uint64_t nbytes);

void rf_lane_statistics(struct rf_lane *lane, struct rf_lane_statistics *out);

#endif
