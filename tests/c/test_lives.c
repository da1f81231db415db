/* The lives of a peer's socket: one id for all of them, what waits for the
 * next, what is left of the one before. */
#include "cases.h"
#include "clients.h"
#include "ports.h"

#include "pressure.h"
#include "socket.h"

/* L4: the same id in every life, which names nothing in between, and nothing
 * once the peer is closed. */
static void
case_same_id(void)
{
    struct bed_server server;
    server_start(&server, "127.0.0.1:0", 1, NULL);
    tw_id peer = peer_open(server.bound), socket = 0;
    for (int i = 0; i < 20; i++) {
        tw_event result = result_of(peer, ECHO);
        CHECK_EQ(result.code, 0);
        CHECK(!socket || result.socket == socket);
        socket = result.socket;
        CHECK_EQ(tw_socket_alive(socket), 1);
        if (i % 2) {
            CHECK_EQ(result_of(peer, HANG_UP).code, TW_EEOF);
        } else {
            /* Held: it can be addressed no more, and is not reset yet. */
            struct twi_socket *held = twi_socket_address(socket);
            MUST(held);
            uint64_t life = held->life;
            CHECK_EQ(tw_socket_fail(socket, TW_ECLOSE), 0);
            CHECK_EQ(tw_socket_alive(socket), 0);
            CHECK(!twi_socket_address(socket));
            CHECK_EQ(tw_socket_fail(socket, TW_ECLOSE), -TW_STALE);
            CHECK(held->life == life);
            twi_socket_unref(held);
        }
    }
    EVENTUALLY(counter(TWI_CONNECTIONS_OUT) == 0);
    tw_peer_close(peer);
    CHECK_EQ(tw_socket_fail(socket, TW_ECLOSE), -TW_STALE);
    peer = peer_open(server.bound);
    CHECK(result_of(peer, ECHO).socket != socket);
    tw_peer_close(peer);
    server_end(&server);
}

/* A call that comes while somebody holds the failed socket is sent in its next
 * life, in order, and is not lost; so is one that ends before. */
static void
case_waiting(void)
{
    struct bed_server server;
    tw_id inbox, id[3];
    server_start(&server, "127.0.0.1:0", 1, NULL);
    MUST(tw_inbox_open(&inbox) == 0);
    tw_id peer = peer_open(server.bound);
    tw_id socket = result_of(peer, ECHO).socket;
    for (int round = 0; round < 2; round++) {
        struct twi_socket *held = twi_socket_address(socket);
        MUST(held);
        CHECK_EQ(tw_socket_fail(socket, TW_ECLOSE), 0);
        for (uint64_t i = 0; i < 3; i++)
            id[i] = submit(peer, ECHO, "x", inbox, i);
        CHECK_EQ(tw_cancel(id[1]), 0);
        CHECK_EQ(take_event(inbox).code, ECANCELED);
        if (round == 0) {
            twi_socket_unref(held);
            for (uint64_t i = 0; i < 3; i += 2) {
                tw_event event = take_event(inbox);
                CHECK_EQ(event.code, 0);
                CHECK_EQ(event.cookie, i);
                CHECK_EQ(event.socket, socket);
            }
        } else { /* closed first: they end, unsent */
            tw_peer_close(peer);
            for (int i = 0; i < 2; i++) {
                tw_event event = take_event(inbox);
                CHECK_EQ(event.code, ECANCELED);
                CHECK_EQ(event.sent, TW_SENT_NONE);
            }
            twi_socket_unref(held);
        }
    }
    tw_inbox_close(inbox);
    server_end(&server);
}

/* The list of those that wait is bounded as the write stack is. */
static void
case_waiting_limit(void)
{
    struct bed_server server;
    tw_peer_options options = default_peer;
    tw_id inbox, peer;
    server_start(&server, "127.0.0.1:0", 1, NULL);
    MUST(tw_inbox_open(&inbox) == 0);
    options.max_unwritten = 2 * TWI_MESSAGE_COST;
    MUST(tw_peer_open(server.bound, &options, &peer) == 0);
    tw_id socket = result_of(peer, ECHO).socket;
    struct twi_socket *held = twi_socket_address(socket);
    MUST(held);
    CHECK_EQ(tw_socket_fail(socket, TW_ECLOSE), 0);
    for (int i = 0; i < 3; i++)
        submit(peer, ECHO, "x", inbox, i);
    tw_event event = take_event(inbox);
    CHECK_EQ(event.code, TW_EOVERCROWDED);
    CHECK_EQ(event.cookie, 2);
    twi_socket_unref(held);
    for (int i = 0; i < 2; i++)
        CHECK_EQ(take_event(inbox).code, 0);
    tw_peer_close(peer);
    tw_inbox_close(inbox);
    server_end(&server);
}

