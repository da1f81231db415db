/* The process's core: opening, closing, forking, and who handles what the loop
 * finds. */
#include "core.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>

#include "acceptor.h"
#include "atomics.h"
#include "auth.h"
#include "call.h"
#include "caller.h"
#include "client.h"
#include "counters.h"
#include "dispatcher.h"
#include "err.h"
#include "gauges.h"
#include "health.h"
#include "inbox.h"
#include "iobuf.h"
#include "leave.h"
#include "lent.h"
#include "log.h"
#include "loop.h"
#include "peer.h"
#include "pool.h"
#include "server.h"
#include "side.h"
#include "socket.h"
#include "sys.h"
#include "timeouts.h"
#include "view.h"
#include "vref.h"
#include "worker.h"
#include "writer.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int is_open;

static void
on_timer(int kind, uint64_t id, int64_t now_ns)
{
    switch (kind) {
    case TWI_TIMER_CALL:
        twi_call_end(id, TW_ERPCTIMEDOUT, TW_PHASE_READ);
        break;
    case TWI_TIMER_CONNECT:
        twi_connect_timeout(id, now_ns);
        break;
    case TWI_TIMER_CHECK:
        twi_health_timer(id, now_ns);
        break;
    case TWI_TIMER_LINGER:
        twi_socket_lingered(id);
        break;
    case TWI_TIMER_POOL:
        twi_pool_timer(id, now_ns);
        break;
    case TWI_TIMER_LEAVE:
        twi_leave_timer(id, now_ns);
        break;
    case TWI_TIMER_SLICE:
        twi_caller_slice();
        break;
    case TWI_TIMER_AUTH:
        twi_auth_timeout(id);
        break;
    case TWI_TIMER_ACCEPT:
        twi_acceptor_timer(id, now_ns);
        break;
    case TWI_TIMER_TIMEOUTS:
        twi_timeouts_fired(id, now_ns);
        break;
    }
}

static void
after_poll(struct twi_loop *loop)
{
    twi_wake_fresh(loop, NULL);
}

static const struct twi_loop_hooks hooks = {
    .after = after_poll,
    .event = twi_socket_event,
    .timer = on_timer,
    .leftover = twi_socket_leftover,
};

/* Empty slabs and the locks beside them. */
static void
init_objects(void)
{
    twi_inboxes_init();
    twi_sockets_init();
    twi_servers_init();
    twi_acceptor_init();
    twi_requests_init();
    twi_raw_init();
    twi_auth_init();
    twi_workers_init();
    twi_calls_init();
    twi_clients_init();
    twi_peers_init();
    twi_views_init();
}

int
tw_open(void)
{
    int rc = 0;
    pthread_mutex_lock(&lock);
    if (is_open)
        goto out;
    if ((rc = twi_counters_open()) || (rc = twi_loop_init(TWI_MAIN, &hooks)))
        goto out;
    twi_log_init();
    init_objects();
    if ((rc = twi_dispatcher_start()) == 0 && (rc = twi_sides_start(&hooks)))
        twi_dispatcher_stop();
    if (rc)
        twi_loop_fini(TWI_MAIN);
    else {
        is_open = 1;
        twi_counters_sample = twi_gauges_sample;
    }
out:
    pthread_mutex_unlock(&lock);
    return rc;
}

int
tw_share_counters(void)
{
    pthread_mutex_lock(&lock);
    int rc = twi_counters_open();
    pthread_mutex_unlock(&lock);
    return rc;
}

int
tw_loops(int n)
{
    pthread_mutex_lock(&lock);
    int rc = twi_sides_set(n, is_open ? &hooks : NULL);
    pthread_mutex_unlock(&lock);
    return rc;
}

static void
close_server(struct twi_server *server, void *unused)
{
    (void)unused;
    tw_server_close(vref_id(vref_version(&server->vref), server->slot));
}

static void
fail_socket(struct twi_socket *sock, void *unused)
{
    (void)unused;
    twi_socket_fail(sock, TW_ELOGOFF, TW_PHASE_NONE);
}

void
tw_close(void)
{
    pthread_mutex_lock(&lock);
    if (is_open) {
        is_open = 0;
        /* What fails from here on is no news, and calls end as cancelled
         * rather than by a server of ours that closes. */
        twi_log_stop();
        twi_calls_stop();
        twi_server_each(close_server, NULL);
        twi_views_stop();
        twi_socket_each(fail_socket, NULL);
        twi_inboxes_stop();
        twi_dispatcher_stop();
        twi_sides_stop();
        twi_loop_shut(TWI_MAIN);
        /* Sockets that were opened meanwhile: nobody polls any more.  Later
         * ones cannot be watched. */
        twi_socket_each(fail_socket, NULL);
    }
    pthread_mutex_unlock(&lock);
}

void
tw_forked(void)
{
    /* Nothing but close: epoll_ctl or shutdown would act on the parent's. */
    if (is_open) {
        twi_sockets_close_fds();
        twi_inboxes_close_fds();
        for (int i = 0; i < TWI_LOOPS_MAX; i++)
            twi_loop_close_fds(&twi_loops[i]);
        twi_log_init();
    }
    /* The parent's ids must name nothing here, from now on and when slots are
     * used again, so versions start elsewhere; the slabs' memory is given up,
     * other threads' objects are in it. */
    init_objects();
    twi_first_version += 1u << 24;
    if (!(twi_first_version & 0xff000000u))
        twi_first_version = 2;
    twi_counters_forked();
    twi_lent_forked();
    twi_gauges_forked();
    /* Until tw_open: the parent's locks may be held here for ever. */
    twi_counters_sample = NULL;
    twi_dispatcher_forget();
    twi_sides_forget();
    pthread_mutex_init(&lock, NULL);
    is_open = 0;
}

const char *
tw_error_name(int code)
{
    return twi_err_name(code);
}

const char *
tw_error_text(int code)
{
    return twi_err_text(code);
}

void
tw_hold(void *block)
{
    twi_block_ref(block);
}

void
tw_release(void *block)
{
    twi_block_unref_lender(block);
}

void *
tw_lend(const char *data, size_t len, uint64_t token)
{
    return twi_block_lend(data, len, token);
}

void
tw_census_take(tw_census *census)
{
    int64_t timers = 0;
    for (int i = 0; i < twi_sides_count(); i++)
        timers += twi_timers_count(&twi_loops[i].timers);
    *census = (tw_census){
        .blocks = twi_block_live(),
        .block_bytes = twi_block_live_bytes(),
        .sockets = twi_socket_count(),
        .calls = twi_call_count(),
        .requests = twi_request_count(),
        .inboxes = twi_inbox_count(),
        .peers = twi_peer_count(),
        .servers = twi_server_count(),
        .timers = timers,
        .write_nodes = twi_wnode_live(),
        .lent = twi_lent_live(),
    };
}
