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
#include "sys.h"
#include "vref.h"

static struct twi_slab slab;
static _Atomic int64_t nodes;

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

struct twi_socket *
twi_socket_open(enum twi_socket_kind kind, const struct twi_socket_hooks *hooks)
{
    uint32_t slot = twi_slab_take(&slab);
    if (slot == TWI_SLAB_NONE)
        return NULL;
    struct twi_socket *sock = twi_slab_at(&slab, slot);
    /* Everything but vref and generation starts anew. */
    sock->slot = slot;
    sock->kind = (uint8_t)kind;
    sock->hooks = hooks;
    store_relaxed(&sock->fd, -1);
    store_relaxed(&sock->phase, 0);
    store_relaxed(&sock->connected, 0);
    memset(&sock->remote, 0, sizeof sock->remote);
    twi_wstack_init(&sock->ws, &ws_ops);
    store_relaxed(&sock->unwritten, 0);
    sock->max_unwritten = sock->max_message = 64 << 20;
    sock->max_pending = sock->max_pending_bytes = UINT64_MAX / 4;
    memset(&sock->reader, 0, sizeof sock->reader);
    store_relaxed(&sock->paused, 0);
    store_relaxed(&sock->again, 0);
    memset(&sock->timer, 0, sizeof sock->timer);
    store_relaxed(&sock->moved_ns, 0);
    store_relaxed(&sock->held, 0);
    sock->server = NULL;
    sock->protocols = 0;
    store_relaxed(&sock->eof, 0);
    store_relaxed(&sock->pending, 0);
    store_relaxed(&sock->pending_bytes, 0);
    store_relaxed(&sock->queued, 0);
    store_relaxed(&sock->chunk_out, 0);
    sock->chunk_block = NULL;
    sock->chunk_len = 0;
    sock->pause_ns = 0;
    sock->peer = 0;
    memset(&sock->auth, 0, sizeof sock->auth);
    /* Who walks over all sockets passes failed ones by. */
    store_seq_cst(&sock->error, EAGAIN);
    vref_open(&sock->vref, 2);
    twi_count(TWI_SOCKETS, 1);
    return sock;
}

void
twi_socket_publish(struct twi_socket *sock)
{
    /* release, and more: pairs with the loads of `error` in walks. */
    store_seq_cst(&sock->error, 0);
}

static void
recycle(struct twi_socket *sock)
{
    int fd = load_relaxed(&sock->fd);
    if (fd >= 0) {
        /* Out of the poller before close: a forked child may keep the
         * description alive, and its events with it. */
        twi_loop_del(fd);
        twi_sys_close(fd);
        store_relaxed(&sock->fd, -1);
    }
    twi_loop_timer_remove(&sock->timer);
    twi_block_unref(sock->reader.block);
    /* release: pairs with twi_socket_holds; the bytes are freed. */
    store_release(&sock->held, 0);
    twi_block_unref(sock->chunk_block);
    sock->reader.block = sock->chunk_block = NULL;
    twi_loop_timer_remove(&sock->auth.timer);
    twi_block_unref(sock->auth.block);
    twi_block_unref(sock->auth.identity);
    sock->auth.block = sock->auth.identity = NULL;
    if (sock->hooks->recycled)
        sock->hooks->recycled(sock);
    /* Events of the last binding must not match the free slot either. */
    add_seq_cst(&sock->generation, 1);
    twi_count(TWI_SOCKETS, -1);
    twi_slab_give(&slab, sock->slot);
}

struct twi_socket *
twi_socket_address(tw_id id)
{
    struct twi_socket *sock = twi_slab_at(&slab, (uint32_t)id);
    if (!sock || !id)
        return NULL;
    int rc = vref_address(&sock->vref, (uint32_t)(id >> 32));
    if (rc < 0)
        recycle(sock);
    return rc == 1 ? sock : NULL;
}

void
twi_socket_ref(struct twi_socket *sock)
{
    vref_ref(&sock->vref);
}

