/* Connections for one call at a time. */
#include "cases.h"
#include "clients.h"
#include "later.h"
#include "ports.h"

#include "pool.h"

static tw_id
open_as(const char *address, int connection, int64_t health_ns)
{
    tw_peer_options options = default_peer;
    tw_id peer = 0;
    options.connection = connection;
    options.health_interval_ns = health_ns;
    MUST(tw_peer_open(address, &options, &peer) == 0);
    return peer;
}

/* n calls at the gate at once; their sockets. */
static void
call_at_once(tw_id peer, struct bed_server *server, tw_id inbox, int n,
             tw_id *sockets)
{
    close_gate(server);
    for (int i = 0; i < n; i++)
        submit(peer, GATE, "x", inbox, i);
    await_gate(server, n);
    CHECK_EQ(tw_server_connections(server->id), n);
    open_gate(server);
    for (int i = 0; i < n; i++) {
        tw_event event = take_event(inbox);
        CHECK_EQ(event.code, 0);
        sockets[event.cookie] = event.socket;
    }
    for (int i = 0; i < n; i++)
        for (int k = 0; k < i; k++)
            CHECK(sockets[i] != sockets[k]);
}

static void
case_pooled(void)
{
    enum { N = WORKERS_MAX };
    struct bed_server server;
    tw_id inbox, first[N], then[N];
    MUST(tw_inbox_open(&inbox) == 0);
    server_start(&server, "127.0.0.1:0", N, NULL);
    tw_id peer = open_as(server.bound, TW_POOLED, 0);
    uint64_t made = counter(TWI_CONNECTED);
    call_at_once(peer, &server, inbox, N, first);
    call_at_once(peer, &server, inbox, N, then);
    for (int i = 0; i < N; i++) {
        int found = 0;
        for (int k = 0; k < N; k++)
            found += then[i] == first[k];
        CHECK_EQ(found, 1);
    }
    /* One after the other they go over one. */
    tw_id last = result_of(peer, ECHO).socket;
    for (int i = 0; i < 10; i++)
        CHECK_EQ(result_of(peer, ECHO).socket, last);
    CHECK_EQ(counter(TWI_CONNECTED), made + N);
    /* A channel of another kind has its own, and the same peer. */
    tw_id single, brief;
    MUST(tw_peer_share(peer, TW_SINGLE, &single) == 0);
    MUST(tw_peer_share(single, TW_SHORT, &brief) == 0);
    CHECK_EQ(tw_peer_share(single, 3, &brief), -EINVAL);
    CHECK_EQ(result_of(single, ECHO).code, 0);
    CHECK_EQ(result_of(brief, ECHO).code, 0);
    CHECK_EQ(counter(TWI_CONNECTED), made + N + 2);
    CHECK_EQ(result_of(peer, ECHO).socket, last);
    /* They stay with the peer, not with who made them. */
    CHECK_EQ(tw_peer_close(peer), 0);
    EVENTUALLY(tw_server_connections(server.id) == N + 1);
    CHECK_EQ(tw_peer_close(single), 0);
    CHECK_EQ(tw_peer_close(brief), 0);
    EVENTUALLY(tw_server_connections(server.id) == 0);
    tw_inbox_close(inbox);
    server_end(&server);
}

static void
case_short(void)
{
    struct bed_server server;
    server_start(&server, "127.0.0.1:0", 1, NULL);
    tw_id peer = open_as(server.bound, TW_SHORT, 0), last = 0;
    uint64_t made = counter(TWI_CONNECTED);
    for (int i = 0; i < 20; i++) {
        tw_event result = result_of(peer, i % 3 ? ECHO : FAIL);
        CHECK_EQ(result.code, i % 3 ? 0 : 42);
        CHECK(result.socket != last);
        last = result.socket;
        CHECK_EQ(tw_socket_alive(last), 0);
    }
    CHECK_EQ(counter(TWI_CONNECTED), made + 20);
    EVENTUALLY(tw_server_connections(server.id) == 0);
    EVENTUALLY(counter(TWI_CONNECTIONS_OUT) == 0);
    tw_peer_close(peer);
    server_end(&server);
}

