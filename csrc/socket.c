#include "socket.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "atomics.h"
#include "counters.h"
#include "err.h"
#include "log.h"
#include "side.h"
#include "sys.h"
#include "vref.h"
#include "writer.h"

static struct twi_slab slab;
static _Atomic uint64_t lives;

uint32_t twi_first_version = 2;

int
twi_sockets_init(void)
{
    twi_slab_init(&slab, sizeof(struct twi_socket));
    return 0;
}

void
twi_sockets_fini(void)
{
    twi_slab_fini(&slab);
}

int64_t
twi_socket_count(void)
{
    return load_relaxed(&slab.live);
}

tw_id
twi_socket_id(const struct twi_socket *sock)
{
    /* A failed socket's id is the one it had: the even version below. */
    return vref_id(vref_version(&sock->vref) & ~1u, sock->slot);
}

const struct twi_addr *
twi_socket_remote(const struct twi_socket *sock)
{
    const struct twi_connect *c = &sock->connect;
    /* relaxed: an index into what does not change. */
    return c->addrs ? &c->addrs[load_relaxed(&c->at)] : &sock->remote;
}

/* What begins anew with every life. */
static void
renew(struct twi_socket *sock)
{
    /* relaxed: numbers, no order; the vref publishes it. */
    sock->life = add_relaxed(&lives, 1) + 1;
    store_relaxed(&sock->phase, 0);
    store_relaxed(&sock->connected, 0);
    twi_wstack_init(&sock->ws, &twi_writer_ops);
    store_relaxed(&sock->unwritten, 0);
    memset(&sock->reader, 0, sizeof sock->reader);
    store_relaxed(&sock->paused, 0);
    store_relaxed(&sock->again, 0);
    memset(&sock->timer, 0, sizeof sock->timer);
    store_relaxed(&sock->eof, 0);
    store_relaxed(&sock->moved_ns, 0);
    store_relaxed(&sock->held, 0);
    memset(&sock->auth, 0, sizeof sock->auth);
    twi_pipeline_init(&sock->pipeline);
    sock->leave_ns = 0;
    store_relaxed(&sock->lingering, 0);
    memset(&sock->linger_timer, 0, sizeof sock->linger_timer);
}

struct twi_socket *
twi_socket_open(enum twi_socket_kind kind, const struct twi_socket_hooks *hooks,
                int keep)
{
    uint32_t slot = twi_slab_take(&slab);
    if (slot == TWI_SLAB_NONE)
        return NULL;
    struct twi_socket *sock = twi_slab_at(&slab, slot);
    /* Everything but vref and generation starts anew. */
    sock->slot = slot;
    sock->kind = (uint8_t)kind;
    sock->hooks = hooks;
    sock->transport = &twi_transport_plain;
    sock->loop = twi_sides_choose(kind == TWI_LISTENER);
    store_relaxed(&sock->fd, -1);
    memset(&sock->remote, 0, sizeof sock->remote);
    memset(&sock->connect, 0, sizeof sock->connect);
    renew(sock);
    sock->max_unwritten = sock->max_message = 64 << 20;
    sock->max_pending = sock->max_pending_bytes = UINT64_MAX / 4;
    sock->cancel_on_eof = 0;
    sock->server = NULL;
    sock->protocols = 0;
    store_relaxed(&sock->pending, 0);
    store_relaxed(&sock->pending_bytes, 0);
    store_relaxed(&sock->queued, 0);
    store_relaxed(&sock->noticed, 0);
    store_relaxed(&sock->chunk_out, 0);
    sock->chunk_block = NULL;
    sock->chunk_len = 0;
    sock->pause_ns = 0;
    sock->inherited = 0;
    sock->file_ino = 0;
    sock->peer = NULL;
    sock->lone = sock->last_call = 0;
    sock->newer = sock->older = NULL;
    /* Who walks over all sockets passes failed ones by. */
    store_relaxed(&sock->error, EAGAIN);
    vref_open(&sock->vref, 2 | (keep ? VREF_KEPT : 0));
    twi_count(TWI_SOCKETS, 1);
    return sock;
}

