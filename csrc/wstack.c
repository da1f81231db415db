#include "wstack.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "atomics.h"
#include "core.h"
#include "counters.h"
#include "sys.h"

/* `next` between the exchange that published a node and the store that links
 * it to the older one. */
#define UNLINKED ((struct twi_wnode *)-1)

void
twi_wstack_init(struct twi_wstack *ws, const struct twi_wstack_ops *ops)
{
    memset(ws, 0, sizeof *ws);
    ws->ops = ops;
}

int
twi_wstack_idle(struct twi_wstack *ws)
{
    /* acquire: pairs with leave; who finds it idle may take the descriptor. */
    return load_acquire(&ws->head) == NULL;
}

/* L5: one at a time has the role.  Plain loads and stores, so that the check
 * orders nothing that would not be ordered without it. */
static inline void
hold(struct twi_wstack *ws)
{
#ifndef NDEBUG
    assert(!load_relaxed(&ws->held));
    store_relaxed(&ws->held, 1);
#else
    (void)ws;
#endif
}

/* Just before the role can become another's. */
static inline void
let_go(struct twi_wstack *ws)
{
#ifndef NDEBUG
    assert(load_relaxed(&ws->held));
    store_relaxed(&ws->held, 0);
#else
    (void)ws;
#endif
}

int
twi_wstack_take(struct twi_wstack *ws, enum twi_wstate state)
{
    uint32_t expected = state;
    /* Looking first keeps the line shared for the many who need not take. */
    if (load_seq_cst(&ws->state) != state)
        return 0;
    if (!atomic_compare_exchange_strong(&ws->state, &expected, TWI_W_RUNNING))
        return 0;
    hold(ws);
    return 1;
}

/* Links everything pushed after ws->last behind it, oldest first.  Waits for
 * pushers that are between their two instructions. */
static void
fetch_newer(struct twi_wstack *ws, struct twi_wnode *head)
{
    struct twi_wnode *newer = NULL, *node = head;
    while (node != ws->last) {
        struct twi_wnode *older;
        /* acquire: pairs with the release in push. */
        while ((older = load_acquire(&node->next)) == UNLINKED)
            cpu_relax();
        store_relaxed(&node->next, newer);
        newer = node;
        node = older;
    }
    store_relaxed(&ws->last->next, newer);
    ws->last = head;
}

/* Frees finished nodes but the last, which the head may still name. */
static void
free_finished(struct twi_wstack *ws)
{
    while (ws->first != ws->last && ws->first->done) {
        struct twi_wnode *node = ws->first;
        ws->first = load_relaxed(&node->next);
        ws->ops->free_node(ws, node);
    }
}

static void
keep_writing(struct twi_wstack *ws)
{
    if (ws->keeping)
        return;
    ws->keeping = 1;
    twi_count(TWI_KEEPWRITE, 1);
}

/* All nodes known are done: leaves (1), or finds newer ones (0). */
static int
leave(struct twi_wstack *ws)
{
    assert(ws->first == ws->last && ws->last->done);
    struct twi_wnode *last = ws->last, *head = last;
    let_go(ws);
    /* release: hands the role's fields to the next push that finds the head
     * empty (its exchange acquires); acquire: for the nodes found instead. */
    if (atomic_compare_exchange_strong_explicit(&ws->head, &head, NULL,
                                                memory_order_seq_cst,
                                                memory_order_seq_cst)) {
        ws->ops->free_node(ws, last);
        return 1;
    }
    hold(ws);
    fetch_newer(ws, head);
    free_finished(ws);
    return 0;
}

static void
drop(struct twi_wstack *ws, struct twi_wnode *node, int code)
{
    node->done = 1;
    ws->ops->account(ws, node->buf.len);
    ws->ops->done(ws, node, code,
                  node->buf.len < node->size ? TW_SENT_SOME : TW_SENT_NONE);
}

static void
drain(struct twi_wstack *ws, int code)
{
    do {
        struct twi_wnode *node = ws->first;
        for (;;) {
            struct twi_wnode *next = load_relaxed(&node->next);
            int last = node == ws->last;
            if (!node->done)
                drop(ws, node, code);
            if (last)
                break;
            node = next;
        }
        free_finished(ws);
    } while (!leave(ws));
}

/* Parks the role; 1 when it must go on instead. */
static int
park(struct twi_wstack *ws, enum twi_wstate state)
{
    struct twi_wnode *last = ws->last;
    let_go(ws);
    store_seq_cst(&ws->state, state);
    /* From here on another thread may hold the role: only what is ours or
     * atomic may be looked at. */
    if (state == TWI_W_POLLOUT)
        ws->ops->arm(ws);
    else if (state == TWI_W_READY)
        ws->ops->again(ws);
    int wrong = ws->ops->failed(ws) != 0;
    if (state == TWI_W_CORKED)
        wrong |= load_seq_cst(&ws->head) != last;
    if (state == TWI_W_CONNECTING)
        wrong |= ws->ops->writable(ws) != 0;
    return wrong && twi_wstack_take(ws, state);
}

