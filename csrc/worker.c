#include "worker.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "atomics.h"
#include "loop.h"
#include "sys.h"
#include "vref.h"

static struct twi_slab slab;

void
twi_workers_init(void)
{
    twi_slab_init(&slab, sizeof(struct twi_worker));
}

void
twi_workers_fini(void)
{
    twi_slab_fini(&slab);
}

int64_t
twi_worker_count(void)
{
    return load_relaxed(&slab.live);
}

struct twi_slab *
twi_worker_slab(void)
{
    return &slab;
}

int
tw_worker_open(tw_id server_id, tw_event *next, tw_id *id)
{
    struct twi_server *server = twi_server_address(server_id);
    if (!server)
        return -TW_STALE;
    uint32_t slot = twi_slab_take(&slab);
    if (slot == TWI_SLAB_NONE) {
        twi_server_unref(server);
        return -ENOMEM;
    }
    struct twi_worker *worker = twi_slab_at(&slab, slot);
    clockid_t clock = 0;
    worker->slot = slot;
    worker->server = server;
    worker->tid = (int)syscall(SYS_gettid);
    pthread_getcpuclockid(pthread_self(), &clock);
    worker->cpu_clock = clock;
    worker->next = next;
    next->id = 0;
    worker->method = NULL;
    store_relaxed(&worker->corks.n, 0);
    store_relaxed(&worker->started_ns, 0);
    store_relaxed(&worker->seen_run, 0);
    store_relaxed(&worker->suspected, 0);
    worker->sleeper.listed = 0;
    add_relaxed(&server->workers, 1); /* for a guess */
    *id = vref_id(vref_open(&worker->vref, 1), slot);
    return 0;
}

static void
recycle(struct twi_worker *worker)
{
    twi_server_unref(worker->server);
    worker->server = NULL;
    twi_slab_give(&slab, worker->slot);
}

int
twi_worker_look(struct twi_worker *worker)
{
    int rc = vref_address(&worker->vref, vref_look(&worker->vref));
    if (rc < 0)
        recycle(worker);
    return rc == 1;
}

void
twi_worker_unref(struct twi_worker *worker)
{
    if (vref_unref(&worker->vref))
        recycle(worker);
}

static struct twi_worker *
address(tw_id id)
{
    struct twi_worker *worker = twi_slab_at(&slab, (uint32_t)id);
    /* The worker belongs to the calling thread, so looking is enough. */
    if (!worker || (id >> 32) % 2 ||
        vref_look(&worker->vref) != (uint32_t)(id >> 32))
        return NULL;
    return worker;
}

int
tw_worker_close(tw_id id)
{
    struct twi_worker *worker = address(id);
    if (!worker)
        return -TW_STALE;
    twi_cork_flush(&worker->corks);
    /* The clock is unregistered before its thread ends.  relaxed: the clock of
     * a thread that has ended only fails to be read. */
    store_relaxed(&worker->started_ns, 0);
    if (vref_fail(&worker->vref, (uint32_t)(id >> 32))) {
        sub_relaxed(&worker->server->workers, 1);
        twi_worker_unref(worker);
    }
    return 0;
}

int
twi_worker_coming(struct twi_server *server, struct twi_worker *but,
                  int64_t now_ns)
{
    /* relaxed: a wrong guess costs a tick. */
    uint32_t others = load_relaxed(&server->workers) - (but != NULL);
    /* All others sleep: the common case on a busy server of fast methods. */
    if (twi_workq_asleep(&server->queue) >= others)
        return 0;
    for (uint32_t i = 0; i < twi_slab_end(&slab); i++) {
        struct twi_worker *worker = twi_slab_at(&slab, i);
        if (worker == but || load_relaxed(&worker->sleeper.listed) ||
            !twi_worker_look(worker))
            continue;
        int ours = worker->server == server;
        /* seq_cst: who looks has stored its own 0 first, so of two that come
         * at once not both find the other at work. */
        int64_t started_ns = load_seq_cst(&worker->started_ns);
        twi_worker_unref(worker);
        if (!ours)
            continue;
        if (but ? started_ns && now_ns - started_ns < TWI_YOUNG_NS
                : now_ns - started_ns < TWI_YOUNG_NS || !started_ns)
            return 1;
    }
    return 0;
}