void
twi_socket_publish(struct twi_socket *sock)
{
    /* release: pairs with the loads of `error` in walks.  seq_cst: an acceptor
     * publishes a connection and then looks whether its server was closed; who
     * closes that walks afterwards. */
    store_seq_cst(&sock->error, 0);
}

void
twi_socket_detach(struct twi_socket *sock)
{
    int fd = load_relaxed(&sock->fd);
    if (fd < 0)
        return;
    /* Out of the poller before close: a forked child may keep the description
     * alive, and its events with it. */
    twi_loop_del(sock->loop, fd);
    /* relaxed, as everywhere: who uses the descriptor has the write role, the
     * baton or the last reference, which order. */
    store_relaxed(&sock->fd, -1);
    sock->transport->close(sock, fd);
}

/* Nobody holds it: gives back all that belongs to its last life. */
static void
clean(struct twi_socket *sock)
{
    assert(twi_wstack_idle(&sock->ws));
    twi_socket_detach(sock);
    twi_loop_timer_remove(sock->loop, &sock->timer);
    twi_loop_timer_remove(sock->loop, &sock->linger_timer);
    twi_pipeline_fini(&sock->pipeline);
    twi_block_unref(sock->reader.block);
    /* release: pairs with twi_socket_holds; the bytes are freed. */
    store_release(&sock->held, 0);
    twi_block_unref(sock->chunk_block);
    sock->reader.block = sock->chunk_block = NULL;
    twi_loop_timer_remove(sock->loop, &sock->auth.timer);
    twi_block_unref(sock->auth.block);
    twi_block_unref(sock->auth.identity);
    sock->auth.block = sock->auth.identity = NULL;
    /* Events of the last binding must match neither the free slot nor the
     * next life.  relaxed: the vref publishes it with that life. */
    add_relaxed(&sock->generation, 1);
}

static void
recycle(struct twi_socket *sock)
{
    clean(sock);
    if (sock->hooks->recycled)
        sock->hooks->recycled(sock);
    twi_count(TWI_SOCKETS, -1);
    twi_slab_give(&slab, sock->slot);
}

/* What vref_unref left to do. */
static void
last_unref(struct twi_socket *sock, int what)
{
    if (what == VREF_RECYCLE)
        recycle(sock);
    else if (what == VREF_RESET) {
        /* The poller does it, who holds no lock and is nobody's callee; no
         * event can come in between. */
        assert(load_relaxed(&sock->again) == 0);
        store_relaxed(&sock->again, TWI_AGAIN_RESET);
        twi_loop_leave(sock->loop, &sock->leftover);
    }
}

/* The socket of a slot, if its version is that one. */
static struct twi_socket *
address(struct twi_socket *sock, uint32_t version)
{
    int rc = vref_address(&sock->vref, version);
    if (rc < 0)
        last_unref(sock, -rc);
    return rc == 1 ? sock : NULL;
}

struct twi_socket *
twi_socket_address(tw_id id)
{
    struct twi_socket *sock = twi_slab_at(&slab, (uint32_t)id);
    return sock && id ? address(sock, (uint32_t)(id >> 32)) : NULL;
}

void
twi_socket_ref(struct twi_socket *sock)
{
    vref_ref(&sock->vref);
}

void
twi_socket_unref(struct twi_socket *sock)
{
    last_unref(sock, vref_unref(&sock->vref));
}

static void
reset(struct twi_socket *sock, int64_t now_ns)
{
    clean(sock);
    renew(sock);
    store_relaxed(&sock->error, 0); /* for its next life, which publishes it */
    sock->hooks->unheld(sock, now_ns);
}

void
twi_socket_retire(struct twi_socket *sock)
{
    vref_retire(&sock->vref);
    recycle(sock);
}

void
twi_socket_forsake(struct twi_socket *sock)
{
    vref_forsake(&sock->vref);
}

static uint64_t
event_data(const struct twi_socket *sock)
{
    return (uint64_t)sock->slot << 32 | load_relaxed(&sock->generation);
}

