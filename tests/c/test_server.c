/* A server's workers, its limits and its end. */
#include "cases.h"
#include "clients.h"

#include <sys/resource.h>

#include "acceptor.h"

static void
case_stop(void)
{
    struct bed_server server;
    tw_id inbox;
    server_start(&server, "127.0.0.1:0", 2, NULL);
    tw_id peer = peer_open(server.bound);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    submit(peer, GATE, "", inbox, 1);
    await_gate(&server, 1);
    CHECK_EQ(tw_server_in_flight(server.id), 1);
    CHECK_EQ(tw_server_stop(server.id), 0);
    CHECK_EQ(tw_server_stop(server.id), 0);
    /* Asked on the old connection: it says so.  A new one is refused. */
    CHECK_EQ(call(peer, ECHO, "", 0, SOON), TW_ELOGOFF);
    tw_id late = peer_open(server.bound);
    EVENTUALLY(call(late, ECHO, "", 0, SOON) == ECONNREFUSED);
    tw_peer_close(late);
    CHECK_EQ(tw_server_drain(server.id, 20 * MS), -ETIMEDOUT);
    open_gate(&server);
    CHECK_EQ(tw_server_drain(server.id, SOON), 0);
    CHECK_EQ(take_event(inbox).code, 0);
    CHECK_EQ(tw_server_close(server.id), 0);
    CHECK_EQ(tw_server_close(server.id), -TW_STALE);
    CHECK_EQ(tw_server_drain(server.id, 0), -TW_STALE);
    server_join(&server);
    EVENTUALLY(call(peer, ECHO, "", 0, SOON) == ECONNREFUSED);
    tw_inbox_close(inbox);
    tw_peer_close(peer);
}

/* P5: connections that wait in the listeners' queues at the stop are accepted,
 * and are told; closing the listener would reset them. */
static void
case_stop_accepts(void)
{
    enum { WAITING = 5 };
    struct bed_server server;
    uint8_t bytes[256];
    int fds[WAITING];
    if (fault.storm == STORM_AGAIN)
        return; /* it says that the queue is empty */
    server_start(&server, "127.0.0.1:0", 2, NULL);
    /* While we hold the baton nobody accepts. */
    take_baton();
    size_t n = raw_request(bytes, sizeof bytes, "bed.Service", "echo", 7, "x", 1);
    for (int i = 0; i < WAITING; i++) {
        fds[i] = raw_connect(server.bound);
        raw_send(fds[i], bytes, n);
    }
    CHECK_EQ(tw_server_connections(server.id), 0);
    CHECK_EQ(tw_server_stop(server.id), 0);
    EVENTUALLY(tw_server_connections(server.id) == WAITING);
    drop_baton();
    for (int i = 0; i < WAITING; i++) {
        struct twi_std_msg msg;
        uint8_t *frame = raw_response(fds[i], &msg);
        CHECK(frame != NULL);
        if (frame)
            /* A side loop may have read it before the stop. */
            CHECK(msg.error_code == TW_ELOGOFF || twi_sides_count() > 1);
        free(frame);
        close(fds[i]);
    }
    CHECK_EQ(tw_server_drain(server.id, SOON), 0);
    server_end(&server);
}

/* An end of the queue that never comes does not keep a stop. */
static void
case_stop_gives_up(void)
{
    struct bed_server server;
    server_start(&server, "127.0.0.1:0", 1, NULL);
    take_baton(); /* nobody else accepts */
    atomic_store(&fault.accept_errno, ECONNABORTED);
    atomic_store(&fault.accept_errors, 2 * TWI_ACCEPT_LAST);
    CHECK_EQ(tw_server_stop(server.id), 0);
    int left = atomic_load(&fault.accept_errors);
    CHECK(left == TWI_ACCEPT_LAST || fault.storm != NO_STORM);
    CHECK(left >= TWI_ACCEPT_LAST);
    atomic_store(&fault.accept_errors, 0);
    drop_baton();
    server_end(&server);
}

/* Closed with calls in the handler, in the queue and on the way. */
static void
case_close_in_flight(void)
{
    enum { CALLS = 50 };
    struct bed_server server;
    tw_id inbox;
    server_start(&server, "127.0.0.1:0", 2, NULL);
    tw_id peer = peer_open(server.bound);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    for (int i = 0; i < CALLS; i++)
        submit(peer, GATE, "", inbox, i);
    await_gate(&server, 2);
    CHECK_EQ(tw_server_close(server.id), 0);
    for (int i = 0; i < CALLS; i++) {
        tw_event event = take_event(inbox);
        CHECK(event.code == TW_EEOF || event.code == ECONNRESET ||
              event.code == EPIPE);
    }
    open_gate(&server);
    server_join(&server);
    tw_inbox_close(inbox);
    tw_peer_close(peer);
}

