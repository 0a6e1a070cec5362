/* gate.c: an atomic word and two futexes.
 *
 *  1. Between the return of rf_gate_shut and the call of rf_gate_open nobody is inside.
 *  2. The cut is preferred: once rf_gate_shut was called, no newcomer gets in before it, so it
 * waits only for those inside, who wait for nothing.
 *  3. What was done inside before a shut is seen after it, and what was done while the gate was
 * shut is seen by all who enter later.
 *  4. Who enters and leaves an open gate makes no system call.
 */
#include "gate.h"

#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ensure.h"

static const uint32_t SHUT = 1u << 31;

struct rf_gate {
    /* The highest bit: shut. The others: how many are inside. The shutter sleeps on it. */
    _Alignas(64) _Atomic uint32_t state;
    /* Odd from before the gate is shut until after it is opened. Newcomers sleep on it. */
    _Alignas(64) _Atomic uint32_t phase;
};

/* Returns at the latest when `word` was changed and woken; also for no reason. */
static void sleep_while(_Atomic uint32_t *word, uint32_t value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void wake(_Atomic uint32_t *word, int count)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

struct rf_gate *rf_gate_new(void)
{
    struct rf_gate *gate = aligned_alloc(64, sizeof(*gate));
    if (gate) {
        atomic_init(&gate->state, 0);
        atomic_init(&gate->phase, 0);
    }
    return gate;
}

void rf_gate_free(struct rf_gate *gate)
{
    if (!gate)
        return;
    ENSURE((atomic_load(&gate->state) & ~SHUT) == 0);
    free(gate);
}

int rf_gate_try_enter(struct rf_gate *gate)
{
    uint32_t state = atomic_load_explicit(&gate->state, memory_order_relaxed);
    while (!(state & SHUT))
        if (atomic_compare_exchange_weak_explicit(&gate->state, &state, state + 1,
                                                  memory_order_acquire, memory_order_relaxed))
            return 1;
    return 0;
}

void rf_gate_enter(struct rf_gate *gate)
{
    while (!rf_gate_try_enter(gate)) {
        uint32_t phase = atomic_load(&gate->phase);
        if (phase & 1)
            sleep_while(&gate->phase, phase);
    }
}

void rf_gate_leave(struct rf_gate *gate)
{
    uint32_t before = atomic_fetch_sub_explicit(&gate->state, 1, memory_order_release);
    ENSURE((before & ~SHUT) != 0);
    if (before == (SHUT | 1))
        wake(&gate->state, 1);
}

void rf_gate_shut(struct rf_gate *gate)
{
    atomic_fetch_add(&gate->phase, 1);
    uint32_t state = atomic_fetch_or(&gate->state, SHUT);
    ENSURE(!(state & SHUT));
    while ((state = atomic_load_explicit(&gate->state, memory_order_acquire)) != SHUT)
        sleep_while(&gate->state, state);
}

void rf_gate_open(struct rf_gate *gate)
{
    uint32_t state = atomic_fetch_and(&gate->state, ~SHUT);
    ENSURE(state == SHUT);
    atomic_fetch_add(&gate->phase, 1);
    wake(&gate->phase, INT_MAX);
}

int rf_gate_is_shut(struct rf_gate *gate)
{
    return (atomic_load(&gate->state) & SHUT) != 0;
}
