/* lane_read.c: READs of files that Python vouches for.
 *
 *  1. What is in memory is answered at once. What isn't is read from members: from the kernel's
 * page cache at once, else by the engine, which answers when it has it, so that no worker waits.
 *  2. What was read from a cell is believed only if no zone was forgotten since the cell's address
 *     was looked up: its place might have been given to another file meanwhile.
 *  3. Whatever is unusual is carried to Python, also what a member doesn't answer in time: its
 *     buffer is freed when the member has answered.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "lane_inner.h"

int64_t lane_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* How many of the pages must be read from members; they are the first `count` then. */
static uint32_t pages_elsewhere(const struct rf_lane *lane, struct read_buffer *buffer)
{
    if (buffer->nbytes == 0)
        return 0;
    uint32_t pages = (uint32_t)((buffer->offset + buffer->nbytes + lane->setup.cell_bytes - 1) /
                                lane->setup.cell_bytes);
    while (pages > 0 && buffer->addresses[pages - 1] == 0)
        pages--;
    return pages;
}

/* Fills the buffer with what memory knows of the pages. */
static int64_t look_up(struct rf_lane *lane, struct read_buffer *buffer, uint64_t ino,
                       const struct fuse_read_in *read)
{
    int64_t nbytes =
        rf_pages_lane_read(lane->setup.pages, ino, read->offset, read->size, lane_now_ns(),
                           buffer->out, buffer->addresses, lane->buffer_pages);
    buffer->offset = read->offset & (lane->setup.cell_bytes - 1);
    buffer->nbytes = nbytes > 0 ? (uint64_t)nbytes : 0;
    return nbytes;
}

static void read_done(void *context, int result)
{
    struct read_buffer *buffer = context;
    if (result == -ECANCELED) { /* given up before; there may be no lane any more */
        lane_buffer_free(buffer);
        return;
    }
    struct rf_lane *lane = buffer->lane;
    if (result == 0 && rf_columns_forgets(lane->setup.columns) == buffer->forgets) {
        count_opcode(tally(lane)->served, FUSE_READ);
        count(&tally(lane)->bytes_read, buffer->nbytes);
        lane_answer_read_soon(buffer);
    } else {
        lane_carry(lane, buffer->head, sizeof(buffer->head), buffer->way, NULL);
        if (result != -ETIMEDOUT) /* else it is still being read into */
            lane_buffer_give(buffer);
    }
    atomic_fetch_sub(&lane->in_engine, 1);
}

/* Leaves the worker's buffer to the engine. */
static enum outcome read_by_engine(struct worker *worker, uint32_t pages)
{
    struct rf_lane *lane = worker->lane;
    struct read_buffer *buffer = worker->buffer, *other = lane_buffer_take(lane);
    if (!other)
        return CARRY;
    buffer->way = worker->request.way;
    memcpy(buffer->head, worker->request.head, sizeof(buffer->head));
    atomic_fetch_add(&lane->in_engine, 1);
    worker->buffer = other;
    count(&tally(lane)->reads_engine, 1);
    if (rf_columns_read_start(lane->setup.columns, lane->setup.engine, buffer->addresses, pages,
                              buffer->out, read_done, buffer) == 0)
        return COUNTED;
    atomic_fetch_sub(&lane->in_engine, 1);
    lane_buffer_give(buffer);
    return CARRY;
}

enum outcome serve_read(struct worker *worker)
{
    struct rf_lane *lane = worker->lane;
    struct request *request = &worker->request;
    struct read_buffer *buffer = worker->buffer;
    const struct fuse_in_header *in = header_of(request->head);
    const struct fuse_read_in *read = body_of(request->head);
    if (read->offset > INT64_MAX || read->size > lane->setup.max_write) {
        lane_refuse(lane, in, request->way, EINVAL);
        return COUNTED;
    }
    for (int tries = 0; tries < TRIES_MAX; tries++) {
        buffer->forgets = rf_columns_forgets(lane->setup.columns);
        if (look_up(lane, buffer, in->nodeid, read) < 0)
            return CARRY;
        uint32_t pages = pages_elsewhere(lane, buffer);
        if (pages > 0) {
            int result = rf_columns_read(lane->setup.columns, buffer->addresses, pages, buffer->out,
                                         lane->setup.engine != NULL);
            if (result == -EWOULDBLOCK)
                return read_by_engine(worker, pages);
            if (result < 0)
                return CARRY;
            if (rf_columns_forgets(lane->setup.columns) != buffer->forgets)
                continue;
        } else {
            count(&tally(lane)->reads_memory, 1);
        }
        count(&tally(lane)->bytes_read, buffer->nbytes);
        lane_answer(lane, request->way, in->unique, 0, buffer->out + buffer->offset,
                    buffer->nbytes);
        return DONE;
    }
    return CARRY;
}
