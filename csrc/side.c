#include "side.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>

#include "atomics.h"
#include "sys.h"

static pthread_t threads[TWI_LOOPS_MAX]; /* the first is not used */
static _Atomic uint32_t stopping;

/* Opening sockets is no hot path: a lock keeps their loops' number from
 * changing under them. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int wanted = 1;
/* Loops, the main loop among them.  relaxed throughout: changed under the lock,
 * but for the end, when a socket that is still opened finds its loop shut. */
static _Atomic int running = 1;
static int used;                /* a socket was opened */
static uint32_t turn;

static void *
run(void *arg)
{
    struct twi_loop *loop = arg;
    /* A stop before the first round or during one is seen here; a later one
     * finds the eventfd, which only we read, and ends the wait.  relaxed: the
     * eventfd orders. */
    while (!load_relaxed(&stopping)) {
        int ours = twi_baton_take(loop);
        assert(ours); /* nobody else wants it before we are joined */
        (void)ours;
        twi_loop_poll(loop, -1);
        twi_loop_after_poll(loop);
        twi_baton_drop(loop);
    }
    return NULL;
}

/* Ends the threads of loops 1 to n - 1. */
static void
stop(int n)
{
    store_relaxed(&stopping, 1); /* then the eventfd, which orders */
    for (int i = 1; i < n; i++)
        twi_loop_wake(&twi_loops[i]);
    for (int i = 1; i < n; i++)
        pthread_join(threads[i], NULL);
    for (int i = 1; i < n; i++)
        twi_loop_shut(&twi_loops[i]);
}

static int
start(int n, const struct twi_loop_hooks *hooks)
{
    sigset_t all, before;
    char name[24];
    int rc = 0, i;
    sigfillset(&all);
    store_relaxed(&stopping, 0); /* their creation orders */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (i = 1; i < n; i++) {
        if ((rc = twi_loop_init(&twi_loops[i], hooks)))
            break;
        rc = -twi_sys.pthread_create(&threads[i], NULL, run, &twi_loops[i]);
        if (rc) {
            twi_loop_fini(&twi_loops[i]);
            break;
        }
        snprintf(name, sizeof name, "tidewire-%d", i);
        pthread_setname_np(threads[i], name);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc)
        stop(i);
    else
        store_relaxed(&running, n);
    return rc;
}

int
twi_sides_start(const struct twi_loop_hooks *hooks)
{
    pthread_mutex_lock(&lock);
    used = 0;
    turn = 0;
    int rc = start(wanted, hooks);
    pthread_mutex_unlock(&lock);
    return rc;
}

void
twi_sides_stop(void)
{
    /* Not under the lock: a round that is under way may open a socket. */
    stop(load_relaxed(&running));
    store_relaxed(&running, 1);
}

void
twi_sides_forget(void)
{
    pthread_mutex_init(&lock, NULL);
    store_relaxed(&running, 1);
}

int
twi_sides_set(int n, const struct twi_loop_hooks *hooks)
{
    int rc = 0;
    if (n < 1 || n > TWI_LOOPS_MAX)
        return -EINVAL;
    pthread_mutex_lock(&lock);
    if (hooks && n != load_relaxed(&running)) {
        if (used)
            rc = -EBUSY;
        else {
            stop(load_relaxed(&running));
            store_relaxed(&running, 1);
            rc = start(n, hooks);
        }
    }
    if (!rc)
        wanted = n;
    pthread_mutex_unlock(&lock);
    return rc;
}

struct twi_loop *
twi_sides_choose(int main)
{
    pthread_mutex_lock(&lock);
    uint32_t at = main ? 0 : turn++ % (uint32_t)load_relaxed(&running);
    used = 1;
    pthread_mutex_unlock(&lock);
    return &twi_loops[at];
}

int
twi_sides_count(void)
{
    /* relaxed: it does not change while there are sockets, and who asks came
     * by one, which was opened under the lock. */
    return load_relaxed(&running);
}
