#include "peer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "atomics.h"
#include "call.h"
#include "counters.h"
#include "credential.h"
#include "pressure.h"
#include "reader.h"
#include "successor.h"
#include "sys.h"
#include "vref.h"
#include "writer.h"

static struct twi_slab slab;

static void peer_failed(struct twi_socket *sock, int code);
static void peer_unheld(struct twi_socket *sock, int64_t now_ns);
static void peer_recycled(struct twi_socket *sock);
static void peer_ready(struct twi_socket *sock, int64_t now_ns);
static int peer_timed_out(struct twi_socket *sock);

static const struct twi_socket_hooks hooks = {
    .readable = twi_reader_run,
    .connect = twi_connect_run,
    .wanted = twi_connect_want,
    .failed = peer_failed,
    .unheld = peer_unheld,
    .recycled = peer_recycled,
    .sent = twi_call_sent,
    .sending = twi_call_sending,
    .released = twi_pool_released,
};

static const struct twi_connect_ops connect_ops = {
    .ready = peer_ready,
    .timed_out = peer_timed_out,
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
    free(peer->addrs);
    free(peer->probe_body);
    peer->addrs = NULL;
    peer->probe_body = NULL;
    twi_credential_fini(&peer->credential);
    twi_slab_give(&slab, peer->slot);
}

static struct twi_peer *
address(struct twi_peer *peer, uint32_t version)
{
    int rc = vref_address(&peer->vref, version);
    if (rc < 0)
        recycle(peer);
    return rc == 1 ? peer : NULL;
}

struct twi_peer *
twi_peer_address(tw_id id)
{
    struct twi_peer *peer = twi_slab_at(&slab, (uint32_t)id);
    return peer && id ? address(peer, (uint32_t)(id >> 32)) : NULL;
}

tw_id
twi_peer_id(const struct twi_peer *peer)
{
    return vref_id(vref_version(&peer->vref) & ~1u, peer->slot);
}

void
twi_peer_ref(struct twi_peer *peer)
{
    vref_ref(&peer->vref);
}

void
twi_peer_unref(struct twi_peer *peer)
{
    if (vref_unref(&peer->vref))
        recycle(peer);
}

/* ---- opening and closing */

/* "a:1,b:2" into an array that the caller frees: how many, or a negative
 * errno. */
static int
parse_addresses(const char *text, struct twi_addr **addrs)
{
    int n = 1, rc = 0;
    for (const char *p = text; (p = strchr(p, ',')); p++)
        n++;
    if (n > TWI_ADDRESSES_MAX)
        return -EINVAL;
    char *copy = twi_malloc(strlen(text) + 1), *rest = copy;
    *addrs = twi_zalloc((size_t)n * sizeof **addrs);
    if (!copy || !*addrs)
        rc = -ENOMEM;
    else
        strcpy(copy, text);
    for (int i = 0; i < n && !rc; i++)
        rc = twi_addr_parse(strsep(&rest, ","), &(*addrs)[i]);
    free(copy);
    if (rc) {
        free(*addrs);
        *addrs = NULL;
    }
    return rc ? rc : n;
}

void
twi_peer_equip(struct twi_peer *peer, struct twi_socket *sock,
               const struct twi_connect_ops *ops)
{
    sock->peer = peer;
    sock->max_message = peer->options.max_message;
    sock->max_unwritten = peer->options.max_unwritten;
    sock->connect.ops = ops;
    sock->connect.addrs = peer->addrs;
    sock->connect.n = peer->n_addrs;
    sock->connect.timeout_ns = peer->options.connect_timeout_ns;
    sock->connect.options = &peer->options.socket;
}

/* The probe's method and message into a peer's: 0 or a negative errno. */
static int
take_probe(struct twi_peer *peer, const tw_peer_options *options)
{
    peer->probe_method = -1;
    if (!options->probe_service || !options->probe_method)
        return 0;
    size_t n = options->probe_body_len;
    int method = tw_client_method(options->probe_service, options->probe_method);
    if (method < 0)
        return method;
    if (n && !(peer->probe_body = twi_malloc(n)))
        return -ENOMEM;
    if (n)
        memcpy(peer->probe_body, options->probe_body, n);
    peer->probe_method = method;
    return 0;
}

/* A socket for the peer, with a reference for the caller; NULL without memory.
 * It takes a reference to the peer that the caller has to give. */
