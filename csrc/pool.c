#include "pool.h"

#include <errno.h>
#include <string.h>

#include "atomics.h"
#include "peer.h"
#include "sys.h"

void
twi_pool_init(struct twi_pool *pool)
{
    memset(pool, 0, sizeof *pool);
}

/* ---- the idle ones, the lock held */

static int
is_idle(const struct twi_pool *pool, const struct twi_socket *sock)
{
    return sock->newer || pool->newest == sock;
}

static void
add(struct twi_pool *pool, struct twi_socket *sock, int64_t now_ns)
{
    sock->idle_ns = now_ns;
    sock->newer = NULL;
    sock->older = pool->newest;
    if (pool->newest)
        pool->newest->newer = sock;
    else
        pool->oldest = sock;
    pool->newest = sock;
    pool->idle++;
}

static void
drop(struct twi_pool *pool, struct twi_socket *sock)
{
    if (sock->newer)
        sock->newer->older = sock->older;
    else
        pool->newest = sock->older;
    if (sock->older)
        sock->older->newer = sock->newer;
    else
        pool->oldest = sock->newer;
    sock->newer = sock->older = NULL;
    pool->idle--;
}

/* Out of the list, with a reference: it has its own until it has failed, for
 * which it takes the lock (twi_pool_failed). */
static struct twi_socket *
take(struct twi_pool *pool, struct twi_socket *sock)
{
    drop(pool, sock);
    twi_socket_ref(sock);
    return sock;
}

static void
set_timer(struct twi_peer *peer)
{
    struct twi_pool *pool = &peer->pool;
    pool->timed = pool->oldest && twi_loop_timer(TWI_MAIN, &pool->timer,
                                                 pool->oldest->idle_ns +
                                                     TWI_POOL_IDLE_NS,
                                                 TWI_TIMER_POOL,
                                                 twi_peer_id(peer)) >= 0;
}

void
twi_pool_timer(tw_id id, int64_t now_ns)
{
    struct twi_peer *peer = twi_peer_address(id);
    struct twi_socket *sock;
    if (!peer)
        return;
    do {
        pthread_mutex_lock(&peer->lock);
        sock = peer->pool.oldest;
        if (sock && now_ns - sock->idle_ns >= TWI_POOL_IDLE_NS)
            take(&peer->pool, sock);
        else {
            sock = NULL;
            if (!peer->closed)
                set_timer(peer);
        }
        pthread_mutex_unlock(&peer->lock);
        if (sock) {
            twi_socket_fail(sock, TW_ECLOSE, TW_PHASE_NONE);
            twi_socket_unref(sock);
        }
    } while (sock);
    twi_peer_unref(peer);
}

int
twi_pool_has_idle(struct twi_peer *peer)
{
    pthread_mutex_lock(&peer->lock);
    int has = peer->pool.idle != 0;
    pthread_mutex_unlock(&peer->lock);
    return has;
}

/* ---- one call's */

int
twi_pool_take(struct twi_peer *peer, int connection, struct twi_socket **sock)
{
    struct twi_pool *pool = &peer->pool;
    *sock = NULL;
    pthread_mutex_lock(&peer->lock);
    int code = twi_peer_refuses(peer);
    if (!code && connection == TW_POOLED && pool->newest)
        *sock = take(pool, pool->newest);
    else if (!code && (*sock = twi_peer_open_other(peer, 0))) {
        (*sock)->lone = 1;
        (*sock)->last_call = connection == TW_SHORT;
        (*sock)->connect.good = load_relaxed(&pool->good);
        twi_socket_publish(*sock);
    } else if (!code)
        code = ENOMEM;
    pthread_mutex_unlock(&peer->lock);
    return code;
}

void
twi_pool_released(struct twi_socket *sock, int reusable, int64_t now_ns)
{
    struct twi_peer *peer = sock->peer;
    struct twi_pool *pool = &peer->pool;
    pthread_mutex_lock(&peer->lock);
    /* Whoever fails it later takes it out again. */
    int kept = reusable && !sock->last_call && !peer->closed &&
               pool->idle < TWI_POOL_IDLE_MAX && !twi_socket_error(sock);
    if (kept) {
        add(pool, sock, now_ns);
        if (!pool->timed)
            set_timer(peer);
    }
    pthread_mutex_unlock(&peer->lock);
    if (!kept)
        twi_socket_fail(sock, TW_ECLOSE, TW_PHASE_NONE);
}

void
twi_pool_failed(struct twi_socket *sock)
{
    struct twi_peer *peer = sock->peer;
    struct twi_socket *own = NULL;
    pthread_mutex_lock(&peer->lock);
    if (is_idle(&peer->pool, sock))
        drop(&peer->pool, sock);
    /* relaxed: ours, and of the error. */
    if (load_relaxed(&sock->phase) == TW_PHASE_CONNECT && !peer->closed &&
        peer->options.health_interval_ns > 0 &&
        twi_connect_state(&peer->sock->connect) == TWI_C_IDLE)
        own = twi_peer_socket(peer);
    pthread_mutex_unlock(&peer->lock);
    if (!own)
        return;
    twi_socket_fail(own, TW_ECLOSE, TW_PHASE_NONE);
    twi_socket_unref(own);
}

void
twi_pool_leave(struct twi_socket *sock)
{
    struct twi_peer *peer = sock->peer;
    pthread_mutex_lock(&peer->lock);
    int idle = is_idle(&peer->pool, sock);
    sock->last_call = 1;
    if (idle)
        drop(&peer->pool, sock);
    pthread_mutex_unlock(&peer->lock);
    if (idle)
        twi_socket_fail(sock, TW_ECLOSE, TW_PHASE_NONE);
}
