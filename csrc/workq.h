/* Requests that wait for a worker, and workers that wait for a request.
 *
 * The ring has one producer at a time and many consumers; neither takes a lock
 * as long as one loop serves all connections, since the producer is the holder
 * of its baton.  Between several loops a lock makes the producers one: they
 * hold it for a few stores, and consumers never.  Sleeping workers stand on a list under a
 * mutex, newest first: a worker that slept a moment ago is warm, and waking is
 * no hot path.
 *
 * A worker announces sleep, then looks at queue and baton again; whoever
 * queues or drops the baton stores first and then looks for sleepers.  Both
 * sides seq_cst. */
#ifndef TWI_WORKQ_H
#define TWI_WORKQ_H

#include <pthread.h>
#include <stdint.h>

#include "core.h"

enum { TWI_WORKQ_SIZE = 16384 }; /* requests; a power of two */

struct twi_sleeper {
    struct twi_sleeper *next;
    _Atomic uint32_t word; /* futex: 0 asleep, 1 woken */
    _Atomic uint32_t listed; /* written under the queue's lock */
};

struct twi_workq {
    _Atomic uint64_t head, tail;
    _Atomic tw_id *ring;
    pthread_mutex_t lock;
    pthread_mutex_t intake; /* of several loops' producers */
    struct twi_sleeper *sleepers;
    _Atomic uint32_t asleep;
};

int twi_workq_init(struct twi_workq *q);
void twi_workq_fini(struct twi_workq *q);
/* 0, or -ENOSPC.  A baton's holder; shared: there are several loops, the same
 * answer to every push. */
int twi_workq_push(struct twi_workq *q, tw_id request, int shared);
/* The oldest request, 0 when there is none.  Lock-free; any thread. */
tw_id twi_workq_pop(struct twi_workq *q);
/* The oldest without taking it, 0 when there is none (a moment's truth). */
tw_id twi_workq_peek(struct twi_workq *q);
uint32_t twi_workq_length(struct twi_workq *q);
/* Announces sleep.  The caller looks again, then waits or cancels. */
void twi_workq_announce(struct twi_workq *q, struct twi_sleeper *sleeper);
/* Takes the announcement back (a wake-up may have come already). */
void twi_workq_cancel(struct twi_workq *q, struct twi_sleeper *sleeper);
/* Until woken.  Blocks. */
void twi_workq_sleep(struct twi_sleeper *sleeper);
/* Wakes up to n sleepers; how many. */
int twi_workq_wake(struct twi_workq *q, int n);
uint32_t twi_workq_asleep(struct twi_workq *q);

#endif
