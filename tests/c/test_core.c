/* The core as a whole: ids that name nothing, the number of loops, fork and
 * close. */
#include "cases.h"
#include "clients.h"

#include <sys/wait.h>

/* Ids that name nothing, also such as were never given out. */
static void
case_ids(void)
{
    struct bed_server server;
    char text[64];
    tw_event event;
    int more;
    server_start(&server, "127.0.0.1:0", 1, NULL);
    tw_id peer = peer_open(server.bound), id;
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    for (uint64_t version = 0; version < 8; version++)
        for (uint64_t slot = 0; slot < 600; slot += slot < 6 ? 1 : 99) {
            /* Where something may live, look for others only. */
            tw_id any = version << 32 | slot;
            if (any == peer || any == server.id ||
                (version && version % 2 == 0 && slot < 6))
                continue;
            CHECK_EQ(tw_socket_alive(any), 0);
            CHECK_EQ(tw_socket_peer(any, text, sizeof text), -TW_STALE);
            CHECK_EQ(tw_socket_fail(any, TW_ECLOSE), -TW_STALE);
            CHECK_EQ(tw_server_method(any, "a", "b", 0, NULL), -TW_STALE);
            CHECK_EQ(tw_listen(any, "127.0.0.1:0", 1, 1, text, sizeof text),
                     -TW_STALE);
            CHECK_EQ(tw_server_stop(any), -TW_STALE);
            CHECK_EQ(tw_server_drain(any, 0), -TW_STALE);
            CHECK_EQ(tw_server_close(any), -TW_STALE);
            CHECK_EQ(tw_server_in_flight(any), 0);
            CHECK_EQ(tw_server_connections(any), 0);
            CHECK_EQ(tw_worker_open(any, &event, &id), -TW_STALE);
            CHECK_EQ(tw_worker_close(any), -TW_STALE);
            CHECK_EQ(tw_turn(any, TW_NO_ANSWER, "", 0, NULL), -TW_STOPPED);
            CHECK_EQ(tw_reply(any, 0, "", 0, NULL, 0), -TW_STALE);
            CHECK_EQ(tw_request_alive(any), 0);
            CHECK(!tw_request_hold(any));
            CHECK_EQ(tw_peer_close(any), -TW_STALE);
            CHECK_EQ(tw_wait(any, 0, text, 0, &event), -TW_STALE);
            CHECK_EQ(tw_cancel(any), -TW_STALE);
            CHECK_EQ(tw_inbox_fd(any), -TW_STALE);
            CHECK_EQ(tw_watch(any), -TW_STALE);
            tw_unwatch(any);
            CHECK_EQ(tw_drain(any, 0, &event, 1, &more), -TW_STALE);
            CHECK_EQ(tw_flush(any), -TW_STALE);
            CHECK_EQ(tw_inbox_wait(any, 0, 0), -TW_STOPPED);
            CHECK_EQ(tw_inbox_close(any), -TW_STALE);
            CHECK_EQ(tw_raw_next(any), -TW_STALE);
            CHECK_EQ(tw_raw_write(any, "", 0, 0), -TW_STALE);
        }
    /* Codes that are none. */
    tw_event result;
    CHECK_EQ(call_full(peer, ECHO, "x", 1, NULL, SOON, text, sizeof text,
                       &result),
             0);
    CHECK_EQ(tw_socket_alive(result.socket), 1);
    CHECK_EQ(tw_socket_fail(result.socket, 0), -EINVAL);
    CHECK_EQ(tw_socket_fail(result.socket, -EPIPE), -EINVAL);
    CHECK_EQ(tw_socket_alive(result.socket), 1);
    CHECK_EQ(tw_socket_fail(result.socket, EPIPE), 0);
    CHECK_EQ(tw_socket_alive(result.socket), 0);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    tw_peer_close(peer);
    server_end(&server);
}

/* The number of loops, and that all of them work. */
static void
case_loops(void)
{
    int n = twi_sides_count();
    CHECK_EQ(tw_open(), 0); /* it is open: nothing */
    CHECK_EQ(tw_loops(0), -EINVAL);
    CHECK_EQ(tw_loops(-1), -EINVAL);
    CHECK_EQ(tw_loops(TWI_LOOPS_MAX + 1), -EINVAL);
    CHECK_EQ(tw_loops(n), 0); /* no change */
    /* The cases before have opened sockets, or this does. */
    struct bed_server server;
    server_start(&server, "127.0.0.1:0", 1, NULL);
    CHECK_EQ(tw_loops(n % TWI_LOOPS_MAX + 1), -EBUSY);
    CHECK_EQ(twi_sides_count(), n);
    /* Connections in turn: as many as loops reach them all, and all answer,
     * whichever loop reads them. */
    uint64_t rounds[TWI_LOOPS_MAX];
    for (int i = 0; i < n; i++)
        rounds[i] = atomic_load(&twi_loops[i].rounds);
    tw_id peers[TWI_LOOPS_MAX];
    for (int i = 0; i < n; i++) {
        peers[i] = peer_open(server.bound);
        for (int j = 0; j < 10; j++)
            CHECK_EQ(call(peers[i], ECHO, "x", 1, SOON), 0);
    }
    for (int i = 0; i < n; i++)
        CHECK(atomic_load(&twi_loops[i].rounds) > rounds[i]);
    for (int i = 0; i < n; i++)
        tw_peer_close(peers[i]);
    server_end(&server);
}