/* Answers that another thread gives later, in another order. */
static void
case_later(void)
{
    struct bed_server server;
    tw_id inbox, requests[8];
    server_start(&server, "127.0.0.1:0", 1, NULL);
    tw_id peer = peer_open(server.bound);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    for (int i = 0; i < 8; i++) {
        submit(peer, LATER, "x", inbox, i);
        requests[i] = take_later(&server);
    }
    CHECK_EQ(tw_server_in_flight(server.id), 8);
    for (int i = 7; i >= 0; i--) {
        CHECK_EQ(tw_request_alive(requests[i]), 1);
        CHECK_EQ(tw_reply(requests[i], 0, "answer", 6, NULL, 0), 0);
        CHECK_EQ(tw_request_alive(requests[i]), 0);
        tw_event event = take_event(inbox);
        CHECK_EQ(event.cookie, i);
        CHECK_EQ(event.body_len, 6);
    }
    /* Its connection fails first: the answer goes nowhere.  (A peer that only
     * ends its stream may still read answers.) */
    uint8_t frame[256];
    int fd = raw_connect(server.bound);
    size_t n = raw_request(frame, sizeof frame, "bed.Service", "later", 1, "", 0);
    raw_send(fd, frame, n);
    requests[0] = take_later(&server);
    raw_reset(fd);
    EVENTUALLY(!tw_request_alive(requests[0]));
    CHECK_EQ(tw_reply(requests[0], 0, "answer", 6, NULL, 0), 0);
    CHECK_EQ(tw_reply(requests[0], 0, "answer", 6, NULL, 0), -TW_STALE);
    tw_peer_close(peer);
    tw_inbox_close(inbox);
    server_end(&server);
}

/* A request whose peer ends its sending, then resets: who watches learns of the
 * second, once, and nobody of an answered one. */
static void
case_watch(void)
{
    struct bed_server server;
    tw_id inbox;
    uint8_t frame[256];
    server_start(&server, "127.0.0.1:0", 1, NULL);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    size_t n = raw_request(frame, sizeof frame, "bed.Service", "later", 1, "", 0);
    for (int round = 0; round < 3; round++) {
        int fd = raw_connect(server.bound);
        raw_send(fd, frame, n);
        tw_id request = take_later(&server);
        CHECK_EQ(tw_request_alive(request), 1);
        if (round != 2)
            CHECK_EQ(tw_request_watch(request, inbox), 1);
        MUST(!shutdown(fd, SHUT_WR));
        EVENTUALLY(tw_request_alive(request) == TW_ALIVE_MUTE);
        if (round == 1)
            CHECK_EQ(tw_reply(request, 0, "answer", 6, NULL, 0), 0);
        raw_reset(fd);
        EVENTUALLY(!tw_request_alive(request));
        if (!round) {
            tw_event event = take_event(inbox);
            CHECK_EQ(event.kind, TW_CANCELLED);
            CHECK_EQ(event.id, request);
        }
        CHECK_EQ(tw_request_watch(request, inbox), round == 1 ? -TW_STALE : 0);
        CHECK_EQ(tw_reply(request, 0, "", 0, NULL, 0),
                 round == 1 ? -TW_STALE : 0);
        EVENTUALLY(tw_server_connections(server.id) == 0);
        CHECK_EQ(tw_inbox_wait(inbox, 0, 0), -ETIMEDOUT);
    }
    /* The inbox may be gone before the peer is. */
    int fd = raw_connect(server.bound);
    raw_send(fd, frame, n);
    tw_id request = take_later(&server);
    CHECK_EQ(tw_request_watch(request, inbox), 1);
    CHECK_EQ(tw_inbox_close(inbox), 0);
    raw_reset(fd);
    EVENTUALLY(!tw_request_alive(request));
    CHECK_EQ(tw_reply(request, 0, "", 0, NULL, 0), 0);
    server_end(&server);
}

