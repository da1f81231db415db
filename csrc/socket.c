#include "socket.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>

#include "atomics.h"
#include "counters.h"
#include "err.h"
#include "log.h"
#include "side.h"
#include "sys.h"
#include "vref.h"

static struct twi_slab slab;
static _Atomic int64_t nodes;
static _Atomic uint64_t lives;

uint32_t twi_first_version = 2;

static const struct twi_wstack_ops ws_ops;

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
    return c->addrs ? &c->addrs[load_seq_cst(&c->at)] : &sock->remote;
}

/* What begins anew with every life. */
static void
renew(struct twi_socket *sock)
{
    /* relaxed: numbers, no order; the vref publishes it. */
    sock->life = add_relaxed(&lives, 1) + 1;
    store_relaxed(&sock->phase, 0);
    store_relaxed(&sock->connected, 0);
    twi_wstack_init(&sock->ws, &ws_ops);
    store_relaxed(&sock->unwritten, 0);
    memset(&sock->reader, 0, sizeof sock->reader);
    store_relaxed(&sock->paused, 0);
    store_relaxed(&sock->again, 0);
    memset(&sock->timer, 0, sizeof sock->timer);
    store_relaxed(&sock->eof, 0);
    twi_pipeline_init(&sock->pipeline);
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
    sock->server = NULL;
    sock->protocols = 0;
    store_relaxed(&sock->pending, 0);
    store_relaxed(&sock->pending_bytes, 0);
    store_relaxed(&sock->queued, 0);
    store_relaxed(&sock->chunk_out, 0);
    sock->chunk_block = NULL;
    sock->chunk_len = 0;
    sock->pause_ns = 0;
    sock->peer = NULL;
    /* Who walks over all sockets passes failed ones by. */
    store_seq_cst(&sock->error, EAGAIN);
    vref_open(&sock->vref, 2 | (keep ? VREF_KEPT : 0));
    twi_count(TWI_SOCKETS, 1);
    return sock;
}

void
twi_socket_publish(struct twi_socket *sock)
{
    /* release, and more: pairs with the loads of `error` in walks. */
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
    store_seq_cst(&sock->fd, -1);
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
    twi_block_unref(sock->chunk_block);
    sock->reader.block = sock->chunk_block = NULL;
    /* Events of the last binding must match neither the free slot nor the
     * next life. */
    add_seq_cst(&sock->generation, 1);
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
    store_seq_cst(&sock->error, 0);
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
    add_seq_cst(&sock->generation, 1);
    /* Published first, watched last: an event may come at once. */
    store_seq_cst(&sock->fd, fd);
    int rc = twi_loop_add(sock->loop, fd, events | EPOLLET, event_data(sock));
    if (rc)
        store_seq_cst(&sock->fd, -1);
    return rc;
}

void
twi_socket_revive(struct twi_socket *sock)
{
    int fd = load_relaxed(&sock->fd), rc;
    vref_revive(&sock->vref, 2);
    /* Events that came before found nobody: all are reported anew.  With
     * EPOLLOUT, since somebody may be writing and wait for it by now. */
    if (fd >= 0 && (rc = twi_loop_mod(sock->loop, fd,
                                      EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                                      event_data(sock))))
        twi_socket_fail(sock, -rc, TW_PHASE_CONNECT);
}

int
twi_socket_adopt(struct twi_socket *sock, struct twi_socket *from)
{
    int fd = load_relaxed(&from->fd);
    assert(twi_wstack_idle(&from->ws));
    assert(from->transport == sock->transport);
    twi_loop_del(from->loop, fd);
    store_seq_cst(&from->fd, -1);
    int rc = twi_socket_attach(sock, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
    if (rc)
        twi_sys_close(fd);
    else
        store_seq_cst(&sock->connected, 1);
    return rc;
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
    if (load_seq_cst(&sock->error))
        return 0; /* nor may the phase of the first change */
    store_relaxed(&sock->phase, phase);
    /* seq_cst: the write stack's parkers look at `error` after parking. */
    if (!atomic_compare_exchange_strong(&sock->error, &alive, code))
        return 0;
    store_relaxed(&sock->phase, phase);
    vref_fail(&sock->vref, vref_version(&sock->vref));
    int expected = code == TW_ECLOSE || code == TW_ELOGOFF ||
                   code == ECANCELED ||
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
    /* Compared under a reference: the slot can get no new tenant now. */
    if (load_seq_cst(&sock->generation) != (uint32_t)data ||
        twi_socket_error(sock)) {
        twi_count(TWI_STALE_EVENTS, 1);
        twi_socket_unref(sock);
        return;
    }
    if (!load_seq_cst(&sock->connected) && sock->hooks->connect)
        sock->hooks->connect(sock, now_ns);
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP) &&
        load_seq_cst(&sock->connected) && !twi_socket_error(sock)) {
        twi_count(TWI_EVENTTHREAD, 1);
        sock->hooks->readable(sock, events, now_ns);
    }
    if (events & EPOLLOUT && twi_wstack_take(&sock->ws, TWI_W_POLLOUT))
        twi_wstack_run(&sock->ws);
    twi_socket_unref(sock);
}

