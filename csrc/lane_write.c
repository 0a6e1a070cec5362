/* lane_write.c: WRITEs to files that Python vouches for, as long as there are credits.
 *
 *  1. Whole pages are not copied: the cells they landed in become the file's.
 *  2. A write and its answer happen inside the gate, so that a cut has both or neither. What the
 *     write needs from members is fetched before.
 *  3. Without credits a WRITE is parked; one whose bases must be waited for is held by the engine.
 *     Either takes its cells along, and the worker goes on with others. Whatever else is in the way
 *     makes it Python's business.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lane_inner.h"

/* A WRITE to be tried, wherever it lies. */
struct write {
    struct rf_lane *lane;
    const uint8_t *head;
    uint8_t **cells;
    uint32_t way;
    struct read_buffer *buffer; /* for a scattered payload */
    struct bases *bases;
};

static const struct fuse_write_in *write_of(const uint8_t *head)
{
    return body_of(head);
}

/* ---- into the pages ---- */

/* The payload in one piece. */
static const uint8_t *contiguous(const struct write *write, uint32_t nbytes)
{
    uint32_t cell_bytes = write->lane->setup.cell_bytes;
    if (nbytes <= cell_bytes)
        return write->cells[0];
    for (uint32_t done = 0, i = 0; done < nbytes; done += cell_bytes, i++)
        memcpy(write->buffer->out + done, write->cells[i],
               nbytes - done < cell_bytes ? nbytes - done : cell_bytes);
    return write->buffer->out;
}

static void account(struct rf_lane *lane, uint32_t nbytes, uint64_t added)
{
    count(&tally(lane)->bytes_written, nbytes);
    if (added == 0)
        return;
    count(&tally(lane)->credits_spent, added);
    uint64_t spent = atomic_fetch_add(&lane->spent_lately, added) + added;
    if (lane->setup.ask_cells > 0 && spent >= lane->setup.ask_cells)
        lane_ask_for_credits(lane);
}

/* Once, with the bases there are. Cells made dirty, or an error of rf_pages_lane_write. */
static int64_t try_once(const struct write *write)
{
    struct rf_lane *lane = write->lane;
    struct rf_pages *pages = lane->setup.pages;
    const struct fuse_in_header *in = header_of(write->head);
    const struct fuse_write_in *what = write_of(write->head);
    const struct rf_base *bases = write->bases->known;
    uint32_t bases_count = write->bases->count, cell_bytes = lane->setup.cell_bytes;
    bool put = what->size >= cell_bytes && (what->offset & (cell_bytes - 1)) == 0;
    const uint8_t *data = put ? NULL : contiguous(write, what->size);
    struct fuse_write_out out = {.size = what->size};
    int64_t added, now_ns = lane_now_ns();
    rf_gate_enter(lane->setup.gate);
    if (put)
        added = rf_pages_lane_put(pages, in->nodeid, what->offset, what->size, write->cells, now_ns,
                                  bases, bases_count);
    else
        added = rf_pages_lane_write(pages, in->nodeid, what->offset, data, what->size, now_ns,
                                    bases, bases_count);
    if (added >= 0)
        lane_answer_inside(lane, write->way, in->unique, 0, &out, sizeof(out));
    rf_gate_leave(lane->setup.gate);
    if (added >= 0) {
        count(&tally(lane)->writes_put, put);
        account(lane, what->size, (uint64_t)added);
    }
    return added;
}

/* ---- what members have of its pages ---- */

static bool bases_have_room(struct rf_lane *lane, struct bases *bases)
{
    if (!bases->bytes)
        bases->bytes = aligned_alloc(4096, (size_t)BASES_MAX * lane->setup.cell_bytes);
    return bases->bytes != NULL;
}

/* 0, -EWOULDBLOCK (only if `nowait`), or another error: Python must do it. */
static int fetch_bases(const struct write *write, bool nowait)
{
    struct rf_lane *lane = write->lane;
    struct bases *bases = write->bases;
    const struct fuse_write_in *what = write_of(write->head);
    uint64_t indexes[BASES_MAX];
    uint8_t known[BASES_MAX];
    bases->count = 0;
    bases->forgets = rf_columns_forgets(lane->setup.columns);
    int pages = rf_pages_lane_missing(lane->setup.pages, header_of(write->head)->nodeid,
                                      what->offset, what->size, indexes, bases->addresses, known);
    if (pages <= 0)
        return pages;
    if (!bases_have_room(lane, bases))
        return -ENOMEM;
    for (int i = 0; i < pages; i++) {
        if (!known[i])
            return -ENOENT;
        bases->known[i] =
            (struct rf_base){.index = indexes[i],
                             .bytes = bases->bytes + (size_t)i * lane->setup.cell_bytes,
                             .address = bases->addresses[i]};
    }
    bases->count = (uint32_t)pages;
    int result =
        rf_columns_read(lane->setup.columns, bases->addresses, bases->count, bases->bytes, nowait);
    if (result == 0)
        count(&tally(lane)->bases_read, bases->count);
    if (result == 0 && rf_columns_forgets(lane->setup.columns) != bases->forgets)
        bases->count = 0; /* not to be believed; will be looked up again */
    return result;
}

