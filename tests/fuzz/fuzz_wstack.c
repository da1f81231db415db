/* Fuzzes the write stack in one thread with scripted I/O.  The input chooses
 * what is pushed, what every write answers, when what is parked is resumed,
 * when the owner connects or fails, and pushes that come while one is being
 * written.
 *
 * Oracles: every message is done once, in the order of pushing; what was
 * written is their concatenation, dropped ones left out, each whole unless the
 * owner failed, and nothing after a message that was to be the last; the count of unwritten bytes returns to zero; a parked role is
 * resumed by the reason it waits for and by nothing else. */
#include "wstack.h"

#include <errno.h>

#include "atomics.h"
#include "core.h"
#include "counters.h"
#include "fuzz.h"
#include "sys.h"

enum { NODES = 512, WIRE = 4 << 20, OPS = 600, DEPTH = 3 };

static struct {
    struct twi_wstack ws;
    struct script script;
    int error, connected, depth;
    int shut; /* the last message is written */
    int armed, readied;
    long long unwritten;
    uint8_t wire[WIRE];
    size_t written, total;
    uint32_t pushed, done, freed, next;
    struct {
        size_t size;
        int done, unwanted, code, sent;
    } node[NODES];
} o;

static uint8_t
byte_of(uint32_t seq, size_t i)
{
    return (uint8_t)(seq * 31 + i * 7 + (i >> 8));
}

static void
push(size_t size, int cork, int close_after, int shutdown_after)
{
    if (o.pushed == NODES || o.total + size > WIRE || o.error)
        return;
    struct twi_wnode *node = calloc(1, sizeof *node);
    MUST(node);
    twi_iobuf_init(&node->buf);
    for (size_t at = 0; at < size;) {
        uint8_t part[5000]; /* so that a message has several pieces */
        size_t n = size - at < sizeof part ? size - at : sizeof part;
        for (size_t i = 0; i < n; i++)
            part[i] = byte_of(o.pushed, at + i);
        MUST(!twi_iobuf_append(&node->buf, part, n));
        at += n;
    }
    node->seq = o.pushed;
    node->close_after = (uint8_t)close_after;
    node->shutdown_after = (uint8_t)shutdown_after;
    o.node[o.pushed++].size = size;
    o.total += size;
    o.unwritten += (long long)size;
    twi_wstack_push(&o.ws, node, cork, 1);
}

/* What other threads do while this one writes or completes. */
static void
meanwhile(void)
{
    if (o.depth >= DEPTH || next_byte(&o.script) % 4)
        return;
    o.depth++;
    push(next_size(&o.script, 70000), next_byte(&o.script) & 1, 0, 0);
    o.depth--;
}

static ssize_t
on_write(struct twi_wstack *ws, const struct iovec *iov, int n)
{
    (void)ws;
    MUST(n > 0 && n <= TWI_WSTACK_IOVECS && !o.error && o.connected);
    MUST(!o.shut);
    uint8_t answer = next_byte(&o.script);
    size_t most = SIZE_MAX, taken = 0;
    meanwhile();
    if (answer >= 240)
        return answer == 255 ? -EPIPE : TWI_AGAIN;
    if (answer >= 128)
        most = next_size(&o.script, WIRE);
    for (int i = 0; i < n && taken < most; i++) {
        size_t part = iov[i].iov_len;
        if (part > most - taken)
            part = most - taken;
        MUST(o.written + part <= WIRE);
        memcpy(o.wire + o.written, iov[i].iov_base, part);
        o.written += part;
        taken += part;
    }
    return taken ? (ssize_t)taken : TWI_AGAIN;
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
    MUST(node->size == o.node[i].size && !o.node[i].done);
    /* What is dropped does not wait for those before it. */
    MUST(node->unwanted || i >= o.next);
    if (!node->unwanted)
        o.next = i + 1;
    o.node[i].done = 1;
    o.node[i].code = code;
    o.node[i].unwanted = node->unwanted;
    o.node[i].sent = sent;
    o.done++;
    meanwhile();
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
    node->unwanted = next_byte(&o.script) == 77;
}