int
twi_socket_push(struct twi_socket *sock, struct twi_wnode *node, int cork,
                int force, int64_t now_ns)
{
    uint64_t size = node->buf.len, cost = size + TWI_MESSAGE_COST;
    int code = twi_socket_error(sock);
    if (code)
        return code;
    /* relaxed: one that comes just before is dropped by the writer. */
    if (load_relaxed(&sock->ws.shut))
        return TW_ESHUTDOWNWRITE;
    /* Counted here and not when written: the refusal is immediate.  A single
     * message may be larger than the limit, a second one not. */
    uint64_t before = add_seq_cst(&sock->unwritten, cost);
    if (before >= sock->max_unwritten && !force) {
        sub_seq_cst(&sock->unwritten, cost);
        twi_count(TWI_OVERCROWDED, 1);
        return TW_EOVERCROWDED;
    }
    twi_count(TWI_UNWRITTEN_BYTES, (int64_t)size);
    twi_count(TWI_WRITE_REQUESTS, 1);
    twi_wstack_push(&sock->ws, node, cork, now_ns);
    if (!load_seq_cst(&sock->connected) && sock->hooks->wanted)
        sock->hooks->wanted(sock);
    return 0;
}

/* Backpressure holds above `part` of a limit, in halves. */
static int
over(struct twi_socket *sock, uint64_t halves)
{
    uint64_t bytes = load_seq_cst(&sock->pending_bytes);
    return 2 * (load_seq_cst(&sock->unwritten) + bytes) >=
               halves * sock->max_unwritten ||
           2 * bytes >= halves * sock->max_pending_bytes ||
           2 * (uint64_t)load_seq_cst(&sock->pending) >=
               halves * sock->max_pending;
}

int
twi_socket_crowded(struct twi_socket *sock)
{
    return sock->kind == TWI_SERVER_SIDE && over(sock, 2);
}

uint64_t
twi_socket_room(struct twi_socket *sock)
{
    uint64_t held = load_relaxed(&sock->unwritten) +
                    load_relaxed(&sock->pending_bytes);
    return held < sock->max_unwritten ? sock->max_unwritten - held : 0;
}

void
twi_socket_relax(struct twi_socket *sock)
{
    /* Partner: the reader sets `paused`, then looks at the counts again. */
    if (load_seq_cst(&sock->paused) && !over(sock, 1) &&
        atomic_exchange(&sock->paused, 0))
        /* Begins with a read: the edge is gone. */
        twi_socket_again(sock, TWI_AGAIN_READ);
}

