#include "successor.h"

#include <assert.h>

#include "credential.h"
#include "leave.h"
#include "peer.h"

/* The lock held: from now on calls find it.  Who uses the former one ends it. */
static void
install(struct twi_peer *peer, struct twi_socket *sock)
{
    struct twi_socket *former = peer->sock;
    twi_credential_revived(&peer->credential, sock);
    peer->sock = sock;
    peer->successor = NULL;
    store_relaxed(&peer->socket, twi_socket_id(sock)); /* twi_peer_socket */
    twi_socket_forsake(former);
}

/* The lock held. */
static struct twi_socket *
open_successor(struct twi_peer *peer)
{
    struct twi_socket *sock = twi_peer_open_other(peer, 1);
    if (!sock)
        return NULL;
    sock->connect.good = peer->sock->connect.good;
    peer->successor = sock;
    twi_socket_publish(sock);
    return sock;
}

/* The lock held: whether the successor is connected. */
static int
waits(const struct twi_peer *peer)
{
    return peer->successor && !peer->closed &&
           !twi_socket_error(peer->successor) &&
           twi_connect_state(&peer->successor->connect) == TWI_C_READY;
}

/* The lock held: a successor that has failed is none, also while it is reset,
 * when its `error` is 0 again. */
static void
forget_failed_successor(struct twi_peer *peer)
{
    struct twi_socket *sock = peer->successor;
    if (sock && (twi_socket_error(sock) ||
                 twi_connect_state(&sock->connect) == TWI_C_FAILED))
        peer->successor = NULL;
}

int
twi_peer_succeed(struct twi_peer *peer)
{
    forget_failed_successor(peer);
    if (!peer->successor)
        return 0;
    assert(!peer->waiting);
    install(peer, peer->successor);
    return 1;
}

/* The lock held: for an ELOGOFF to a call, which may be a handler's own. */
static int
may_leave_again(struct twi_peer *peer, int64_t now_ns)
{
    if (peer->logoff_ns && now_ns - peer->logoff_ns < TWI_LEAVE_AGAIN_NS)
        return 0;
    peer->logoff_ns = now_ns;
    return 1;
}

void
twi_peer_leave(struct twi_socket *sock, int at_once, int64_t now_ns)
{
    struct twi_peer *peer = sock->peer;
    struct twi_socket *opened = NULL;
    int replaced = 0;
    if (!peer)
        return;
    if (sock->lone) {
        twi_pool_leave(sock);
        return;
    }
    pthread_mutex_lock(&peer->lock);
    /* Of a failed one calls may wait for the next life. */
    if (!peer->closed && peer->sock == sock && !twi_socket_error(sock)) {
        forget_failed_successor(peer);
        if (!peer->successor && (!at_once || may_leave_again(peer, now_ns)))
            opened = open_successor(peer);
        /* One may be there, connected: it came too late for the last time, or
         * waits for a credential. */
        replaced = peer->successor &&
                   (at_once || (waits(peer) &&
                                !twi_credential_lacks(&peer->credential)));
        if (replaced)
            install(peer, peer->successor);
    }
    pthread_mutex_unlock(&peer->lock);
    if (opened) {
        if (!replaced)
            twi_connect_want(opened);
        twi_socket_unref(opened);
    }
    if (replaced)
        twi_left(sock, now_ns);
}

/* The lock held: a connected successor takes the socket's place, which is
 * returned with a reference.  NULL: that has failed meanwhile, and is succeeded
 * without us. */
static struct twi_socket *
promote(struct twi_peer *peer)
{
    /* Before that its timer is the connector's. */
    if (twi_connect_state(&peer->sock->connect) != TWI_C_READY)
        return NULL;
    struct twi_socket *former = twi_socket_address(load_relaxed(&peer->socket));
    if (former)
        install(peer, peer->successor);
    return former;
}

int
twi_peer_has_successor(struct twi_peer *peer)
{
    pthread_mutex_lock(&peer->lock);
    int has = waits(peer);
    pthread_mutex_unlock(&peer->lock);
    return has;
}

void
twi_peer_promote(struct twi_peer *peer, int64_t now_ns)
{
    struct twi_socket *former = NULL;
    pthread_mutex_lock(&peer->lock);
    if (waits(peer))
        former = promote(peer);
    pthread_mutex_unlock(&peer->lock);
    if (!former)
        return;
    twi_left(former, now_ns);
    twi_socket_unref(former);
}
