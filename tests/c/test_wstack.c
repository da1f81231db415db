/* The write stack in one thread, with scripted writes: short ones, EAGAIN,
 * errors at each place, connecting, corking with its limits, budgets, messages
 * after which nothing is written.  Each node is done once, in order, and the bytes agree. */
#include "wstack.h"

#include <errno.h>
#include <string.h>

#include "atomics.h"
#include "check.h"
#include "core.h"
#include "counters.h"
#include "sys.h"

enum { NODES = 4000, WIRE = 64 << 20 };

static struct {
    struct twi_wstack ws;
    int error, connected, fail_calls;
    int armed, readied; /* parked and not yet resumed */
    int fail_in_write; /* the owner fails during the write after so many */
    int arms, agains, shutdowns, closes;
    long long unwritten;
    /* The script: so many bytes each write takes; negative: an answer.  When
     * it is over, everything. */
    ssize_t script[NODES];
    int steps, step, writes;
    size_t largest;
    int most_iovecs;
    uint8_t *wire;
    size_t written;
    uint32_t pushed, started, done, freed;
    int code[NODES], sent[NODES];
    size_t size[NODES];
} o;

static ssize_t
on_write(struct twi_wstack *ws, const struct iovec *iov, int n)
{
    (void)ws;
    CHECK(n > 0 && n <= TWI_WSTACK_IOVECS);
    CHECK(!o.error && o.connected);
    o.writes++;
    if (o.fail_in_write && o.writes > o.fail_in_write)
        o.error = ECONNRESET;
    o.most_iovecs = n > o.most_iovecs ? n : o.most_iovecs;
    ssize_t take = o.step < o.steps ? o.script[o.step++] : WIRE;
    if (take < 0)
        return take;
    size_t total = 0, asked = 0;
    for (int i = 0; i < n; i++) {
        size_t part = iov[i].iov_len;
        asked += part;
        if (part > (size_t)take - total)
            part = (size_t)take - total;
        CHECK(o.written + part <= WIRE);
        memcpy(o.wire + o.written, iov[i].iov_base, part);
        o.written += part;
        total += part;
    }
    o.largest = asked > o.largest ? asked : o.largest;
    return (ssize_t)total;
}

static void
on_account(struct twi_wstack *ws, uint64_t bytes)
{
    (void)ws;
    o.unwritten -= (long long)bytes;
    CHECK(o.unwritten >= 0);
}

static void
on_done(struct twi_wstack *ws, struct twi_wnode *node, int code, int sent)
{
    (void)ws;
    CHECK_EQ(node->seq, o.done); /* in order, none twice, none left out */
    CHECK_EQ(node->size, o.size[node->seq]);
    CHECK(code || node->started || !node->size);
    o.code[o.done] = code;
    o.sent[o.done++] = sent;
}

static void
on_free(struct twi_wstack *ws, struct twi_wnode *node)
{
    (void)ws;
    CHECK_EQ(node->seq, o.freed);
    CHECK(o.freed < o.done);
    o.freed++;
    twi_iobuf_clear(&node->buf);
    free(node);
}

static void
on_start(struct twi_wstack *ws, struct twi_wnode *node)
{
    (void)ws;
    CHECK_EQ(node->seq, o.started);
    o.started++;
}

static void
on_arm(struct twi_wstack *ws)
{
    CHECK_EQ(load_seq_cst(&ws->state), TWI_W_POLLOUT);
    o.armed = 1;
    o.arms++;
}

static void
on_again(struct twi_wstack *ws)
{
    CHECK_EQ(load_seq_cst(&ws->state), TWI_W_READY);
    o.readied = 1;
    o.agains++;
}

static void
on_shutdown(struct twi_wstack *ws, int close)
{
    CHECK(load_relaxed(&ws->shut));
    CHECK(!o.shutdowns++);
    o.closes += close;
}

