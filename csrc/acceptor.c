#include "acceptor.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "atomics.h"
#include "auth.h"
#include "counters.h"
#include "err.h"
#include "listen.h"
#include "log.h"
#include "sys.h"
#include "timeouts.h"

static void acceptor_readable(struct twi_socket *listener, uint32_t events,
                              int64_t now_ns);
static void acceptor_failed(struct twi_socket *listener, int code);
static void acceptor_recycled(struct twi_socket *listener);

/* Accepted connections of this process, and how many its descriptors allow. */
static _Atomic int64_t accepted;
static _Atomic uint64_t descriptor_share;

void
twi_acceptor_init(void)
{
    store_relaxed(&accepted, 0);
    store_relaxed(&descriptor_share, UINT64_MAX);
}

void
twi_acceptor_left(void)
{
    sub_relaxed(&accepted, 1);
}

/* Looked at when a listener opens: a program sets its limit before. */
static void
note_descriptor_limit(void)
{
    struct rlimit limit;
    uint64_t share = UINT64_MAX;
    if (!twi_sys.getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur != RLIM_INFINITY) {
        share = limit.rlim_cur * TWI_DESCRIPTORS_PERCENT / 100;
        share = share > TWI_DESCRIPTORS_SPARE ? share - TWI_DESCRIPTORS_SPARE
                                              : 1;
    }
    store_relaxed(&descriptor_share, share);
}

static const struct twi_socket_hooks hooks = {
    .readable = acceptor_readable,
    .failed = acceptor_failed,
    .recycled = acceptor_recycled,
};

/* Frees the address at once: the descriptor may stay open for a moment, in
 * somebody's hands, and the next server must be able to take the address.  Its
 * socket file would be the one unlinked if this came later. */
static void
acceptor_failed(struct twi_socket *listener, int code)
{
    /* relaxed: set before anybody was given the id.  A walk that comes before
     * finds none, and the last unref closes it. */
    int fd = load_relaxed(&listener->fd);
    (void)code;
    twi_listen_unlink(&listener->remote, listener->file_ino);
    if (fd >= 0 && !listener->inherited)
        twi_sys.shutdown(fd, SHUT_RDWR); /* no listener any more */
}

static void
acceptor_recycled(struct twi_socket *listener)
{
    twi_server_unref(listener->server);
}

int
twi_acceptor_open(struct twi_server *server, const char *address,
                  int protocols, int backlog, char *bound, size_t cap,
                  tw_id *id)
{
    struct twi_listening made;
    struct twi_socket *listener;
    char why[TWI_LISTEN_WHY];
    note_descriptor_limit();
    int rc = twi_listen(address, backlog, &server->options, &made, why);
    snprintf(bound, cap, "%s", why);
    if (rc)
        return rc;
    if (!(listener = twi_socket_open(TWI_LISTENER, &hooks, 0))) {
        twi_listen_unlink(&made.addr, made.file_ino);
        twi_sys_close(made.fd);
        return -ENOMEM;
    }
    listener->remote = made.addr;
    listener->inherited = made.inherited;
    listener->file_ino = made.file_ino;
    listener->server = server;
    twi_server_ref(server);
    listener->protocols = protocols;
    store_relaxed(&listener->connected, 1); /* published next */
    twi_socket_publish(listener);
    *id = twi_socket_id(listener);
    twi_addr_format(&made.addr, bound, cap);
    /* One of the processes that share it is woken for a newcomer, not all. */
    rc = twi_socket_attach(listener, made.fd,
                           EPOLLIN | (made.inherited ? EPOLLEXCLUSIVE : 0));
    if (rc) {
        twi_sys_close(made.fd);
        twi_socket_fail(listener, -rc, TW_PHASE_NONE);
    }
    twi_socket_unref(listener);
    return rc;
}

