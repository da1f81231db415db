/* How a server ends: it becomes a lame duck, which serves and asks its clients to
 * leave, is stopped, and drained; then it can be closed.  Each step but the last
 * may be left out. */
#include <errno.h>
#include <string.h>

#include "acceptor.h"
#include "atomics.h"
#include "auth.h"
#include "server.h"
#include "sys.h"
#include "writer.h"

static int
is_peer_of(const struct twi_socket *sock, const struct twi_server *server)
{
    return sock->server == server && sock->kind == TWI_SERVER_SIDE &&
           sock->protocols != TW_PROTO_HTTP;
}

/* The admin listener stays: it says "draining". */
static void
stop_listeners(struct twi_server *server)
{
    for (int i = 0; i < server->n_listeners; i++) {
        struct twi_socket *listener = twi_socket_address(server->listeners[i]);
        if (!listener)
            continue;
        if (listener->protocols != TW_PROTO_HTTP)
            twi_acceptor_stop(listener);
        twi_socket_unref(listener);
    }
}

/* ---- lame duck */

void
twi_server_notify(struct twi_socket *sock, int64_t now_ns)
{
    static const char text[] = "The server stops: please use another connection";
    /* relaxed: decides who says it. */
    if (!atomic_exchange_explicit(&sock->noticed, 1, memory_order_relaxed))
        twi_server_tell(sock, 0, TW_ELOGOFF, text, sizeof text - 1, 0, now_ns);
}

static void
notify(struct twi_socket *sock, void *arg)
{
    /* Who has not said who it is hears it with its first request.  Who has said
     * nothing hears it: that may be the successor of another connection.
     * relaxed: a pointer that is compared. */
    const struct twi_protocol *protocol = load_relaxed(&sock->reader.protocol);
    if (is_peer_of(sock, arg) && !twi_auth_withholds(sock) &&
        (protocol == &twi_std_server ||
         (!protocol && sock->protocols == TW_PROTO_BAIDU_STD)))
        twi_server_notify(sock, twi_now_ns());
}

int
tw_server_lame_duck(tw_id id)
{
    struct twi_server *server = twi_server_address(id);
    if (!server)
        return -TW_STALE;
    /* First the listeners: who leaves must not come back. */
    stop_listeners(server);
    /* relaxed: a connection whose request meets the old value hears it from the
     * walk or with its next one. */
    store_relaxed(&server->lame, 1);
    twi_socket_each(notify, server);
    twi_server_unref(server);
    return 0;
}

/* ---- stop and drain */

int
tw_server_stop(tw_id id)
{
    struct twi_server *server = twi_server_address(id);
    if (!server)
        return -TW_STALE;
    /* relaxed: nothing is read on the strength of it, and two who stop at once
     * do all of this twice, which changes nothing. */
    if (!load_relaxed(&server->stopping)) {
        stop_listeners(server);
        store_relaxed(&server->stopping, 1);
        /* relaxed: hurries a drain that would look again by itself. */
        add_relaxed(&server->idle_bell, 1);
        twi_futex_wake(&server->idle_bell, INT32_MAX);
    }
    twi_server_unref(server);
    return 0;
}

struct drain {
    struct twi_server *server;
    uint64_t unwritten, connections;
};

static void
look(struct twi_socket *sock, void *arg)
{
    struct drain *drain = arg;
    if (sock->server == drain->server)
        drain->unwritten += load_relaxed(&sock->unwritten);
    drain->connections += (uint64_t)is_peer_of(sock, drain->server);
}

/* Half-closes.  Closing a connection on which something comes in resets it, and
 * takes answers away that its peer has not read. */
static void
say_farewell(struct twi_socket *sock, void *arg)
{
    if (is_peer_of(sock, arg))
        twi_socket_finish(sock, twi_now_ns());
}

/* Serves still, and waits for its clients to leave.  relaxed, both: looked at
 * again. */
static int
is_lame(struct twi_server *server)
{
    return load_relaxed(&server->lame) && !load_relaxed(&server->stopping);
}

/* 1 when nothing is left to wait for; else *step_ns: when to look again. */
static int
is_drained(struct twi_server *server, int own, int64_t now_ns, int64_t *step_ns)
{
    struct drain drain = {server, 0, 0};
    /* The last answer rings; the last but some, bytes and peers do not. */
    int64_t left = load_seq_cst(&server->in_flight);
    *step_ns = left && !own ? INT64_MAX : TWI_TICK_NS;
    if (is_lame(server)) {
        *step_ns = TWI_LAME_LOOK_NS; /* beside full traffic */
        twi_socket_each(notify, server); /* whom the first walk has missed */
    }
    if (left > own)
        return 0;
    twi_socket_each(look, &drain);
    /* A handler's own connection cannot leave: its call is not answered. */
    if (is_lame(server))
        return !drain.unwritten && drain.connections <= (uint64_t)own;
    if (!load_relaxed(&server->stopping))
        return !drain.unwritten;
    /* relaxed: decides on one word who says it. */
    int64_t said_ns = load_relaxed(&server->farewell_ns);
    if (!said_ns && !drain.unwritten &&
        atomic_compare_exchange_strong_explicit(
            &server->farewell_ns, &said_ns, now_ns, memory_order_relaxed,
            memory_order_relaxed)) {
        twi_socket_each(say_farewell, server);
        return !drain.connections;
    }
    return said_ns &&
           (!drain.connections || now_ns - said_ns >= TWI_FAREWELL_NS);
}

int
tw_server_drain(tw_id id, int own, int64_t timeout_ns)
{
    struct twi_server *server = twi_server_address(id);
    int64_t end = twi_deadline_ns(twi_now_ns(), timeout_ns), step;
    int rc = 0;
    if (!server)
        return -TW_STALE;
    /* seq_cst: announced before the counts are looked at; the last answer
     * lowers a count and then looks whether somebody waits. */
    int announced = !is_lame(server); /* its calls come and go: no bell */
    if (announced)
        add_seq_cst(&server->draining, 1);
    for (;;) {
        uint32_t bell = load_seq_cst(&server->idle_bell);
        int64_t now_ns = twi_now_ns(), left = end - now_ns;
        if (is_drained(server, own, now_ns, &step))
            break;
        if (left <= 0) {
            rc = -ETIMEDOUT;
            break;
        }
        rc = twi_futex_wait(&server->idle_bell, bell,
                            left < step ? left : step);
        if (rc == -EINTR)
            break;
        rc = 0;
    }
    if (announced)
        sub_relaxed(&server->draining, 1); /* who sees the old one rings in vain */
    twi_server_unref(server);
    return rc;
}