static struct twi_socket *
open_socket(struct twi_peer *peer, int keep)
{
    struct twi_socket *sock = twi_socket_open(TWI_CLIENT_SIDE, &hooks, keep);
    if (!sock)
        return NULL;
    twi_peer_equip(peer, sock, &connect_ops);
    return sock;
}

int
twi_peer_open(const char *text, const tw_peer_options *options,
              struct twi_peer **opened)
{
    struct twi_addr *addrs = NULL;
    int n = parse_addresses(text, &addrs), rc;
    if (n < 0)
        return n;
    uint32_t slot = twi_slab_take(&slab);
    if (slot == TWI_SLAB_NONE) {
        free(addrs);
        return -ENOMEM;
    }
    struct twi_peer *peer = twi_slab_at(&slab, slot);
    peer->slot = slot;
    peer->addrs = addrs;
    peer->n_addrs = (uint32_t)n;
    peer->options = *options;
    peer->options.probe_service = peer->options.probe_method =
        peer->options.probe_body = NULL;
    peer->probe_body = NULL;
    store_relaxed(&peer->timeouts, 0);
    peer->closed = peer->down = 0;
    peer->successor = NULL;
    peer->others = 0;
    twi_pool_init(&peer->pool);
    peer->views = 1;
    peer->logoff_ns = 0;
    peer->waiting = peer->last_waiting = NULL;
    peer->waiting_bytes = 0;
    memset(&peer->check, 0, sizeof peer->check);
    peer->check_ns = 0;
    peer->checker = 0;
    rc = take_probe(peer, options);
    if (!rc && !(peer->sock = open_socket(peer, 1)))
        rc = -ENOMEM;
    if (rc) {
        free(addrs);
        free(peer->probe_body);
        twi_slab_give(&slab, slot);
        return rc;
    }
    pthread_mutex_init(&peer->lock, NULL);
    twi_credential_init(&peer->credential);
    store_relaxed(&peer->socket, twi_socket_id(peer->sock));
    twi_socket_publish(peer->sock);
    /* The additional reference, the socket's and the caller's. */
    vref_open(&peer->vref, 3);
    twi_socket_unref(peer->sock);
    *opened = peer;
    return 0;
}

static void
end_waiting(struct twi_wnode *node)
{
    while (node) {
        struct twi_wnode *next = load_relaxed(&node->next);
        twi_call_end(node->id, ECANCELED, TW_PHASE_NONE);
        twi_wnode_free(node);
        node = next;
    }
}

static void
fail_other(struct twi_socket *sock, void *arg)
{
    if (sock->kind == TWI_CLIENT_SIDE && sock->peer == arg)
        twi_socket_fail(sock, ECANCELED, TW_PHASE_NONE);
}

int
twi_peer_join(struct twi_peer *peer)
{
    pthread_mutex_lock(&peer->lock);
    int open = peer->views > 0;
    peer->views += open != 0;
    pthread_mutex_unlock(&peer->lock);
    return open;
}

int
twi_peer_part(struct twi_peer *peer)
{
    pthread_mutex_lock(&peer->lock);
    int last = --peer->views == 0;
    pthread_mutex_unlock(&peer->lock);
    return last;
}

void
twi_peer_close(struct twi_peer *peer)
{
    if (!vref_fail(&peer->vref, vref_version(&peer->vref) & ~1u))
        return;
    pthread_mutex_lock(&peer->lock);
    peer->closed = 1;
    struct twi_wnode *waiting = peer->waiting;
    tw_id checker = peer->checker;
    int down = peer->down;
    uint32_t others = peer->others;
    peer->waiting = peer->last_waiting = NULL;
    peer->down = 0;
    peer->checker = 0;
    twi_loop_timer_remove(TWI_MAIN, &peer->check);
    twi_loop_timer_remove(TWI_MAIN, &peer->pool.timer);
    /* Under the lock: peer_unheld may be about to retire it. */
    if (!down)
        twi_socket_forsake(peer->sock);
    pthread_mutex_unlock(&peer->lock);
    if (down)
        twi_socket_retire(peer->sock);
    tw_socket_fail(load_relaxed(&peer->socket), ECANCELED);
    tw_socket_fail(checker, ECANCELED);
    if (others)
        twi_socket_each(fail_other, peer);
    end_waiting(waiting);
    twi_peer_unref(peer);
}

/* ---- the socket's lives */

