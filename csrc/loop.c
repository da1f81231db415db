#include "loop.h"

#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

#include "atomics.h"
#include "counters.h"
#include "sys.h"

struct twi_loop twi_loops[TWI_LOOPS_MAX] = {
    [0 ... TWI_LOOPS_MAX - 1] = {.ep = -1, .wake_fd = -1, .timer_fd = -1}};

struct twi_parking twi_parking = {.fd = -1};

/* Watchers' data hold a slot in the upper half; no slot is that high. */
#define WAKE_DATA (UINT64_MAX)
#define TIMER_DATA (UINT64_MAX - 1)

/* The loop whose events this thread handles inside twi_loop_poll: it will look
 * at that one's leftovers itself before it leaves. */
static _Thread_local struct twi_loop *polling;

int
twi_loop_init(struct twi_loop *loop, const struct twi_loop_hooks *hooks)
{
    int rc = twi_timers_init(&loop->timers);
    if (rc)
        return rc;
    loop->hooks = *hooks;
    pthread_mutex_init(&loop->arm_lock, NULL);
    loop->ep = twi_sys.epoll_create1(EPOLL_CLOEXEC);
    loop->wake_fd = twi_sys.eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    loop->timer_fd =
        twi_sys.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (loop == TWI_MAIN)
        twi_parking.fd = twi_sys.eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (loop->ep < 0 || loop->wake_fd < 0 || loop->timer_fd < 0 ||
        (loop == TWI_MAIN && twi_parking.fd < 0)) {
        rc = -errno;
        twi_loop_fini(loop);
        return rc;
    }
    store_relaxed(&loop->baton, 0);
    store_relaxed(&loop->watched, 0);
    store_relaxed(&loop->shut, 0);
    store_relaxed(&loop->users, 0);
    store_relaxed(&loop->rounds, 0);
    store_relaxed(&loop->last_event_ns, 0);
    store_relaxed(&loop->armed_ns, INT64_MAX);
    store_relaxed(&loop->leftovers, NULL);
    if ((rc = twi_loop_add(loop, loop->wake_fd, EPOLLIN, WAKE_DATA)) ||
        (rc = twi_loop_add(loop, loop->timer_fd, EPOLLIN, TIMER_DATA)))
        twi_loop_fini(loop);
    return rc;
}

void
twi_loop_close_fds(struct twi_loop *loop)
{
    int *fds[] = {&loop->ep, &loop->wake_fd, &loop->timer_fd, &twi_parking.fd};
    for (int i = 0; i < (loop == TWI_MAIN ? 4 : 3); i++)
        if (*fds[i] >= 0) {
            twi_sys_close(*fds[i]);
            *fds[i] = -1;
        }
}

void
twi_loop_fini(struct twi_loop *loop)
{
    twi_loop_close_fds(loop);
    twi_timers_fini(&loop->timers);
}

int
twi_baton_take(struct twi_loop *loop)
{
    uint32_t free = 0;
    if (load_relaxed(&loop->baton)) /* the exchange looks again */
        return 0;
    return atomic_compare_exchange_strong(&loop->baton, &free, 1);
}

/* The descriptors are open until `leave_fds` if it says 1. */
static int
enter_fds(struct twi_loop *loop)
{
    /* seq_cst: partner of twi_loop_shut, which shuts and then looks. */
    add_seq_cst(&loop->users, 1);
    if (!load_seq_cst(&loop->shut))
        return 1;
    sub_relaxed(&loop->users, 1); /* it touched nothing */
    return 0;
}

static void
leave_fds(struct twi_loop *loop)
{
    /* release: pairs with twi_loop_shut, which closes what was used. */
    atomic_fetch_sub_explicit(&loop->users, 1, memory_order_release);
}

