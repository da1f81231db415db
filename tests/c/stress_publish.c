/* What one thread hands to another, each by itself and under TSan: the consumer
 * looks as the core does until it is there, and then touches what is plain.
 * Nothing else orders the two. */
#include "bed.h"

#include "auth.h"
#include "iobuf.h"
#include "lent.h"
#include "loop.h"
#include "server.h"

enum { ITEMS = 3000, NAMES = 150, SOCKETS = 1500, LOOPS = 150, USERS = 3 };

static void
beside(void *(*other)(void *), void *arg, void (*own)(void *))
{
    pthread_t thread;
    MUST(!pthread_create(&thread, NULL, other, arg));
    own(arg);
    pthread_join(thread, NULL);
}

/* ---- iobuf.c: a block that is ours alone again may be written */

static struct twi_block *blocks[ITEMS];

static void *
read_blocks(void *unused)
{
    for (int i = 0; i < ITEMS; i++) {
        CHECK_EQ(blocks[i]->data[0], 1);
        twi_block_unref(blocks[i]);
    }
    return unused;
}

static void
write_blocks(void *unused)
{
    (void)unused;
    for (int i = 0; i < ITEMS; i++) {
        while (!twi_block_exclusive(blocks[i]))
            ;
        blocks[i]->data[0] = 2;
        twi_block_unref(blocks[i]);
    }
}

static void
test_blocks(void)
{
    for (int i = 0; i < ITEMS; i++) {
        MUST((blocks[i] = twi_block_new(64)) != NULL);
        blocks[i]->data[0] = 1;
        twi_block_ref(blocks[i]);
    }
    beside(read_blocks, NULL, write_blocks);
}

/* ---- lent.c: memory that is given back has been read to the end */

static int lent_bytes[ITEMS];

static void *
give_back(void *unused)
{
    for (int i = 0; i < ITEMS; i++) {
        struct twi_lent *lent = twi_lent_new((uint64_t)i);
        MUST(lent);
        lent_bytes[i] = 1;
        twi_lent_back(lent, 0);
    }
    return unused;
}

static void
take_back(void *unused)
{
    uint64_t tokens[16];
    (void)unused;
    for (int taken = 0; taken < ITEMS;) {
        int n = tw_released(tokens, 16);
        for (int i = 0; i < n; i++)
            CHECK_EQ(lent_bytes[tokens[i]]++, 1);
        taken += n;
    }
}

/* ---- client.c: a method's number says that the method is there */

static tw_id inbox;

static void *
add_methods(void *unused)
{
    for (int i = 0; i < NAMES; i++) {
        char name[32];
        snprintf(name, sizeof name, "published_%d", i);
        CHECK(tw_client_method("stress", name) >= 0);
    }
    return unused;
}

static void
use_methods(void *arg)
{
    int first = *(int *)arg;
    tw_id peer, id;
    MUST(tw_peer_open("127.0.0.1:1", &default_peer, &peer) == 0);
    for (int i = 0; i < NAMES; i++) {
        int rc;
        while ((rc = tw_submit(peer, first + i, "", 0, NULL, 0, inbox, 0, 0,
                               &id)) == -EINVAL)
            ;
        CHECK_EQ(rc, 0);
    }
    tw_peer_close(peer);
    for (int ended = 0, more; ended < NAMES;) {
        tw_event events[32];
        CHECK_EQ(tw_inbox_wait(inbox, SOON, 1), 0);
        ended += tw_drain(inbox, 0, events, 32, &more);
    }
}

/* ---- auth.c: who is let in has an identity */

static void
nothing_to_read(struct twi_socket *sock, uint32_t events, int64_t now_ns)
{
    (void)sock, (void)events, (void)now_ns;
}

static const struct twi_socket_hooks hooks = {.readable = nothing_to_read};

static _Atomic tw_id asked;

static void *
accept_all(void *unused)
{
    for (int i = 0; i < SOCKETS; i++) {
        tw_id id;
        while (!(id = load_relaxed(&asked)))
            ;
        store_relaxed(&asked, 0);
        CHECK_EQ(tw_auth_verdict(id, 1, "somebody", 8), 0);
    }
    return unused;
}

static void
ask_all(void *unused)
{
    (void)unused;
    for (int i = 0; i < SOCKETS; i++) {
        struct twi_socket *sock = twi_socket_open(TWI_SERVER_SIDE, &hooks, 0);
        MUST(sock);
        store_relaxed(&sock->auth.state, TWI_AUTH_PENDING);
        twi_socket_publish(sock);
        store_relaxed(&asked, twi_socket_id(sock));
        while (twi_auth_withholds(sock))
            ;
        CHECK_EQ(sock->auth.identity->size, 8);
        twi_socket_fail(sock, TW_ECLOSE, TW_PHASE_NONE);
        twi_socket_unref(sock);
    }
}

/* ---- socket.c: who walks finds whole sockets */

static void
is_whole(struct twi_socket *sock, void *arg)
{
    if (sock->hooks == arg)
        CHECK_EQ(sock->protocols, 77);
}

static _Atomic int opened;

static void *
walk(void *unused)
{
    while (load_relaxed(&opened) < SOCKETS)
        twi_socket_each(is_whole, (void *)&hooks);
    return unused;
}