/* The first by who connects it and so holds it, the second when nobody does. */
static void
count_connection(struct twi_socket *sock)
{
    sock->connect.counted = 1;
    twi_count(TWI_CONNECTED, 1);
    twi_count(TWI_CONNECTIONS_OUT, 1);
}

static void
uncount_connection(struct twi_socket *sock)
{
    if (sock->connect.counted)
        twi_count(TWI_CONNECTIONS_OUT, -1);
    sock->connect.counted = 0;
}

struct twi_socket *
twi_peer_socket(struct twi_peer *peer)
{
    for (;;) {
        /* relaxed, twice: an id; what it names was published by its `error`,
         * at which a push looks first. */
        tw_id id = load_relaxed(&peer->socket);
        struct twi_socket *sock = twi_socket_address(id);
        /* Looked at again under the reference: who has replaced it finds the
         * socket held, or we find it replaced (vref_held_by). */
        if (load_relaxed(&peer->socket) == id)
            return sock;
        if (sock)
            twi_socket_unref(sock);
    }
}

struct twi_socket *
twi_peer_open_other(struct twi_peer *peer, int keep)
{
    struct twi_socket *sock = open_socket(peer, keep);
    if (!sock)
        return NULL;
    twi_peer_ref(peer);
    peer->others++;
    return sock;
}

/* The lock held, the socket has failed: whether it has to prove itself.  Not one
 * that was closed because it was never used, by a server that gives a client so
 * long to say something: it goes idle. */
static int
may_be_sick(const struct twi_peer *peer)
{
    /* relaxed: once set it stays so until the lock's holder revives it; who comes
     * too early takes it for sick. */
    return peer->options.health_interval_ns > 0 &&
           !load_relaxed(&peer->sock->connect.unused);
}

int
twi_peer_refuses(struct twi_peer *peer)
{
    if (peer->closed)
        return ECANCELED;
    struct twi_socket *sock = twi_peer_socket(peer);
    int down = !sock && !twi_peer_succeed(peer) && may_be_sick(peer);
    if (sock)
        twi_socket_unref(sock); /* kept: as below */
    return down ? TW_EFAILEDSOCKET : 0;
}

int
twi_peer_wait(struct twi_peer *peer, struct twi_wnode *node, int force)
{
    int code = 0;
    pthread_mutex_lock(&peer->lock);
    /* Of a closed peer the last reference may be given up in there, which takes
     * this lock; as long as it is open its socket is kept. */
    struct twi_socket *sock = peer->closed ? NULL : twi_peer_socket(peer);
    if (peer->closed)
        code = ECANCELED;
    else if (sock || twi_peer_succeed(peer))
        code = EAGAIN;
    else if (may_be_sick(peer))
        code = TW_EFAILEDSOCKET;
    else if (peer->waiting_bytes >= peer->options.max_unwritten && !force) {
        twi_count(TWI_OVERCROWDED, 1);
        code = TW_EOVERCROWDED;
    } else {
        peer->waiting_bytes += node->buf.len + TWI_MESSAGE_COST;
        store_relaxed(&node->next, NULL);
        if (peer->waiting)
            store_relaxed(&peer->last_waiting->next, node);
        else
            peer->waiting = node;
        peer->last_waiting = node;
    }
    pthread_mutex_unlock(&peer->lock);
    if (sock)
        twi_socket_unref(sock);
    return code;
}

struct twi_socket *
twi_peer_revive(struct twi_peer *peer, int64_t now_ns)
{
    struct twi_socket *sock = peer->sock;
    struct twi_wnode *node = peer->waiting;
    twi_credential_revived(&peer->credential, sock);
    peer->waiting = peer->last_waiting = NULL;
    peer->waiting_bytes = 0;
    peer->down = 0;
    peer->check_ns = 0;
    /* Nobody else has the socket yet: what has waited goes first. */
    while (node) {
        struct twi_wnode *next = load_relaxed(&node->next);
        twi_call_on(node->id, sock);
        twi_socket_push(sock, node, 0, 1, now_ns);
        node = next;
    }
    store_relaxed(&sock->connect.unused, 0);
    twi_connect_step(&sock->connect, TWI_C_RESET);
    twi_socket_revive(sock);
    return sock;
}

