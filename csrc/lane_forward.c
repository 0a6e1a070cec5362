/* lane_forward.c: requests to the FUSE library through its socket, and its answers back.
 *
 *  1. Requests are forwarded unchanged but for three things: the unused bits of `unique` say where
 *     the answer belongs; INIT offers no splicing, which a socket can't do; a directory isn't asked
 *     for in larger parts than the socket takes in one message.
 *  2. Answers are changed for INIT and (as those of Python are) for opens with O_DIRECT only.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "lane_inner.h"

/* A forwarded `unique`: the kernel's own in the low bits. */
enum { OPCODE_SHIFT = 48, WAY_SHIFT = 56, DIRECT_SHIFT = 62, OPCODE_MAX = 255 };
static const uint64_t UNIQUE_MASK = (1ull << OPCODE_SHIFT) - 1;

enum { LIBRARY_ROOM = 1 << 20 }; /* of an answer, at least */

/* ---- there ---- */

static void limit_listing(struct rf_lane *lane, uint8_t *head, uint64_t nbytes)
{
    struct fuse_read_in *read = (struct fuse_read_in *)(head + sizeof(struct fuse_in_header));
    if (nbytes >= sizeof(struct fuse_in_header) + sizeof(*read) &&
        read->size > lane->library_bytes_max - sizeof(struct fuse_out_header))
        read->size = lane->library_bytes_max - sizeof(struct fuse_out_header);
}

static int send_request(struct worker *worker)
{
    struct rf_lane *lane = worker->lane;
    struct request *request = &worker->request;
    uint64_t nbytes = request->nbytes;
    uint32_t used = lane_cells_used(lane, nbytes);
    struct iovec *last = worker->vectors + used, before = *last;
    last->iov_len = nbytes <= HEAD_BYTES
                        ? nbytes
                        : nbytes - HEAD_BYTES - (uint64_t)(used - 1) * lane->setup.cell_bytes;
    struct msghdr message = {.msg_iov = worker->vectors, .msg_iovlen = used + 1};
    ssize_t sent;
    do
        sent = sendmsg(lane->socket_fd, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR && !lane_stopping(lane));
    *last = before;
    return sent < 0 ? -errno : 0;
}

void lane_forward(struct worker *worker)
{
    struct rf_lane *lane = worker->lane;
    struct request *request = &worker->request;
    struct fuse_in_header *in = (struct fuse_in_header *)request->head;
    const struct fuse_in_header original = *in;
    if (in->opcode > OPCODE_MAX || (in->unique & ~UNIQUE_MASK)) {
        lane_refuse(lane, in, request->way, in->opcode > OPCODE_MAX ? ENOSYS : EIO);
        return;
    }
    if (in->opcode == FUSE_INIT)
        init_request(lane, request->head, request->nbytes);
    else if (in->opcode == FUSE_READDIR || in->opcode == FUSE_READDIRPLUS)
        limit_listing(lane, request->head, request->nbytes);
    uint64_t direct = open_is_direct(request->head, request->nbytes);
    in->unique |= (uint64_t)in->opcode << OPCODE_SHIFT | (uint64_t)request->way << WAY_SHIFT |
                  direct << DIRECT_SHIFT;
    if (send_request(worker) == 0)
        count_opcode(tally(lane)->forwarded, original.opcode);
    else
        lane_refuse(lane, &original, request->way, EIO);
}

/* ---- and back ---- */

static void queue_notice(struct rf_lane *lane, const uint8_t *bytes, uint64_t nbytes)
{
    struct notifier *notifier = &lane->notifier;
    struct notice *notice = malloc(sizeof(*notice) + nbytes);
    if (!notice) {
        count(&tally(lane)->lost, 1);
        return;
    }
    notice->next = NULL;
    notice->nbytes = nbytes;
    memcpy(notice->bytes, bytes, nbytes);
    pthread_mutex_lock(&notifier->mutex);
    *notifier->last = notice;
    notifier->last = &notice->next;
    pthread_cond_signal(&notifier->wanted);
    pthread_mutex_unlock(&notifier->mutex);
}

