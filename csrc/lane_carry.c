/* lane_carry.c: the queue of requests for Python, and of what it is told without being asked.
 *
 *  1. A request stays where it is, and its id means nothing else, until it is answered.
 *  2. The eventfd is raised when the queue of requests was empty and gets one; so whoever was told
 *     must empty it. For what nobody waits for, the timer is set instead (lane.c).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lane_inner.h"

enum {
    PLACES_AT_FIRST = 64,
    RELEASED_AT_FIRST = 64,
    RELEASED_MANY = 256, /* that Python is told at once */
    OPEN_ANSWER_BYTES_MAX = sizeof(struct fuse_entry_out) + sizeof(struct fuse_open_out),
};

int carry_begin(struct rf_lane *lane)
{
    struct queue_of_carried *queue = &lane->queue;
    pthread_mutex_init(&queue->mutex, NULL);
    queue->last = &queue->first;
    queue->places = calloc(PLACES_AT_FIRST, sizeof(*queue->places));
    queue->released = calloc(RELEASED_AT_FIRST, sizeof(*queue->released));
    queue->places_count = queue->places ? PLACES_AT_FIRST : 0;
    queue->released_room = RELEASED_AT_FIRST;
    return queue->places && queue->released ? 0 : -ENOMEM;
}

void carry_end(struct rf_lane *lane)
{
    struct queue_of_carried *queue = &lane->queue;
    for (uint32_t i = 0; i < queue->places_count; i++)
        free(queue->places[i]);
    free(queue->places);
    free(queue->released);
    pthread_mutex_destroy(&queue->mutex);
}

/* ---- the queue; with its mutex held ---- */

static bool queue_grow(struct queue_of_carried *queue)
{
    uint32_t before = queue->places_count;
    struct carried **places = realloc(queue->places, 2 * before * sizeof(struct carried *));
    if (!places)
        return false;
    memset(places + before, 0, before * sizeof(struct carried *));
    queue->places = places;
    queue->places_count = 2 * before;
    queue->free_hint = before;
    return true;
}

/* Puts a request into the queue; false: out of memory. */
static bool queue_put(struct queue_of_carried *queue, struct carried *carried, bool *was_empty)
{
    if (queue->count == queue->places_count && !queue_grow(queue))
        return false;
    while (queue->places[queue->free_hint])
        queue->free_hint = (queue->free_hint + 1) % queue->places_count;
    queue->places[queue->free_hint] = carried;
    carried->id = (uint64_t)++queue->serial << 32 | queue->free_hint;
    *was_empty = !queue->first;
    *queue->last = carried;
    queue->last = &carried->next;
    queue->count++;
    return true;
}

static struct carried *queue_find(struct queue_of_carried *queue, uint64_t id)
{
    uint32_t place = (uint32_t)id;
    if (place >= queue->places_count)
        return NULL;
    struct carried *carried = queue->places[place];
    return carried && carried->id == id && carried->taken ? carried : NULL;
}

static void queue_remove(struct queue_of_carried *queue, struct carried *carried)
{
    uint32_t place = (uint32_t)carried->id;
    queue->places[place] = NULL;
    queue->free_hint = place;
    queue->count--;
}

/* ---- for the lane ---- */

static void copy_request(struct carried *carried, const uint8_t *head, uint64_t nbytes,
                         uint8_t *const *cells, uint32_t cell_bytes)
{
    uint64_t done = nbytes < HEAD_BYTES ? nbytes : HEAD_BYTES;
    memcpy(carried->bytes, head, done);
    for (uint32_t i = 0; done < nbytes; i++) {
        uint64_t more = nbytes - done < cell_bytes ? nbytes - done : cell_bytes;
        memcpy(carried->bytes + done, cells[i], more);
        done += more;
    }
}