void
twi_socket_settle(struct twi_socket *sock)
{
    /* seq_cst throughout: the reader sets `eof` and then looks at the counts,
     * who lowers a count then looks at `eof`. */
    if (load_seq_cst(&sock->eof) && !load_seq_cst(&sock->pending) &&
        !load_seq_cst(&sock->unwritten) && !load_seq_cst(&sock->chunk_out))
        twi_socket_fail(sock, TW_EEOF, TW_PHASE_READ);
    else
        twi_socket_relax(sock);
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

/* ---- the write stack's owner */

static struct twi_socket *
owner(struct twi_wstack *ws)
{
    return (struct twi_socket *)((char *)ws - offsetof(struct twi_socket, ws));
}

static ssize_t
ws_write(struct twi_wstack *ws, const struct iovec *iov, int n)
{
    struct twi_socket *sock = owner(ws);
    ssize_t sent = sock->transport->writev(sock, iov, n);
    sock->written_ns = twi_now_ns();
    if (sent > 0)
        twi_count(TWI_BYTES_OUT, sent);
    return sent;
}

static void
ws_account(struct twi_wstack *ws, uint64_t bytes)
{
    struct twi_socket *sock = owner(ws);
    sub_seq_cst(&sock->unwritten, bytes);
    twi_count(TWI_UNWRITTEN_BYTES, -(int64_t)bytes);
    twi_socket_relax(sock);
}

static void
ws_done(struct twi_wstack *ws, struct twi_wnode *node, int code, int sent)
{
    struct twi_socket *sock = owner(ws);
    if (!code)
        twi_count(TWI_MESSAGES_OUT, 1);
    if (sock->hooks->sent)
        sock->hooks->sent(sock, node, code, sent);
    sub_seq_cst(&sock->unwritten, TWI_MESSAGE_COST);
    twi_socket_settle(sock);
}

static void
ws_start(struct twi_wstack *ws, struct twi_wnode *node)
{
    struct twi_socket *sock = owner(ws);
    if (sock->hooks->sending)
        sock->hooks->sending(sock, node);
    if (node->awaited && !node->unwanted) {
        /* Before the first byte: the answer finds it. */
        twi_pipeline_put(&sock->pipeline, node->awaited);
        node->awaited = NULL;
    }
}

/* Drops what still comes, until the peer ends its half or the bounds. */
static void
linger(struct twi_socket *sock)
{
    store_seq_cst(&sock->lingering, 1);
    if (load_seq_cst(&sock->eof) ||
        twi_loop_timer(sock->loop, &sock->linger_timer, twi_now_ns() + TWI_LINGER_NS,
                       TWI_TIMER_LINGER, twi_socket_id(sock)))
        twi_socket_fail(sock, TW_ECLOSE, TW_PHASE_NONE);
    else
        /* Reading may stand still: its edge is gone. */
        twi_socket_again(sock, TWI_AGAIN_READ);
}

void
twi_socket_lingered(tw_id id)
{
    struct twi_socket *sock = twi_socket_address(id);
    if (!sock)
        return;
    twi_socket_fail(sock, TW_ECLOSE, TW_PHASE_NONE);
    twi_socket_unref(sock);
}

static void
ws_shutdown(struct twi_wstack *ws, int close)
{
    struct twi_socket *sock = owner(ws);
    int rc = twi_sys_shutdown_write(load_relaxed(&sock->fd));
    if (rc)
        twi_socket_fail(sock, -rc, TW_PHASE_WRITE);
    else if (close)
        linger(sock);
}

static void
ws_free(struct twi_wstack *ws, struct twi_wnode *node)
{
    (void)ws;
    twi_wnode_free(node);
}

static void
ws_arm(struct twi_wstack *ws)
{
    struct twi_socket *sock = owner(ws);
    /* Re-arming an edge-triggered watch reports writability that came between
     * the EAGAIN and now. */
    int rc = twi_loop_mod(sock->loop, load_relaxed(&sock->fd),
                          EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                          event_data(sock));
    if (rc)
        twi_socket_fail(sock, -rc, TW_PHASE_WRITE);
}

static void
ws_again(struct twi_wstack *ws)
{
    twi_socket_again(owner(ws), TWI_AGAIN_WRITE);
}

static void
ws_fail(struct twi_wstack *ws, int code)
{
    twi_socket_fail(owner(ws), code, TW_PHASE_WRITE);
}

static int
ws_failed(struct twi_wstack *ws)
{
    return twi_socket_error(owner(ws));
}

static int
ws_writable(struct twi_wstack *ws)
{
    return (int)load_seq_cst(&owner(ws)->connected);
}

static const struct twi_wstack_ops ws_ops = {
    .write = ws_write,
    .account = ws_account,
    .done = ws_done,
    .free_node = ws_free,
    .start = ws_start,
    .arm = ws_arm,
    .again = ws_again,
    .shutdown = ws_shutdown,
    .fail = ws_fail,
    .failed = ws_failed,
    .writable = ws_writable,
};

struct twi_wnode *
twi_wnode_new(void)
{
    /* glibc serves this size from the thread's own cache, without a lock. */
    struct twi_wnode *node = twi_malloc(sizeof *node);
    if (!node)
        return NULL;
    memset(node, 0, sizeof *node);
    twi_iobuf_init(&node->buf);
    add_relaxed(&nodes, 1);
    return node;
}

int
twi_wnode_pipelined(struct twi_wnode *node, uint32_t count)
{
    if (!count)
        return -EINVAL;
    if (count > TWI_PIPELINED_MAX)
        return -EOVERFLOW;
    free(node->awaited);
    node->awaited = twi_awaited_new(node->id, count);
    return node->awaited ? 0 : -ENOMEM;
}

void
twi_wnode_free(struct twi_wnode *node)
{
    twi_iobuf_clear(&node->buf);
    free(node->awaited);
    sub_relaxed(&nodes, 1);
    free(node);
}

int64_t
twi_wnode_live(void)
{
    return load_relaxed(&nodes);
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
    int connected = (int)load_seq_cst(&sock->connected);
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
