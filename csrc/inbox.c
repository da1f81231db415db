#include "inbox.h"

#include <assert.h>
#include <errno.h>
#include <sys/eventfd.h>

#include "atomics.h"
#include "cork.h"
#include "iobuf.h"
#include "loop.h"
#include "slab.h"
#include "sys.h"
#include "vref.h"

enum { DRAIN_MAX = 256 };

/* What the consumer is about: runs, sleeps on futex or eventfd, polls. */
enum { AWAKE, SLEEPS, POLLS };

struct inbox {
    _Atomic uint64_t vref;
    uint32_t slot;
    struct twi_inbox_item *_Atomic head; /* newest first */
    /* SLEEPS or POLLS: it must be woken; the futex of a thread. */
    _Atomic uint32_t asleep;
    _Atomic uint32_t rung; /* the eventfd was written */
    _Atomic int fd;        /* -1: no eventfd is wanted */
    _Atomic uint32_t stopped;
    _Atomic uint32_t watching;
    _Atomic int64_t expected; /* calls whose results are to come */
    /* The consumer's. */
    struct twi_corks corks;
    struct twi_inbox_item *taken; /* oldest first */
    struct twi_block *held[DRAIN_MAX];
    int n_held;
};

static struct twi_slab slab;
static twi_inbox_fill *fillers[8];

void
twi_inboxes_init(void)
{
    twi_slab_init(&slab, sizeof(struct inbox));
}

void
twi_inboxes_fini(void)
{
    twi_slab_fini(&slab);
}

void
twi_inbox_filler(int kind, twi_inbox_fill *fill)
{
    fillers[kind] = fill;
}

int64_t
twi_inbox_count(void)
{
    return load_relaxed(&slab.live);
}

static void
release_held(struct inbox *inbox)
{
    for (int i = 0; i < inbox->n_held; i++)
        twi_block_unref(inbox->held[i]);
    inbox->n_held = 0;
}

/* Takes what was put, oldest first, behind what was taken before. */
static void
take_all(struct inbox *inbox)
{
    if (inbox->taken || !load_relaxed(&inbox->head))
        return;
    /* acquire: pairs with the release in put. */
    struct twi_inbox_item *item =
        atomic_exchange_explicit(&inbox->head, NULL, memory_order_acquire);
    while (item) {
        struct twi_inbox_item *next = item->next;
        item->next = inbox->taken;
        inbox->taken = item;
        item = next;
    }
}

static void
recycle(struct inbox *inbox)
{
    for (;;) {
        take_all(inbox);
        struct twi_inbox_item *item = inbox->taken;
        if (!item)
            break;
        inbox->taken = item->next;
        fillers[item->kind](item, NULL, NULL);
    }
    release_held(inbox);
    /* What its consumer corked and never flushed. */
    twi_cork_flush(&inbox->corks);
    int fd = load_relaxed(&inbox->fd);
    if (fd >= 0)
        twi_sys_close(fd);
    store_relaxed(&inbox->fd, -1);
    twi_slab_give(&slab, inbox->slot);
}

static void
unref(struct inbox *inbox)
{
    if (vref_unref(&inbox->vref))
        recycle(inbox);
}

static struct inbox *
address(tw_id id)
{
    struct inbox *inbox = twi_slab_at(&slab, (uint32_t)id);
    if (!inbox || !id)
        return NULL;
    int rc = vref_address(&inbox->vref, (uint32_t)(id >> 32));
    if (rc < 0)
        recycle(inbox);
    return rc == 1 ? inbox : NULL;
}

int
tw_inbox_open(tw_id *id)
{
    uint32_t slot = twi_slab_take(&slab);
    if (slot == TWI_SLAB_NONE)
        return -ENOMEM;
    struct inbox *inbox = twi_slab_at(&slab, slot);
    inbox->slot = slot;
    inbox->taken = NULL;
    inbox->n_held = 0;
    store_relaxed(&inbox->head, NULL);
    store_relaxed(&inbox->asleep, SLEEPS);
    store_relaxed(&inbox->rung, 0);
    store_relaxed(&inbox->fd, -1);
    store_relaxed(&inbox->stopped, 0);
    store_relaxed(&inbox->watching, 0);
    store_relaxed(&inbox->corks.n, 0);
    store_relaxed(&inbox->expected, 0);
    *id = vref_id(vref_open(&inbox->vref, 1), slot);
    return 0;
}

/* `was`: what the consumer was about when it was found. */
static void
ring(struct inbox *inbox, uint32_t was)
{
    if (was == POLLS) {
        twi_loop_nudge(TWI_MAIN);
        return;
    }
    int fd = load_seq_cst(&inbox->fd);
    if (fd >= 0) {
        twi_sys_ring(fd);
        /* Afterwards: a drain that read and cleared in between would leave the
         * descriptor readable for ever.  tests/models/baton.pml, FAULT_3. */
        store_relaxed(&inbox->rung, 1);
    }
    twi_futex_wake(&inbox->asleep, 1);
}