struct twi_socket *
twi_peer_heal(struct twi_peer *peer, struct twi_socket *checker)
{
    struct twi_socket *sock = peer->sock;
    if (twi_socket_adopt(sock, checker))
        return NULL;
    peer->down = 0;
    peer->check_ns = 0;
    peer->checker = 0;
    sock->connect.good = checker->connect.good;
    store_relaxed(&sock->connect.at, sock->connect.good);
    twi_connect_step(&sock->connect, TWI_C_HEALED);
    twi_credential_adopt(sock, checker);
    count_connection(sock);
    twi_socket_revive(sock);
    return sock;
}

void
twi_peer_revived(struct twi_socket *sock)
{
    if (!sock)
        return;
    if (!twi_wstack_idle(&sock->ws))
        twi_connect_want(sock);
    twi_socket_unref(sock);
}

int64_t
twi_check_delay(int64_t last_ns, int64_t interval_ns)
{
    int64_t delay = last_ns ? last_ns : TWI_CHECK_FIRST_NS / 2;
    return delay < interval_ns / 2 ? 2 * delay : interval_ns;
}

/* From half of it to all of it, so that the clients that a server has lost do
 * not come back in one moment. */
static int64_t
jittered(int64_t delay_ns)
{
    static _Atomic uint64_t dice;
    uint64_t d = add_relaxed(&dice, UINT64_C(0x9e3779b97f4a7c15)) ^
                 (uint64_t)twi_now_ns();
    d = (d ^ d >> 31) * UINT64_C(0xbf58476d1ce4e5b9);
    d ^= d >> 29;
    return delay_ns / 2 + (int64_t)(d % (uint64_t)(delay_ns / 2 + 1));
}

int
twi_peer_check_later(struct twi_peer *peer, int64_t now_ns)
{
    int64_t delay =
        twi_check_delay(peer->check_ns, peer->options.health_interval_ns);
    int rc = twi_loop_timer(TWI_MAIN, &peer->check,
                            twi_deadline_ns(now_ns, jittered(delay)),
                            TWI_TIMER_CHECK, twi_peer_id(peer));
    if (!rc)
        peer->check_ns = delay;
    return rc;
}

static void
peer_unheld(struct twi_socket *sock, int64_t now_ns)
{
    struct twi_peer *peer = sock->peer;
    struct twi_socket *revived = NULL;
    uncount_connection(sock);
    pthread_mutex_lock(&peer->lock);
    int over = peer->closed || peer->sock != sock || twi_peer_succeed(peer);
    if (over && peer->successor == sock)
        peer->successor = NULL;
    if (over)
        ;
    else if (may_be_sick(peer) && !twi_peer_check_later(peer, now_ns)) {
        twi_connect_step(&sock->connect, TWI_C_SICK);
        peer->down = 1;
    } else
        revived = twi_peer_revive(peer, now_ns);
    pthread_mutex_unlock(&peer->lock);
    if (over)
        twi_socket_retire(sock);
    twi_peer_revived(revived);
}

static void
peer_failed(struct twi_socket *sock, int code)
{
    /* relaxed: as may_be_sick says. */
    store_relaxed(&sock->connect.unused,
                  code == TW_EEOF && !load_relaxed(&sock->moved_ns));
    twi_connect_step(&sock->connect, TWI_C_LOST);
    twi_calls_lost(sock, code);
    if (sock->lone)
        twi_pool_failed(sock);
}

static void
peer_recycled(struct twi_socket *sock)
{
    struct twi_peer *peer = sock->peer;
    uncount_connection(sock);
    pthread_mutex_lock(&peer->lock);
    peer->others -= peer->sock != sock;
    if (peer->successor == sock)
        peer->successor = NULL;
    pthread_mutex_unlock(&peer->lock);
    twi_peer_unref(peer);
}

/* ---- connecting */

static void
peer_ready(struct twi_socket *sock, int64_t now_ns)
{
    struct twi_peer *peer = sock->peer;
    store_relaxed(&peer->timeouts, 0);
    count_connection(sock);
    if (sock->lone)
        store_relaxed(&peer->pool.good, sock->connect.good);
    if (!twi_credential_lacks(&peer->credential))
        twi_peer_promote(peer, now_ns);
}

static int
peer_timed_out(struct twi_socket *sock)
{
    struct twi_peer *peer = sock->peer;
    if (add_relaxed(&peer->timeouts, 1) + 1 < TWI_TIMEOUTS_UNREACHABLE)
        return ETIMEDOUT;
    store_relaxed(&peer->timeouts, 0);
    return ENETUNREACH;
}