/* With cancel_on_eof the end of the peer's sending is its end. */
static void
case_cancel_on_eof(void)
{
    struct bed_server server;
    tw_server_options options = default_options;
    options.cancel_on_eof = 1;
    tw_id inbox;
    uint8_t frame[256];
    server_start(&server, "127.0.0.1:0", 1, &options);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    size_t n = raw_request(frame, sizeof frame, "bed.Service", "later", 1, "", 0);
    int fd = raw_connect(server.bound);
    raw_send(fd, frame, n);
    tw_id request = take_later(&server);
    CHECK_EQ(tw_request_watch(request, inbox), 1);
    MUST(!shutdown(fd, SHUT_WR));
    tw_event event = take_event(inbox);
    CHECK_EQ(event.kind, TW_CANCELLED);
    CHECK_EQ(event.id, request);
    CHECK_EQ(tw_reply(request, 0, "", 0, NULL, 0), 0);
    EVENTUALLY(tw_server_connections(server.id) == 0);
    close(fd);
    tw_inbox_close(inbox);
    server_end(&server);
}

/* Limits on calls and connections. */
static void
case_limits(void)
{
    struct bed_server server;
    tw_server_options options = default_options;
    options.max_concurrency = (tw_limit){.kind = TW_LIMIT_NUMBER, .most = 3};
    options.max_connections = 2;
    tw_id inbox;
    server_start(&server, "127.0.0.1:0", 4, &options);
    tw_id peer = peer_open(server.bound);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    for (int i = 0; i < 3; i++)
        submit(peer, GATE, "", inbox, 1);
    await_gate(&server, 3);
    CHECK_EQ(call(peer, ECHO, "", 0, SOON), TW_ELIMIT);
    int fd = raw_connect(server.bound), third;
    EVENTUALLY(tw_server_connections(server.id) == 2);
    uint64_t refused = counter(TWI_CONNECTIONS_REFUSED);
    third = raw_connect(server.bound);
    CHECK(raw_ends(third));
    close(third);
    CHECK_EQ(counter(TWI_CONNECTIONS_REFUSED) - refused, 1);
    close(fd);
    open_gate(&server);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(take_event(inbox).code, 0);
    EVENTUALLY(tw_server_connections(server.id) == 1);
    CHECK_EQ(call(peer, ECHO, "", 0, SOON), 0);
    tw_inbox_close(inbox);
    tw_peer_close(peer);
    server_end(&server);
}

static void *
call_limited(void *arg)
{
    tw_id peer = *(tw_id *)arg;
    long good = 0;
    for (int i = 0; i < 100 || !good; i++) {
        int code = call(peer, GATE, "x", 1, SOON);
        CHECK(code == 0 || code == TW_ELIMIT);
        good += code == 0;
        if (check_failures)
            break;
    }
    return NULL;
}

/* A method's own limit, R7: also after many have come at once, on connections
 * of several loops, exactly so many fit in. */
static void
case_method_limit(void)
{
    enum { LIMIT = 2, CALLERS = 4 };
    static const tw_method_options options = {
        .max_concurrency = {.kind = TW_LIMIT_NUMBER, .most = LIMIT}};
    struct bed_server server;
    tw_id inbox, peers[CALLERS];
    pthread_t threads[CALLERS];
    method_options[GATE] = &options;
    server_start(&server, "127.0.0.1:0", CALLERS, NULL);
    method_options[GATE] = NULL;
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    open_gate(&server);
    for (int i = 0; i < CALLERS; i++) {
        peers[i] = peer_open(server.bound);
        MUST(!pthread_create(&threads[i], NULL, call_limited, &peers[i]));
    }
    for (int i = 0; i < CALLERS; i++)
        pthread_join(threads[i], NULL);
    close_gate(&server);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < LIMIT; i++)
            submit(peers[i], GATE, "", inbox, 1);
        await_gate(&server, LIMIT);
        uint64_t refused = counter(TWI_REFUSED);
        for (int i = 0; i < CALLERS; i++)
            CHECK_EQ(call(peers[i], GATE, "", 0, SOON), TW_ELIMIT);
        CHECK_EQ(call(peers[0], ECHO, "", 0, SOON), 0);
        CHECK_EQ(counter(TWI_REFUSED), refused); /* its own calls */
        EVENTUALLY(tw_server_in_flight(server.id) == LIMIT);
        open_gate(&server);
        for (int i = 0; i < LIMIT; i++)
            CHECK_EQ(take_event(inbox).code, 0);
        close_gate(&server);
    }
    tw_inbox_close(inbox);
    for (int i = 0; i < CALLERS; i++)
        tw_peer_close(peers[i]);
    server_end(&server);
}