int
tw_inbox_close(tw_id id)
{
    struct inbox *inbox = address(id);
    if (!inbox)
        return -TW_STALE;
    tw_unwatch(id);
    if (vref_fail(&inbox->vref, (uint32_t)(id >> 32))) {
        store_seq_cst(&inbox->stopped, 1);
        ring(inbox, atomic_exchange(&inbox->asleep, AWAKE));
        unref(inbox); /* the additional reference */
    }
    unref(inbox);
    return 0;
}

int
twi_inbox_expect(tw_id id)
{
    struct inbox *inbox = address(id);
    if (!inbox)
        return 0;
    /* seq_cst: partner of wait, which announces sleep and then looks. */
    add_seq_cst(&inbox->expected, 1);
    if (load_relaxed(&inbox->fd) < 0) {
        uint32_t sleeps = SLEEPS;
        if (load_seq_cst(&inbox->asleep) == SLEEPS &&
            atomic_compare_exchange_strong(&inbox->asleep, &sleeps, AWAKE))
            twi_futex_wake(&inbox->asleep, 1);
    }
    unref(inbox);
    return 1;
}

int
twi_inbox_put(tw_id id, struct twi_inbox_item *item)
{
    struct inbox *inbox = address(id);
    if (!inbox)
        return -TW_STALE;
    /* relaxed: who sees the old number polls, and is nudged. */
    if (item->kind == TW_RESULT)
        sub_relaxed(&inbox->expected, 1);
    struct twi_inbox_item *head = load_relaxed(&inbox->head);
    do
        item->next = head;
    /* release: publishes the item to take_all; seq_cst for the look at
     * `asleep`, whose partner is in drain and wait. */
    while (!atomic_compare_exchange_weak_explicit(&inbox->head, &head, item,
                                                  memory_order_seq_cst,
                                                  memory_order_relaxed));
    uint32_t was = load_seq_cst(&inbox->asleep);
    if (was && (was = atomic_exchange(&inbox->asleep, AWAKE)))
        ring(inbox, was);
    unref(inbox);
    return 0;
}

int
tw_inbox_fd(tw_id id)
{
    struct inbox *inbox = address(id);
    if (!inbox)
        return -TW_STALE;
    int fd = load_relaxed(&inbox->fd);
    if (fd < 0) {
        fd = twi_sys.eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        if (fd < 0)
            fd = -errno;
        else {
            store_seq_cst(&inbox->fd, fd);
            /* Something may have been put when nobody could be rung. */
            if (load_seq_cst(&inbox->head))
                ring(inbox, SLEEPS);
        }
    }
    unref(inbox);
    return fd;
}

int
tw_watch(tw_id id)
{
    struct inbox *inbox = address(id);
    uint32_t nobody = 0;
    if (!inbox)
        return -TW_STALE;
    int rc = -EBUSY;
    if (atomic_compare_exchange_strong(&TWI_MAIN->watched, &nobody, 1)) {
        /* seq_cst: partner of twi_loop_shut, which looks at `watched`. */
        if (load_seq_cst(&TWI_MAIN->shut)) {
            store_relaxed(&TWI_MAIN->watched, 0); /* was never told */
            rc = -TW_STOPPED;
        } else {
            store_relaxed(&inbox->watching, 1); /* the consumer's own mark */
            rc = TWI_MAIN->ep;
            twi_loop_wake(TWI_MAIN); /* a worker that polls lets go */
        }
    }
    unref(inbox);
    return rc;
}

void
tw_unwatch(tw_id id)
{
    struct inbox *inbox = address(id);
    if (!inbox)
        return;
    if (atomic_exchange_explicit(&inbox->watching, 0, memory_order_relaxed)) {
        /* relaxed: the wake-up, which follows, makes somebody look. */
        store_relaxed(&TWI_MAIN->watched, 0);
        twi_loop_wake(TWI_MAIN);
    }
    unref(inbox);
}

int
tw_drain(tw_id id, int poll, tw_event *events, int max, int *more)
{
    struct inbox *inbox = address(id);
    int n = 0;
    *more = 0;
    if (!inbox)
        return -TW_STALE;
    release_held(inbox);
    twi_cork_flush(&inbox->corks);
    if (max > DRAIN_MAX)
        max = DRAIN_MAX;
    /* Awake: puts need not ring, also those of the round below.  relaxed: who
     * still sees it asleep rings in vain. */
    store_relaxed(&inbox->asleep, AWAKE);
    if (load_relaxed(&inbox->rung)) {
        store_seq_cst(&inbox->rung, 0);
        twi_sys_unring(load_relaxed(&inbox->fd));
    }
    if (poll && twi_baton_take(TWI_MAIN)) {
        *more = twi_loop_poll(TWI_MAIN, 0) == TWI_LOOP_EVENTS;
        twi_loop_after_poll(TWI_MAIN);
        twi_baton_drop(TWI_MAIN);
    }
    while (n < max) {
        take_all(inbox);
        struct twi_inbox_item *item = inbox->taken;
        void *block = NULL;
        if (!item)
            break;
        inbox->taken = item->next;
        if (fillers[item->kind](item, &events[n], &block))
            n++;
        if (block)
            inbox->held[inbox->n_held++] = block;
        if (inbox->n_held == DRAIN_MAX)
            break;
    }
    if (inbox->taken)
        *more = 1;
    if (!*more) {
        /* Announce sleep, then look again: partner of put. */
        store_seq_cst(&inbox->asleep, SLEEPS);
        if (load_seq_cst(&inbox->head)) {
            store_relaxed(&inbox->asleep, AWAKE); /* as above */
            *more = 1;
        }
    }
    unref(inbox);
    return n;
}