/* Cells made dirty; -EDQUOT: no credits; -EWOULDBLOCK; else it is Python's. */
static int64_t try_with_bases(const struct write *write, bool nowait)
{
    for (int tries = 0; tries < TRIES_MAX; tries++) {
        int64_t added = try_once(write);
        if (added != -EAGAIN)
            return added == -EWOULDBLOCK ? -EIO : added;
        int result = fetch_bases(write, nowait);
        if (result < 0)
            return result == -EWOULDBLOCK ? result : -EIO;
    }
    return -EIO;
}

/* ---- WRITEs that wait ---- */

/* Takes the worker's request over, with its cells and bases. NULL: out of memory. */
static struct held_write *hold(struct worker *worker)
{
    struct rf_lane *lane = worker->lane;
    struct request *request = &worker->request;
    uint32_t used = lane_cells_used(lane, request->nbytes);
    struct held_write *held = malloc(sizeof(*held) + used * sizeof(uint8_t *));
    if (!held)
        return NULL;
    *held = (struct held_write){.lane = lane,
                                .nbytes = request->nbytes,
                                .way = request->way,
                                .cells_count = used,
                                .bases = worker->bases};
    worker->bases = (struct bases){.count = 0};
    memcpy(held->head, request->head, HEAD_BYTES);
    memcpy(held->cells, request->cells, used * sizeof(uint8_t *));
    memset(request->cells, 0, used * sizeof(uint8_t *));
    return held;
}

void held_free(struct held_write *held)
{
    rf_pages_cells_give(held->lane->setup.pages, held->cells_count, held->cells);
    free(held->bases.bytes);
    free(held);
}

void held_carry(struct held_write *held)
{
    lane_carry(held->lane, held->head, held->nbytes, held->way, held->cells);
    held_free(held);
}

bool held_try(struct held_write *held, struct read_buffer *buffer)
{
    struct write write = {held->lane, held->head, held->cells, held->way, buffer, &held->bases};
    int64_t added = try_with_bases(&write, false);
    if (added == -EDQUOT)
        return false;
    if (added >= 0) {
        count_opcode(tally(held->lane)->served, FUSE_WRITE);
        held_free(held);
    } else {
        held_carry(held);
    }
    return true;
}

/* Python is to make the WRITE, while its bases are still being read into. */
static void held_give_up(struct held_write *held)
{
    lane_carry(held->lane, held->head, held->nbytes, held->way, held->cells);
    rf_pages_cells_give(held->lane->setup.pages, held->cells_count, held->cells);
    held->cells_count = 0;
}

static void bases_done(void *context, int result)
{
    struct held_write *held = context;
    if (result == -ECANCELED) { /* given up before; there may be no lane any more */
        free(held->bases.bytes);
        free(held);
        return;
    }
    struct rf_lane *lane = held->lane;
    if (result == -ETIMEDOUT) {
        held_give_up(held);
    } else if (result < 0) {
        held_carry(held);
    } else {
        count(&tally(lane)->bases_read, held->bases.count);
        if (rf_columns_forgets(lane->setup.columns) != held->bases.forgets)
            held->bases.count = 0;
        servant_try(held);
    }
    atomic_fetch_sub(&lane->in_engine, 1);
}

static void wait_for_bases(struct held_write *held)
{
    struct rf_lane *lane = held->lane;
    atomic_fetch_add(&lane->in_engine, 1);
    if (rf_columns_read_start(lane->setup.columns, lane->setup.engine, held->bases.addresses,
                              held->bases.count, held->bases.bytes, bases_done, held) < 0) {
        held_carry(held);
        atomic_fetch_sub(&lane->in_engine, 1);
    }
}

enum outcome serve_write(struct worker *worker)
{
    struct rf_lane *lane = worker->lane;
    struct request *request = &worker->request;
    const struct fuse_write_in *what = write_of(request->head);
    if (what->size != request->nbytes - HEAD_BYTES || what->size > lane->setup.max_write ||
        what->offset > INT64_MAX) {
        lane_refuse(lane, header_of(request->head), request->way, EINVAL);
        return COUNTED;
    }
    if (what->size == 0 || what->offset > (uint64_t)INT64_MAX - what->size)
        return CARRY;
    uint64_t resumes = servant_resumes(lane);
    bool others_wait = atomic_load(&lane->servant.parked_count) > 0;
    struct write write = {lane,         request->head,  request->cells,
                          request->way, worker->buffer, &worker->bases};
    worker->bases.count = 0;
    int64_t added = others_wait ? -EDQUOT : try_with_bases(&write, lane->setup.engine != NULL);
    if (added >= 0)
        return DONE;
    if (added != -EDQUOT && added != -EWOULDBLOCK)
        return CARRY;
    struct held_write *held = hold(worker);
    if (!held)
        return CARRY;
    if (added == -EDQUOT)
        servant_park(held, others_wait, resumes);
    else
        wait_for_bases(held);
    return COUNTED;
}