/* The first nodes' bytes, at most TWI_WSTACK_IOVECS pieces. */
static int
gather(struct twi_wstack *ws, struct iovec *iov, size_t *bytes)
{
    int n = 0;
    for (struct twi_wnode *node = ws->first; n < TWI_WSTACK_IOVECS;
         node = load_relaxed(&node->next)) {
        if (!node->done) {
            if (!node->started) {
                node->started = 1;
                ws->ops->start(ws, node);
            }
            if (node->unwanted)
                drop(ws, node, ECANCELED);
            else
                n += twi_iobuf_gather(&node->buf, iov + n,
                                      TWI_WSTACK_IOVECS - n, bytes);
            if (node->shutdown_after | node->close_after)
                break;
        }
        if (node == ws->last || *bytes >= TWI_WSTACK_BUDGET)
            break;
    }
    return n;
}

/* Books `written` bytes on the first nodes. */
static void
advance(struct twi_wstack *ws, uint64_t written)
{
    ws->ops->account(ws, written);
    for (struct twi_wnode *node = ws->first;; node = load_relaxed(&node->next)) {
        if (!node->done) {
            if (!node->started)
                break; /* not gathered, even if it is empty */
            uint64_t part =
                written < node->buf.len ? written : node->buf.len;
            twi_iobuf_drop(&node->buf, part);
            written -= part;
            if (node->buf.len)
                break;
            node->done = 1;
            ws->ops->done(ws, node, 0, TW_SENT_ALL);
            if (node->shutdown_after | node->close_after) {
                store_relaxed(&ws->shut, 1);
                ws->ops->shutdown(ws, node->close_after);
            }
        }
        if (node == ws->last)
            break;
    }
    free_finished(ws);
}

void
twi_wstack_run(struct twi_wstack *ws)
{
    uint64_t budget = TWI_WSTACK_BUDGET;
    struct twi_wnode *head = load_acquire(&ws->head);
    /* What gathered while the role was parked goes out with the first write. */
    if (head != ws->last) {
        fetch_newer(ws, head);
        free_finished(ws);
    }
    for (;;) {
        struct iovec iov[TWI_WSTACK_IOVECS];
        size_t bytes = 0;
        int code = ws->ops->failed(ws);
        if (!code && load_relaxed(&ws->shut))
            code = TW_ESHUTDOWNWRITE;
        if (code) {
            drain(ws, code);
            return;
        }
        if (!ws->ops->writable(ws)) {
            if (park(ws, TWI_W_CONNECTING))
                continue;
            return;
        }
        if (ws->first == ws->last && ws->first->done) {
            if (leave(ws))
                return;
            keep_writing(ws);
            continue;
        }
        if (!budget) {
            keep_writing(ws);
            if (park(ws, TWI_W_READY))
                continue;
            return;
        }
        int n = gather(ws, iov, &bytes);
        ssize_t written = 0;
        if (n > 0) { /* else: an empty message */
            twi_count(TWI_WRITEV_CALLS, 1);
            written = ws->ops->write(ws, iov, n);
        }
        if (written < 0 && written != TWI_AGAIN) {
            ws->ops->fail(ws, (int)-written);
            continue;
        }
        if (written != TWI_AGAIN)
            advance(ws, (uint64_t)written);
        if (written == TWI_AGAIN || (size_t)written < bytes) {
            keep_writing(ws);
            twi_count(TWI_WAITEPOLLOUT, 1);
            if (park(ws, TWI_W_POLLOUT))
                continue;
            return;
        }
        budget -= (uint64_t)written < budget ? (uint64_t)written : budget;
        head = load_acquire(&ws->head);
        if (head != ws->last) {
            keep_writing(ws);
            fetch_newer(ws, head);
            free_finished(ws);
        }
    }
}

void
twi_wstack_push(struct twi_wstack *ws, struct twi_wnode *node, int cork,
                int64_t now_ns)
{
    /* A pushed node may be written and freed at once: read it before. */
    uint64_t size = node->buf.len;
    node->size = size;
    node->done = node->started = node->unwanted = 0;
    store_relaxed(&node->next, UNLINKED);
    /* release: publishes the node; acquire: takes the role's fields over from
     * the last holder's leave.  seq_cst for the look at `state` below. */
    struct twi_wnode *older = atomic_exchange(&ws->head, node);
    if (older) {
        /* release: pairs with the acquire in fetch_newer. */
        store_release(&node->next, older);
        if (load_seq_cst(&ws->state) != TWI_W_CORKED)
            return;
        if (cork &&
            add_relaxed(&ws->corked, 1) + 1 < TWI_CORK_MESSAGES &&
            add_relaxed(&ws->corked_bytes, size) + size < TWI_CORK_BYTES)
            return;
        if (twi_wstack_take(ws, TWI_W_CORKED))
            twi_wstack_run(ws);
        return;
    }
    store_relaxed(&node->next, NULL);
    hold(ws);
    ws->first = ws->last = node;
    ws->keeping = 0;
    if (cork) {
        store_relaxed(&ws->corked, 1);
        store_relaxed(&ws->corked_bytes, size);
        store_relaxed(&ws->corked_ns, now_ns);
        twi_count(TWI_CORKED, 1);
        if (!park(ws, TWI_W_CORKED))
            return;
    }
    twi_wstack_run(ws);
}

void
twi_wstack_failed(struct twi_wstack *ws)
{
    uint32_t state = load_seq_cst(&ws->state);
    if (state != TWI_W_RUNNING && twi_wstack_take(ws, state))
        twi_wstack_run(ws);
}
