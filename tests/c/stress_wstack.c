/* The write stack under TSan: pushers that cork or do not, one thread that
 * flushes corks as the dispatcher does, one that resumes what waits for the
 * kernel or for its turn, one that connects, and in some rounds one that fails
 * the owner at a random moment, in others one message that is the last.  Each node is done exactly once; what was
 * written is whole messages, each pusher's in order; the head is empty in the
 * end.  Rounds are bounded, the seed is printed.
 *
 * What the test shares is relaxed, but for `error` and `connected`, the stack's
 * partners, and `armed` and `readied`, which stand for what orders: epoll and
 * the list of leftovers. */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>

#include "atomics.h"
#include "check.h"
#include "core.h"
#include "counters.h"
#include "sys.h"
#include "wstack.h"

enum {
    PUSHERS = 4,
    MESSAGES = 600, /* of each pusher and round */
    ROUNDS = 60,
    HEAD = 8, /* bytes of a message's head: pusher, sequence, size */
    LARGE = 3000
};

static struct {
    struct twi_wstack ws;
    _Atomic int error, connected;
    _Atomic uint32_t armed, readied, finished;
    _Atomic int64_t unwritten;
    _Atomic uint64_t done;
    /* The writer calls for the disturber: do it now, while I am between my
     * look and my parking; and the disturber's answer. */
    _Atomic int connect_now, connect_tried, fail_now, fail_tried;
    _Atomic uint8_t completed[PUSHERS][MESSAGES];
    _Atomic int shutdowns;
    int again_percent, short_percent, fails, shuts;
    /* Touched by the role's holder only, without locks: TSan watches. */
    unsigned long long dice;
    uint8_t *wire;
    size_t written, cap;
    uint32_t next_done[PUSHERS], next_start[PUSHERS];
} owner;

static unsigned long long seed;

static int
chance(unsigned long long *dice, int percent)
{
    return (int)((check_random(dice) >> 20) % 100) < percent;
}

static void
await(_Atomic int *flag)
{
    for (long i = 0; i < 1000000 && !load_relaxed(flag); i++)
        sched_yield();
}

static ssize_t
on_write(struct twi_wstack *ws, const struct iovec *iov, int n)
{
    (void)ws;
    CHECK(load_seq_cst(&owner.connected));
    CHECK(n > 0 && n <= TWI_WSTACK_IOVECS);
    if (owner.fails && check_random(&owner.dice) % 2000 == 0) {
        if (chance(&owner.dice, 50))
            return -ECONNRESET;
        /* Failed by another, just before this parks. */
        store_relaxed(&owner.fail_now, 1);
        await(&owner.fail_tried);
        return TWI_AGAIN;
    }
    if (chance(&owner.dice, owner.again_percent))
        return TWI_AGAIN;
    size_t total = 0, limit = SIZE_MAX;
    if (chance(&owner.dice, owner.short_percent))
        limit = 1 + (check_random(&owner.dice) >> 20) % 5000;
    for (int i = 0; i < n && total < limit; i++) {
        size_t part = iov[i].iov_len;
        if (part > limit - total)
            part = limit - total;
        if (owner.written + part > owner.cap)
            abort();
        memcpy(owner.wire + owner.written, iov[i].iov_base, part);
        owner.written += part;
        total += part;
    }
    return (ssize_t)total;
}

static void
on_account(struct twi_wstack *ws, uint64_t bytes)
{
    (void)ws;
    sub_relaxed(&owner.unwritten, (int64_t)bytes);
}

static void
on_start(struct twi_wstack *ws, struct twi_wnode *node)
{
    (void)ws;
    /* In the order of the queue, which is each pusher's own. */
    CHECK_EQ(node->seq, owner.next_start[node->kind]);
    owner.next_start[node->kind] = node->seq + 1;
}

static void
on_done(struct twi_wstack *ws, struct twi_wnode *node, int code, int sent)
{
    (void)ws;
    CHECK_EQ(node->seq, owner.next_done[node->kind]);
    owner.next_done[node->kind]++;
    CHECK_EQ(add_relaxed(&owner.completed[node->kind][node->seq], 1), 0);
    if (!code)
        CHECK_EQ(sent, TW_SENT_ALL);
    else {
        if (code == TW_ESHUTDOWNWRITE)
            CHECK_EQ(load_relaxed(&owner.shutdowns), 1);
        else
            CHECK_EQ(code, load_seq_cst(&owner.error));
        CHECK_EQ(sent, node->buf.len == node->size ? TW_SENT_NONE
                                                   : TW_SENT_SOME);
    }
    add_relaxed(&owner.done, 1);
}

static void
on_free(struct twi_wstack *ws, struct twi_wnode *node)
{
    (void)ws;
    CHECK(node->done);
    twi_iobuf_clear(&node->buf);
    free(node);
}