static int64_t
thread_cpu_ns(void)
{
    struct timespec t;
    twi_sys.clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* The handler has returned: what did this run show of its method? */
static void
note_run(struct twi_worker *worker, int64_t now_ns)
{
    int blocked = 0;
    int suspected = (int)load_relaxed(&worker->suspected) &&
                    load_relaxed(&worker->seen_run) ==
                        load_relaxed(&worker->started_ns);
    if (suspected) {
        int64_t wall = now_ns - load_relaxed(&worker->seen_ns);
        int64_t cpu = thread_cpu_ns() - load_relaxed(&worker->seen_cpu_ns);
        blocked = wall - cpu > TWI_BLOCKED_NS;
        store_relaxed(&worker->suspected, 0);
    }
    if (suspected || load_relaxed(&worker->method->blocking))
        twi_method_ran(worker->method, suspected, blocked);
    store_seq_cst(&worker->started_ns, 0);
}

/* May the answer wait for the next one?  Only while requests of the same
 * connection are queued, for a worker that will come back for them. */
static int
may_cork(struct twi_worker *worker, struct twi_request *request,
         int64_t now_ns)
{
    tw_id id = load_relaxed(&request->socket);
    struct twi_socket *sock = twi_socket_address(id);
    int cork = 0;
    if (!sock)
        return 0;
    if (load_relaxed(&sock->queued) && !load_relaxed(&request->method->blocking))
        cork = load_relaxed(&sock->ws.state) != TWI_W_CORKED ||
               now_ns - load_relaxed(&sock->ws.corked_ns) < TWI_CORK_NS;
    twi_socket_unref(sock);
    return cork && twi_cork_add(&worker->corks, id);
}

static void
answer(struct twi_worker *worker, int code, const char *body, size_t body_len,
       const tw_extra *extra, int64_t now_ns)
{
    struct twi_request *request = twi_request_address(worker->next->id);
    note_run(worker, now_ns);
    if (!request)
        return;
    int cork = may_cork(worker, request, now_ns);
    twi_request_answer(request, code, body, body_len, extra, cork, now_ns);
    twi_request_unref(request);
}

/* Takes a queued request: its method, or -1 when it must not run. */
static int
begin(struct twi_worker *worker, tw_id id, int64_t now_ns)
{
    struct twi_request *request = twi_request_address(id);
    int method = -1;
    if (!request)
        return -1;
    struct twi_socket *sock =
        twi_socket_address(load_relaxed(&request->socket));
    if (sock) {
        sub_relaxed(&sock->queued, 1);
        twi_socket_unref(sock);
    }
    if (twi_request_deliver(request, now_ns, worker->next)) {
        method = (int)request->method_index;
        if (request->attachment.n || request->deadline_ns || request->coded)
            method |= TW_TURN_RICH;
        worker->method = request->method;
        /* relaxed: the dispatcher takes it for the run's name, and reads
         * nothing that we have written. */
        store_relaxed(&worker->started_ns, now_ns);
    }
    twi_request_unref(request); /* ours */
    twi_request_unref(request); /* the queue's */
    return method;
}

/* Holds the baton for one round, waiting for events.  0 when it cannot. */
static int
poll_once(struct twi_worker *worker)
{
    struct twi_server *server = worker->server;
    /* While an asyncio loop watches, waiting is its task.  relaxed: a hint. */
    if (load_relaxed(&TWI_MAIN->watched) || !twi_baton_take(TWI_MAIN))
        return 0;
    store_seq_cst(&server->polls, 1);
    /* The last holder may have queued something and gone, a side loop at any
     * time.  Conclusive: the main loop's requests are queued by us from here
     * on, and a side loop that queues then looks at `polls`, and nudges. */
    if (!twi_workq_length(&server->queue) && !load_seq_cst(&server->closed)) {
        twi_loop_poll(TWI_MAIN, -1);
        twi_wake_fresh(TWI_MAIN, &server->queue);
    }
    store_relaxed(&server->polls, 0); /* else nudged in vain */
    twi_baton_drop(TWI_MAIN);
    return 1;
}

/* Two runners of fast Python handlers only fight for the GIL: when another is
 * about to come for the next request, this one sleeps instead.  Should the
 * other not come, the tick finds the request waiting.  1 when it slept. */
static int
yield(struct twi_worker *worker, int64_t now_ns)
{
    struct twi_server *server = worker->server;
    if (!twi_worker_coming(server, worker, now_ns))
        return 0;
    struct twi_request *oldest =
        twi_request_address(twi_workq_peek(&server->queue));
    int blocking = oldest && load_relaxed(&oldest->method->blocking);
    if (oldest)
        twi_request_unref(oldest);
    if (!oldest || blocking)
        return 0;
    twi_cork_flush(&worker->corks);
    twi_workq_announce(&server->queue, &worker->sleeper);
    if (load_seq_cst(&server->closed)) {
        twi_workq_cancel(&server->queue, &worker->sleeper);
        return 0;
    }
    twi_workq_sleep(&worker->sleeper);
    return 1;
}

static void
wait(struct twi_worker *worker)
{
    struct twi_server *server = worker->server;
    twi_workq_announce(&server->queue, &worker->sleeper);
    /* Look again: partners are push, the baton's drop, close. */
    if (twi_workq_length(&server->queue) || load_seq_cst(&server->closed) ||
        (!twi_baton_held(TWI_MAIN) && !load_seq_cst(&TWI_MAIN->watched))) {
        twi_workq_cancel(&server->queue, &worker->sleeper);
        return;
    }
    twi_workq_sleep(&worker->sleeper);
}

int
tw_turn(tw_id id, int code, const char *body, size_t body_len,
        const tw_extra *extra)
{
    struct twi_worker *worker = address(id);
    int64_t now_ns = twi_now_ns();
    if (!worker)
        return -TW_STOPPED;
    struct twi_server *server = worker->server;
    if (worker->method) {
        if (code == TW_NO_ANSWER)
            note_run(worker, now_ns);
        else
            answer(worker, code, body, body_len, extra, now_ns);
        worker->method = NULL;
        if (yield(worker, now_ns))
            now_ns = twi_now_ns();
    }
    for (;; now_ns = twi_now_ns()) {
        tw_id request = twi_workq_pop(&server->queue);
        if (request) {
            int method = begin(worker, request, now_ns);
            /* The corked connection has no more requests for us. */
            if (!twi_cork_empty(&worker->corks) &&
                (method < 0 || worker->next->socket !=
                                   load_relaxed(&worker->corks.id[0])))
                twi_cork_flush(&worker->corks);
            if (method >= 0)
                return method;
            continue;
        }
        twi_cork_flush(&worker->corks);
        /* relaxed: looked at again before it polls or sleeps. */
        if (load_relaxed(&server->closed))
            return -TW_STOPPED;
        if (!poll_once(worker))
            wait(worker);
    }
}
