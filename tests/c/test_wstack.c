/* The write stack in one thread, with scripted writes: short ones, EAGAIN,
 * errors at each place, connecting, corking with its limits, budgets, messages
 * after which nothing is written.  The owner checks order and bytes. */
#include "owner.h"

#include <errno.h>

#include "counters.h"

enum { WIRE = 64 << 20 };

static uint8_t *wire;

/* So many bytes each write takes; negative: an answer.  When the script is
 * over, everything. */
static struct {
    ssize_t say[OWNER_NODES];
    int n, next;
    int fail_after; /* the owner fails during the write after so many */
} script;

static ssize_t
scripted(void)
{
    if (script.fail_after && o.writes > script.fail_after)
        o.error = ECONNRESET;
    return script.next < script.n ? script.say[script.next++] : WIRE;
}

static const struct owner_hooks hooks = {.answer = scripted};

static void
begin(void)
{
    memset(&script, 0, sizeof script);
    owner_begin(&hooks, wire, WIRE);
}

static void
say(ssize_t what)
{
    script.say[script.n++] = what;
}

static void
push(size_t size, int cork, int ending)
{
    owner_push(size, cork, ending, SIZE_MAX);
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

static void
finish(void)
{
    while (resume())
        ;
    owner_is_done();
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
        say(1);
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
        say(TWI_AGAIN);
        say(i % 3 ? 50 : WIRE);
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
            say(TWI_AGAIN); /* so that a queue builds up */
            for (int i = 0; i < k; i++)
                say(60 + part);
            say(-ECONNRESET);
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
            CHECK_EQ(o.error, script.next == script.n ? ECONNRESET : 0);
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
    CHECK_EQ(o.node[0].sent, TW_SENT_NONE);
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
    say(TWI_AGAIN);
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
    say(TWI_AGAIN);
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
    say(TWI_AGAIN);
    for (int i = 0; i < 1000; i++)
        push(10, 0, 0);
    finish();
    CHECK_EQ(o.most_iovecs, TWI_WSTACK_IOVECS);
    CHECK_EQ(o.writes, 1 + 4);
    /* Ready, and then the owner fails. */
    begin();
    say(TWI_AGAIN);
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
        say(TWI_AGAIN);
        say(150);
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
        CHECK_EQ(o.node[0].code, 0);
        CHECK_EQ(o.node[1].code, 0);
        for (int i = 2; i < 5; i++) {
            CHECK_EQ(o.node[i].code, TW_ESHUTDOWNWRITE);
            CHECK_EQ(o.node[i].sent, TW_SENT_NONE);
        }
    }
    begin();
    push(0, 0, CLOSES); /* only closes */
    finish();
    CHECK_EQ(o.closes, 1);
    CHECK_EQ(o.writes, 0);
    /* Failed instead, with the last message half written. */
    begin();
    say(50);
    push(100, 0, LAST);
    o.error = EPIPE;
    twi_wstack_failed(&o.ws);
    finish();
    CHECK_EQ(o.shutdowns, 0);
    CHECK_EQ(o.node[0].sent, TW_SENT_SOME);
}

/* Whoever fails the owner ends keep-write at its next step: nothing more is
 * written, also while a peer that reads would take more and while one does not
 * read at all. */
static void
test_keepwrite_stops(void)
{
    for (int way = 0; way < 3; way++) {
        begin();
        say(way == 0 ? TWI_AGAIN : 1 << 10);
        push(8 << 20, 0, 0);
        push(100, 0, 0);
        if (way == 2) {
            say(4 << 10);
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
    script.fail_after = 2;
    say(TWI_AGAIN);
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
        say(check_random(seed) % 3 == 0 ? TWI_AGAIN
                                           : (ssize_t)(1 + check_random(seed) %
                                                               5000));
    if (check_random(seed) % 3 == 0)
        script.say[check_random(seed) % 500] = -EPIPE;
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
    wire = malloc(WIRE);
    MUST(wire);
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
    free(wire);
    return check_done();
}