/* A call that ends without its answer, by its deadline, its caller or its
 * channel, takes the connection with it; one that its server refused does not. */
static void
case_no_answer(void)
{
    struct bed_server server;
    tw_id inbox;
    MUST(tw_inbox_open(&inbox) == 0);
    server_start(&server, "127.0.0.1:0", 2, NULL);
    for (int connection = TW_POOLED; connection <= TW_SHORT; connection++) {
        tw_id peer = open_as(server.bound, connection, 0), view;
        MUST(tw_peer_share(peer, connection, &view) == 0);
        tw_id first = result_of(peer, ECHO).socket;
        tw_id kept = result_of(peer, FAIL).socket;
        CHECK_EQ(kept == first, connection == TW_POOLED);
        close_gate(&server);
        CHECK_EQ(call(peer, GATE, "x", 1, 20 * MS), TW_ERPCTIMEDOUT);
        CHECK_EQ(tw_socket_alive(kept), 0);
        open_gate(&server);
        EVENTUALLY(tw_server_connections(server.id) == 0);
        CHECK_EQ(result_of(peer, ECHO).code, 0);

        close_gate(&server);
        tw_id call = submit(peer, GATE, "x", inbox, 1);
        await_gate(&server, 1);
        CHECK_EQ(tw_cancel(call), 0);
        tw_event event = take_event(inbox);
        CHECK_EQ(event.code, ECANCELED);
        CHECK_EQ(tw_socket_alive(event.socket), 0);
        open_gate(&server);
        EVENTUALLY(tw_server_connections(server.id) == 0);

        submit(peer, GATE, "x", inbox, 2);
        submit(view, GATE, "x", inbox, 3);
        CHECK_EQ(take_event(inbox).code, 0);
        CHECK_EQ(take_event(inbox).code, 0);
        close_gate(&server);
        submit(peer, GATE, "x", inbox, 2);
        submit(view, GATE, "x", inbox, 3);
        await_gate(&server, 2);
        CHECK_EQ(tw_peer_close(view), 0);
        event = take_event(inbox);
        CHECK_EQ(event.cookie, 3);
        CHECK_EQ(event.code, ECANCELED);
        CHECK_EQ(tw_socket_alive(event.socket), 0);
        open_gate(&server);
        event = take_event(inbox);
        CHECK_EQ(event.cookie, 2);
        CHECK_EQ(event.code, 0);
        CHECK_EQ(tw_socket_alive(event.socket), connection == TW_POOLED);
        tw_peer_close(peer);
        EVENTUALLY(tw_server_connections(server.id) == 0);
    }
    tw_inbox_close(inbox);
    server_end(&server);
}

/* Idle connections that the server ends are not met by calls. */
static void
case_ended_by_the_server(void)
{
    struct bed_server server;
    server_start(&server, "127.0.0.1:0", 1, NULL);
    tw_id peer = open_as(server.bound, TW_POOLED, 0);
    for (int i = 0; i < 10; i++) {
        tw_id socket = result_of(peer, ECHO).socket;
        CHECK_EQ(tw_socket_fail(socket, TW_ECLOSE), 0);
        tw_event result = result_of(peer, i % 2 ? ECHO : HANG_UP);
        CHECK(result.socket != socket);
        CHECK(i % 2 ? !result.code : result.code != 0);
    }
    tw_peer_close(peer);
    server_end(&server);
    log_is_read();
}

