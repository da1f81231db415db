#include "loop.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

#include "atomics.h"
#include "counters.h"
#include "sys.h"

struct twi_loop twi_loop = {.ep = -1, .wake_fd = -1, .timer_fd = -1};

/* Watchers' data hold a slot in the upper half; no slot is that high. */
#define WAKE_DATA (UINT64_MAX)
#define TIMER_DATA (UINT64_MAX - 1)

/* 1 while this thread is inside twi_loop_poll: it will look at the leftovers
 * itself before it leaves. */
static _Thread_local int polling;

int
twi_loop_init(const struct twi_loop_hooks *hooks)
{
    int rc = twi_timers_init(&twi_loop.timers);
    if (rc)
        return rc;
    twi_loop.hooks = *hooks;
    pthread_mutex_init(&twi_loop.arm_lock, NULL);
    twi_loop.ep = twi_sys.epoll_create1(EPOLL_CLOEXEC);
    twi_loop.wake_fd = twi_sys.eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    twi_loop.timer_fd =
        twi_sys.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (twi_loop.ep < 0 || twi_loop.wake_fd < 0 || twi_loop.timer_fd < 0) {
        rc = -errno;
        twi_loop_fini();
        return rc;
    }
    store_relaxed(&twi_loop.baton, 0);
    store_relaxed(&twi_loop.watched, 0);
    store_relaxed(&twi_loop.sleeping, 0);
    store_relaxed(&twi_loop.rounds, 0);
    store_relaxed(&twi_loop.last_event_ns, 0);
    store_relaxed(&twi_loop.armed_ns, INT64_MAX);
    store_relaxed(&twi_loop.leftovers, NULL);
    if ((rc = twi_loop_add(twi_loop.wake_fd, EPOLLIN, WAKE_DATA)) ||
        (rc = twi_loop_add(twi_loop.timer_fd, EPOLLIN, TIMER_DATA)))
        twi_loop_fini();
    return rc;
}

void
twi_loop_close_fds(void)
{
    int *fds[] = {&twi_loop.ep, &twi_loop.wake_fd, &twi_loop.timer_fd};
    for (int i = 0; i < 3; i++)
        if (*fds[i] >= 0) {
            twi_sys_close(*fds[i]);
            *fds[i] = -1;
        }
}

void
twi_loop_fini(void)
{
    twi_loop_close_fds();
    twi_timers_fini(&twi_loop.timers);
}

int
twi_baton_take(void)
{
    uint32_t free = 0;
    if (load_seq_cst(&twi_loop.baton))
        return 0;
    return atomic_compare_exchange_strong(&twi_loop.baton, &free, 1);
}

static void
unpark_dispatcher(void)
{
    /* seq_cst: the dispatcher announces parking, then looks at the baton. */
    if (load_seq_cst(&twi_loop.sleeping) &&
        atomic_exchange(&twi_loop.sleeping, 0))
        twi_futex_wake(&twi_loop.sleeping, 1);
}

void
twi_baton_drop(void)
{
    assert(load_relaxed(&twi_loop.baton) == 1);
    store_seq_cst(&twi_loop.baton, 0);
    unpark_dispatcher();
}

int
twi_baton_held(void)
{
    return load_seq_cst(&twi_loop.baton) != 0;
}

void
twi_loop_wake(void)
{
    twi_sys_ring(twi_loop.wake_fd);
}

void
twi_loop_nudge(void)
{
    if (!polling && twi_baton_held())
        twi_loop_wake();
}

void
twi_loop_leave(struct twi_leftover *item)
{
    struct twi_leftover *head = load_relaxed(&twi_loop.leftovers);
    do
        item->next = head;
    /* release: publishes the item to run_leftovers' acquire. */
    while (!atomic_compare_exchange_weak_explicit(
        &twi_loop.leftovers, &head, item, memory_order_seq_cst,
        memory_order_relaxed));
    if (!head && !polling)
        twi_loop_wake();
}

static void
run_leftovers(int64_t now_ns)
{
    /* acquire: pairs with the release in twi_loop_leave. */
    struct twi_leftover *item = atomic_exchange_explicit(
        &twi_loop.leftovers, NULL, memory_order_seq_cst);
    struct twi_leftover *oldest = NULL;
    while (item) {
        struct twi_leftover *next = item->next;
        item->next = oldest;
        oldest = item;
        item = next;
    }
    while (oldest) {
        /* The hook may put it on the list again. */
        struct twi_leftover *next = oldest->next;
        twi_loop.hooks.leftover(oldest, now_ns);
        oldest = next;
    }
}