/* L2: an event of an earlier binding reaches no later one, although slot, id
 * and all are the same; it is counted. */
static void
case_stale_events(void)
{
    struct bed_server server;
    server_start(&server, "127.0.0.1:0", 1, NULL);
    tw_id peer = peer_open(server.bound);
    tw_id socket = result_of(peer, ECHO).socket;
    struct twi_socket *sock = twi_socket_address(socket);
    MUST(sock);
    uint64_t old = (uint64_t)sock->slot << 32 | load_seq_cst(&sock->generation);
    CHECK_EQ(tw_socket_fail(socket, TW_ECLOSE), 0);
    twi_socket_unref(sock);
    CHECK_EQ(result_of(peer, ECHO).socket, socket);
    uint64_t now = (uint64_t)sock->slot << 32 | load_seq_cst(&sock->generation);
    CHECK(now != old);
    /* Without the baton: an event that is dropped touches nothing. */
    uint64_t stale = counter(TWI_STALE_EVENTS);
    twi_socket_event(old, EPOLLIN | EPOLLHUP | EPOLLERR | EPOLLOUT,
                     twi_now_ns());
    CHECK_EQ(counter(TWI_STALE_EVENTS), stale + 1);
    CHECK_EQ(tw_socket_alive(socket), 1);
    CHECK_EQ(result_of(peer, ECHO).code, 0);
    tw_peer_close(peer);
    server_end(&server);
}

/* What the core told its pollers, and when it closed. */
static struct {
    _Atomic int watched[FDS]; /* by descriptor */
    _Atomic int closes[FDS];
    _Atomic int early; /* closed while watched */
} seen;

static int
seen_epoll_ctl(int ep, int op, int fd, struct epoll_event *event)
{
    /* Before the kernel may say anything about it, or has stopped to. */
    if (op == EPOLL_CTL_ADD)
        atomic_store(&seen.watched[fd % FDS], 1);
    int rc = epoll_ctl(ep, op, fd, event);
    if (op == EPOLL_CTL_DEL)
        atomic_store(&seen.watched[fd % FDS], 0);
    return rc;
}

static int
seen_close(int fd)
{
    atomic_fetch_add(&seen.closes[fd % FDS], 1);
    atomic_fetch_add(&seen.early, atomic_load(&seen.watched[fd % FDS]));
    return close(fd);
}

/* L3: out of the poller, then nobody holds it, then close: as long as an event
 * may be in somebody's hands, the number is not another's. */
static void
case_closed_last(void)
{
    struct bed_server server;
    server_start(&server, "127.0.0.1:0", 1, NULL);
    int early = atomic_load(&seen.early);
    for (int i = 0; i < 50; i++) {
        tw_id peer = peer_open(server.bound), other = peer_open(server.bound);
        tw_id socket = result_of(peer, ECHO).socket;
        struct twi_socket *held = twi_socket_address(socket);
        MUST(held);
        int fd = load_seq_cst(&held->fd);
        MUST(fd >= 0 && fd < FDS);
        CHECK_EQ(atomic_load(&seen.watched[fd]), 1);
        int closes = atomic_load(&seen.closes[fd]);
        CHECK_EQ(tw_socket_fail(socket, TW_ECLOSE), 0);
        /* A connection made meanwhile has another number. */
        tw_event result = result_of(other, ECHO);
        struct twi_socket *fresh = twi_socket_address(result.socket);
        MUST(fresh);
        CHECK(load_seq_cst(&fresh->fd) != fd);
        twi_socket_unref(fresh);
        CHECK_EQ(atomic_load(&seen.closes[fd]), closes);
        twi_socket_unref(held);
        EVENTUALLY(atomic_load(&seen.closes[fd]) > closes);
        /* This one may get it, and its own bytes only. */
        CHECK_EQ(result_of(peer, ECHO).code, 0);
        tw_peer_close(peer);
        tw_peer_close(other);
    }
    server_end(&server);
    CHECK_EQ(atomic_load(&seen.early), early);
}

static const struct test_case cases[] = {
    {"same_id", case_same_id},
    {"waiting", case_waiting},
    {"waiting_limit", case_waiting_limit},
    {"stale_events", case_stale_events},
    {"closed_last", case_closed_last},
    {0},
};

int
main(int argc, char **argv)
{
    twi_sys.epoll_ctl = seen_epoll_ctl;
    twi_sys.close = seen_close;
    return cases_main(cases, argc, argv);
}
