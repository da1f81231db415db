#include "acceptor.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "atomics.h"
#include "auth.h"
#include "counters.h"
#include "log.h"
#include "sys.h"

static void acceptor_readable(struct twi_socket *listener, uint32_t events,
                              int64_t now_ns);
static void acceptor_failed(struct twi_socket *listener, int code);
static void acceptor_recycled(struct twi_socket *listener);

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
    const struct sockaddr_un *un = (const void *)&listener->remote.any;
    int fd = load_seq_cst(&listener->fd);
    (void)code;
    if (un->sun_family == AF_UNIX)
        unlink(un->sun_path);
    else if (fd >= 0)
        shutdown(fd, SHUT_RDWR); /* no listener any more */
}

static void
acceptor_recycled(struct twi_socket *listener)
{
    twi_server_unref(listener->server);
}

/* A socket file whose server is gone refuses connections: it may be replaced.
 * Anything else at the path is left alone. */
static void
remove_stale_unix(const struct twi_addr *addr)
{
    const struct sockaddr_un *un = (const void *)&addr->any;
    struct stat st;
    if (lstat(un->sun_path, &st) || !S_ISSOCK(st.st_mode))
        return;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return;
    if (connect(fd, (const struct sockaddr *)&addr->any, addr->len) &&
        errno == ECONNREFUSED)
        unlink(un->sun_path);
    twi_sys_close(fd);
}

static int
bind_listener(int fd, const struct twi_addr *addr, int backlog)
{
    int one = 1, family = addr->any.ss_family;
    if (family == AF_UNIX)
        remove_stale_unix(addr);
    else if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one))
        return -errno;
    if (family == AF_INET6 &&
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one))
        return -errno;
    if (bind(fd, (const struct sockaddr *)&addr->any, addr->len) ||
        listen(fd, backlog))
        return -errno;
    return 0;
}

int
twi_acceptor_open(struct twi_server *server, const char *address,
                  int protocols, int backlog, char *bound, size_t cap,
                  tw_id *id)
{
    struct twi_addr addr;
    int rc = twi_addr_parse(address, &addr);
    if (rc)
        return rc;
    int fd = socket(addr.any.ss_family,
                    SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    rc = bind_listener(fd, &addr, backlog);
    struct twi_socket *listener = NULL;
    if (rc == 0 && !(listener = twi_socket_open(TWI_LISTENER, &hooks)))
        rc = -ENOMEM;
    if (rc) {
        twi_sys_close(fd);
        return rc;
    }
    addr.len = sizeof addr.any;
    getsockname(fd, (struct sockaddr *)&addr.any, &addr.len);
    listener->remote = addr;
    listener->server = server;
    twi_server_ref(server);
    listener->protocols = protocols;
    store_seq_cst(&listener->connected, 1);
    twi_socket_publish(listener);
    *id = twi_socket_id(listener);
    twi_addr_format(&addr, bound, cap);
    rc = twi_socket_attach(listener, fd, EPOLLIN);
    if (rc) {
        twi_sys_close(fd);
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
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static void
adopt(struct twi_socket *listener, int fd, const struct twi_addr *peer)
{
    struct twi_server *server = listener->server;
    uint64_t limit = server->options.max_connections;
    if (limit && (uint64_t)load_relaxed(&server->connections) >= limit) {
        twi_log(TW_LOG_ACCEPT_FAILED, TW_ELIMIT, peer,
                "over max_connections: closed");
        twi_sys_close(fd);
        return;
    }
    struct twi_socket *sock =
        twi_socket_open(TWI_SERVER_SIDE, &twi_server_side_hooks);
    if (!sock) {
        twi_sys_close(fd);
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
    twi_auth_begin(sock);
    store_seq_cst(&sock->connected, 1);
    twi_socket_publish(sock);
    twi_count(TWI_ACCEPTED, 1);
    twi_count(TWI_CONNECTIONS_IN, 1);
    add_seq_cst(&server->connections, 1);
    int rc = twi_socket_attach(sock, fd, EPOLLIN | EPOLLRDHUP);
    if (rc) {
        twi_sys_close(fd);
        twi_socket_fail(sock, -rc, TW_PHASE_NONE);
    } else if (load_seq_cst(&server->closed))
        /* Accepted beside tw_server_close, which may not have seen it. */
        twi_socket_fail(sock, TW_ELOGOFF, TW_PHASE_NONE);
    twi_socket_unref(sock);
}

/* Leaves the poller; the timer brings it back. */
static void
pause_accepting(struct twi_socket *listener, int code, int64_t now_ns)
{
    uint64_t pause = listener->pause_ns ? 2 * listener->pause_ns
                                        : TWI_ACCEPT_PAUSE_NS;
    if (pause > TWI_ACCEPT_PAUSE_MAX_NS)
        pause = TWI_ACCEPT_PAUSE_MAX_NS;
    listener->pause_ns = pause;
    twi_count(TWI_ACCEPT_PAUSES, 1);
    twi_log(TW_LOG_ACCEPT_PAUSED, code, &listener->remote,
            "out of descriptors or memory: accepting pauses");
    store_seq_cst(&listener->paused, 1);
    twi_loop_timer_remove(&listener->timer);
    if (twi_loop_timer(&listener->timer, now_ns + (int64_t)pause,
                       TWI_TIMER_ACCEPT, twi_socket_id(listener))) {
        /* No memory even for that: no pause then. */
        store_seq_cst(&listener->paused, 0);
        twi_socket_again(listener, TWI_AGAIN_READ);
    }
}

static void
acceptor_readable(struct twi_socket *listener, uint32_t events, int64_t now_ns)
{
    (void)events;
    /* Edge-triggered: while paused the listener makes no further events worth
     * mentioning, one for each arrival; it costs no more than this look. */
    if (load_seq_cst(&listener->paused))
        return;
    for (int i = 0; i < TWI_ACCEPT_BATCH; i++) {
        struct twi_addr peer = {0};
        int fd = twi_sys_accept(load_relaxed(&listener->fd), &peer.any,
                                &peer.len);
        if (fd == TWI_AGAIN || twi_socket_error(listener)) {
            if (fd >= 0)
                twi_sys_close(fd);
            return; /* shut down meanwhile, perhaps */
        }
        if (fd >= 0) {
            listener->pause_ns = 0;
            adopt(listener, fd, &peer);
            continue;
        }
        if (fd == -EMFILE || fd == -ENFILE || fd == -ENOBUFS || fd == -ENOMEM)
            pause_accepting(listener, -fd, now_ns);
        else {
            twi_log(TW_LOG_ACCEPT_FAILED, -fd, &listener->remote,
                    "accept failed for good");
            twi_socket_fail(listener, -fd, TW_PHASE_NONE);
        }
        return;
    }
    twi_socket_again(listener, TWI_AGAIN_READ);
}

void
twi_acceptor_timer(tw_id id, int64_t now_ns)
{
    struct twi_socket *listener = twi_socket_address(id);
    if (!listener)
        return;
    store_seq_cst(&listener->paused, 0);
    acceptor_readable(listener, 0, now_ns);
    twi_socket_unref(listener);
}
