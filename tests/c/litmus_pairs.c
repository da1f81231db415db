/* Announce, then look: pairs of functions of the core, one thread each, that
 * both store before they load.  If both miss what the other stored, something
 * waits with nobody responsible.  x86 shows a store that is not seq_cst here,
 * since it may leave the store buffer after the load that follows it.
 *
 * Without sanitizers: they order more than the program does. */
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>

#include "atomics.h"
#include "check.h"
#include "counters.h"
#include "inbox.h"
#include "loop.h"
#include "sys.h"
#include "workq.h"
#include "wstack.h"

enum { ROUNDS = 100000 };
#define PAIR_NS INT64_C(3000000000) /* at most so long for each pair */

struct pair {
    const char *name;
    void (*prepare)(void);
    void (*one)(void);
    void (*other)(void);
    void (*judge)(void); /* when both have returned */
};

/* ---- workq.c: queue a request and look for sleepers; announce sleep and look
 * for requests. */

static struct twi_workq queue;
static struct twi_sleeper sleeper;
static uint32_t saw_asleep, saw_length;

static void
queue_prepare(void)
{
    while (twi_workq_pop(&queue))
        ;
    twi_workq_cancel(&queue, &sleeper);
}

static void
queue_push(void)
{
    twi_workq_push(&queue, 1, 0);
    saw_asleep = twi_workq_asleep(&queue);
}

static void
queue_announce(void)
{
    twi_workq_announce(&queue, &sleeper);
    saw_length = twi_workq_length(&queue);
}

static void
queue_judge(void)
{
    CHECK(saw_asleep || saw_length);
}

/* ---- loop.c: drop the baton and look for a parked dispatcher; announce to
 * park (dispatcher.c, park) and look whether somebody holds the baton. */

static int saw_held;

static void
baton_prepare(void)
{
    store_seq_cst(&twi_parking.how, TWI_TICKING);
    CHECK(twi_baton_take(TWI_MAIN));
}

static void
baton_park(void)
{
    store_seq_cst(&twi_parking.how, TWI_PARKED);
    saw_held = twi_baton_held(TWI_MAIN);
}

static void
baton_drop(void)
{
    twi_baton_drop(TWI_MAIN);
}

static void
baton_judge(void)
{
    CHECK(!saw_held || load_seq_cst(&twi_parking.how) == TWI_TICKING);
}

/* ---- wstack.c: park a corked role and look for newer messages; push a message
 * uncorked and look for a cork. */

static struct twi_wstack stack;
static struct twi_wnode nodes[2];
static _Atomic int freed;

static ssize_t
ws_write(struct twi_wstack *ws, const struct iovec *iov, int n)
{
    (void)ws, (void)iov, (void)n;
    return 0;
}

static void
ws_account(struct twi_wstack *ws, uint64_t bytes)
{
    (void)ws, (void)bytes;
}

static void
ws_done(struct twi_wstack *ws, struct twi_wnode *node, int code, int sent)
{
    (void)ws, (void)node, (void)code, (void)sent;
}

static void
ws_free(struct twi_wstack *ws, struct twi_wnode *node)
{
    (void)ws, (void)node;
    add_relaxed(&freed, 1);
}

static void
ws_start(struct twi_wstack *ws, struct twi_wnode *node)
{
    (void)ws, (void)node;
}

static int
ws_failed(struct twi_wstack *ws)
{
    (void)ws;
    return 0;
}

static int
ws_writable(struct twi_wstack *ws)
{
    (void)ws;
    return 1;
}

static const struct twi_wstack_ops ws_ops = {
    .write = ws_write,
    .account = ws_account,
    .done = ws_done,
    .free_node = ws_free,
    .start = ws_start,
    .failed = ws_failed,
    .writable = ws_writable,
};

static void
stack_prepare(void)
{
    twi_wstack_init(&stack, &ws_ops);
    memset(nodes, 0, sizeof nodes);
    twi_iobuf_init(&nodes[0].buf); /* empty: written without a system call */
    twi_iobuf_init(&nodes[1].buf);
    store_seq_cst(&freed, 0);
}

static void
stack_push_corked(void)
{
    twi_wstack_push(&stack, &nodes[0], 1, 0);
}

static void
stack_push(void)
{
    twi_wstack_push(&stack, &nodes[1], 0, 0);
}