int
twi_socket_attach(struct twi_socket *sock, int fd, uint32_t events)
{
    /* A new binding: events of an earlier one no longer match. */
    add_relaxed(&sock->generation, 1);
    /* Published first, watched last: an event may come at once. */
    store_relaxed(&sock->fd, fd);
    int rc = twi_loop_add(sock->loop, fd, events | EPOLLET, event_data(sock));
    if (rc)
        store_relaxed(&sock->fd, -1);
    return rc;
}

int
twi_socket_rearm(struct twi_socket *sock)
{
    return twi_loop_mod(sock->loop, load_relaxed(&sock->fd),
                        EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                        event_data(sock));
}

void
twi_socket_revive(struct twi_socket *sock)
{
    int rc;
    vref_revive(&sock->vref, 2);
    /* Events that came before found nobody.  Somebody may be writing and wait
     * for one by now. */
    if (load_relaxed(&sock->fd) >= 0 && (rc = twi_socket_rearm(sock)))
        twi_socket_fail(sock, -rc, TW_PHASE_CONNECT);
}

int
twi_socket_adopt(struct twi_socket *sock, struct twi_socket *from)
{
    int fd = load_relaxed(&from->fd);
    assert(twi_wstack_idle(&from->ws));
    assert(from->transport == sock->transport);
    twi_loop_del(from->loop, fd);
    store_relaxed(&from->fd, -1);
    int rc = twi_socket_attach(sock, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
    if (rc)
        twi_sys_close(fd);
    else
        store_relaxed(&sock->connected, 1); /* its revival publishes it */
    return rc;
}

uint64_t
twi_socket_holds(tw_id id)
{
    struct twi_socket *sock = twi_slab_at(&slab, (uint32_t)id);
    if (!sock || !id)
        return 0;
    /* acquire: pairs with the release in recycle. */
    return load_acquire(&sock->held) + load_relaxed(&sock->unwritten);
}

int
twi_socket_error(struct twi_socket *sock)
{
    return load_seq_cst(&sock->error);
}

int
twi_socket_fail(struct twi_socket *sock, int code, int phase)
{
    int alive = 0;
    assert(code > 0);
    if (load_relaxed(&sock->error)) /* the exchange looks again */
        return 0; /* nor may the phase of the first change */
    store_relaxed(&sock->phase, phase);
    /* seq_cst: the write stack's parkers look at `error` after parking. */
    if (!atomic_compare_exchange_strong(&sock->error, &alive, code))
        return 0;
    store_relaxed(&sock->phase, phase);
    vref_fail(&sock->vref, vref_version(&sock->vref));
    /* TW_ELIMIT: budget.c, which tells more. */
    int expected = code == TW_ECLOSE || code == TW_ELOGOFF ||
                   code == ECANCELED || code == TW_ELIMIT ||
                   (code == TW_EEOF && sock->kind != TWI_CLIENT_SIDE);
    /* Unacceptable bytes: reader.c has logged them, with a sample. */
    if (!expected && !(code == EINVAL && phase == TW_PHASE_READ))
        twi_log(phase == TW_PHASE_CONNECT ? TW_LOG_CONNECT_FAILED
                                          : TW_LOG_CONNECTION_FAILED,
                code, twi_socket_remote(sock), twi_err_text(code));
    if (expected)
        ;
    else if (phase == TW_PHASE_CONNECT)
        twi_count(TWI_ERRORS_CONNECT, 1);
    else if (phase == TW_PHASE_READ)
        twi_count(TWI_ERRORS_READ, 1);
    else if (phase == TW_PHASE_WRITE)
        twi_count(TWI_ERRORS_WRITE, 1);
    /* First the queue: its nodes end their own calls and know how far their
     * bytes got.  Then what waits for an answer. */
    twi_wstack_failed(&sock->ws);
    if (sock->hooks->failed)
        sock->hooks->failed(sock, code);
    twi_loop_timer_remove(sock->loop, &sock->timer);
    twi_loop_timer_remove(sock->loop, &sock->linger_timer);
    twi_socket_unref(sock); /* the additional reference */
    return 1;
}

void
twi_socket_again(struct twi_socket *sock, uint32_t what)
{
    /* The first to set a bit puts it on the list, with a reference. */
    if (atomic_fetch_or(&sock->again, what) == 0) {
        vref_ref(&sock->vref);
        twi_loop_leave(sock->loop, &sock->leftover);
    }
}

void
twi_socket_leftover(struct twi_leftover *item, int64_t now_ns)
{
    struct twi_socket *sock =
        (struct twi_socket *)((char *)item -
                              offsetof(struct twi_socket, leftover));
    uint32_t what = atomic_exchange(&sock->again, 0);
    if (what & TWI_AGAIN_RESET) {
        reset(sock, now_ns);
        return;
    }
    if (what & TWI_AGAIN_WRITE && twi_wstack_take(&sock->ws, TWI_W_READY))
        twi_wstack_run(&sock->ws);
    if (what & TWI_AGAIN_CONNECT && !twi_socket_error(sock))
        sock->hooks->connect(sock, now_ns);
    if (what & TWI_AGAIN_READ && !twi_socket_error(sock))
        sock->hooks->readable(sock, 0, now_ns);
    twi_socket_unref(sock);
}

void
twi_socket_event(uint64_t data, uint32_t events, int64_t now_ns)
{
    struct twi_socket *sock = twi_slab_at(&slab, (uint32_t)(data >> 32));
    assert(sock);
    if (!address(sock, vref_look(&sock->vref))) {
        twi_count(TWI_STALE_EVENTS, 1);
        return;
    }
    /* Compared under a reference: the slot can get no new tenant now, and what
     * came before this one is seen, by address.  Only the baton's holder binds
     * anew. */
    if (load_relaxed(&sock->generation) != (uint32_t)data ||
        twi_socket_error(sock)) {
        twi_count(TWI_STALE_EVENTS, 1);
        twi_socket_unref(sock);
        return;
    }
    /* relaxed: connected with the baton, which is ours, or before it lived. */
    if (!load_relaxed(&sock->connected) && sock->hooks->connect)
        sock->hooks->connect(sock, now_ns);
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP) &&
        load_relaxed(&sock->connected) && !twi_socket_error(sock)) {
        twi_count(TWI_EVENTTHREAD, 1);
        sock->hooks->readable(sock, events, now_ns);
    }
    if (events & EPOLLOUT && twi_wstack_take(&sock->ws, TWI_W_POLLOUT))
        twi_wstack_run(&sock->ws);
    twi_socket_unref(sock);
}

