#include "health.h"

#include <errno.h>

#include "atomics.h"
#include "call.h"
#include "client.h"
#include "counters.h"
#include "log.h"
#include "peer.h"
#include "reader.h"
#include "sys.h"

static void check_connect(struct twi_socket *sock, int64_t now_ns);
static void check_failed(struct twi_socket *sock, int code);
static void check_recycled(struct twi_socket *sock);
static void check_ready(struct twi_socket *sock, int64_t now_ns);
static int check_timed_out(struct twi_socket *sock);

static const struct twi_socket_hooks hooks = {
    .readable = twi_reader_run,
    .connect = check_connect,
    .failed = check_failed,
    .recycled = check_recycled,
    .sent = twi_call_sent,
    .sending = twi_call_sending,
};

static const struct twi_connect_ops connect_ops = {
    .ready = check_ready,
    .timed_out = check_timed_out,
};

static struct twi_socket *
open_checker(struct twi_peer *peer)
{
    struct twi_socket *sock = twi_socket_open(TWI_CLIENT_SIDE, &hooks, 0);
    if (!sock)
        return NULL;
    twi_peer_ref(peer);
    twi_peer_equip(peer, sock, &connect_ops);
    sock->connect.good = peer->sock->connect.good;
    if (sock->connect.timeout_ns <= 0)
        sock->connect.timeout_ns = TWI_CHECK_PATIENCE_NS;
    twi_socket_publish(sock);
    return sock;
}

/* The lock held; as twi_peer_revive. */
static struct twi_socket *
check_again(struct twi_peer *peer, int64_t now_ns)
{
    if (!twi_peer_check_later(peer, now_ns))
        return NULL;
    return twi_peer_revive(peer, now_ns); /* no memory: the next call tries */
}

void
twi_health_timer(tw_id id, int64_t now_ns)
{
    struct twi_peer *peer = twi_peer_address(id);
    if (!peer)
        return;
    struct twi_socket *sock = NULL, *revived = NULL;
    pthread_mutex_lock(&peer->lock);
    if (peer->down && !peer->checker) {
        twi_count(TWI_HEALTHCHECKS, 1);
        sock = open_checker(peer);
        if (sock)
            peer->checker = twi_socket_id(sock);
        else
            revived = check_again(peer, now_ns);
    }
    pthread_mutex_unlock(&peer->lock);
    twi_peer_revived(revived);
    if (sock) {
        twi_connect_want(sock);
        twi_socket_unref(sock);
    }
    twi_peer_unref(peer);
}

/* The checker's connection is as good as new: nothing came that was not asked
 * for, and nothing waits to be sent. */
static int
is_clean(struct twi_socket *sock)
{
    return !twi_socket_error(sock) && !sock->reader.block &&
           twi_wstack_idle(&sock->ws);
}

static void
succeeded(struct twi_socket *sock)
{
    struct twi_peer *peer = sock->peer;
    struct twi_socket *healed = NULL;
    if (is_clean(sock)) {
        pthread_mutex_lock(&peer->lock);
        if (peer->down && peer->checker == twi_socket_id(sock))
            healed = twi_peer_heal(peer, sock);
        pthread_mutex_unlock(&peer->lock);
    }
    twi_peer_revived(healed);
    if (healed)
        twi_log(TW_LOG_PEER_UP, 0, twi_socket_remote(sock),
                "the server is back");
    twi_socket_fail(sock, healed ? TW_ECLOSE : EPROTO, TW_PHASE_CONNECT);
}

static void
check_connect(struct twi_socket *sock, int64_t now_ns)
{
    /* Once it is READY only the verdict can bring us here. */
    if (twi_connect_state(&sock->connect) == TWI_C_READY)
        succeeded(sock);
    else
        twi_connect_run(sock, now_ns);
}

/* The probe's call has ended; any thread. */
static void
answered(uint64_t cookie, int code)
{
    struct twi_socket *sock = twi_socket_address(cookie);
    if (!sock)
        return;
    if (code)
        twi_socket_fail(sock, code, TW_PHASE_CONNECT);
    else
        twi_socket_again(sock, TWI_AGAIN_CONNECT);
    twi_socket_unref(sock);
}

static void
check_ready(struct twi_socket *sock, int64_t now_ns)
{
    const struct twi_peer *peer = sock->peer;
    if (peer->probe_method < 0)
        twi_socket_again(sock, TWI_AGAIN_CONNECT);
    else
        twi_client_probe(sock, peer->probe_method, peer->probe_body,
                       peer->options.probe_body_len,
                       now_ns + TWI_CHECK_PATIENCE_NS, now_ns, answered,
                       twi_socket_id(sock));
}

static int
check_timed_out(struct twi_socket *sock)
{
    (void)sock;
    return ETIMEDOUT;
}

static void
check_failed(struct twi_socket *sock, int code)
{
    struct twi_peer *peer = sock->peer;
    struct twi_socket *revived = NULL;
    twi_connect_step(&sock->connect, TWI_C_LOST);
    twi_calls_lost(sock, code);
    pthread_mutex_lock(&peer->lock);
    if (peer->down && peer->checker == twi_socket_id(sock)) {
        peer->checker = 0;
        revived = check_again(peer, twi_now_ns());
    }
    pthread_mutex_unlock(&peer->lock);
    twi_peer_revived(revived);
}

static void
check_recycled(struct twi_socket *sock)
{
    twi_peer_unref(sock->peer);
}