void
twi_socket_unref(struct twi_socket *sock)
{
    if (vref_unref(&sock->vref))
        recycle(sock);
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
    int rc = twi_loop_add(fd, events | EPOLLET, event_data(sock));
    if (rc)
        store_seq_cst(&sock->fd, -1);
    return rc;
}

uint64_t
twi_socket_holds(tw_id id)
{
    struct twi_socket *sock = twi_slab_at(&slab, (uint32_t)id);
    if (!sock || !id)
        return 0;
    /* acquire: pairs with the release in recycle. */
    return load_acquire(&sock->held) + load_seq_cst(&sock->unwritten);
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
    /* TW_ELIMIT: budget.c, which tells more. */
    int expected = code == TW_ECLOSE || code == TW_ELOGOFF ||
                   code == ECANCELED || code == TW_ELIMIT ||
                   (code == TW_EEOF && sock->kind != TWI_CLIENT_SIDE);
    /* Unacceptable bytes: reader.c has logged them, with a sample. */
    if (!expected && !(code == EINVAL && phase == TW_PHASE_READ))
        twi_log(phase == TW_PHASE_CONNECT ? TW_LOG_CONNECT_FAILED
                                          : TW_LOG_CONNECTION_FAILED,
                code, &sock->remote, twi_err_text(code));
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
    twi_loop_timer_remove(&sock->timer);
    twi_socket_unref(sock); /* the additional reference */
    return 1;
}

void
twi_socket_again(struct twi_socket *sock, uint32_t what)
{
    /* The first to set a bit puts it on the list, with a reference. */
    if (atomic_fetch_or(&sock->again, what) == 0) {
        vref_ref(&sock->vref);
        twi_loop_leave(&sock->leftover);
    }
}

void
twi_socket_leftover(struct twi_leftover *item, int64_t now_ns)
{
    struct twi_socket *sock =
        (struct twi_socket *)((char *)item -
                              offsetof(struct twi_socket, leftover));
    uint32_t what = atomic_exchange(&sock->again, 0);
    if (what & TWI_AGAIN_WRITE && twi_wstack_take(&sock->ws, TWI_W_READY))
        twi_wstack_run(&sock->ws);
    if (what & TWI_AGAIN_READ && !twi_socket_error(sock))
        sock->hooks->readable(sock, 0, now_ns);
    twi_socket_unref(sock);
}

void
twi_socket_event(uint64_t data, uint32_t events, int64_t now_ns)
{
    struct twi_socket *sock = twi_slab_at(&slab, (uint32_t)(data >> 32));
    assert(sock);
    uint32_t version = vref_look(&sock->vref);
    int rc = vref_address(&sock->vref, version);
    if (rc != 1) {
        if (rc < 0)
            recycle(sock);
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
    if (events & (EPOLLOUT | EPOLLERR | EPOLLHUP) &&
        !load_seq_cst(&sock->connected) && sock->hooks->connected)
        sock->hooks->connected(sock, now_ns);
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
        int rc = vref_address(&sock->vref, vref_look(&sock->vref));
        if (rc < 0)
            recycle(sock);
        if (rc != 1)
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
    ssize_t sent = twi_sys_writev(load_relaxed(&sock->fd), iov, n);
    sock->written_ns = twi_now_ns();
    if (sent > 0) {
        store_relaxed(&sock->moved_ns, sock->written_ns);
        twi_count(TWI_BYTES_OUT, sent);
    }
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
    int rc = twi_loop_mod(load_relaxed(&sock->fd),
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

void
twi_wnode_free(struct twi_wnode *node)
{
    twi_iobuf_clear(&node->buf);
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
    int n = twi_addr_format(&sock->remote, text, cap);
    twi_socket_unref(sock);
    return n;
}

int
tw_socket_alive(tw_id id)
{
    struct twi_socket *sock = twi_socket_address(id);
    if (!sock)
        return 0;
    twi_socket_unref(sock);
    return 1;
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