static void
on_arm(struct twi_wstack *ws)
{
    MUST(load_seq_cst(&ws->state) == TWI_W_POLLOUT);
    o.armed = 1;
}

static void
on_again(struct twi_wstack *ws)
{
    MUST(load_seq_cst(&ws->state) == TWI_W_READY);
    o.readied = 1;
}

static void
on_shutdown(struct twi_wstack *ws, int close)
{
    (void)ws;
    (void)close;
    MUST(!o.shut && !o.error);
    o.shut = 1;
}

static void
on_fail(struct twi_wstack *ws, int code)
{
    (void)ws;
    MUST(code > 0);
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

static const struct twi_wstack_ops ops = {
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

static void
resume(enum twi_wstate state)
{
    uint32_t was = load_seq_cst(&o.ws.state);
    int taken = twi_wstack_take(&o.ws, state);
    MUST(taken == (was == state));
    if (taken)
        twi_wstack_run(&o.ws);
}

static void
step(void)
{
    uint8_t op = next_byte(&o.script);
    switch (op % 16) {
    case 10:
    case 11:
        o.armed = 0;
        resume(TWI_W_POLLOUT);
        break;
    case 12:
        o.readied = 0;
        resume(TWI_W_READY);
        break;
    case 13:
        resume(TWI_W_CORKED);
        break;
    case 14:
        o.connected = 1;
        resume(TWI_W_CONNECTING);
        break;
    case 15:
        if (op == 255 && !o.error) {
            o.error = ECONNRESET;
            twi_wstack_failed(&o.ws);
        } else
            push(next_size(&o.script, 70000), 0, op == 239, op == 223);
        break;
    default:
        push(next_size(&o.script, 70000), op & 16, 0, 0);
    }
}

/* The rest of the world does what it has to. */
static void
settle(void)
{
    o.script.n = 0; /* every write takes all from here on */
    o.connected = 1;
    for (int i = 0; i < 4 * NODES && !twi_wstack_idle(&o.ws); i++) {
        enum twi_wstate state = (enum twi_wstate)load_seq_cst(&o.ws.state);
        MUST(state != TWI_W_RUNNING);
        MUST(state != TWI_W_POLLOUT || o.armed || o.error);
        MUST(state != TWI_W_READY || o.readied || o.error);
        resume(state);
    }
    MUST(twi_wstack_idle(&o.ws));
}

static void
check_wire(void)
{
    size_t at = 0;
    int failed = 0;
    for (uint32_t i = 0; i < o.done; i++) {
        size_t size = o.node[i].size;
        MUST(!o.node[i].code == (o.node[i].sent == TW_SENT_ALL));
        if (o.node[i].unwanted) {
            MUST(o.node[i].sent == TW_SENT_NONE);
            continue;
        }
        /* Behind one that failed nothing was written. */
        MUST(!failed || o.node[i].code);
        size_t most = size;
        if (o.node[i].code) {
            most = failed ? 0 : o.written - at;
            MUST(most < size || !size);
            MUST((most > 0) == (o.node[i].sent == TW_SENT_SOME));
            failed = 1;
        }
        MUST(at + most <= o.written);
        for (size_t j = 0; j < most; j++)
            MUST(o.wire[at + j] == byte_of(i, j));
        at += most;
    }
    MUST(at == o.written);
    MUST(!failed || o.error || o.shut);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    MUST(!twi_counters_open());
    o.script = (struct script){data, size};
    o.error = o.shut = o.depth = o.armed = o.readied = 0;
    o.unwritten = 0;
    o.written = o.total = 0;
    o.pushed = o.done = o.freed = o.next = 0;
    memset(o.node, 0, sizeof o.node);
    o.connected = !(next_byte(&o.script) & 1);
    twi_wstack_init(&o.ws, &ops);
    for (int i = 0; i < OPS && o.script.n; i++)
        step();
    settle();
    MUST(o.done == o.pushed && o.freed == o.pushed && !o.unwritten);
    check_wire();
    return 0;
}
