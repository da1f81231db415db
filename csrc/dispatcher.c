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
static _Atomic uint32_t ended;

/* Quiet: no event for a while and nothing that a tick would see to. */
static int
is_quiet(int64_t now_ns, int busy)
{
    return !busy &&
           now_ns - load_relaxed(&twi_loop.last_event_ns) > TWI_QUIET_NS;
}

/* Sleeps until a poller comes back or drops the baton. */
static void
park(void)
{
    store_seq_cst(&twi_loop.sleeping, 1);
    /* Announced; look again.  Partners: unpark_dispatcher's callers. */
    if (twi_baton_held() && !load_seq_cst(&stopping))
        while (load_seq_cst(&twi_loop.sleeping))
            twi_futex_wait(&twi_loop.sleeping, 1, -1);
    store_seq_cst(&twi_loop.sleeping, 0);
}

/* The baton is ours and was free for a whole tick. */
static void
poll_once(int quiet)
{
    int n = twi_loop_poll(0);
    twi_count(TWI_DISPATCHER_POLLS, 1);
    twi_loop_after_poll();
    if (n != 0 || !quiet) {
        twi_baton_drop();
        return;
    }
    /* Nothing to do: wait for events, where it costs the least. */
    if (load_seq_cst(&twi_loop.watched)) {
        /* The asyncio loop waits on the set; if it is stuck when something
         * comes, the ticks that follow show it. */
        struct pollfd set = {twi_loop.ep, POLLIN, 0};
        twi_baton_drop();
        if (!load_seq_cst(&stopping))
            poll(&set, 1, -1);
        /* Traffic again: ticks for a while. */
        store_relaxed(&twi_loop.last_event_ns, twi_now_ns());
        return;
    }
    twi_baton_drop();
    /* A worker with nothing to do polls better: it can run what it cuts. */
    if (twi_wake_poller())
        return;
    if (!twi_baton_take())
        return;
    if (!load_seq_cst(&stopping)) {
        twi_loop_poll(-1);
        twi_count(TWI_DISPATCHER_POLLS, 1);
        twi_loop_after_poll();
    }
    twi_baton_drop();
}

static void *
run(void *unused)
{
    uint64_t seen = load_relaxed(&twi_loop.rounds);
    (void)unused;
    pthread_setname_np(pthread_self(), "tidewire");
    while (!load_seq_cst(&stopping)) {
        twi_futex_wait(&stopping, 0, TWI_TICK_NS);
        int64_t now_ns = twi_now_ns();
        int busy = twi_wake_tick(now_ns) | twi_budget_tick(now_ns);
        int quiet = is_quiet(now_ns, busy);
        uint64_t rounds = load_relaxed(&twi_loop.rounds);
        if (rounds == seen && twi_baton_take())
            poll_once(quiet);
        else if (quiet && twi_baton_held())
            park();
        seen = load_relaxed(&twi_loop.rounds);
    }
    store_seq_cst(&ended, 1);
    twi_futex_wake(&ended, 1);
    return NULL;
}

int
twi_dispatcher_start(void)
{
    sigset_t all, before;
    sigfillset(&all);
    store_seq_cst(&stopping, 0);
    store_seq_cst(&ended, 0);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&thread, NULL, run, NULL);
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
    /* Wherever it waits: parked, in epoll_wait, or in poll. */
    store_seq_cst(&twi_loop.sleeping, 0);
    twi_futex_wake(&twi_loop.sleeping, 1);
    /* Again and again: another poller may take the wake-up before the
     * dispatcher, on its way into poll, waits for it. */
    while (!load_seq_cst(&ended)) {
        twi_loop_wake();
        twi_futex_wait(&ended, 0, TWI_TICK_NS);
    }
    pthread_join(thread, NULL);
    running = 0;
}

void
twi_dispatcher_forget(void)
{
    running = 0;
}
