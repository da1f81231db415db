/* Peers and the connect state machine.
 *
 *   none --first use--> CONNECTING --writable, SO_ERROR 0--> CONNECTED
 *                          |  ^                                  |
 *          error, deadline |  | next use                         | any failure
 *                          v  |                                  v
 *                         FAILED <-------------------------------+
 *
 * A failed socket is gone; the next use makes another. */
#include "peer.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <string.h>

#include "atomics.h"
#include "call.h"
#include "counters.h"
#include "credential.h"
#include "log.h"
#include "reader.h"
#include "sys.h"
#include "vref.h"

struct twi_peer {
    _Atomic uint64_t vref;
    uint32_t slot;
    struct twi_addr addr;
    tw_peer_options options;
    pthread_mutex_t lock; /* guards making a connection */
    _Atomic tw_id socket;
    _Atomic uint32_t timeouts; /* connect timeouts in a row */
    struct twi_credential credential;
};

static struct twi_slab slab;

static void peer_connected(struct twi_socket *sock, int64_t now_ns);
static void peer_failed(struct twi_socket *sock, int code);
static void peer_recycled(struct twi_socket *sock);

static const struct twi_socket_hooks hooks = {
    .readable = twi_reader_run,
    .connected = peer_connected,
    .failed = peer_failed,
    .recycled = peer_recycled,
    .sent = twi_call_sent,
    .sending = twi_call_sending,
};

void
twi_peers_init(void)
{
    twi_slab_init(&slab, sizeof(struct twi_peer));
}

void
twi_peers_fini(void)
{
    twi_slab_fini(&slab);
}

int64_t
twi_peer_count(void)
{
    return load_relaxed(&slab.live);
}

static void
recycle(struct twi_peer *peer)
{
    pthread_mutex_destroy(&peer->lock);
    twi_credential_fini(&peer->credential);
    twi_slab_give(&slab, peer->slot);
}

struct twi_peer *
twi_peer_address(tw_id id)
{
    struct twi_peer *peer = twi_slab_at(&slab, (uint32_t)id);
    if (!peer || !id)
        return NULL;
    int rc = vref_address(&peer->vref, (uint32_t)(id >> 32));
    if (rc < 0)
        recycle(peer);
    return rc == 1 ? peer : NULL;
}

void
twi_peer_unref(struct twi_peer *peer)
{
    if (vref_unref(&peer->vref))
        recycle(peer);
}

int
tw_peer_open(const char *address, const tw_peer_options *options, tw_id *id)
{
    struct twi_addr addr;
    int rc = twi_addr_parse(address, &addr);
    if (rc)
        return rc;
    uint32_t slot = twi_slab_take(&slab);
    if (slot == TWI_SLAB_NONE)
        return -ENOMEM;
    struct twi_peer *peer = twi_slab_at(&slab, slot);
    peer->slot = slot;
    peer->addr = addr;
    peer->options = *options;
    pthread_mutex_init(&peer->lock, NULL);
    twi_credential_init(&peer->credential);
    store_relaxed(&peer->socket, 0);
    store_relaxed(&peer->timeouts, 0);
    *id = vref_id(vref_open(&peer->vref, 1), slot);
    return 0;
}

int
tw_peer_close(tw_id id)
{
    struct twi_peer *peer = twi_peer_address(id);
    if (!peer)
        return -TW_STALE;
    if (vref_fail(&peer->vref, (uint32_t)(id >> 32))) {
        /* The lock: a connection that is being made is seen. */
        pthread_mutex_lock(&peer->lock);
        tw_id socket = load_relaxed(&peer->socket);
        pthread_mutex_unlock(&peer->lock);
        tw_socket_fail(socket, ECANCELED);
        twi_peer_unref(peer);
    }
    twi_peer_unref(peer);
    return 0;
}

/* ---- connecting */

static void
established(struct twi_socket *sock)
{
    struct twi_peer *peer = twi_peer_address(sock->peer);
    if (peer) {
        store_relaxed(&peer->timeouts, 0);
        twi_peer_unref(peer);
    }
    twi_count(TWI_CONNECTED, 1);
    twi_count(TWI_CONNECTIONS_OUT, 1);
    twi_loop_timer_remove(&sock->timer);
    /* seq_cst: who parks as CONNECTING looks at it afterwards. */
    store_seq_cst(&sock->connected, 1);
    if (twi_wstack_take(&sock->ws, TWI_W_CONNECTING))
        twi_wstack_run(&sock->ws);
}