/* Sets the timerfd to the earliest deadline if that is earlier than what it
 * is set to.  The lock keeps two settimes from overtaking each other. */
static void
arm_earliest(void)
{
    pthread_mutex_lock(&twi_loop.arm_lock);
    int64_t next = twi_timers_next(&twi_loop.timers);
    if (next < load_relaxed(&twi_loop.armed_ns)) {
        /* 1 ns instead of 0, which would disarm. */
        int64_t at = next > 0 ? next : 1;
        struct itimerspec spec = {
            .it_value = {at / 1000000000, at % 1000000000}};
        store_relaxed(&twi_loop.armed_ns, next);
        twi_sys.timerfd_settime(twi_loop.timer_fd, TFD_TIMER_ABSTIME, &spec,
                                NULL);
    }
    pthread_mutex_unlock(&twi_loop.arm_lock);
}

static void
run_timers(int64_t now_ns)
{
    int kind;
    uint64_t id;
    pthread_mutex_lock(&twi_loop.arm_lock);
    twi_sys_unring(twi_loop.timer_fd);
    store_relaxed(&twi_loop.armed_ns, INT64_MAX);
    pthread_mutex_unlock(&twi_loop.arm_lock);
    while (twi_timers_pop(&twi_loop.timers, now_ns, &kind, &id))
        twi_loop.hooks.timer(kind, id, now_ns);
    arm_earliest();
}

int
twi_loop_timer(struct twi_timer *timer, int64_t when_ns, int kind, uint64_t id)
{
    int rc = twi_timers_add(&twi_loop.timers, timer, when_ns, kind, id);
    /* relaxed: a stale look costs a lock, never a deadline, since armed_ns
     * only falls while the timer is in the heap or is reset before the heap
     * is looked at (run_timers). */
    if (rc == 1 && when_ns < load_relaxed(&twi_loop.armed_ns))
        arm_earliest();
    return rc < 0 ? rc : 0;
}

void
twi_loop_timer_remove(struct twi_timer *timer)
{
    twi_timers_remove(&twi_loop.timers, timer);
}

int
twi_loop_poll(int timeout_ms)
{
    struct epoll_event events[TWI_LOOP_EVENTS];
    int timers = 0;
    /* relaxed: the dispatcher only compares it with what it saw before. */
    add_relaxed(&twi_loop.rounds, 1);
    twi_count(TWI_POLLS, 1);
    if (load_seq_cst(&twi_loop.leftovers))
        timeout_ms = 0;
    int n = twi_sys_epoll_wait(twi_loop.ep, events, TWI_LOOP_EVENTS, timeout_ms);
    int64_t now_ns = twi_now_ns();
    if (n > 0)
        store_relaxed(&twi_loop.last_event_ns, now_ns);
    unpark_dispatcher(); /* time passes again: it ticks */
    polling = 1;
    for (int i = 0; i < n; i++) {
        if (events[i].data.u64 == WAKE_DATA)
            twi_sys_unring(twi_loop.wake_fd);
        else if (events[i].data.u64 == TIMER_DATA)
            timers = 1;
        else
            twi_loop.hooks.event(events[i].data.u64, events[i].events, now_ns);
    }
    if (timers)
        run_timers(now_ns);
    if (load_seq_cst(&twi_loop.leftovers))
        run_leftovers(now_ns);
    polling = 0;
    /* What is left again must be visible to epoll: the next poller may be
     * blocked elsewhere, watching the set. */
    if (load_seq_cst(&twi_loop.leftovers))
        twi_loop_wake();
    return n;
}

void
twi_loop_after_poll(void)
{
    if (twi_loop.hooks.after)
        twi_loop.hooks.after();
}

int
twi_loop_add(int fd, uint32_t events, uint64_t data)
{
    return twi_sys_epoll_ctl(twi_loop.ep, EPOLL_CTL_ADD, fd, events, data);
}

int
twi_loop_mod(int fd, uint32_t events, uint64_t data)
{
    return twi_sys_epoll_ctl(twi_loop.ep, EPOLL_CTL_MOD, fd, events, data);
}

void
twi_loop_del(int fd)
{
    twi_sys_epoll_ctl(twi_loop.ep, EPOLL_CTL_DEL, fd, 0, 0);
}
