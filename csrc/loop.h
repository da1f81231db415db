/* Epoll sets, each with the baton that says who polls it.
 *
 * Whoever holds the baton (a try-lock) waits for events, reads, cuts, runs
 * timers and leftovers; nobody else does.  Workers, callers and a watching
 * asyncio loop take the main loop's when they need something; the dispatcher is
 * its poller of last resort.  Every other loop has a thread (side.h).  A loop
 * knows watchers' numbers and no sockets.
 *
 * What epoll cannot see is made visible to it: a timerfd holds the earliest
 * deadline, an eventfd is written when leftovers wait. */
#ifndef TWI_LOOP_H
#define TWI_LOOP_H

#include <stdint.h>

#include "timer.h"

enum {
    TWI_LOOPS_MAX = 16,   /* of a process */
    TWI_LOOP_EVENTS = 64, /* taken per poll round */
    TWI_TICK_NS = 1000000,
    TWI_SHUT_TRIES = 1000, /* ticks that a closing core waits for a poller */
    TWI_QUIET_NS = 20000000 /* without events before the dispatcher parks */
};

/* Work that a round could not finish, embedded in its owner; on the list at
 * most once (the owner sees to it) and holding a reference to it. */
struct twi_leftover {
    struct twi_leftover *next;
};

struct twi_loop;

/* What the loop calls, with its baton held. */
struct twi_loop_hooks {
    void (*event)(uint64_t data, uint32_t events, int64_t now_ns);
    void (*timer)(int kind, uint64_t id, int64_t now_ns);
    void (*leftover)(struct twi_leftover *item, int64_t now_ns);
    /* A poller that runs no handlers has ended its round. */
    void (*after)(struct twi_loop *loop);
};

struct twi_loop {
    int ep, wake_fd, timer_fd;
    _Atomic uint32_t baton;
    _Atomic uint32_t watched;    /* an asyncio loop watches the epoll set */
    _Atomic uint32_t shut;       /* the descriptors are closed */
    _Atomic uint32_t users;      /* threads inside a use of the descriptors */
    _Atomic uint64_t rounds;     /* poll rounds begun */
    _Atomic int64_t last_event_ns;
    _Atomic int64_t armed_ns;    /* what the timerfd is set to */
    struct twi_leftover *_Atomic leftovers;
    pthread_mutex_t arm_lock;
    struct twi_timers timers;
    struct twi_loop_hooks hooks;
};

/* How the dispatcher waits while nothing needs its ticks: for a poller to come
 * back, beside an asyncio loop that watches the main loop's set, or in
 * epoll_wait itself. */
enum twi_parked {
    TWI_TICKING,
    TWI_PARKED,
    TWI_PARKED_WATCHING,
    TWI_PARKED_POLLING
};

struct twi_parking {
    _Atomic uint32_t how; /* enum twi_parked; the futex of TWI_PARKED */
    int fd; /* an eventfd, readable when TWI_PARKED_WATCHING ended */
};

extern struct twi_parking twi_parking;

/* Ends the dispatcher's parking: time matters again.  Every poller calls it at
 * the beginning of its round and when it has dropped the baton.  Any thread. */
void twi_loop_unpark(void);

/* The first is the main loop: workers, callers, asyncio loops and the
 * dispatcher poll it. */
extern struct twi_loop twi_loops[TWI_LOOPS_MAX];
#define TWI_MAIN (&twi_loops[0])

/* Which of them it is. */
static inline uint32_t
twi_loop_index(const struct twi_loop *loop)
{
    return (uint32_t)(loop - twi_loops);
}

/* 0 or a negative errno. */
int twi_loop_init(struct twi_loop *loop, const struct twi_loop_hooks *hooks);
/* For an end that came too early: nobody has used the loop yet. */
void twi_loop_fini(struct twi_loop *loop);
/* Takes the baton for good, runs what is left and closes the descriptors, once
 * no thread uses them: 0.  -EBUSY when somebody goes on using them (an asyncio
 * loop that watches, a poller that does not come out): they stay open.  From
 * then on nothing can be watched and leftovers run where they arise.  Blocks
 * for TWI_SHUT_TRIES ticks at most. */
int twi_loop_shut(struct twi_loop *loop);
/* Closes the descriptors, touches nothing else (a forked child). */
void twi_loop_close_fds(struct twi_loop *loop);

/* Takes the baton if it is free: 1, else 0.  Wait-free. */
int twi_baton_take(struct twi_loop *loop);
void twi_baton_drop(struct twi_loop *loop);
int twi_baton_held(struct twi_loop *loop);

/* One round, the baton held: waits at most timeout_ms (< 0: for ever), then
 * handles what there is.  Events handled, or -EINTR.  Blocks. */
int twi_loop_poll(struct twi_loop *loop, int timeout_ms);
/* To be called after a round by who cannot run what it queued. */
void twi_loop_after_poll(struct twi_loop *loop);
/* Makes the current or next epoll_wait return.  Any thread. */
void twi_loop_wake(struct twi_loop *loop);
/* Makes another thread that polls look at what it waits for. */
void twi_loop_nudge(struct twi_loop *loop);
/* Puts work on the list of leftovers.  Any thread. */
void twi_loop_leave(struct twi_loop *loop, struct twi_leftover *item);

/* Watches fd (edge-triggered) with `data`; 0 or a negative errno, -ESHUTDOWN
 * when the loop is shut. */
int twi_loop_add(struct twi_loop *loop, int fd, uint32_t events, uint64_t data);
int twi_loop_mod(struct twi_loop *loop, int fd, uint32_t events, uint64_t data);
void twi_loop_del(struct twi_loop *loop, int fd);

/* As twi_timers_add, and sees that the loop wakes for it.  Any thread. */
int twi_loop_timer(struct twi_loop *loop, struct twi_timer *timer,
                   int64_t when_ns, int kind, uint64_t id);
void twi_loop_timer_remove(struct twi_loop *loop, struct twi_timer *timer);

#endif