static void
on_fail(struct twi_wstack *ws, int code)
{
    (void)ws;
    CHECK(code > 0);
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
begin(void)
{
    uint8_t *wire = o.wire;
    memset(&o, 0, sizeof o);
    o.wire = wire;
    o.connected = 1;
    twi_wstack_init(&o.ws, &ops);
}

static void
script(ssize_t what)
{
    o.script[o.steps++] = what;
}

static uint8_t
byte_of(uint32_t seq, size_t i)
{
    return (uint8_t)(seq * 31 + i * 7 + (i >> 8));
}

enum { LAST = 1, CLOSES = 2 };

/* ending: nothing is written after it. */
static void
push(size_t size, int cork, int ending)
{
    struct twi_wnode *node = calloc(1, sizeof *node);
    uint8_t *bytes = malloc(size + 1);
    for (size_t i = 0; i < size; i++)
        bytes[i] = byte_of(o.pushed, i);
    twi_iobuf_init(&node->buf);
    if (twi_iobuf_append(&node->buf, bytes, size))
        abort();
    free(bytes);
    node->seq = o.pushed;
    node->shutdown_after = ending == LAST;
    node->close_after = ending == CLOSES;
    o.size[o.pushed++] = size;
    o.unwritten += (long long)size;
    twi_wstack_push(&o.ws, node, cork, 1000 + o.pushed);
}

/* As the poller: 1 when something was resumed. */
static int
resume(void)
{
    if (o.armed) {
        o.armed = 0;
        if (twi_wstack_take(&o.ws, TWI_W_POLLOUT)) {
            twi_wstack_run(&o.ws);
            return 1;
        }
    }
    if (o.readied) {
        o.readied = 0;
        if (twi_wstack_take(&o.ws, TWI_W_READY)) {
            twi_wstack_run(&o.ws);
            return 1;
        }
    }
    return 0;
}

static void
flush(void)
{
    if (twi_wstack_take(&o.ws, TWI_W_CORKED))
        twi_wstack_run(&o.ws);
}

/* Everything is over: whole messages on the wire, in order, and of the failed
 * ones what `sent` says. */
static void
finish(void)
{
    while (resume())
        ;
    CHECK(twi_wstack_idle(&o.ws));
    CHECK_EQ(load_seq_cst(&o.ws.state), TWI_W_RUNNING);
    CHECK_EQ(o.done, o.pushed);
    CHECK_EQ(o.freed, o.pushed);
    CHECK_EQ(o.unwritten, 0);
    size_t at = 0;
    for (uint32_t i = 0; i < o.pushed; i++) {
        size_t n = o.size[i];
        if (o.code[i]) {
            if (o.code[i] == TW_ESHUTDOWNWRITE)
                CHECK(o.shutdowns);
            else
                CHECK_EQ(o.code[i], o.error);
            size_t left = o.written - at;
            if (o.sent[i] == TW_SENT_SOME)
                CHECK(left > 0 && left < n);
            else {
                CHECK_EQ(o.sent[i], TW_SENT_NONE);
                CHECK_EQ(left, 0);
            }
            n = left;
        } else
            CHECK_EQ(o.sent[i], TW_SENT_ALL);
        CHECK(at + n <= o.written);
        size_t good = 0;
        while (good < n && o.wire[at + good] == byte_of(i, good))
            good++;
        CHECK_EQ(good, n);
        at += n;
    }
    CHECK_EQ(at, o.written);
    CHECK_EQ(twi_block_live(), 0);
}

static uint64_t
count(enum twi_counter counter)
{
    return twi_cell_value((uint32_t)counter);
}

static void
test_plain(void)
{
    uint64_t keep = count(TWI_KEEPWRITE), calls = count(TWI_WRITEV_CALLS);
    begin();
    for (int i = 0; i < 10; i++) {
        push((size_t)i * 1000, 0, 0); /* the first is empty */
        CHECK_EQ(o.done, i + 1);
        CHECK_EQ(o.writes, i);
    }
    CHECK_EQ(o.arms + o.agains, 0);
    CHECK_EQ(count(TWI_KEEPWRITE), keep); /* one writev each, nothing else */
    CHECK_EQ(count(TWI_WRITEV_CALLS) - calls, 9);
    finish();
}

static void
test_short(void)
{
    uint64_t keep = count(TWI_KEEPWRITE), waits = count(TWI_WAITEPOLLOUT);
    begin();
    for (int i = 0; i < 300; i++)
        script(1);
    push(100, 0, 0);
    CHECK_EQ(o.arms, 1);
    CHECK_EQ(load_seq_cst(&o.ws.state), TWI_W_POLLOUT);
    push(100, 0, 0); /* while it waits: taken along */
    push(100, 1, 0);
    CHECK_EQ(o.writes, 1);
    for (int i = 1; i < 299; i++) {
        CHECK_EQ(o.done, i / 100);
        CHECK(resume());
    }
    finish();
    CHECK_EQ(o.writes, 300);
    CHECK_EQ(o.arms, 299);
    CHECK_EQ(count(TWI_KEEPWRITE) - keep, 1); /* one tenure */
    CHECK_EQ(count(TWI_WAITEPOLLOUT) - waits, 299);
}

static void
test_again(void)
{
    begin();
    for (int i = 0; i < 40; i++) {
        script(TWI_AGAIN);
        script(i % 3 ? 50 : WIRE);
    }
    for (int i = 0; i < 10; i++) {
        push(70, 0, 0);
        if (i % 2)
            resume();
    }
    finish();
    CHECK(o.arms > 2);
}

/* An error at the k-th write, with a message half written or not, nodes
 * waiting, and one pushed afterwards. */
static void
test_errors(void)
{
    for (int k = 0; k < 12; k++)
        for (int part = 0; part < 100; part += 33) {
            begin();
            script(TWI_AGAIN); /* so that a queue builds up */
            for (int i = 0; i < k; i++)
                script(60 + part);
            script(-ECONNRESET);
            for (int i = 0; i < 10; i++)
                push(100, i % 4 == 1, 0);
            while (resume())
                ;
            if (o.error)
                CHECK_EQ(o.fail_calls, 1);
            push(100, 0, 0);
            push(100, 1, 0);
            if (!o.error)
                flush();
            finish();
            CHECK_EQ(o.error, o.step == o.steps ? ECONNRESET : 0);
        }
}

static void
test_connecting(void)
{
    begin();
    o.connected = 0;
    push(100, 0, 0);
    push(100, 1, 0);
    push(100, 0, 0);
    CHECK_EQ(o.writes, 0);
    CHECK_EQ(load_seq_cst(&o.ws.state), TWI_W_CONNECTING);
    CHECK(!twi_wstack_take(&o.ws, TWI_W_POLLOUT));
    CHECK(!twi_wstack_take(&o.ws, TWI_W_CORKED));
    o.connected = 1;
    CHECK(twi_wstack_take(&o.ws, TWI_W_CONNECTING));
    CHECK(!twi_wstack_take(&o.ws, TWI_W_CONNECTING));
    twi_wstack_run(&o.ws);
    finish();
    /* It never connects. */
    begin();
    o.connected = 0;
    push(100, 0, 0);
    push(100, 0, 0);
    o.error = ETIMEDOUT;
    twi_wstack_failed(&o.ws);
    finish();
    CHECK_EQ(o.sent[0], TW_SENT_NONE);
    /* Corked while connecting; flushed before and after it is. */
    begin();
    o.connected = 0;
    push(100, 1, 0);
    flush();
    CHECK_EQ(load_seq_cst(&o.ws.state), TWI_W_CONNECTING);
    push(100, 1, 0);
    flush();
    o.connected = 1;
    CHECK(twi_wstack_take(&o.ws, TWI_W_CONNECTING));
    twi_wstack_run(&o.ws);
    finish();
    CHECK_EQ(o.writes, 1);
}

static void
test_cork(void)
{
    begin();
    push(100, 1, 0);
    CHECK_EQ(load_seq_cst(&o.ws.state), TWI_W_CORKED);
    CHECK_EQ(load_relaxed(&o.ws.corked_ns), 1001);
    for (int i = 1; i < 10; i++)
        push(100, 1, 0);
    CHECK_EQ(o.writes, 0);
    flush();
    CHECK_EQ(o.writes, 1); /* all in one */
    CHECK_EQ(o.done, 10);
    flush(); /* nothing is corked */
    finish();
    /* Who pushes uncorked takes all along. */
    begin();
    push(100, 1, 0);
    push(100, 0, 0);
    CHECK_EQ(o.done, 2);
    CHECK_EQ(o.writes, 1);
    finish();
    /* So many messages at most. */
    begin();
    for (int i = 0; i < TWI_CORK_MESSAGES - 1; i++) {
        push(10, 1, 0);
        CHECK_EQ(o.writes, 0);
    }
    push(10, 1, 0);
    CHECK_EQ(o.done, TWI_CORK_MESSAGES);
    finish();
    /* So many bytes at most. */
    begin();
    push(TWI_CORK_BYTES - 20, 1, 0);
    push(10, 1, 0);
    CHECK_EQ(o.writes, 0);
    push(10, 1, 0);
    CHECK_EQ(o.done, 3);
    finish();
    /* A corked message meets EAGAIN; corking goes on behind it. */
    begin();
    script(TWI_AGAIN);
    push(10, 1, 0);
    flush();
    push(10, 1, 0);
    CHECK_EQ(load_seq_cst(&o.ws.state), TWI_W_POLLOUT);
    finish();
    /* Failed while corked, by the owner; pushes afterwards end at once. */
    begin();
    push(100, 1, 0);
    push(100, 1, 0);
    o.error = ECONNRESET;
    twi_wstack_failed(&o.ws);
    CHECK_EQ(o.done, 2);
    push(100, 1, 0);
    push(100, 0, 0);
    CHECK_EQ(o.done, 4);
    finish();
    twi_wstack_failed(&o.ws); /* nothing left to do */
}

static void
test_budget(void)
{
    /* One turn takes so many bytes at most, then another has its chance. */
    begin();
    script(TWI_AGAIN);
    for (int i = 0; i < 40; i++)
        push(100 << 10, 0, 0);
    uint64_t waits = count(TWI_WAITEPOLLOUT);
    CHECK(resume());
    CHECK_EQ(o.agains, 1);
    CHECK_EQ(o.writes, 2);
    CHECK_EQ(o.written, 300 << 10);
    CHECK_EQ(load_seq_cst(&o.ws.state), TWI_W_READY);
    finish();
    CHECK_EQ(o.agains, 13);
    CHECK_EQ(o.largest, 300 << 10);
    CHECK_EQ(count(TWI_WAITEPOLLOUT), waits);
    /* And so many pieces at a time. */
    begin();
    script(TWI_AGAIN);
    for (int i = 0; i < 1000; i++)
        push(10, 0, 0);
    finish();
    CHECK_EQ(o.most_iovecs, TWI_WSTACK_IOVECS);
    CHECK_EQ(o.writes, 1 + 4);
    /* Ready, and then the owner fails. */
    begin();
    script(TWI_AGAIN);
    for (int i = 0; i < 10; i++)
        push(100 << 10, 0, 0);
    CHECK(resume());
    o.error = EPIPE;
    twi_wstack_failed(&o.ws);
    CHECK(!resume());
    finish();
}

static void
test_last_message(void)
{
    for (int way = 0; way < 4; way++) {
        int corked = way & 1, ending = way & 2 ? CLOSES : LAST;
        begin();
        script(TWI_AGAIN);
        script(150);
        push(100, corked, 0);
        push(100, corked, ending); /* the last that may go */
        push(100, corked, 0);
        if (corked)
            flush();
        while (resume())
            ;
        CHECK_EQ(o.shutdowns, 1);
        CHECK_EQ(o.closes, ending == CLOSES);
        CHECK_EQ(o.writes, 3);
        push(100, corked, 0); /* long after: the head was empty again */
        push(100, corked, ending);
        flush();
        finish();
        CHECK_EQ(o.error, 0);
        CHECK_EQ(o.fail_calls, 0);
        CHECK_EQ(o.shutdowns, 1);
        CHECK_EQ(o.written, 200);
        CHECK_EQ(o.code[0], 0);
        CHECK_EQ(o.code[1], 0);
        for (int i = 2; i < 5; i++) {
            CHECK_EQ(o.code[i], TW_ESHUTDOWNWRITE);
            CHECK_EQ(o.sent[i], TW_SENT_NONE);
        }
    }
    begin();
    push(0, 0, CLOSES); /* only closes */
    finish();
    CHECK_EQ(o.closes, 1);
    CHECK_EQ(o.writes, 0);
    /* Failed instead, with the last message half written. */
    begin();
    script(50);
    push(100, 0, LAST);
    o.error = EPIPE;
    twi_wstack_failed(&o.ws);
    finish();
    CHECK_EQ(o.shutdowns, 0);
    CHECK_EQ(o.sent[0], TW_SENT_SOME);
}

/* Whoever fails the owner ends keep-write at its next step: nothing more is
 * written, also while a peer that reads would take more and while one does not
 * read at all. */
static void
test_keepwrite_stops(void)
{
    for (int way = 0; way < 3; way++) {
        begin();
        script(way == 0 ? TWI_AGAIN : 1 << 10);
        push(8 << 20, 0, 0);
        push(100, 0, 0);
        if (way == 2) {
            script(4 << 10);
            CHECK(resume());
        }
        int writes = o.writes;
        size_t written = o.written;
        CHECK_EQ(load_seq_cst(&o.ws.state), TWI_W_POLLOUT);
        o.error = ECONNRESET;
        twi_wstack_failed(&o.ws);
        CHECK_EQ(o.done, 2);
        CHECK(!resume()); /* a late EPOLLOUT finds nothing to do */
        CHECK_EQ(o.writes, writes);
        CHECK_EQ(o.written, written);
        finish();
    }
    /* In the middle of a write, by another thread. */
    begin();
    o.fail_in_write = 2;
    script(TWI_AGAIN);
    for (int i = 0; i < 10; i++)
        push(200 << 10, 0, 0);
    while (resume())
        ;
    CHECK_EQ(o.writes, 3); /* the one of EAGAIN, one, and that one */
    finish();
}

/* Anything in any order. */
static void
test_random(unsigned long long *seed)
{
    begin();
    for (int i = 0; i < 500; i++)
        script(check_random(seed) % 3 == 0 ? TWI_AGAIN
                                           : (ssize_t)(1 + check_random(seed) %
                                                               5000));
    if (check_random(seed) % 3 == 0)
        o.script[check_random(seed) % 500] = -EPIPE;
    o.connected = check_random(seed) % 2;
    for (int i = 0; i < 300; i++)
        switch (check_random(seed) % 8) {
        case 0:
            flush();
            break;
        case 1:
        case 2:
            resume();
            break;
        case 3:
            if (check_random(seed) % 50 == 0 && !o.error) {
                o.error = ENETDOWN;
                twi_wstack_failed(&o.ws);
            }
            if (check_random(seed) % 10 == 0 && !o.connected) {
                o.connected = 1;
                if (twi_wstack_take(&o.ws, TWI_W_CONNECTING))
                    twi_wstack_run(&o.ws);
            }
            break;
        default:
            push(check_random(seed) % 20 == 0 ? check_random(seed) % 300000
                                              : check_random(seed) % 300,
                 check_random(seed) % 2,
                 check_random(seed) % 400 ? 0 : 1 + check_random(seed) % 2);
        }
    flush();
    if (!o.connected && !o.error) {
        o.connected = 1;
        if (twi_wstack_take(&o.ws, TWI_W_CONNECTING))
            twi_wstack_run(&o.ws);
    }
    finish();
}

int
main(void)
{
    unsigned long long seed = check_seed();
    if (twi_counters_open())
        abort();
    o.wire = malloc(WIRE);
    test_plain();
    test_short();
    test_again();
    test_errors();
    test_connecting();
    test_cork();
    test_budget();
    test_last_message();
    test_keepwrite_stops();
    for (int i = 0; i < 400 && !check_failures; i++)
        test_random(&seed);
    free(o.wire);
    return check_done();
}
