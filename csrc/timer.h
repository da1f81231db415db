/* Deadlines: a binary heap of timers that live inside their owners.  One
 * mutex; insertion and removal are O(log n) and need no memory beyond the
 * heap's array, which grows by doubling.
 *
 * Callers: any thread adds and removes; only the holder of the baton runs. */
#ifndef TWI_TIMER_H
#define TWI_TIMER_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

struct twi_timer {
    int64_t when_ns;
    uint32_t index; /* in the heap + 1; 0: not in it */
    int kind;       /* the owner's */
    uint64_t id;    /* the owner's: timers name objects by id, never pointer */
};

struct twi_timers {
    pthread_mutex_t lock;
    struct twi_timer **heap;
    uint32_t n, cap;
};

/* 0 or a negative errno. */
int twi_timers_init(struct twi_timers *timers);
void twi_timers_fini(struct twi_timers *timers);
/* Borrows the timer until it fires or is removed.  Returns 1 when it is the
 * earliest now, 0 when not, -ENOMEM. */
int twi_timers_add(struct twi_timers *timers, struct twi_timer *timer,
                   int64_t when_ns, int kind, uint64_t id);
/* Removes it if it is there.  After the return it does not fire. */
void twi_timers_remove(struct twi_timers *timers, struct twi_timer *timer);
/* Takes one timer that is due at now_ns: 1 with kind and id, else 0. */
int twi_timers_pop(struct twi_timers *timers, int64_t now_ns, int *kind,
                   uint64_t *id);
/* How many there are. */
uint32_t twi_timers_count(struct twi_timers *timers);
/* When the earliest is due; INT64_MAX when none is. */
int64_t twi_timers_next(struct twi_timers *timers);

#endif
