#include "dispatcher.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>

#include "atomics.h"
#include "budget.h"
#include "call.h"
#include "counters.h"
#include "loop.h"
#include "sys.h"
#include "worker.h"

static pthread_t thread;
static int running;
static _Atomic uint32_t stopping; /* also the futex of a tick's sleep */

/* Quiet: no event for a while and nothing that a tick would see to. */
static int
is_quiet(int64_t now_ns, int busy)
{
    if (busy)
        return 0;
    for (uint32_t i = 0; i < TWI_LOOPS_MAX; i++)
        if (now_ns - load_relaxed(&twi_loops[i].last_event_ns) <= TWI_QUIET_NS)
            return 0;
    return 1;
}

/* Waits, as `how` says, until there is something to tick for. */
static void
park(enum twi_parked how)
{
    store_seq_cst(&twi_parking.how, how);
    /* Announced; look again.  What came before the announcement is seen here:
     * `stopping`, and what a tick would see to, which a worker or an asyncio
     * loop may have queued or corked since is_quiet was asked.  Who brings
     * something afterwards ends the parking: a poller unparks before it cuts
     * and when it drops the baton, an inbox's consumer when it corks.  A worker
     * that corks says nothing: it corks before it pops the next request of that
     * connection, which either stands in the queue, where we look first, or is
     * cut later.  tests/models/baton.pml, FAULT_6. */
    if (!load_seq_cst(&stopping) && !twi_wake_pending()) {
        struct pollfd fds[] = {{TWI_MAIN->ep, POLLIN, 0},
                               {twi_parking.fd, POLLIN, 0}};
        switch (how) {
        case TWI_PARKED_WATCHING:
            twi_sys.poll(fds, 2, -1);
            twi_sys_unring(twi_parking.fd);
            break;
        case TWI_PARKED_POLLING:
            twi_loop_poll(TWI_MAIN, -1);
            twi_count(TWI_DISPATCHER_POLLS, 1);
            twi_loop_after_poll(TWI_MAIN);
            break;
        default:
            /* Partner of the baton's drop, which unparks.  relaxed: the futex
             * compares. */
            while (twi_baton_held(TWI_MAIN) && load_relaxed(&twi_parking.how))
                twi_futex_wait(&twi_parking.how, how, -1);
        }
    }
    /* relaxed: who still sees it parked wakes it in vain. */
    store_relaxed(&twi_parking.how, TWI_TICKING);
}

/* The baton is ours and was free for a whole tick. */
static void
poll_once(int quiet)
{
    int n = twi_loop_poll(TWI_MAIN, 0);
    twi_count(TWI_DISPATCHER_POLLS, 1);
    twi_loop_after_poll(TWI_MAIN);
    twi_baton_drop(TWI_MAIN);
    if (n != 0 || !quiet)
        return;
    /* Nothing to do: wait for events, where it costs the least. */
    if (load_relaxed(&TWI_MAIN->watched)) { /* a hint: who begins to, rings */
        /* The asyncio loop waits on the set; if it is stuck when something
         * comes, the ticks that follow show it. */
        park(TWI_PARKED_WATCHING);
        /* Traffic again: ticks for a while. */
        store_relaxed(&TWI_MAIN->last_event_ns, twi_now_ns());
        return;
    }
    /* A worker with nothing to do polls better: it can run what it cuts. */
    if (twi_wake_poller() || !twi_baton_take(TWI_MAIN))
        return;
    park(TWI_PARKED_POLLING);
    twi_baton_drop(TWI_MAIN);
}

static void *
run(void *unused)
{
    uint64_t seen = load_relaxed(&TWI_MAIN->rounds);
    (void)unused;
    pthread_setname_np(pthread_self(), "tidewire");
    /* relaxed: looked at again with every tick. */
    while (!load_relaxed(&stopping)) {
        twi_futex_wait(&stopping, 0, TWI_TICK_NS);
        int64_t now_ns = twi_now_ns();
        int busy = twi_wake_tick(now_ns) | twi_budget_tick(now_ns);
        int quiet = is_quiet(now_ns, busy);
        uint64_t rounds = load_relaxed(&TWI_MAIN->rounds);
        if (rounds == seen && twi_baton_take(TWI_MAIN))
            poll_once(quiet);
        else if (quiet)
            park(TWI_PARKED);
        seen = load_relaxed(&TWI_MAIN->rounds);
    }
    return NULL;
}

int
twi_dispatcher_start(void)
{
    sigset_t all, before;
    sigfillset(&all);
    store_relaxed(&stopping, 0); /* its creation orders */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = twi_sys.pthread_create(&thread, NULL, run, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    running = rc == 0;
    return -rc;
}

void
twi_dispatcher_stop(void)
{
    if (!running)
        return;
    store_seq_cst(&stopping, 1);
    twi_futex_wake(&stopping, 1);
    /* Wherever it waits: it announces that and then looks at `stopping`; the
     * wake-up is for it alone, since in epoll_wait it holds the baton. */
    twi_loop_unpark();
    pthread_join(thread, NULL);
    running = 0;
}

void
twi_dispatcher_forget(void)
{
    running = 0;
}
