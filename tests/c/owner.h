/* The owner of a write stack, in one thread, as test_wstack.c and the fuzzer
 * script it: what every write takes, what happens meanwhile.  It checks what
 * holds whatever the script: each message is done once and in the order of
 * pushing (one that turned out to be unwanted does not wait for those before
 * it), freed in that order, and nothing is written once the owner failed or a
 * message was to be the last. */
#ifndef OWNER_H
#define OWNER_H

#include "wstack.h"

#include <stdlib.h>
#include <string.h>

#include "atomics.h"
#include "check.h"
#include "core.h"
#include "sys.h"

enum { OWNER_NODES = 4000 };

/* What the program adds; all but answer may be NULL. */
struct owner_hooks {
    /* How many bytes the write that comes takes, SIZE_MAX for all; or as the
     * stack's write says that it took none. */
    ssize_t (*answer)(void);
    int (*unwanted)(void); /* of a message whose turn it is */
    void (*done)(void);    /* one more is */
};

static struct {
    struct twi_wstack ws;
    const struct owner_hooks *hooks;
    int error, connected;
    int armed, readied; /* parked and not yet resumed */
    int arms, agains, shutdowns, closes, fail_calls, writes, most_iovecs;
    size_t largest; /* that was asked of one write */
    long long unwritten;
    uint8_t *wire; /* the program's */
    size_t cap, written;
    uint32_t pushed, started, next, done, freed; /* next: not done yet */
    struct {
        size_t size;
        int done, unwanted, code, sent;
    } node[OWNER_NODES];
} o;

static ssize_t
on_write(struct twi_wstack *ws, const struct iovec *iov, int n)
{
    (void)ws;
    MUST(n > 0 && n <= TWI_WSTACK_IOVECS);
    MUST(!o.error && o.connected && !o.shutdowns);
    o.writes++;
    o.most_iovecs = n > o.most_iovecs ? n : o.most_iovecs;
    ssize_t take = o.hooks->answer();
    if (take < 0)
        return take;
    size_t total = 0, asked = 0;
    for (int i = 0; i < n; i++) {
        size_t part = iov[i].iov_len;
        asked += part;
        if (part > (size_t)take - total)
            part = (size_t)take - total;
        MUST(o.written + part <= o.cap);
        memcpy(o.wire + o.written, iov[i].iov_base, part);
        o.written += part;
        total += part;
    }
    o.largest = asked > o.largest ? asked : o.largest;
    return total ? (ssize_t)total : TWI_AGAIN;
}

static void
on_account(struct twi_wstack *ws, uint64_t bytes)
{
    (void)ws;
    o.unwritten -= (long long)bytes;
    MUST(o.unwritten >= 0);
}

static void
on_done(struct twi_wstack *ws, struct twi_wnode *node, int code, int sent)
{
    (void)ws;
    uint32_t i = node->seq;
    MUST(i < o.pushed && !o.node[i].done);
    MUST(node->unwanted || i == o.next);
    MUST(node->size == o.node[i].size);
    MUST(code || node->started || !node->size);
    o.node[i].done = 1;
    o.node[i].code = code;
    o.node[i].sent = sent;
    o.node[i].unwanted = node->unwanted;
    o.done++;
    while (o.next < o.pushed && o.node[o.next].done)
        o.next++;
    if (o.hooks->done)
        o.hooks->done();
}

static void
on_free(struct twi_wstack *ws, struct twi_wnode *node)
{
    (void)ws;
    MUST(node->seq == o.freed && o.node[o.freed].done);
    o.freed++;
    twi_iobuf_clear(&node->buf);
    free(node);
}

static void
on_start(struct twi_wstack *ws, struct twi_wnode *node)
{
    (void)ws;
    MUST(node->seq == o.started);
    o.started++;
    if (o.hooks->unwanted)
        node->unwanted = (uint8_t)o.hooks->unwanted();
}

static void
on_arm(struct twi_wstack *ws)
{
    MUST(load_seq_cst(&ws->state) == TWI_W_POLLOUT);
    o.armed = 1;
    o.arms++;
}