static void
stack_judge(void)
{
    /* Corked, and nothing urgent waits: only the corked message is there. */
    if (!twi_wstack_idle(&stack)) {
        CHECK_EQ(load_seq_cst(&freed), 1);
        CHECK_EQ(load_seq_cst(&stack.state), TWI_W_CORKED);
    }
}

/* ---- inbox.c: announce sleep and look for items; put an item and look for who
 * sleeps. */

static tw_id inbox;
static struct twi_inbox_item item;
static int inbox_fd, drained, more;

static int
fill(struct twi_inbox_item *its, tw_event *event, void **block)
{
    (void)its, (void)event, (void)block;
    return 1;
}

static void
inbox_prepare(void)
{
    tw_event events[4];
    tw_drain(inbox, 0, events, 4, &more);
    item.kind = TW_REQUEST;
}

static void
inbox_drain(void)
{
    tw_event events[4];
    drained = tw_drain(inbox, 0, events, 4, &more);
}

static void
inbox_put(void)
{
    CHECK_EQ(twi_inbox_put(inbox, &item), 0);
}

static void
inbox_judge(void)
{
    struct pollfd one = {inbox_fd, POLLIN, 0};
    CHECK(drained || more || poll(&one, 1, 0) == 1);
}

/* ---- inbox.c: tell of a descriptor and look for items; put an item and look
 * for a descriptor to ring. */

static tw_id fresh;
static int fresh_fd;

static void
fresh_prepare(void)
{
    if (fresh) /* the last round's: discards what was put */
        tw_inbox_close(fresh);
    if (tw_inbox_open(&fresh))
        abort();
    item.kind = TW_REQUEST;
}

static void
fresh_open(void)
{
    fresh_fd = tw_inbox_fd(fresh);
}

static void
fresh_put(void)
{
    CHECK_EQ(twi_inbox_put(fresh, &item), 0);
}

static void
fresh_judge(void)
{
    struct pollfd one = {fresh_fd, POLLIN, 0};
    CHECK(poll(&one, 1, 0) == 1);
}

static const struct pair pairs[] = {
    {"workq", queue_prepare, queue_push, queue_announce, queue_judge},
    {"baton", baton_prepare, baton_drop, baton_park, baton_judge},
    {"wstack", stack_prepare, stack_push_corked, stack_push, stack_judge},
    {"inbox", inbox_prepare, inbox_drain, inbox_put, inbox_judge},
    {"descriptor", fresh_prepare, fresh_open, fresh_put, fresh_judge},
};

/* ---- two threads that begin each round at once */

static _Atomic long begun, ended;
static const struct pair *current;

static void
wait_for(_Atomic long *count, long value)
{
    for (int i = 0; load_seq_cst(count) < value; i++)
        if (i % 1024 == 1023)
            sched_yield();
}

static void *
other(void *arg)
{
    (void)arg;
    for (long round = 1;; round++) {
        wait_for(&begun, round);
        if (load_seq_cst(&begun) == LONG_MAX)
            return NULL;
        for (volatile long j = 0; j < round / 256 % 64; j++)
            ;
        current->other();
        store_seq_cst(&ended, round);
    }
}

int
main(void)
{
    if (twi_counters_open() || twi_workq_init(&queue))
        abort();
    twi_inboxes_init();
    twi_inbox_filler(TW_REQUEST, fill);
    if (tw_inbox_open(&inbox) || (inbox_fd = tw_inbox_fd(inbox)) < 0)
        abort();
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        pthread_t thread;
        int before = check_failures;
        current = &pairs[i];
        store_seq_cst(&begun, 0);
        store_seq_cst(&ended, 0);
        if (pthread_create(&thread, NULL, other, NULL))
            abort();
        int64_t until_ns = twi_now_ns() + PAIR_NS;
        for (long round = 1; round <= ROUNDS; round++) {
            if (round % 64 == 0 && twi_now_ns() > until_ns)
                break;
            current->prepare();
            store_seq_cst(&begun, round);
            /* The other sees it a little later: sweep over that. */
            for (volatile long j = 0; j < round % 256; j++)
                ;
            current->one();
            wait_for(&ended, round);
            if (check_failures == before)
                current->judge();
        }
        store_seq_cst(&begun, LONG_MAX);
        pthread_join(thread, NULL);
        if (check_failures != before)
            fprintf(stderr, "%s: both looked away\n", current->name);
    }
    tw_inbox_close(inbox);
    tw_inbox_close(fresh);
    twi_inboxes_fini();
    twi_workq_fini(&queue);
    return check_done();
}