/* They are kept idle for so long and no longer, the last one used for later calls. */
static void
case_idle(void)
{
    struct bed_server server;
    tw_id inbox, sockets[2];
    MUST(tw_inbox_open(&inbox) == 0);
    server_start(&server, "127.0.0.1:0", 2, NULL);
    tw_id peer = open_as(server.bound, TW_POOLED, 0);
    call_at_once(peer, &server, inbox, 2, sockets);
    later(20);
    tw_id used = result_of(peer, ECHO).socket;
    CHECK_EQ(tw_server_connections(server.id), 2);
    later(11);
    EVENTUALLY(tw_server_connections(server.id) == 1);
    CHECK_EQ(tw_socket_alive(used), 1);
    later(20);
    EVENTUALLY(tw_server_connections(server.id) == 0);
    CHECK(result_of(peer, ECHO).socket != used);
    later(31);
    EVENTUALLY(tw_server_connections(server.id) == 0);
    tw_peer_close(peer);
    tw_inbox_close(inbox);
    server_end(&server);
}

/* A lame duck: what is idle ends at once, what has a call with its answer. */
static void
case_leave(void)
{
    static tw_server_options shared_port;
    struct bed_server old, next;
    tw_id inbox, sockets[2];
    MUST(tw_inbox_open(&inbox) == 0);
    shared_port = default_options;
    shared_port.reuse_port = 1;
    server_start(&old, "127.0.0.1:0", 2, &shared_port);
    tw_id peer = open_as(old.bound, TW_POOLED, 0);
    call_at_once(peer, &old, inbox, 2, sockets);
    close_gate(&old);
    submit(peer, GATE, "x", inbox, 1);
    await_gate(&old, 1);
    server_start(&next, old.bound, 1, &shared_port);
    CHECK_EQ(tw_server_lame_duck(old.id), 0);
    EVENTUALLY(tw_server_connections(old.id) == 1);
    EVENTUALLY(tw_socket_alive(sockets[0]) + tw_socket_alive(sockets[1]) == 1);
    CHECK_EQ(result_of(peer, ECHO).code, 0);
    CHECK_EQ(load_relaxed(&next.runs), 1);
    open_gate(&old);
    CHECK_EQ(take_event(inbox).code, 0);
    CHECK_EQ(tw_server_drain(old.id, SOON), 0);
    server_end(&old);
    CHECK_EQ(result_of(peer, ECHO).code, 0);
    CHECK_EQ(load_relaxed(&next.runs), 2);
    tw_peer_close(peer);
    tw_inbox_close(inbox);
    server_end(&next);
}

/* Where nothing can be connected the peer is down, for all its channels, until a
 * check has succeeded. */
static void
case_health(void)
{
    struct ports ports;
    for (int connection = TW_POOLED; connection <= TW_SHORT; connection++) {
        script_clear();
        ports_open(&ports, 1);
        tw_id peer = open_as(ports.all, connection, 50 * MS), single;
        MUST(tw_peer_share(peer, TW_SINGLE, &single) == 0);
        CHECK_EQ(result_of(peer, ECHO).code, 0);
        script_set(0, ports.address[0], ECONNREFUSED);
        if (connection == TW_POOLED)
            CHECK_EQ(result_of(peer, HANG_UP).sent, TW_SENT_ALL);
        uint64_t checks = counter(TWI_HEALTHCHECKS);
        CHECK_EQ(result_of(peer, ECHO).code, ECONNREFUSED);
        EVENTUALLY(result_of(peer, ECHO).code == TW_EFAILEDSOCKET);
        for (int i = 0; i < 10; i++) {
            CHECK_EQ(result_of(peer, ECHO).code, TW_EFAILEDSOCKET);
            CHECK_EQ(result_of(single, ECHO).code, TW_EFAILEDSOCKET);
        }
        EVENTUALLY(counter(TWI_HEALTHCHECKS) >= checks + 2);
        atomic_store(&script[0].outcome, 0);
        EVENTUALLY(result_of(peer, ECHO).code == 0);
        CHECK_EQ(result_of(single, ECHO).code, 0);
        tw_peer_close(peer);
        tw_peer_close(single);
        server_end(&ports.server);
        log_is_read();
    }
    script_clear();
}