/* There is room behind the message for a longer one. */
static void give_back(struct rf_lane *lane, uint8_t *bytes, uint64_t nbytes)
{
    struct fuse_out_header *out = (struct fuse_out_header *)bytes;
    uint8_t *body = bytes + sizeof(*out);
    uint64_t body_bytes = nbytes - sizeof(*out), unique = out->unique & UNIQUE_MASK;
    uint32_t opcode = (uint32_t)(out->unique >> OPCODE_SHIFT) & OPCODE_MAX;
    uint32_t way = (uint32_t)(out->unique >> WAY_SHIFT) % RF_LANE_THREADS_MAX;
    if (way >= lane->ways_count) {
        count(&tally(lane)->lost, 1);
        return;
    }
    if (out->error > 0 || out->error < -ERRNO_MAX || out->len != nbytes)
        out->error = -EIO;
    if (out->error != 0)
        body_bytes = 0;
    if (out->error == 0 && opcode == FUSE_INIT)
        body_bytes = init_answer(lane, body, body_bytes);
    else if (out->error == 0 && (out->unique >> DIRECT_SHIFT & 1))
        open_answer(lane, opcode, body, body_bytes);
    if (lane_answer_soon(lane, way, unique, -out->error, body, body_bytes) == -ENOMEM)
        lane_answer(lane, way, unique, -out->error, body, body_bytes);
}

void *returner_main(void *argument)
{
    struct rf_lane *lane = argument;
    uint64_t room = sizeof(struct fuse_out_header) + LIBRARY_ROOM + lane->setup.max_write;
    uint8_t *bytes = malloc(room);
    ENSURE(bytes);
    while (!lane_stopping(lane)) {
        ssize_t nbytes = recv(lane->socket_fd, bytes, room, MSG_TRUNC);
        if (nbytes < 0 && errno == EINTR)
            continue;
        if (nbytes <= 0)
            break;
        const struct fuse_out_header *out = (const struct fuse_out_header *)bytes;
        if ((uint64_t)nbytes < sizeof(*out))
            count(&tally(lane)->lost, 1);
        else if (out->unique != 0)
            give_back(lane, bytes, (uint64_t)nbytes);
        else if ((uint64_t)nbytes <= room)
            queue_notice(lane, bytes, (uint64_t)nbytes);
        else
            count(&tally(lane)->lost, 1);
    }
    free(bytes);
    atomic_store(&lane->returner.ended, true);
    return NULL;
}

/* ---- notifications ---- */

int rf_lane_notify(struct rf_lane *lane, const uint8_t *bytes, uint64_t nbytes)
{
    struct iovec part = {(void *)(uintptr_t)bytes, nbytes};
    if (!lane->started || atomic_load(&lane->stopped))
        return -ESHUTDOWN;
    int result = lane->transport->reply(lane, 0, &part, 1);
    count(&tally(lane)->notified, 1);
    return result;
}

void *notifier_main(void *argument)
{
    struct rf_lane *lane = argument;
    struct notifier *notifier = &lane->notifier;
    pthread_mutex_lock(&notifier->mutex);
    while (!atomic_load(&notifier->crew.stopping)) {
        struct notice *notice = notifier->first;
        if (!notice) {
            pthread_cond_wait(&notifier->wanted, &notifier->mutex);
            continue;
        }
        if (!(notifier->first = notice->next))
            notifier->last = &notifier->first;
        pthread_mutex_unlock(&notifier->mutex);
        rf_lane_notify(lane, notice->bytes, notice->nbytes);
        free(notice);
        pthread_mutex_lock(&notifier->mutex);
    }
    pthread_mutex_unlock(&notifier->mutex);
    atomic_store(&notifier->crew.ended, true);
    return NULL;
}

void notifier_end(struct rf_lane *lane)
{
    for (struct notice *notice = lane->notifier.first, *next; notice; notice = next) {
        next = notice->next;
        free(notice);
    }
    pthread_mutex_destroy(&lane->notifier.mutex);
    pthread_cond_destroy(&lane->notifier.wanted);
}