/* TCP may connect a port to itself while nobody listens there. */
static int
is_self(int fd, const struct twi_addr *remote)
{
    struct twi_addr local = {.len = sizeof local.any};
    if (remote->any.ss_family == AF_UNIX ||
        getsockname(fd, (struct sockaddr *)&local.any, &local.len))
        return 0;
    return twi_addr_equal(&local, remote);
}

static void
peer_connected(struct twi_socket *sock, int64_t now_ns)
{
    int fd = load_relaxed(&sock->fd), code = 0;
    socklen_t len = sizeof code;
    struct sockaddr_storage any;
    socklen_t any_len = sizeof any;
    (void)now_ns;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &len))
        code = errno;
    if (!code && getpeername(fd, (struct sockaddr *)&any, &any_len)) {
        if (errno == ENOTCONN)
            return; /* an early event: still under way */
        code = errno;
    }
    if (!code && is_self(fd, &sock->remote))
        code = ECONNREFUSED;
    if (code)
        twi_socket_fail(sock, code, TW_PHASE_CONNECT);
    else
        established(sock);
}

void
twi_connect_timeout(tw_id id)
{
    struct twi_socket *sock = twi_socket_address(id);
    if (!sock)
        return;
    int code = ETIMEDOUT;
    struct twi_peer *peer = twi_peer_address(sock->peer);
    if (peer) {
        if (add_relaxed(&peer->timeouts, 1) + 1 >= TWI_TIMEOUTS_UNREACHABLE) {
            store_relaxed(&peer->timeouts, 0);
            code = ENETUNREACH;
        }
        twi_peer_unref(peer);
    }
    if (!load_seq_cst(&sock->connected))
        twi_socket_fail(sock, code, TW_PHASE_CONNECT);
    twi_socket_unref(sock);
}

static void
start_connect(struct twi_socket *sock, const tw_peer_options *options,
              int64_t now_ns)
{
    const struct twi_addr *to = &sock->remote;
    int one = 1, rc;
    int fd = socket(to->any.ss_family,
                    SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        twi_socket_fail(sock, errno, TW_PHASE_CONNECT);
        return;
    }
    if (to->any.ss_family != AF_UNIX)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    int state = twi_sys_connect(fd, (const struct sockaddr *)&to->any, to->len);
    if (state < 0 && state != TWI_AGAIN) {
        twi_sys_close(fd);
        twi_socket_fail(sock, -state, TW_PHASE_CONNECT);
        return;
    }
    if (options->connect_timeout_ns > 0 &&
        (rc = twi_loop_timer(&sock->timer, now_ns + options->connect_timeout_ns,
                             TWI_TIMER_CONNECT, twi_socket_id(sock)))) {
        twi_sys_close(fd);
        twi_socket_fail(sock, -rc, TW_PHASE_CONNECT);
        return;
    }
    /* From the attach on the poller may see it connected and run ahead. */
    rc = twi_socket_attach(sock, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
    if (rc) {
        twi_sys_close(fd);
        twi_socket_fail(sock, -rc, TW_PHASE_CONNECT);
    }
}

struct twi_credential *
twi_peer_credential(struct twi_peer *peer)
{
    return &peer->credential;
}

struct twi_socket *
twi_peer_connection(struct twi_peer *peer)
{
    return twi_socket_address(load_seq_cst(&peer->socket));
}

struct twi_socket *
twi_peer_socket(struct twi_peer *peer, int64_t now_ns, int *code)
{
    struct twi_socket *sock = twi_socket_address(load_seq_cst(&peer->socket));
    if (sock)
        return sock;
    pthread_mutex_lock(&peer->lock);
    sock = twi_socket_address(load_relaxed(&peer->socket));
    if (sock || vref_version(&peer->vref) % 2) {
        pthread_mutex_unlock(&peer->lock);
        *code = ECANCELED;
        return sock;
    }
    sock = twi_socket_open(TWI_CLIENT_SIDE, &hooks);
    if (sock) {
        sock->remote = peer->addr;
        sock->peer = vref_id(vref_version(&peer->vref), peer->slot);
        sock->max_message = peer->options.max_message;
        sock->max_unwritten = peer->options.max_unwritten;
        twi_socket_publish(sock);
        store_seq_cst(&peer->socket, twi_socket_id(sock));
    }
    pthread_mutex_unlock(&peer->lock);
    if (!sock)
        *code = ENOMEM;
    else
        start_connect(sock, &peer->options, now_ns);
    return sock;
}

static void
peer_failed(struct twi_socket *sock, int code)
{
    twi_calls_lost(sock, code);
}

static void
peer_recycled(struct twi_socket *sock)
{
    if (load_relaxed(&sock->connected))
        twi_count(TWI_CONNECTIONS_OUT, -1);
}
