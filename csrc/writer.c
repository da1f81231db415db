#include "writer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "atomics.h"
#include "counters.h"
#include "pressure.h"
#include "sys.h"

static _Atomic int64_t nodes;

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
    /* relaxed: who waits for the counts to fall looks at `pending` first, whose
     * fall comes after this and publishes it. */
    uint64_t before = add_relaxed(&sock->unwritten, cost);
    if (before >= sock->max_unwritten && !force) {
        sub_seq_cst(&sock->unwritten, cost);
        twi_socket_relax(sock); /* whoever lowered it meanwhile saw too much */
        twi_count(TWI_OVERCROWDED, 1);
        return TW_EOVERCROWDED;
    }
    twi_count(TWI_UNWRITTEN_BYTES, (int64_t)size);
    twi_count(TWI_WRITE_REQUESTS, 1);
    twi_wstack_push(&sock->ws, node, cork, now_ns);
    /* relaxed: `wanted` looks at more. */
    if (!load_relaxed(&sock->connected) && sock->hooks->wanted)
        sock->hooks->wanted(sock);
    return 0;
}

void
twi_socket_finish(struct twi_socket *sock, int64_t now_ns)
{
    struct twi_wnode *node = twi_wnode_new();
    if (!node) {
        twi_socket_fail(sock, TW_ECLOSE, TW_PHASE_NONE);
        return;
    }
    node->close_after = 1;
    if (twi_socket_push(sock, node, 0, 1, now_ns))
        twi_wnode_free(node);
}

/* ---- what the write stack asks for */

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
    int64_t now_ns = twi_now_ns();
    /* relaxed: for a role's holder it is its own; timeouts.c only compares. */
    store_relaxed(&sock->written_ns, now_ns);
    if (sent > 0) {
        store_relaxed(&sock->moved_ns, now_ns);
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
    /* relaxed, both: the turn that is left to the reader finds the end of the
     * stream again. */
    store_relaxed(&sock->lingering, 1);
    if (load_relaxed(&sock->eof) ||
        twi_loop_timer(sock->loop, &sock->linger_timer,
                       twi_now_ns() + TWI_LINGER_NS, TWI_TIMER_LINGER,
                       twi_socket_id(sock)))
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
    int rc = twi_socket_rearm(sock);
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

const struct twi_wstack_ops twi_writer_ops = {
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

/* ---- nodes */

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