static void
open_sockets(void *unused)
{
    (void)unused;
    for (int i = 0; i < SOCKETS; i++) {
        struct twi_socket *sock = twi_socket_open(TWI_SERVER_SIDE, &hooks, 0);
        MUST(sock);
        sock->protocols = 77;
        twi_socket_publish(sock);
        twi_socket_fail(sock, TW_ECLOSE, TW_PHASE_NONE);
        twi_socket_unref(sock);
        add_relaxed(&opened, 1);
    }
}

/* ---- raw.c: the next chunk follows when the consumer is done with the last */

static void *
take_chunks(void *unused)
{
    for (int taken = 0, more; taken < ITEMS;) {
        tw_event events[4];
        int n = tw_drain(inbox, 0, events, 4, &more);
        for (int i = 0; i < n; i++, taken++) {
            CHECK_EQ(events[i].kind, TW_CHUNK);
            CHECK_EQ(events[i].body_len, 1 + taken % 100);
            CHECK_EQ(tw_raw_next(events[i].id), 0);
        }
    }
    return unused;
}

static void
give_chunks(void *arg)
{
    struct twi_socket *sock = arg;
    struct twi_block *block = twi_block_new(100);
    const char *why;
    MUST(block);
    memset(block->data, 'x', 100);
    for (int i = 0; i < ITEMS; i++) {
        size_t used, need;
        do
            CHECK_EQ(twi_http_server.consume(sock, block, block->data,
                                             1 + (size_t)i % 100, 0, &used,
                                             &need, &why),
                     TWI_CUT_DONE);
        while (!used);
    }
    twi_block_unref(block);
}

static void
test_chunks(void)
{
    struct bed_server server;
    struct twi_socket *sock = twi_socket_open(TWI_SERVER_SIDE, &hooks, 0);
    MUST(sock && server_prepare(&server, NULL) == 0);
    tw_server_inboxes(server.id, 0, inbox);
    MUST((sock->server = twi_server_address(server.id)) != NULL);
    twi_socket_publish(sock);
    beside(take_chunks, sock, give_chunks);
    twi_socket_fail(sock, TW_ECLOSE, TW_PHASE_NONE);
    twi_server_unref(sock->server);
    twi_socket_unref(sock);
    server_end(&server);
}

/* ---- loop.c: the baton, what is left, and the end */

static struct twi_loop *const loop = &twi_loops[TWI_LOOPS_MAX - 1];
static long taken; /* the baton's holder's */

static void *
hold_baton(void *unused)
{
    for (int i = 0; i < ITEMS; i++) {
        while (!twi_baton_take(loop))
            ;
        taken++;
        twi_baton_drop(loop);
    }
    return unused;
}

static void
take_baton_too(void *unused)
{
    hold_baton(unused);
}

struct left {
    struct twi_leftover item;
    int plain;
};
static struct left left[2][ITEMS];
static int run; /* the baton's holder's */

static void *
leave_all(void *arg)
{
    struct left *items = arg;
    for (int i = 0; i < ITEMS; i++) {
        items[i].plain = i;
        twi_loop_leave(loop, &items[i].item);
    }
    return NULL;
}

static void
run_left(void *unused)
{
    (void)unused;
    while (run < 2 * ITEMS) {
        while (!twi_baton_take(loop))
            ;
        twi_loop_poll(loop, 0);
        twi_baton_drop(loop);
    }
}

static void
on_left(struct twi_leftover *item, int64_t now_ns)
{
    struct left *one = (struct left *)item;
    (void)now_ns;
    CHECK_EQ(one->plain, one - left[one >= left[1]]);
    run++;
}

static void *
use_loop(void *unused)
{
    for (int i = 0; i < 20; i++)
        twi_loop_wake(loop);
    return unused;
}

static void
test_loop(void)
{
    const struct twi_loop_hooks loop_hooks = {.leftover = on_left};
    pthread_t threads[USERS];
    MUST(twi_loop_init(loop, &loop_hooks) == 0);
    beside(hold_baton, NULL, take_baton_too);
    CHECK_EQ(taken, 2 * ITEMS);
    MUST(!pthread_create(&threads[0], NULL, leave_all, left[0]));
    beside(leave_all, left[1], run_left);
    pthread_join(threads[0], NULL);
    CHECK_EQ(twi_loop_shut(loop), 0);
    for (int i = 0; i < LOOPS; i++) {
        MUST(twi_loop_init(loop, &loop_hooks) == 0);
        for (int j = 0; j < USERS; j++)
            MUST(!pthread_create(&threads[j], NULL, use_loop, NULL));
        CHECK_EQ(twi_loop_shut(loop), 0);
        for (int j = 0; j < USERS; j++)
            pthread_join(threads[j], NULL);
    }
}

int
main(void)
{
    plant_faults(check_seed());
    core_open();
    MUST(tw_inbox_open(&inbox) == 0);
    int first_method = tw_client_method("stress", "first") + 1;
    test_blocks();
    beside(give_back, NULL, take_back);
    beside(add_methods, &first_method, use_methods);
    beside(accept_all, NULL, ask_all);
    beside(walk, NULL, open_sockets);
    test_chunks();
    test_loop();
    tw_inbox_close(inbox);
    tw_close();
    return check_done();
}