#if !defined(__SANITIZE_THREAD__)
static void
case_fork(void)
{
    struct bed_server server;
    server_start(&server, "127.0.0.1:0", 2, NULL);
    tw_id peer = peer_open(server.bound);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
#if defined(__SANITIZE_ADDRESS__)
    /* A lock of its allocator that another thread holds now would be held in
     * the child for ever: all others must be asleep. */
    EVENTUALLY(wakeups(20) <= 1);
#endif
    pid_t child = fork();
    MUST(child >= 0);
    if (child == 0) {
        alarm(60);
        int failed = check_failures;
        tw_forked();
        int good = tw_open() == 0;
        char scratch[64];
        tw_event result;
        /* The parent's ids name nothing here. */
        good &= tw_call(peer, client_methods[ECHO], "", 0, NULL, 0, 0, scratch,
                        sizeof scratch, &result) == -TW_STALE;
        good &= tw_server_close(server.id) == -TW_STALE;
        tw_id mine;
        good &= tw_peer_open(server.bound, &default_peer, &mine) == 0;
        for (int i = 0; i < 20; i++)
            good &= call(mine, ECHO, "child", 5, SOON) == 0;
        tw_peer_close(mine);
        tw_close();
        good &= check_failures == failed;
        _exit(good ? 0 : 1);
    }
    /* The parent goes on as if nothing had happened. */
    for (int i = 0; i < 50; i++)
        CHECK_EQ(call(peer, ECHO, "parent", 6, SOON), 0);
    int status;
    MUST(waitpid(child, &status, 0) == child);
    CHECK_EQ(status, 0);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    tw_peer_close(peer);
    server_end(&server);
}
#endif

/* The last case: the core closes under everybody's feet. */
static void
case_close(void)
{
    struct bed_server server;
    char bound[128];
    int listener = raw_socket("127.0.0.1:0", 1, bound, 0);
    struct caller callers[4];
    tw_id inbox;
    server_start(&server, "127.0.0.1:0", 2, NULL);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    tw_id peer = peer_open(server.bound), silent = peer_open(bound);
    for (int i = 0; i < 4; i++) {
        callers[i].peer = silent;
        MUST(!pthread_create(&callers[i].thread, NULL, call_for_ever,
                             &callers[i]));
    }
    int fd = accept(listener, NULL, NULL);
    char byte;
    CHECK_EQ(raw_recv(fd, &byte, 1), 1);
    submit(peer, GATE, "", inbox, 1);
    await_gate(&server, 1);
    poll(NULL, 0, 30); /* let the callers wait */
    tw_close();
    tw_close();
    for (int i = 0; i < 4; i++) {
        pthread_join(callers[i].thread, NULL);
        CHECK(callers[i].good != 0);
    }
    CHECK_EQ(tw_inbox_wait(inbox, SOON, 0), -TW_STOPPED);
    int more;
    tw_event event;
    CHECK_EQ(tw_drain(inbox, 0, &event, 1, &more), 1);
    CHECK(event.code != 0);
    open_gate(&server);
    server_join(&server);
    /* Too late, and it ends at once. */
    CHECK(call(peer, ECHO, "late", 4, SOON) != 0);
    CHECK_EQ(tw_watch(inbox), -TW_STOPPED);
    tw_inbox_close(inbox);
    tw_peer_close(peer);
    tw_peer_close(silent);
    close(fd);
    close(listener);
    fds_at_rest = fds_without_core;
}

static const struct test_case cases[] = {
    {"ids", case_ids},
    {"loops", case_loops},
#if !defined(__SANITIZE_THREAD__)
    {"fork", case_fork},
#endif
    {"close", case_close}, /* last: there is no core behind it */
    {0},
};

int
main(int argc, char **argv)
{
    seed = check_seed();
    plant_faults(seed);
    return cases_main(cases, argc, argv);
}