void
twi_loop_unpark(void)
{
    /* seq_cst: the dispatcher announces parking, then looks at what is pending
     * and at the baton; we come from changing these. */
    if (!load_seq_cst(&twi_parking.how))
        return;
    switch (atomic_exchange(&twi_parking.how, TWI_TICKING)) {
    case TWI_PARKED:
        twi_futex_wake(&twi_parking.how, 1);
        break;
    case TWI_PARKED_WATCHING:
        /* Not the set: the asyncio loop may have emptied it again before the
         * dispatcher comes to look. */
        if (enter_fds(TWI_MAIN)) {
            twi_sys_ring(twi_parking.fd);
            leave_fds(TWI_MAIN);
        }
        break;
    case TWI_PARKED_POLLING:
        /* Inside a round of the main loop it is the dispatcher itself. */
        if (polling != TWI_MAIN)
            twi_loop_wake(TWI_MAIN);
        break;
    default:
        break;
    }
}

void
twi_baton_drop(struct twi_loop *loop)
{
    assert(load_relaxed(&loop->baton) == 1);
    store_seq_cst(&loop->baton, 0);
    twi_loop_unpark();
}

int
twi_baton_held(struct twi_loop *loop)
{
    return load_seq_cst(&loop->baton) != 0;
}

void
twi_loop_wake(struct twi_loop *loop)
{
    if (enter_fds(loop)) {
        twi_sys_ring(loop->wake_fd);
        leave_fds(loop);
    }
}

void
twi_loop_nudge(struct twi_loop *loop)
{
    if (polling != loop && twi_baton_held(loop))
        twi_loop_wake(loop);
}

static void run_leftovers(struct twi_loop *loop, int64_t now_ns);

void
twi_loop_leave(struct twi_loop *loop, struct twi_leftover *item)
{
    struct twi_leftover *head = load_relaxed(&loop->leftovers);
    do
        item->next = head;
    /* release: publishes the item to run_leftovers' acquire. */
    while (!atomic_compare_exchange_weak_explicit(
        &loop->leftovers, &head, item, memory_order_seq_cst,
        memory_order_relaxed));
    /* seq_cst: partner of twi_loop_shut's last look at the list. */
    if (load_seq_cst(&loop->shut))
        run_leftovers(loop, twi_now_ns());
    else if (!head && polling != loop)
        twi_loop_wake(loop);
}

static void
run_leftovers(struct twi_loop *loop, int64_t now_ns)
{
    /* acquire: pairs with the release in twi_loop_leave. */
    struct twi_leftover *item = atomic_exchange_explicit(
        &loop->leftovers, NULL, memory_order_seq_cst);
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
        loop->hooks.leftover(oldest, now_ns);
        oldest = next;
    }
}

/* Sets the timerfd to the earliest deadline if that is earlier than what it
 * is set to.  The lock keeps two settimes from overtaking each other. */
static void
arm_earliest(struct twi_loop *loop)
{
    pthread_mutex_lock(&loop->arm_lock);
    int64_t next = twi_timers_next(&loop->timers);
    if (next < load_relaxed(&loop->armed_ns) && enter_fds(loop)) {
        /* 1 ns instead of 0, which would disarm. */
        int64_t at = next > 0 ? next : 1;
        struct itimerspec spec = {
            .it_value = {at / 1000000000, at % 1000000000}};
        store_relaxed(&loop->armed_ns, next);
        twi_sys.timerfd_settime(loop->timer_fd, TFD_TIMER_ABSTIME, &spec, NULL);
        leave_fds(loop);
    }
    pthread_mutex_unlock(&loop->arm_lock);
}

static void
run_timers(struct twi_loop *loop, int64_t now_ns)
{
    int kind;
    uint64_t id;
    pthread_mutex_lock(&loop->arm_lock);
    twi_sys_unring(loop->timer_fd);
    store_relaxed(&loop->armed_ns, INT64_MAX);
    pthread_mutex_unlock(&loop->arm_lock);
    while (twi_timers_pop(&loop->timers, now_ns, &kind, &id))
        loop->hooks.timer(kind, id, now_ns);
    arm_earliest(loop);
}

int
twi_loop_timer(struct twi_loop *loop, struct twi_timer *timer, int64_t when_ns,
               int kind, uint64_t id)
{
    int rc = twi_timers_add(&loop->timers, timer, when_ns, kind, id);
    /* relaxed: a stale look costs a lock, never a deadline, since armed_ns
     * only falls while the timer is in the heap or is reset before the heap
     * is looked at (run_timers). */
    if (rc == 1 && when_ns < load_relaxed(&loop->armed_ns))
        arm_earliest(loop);
    return rc < 0 ? rc : 0;
}

