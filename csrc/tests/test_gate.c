/* test_gate.c: the gate's two sides under sanitizers.
 *
 * Threads enter and change plain words that nothing else protects: each of them its own while it is
 * inside, and the shutter all of them while the gate is shut. The thread sanitizer sees whether the
 * gate orders that, and the words say whether anybody was inside at the wrong time.
 */
#define _GNU_SOURCE
#undef NDEBUG
#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "../gate.h"

enum { THREADS = 4, CUTS = 3000 };

static struct rf_gate *gate;
static atomic_bool stop;
static uint64_t cut; /* changed while the gate is shut only */
static struct {
    _Alignas(64) uint64_t begun, ended, refused;
} own[THREADS];

static void *go_through(void *argument)
{
    size_t me = (size_t)argument;
    while (!atomic_load(&stop)) {
        if (own[me].begun % 3 == 0 && !rf_gate_try_enter(gate)) {
            own[me].refused++;
            rf_gate_enter(gate);
        } else if (own[me].begun % 3 != 0) {
            rf_gate_enter(gate);
        }
        uint64_t before = cut;
        own[me].begun++;
        for (volatile int i = 0; i < 20; i++)
            ;
        own[me].ended++;
        assert(cut == before);
        rf_gate_leave(gate);
    }
    return NULL;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void take_cuts(void)
{
    uint64_t longest_ns = 0;
    for (int i = 0; i < CUTS; i++) {
        uint64_t begun_ns = now_ns(), seen[THREADS];
        rf_gate_shut(gate);
        assert(rf_gate_is_shut(gate) && !rf_gate_try_enter(gate));
        for (int t = 0; t < THREADS; t++) {
            assert(own[t].begun == own[t].ended);
            seen[t] = own[t].begun;
        }
        cut++;
        if (i % 100 == 0)
            usleep(2000); /* all come to wait */
        for (int t = 0; t < THREADS; t++)
            assert(own[t].begun == seen[t]);
        rf_gate_open(gate);
        uint64_t took_ns = now_ns() - begun_ns;
        longest_ns = took_ns > longest_ns ? took_ns : longest_ns;
        if (i % 7 == 0)
            sched_yield();
    }
    printf("gate: %d cuts, the longest took %.1f ms\n", CUTS, (double)longest_ns / 1e6);
}

int main(void)
{
    pthread_t threads[THREADS];
    gate = rf_gate_new();
    assert(gate && !rf_gate_is_shut(gate));
    rf_gate_enter(gate);
    rf_gate_leave(gate);
    for (size_t t = 0; t < THREADS; t++)
        assert(pthread_create(&threads[t], NULL, go_through, (void *)t) == 0);
    take_cuts();
    usleep(20000);
    atomic_store(&stop, true);
    uint64_t passages = 0;
    for (int t = 0; t < THREADS; t++) {
        pthread_join(threads[t], NULL);
        assert(own[t].begun > 0);
        passages += own[t].begun;
    }
    rf_gate_free(gate);
    rf_gate_free(NULL);
    printf("gate ok: %llu passages\n", (unsigned long long)passages);
    return 0;
}