/* Options of a new connection; failures cost latency at most. */
static void
tune(int fd, const struct twi_addr *peer)
{
    int one = 1;
    if (peer->any.ss_family != AF_UNIX)
        twi_sys.setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

/* Why there is no room for one more connection; NULL: there is. */
static const char *
no_room(const struct twi_socket *listener)
{
    /* relaxed: who comes or leaves at this moment may be missed. */
    const struct twi_server *server = listener->server;
    uint64_t mine = (uint64_t)load_relaxed(&server->connections);
    uint64_t all = (uint64_t)load_relaxed(&accepted);
    /* A server that asks for more than the process's default gets it. */
    uint64_t most = server->options.max_connections
                        ? server->options.max_connections
                        : UINT64_MAX;
    uint64_t most_all = most > TWI_CONNECTIONS_MAX ? most : TWI_CONNECTIONS_MAX;
    uint64_t share = load_relaxed(&descriptor_share);
    if (listener->protocols == TW_PROTO_HTTP) {
        /* Who wants to know why nobody gets in must get in. */
        mine -= mine < TWI_CONNECTIONS_ADMIN ? mine : TWI_CONNECTIONS_ADMIN;
        all -= all < TWI_CONNECTIONS_ADMIN ? all : TWI_CONNECTIONS_ADMIN;
    }
    if (mine >= most)
        return "over max_connections: closed";
    if (all >= most_all)
        return "over the process's connections: closed";
    return all >= share ? "over the descriptor limit's share: closed" : NULL;
}

/* Closes so that the peer sees an end and no reset: bytes that lie unread
 * would make one. */
static void
turn_away(int fd, const struct twi_addr *peer, int code, const char *why)
{
    char unread[4096];
    twi_count(TWI_CONNECTIONS_REFUSED, 1);
    twi_log(TW_LOG_ACCEPT_FAILED, code, peer, why);
    twi_sys.shutdown(fd, SHUT_WR);
    twi_sys_recv(fd, unread, sizeof unread);
    twi_sys_close(fd);
}

static void
adopt(struct twi_socket *listener, int fd, const struct twi_addr *peer,
      int64_t now_ns)
{
    struct twi_server *server = listener->server;
    const char *why = no_room(listener);
    if (why) {
        turn_away(fd, peer, TW_ELIMIT, why);
        return;
    }
    struct twi_socket *sock =
        twi_socket_open(TWI_SERVER_SIDE, &twi_server_side_hooks, 0);
    if (!sock) {
        turn_away(fd, peer, ENOMEM, "no memory: closed");
        return;
    }
    tune(fd, peer);
    sock->remote = *peer;
    sock->server = server;
    twi_server_ref(server);
    sock->protocols = listener->protocols;
    sock->max_message = server->options.max_message;
    sock->max_unwritten = server->options.max_unwritten;
    sock->max_pending = server->options.max_pending;
    sock->max_pending_bytes = server->options.max_pending_bytes;
    sock->cancel_on_eof = server->options.cancel_on_eof;
    twi_auth_begin(sock);
    store_relaxed(&sock->connected, 1); /* published next */
    twi_socket_publish(sock);
    twi_count(TWI_ACCEPTED, 1);
    twi_count(TWI_CONNECTIONS_IN, 1);
    add_relaxed(&server->connections, 1);
    add_relaxed(&accepted, 1);
    int rc = twi_timeouts_start(sock, now_ns);
    if (!rc)
        rc = twi_socket_attach(sock, fd, EPOLLIN | EPOLLRDHUP);
    if (rc) {
        twi_sys_close(fd);
        twi_socket_fail(sock, -rc, TW_PHASE_NONE);
    } else if (load_seq_cst(&server->closed))
        /* Accepted beside a close, which has not seen it.  seq_cst: that says
         * so first and then looks for connections.  (A stop looks later.) */
        twi_socket_fail(sock, TW_ELOGOFF, TW_PHASE_NONE);
    twi_socket_unref(sock);
}

/* No accepting until the timer fires.  A listener's `paused` is the baton's
 * holder's: relaxed here and below. */
static void
pause_accepting(struct twi_socket *listener, int code, int64_t now_ns)
{
    uint64_t pause = listener->pause_ns ? 2 * listener->pause_ns
                                        : TWI_ACCEPT_PAUSE_NS;
    if (pause > TWI_ACCEPT_PAUSE_MAX_NS)
        pause = TWI_ACCEPT_PAUSE_MAX_NS;
    listener->pause_ns = pause;
    twi_count(TWI_ACCEPT_PAUSES, 1);
    twi_log(TW_LOG_ACCEPT_PAUSED, code, &listener->remote, twi_err_text(code));
    store_relaxed(&listener->paused, 1);
    twi_loop_timer_remove(listener->loop, &listener->timer);
    if (twi_loop_timer(listener->loop, &listener->timer,
                       now_ns + (int64_t)pause, TWI_TIMER_ACCEPT,
                       twi_socket_id(listener))) {
        /* No memory even for that: no pause then. */
        store_relaxed(&listener->paused, 0);
        twi_socket_again(listener, TWI_AGAIN_READ);
    }
}

/* Accepts one: 0, or the positive errno. */
static int
accept_one(struct twi_socket *listener, int64_t now_ns)
{
    struct twi_addr peer = {0};
    int fd =
        twi_sys_accept(load_relaxed(&listener->fd), &peer.any, &peer.len);
    if (fd < 0)
        return -fd;
    listener->pause_ns = 0;
    adopt(listener, fd, &peer, now_ns);
    return 0;
}

static void
acceptor_readable(struct twi_socket *listener, uint32_t events, int64_t now_ns)
{
    int lost = 0, code = 0;
    (void)events;
    /* Edge-triggered: while paused the listener makes no further events worth
     * mentioning, one for each arrival; it costs no more than this look. */
    if (load_relaxed(&listener->paused))
        return;
    for (int i = 0; i < TWI_ACCEPT_BATCH; i++) {
        int rc = accept_one(listener, now_ns);
        if (twi_socket_error(listener))
            return; /* shut down meanwhile, which is what rc says */
        if (!rc)
            continue;
        switch (twi_sys_accept_class(rc)) {
        case TWI_ACCEPT_NONE:
            return;
        case TWI_ACCEPT_NOW:
            lost++;
            code = rc;
            break;
        case TWI_ACCEPT_LATER:
            pause_accepting(listener, rc, now_ns);
            return;
        case TWI_ACCEPT_FATAL:
            twi_log(TW_LOG_ACCEPT_FAILED, rc, &listener->remote,
                    "accept failed for good");
            twi_socket_fail(listener, rc, TW_PHASE_NONE);
            return;
        }
    }
    /* Nothing but lost connections: should that never end, it must not take
     * all of the time. */
    if (lost == TWI_ACCEPT_BATCH)
        pause_accepting(listener, code, now_ns);
    else
        twi_socket_again(listener, TWI_AGAIN_READ);
}

/* Who waits in the queue has been told that it is connected; closing the
 * listener would reset it.  A shared queue goes on without us. */
void
twi_acceptor_stop(struct twi_socket *listener)
{
    int64_t now_ns = twi_now_ns();
    int left = listener->inherited ? 0 : TWI_ACCEPT_LAST;
    for (; left && !twi_socket_error(listener); left--) {
        struct twi_addr peer = {0};
        int fd = twi_sys_accept(load_relaxed(&listener->fd), &peer.any,
                                &peer.len);
        if (fd >= 0)
            adopt(listener, fd, &peer, now_ns);
        else if (twi_sys_accept_class(-fd) != TWI_ACCEPT_NOW)
            break;
    }
    twi_socket_fail(listener, TW_ELOGOFF, TW_PHASE_NONE);
}

void
twi_acceptor_timer(tw_id id, int64_t now_ns)
{
    struct twi_socket *listener = twi_socket_address(id);
    if (!listener)
        return;
    store_relaxed(&listener->paused, 0);
    acceptor_readable(listener, 0, now_ns);
    twi_socket_unref(listener);
}
