/* lane_servant.c: a thread for what had to wait: answers for the gate, WRITEs for credits or bases.
 *
 *  1. WRITEs without credits wait in the order in which they came; while any of them waits, later
 *     ones queue behind it, so that small ones can't starve a large one.
 *  2. A grant of credits is not missed: a WRITE that was refused before rf_lane_resume was called
 *     and parked after it is tried again.
 */
#include <errno.h>
#include <stdlib.h>

#include "lane_inner.h"

int servant_begin(struct rf_lane *lane)
{
    struct servant *servant = &lane->servant;
    pthread_mutex_init(&servant->mutex, NULL);
    pthread_cond_init(&servant->wanted, NULL);
    servant->answers_last = &servant->answers;
    servant->ready_last = &servant->ready;
    servant->parked_last = &servant->parked;
    servant->buffer = lane_buffer_take(lane);
    return servant->buffer ? 0 : -ENOMEM;
}

static void answer_free(struct answer *answer)
{
    if (answer->buffer)
        lane_buffer_give(answer->buffer); /* which the answer is part of */
    else
        free(answer);
}

static void free_all_held(struct held_write *held)
{
    for (struct held_write *next; held; held = next) {
        next = held->next;
        held_free(held);
    }
}

void servant_end(struct rf_lane *lane)
{
    struct servant *servant = &lane->servant;
    for (struct answer *answer = servant->answers, *next; answer; answer = next) {
        next = answer->next;
        answer_free(answer);
    }
    free_all_held(servant->ready);
    free_all_held(servant->parked);
    lane_buffer_give(servant->buffer);
    pthread_mutex_destroy(&servant->mutex);
    pthread_cond_destroy(&servant->wanted);
}

/* ---- for other threads ---- */

void servant_queue_answer(struct rf_lane *lane, struct answer *answer)
{
    struct servant *servant = &lane->servant;
    count(&tally(lane)->queued, 1);
    answer->next = NULL;
    pthread_mutex_lock(&servant->mutex);
    *servant->answers_last = answer;
    servant->answers_last = &answer->next;
    pthread_cond_signal(&servant->wanted);
    pthread_mutex_unlock(&servant->mutex);
}

void servant_try(struct held_write *held)
{
    struct servant *servant = &held->lane->servant;
    held->next = NULL;
    pthread_mutex_lock(&servant->mutex);
    *servant->ready_last = held;
    servant->ready_last = &held->next;
    pthread_cond_signal(&servant->wanted);
    pthread_mutex_unlock(&servant->mutex);
}

uint64_t servant_resumes(struct rf_lane *lane)
{
    return atomic_load(&lane->servant.resumes);
}

void lane_ask_for_credits(struct rf_lane *lane)
{
    if (!atomic_load_explicit(&lane->asking, memory_order_relaxed) &&
        !atomic_exchange(&lane->asking, true))
        lane_raise(lane);
}

void servant_park(struct held_write *held, bool untried, uint64_t resumes)
{
    struct rf_lane *lane = held->lane;
    struct servant *servant = &lane->servant;
    held->next = NULL;
    pthread_mutex_lock(&servant->mutex);
    bool alone = !servant->parked;
    *servant->parked_last = held;
    servant->parked_last = &held->next;
    servant->parked_cells += held->cells_count + 1;
    atomic_fetch_add(&servant->parked_count, 1);
    if ((alone && untried) || atomic_load(&servant->resumes) != resumes) {
        servant->resume = true;
        pthread_cond_signal(&servant->wanted);
    }
    pthread_mutex_unlock(&servant->mutex);
    count(&tally(lane)->parked, 1);
    if (!untried)
        lane_ask_for_credits(lane);
}

void rf_lane_resume(struct rf_lane *lane)
{
    struct servant *servant = &lane->servant;
    pthread_mutex_lock(&servant->mutex);
    atomic_fetch_add(&servant->resumes, 1);
    if (servant->parked) {
        servant->resume = true;
        pthread_cond_signal(&servant->wanted);
    }
    pthread_mutex_unlock(&servant->mutex);
}

