/* A clock that the cases move: twi_sys.clock_gettime = moved_clock. */
#ifndef LATER_H
#define LATER_H

#include <sys/timerfd.h>

#include "bed.h"

#include "loop.h"

static _Atomic int64_t ahead_ns;

static inline int
moved_clock(clockid_t which, struct timespec *t)
{
    int rc = clock_gettime(which, t);
    int64_t ns = t->tv_nsec + atomic_load(&ahead_ns) % SECOND;
    t->tv_sec += atomic_load(&ahead_ns) / SECOND + ns / SECOND;
    t->tv_nsec = ns % SECOND;
    return rc;
}

/* Every poll round that is under way has ended: two more have begun. */
static inline void
rounds_pass(void)
{
    for (int i = 0; i < 2; i++) {
        uint64_t rounds = atomic_load(&TWI_MAIN->rounds);
        twi_loop_wake(TWI_MAIN);
        EVENTUALLY(atomic_load(&TWI_MAIN->rounds) > rounds);
    }
}

/* So many seconds later all timers that are due have fired. */
static inline void
later(int64_t seconds)
{
    struct itimerspec at_once = {.it_value = {0, 1}};
    atomic_fetch_add(&ahead_ns, seconds * SECOND);
    do {
        /* Again, should the core have set it to something else meanwhile. */
        MUST(timerfd_settime(TWI_MAIN->timer_fd, 0, &at_once, NULL) == 0);
        rounds_pass();
    } while (twi_timers_next(&TWI_MAIN->timers) <= twi_now_ns());
    rounds_pass();
}

#endif