int
tw_flush(tw_id id)
{
    struct inbox *inbox = address(id);
    if (!inbox)
        return -TW_STALE;
    twi_cork_flush(&inbox->corks);
    unref(inbox);
    return 0;
}

int
twi_inbox_cork(tw_id id, tw_id socket)
{
    struct inbox *inbox = address(id);
    if (!inbox)
        return 0;
    int corked = twi_cork_add(&inbox->corks, socket);
    /* Whoever corks here may be long in coming back to flush: the dispatcher
     * sees to it, and must not be parked (dispatcher.c, park). */
    if (corked)
        twi_loop_unpark();
    unref(inbox);
    return corked;
}

int
tw_inbox_wait(tw_id id, int64_t timeout_ns, int poll)
{
    struct inbox *inbox = address(id);
    int64_t now_ns = twi_now_ns();
    int64_t end_ns = twi_deadline_ns(now_ns, timeout_ns);
    int rc = 0;
    if (!inbox)
        return -TW_STOPPED;
    for (;;) {
        int64_t left = -1;
        /* relaxed: looked at again before it sleeps, and drain acquires. */
        if (load_relaxed(&inbox->stopped)) {
            rc = -TW_STOPPED;
            break;
        }
        if (inbox->taken || load_relaxed(&inbox->head)) {
            rc = 0;
            break;
        }
        if (rc)
            break;
        if (timeout_ns >= 0 && (left = end_ns - twi_now_ns()) <= 0) {
            rc = -ETIMEDOUT;
            continue; /* a last look */
        }
        /* relaxed: looked at again below; `watched` is a hint. */
        int64_t expected = load_relaxed(&inbox->expected);
        if (poll && expected && !load_relaxed(&TWI_MAIN->watched) &&
            twi_baton_take(TWI_MAIN)) {
            int64_t ms = left < 0 ? -1 : left / 1000000 + 1;
            ms = ms > INT32_MAX ? INT32_MAX : ms;
            store_seq_cst(&inbox->asleep, POLLS);
            /* The last holder may have put something and gone. */
            if (!load_seq_cst(&inbox->head) && !load_seq_cst(&inbox->stopped))
                rc = twi_loop_poll(TWI_MAIN, (int)ms);
            rc = rc == -EINTR ? rc : 0;
            store_relaxed(&inbox->asleep, AWAKE); /* else nudged in vain */
            twi_loop_after_poll(TWI_MAIN);
            twi_baton_drop(TWI_MAIN);
            continue;
        }
        store_seq_cst(&inbox->asleep, SLEEPS);
        /* Look again: partners are put, close, expect, the baton's drop. */
        if (load_seq_cst(&inbox->head) || load_seq_cst(&inbox->stopped) ||
            (poll && load_seq_cst(&inbox->expected) != expected))
            continue;
        rc = twi_futex_wait(&inbox->asleep, SLEEPS, left);
    }
    unref(inbox);
    return rc;
}

int
twi_inboxes_flush_old(int64_t before_ns)
{
    int corked = 0;
    for (uint32_t i = 0; i < twi_slab_end(&slab); i++) {
        struct inbox *inbox = twi_slab_at(&slab, i);
        twi_cork_flush_old(&inbox->corks, before_ns);
        corked |= !twi_cork_empty(&inbox->corks);
    }
    return corked;
}

static void
each(void (*fn)(struct inbox *))
{
    for (uint32_t i = 0; i < twi_slab_end(&slab); i++) {
        struct inbox *inbox = twi_slab_at(&slab, i);
        fn(inbox);
    }
}

static void
close_fd(struct inbox *inbox)
{
    int fd = load_relaxed(&inbox->fd);
    /* A fresh slot's is 0, a recycled one's -1. */
    if (vref_version(&inbox->vref) && fd >= 0)
        twi_sys_close(fd);
}

void
twi_inboxes_close_fds(void)
{
    each(close_fd);
}

static void
stop(struct inbox *inbox)
{
    int rc = vref_address(&inbox->vref, vref_look(&inbox->vref));
    if (rc < 0)
        recycle(inbox);
    if (rc != 1)
        return;
    store_seq_cst(&inbox->stopped, 1);
    ring(inbox, atomic_exchange(&inbox->asleep, AWAKE));
    unref(inbox);
}

void
twi_inboxes_stop(void)
{
    each(stop);
}
