/* gate.h: through it leaves what the kernel is told, and while a cut is taken it is shut.
 *
 * A lock with two sides. Threads that take an operation into effect and answer it are *inside*
 * (shared); the cut shuts the gate (exclusive). What is promised stands at the head of gate.c.
 */
#ifndef RAIDFS_GATE_H
#define RAIDFS_GATE_H

#include <stdint.h>

struct rf_gate;

/* An open gate; NULL: out of memory. */
struct rf_gate *rf_gate_new(void);
/* Nobody may be inside or waiting. */
void rf_gate_free(struct rf_gate *gate);

/* Waits while the gate is shut. Not twice by one thread. */
void rf_gate_enter(struct rf_gate *gate);
/* 1: inside, 0: it is shut and nothing happened. */
int rf_gate_try_enter(struct rf_gate *gate);
void rf_gate_leave(struct rf_gate *gate);

/* From here on nobody comes in; returns when all who were inside have left. By one at a time. */
void rf_gate_shut(struct rf_gate *gate);
void rf_gate_open(struct rf_gate *gate);
int rf_gate_is_shut(struct rf_gate *gate);

#endif
