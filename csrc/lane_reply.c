/* lane_reply.c: answers: through the gate, to the descriptor that the request came by.
 *
 *  1. An answer leaves inside the gate. Who can't wait for the gate leaves it to the servant.
 *  2. After rf_lane_stop nothing is written any more, since the descriptors may be others' then.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lane_inner.h"

bool lane_one_way(uint32_t opcode)
{
    return opcode == FUSE_FORGET || opcode == FUSE_BATCH_FORGET || opcode == FUSE_NOTIFY_REPLY;
}

int lane_answer_inside(struct rf_lane *lane, uint32_t way, uint64_t unique, int32_t error,
                       const void *data, uint64_t nbytes)
{
    struct fuse_out_header out = {
        .len = (uint32_t)(sizeof(out) + nbytes), .error = -error, .unique = unique};
    struct iovec parts[ANSWER_PARTS] = {{&out, sizeof(out)}, {(void *)(uintptr_t)data, nbytes}};
    if (atomic_load_explicit(&lane->stopped, memory_order_relaxed))
        return -ESHUTDOWN;
    int result = lane->transport->reply(lane, way, parts, nbytes > 0 ? 2 : 1);
    if (result < 0)
        count(&tally(lane)->lost, 1);
    return result;
}

int lane_answer(struct rf_lane *lane, uint32_t way, uint64_t unique, int32_t error,
                const void *data, uint64_t nbytes)
{
    rf_gate_enter(lane->setup.gate);
    int result = lane_answer_inside(lane, way, unique, error, data, nbytes);
    rf_gate_leave(lane->setup.gate);
    return result;
}

int lane_answer_soon(struct rf_lane *lane, uint32_t way, uint64_t unique, int32_t error,
                     const void *data, uint64_t nbytes)
{
    if (rf_gate_try_enter(lane->setup.gate)) {
        int result = lane_answer_inside(lane, way, unique, error, data, nbytes);
        rf_gate_leave(lane->setup.gate);
        return result == -ENOMEM ? -EIO : result; /* what the device said is not about us */
    }
    struct answer *answer = malloc(sizeof(*answer) + nbytes);
    if (!answer)
        return -ENOMEM;
    *answer = (struct answer){.nbytes = nbytes, .unique = unique, .error = error, .way = way};
    if (nbytes > 0)
        memcpy(answer->bytes, data, nbytes);
    servant_queue_answer(lane, answer);
    return 0;
}

void lane_answer_read_soon(struct read_buffer *buffer)
{
    struct rf_lane *lane = buffer->lane;
    uint64_t unique = header_of(buffer->head)->unique;
    if (rf_gate_try_enter(lane->setup.gate)) {
        lane_answer_inside(lane, buffer->way, unique, 0, buffer->out + buffer->offset,
                           buffer->nbytes);
        rf_gate_leave(lane->setup.gate);
        lane_buffer_give(buffer);
        return;
    }
    buffer->answer = (struct answer){
        .buffer = buffer, .nbytes = buffer->nbytes, .unique = unique, .way = buffer->way};
    servant_queue_answer(lane, &buffer->answer);
}

void lane_refuse(struct rf_lane *lane, const struct fuse_in_header *in, uint32_t way, int error)
{
    count(&tally(lane)->refused, 1);
    if (!lane_one_way(in->opcode))
        lane_answer(lane, way, in->unique, error, NULL, 0);
}