void
twi_socket_each(void (*fn)(struct twi_socket *, void *), void *arg)
{
    for (uint32_t i = 0; i < twi_slab_end(&slab); i++) {
        struct twi_socket *sock = twi_slab_at(&slab, i);
        if (!address(sock, vref_look(&sock->vref)))
            continue;
        if (!twi_socket_error(sock))
            fn(sock, arg);
        twi_socket_unref(sock);
    }
}

void
twi_sockets_close_fds(void)
{
    for (uint32_t i = 0; i < twi_slab_end(&slab); i++) {
        struct twi_socket *sock = twi_slab_at(&slab, i);
        int fd = load_relaxed(&sock->fd);
        /* Failed ones too, as long as they are not recycled. */
        if (vref_version(&sock->vref) && fd >= 0)
            twi_sys_close(fd);
    }
}

/* ---- api.h */

int
tw_socket_peer(tw_id id, char *text, size_t cap)
{
    struct twi_socket *sock = twi_socket_address(id);
    if (!sock)
        return -TW_STALE;
    int n = twi_addr_format(twi_socket_remote(sock), text, cap);
    twi_socket_unref(sock);
    return n;
}

int
tw_socket_alive(tw_id id)
{
    struct twi_socket *sock = twi_socket_address(id);
    if (!sock)
        return 0;
    int connected = (int)load_relaxed(&sock->connected); /* at this moment */
    twi_socket_unref(sock);
    return connected;
}

int
tw_socket_fail(tw_id id, int code)
{
    struct twi_socket *sock = twi_socket_address(id);
    if (code <= 0) {
        if (sock)
            twi_socket_unref(sock);
        return -EINVAL;
    }
    if (!sock)
        return -TW_STALE;
    twi_socket_fail(sock, code, TW_PHASE_NONE);
    twi_socket_unref(sock);
    return 0;
}
