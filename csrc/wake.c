/* Whom to wake: the rules of docs/architecture.md, one tick at a time.
 *
 * A worker inside a handler whose CPU clock stands still may sleep, wait for
 * the GIL, or have been preempted; only sleeping is a reason to wake another,
 * since a second runner of Python code only fights for the GIL.  So a standing
 * clock is a suspicion, confirmed by the thread's state and by nobody
 * computing. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "atomics.h"
#include "loop.h"
#include "sys.h"
#include "vref.h"
#include "worker.h"

void
twi_method_ran(struct twi_method *method, int suspected, int blocked)
{
    /* relaxed throughout: a statistic; losing a run to a race is harmless. */
    if (suspected) {
        uint32_t bits = load_relaxed(&method->evidence) << 1 | (blocked != 0);
        bits &= (1u << TWI_EVIDENCE_RUNS) - 1;
        store_relaxed(&method->evidence, bits);
        if (__builtin_popcount(bits) >= TWI_EVIDENCE_NEEDED)
            store_relaxed(&method->blocking, 1);
    }
    if (blocked)
        store_relaxed(&method->runs, 0);
    else if (load_relaxed(&method->blocking) &&
             add_relaxed(&method->runs, 1) + 1 >= TWI_UNMARK_RUNS) {
        store_relaxed(&method->blocking, 0);
        store_relaxed(&method->evidence, 0);
        store_relaxed(&method->runs, 0);
    }
}

void
twi_wake_fresh(struct twi_loop *loop, struct twi_workq *own)
{
    struct twi_server *server;
    while ((server = twi_server_take_fresh(loop))) {
        struct twi_fresh *fresh = &server->fresh[twi_loop_index(loop)];
        int wanted = (int)fresh->blocking, any = fresh->n != 0;
        /* seq_cst: the worker said so, and then looked at the queue. */
        int polls = loop != TWI_MAIN && load_seq_cst(&server->polls);
        fresh->n = fresh->blocking = 0;
        /* The polling worker takes one itself, and somebody takes over the
         * baton: together as many as blocking requests.  Another poller runs
         * none: unless a worker is about to come, one must be woken. */
        if (&server->queue != own && !polls && !wanted && any &&
            !twi_worker_coming(server, NULL, twi_now_ns()))
            wanted = 1;
        twi_workq_wake(&server->queue, wanted);
        /* A side loop makes it as it is on the main loop: a worker that polls
         * comes for one. */
        if (polls)
            twi_loop_nudge(TWI_MAIN);
        twi_server_unref(server);
    }
}