static void
on_arm(struct twi_wstack *ws)
{
    (void)ws;
    store_seq_cst(&owner.armed, 1);
}

static void
on_again(struct twi_wstack *ws)
{
    (void)ws;
    store_seq_cst(&owner.readied, 1);
}

static void
on_shutdown(struct twi_wstack *ws, int close)
{
    (void)ws;
    (void)close;
    CHECK_EQ(add_relaxed(&owner.shutdowns, 1), 0);
}

static int
fail_owner(int code)
{
    int alive = 0;
    if (!atomic_compare_exchange_strong(&owner.error, &alive, code))
        return 0;
    twi_wstack_failed(&owner.ws);
    return 1;
}

static void
on_fail(struct twi_wstack *ws, int code)
{
    (void)ws;
    fail_owner(code);
}

static int
on_failed(struct twi_wstack *ws)
{
    (void)ws;
    return load_seq_cst(&owner.error);
}

static int
on_writable(struct twi_wstack *ws)
{
    (void)ws;
    int connected = load_seq_cst(&owner.connected);
    if (!connected && !atomic_exchange_explicit(&owner.connect_now, 1,
                                                memory_order_relaxed))
        /* Connected by another, just before this parks. */
        await(&owner.connect_tried);
    return connected;
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

struct actor {
    pthread_t thread;
    int number, cork_percent;
    unsigned long long dice;
    long work;
};

static struct twi_wnode *
message(int pusher, uint32_t seq, size_t body)
{
    struct twi_wnode *node = calloc(1, sizeof *node);
    uint8_t *bytes = malloc(HEAD + body);
    if (!node || !bytes)
        abort();
    uint32_t head[2] = {(uint32_t)pusher << 24 | seq, (uint32_t)body};
    memcpy(bytes, head, HEAD);
    for (size_t i = 0; i < body; i++)
        bytes[HEAD + i] = (uint8_t)(seq * 7 + i);
    twi_iobuf_init(&node->buf);
    if (twi_iobuf_append(&node->buf, bytes, HEAD + body))
        abort();
    free(bytes);
    node->kind = (uint8_t)pusher;
    node->seq = seq;
    return node;
}

static void *
push_all(void *arg)
{
    struct actor *me = arg;
    for (uint32_t i = 0; i < MESSAGES; i++) {
        size_t body = (check_random(&me->dice) >> 20) %
                      (chance(&me->dice, 20) ? LARGE : 50);
        struct twi_wnode *node = message(me->number, i, body);
        node->shutdown_after = owner.shuts && me->number == 0 && i == MESSAGES / 2;
        add_relaxed(&owner.unwritten, (int64_t)node->buf.len);
        twi_wstack_push(&owner.ws, node, chance(&me->dice, me->cork_percent),
                        (int64_t)i);
        if (chance(&me->dice, 5))
            sched_yield();
    }
    return NULL;
}

/* The dispatcher's look at corks. */
static void *
flush_corks(void *arg)
{
    struct actor *me = arg;
    while (!load_relaxed(&owner.finished)) {
        /* As in the core, who comes by an id does not reach a failed one. */
        if (!load_seq_cst(&owner.error) &&
            twi_wstack_take(&owner.ws, TWI_W_CORKED)) {
            twi_wstack_run(&owner.ws);
            me->work++;
        }
        sched_yield();
    }
    return NULL;
}

/* The poller: writability, unless it failed, and leftovers. */
static void *
resume(void *arg)
{
    struct actor *me = arg;
    while (!load_relaxed(&owner.finished)) {
        if (atomic_exchange(&owner.armed, 0) && !load_seq_cst(&owner.error) &&
            twi_wstack_take(&owner.ws, TWI_W_POLLOUT)) {
            twi_wstack_run(&owner.ws);
            me->work++;
        }
        if (atomic_exchange(&owner.readied, 0) &&
            twi_wstack_take(&owner.ws, TWI_W_READY)) {
            twi_wstack_run(&owner.ws);
            me->work++;
        }
        sched_yield();
    }
    return NULL;
}

static void *
disturb(void *arg)
{
    struct actor *me = arg;
    for (uint64_t i = check_random(&me->dice) % 2000;
         i > 0 && !load_relaxed(&owner.connect_now); i--)
        sched_yield();
    if (!load_seq_cst(&owner.error)) {
        store_seq_cst(&owner.connected, 1);
        if (twi_wstack_take(&owner.ws, TWI_W_CONNECTING))
            twi_wstack_run(&owner.ws);
    }
    store_relaxed(&owner.connect_tried, 1);
    if (!owner.fails)
        return NULL;
    for (uint64_t i = check_random(&me->dice) % 20000;
         i > 0 && !load_relaxed(&owner.fail_now); i--)
        sched_yield();
    fail_owner(EPIPE);
    store_relaxed(&owner.fail_tried, 1);
    return NULL;
}

/* C7: whole messages, each pusher's in order; at the end, if the owner failed,
 * a beginning of one.  Of all pushers all messages, unless the owner failed or
 * one message was the last. */
static void
check_wire(int failed, int shut)
{
    uint32_t next[PUSHERS] = {0};
    size_t at = 0;
    while (at < owner.written) {
        uint32_t head[2];
        size_t left = owner.written - at;
        if (left >= HEAD)
            memcpy(head, owner.wire + at, HEAD);
        if (left < HEAD || left < HEAD + head[1]) {
            CHECK(failed);
            break;
        }
        uint32_t pusher = head[0] >> 24, seq = head[0] & 0xffffff;
        CHECK(pusher < PUSHERS);
        if (pusher >= PUSHERS)
            return;
        CHECK_EQ(seq, next[pusher]);
        next[pusher] = seq + 1;
        size_t good = 0;
        while (good < head[1] &&
               owner.wire[at + HEAD + good] == (uint8_t)(seq * 7 + good))
            good++;
        CHECK_EQ(good, head[1]);
        at += HEAD + head[1];
    }
    for (int i = 0; i < PUSHERS && !failed && !shut; i++)
        CHECK_EQ(next[i], MESSAGES);
    if (shut) /* pusher 0's was the last of all */
        CHECK_EQ(next[0], MESSAGES / 2 + 1);
}

static void
round_of(int number)
{
    struct actor actors[PUSHERS + 3];
    uint8_t *wire = owner.wire;
    size_t cap = owner.cap;
    int n = PUSHERS + 3;
    memset(&owner, 0, sizeof owner);
    owner.wire = wire;
    owner.cap = cap;
    owner.dice = check_random(&seed) | 1;
    owner.again_percent = number % 4 == 0 ? 0 : (int)(check_random(&seed) % 50);
    owner.short_percent = number % 5 == 0 ? 0 : (int)(check_random(&seed) % 90);
    owner.fails = number % 3 == 2;
    owner.shuts = number % 4 == 3;
    owner.connected = number % 2;
    twi_wstack_init(&owner.ws, &ops);
    void *(*const bodies[])(void *) = {flush_corks, resume, disturb};
    for (int i = 0; i < n; i++) {
        actors[i] = (struct actor){.number = i,
                                   .dice = check_random(&seed) | 1,
                                   .cork_percent = i % 2 ? 70 : 0};
        if (number % 7 == 0)
            actors[i].cork_percent = 95;
        if (pthread_create(&actors[i].thread, NULL,
                           i < PUSHERS ? push_all : bodies[i - PUSHERS],
                           &actors[i]))
            abort();
    }
    for (int i = 0; i < PUSHERS; i++)
        pthread_join(actors[i].thread, NULL);
    pthread_join(actors[PUSHERS + 2].thread, NULL);
    /* Nothing but the flusher and the poller is needed to finish. */
    time_t began = time(NULL);
    while ((load_relaxed(&owner.done) < PUSHERS * MESSAGES ||
            !twi_wstack_idle(&owner.ws)) &&
           time(NULL) - began < 30)
        sched_yield();
    CHECK(owner.written <= owner.cap); /* the role's, which nobody has now */
    store_relaxed(&owner.finished, 1);
    pthread_join(actors[PUSHERS].thread, NULL);
    pthread_join(actors[PUSHERS + 1].thread, NULL);
    CHECK(twi_wstack_idle(&owner.ws));
    CHECK_EQ(load_seq_cst(&owner.ws.state), TWI_W_RUNNING);
    CHECK_EQ(atomic_load(&owner.done), PUSHERS * MESSAGES);
    CHECK_EQ(atomic_load(&owner.unwritten), 0);
    for (int i = 0; i < PUSHERS; i++)
        for (int j = 0; j < MESSAGES; j++)
            CHECK_EQ(atomic_load(&owner.completed[i][j]), 1);
    CHECK(owner.shuts || !owner.shutdowns);
    CHECK(owner.fails || owner.shutdowns == owner.shuts);
    check_wire(load_seq_cst(&owner.error) != 0, owner.shutdowns);
    CHECK_EQ(twi_block_live(), 0);
}

int
main(void)
{
    seed = check_seed();
    if (twi_counters_open())
        abort();
    owner.cap = (size_t)PUSHERS * MESSAGES * (HEAD + LARGE);
    owner.wire = malloc(owner.cap);
    for (int i = 0; i < ROUNDS && !check_failures; i++)
        round_of(i);
    free(owner.wire);
    return check_done();
}
