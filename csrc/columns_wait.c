/* columns_wait.c: cells from their columns through the engine, planned by columns_read.c, and
 * which members have not answered.
 *
 *  1. A read that was given up keeps its memory, and what it holds of zones and descriptors, until
 *     the members have answered; then all of it is thrown away unseen.
 */
#define _GNU_SOURCE
#undef NDEBUG
#include "columns_reading.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "engine.h"

/* ---- through the engine ---- */

static void reading_free(struct reading *reading)
{
    free(reading->ios);
    free(reading->runs);
    free(reading);
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

uint32_t rf_latency(uint32_t took_us)
{
    if (took_us < 4)
        return took_us < 2 ? 0 : 4;
    uint32_t doubled = 31 - (uint32_t)__builtin_clz(took_us);
    return 4 * doubled + (took_us >> (doubled - 2) & 3);
}

/* Whether the io still waits for its member. */
static bool io_waits(const struct reading *reading, uint32_t io)
{
    return reading->whose[io] && __atomic_load_n(&reading->ios[io].took_us, __ATOMIC_ACQUIRE) == 0;
}

static void note_latencies(const struct reading *reading)
{
    for (uint32_t i = 0; i < reading->ios_count; i++) {
        if (reading->whose[i])
            atomic_fetch_add_explicit(
                &reading->whose[i]->latencies[rf_latency(reading->ios[i].took_us)], 1,
                memory_order_relaxed);
    }
}

static void wait_begin(struct reading *reading)
{
    struct rf_columns *columns = reading->columns;
    reading->begun_ns = now_ns();
    pthread_mutex_lock(&columns->waits_mutex);
    rf_list_add(&columns->waits, &reading->wait);
    pthread_mutex_unlock(&columns->waits_mutex);
}

/* Whether somebody still waits for it. */
static bool wait_end(struct reading *reading)
{
    struct rf_columns *columns = reading->columns;
    pthread_mutex_lock(&columns->waits_mutex);
    bool wanted = !reading->given_up;
    if (wanted)
        rf_list_remove(&reading->wait);
    pthread_mutex_unlock(&columns->waits_mutex);
    return wanted;
}

/* The members have answered at last. What they said is nobody's. */
static void complete_late(struct reading *reading)
{
    struct rf_columns *columns = reading->columns;
    void (*done)(void *, int) = reading->done;
    void *whose = reading->context;
    rf_reading_finish(reading, true, -ETIMEDOUT);
    reading_free(reading);
    done(whose, -ECANCELED);
    pthread_mutex_lock(&columns->waits_mutex);
    bool last = --columns->stuck == 0 && columns->orphaned;
    pthread_mutex_unlock(&columns->waits_mutex);
    if (last)
        rf_columns_end(columns);
}

/* On the engine's thread: all runs and fetches have been tried. */
static void complete(void *context)
{
    struct reading *reading = context;
    int result = 0;
    if (reading->ios_count > 0) {
        note_latencies(reading);
        if (!wait_end(reading)) {
            complete_late(reading);
            return;
        }
    }
    for (uint32_t i = 0; i < reading->ios_count && result == 0; i++)
        result = reading->ios[i].result == 0 ? 0 : -EIO;
    for (uint32_t r = 0; r < reading->runs_count && result == 0; r++) {
        if (reading->runs[r].descriptor)
            result = rf_reading_check_run(reading, &reading->runs[r]);
    }
    if (reading->lost_count > 0) {
        for (uint32_t f = 0; f < reading->rebuild->fetches_count && result == 0; f++)
            result = rf_reading_check_fetch(reading, &reading->rebuild->fetches[f]);
        if (result == 0)
            result = rf_reading_rebuild(reading);
    }
    result = rf_reading_finish(reading, true, result);
    void (*done)(void *, int) = reading->done;
    void *whose = reading->context;
    reading_free(reading);
    done(whose, result);
}

/* A read of the file for one run: into one piece of memory, or many. */
static void io_add(struct reading *reading, const struct run *run, uint64_t address, uint32_t cells)
{
    uint64_t nbytes = reading->columns->cell_bytes;
    reading->whose[reading->ios_count] = run->descriptor->whose;
    reading->ios[reading->ios_count] =
        (struct rf_io){.op = RF_READ,
                       .fd = run->descriptor->fd,
                       .offset = run->offset,
                       .address = address,
                       .nbytes = cells ? nbytes : nbytes * run->count,
                       .cells = cells,
                       .chain = reading->ios_count};
    reading->ios_count++;
}

/* The reads of all runs and fetches; each is a chain of its own. */
static int ios_make(struct reading *reading)
{
    const struct rf_rebuild *rebuild = reading->lost_count > 0 ? reading->rebuild : NULL;
    size_t count = reading->runs_count + (rebuild ? rebuild->fetches_count : 0);
    reading->ios = malloc(count * (sizeof reading->ios[0] + sizeof reading->whose[0]) + 1);
    if (!reading->ios)
        return -ENOMEM;
    reading->whose = (struct rf_member **)(reading->ios + count);
    const uint64_t cell_bytes = reading->columns->cell_bytes;
    for (uint32_t r = 0; r < reading->runs_count; r++) {
        const struct run *run = &reading->runs[r];
        bool whole = true;
        for (uint32_t o = run->first; o < run->first + run->count; o++) {
            reading->memory[o] = (uint64_t)(uintptr_t)rf_cell_at(reading, reading->order[o]);
            whole = whole &&
                    (o == run->first || reading->memory[o] == reading->memory[o - 1] + cell_bytes);
        }
        if (!run->descriptor)
            continue;
        if (whole)
            io_add(reading, run, reading->memory[run->first], 0);
        else
            io_add(reading, run, (uint64_t)(uintptr_t)(reading->memory + run->first), run->count);
    }
    for (uint32_t f = 0; rebuild && f < rebuild->fetches_count; f++) {
        const struct run *fetch = &rebuild->fetches[f];
        io_add(reading, fetch, (uint64_t)(uintptr_t)rebuild->sources + fetch->first * cell_bytes,
               0);
    }
    return 0;
}

int rf_columns_read_start(struct rf_columns *columns, struct rf_engine *engine,
                          const uint64_t *addresses, uint32_t count, uint8_t *out,
                          void (*done)(void *context, int result), void *context)
{
    if (count > CELLS_MOST)
        return -EINVAL;
    struct reading *reading = malloc(sizeof *reading);
    if (!reading)
        return -ENOMEM;
    *reading = (struct reading){.columns = columns,
                                .addresses = addresses,
                                .count = count,
                                .out = out,
                                .done = done,
                                .context = context};
    if (!rf_reading_arrays(reading)) {
        free(reading);
        return -ENOMEM;
    }
    int error = rf_reading_plan(reading);
    bool planned = error == 0;
    if (planned)
        error = ios_make(reading);
    if (error == 0 && reading->ios_count == 0) { /* nothing to wait for */
        complete(reading);
        return 0;
    }
    if (error == 0) {
        wait_begin(reading);
        error = rf_engine_submit(engine, reading->ios, reading->ios_count, complete, reading);
        if (error == 0)
            return 0;
        if (!wait_end(reading)) { /* given up already: its caller has been told */
            complete_late(reading);
            return 0;
        }
    }
    error = rf_reading_finish(reading, planned, error);
    reading_free(reading);
    return error;
}

/* ---- what members have not answered ---- */

uint32_t rf_columns_waiting(struct rf_columns *columns, struct rf_columns_wait *waits,
                            uint32_t room)
{
    uint32_t count = 0;
    int64_t now = now_ns();
    pthread_mutex_lock(&columns->waits_mutex);
    for (struct rf_link *link = columns->waits.newer; link != &columns->waits; link = link->newer) {
        const struct reading *reading = (struct reading *)link;
        int64_t age = now > reading->begun_ns ? now - reading->begun_ns : 0;
        for (uint32_t i = 0; i < reading->ios_count; i++) {
            if (!io_waits(reading, i))
                continue;
            uint32_t w = 0;
            while (w < count && waits[w].member != reading->whose[i]->id)
                w++;
            if (w == room)
                continue;
            if (w == count)
                waits[count++] = (struct rf_columns_wait){.member = reading->whose[i]->id};
            waits[w].reads++;
            if (waits[w].oldest_ns < (uint64_t)age)
                waits[w].oldest_ns = (uint64_t)age;
        }
    }
    pthread_mutex_unlock(&columns->waits_mutex);
    return count;
}

static bool waits_for(const struct reading *reading, int32_t member)
{
    for (uint32_t i = 0; i < reading->ios_count; i++) {
        if (io_waits(reading, i) && reading->whose[i]->id == member)
            return true;
    }
    return false;
}

uint32_t rf_columns_give_up(struct rf_columns *columns, int32_t member, uint64_t older_than_ns)
{
    uint32_t count = 0;
    int64_t latest = now_ns() - (int64_t)older_than_ns;
    pthread_mutex_lock(&columns->waits_mutex);
    for (struct rf_link *link = columns->waits.newer, *next; link != &columns->waits; link = next) {
        struct reading *reading = (struct reading *)link;
        next = link->newer;
        if (reading->begun_ns > latest || !waits_for(reading, member))
            continue;
        rf_list_remove(link);
        reading->given_up = true;
        columns->stuck++;
        count++;
        /* With the mutex held, so that the second call can't come first. */
        reading->done(reading->context, -ETIMEDOUT);
    }
    pthread_mutex_unlock(&columns->waits_mutex);
    atomic_fetch_add_explicit(&columns->given_up, count, memory_order_relaxed);
    return count;
}