void rf_lane_pass_on(struct rf_lane *lane)
{
    struct servant *servant = &lane->servant;
    pthread_mutex_lock(&servant->mutex);
    servant->pass_on = true;
    pthread_cond_signal(&servant->wanted);
    pthread_mutex_unlock(&servant->mutex);
}

/* ---- the thread ---- */

/* The following are called with the mutex held, and let go of it meanwhile. */

static void give_answer(struct rf_lane *lane)
{
    struct servant *servant = &lane->servant;
    struct answer *answer = servant->answers;
    if (!(servant->answers = answer->next))
        servant->answers_last = &servant->answers;
    pthread_mutex_unlock(&servant->mutex);
    const uint8_t *data = answer->bytes;
    if (answer->buffer)
        data = answer->buffer->out + answer->buffer->offset;
    lane_answer(lane, answer->way, answer->unique, answer->error, data, answer->nbytes);
    answer_free(answer);
    pthread_mutex_lock(&servant->mutex);
}

/* Tries the first WRITE that has its bases. */
static void try_ready(struct rf_lane *lane)
{
    struct servant *servant = &lane->servant;
    struct held_write *held = servant->ready;
    if (!(servant->ready = held->next))
        servant->ready_last = &servant->ready;
    uint64_t resumes = atomic_load(&servant->resumes);
    pthread_mutex_unlock(&servant->mutex);
    if (!held_try(held, servant->buffer))
        servant_park(held, false, resumes);
    pthread_mutex_lock(&servant->mutex);
}

static struct held_write *take_parked(struct servant *servant)
{
    struct held_write *held = servant->parked;
    if (!(servant->parked = held->next))
        servant->parked_last = &servant->parked;
    servant->parked_cells -= held->cells_count + 1;
    atomic_fetch_sub(&servant->parked_count, 1);
    return held;
}

static void put_back_parked(struct servant *servant, struct held_write *held)
{
    if (!servant->parked)
        servant->parked_last = &held->next;
    held->next = servant->parked;
    servant->parked = held;
    servant->parked_cells += held->cells_count + 1;
    atomic_fetch_add(&servant->parked_count, 1);
}

/* Tries the first parked WRITE; without success the others wait on with it. */
static void try_parked(struct rf_lane *lane)
{
    struct servant *servant = &lane->servant;
    struct held_write *held = take_parked(servant);
    uint64_t resumes = atomic_load(&servant->resumes);
    pthread_mutex_unlock(&servant->mutex);
    bool tried = held_try(held, servant->buffer);
    pthread_mutex_lock(&servant->mutex);
    if (tried)
        return;
    put_back_parked(servant, held);
    servant->resume = atomic_load(&servant->resumes) != resumes;
    if (!servant->resume)
        lane_ask_for_credits(lane);
}

static void pass_parked(struct rf_lane *lane)
{
    struct servant *servant = &lane->servant;
    struct held_write *held = take_parked(servant);
    pthread_mutex_unlock(&servant->mutex);
    held_carry(held);
    pthread_mutex_lock(&servant->mutex);
}

void *servant_main(void *argument)
{
    struct rf_lane *lane = argument;
    struct servant *servant = &lane->servant;
    pthread_mutex_lock(&servant->mutex);
    while (!lane_stopping(lane)) {
        if (servant->answers)
            give_answer(lane);
        else if (servant->ready)
            try_ready(lane);
        else if (servant->pass_on && servant->parked)
            pass_parked(lane);
        else if (servant->resume && servant->parked)
            try_parked(lane);
        else {
            servant->resume = servant->pass_on = false;
            pthread_cond_wait(&servant->wanted, &servant->mutex);
        }
    }
    pthread_mutex_unlock(&servant->mutex);
    atomic_store(&servant->crew.ended, true);
    return NULL;
}