static void
on_again(struct twi_wstack *ws)
{
    MUST(load_seq_cst(&ws->state) == TWI_W_READY);
    o.readied = 1;
    o.agains++;
}

static void
on_shutdown(struct twi_wstack *ws, int close)
{
    MUST(load_relaxed(&ws->shut));
    MUST(!o.shutdowns && !o.error);
    o.shutdowns++;
    o.closes += close;
}

static void
on_fail(struct twi_wstack *ws, int code)
{
    (void)ws;
    MUST(code > 0);
    o.fail_calls++;
    if (!o.error)
        o.error = code;
}

static int
on_failed(struct twi_wstack *ws)
{
    (void)ws;
    return o.error;
}

static int
on_writable(struct twi_wstack *ws)
{
    (void)ws;
    return o.connected;
}

static const struct twi_wstack_ops owner_ops = {
    .write = on_write,
    .account = on_account,
    .done = on_done,
    .free_node = on_free,
    .start = on_start,
    .arm = on_arm,
    .again = on_again,
    .shutdown = on_shutdown,
    .fail = on_fail,
    .failed = on_failed,
    .writable = on_writable,
};

/* From the beginning, connected; borrows hooks and the wire, whose size is
 * cap. */
static inline void
owner_begin(const struct owner_hooks *hooks, uint8_t *wire, size_t cap)
{
    memset(&o, 0, sizeof o);
    o.hooks = hooks;
    o.wire = wire;
    o.cap = cap;
    o.connected = 1;
    twi_wstack_init(&o.ws, &owner_ops);
}

static inline uint8_t
byte_of(uint32_t seq, size_t i)
{
    return (uint8_t)(seq * 31 + i * 7 + (i >> 8));
}

enum { LAST = 1, CLOSES = 2 };

/* ending: nothing is written after it.  The message is put together from
 * pieces of at most so many bytes. */
static inline void
owner_push(size_t size, int cork, int ending, size_t piece)
{
    struct twi_wnode *node = calloc(1, sizeof *node);
    uint8_t *bytes = malloc(size + 1);
    MUST(node && bytes && o.pushed < OWNER_NODES);
    for (size_t i = 0; i < size; i++)
        bytes[i] = byte_of(o.pushed, i);
    twi_iobuf_init(&node->buf);
    for (size_t at = 0, n; at < size; at += n) {
        n = size - at < piece ? size - at : piece;
        MUST(!twi_iobuf_append(&node->buf, bytes + at, n));
    }
    free(bytes);
    node->seq = o.pushed;
    node->shutdown_after = ending == LAST;
    node->close_after = ending == CLOSES;
    o.node[o.pushed++].size = size;
    o.unwritten += (long long)size;
    twi_wstack_push(&o.ws, node, cork, 1000 + o.pushed);
}

/* All is over: whole messages on the wire, in order, dropped ones left out, and
 * of those that failed what `sent` says. */
static inline void
owner_is_done(void)
{
    MUST(twi_wstack_idle(&o.ws));
    MUST(load_seq_cst(&o.ws.state) == TWI_W_RUNNING);
    MUST(o.done == o.pushed && o.freed == o.pushed && !o.unwritten);
    size_t at = 0;
    int failed = 0;
    for (uint32_t i = 0; i < o.pushed; i++) {
        size_t n = o.node[i].size, left = o.written - at, good = 0;
        int code = o.node[i].code, sent = o.node[i].sent;
        MUST(!code == (sent == TW_SENT_ALL));
        if (o.node[i].unwanted) {
            MUST(sent == TW_SENT_NONE);
            continue;
        }
        MUST(!failed || code); /* nothing behind one that failed */
        if (code) {
            MUST(code == TW_ESHUTDOWNWRITE ? o.shutdowns : code == o.error);
            MUST(sent == TW_SENT_SOME ? left > 0 && left < n
                                      : sent == TW_SENT_NONE && !left);
            n = left;
            failed = 1;
        }
        MUST(n <= left);
        while (good < n && o.wire[at + good] == byte_of(i, good))
            good++;
        MUST(good == n);
        at += n;
    }
    MUST(at == o.written);
    MUST(!failed || o.error || o.shutdowns);
    MUST(!twi_block_live());
}

#endif