void lane_carry(struct rf_lane *lane, const uint8_t *head, uint64_t nbytes, uint32_t way,
                uint8_t *const *cells)
{
    struct queue_of_carried *queue = &lane->queue;
    const struct fuse_in_header *in = header_of(head);
    struct carried *carried = malloc(sizeof(*carried) + nbytes);
    if (!carried) {
        lane_refuse(lane, in, way, ENOMEM);
        return;
    }
    *carried =
        (struct carried){.unique = in->unique, .nbytes = nbytes, .way = way, .opcode = in->opcode};
    copy_request(carried, head, nbytes, cells, lane->setup.cell_bytes);
    bool was_empty = false;
    pthread_mutex_lock(&queue->mutex);
    bool put = queue_put(queue, carried, &was_empty);
    pthread_mutex_unlock(&queue->mutex);
    if (!put) {
        free(carried);
        lane_refuse(lane, in, way, ENOMEM);
        return;
    }
    count_opcode(tally(lane)->carried, in->opcode);
    if (was_empty)
        lane_raise(lane);
}

bool carry_released(struct rf_lane *lane, uint64_t ino)
{
    struct queue_of_carried *queue = &lane->queue;
    pthread_mutex_lock(&queue->mutex);
    if (queue->released_count == queue->released_room) {
        uint64_t *more = realloc(queue->released, 2 * queue->released_room * sizeof(uint64_t));
        if (!more) {
            pthread_mutex_unlock(&queue->mutex);
            return false;
        }
        queue->released = more;
        queue->released_room *= 2;
    }
    queue->released[queue->released_count++] = ino;
    uint32_t count = queue->released_count;
    pthread_mutex_unlock(&queue->mutex);
    if (count == RELEASED_MANY)
        lane_raise(lane);
    else
        lane_raise_late(lane);
    return true;
}

/* ---- for Python ---- */

int rf_lane_take(struct rf_lane *lane, struct rf_request *request)
{
    struct queue_of_carried *queue = &lane->queue;
    pthread_mutex_lock(&queue->mutex);
    struct carried *carried = queue->first;
    if (carried) {
        if (!(queue->first = carried->next))
            queue->last = &queue->first;
        carried->taken = true;
        *request = (struct rf_request){.id = carried->id,
                                       .unique = carried->unique,
                                       .nbytes = carried->nbytes,
                                       .bytes = carried->bytes,
                                       .opcode = carried->opcode};
    }
    pthread_mutex_unlock(&queue->mutex);
    return carried != NULL;
}

/* Sends the answer. */
static int answer_carried(struct rf_lane *lane, const struct carried *carried, int32_t error,
                          const uint8_t *data, uint64_t nbytes)
{
    uint8_t changed[OPEN_ANSWER_BYTES_MAX];
    if (lane_one_way(carried->opcode))
        return 0;
    if (error == 0 && nbytes <= sizeof(changed) &&
        open_is_direct(carried->bytes, carried->nbytes)) {
        memcpy(changed, data, nbytes);
        open_answer(lane, carried->opcode, changed, nbytes);
        data = changed;
    }
    return lane_answer_soon(lane, carried->way, carried->unique, error, data, error ? 0 : nbytes);
}

int rf_lane_reply(struct rf_lane *lane, uint64_t id, int32_t error, const uint8_t *data,
                  uint64_t nbytes)
{
    struct queue_of_carried *queue = &lane->queue;
    if (error < 0 || error > ERRNO_MAX || nbytes > UINT32_MAX - sizeof(struct fuse_out_header))
        return -EINVAL;
    pthread_mutex_lock(&queue->mutex);
    struct carried *carried = queue_find(queue, id);
    if (carried)
        carried->taken = false; /* nobody else may answer it now */
    pthread_mutex_unlock(&queue->mutex);
    if (!carried)
        return -ENOENT;
    int result = answer_carried(lane, carried, error, data, nbytes);
    pthread_mutex_lock(&queue->mutex);
    if (result == -ENOMEM)
        carried->taken = true;
    else
        queue_remove(queue, carried);
    pthread_mutex_unlock(&queue->mutex);
    if (result == -ENOMEM)
        return result;
    free(carried);
    return 0; /* whether the device took it, only the statistics tell */
}

uint32_t rf_lane_released(struct rf_lane *lane, uint64_t *inos, uint32_t room)
{
    struct queue_of_carried *queue = &lane->queue;
    pthread_mutex_lock(&queue->mutex);
    uint32_t most = queue->released_count < room ? queue->released_count : room;
    queue->released_count -= most;
    memcpy(inos, queue->released + queue->released_count, most * sizeof(*inos));
    pthread_mutex_unlock(&queue->mutex);
    return most;
}