void
twi_loop_timer_remove(struct twi_loop *loop, struct twi_timer *timer)
{
    twi_timers_remove(&loop->timers, timer);
}

int
twi_loop_poll(struct twi_loop *loop, int timeout_ms)
{
    struct epoll_event events[TWI_LOOP_EVENTS];
    int timers = 0;
    /* relaxed: the dispatcher only compares it with what it saw before. */
    add_relaxed(&loop->rounds, 1);
    twi_count(TWI_POLLS, 1);
    /* relaxed, here and below: who puts something rings, but for what this
     * thread puts itself. */
    if (load_relaxed(&loop->leftovers))
        timeout_ms = 0;
    int n = twi_sys_epoll_wait(loop->ep, events, TWI_LOOP_EVENTS, timeout_ms);
    int64_t now_ns = twi_now_ns();
    if (n > 0)
        store_relaxed(&loop->last_event_ns, now_ns);
    polling = loop;
    twi_loop_unpark(); /* time passes again: it ticks */
    for (int i = 0; i < n; i++) {
        if (events[i].data.u64 == WAKE_DATA)
            twi_sys_unring(loop->wake_fd);
        else if (events[i].data.u64 == TIMER_DATA)
            timers = 1;
        else
            loop->hooks.event(events[i].data.u64, events[i].events, now_ns);
    }
    if (timers)
        run_timers(loop, now_ns);
    if (load_relaxed(&loop->leftovers))
        run_leftovers(loop, now_ns);
    polling = NULL;
    /* A round that found nothing says nothing. */
    if (n > 0)
        twi_histogram_add(twi_round_cell, twi_now_ns() - now_ns);
    /* What is left again must be visible to epoll: the next poller may be
     * blocked elsewhere, watching the set. */
    if (load_relaxed(&loop->leftovers))
        twi_loop_wake(loop);
    return n;
}

void
twi_loop_after_poll(struct twi_loop *loop)
{
    if (loop->hooks.after)
        loop->hooks.after(loop);
}

static int
control(struct twi_loop *loop, int op, int fd, uint32_t events, uint64_t data)
{
    if (!enter_fds(loop))
        return -ESHUTDOWN;
    int rc = twi_sys_epoll_ctl(loop->ep, op, fd, events, data);
    leave_fds(loop);
    return rc;
}

int
twi_loop_add(struct twi_loop *loop, int fd, uint32_t events, uint64_t data)
{
    return control(loop, EPOLL_CTL_ADD, fd, events, data);
}

int
twi_loop_mod(struct twi_loop *loop, int fd, uint32_t events, uint64_t data)
{
    return control(loop, EPOLL_CTL_MOD, fd, events, data);
}

void
twi_loop_del(struct twi_loop *loop, int fd)
{
    control(loop, EPOLL_CTL_DEL, fd, 0, 0);
}

int
twi_loop_shut(struct twi_loop *loop)
{
    for (int tries = 0; !twi_baton_take(loop); tries++) {
        if (tries == TWI_SHUT_TRIES)
            return -EBUSY;
        /* Another poller may take a wake-up that was meant for this one. */
        twi_loop_wake(loop);
        twi_futex_wait(&loop->baton, 1, TWI_TICK_NS);
    }
    twi_loop_poll(loop, 0); /* leftovers hold references */
    /* seq_cst: partner of tw_watch, which watches and then looks at `shut`. */
    store_seq_cst(&loop->shut, 1);
    if (load_seq_cst(&loop->watched)) {
        /* relaxed: who saw it shut was refused, and ran its leftovers. */
        store_relaxed(&loop->shut, 0);
        twi_baton_drop(loop);
        return -EBUSY;
    }
    run_leftovers(loop, twi_now_ns());
    /* Inside a system call that does not block, or about to see `shut`. */
    while (load_seq_cst(&loop->users)) /* acquire: pairs with leave_fds */
        sched_yield();
    twi_loop_close_fds(loop);
    return 0;
}
