/* lane_serve.c: what happens with each request.
 *
 *  1. No request is believed that is longer or shorter than it says or than its kind can be.
 *  2. What isn't served is carried, if the setup says so of its kind, else forwarded.
 */
#include <errno.h>

#include "lane_inner.h"

/* Bytes that a request of a kind has at least after the header; of those read here or in Python
 * without another look. */
static uint64_t body_bytes_min(uint32_t opcode)
{
    switch (opcode) {
    case FUSE_LOOKUP:
        return 2; /* a name and its end */
    case FUSE_FORGET:
        return sizeof(struct fuse_forget_in);
    case FUSE_BATCH_FORGET:
        return sizeof(struct fuse_batch_forget_in);
    case FUSE_GETATTR:
        return sizeof(struct fuse_getattr_in);
    case FUSE_GETXATTR:
        return sizeof(struct fuse_getxattr_in) + 2; /* a name and its end */
    case FUSE_LISTXATTR:
        return sizeof(struct fuse_getxattr_in);
    case FUSE_READ:
    case FUSE_READDIR:
    case FUSE_READDIRPLUS:
        return sizeof(struct fuse_read_in);
    case FUSE_WRITE:
        return sizeof(struct fuse_write_in);
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR:
        return sizeof(struct fuse_release_in);
    default:
        return 0;
    }
}

static bool makes_sense(const struct request *request)
{
    const struct fuse_in_header *in = header_of(request->head);
    uint64_t extension_bytes = (uint64_t)in->total_extlen * 8;
    return in->len == request->nbytes &&
           request->nbytes >= sizeof(*in) + extension_bytes + body_bytes_min(in->opcode);
}

static enum outcome answered(struct worker *worker, int32_t error)
{
    const struct fuse_in_header *in = header_of(worker->request.head);
    lane_answer(worker->lane, worker->request.way, in->unique, error, NULL, 0);
    return DONE;
}

static enum outcome not_served(const struct rf_lane *lane, uint32_t opcode)
{
    return opcode < RF_LANE_OPCODES && (lane->setup.carry >> opcode & 1) ? CARRY : FORWARD;
}

static enum outcome serve(struct worker *worker)
{
    const struct rf_lane *lane = worker->lane;
    uint32_t opcode = header_of(worker->request.head)->opcode, bits = lane->setup.serve;
    enum outcome outcome = FORWARD; /* whatever isn't served: see below */
    switch (opcode) {
    case FUSE_READ:
        outcome = bits & RF_LANE_READ ? serve_read(worker) : FORWARD;
        break;
    case FUSE_WRITE:
        outcome = bits & RF_LANE_WRITE ? serve_write(worker) : FORWARD;
        break;
    case FUSE_GETATTR:
        outcome = bits & RF_LANE_GETATTR ? serve_getattr(worker) : FORWARD;
        break;
    case FUSE_LOOKUP:
        outcome = bits & RF_LANE_LOOKUP ? serve_lookup(worker) : FORWARD;
        break;
    case FUSE_GETXATTR:
        outcome = bits & RF_LANE_XATTR ? serve_getxattr(worker) : FORWARD;
        break;
    case FUSE_LISTXATTR:
        outcome = bits & RF_LANE_XATTR ? serve_listxattr(worker) : FORWARD;
        break;
    case FUSE_FORGET:
        outcome = bits & RF_LANE_FORGET ? serve_forget(worker) : FORWARD;
        break;
    case FUSE_BATCH_FORGET:
        outcome = bits & RF_LANE_FORGET ? serve_batch_forget(worker) : FORWARD;
        break;
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR:
        outcome = bits & RF_LANE_RELEASE ? serve_release(worker) : FORWARD;
        break;
    case FUSE_FLUSH:
        outcome = bits & RF_LANE_FLUSH ? answered(worker, ENOSYS) : FORWARD;
        break;
    case FUSE_INTERRUPT: /* nothing takes so long; the kernel never asks again */
        outcome = answered(worker, ENOSYS);
        break;
    case FUSE_DESTROY: /* the library ends with its socket */
        outcome = answered(worker, 0);
        break;
    }
    return outcome == FORWARD ? not_served(lane, opcode) : outcome;
}

void lane_serve(struct worker *worker)
{
    struct rf_lane *lane = worker->lane;
    struct request *request = &worker->request;
    const struct fuse_in_header *in = header_of(request->head);
    if (request->nbytes < sizeof(*in)) {
        count(&tally(lane)->refused, 1);
        return;
    }
    if (!makes_sense(request)) {
        lane_refuse(lane, in, request->way, EINVAL);
        return;
    }
    uint32_t opcode = in->opcode;
    switch (serve(worker)) {
    case DONE:
        count_opcode(tally(lane)->served, opcode);
        break;
    case COUNTED: /* refused, or held: then counted when it is known what becomes of it */
        break;
    case CARRY:
        lane_carry(lane, request->head, request->nbytes, request->way, request->cells);
        break;
    case FORWARD:
        lane_forward(worker);
        break;
    }
}