/* A credential for each connection; where two are made at once, one may do. */
static void
case_credential(void)
{
    struct bed_server server;
    tw_id inbox, sockets[2];
    MUST(tw_inbox_open(&inbox) == 0);
    server_start(&server, "127.0.0.1:0", 2, NULL);
    tw_id peer = open_as(server.bound, TW_POOLED, 0), brief;
    CHECK_EQ(tw_peer_wants_credential(peer), 1);
    CHECK_EQ(tw_peer_credential(peer, "one", 3, 1), 0);
    CHECK_EQ(tw_peer_wants_credential(peer), 0);
    call_at_once(peer, &server, inbox, 2, sockets);
    CHECK_EQ(tw_peer_wants_credential(peer), 0); /* some are idle */
    MUST(tw_peer_share(peer, TW_SHORT, &brief) == 0);
    CHECK_EQ(tw_peer_wants_credential(brief), 1);
    CHECK_EQ(tw_peer_credential(brief, "two", 3, 1), 0);
    CHECK_EQ(result_of(brief, ECHO).code, 0);
    CHECK_EQ(tw_peer_wants_credential(brief), 1);
    tw_peer_close(peer);
    tw_peer_close(brief);
    tw_inbox_close(inbox);
    server_end(&server);
}

/* Calls of every end, in threads that share the pool or close it. */
static void *
call_wildly(void *arg)
{
    struct caller *me = arg;
    tw_id inbox;
    MUST(tw_inbox_open(&inbox) == 0);
    for (int i = 0; i < me->calls; i++) {
        tw_id view;
        int connection = 1 + (int)(check_random(&me->seed) % 2);
        MUST(tw_peer_share(me->peer, connection, &view) == 0);
        int n = 1 + (int)(check_random(&me->seed) % 4);
        for (int k = 0; k < n; k++) {
            tw_id id = submit(view, ECHO, "x", inbox, k);
            if (check_random(&me->seed) % 4 == 0)
                tw_cancel(id);
        }
        int64_t patience = check_random(&me->seed) % 2
                               ? SOON
                               : 1 + (int64_t)(check_random(&me->seed) % MS);
        int code = call(view, ECHO, "x", 1, patience);
        CHECK(!code || code == TW_ERPCTIMEDOUT);
        int closes = (int)(check_random(&me->seed) % 2);
        if (closes)
            CHECK_EQ(tw_peer_close(view), 0);
        while (n--) {
            code = take_event(inbox).code;
            CHECK(!code || code == ECANCELED);
        }
        if (!closes)
            CHECK_EQ(tw_peer_close(view), 0);
        me->good++;
    }
    tw_inbox_close(inbox);
    return NULL;
}

static void
case_under_load(void)
{
    enum { CALLERS = 3 };
    struct bed_server server;
    struct caller callers[CALLERS];
    server_start(&server, "127.0.0.1:0", 2, NULL);
    tw_id peer = open_as(server.bound, TW_POOLED, 0);
    for (int i = 0; i < CALLERS; i++) {
        callers[i] = (struct caller){
            .peer = peer, .calls = 60, .seed = check_random(&seed) | 1};
        MUST(!pthread_create(&callers[i].thread, NULL, call_wildly,
                             &callers[i]));
    }
    for (int i = 0; i < CALLERS; i++)
        pthread_join(callers[i].thread, NULL);
    /* Those of calls that nobody waits for end, the others are idle. */
    for (int i = 0; i < 10; i++)
        CHECK_EQ(result_of(peer, ECHO).code, 0);
    tw_peer_close(peer);
    EVENTUALLY(counter(TWI_CONNECTIONS_OUT) == 0);
    server_end(&server);
    log_is_read();
}

static const struct test_case cases[] = {
    {"pooled", case_pooled},
    {"short", case_short},
    {"no_answer", case_no_answer},
    {"ended_by_the_server", case_ended_by_the_server},
    {"leave", case_leave},
    {"health", case_health},
    {"credential", case_credential},
    {"under_load", case_under_load},
    {"idle", case_idle}, /* the last: it moves the clock, and the kernel's stays */
    {0},
};

int
main(int argc, char **argv)
{
    seed = check_seed();
    twi_sys.connect = scripted_connect;
    twi_sys.clock_gettime = moved_clock;
    return cases_main(cases, argc, argv);
}