/* R3: the process's limit is 80 % of the descriptors less 64; the newcomer is
 * told by an end, not a reset. */
static void
case_descriptor_share(void)
{
    enum { DESCRIPTORS = 128, SHARE = DESCRIPTORS * 80 / 100 - 64 };
    struct bed_server servers[2];
    struct rlimit before, low;
    char byte;
    int fds[SHARE];
    getrlimit(RLIMIT_NOFILE, &before);
    low = before;
    low.rlim_cur = DESCRIPTORS;
    MUST(setrlimit(RLIMIT_NOFILE, &low) == 0);
    for (int i = 0; i < 2; i++)
        server_start(&servers[i], "127.0.0.1:0", 1, NULL);
    MUST(setrlimit(RLIMIT_NOFILE, &before) == 0); /* these were told */
    for (int i = 0; i < SHARE; i++)
        fds[i] = raw_connect(servers[i % 2].bound);
    EVENTUALLY(tw_server_connections(servers[0].id) +
                   tw_server_connections(servers[1].id) ==
               SHARE);
    for (int i = 0; i < 2; i++) {
        uint64_t refused = counter(TWI_CONNECTIONS_REFUSED);
        int late = raw_connect(servers[i].bound);
        CHECK_EQ(recv(late, &byte, 1, 0), 0);
        close(late);
        CHECK_EQ(counter(TWI_CONNECTIONS_REFUSED) - refused, 1);
    }
    close(fds[0]);
    EVENTUALLY(tw_server_connections(servers[0].id) +
                   tw_server_connections(servers[1].id) <
               SHARE);
    tw_id peer = peer_open(servers[1].bound);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    tw_peer_close(peer);
    for (int i = 1; i < SHARE; i++)
        close(fds[i]);
    for (int i = 0; i < 2; i++)
        server_end(&servers[i]);
    /* The next listener looks again. */
    server_start(&servers[0], "127.0.0.1:0", 1, NULL);
    server_end(&servers[0]);
}

/* Handlers that block keep nobody else from running, as long as there are
 * workers. */
static void
case_blocked_workers(void)
{
    struct bed_server server;
    tw_id inbox;
    server_start(&server, "127.0.0.1:0", 4, NULL);
    tw_id peer = peer_open(server.bound);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < 3; i++)
            submit(peer, GATE, "", inbox, 1);
        await_gate(&server, 3);
        int64_t began = twi_now_ns();
        CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
        CHECK(twi_now_ns() - began < SOON / 2);
        open_gate(&server);
        for (int i = 0; i < 3; i++)
            CHECK_EQ(take_event(inbox).code, 0);
        close_gate(&server);
    }
    tw_inbox_close(inbox);
    tw_peer_close(peer);
    server_end(&server);
}

/* A handler that computes delays the requests behind it by a few
 * milliseconds, not until it ends. */
static void
case_computing_worker(void)
{
    struct bed_server server;
    tw_id inbox;
    server_start(&server, "127.0.0.1:0", 3, NULL);
    tw_id peer = peer_open(server.bound);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    for (int i = 0; i < 3; i++) {
        submit(peer, SPIN, "", inbox, 1);
        /* On the same connection, by the thread that only waits. */
        CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
        CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
        EVENTUALLY(atomic_load(&server.spinning) == 1);
        atomic_store(&server.spinning, 0);
        CHECK_EQ(take_event(inbox).code, 0);
    }
    tw_inbox_close(inbox);
    tw_peer_close(peer);
    server_end(&server);
}

static const struct test_case cases[] = {
    {"stop", case_stop},
    {"stop_accepts", case_stop_accepts},
    {"stop_gives_up", case_stop_gives_up},
    {"close_in_flight", case_close_in_flight},
    {"later", case_later},
    {"watch", case_watch},
    {"cancel_on_eof", case_cancel_on_eof},
    {"limits", case_limits},
    {"method_limit", case_method_limit},
    {"descriptor_share", case_descriptor_share},
    {"blocked_workers", case_blocked_workers},
    {"computing_worker", case_computing_worker},
    {0},
};

int
main(int argc, char **argv)
{
    seed = check_seed();
    plant_faults(seed);
    return cases_main(cases, argc, argv);
}
