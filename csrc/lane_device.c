/* lane_device.c: requests from a FUSE device, answers to it: one readv and one writev each.
 *
 *  1. The payload of a WRITE lands in cells of the pages, from the start of the first one on,
 *     wherever in the file it belongs.
 *  2. The kernel finds more room than it needs (max_write and what comes before it), or the read
 *     would fail. What it writes is within our buffers, and its length is not believed beyond them.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "lane_inner.h"

/* ---- cells to land in ---- */

static void fill_vectors(struct worker *worker, uint32_t from, uint32_t to)
{
    for (uint32_t i = from; i < to; i++)
        worker->vectors[i + 1] =
            (struct iovec){worker->request.cells[i], worker->lane->setup.cell_bytes};
}

int worker_start_cells(struct worker *worker)
{
    struct rf_lane *lane = worker->lane;
    uint32_t cells = lane->cells_count;
    worker->request.cells = calloc(cells, sizeof(uint8_t *));
    worker->spare = calloc(cells + SPARE_CELLS, sizeof(uint8_t *));
    worker->vectors = calloc(cells + 1, sizeof(struct iovec));
    if (!worker->request.cells || !worker->spare || !worker->vectors ||
        rf_pages_cells_take(lane->setup.pages, cells, worker->request.cells) < 0)
        return -ENOMEM;
    worker->vectors[0] = (struct iovec){worker->request.head, HEAD_BYTES};
    fill_vectors(worker, 0, cells);
    return 0;
}

void worker_end_cells(struct worker *worker)
{
    struct rf_lane *lane = worker->lane;
    if (worker->request.cells)
        rf_pages_cells_give(lane->setup.pages, lane->cells_count, worker->request.cells);
    if (worker->spare)
        rf_pages_cells_give(lane->setup.pages, worker->spare_count, worker->spare);
    free(worker->request.cells);
    free(worker->spare);
    free(worker->vectors);
}

/* At least `wanted` spare cells; false: out of memory. */
static bool stock_up(struct worker *worker, uint32_t wanted)
{
    struct rf_pages *pages = worker->lane->setup.pages;
    uint8_t **place = worker->spare + worker->spare_count;
    uint32_t missing = wanted - worker->spare_count;
    if (rf_pages_cells_take(pages, missing + SPARE_CELLS, place) == 0)
        worker->spare_count = wanted + SPARE_CELLS;
    else if (rf_pages_cells_take(pages, missing, place) == 0)
        worker->spare_count = wanted;
    else
        return false;
    return true;
}

bool worker_refill(struct worker *worker, uint32_t used)
{
    uint8_t **cells = worker->request.cells;
    uint32_t missing = 0;
    for (uint32_t i = 0; i < used; i++)
        missing += cells[i] == NULL;
    if (missing == 0)
        return true;
    while (worker->spare_count < missing && !stock_up(worker, missing)) {
        struct timespec a_moment = {.tv_nsec = 1000000};
        if (lane_stopping(worker->lane))
            return false;
        nanosleep(&a_moment, NULL);
    }
    for (uint32_t i = 0; i < used; i++)
        if (!cells[i])
            cells[i] = worker->spare[--worker->spare_count];
    fill_vectors(worker, 0, used);
    return true;
}

/* ---- the device ---- */

static void wait_readable(int fd)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    poll(&wait, 1, -1);
}

/* As fuse_dev_do_read of Linux has it: ENODEV, unmounted; ENOENT, the request was aborted while we
 * were about to get it. A socket in the place of the device ends with 0. */
static int64_t device_take(struct worker *worker)
{
    ssize_t nbytes = readv(worker->fd, worker->vectors, (int)worker->lane->cells_count + 1);
    if (nbytes > 0)
        return nbytes;
    if (nbytes == 0)
        return -ENODEV;
    switch (errno) {
    case EAGAIN:
        wait_readable(worker->fd);
        return 0;
    case EINTR:
    case ENOENT:
        return 0;
    default:
        return -errno;
    }
}

static int device_reply(struct rf_lane *lane, uint32_t way, const struct iovec *parts, int count)
{
    ssize_t nbytes;
    do
        nbytes = writev(lane->ways[way], parts, count);
    while (nbytes < 0 && errno == EINTR);
    return nbytes < 0 ? -errno : 0;
}

const struct transport device_transport = {device_take, device_reply};