static int64_t
cpu_ns(const struct twi_worker *worker)
{
    struct timespec t;
    if (twi_sys.clock_gettime(worker->cpu_clock, &t))
        return -1;
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* The state letter of a thread of this process; 0 when it is gone. */
static char
thread_state(int tid)
{
    char path[64], text[256];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
    int fd = twi_sys.open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t n = twi_sys.read(fd, text, sizeof text - 1);
    twi_sys_close(fd);
    if (n <= 0)
        return 0;
    text[n] = 0;
    /* "tid (name) S": the name may hold anything, the last ')' ends it. */
    char *end = strrchr(text, ')');
    return end && end[1] ? end[2] : 0;
}

struct look {
    struct twi_server *server;
    int computing;
    int n;
    struct twi_worker *standing[TWI_SAMPLED_WORKERS];
};

/* One worker's clock against the wall since the last look at the same run. */
static void
sample(struct look *look, struct twi_worker *worker, int64_t now_ns)
{
    int64_t run = load_relaxed(&worker->started_ns); /* names the run, no more */
    if (!run || now_ns - run < TWI_TICK_NS / 2)
        return;
    int64_t cpu = cpu_ns(worker);
    if (cpu < 0)
        return;
    if (load_relaxed(&worker->seen_run) != run) {
        store_relaxed(&worker->suspected, 0);
        store_relaxed(&worker->seen_ns, now_ns);
        store_relaxed(&worker->seen_cpu_ns, cpu);
        store_relaxed(&worker->seen_run, run);
        return;
    }
    int64_t wall = now_ns - load_relaxed(&worker->seen_ns);
    int64_t moved = cpu - load_relaxed(&worker->seen_cpu_ns);
    if (wall < TWI_TICK_NS / 2)
        return;
    if (moved * TWI_COMPUTING_PART > wall) {
        look->computing = 1;
        /* From here on anew: it may block later in the same run. */
        store_relaxed(&worker->seen_ns, now_ns);
        store_relaxed(&worker->seen_cpu_ns, cpu);
    } else if (look->n < TWI_SAMPLED_WORKERS)
        look->standing[look->n++] = worker;
}

static void
look_at_workers(struct look *look, int64_t now_ns)
{
    struct twi_slab *slab = twi_worker_slab();
    uint32_t end = twi_slab_end(slab), looked = 0;
    static uint32_t from; /* the dispatcher's: takes turns */
    for (uint32_t i = 0; i < end && looked < TWI_SAMPLED_WORKERS; i++) {
        struct twi_worker *worker = twi_slab_at(slab, (from + i) % end);
        /* A reference keeps the worker's memory its own, not its thread; a
         * dead thread's clock only fails to be read. */
        if (!twi_worker_look(worker))
            continue;
        if (load_relaxed(&worker->started_ns) &&
            worker->server == look->server) {
            sample(look, worker, now_ns);
            looked++;
        }
        twi_worker_unref(worker);
    }
    from = end ? (from + looked) % end : 0;
}

static void
tick(struct twi_server *server, void *arg)
{
    int64_t now_ns = *(int64_t *)arg;
    struct look look = {.server = server};
    uint32_t queued = twi_workq_length(&server->queue);
    uint32_t asleep = twi_workq_asleep(&server->queue);
    look_at_workers(&look, now_ns);
    if (look.n && !look.computing) {
        int sleeping = 0;
        for (int i = 0; i < look.n; i++) {
            struct twi_worker *worker = look.standing[i];
            if (load_relaxed(&worker->suspected) ||
                thread_state(worker->tid) == 'S') {
                store_relaxed(&worker->suspected, 1);
                sleeping = 1;
            }
        }
        if (sleeping && queued && asleep) {
            twi_workq_wake(&server->queue, (int)queued);
            return;
        }
    }
    if (!queued || !asleep)
        return;
    /* Computing only delays: an old request wakes one worker, and one more
     * for every further such time. */
    struct twi_request *oldest =
        twi_request_address(twi_workq_peek(&server->queue));
    if (!oldest)
        return;
    int64_t since = oldest->received_ns;
    int64_t last = load_relaxed(&server->woken_ns);
    twi_request_unref(oldest);
    if (now_ns - (since > last ? since : last) >= TWI_OLD_REQUEST_NS) {
        store_relaxed(&server->woken_ns, now_ns);
        twi_workq_wake(&server->queue, 1);
    }
}

static void
count_queued(struct twi_server *server, void *arg)
{
    *(uint32_t *)arg += twi_workq_length(&server->queue);
}

/* Flushes the corks from before before_ns; 1 when there were any. */
static int
flush_corks(int64_t before_ns)
{
    struct twi_slab *slab = twi_worker_slab();
    int corked = 0;
    for (uint32_t i = 0; i < twi_slab_end(slab); i++) {
        struct twi_worker *worker = twi_slab_at(slab, i);
        if (twi_cork_empty(&worker->corks))
            continue;
        twi_cork_flush_old(&worker->corks, before_ns);
        corked = 1;
    }
    return twi_inboxes_flush_old(before_ns) || corked;
}

int
twi_wake_tick(int64_t now_ns)
{
    uint32_t queued = 0;
    int corked = flush_corks(now_ns - TWI_CORK_NS);
    twi_server_each(tick, &now_ns);
    twi_server_each(count_queued, &queued);
    return corked || queued;
}

int
twi_wake_pending(void)
{
    uint32_t queued = 0;
    /* The queues first (dispatcher.c, park). */
    twi_server_each(count_queued, &queued);
    return queued || flush_corks(INT64_MIN);
}

static void
wake_one(struct twi_server *server, void *arg)
{
    int *woken = arg;
    if (!*woken)
        *woken = twi_workq_wake(&server->queue, 1);
}

int
twi_wake_poller(void)
{
    int woken = 0;
    twi_server_each(wake_one, &woken);
    return woken;
}
