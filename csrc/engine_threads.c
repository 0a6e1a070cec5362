/* engine_threads.c: jobs done by blocking calls on a few threads.
 *
 *  1. A job that was queued is begun as soon as a thread is free, in the order of coming.
 *  2. As many threads are woken as there are jobs, not more: a wake-up costs more than a small
 * write.
 */
#define _GNU_SOURCE
#undef NDEBUG
#include "engine_inner.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

struct rf_threads {
    pthread_mutex_t mutex;
    pthread_cond_t work;
    struct rf_jobs queue;
    int stopping;
    pthread_mutex_t growing; /* guards what follows */
    uint32_t count, room;
    pthread_t threads[];
};

static void *serve(void *argument)
{
    struct rf_threads *threads = argument;
    pthread_mutex_lock(&threads->mutex);
    for (;;) {
        struct rf_job *job = rf_jobs_take(&threads->queue);
        if (job != NULL) {
            pthread_mutex_unlock(&threads->mutex);
            rf_job_perform(job);
            rf_job_finished(job);
            pthread_mutex_lock(&threads->mutex);
        } else if (threads->stopping) {
            break;
        } else {
            pthread_cond_wait(&threads->work, &threads->mutex);
        }
    }
    pthread_mutex_unlock(&threads->mutex);
    return NULL;
}

/* 0 or -errno. */
static int grow(struct rf_threads *threads, uint32_t count)
{
    int error = 0;
    pthread_mutex_lock(&threads->growing);
    while (!error && threads->count < count && threads->count < threads->room) {
        error = rf_thread_new(&threads->threads[threads->count], serve, threads);
        threads->count += !error;
    }
    pthread_mutex_unlock(&threads->growing);
    return error;
}

void rf_threads_grow(struct rf_threads *threads, uint32_t count)
{
    grow(threads, count);
}

struct rf_threads *rf_threads_new(uint32_t count, uint32_t room, int *error)
{
    struct rf_threads *threads = calloc(1, sizeof *threads + room * sizeof threads->threads[0]);
    *error = -ENOMEM;
    if (threads == NULL)
        return NULL;
    pthread_mutex_init(&threads->mutex, NULL);
    pthread_mutex_init(&threads->growing, NULL);
    pthread_cond_init(&threads->work, NULL);
    threads->room = room;
    *error = grow(threads, count);
    if (*error) {
        rf_threads_free(threads);
        return NULL;
    }
    return threads;
}

void rf_threads_free(struct rf_threads *threads)
{
    if (threads == NULL)
        return;
    pthread_mutex_lock(&threads->mutex);
    threads->stopping = 1;
    pthread_cond_broadcast(&threads->work);
    pthread_mutex_unlock(&threads->mutex);
    for (uint32_t i = 0; i < threads->count; i++)
        pthread_join(threads->threads[i], NULL);
    assert(threads->queue.first == NULL);
    pthread_cond_destroy(&threads->work);
    pthread_mutex_destroy(&threads->mutex);
    pthread_mutex_destroy(&threads->growing);
    free(threads);
}

void rf_threads_submit(struct rf_threads *threads, struct rf_job *jobs, uint32_t count)
{
    pthread_mutex_lock(&threads->mutex);
    for (uint32_t i = 0; i < count; i++) {
        rf_jobs_add(&threads->queue, &jobs[i]);
        pthread_cond_signal(&threads->work);
    }
    pthread_mutex_unlock(&threads->mutex);
}
