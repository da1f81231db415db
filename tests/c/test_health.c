/* Health checks: a peer that is down is found again. */
#include "cases.h"
#include "clients.h"
#include "ports.h"

#include "peer.h"

static void
case_delays(void)
{
    int64_t delay = 0, last = 0;
    for (int i = 0; i < 10; i++, last = delay) {
        delay = twi_check_delay(delay, 3 * SECOND);
        CHECK_EQ(delay, last == 0 ? 100 * MS
                        : 2 * last < 3 * SECOND ? 2 * last : 3 * SECOND);
    }
    CHECK_EQ(delay, 3 * SECOND);
    CHECK_EQ(twi_check_delay(0, 30 * MS), 30 * MS);
    CHECK_EQ(twi_check_delay(0, 1), 1);
    CHECK(twi_check_delay(INT64_MAX / 2, INT64_MAX) == INT64_MAX);
}

/* C9: while the server is down calls fail at once and connect nowhere; it is
 * found again by itself, under the old id. */
static void
case_down_and_up(void)
{
    struct ports ports;
    script_clear();
    ports_open(&ports, 1);
    tw_id peer = open_with(ports.all, 0, 50 * MS, NULL);
    tw_id socket = result_of(peer, ECHO).socket;
    log_is_read();
    for (int round = 0; round < 3; round++) {
        uint64_t checks = counter(TWI_HEALTHCHECKS);
        script_set(0, ports.address[0], ECONNREFUSED);
        atomic_store(&connects, 0);
        CHECK_EQ(tw_socket_fail(socket, TW_ECLOSE), 0);
        for (int i = 0; i < 100; i++) {
            tw_event result = result_of(peer, ECHO);
            CHECK_EQ(result.code, TW_EFAILEDSOCKET);
            CHECK_EQ(result.phase, TW_PHASE_CONNECT);
            CHECK_EQ(result.sent, TW_SENT_NONE);
        }
        EVENTUALLY(counter(TWI_HEALTHCHECKS) >= checks + 3);
        CHECK_EQ(tw_socket_alive(socket), 0);
        atomic_store(&script[0].outcome, 0);
        EVENTUALLY(tw_socket_alive(socket));
        /* No call has connected, and none had to. */
        int made = atomic_load(&connects);
        CHECK_EQ(made, counter(TWI_HEALTHCHECKS) - checks);
        CHECK_EQ(result_of(peer, ECHO).socket, socket);
        CHECK_EQ(atomic_load(&connects), made);
        EVENTUALLY(logged(TW_LOG_PEER_UP, 0));
        CHECK_EQ(counter(TWI_CONNECTIONS_OUT), 1);
    }
    tw_peer_close(peer);
    /* A server that was never there. */
    script_set(0, ports.address[0], ECONNREFUSED);
    peer = open_with(ports.all, 0, 20 * MS, NULL);
    CHECK_EQ(result_of(peer, ECHO).code, ECONNREFUSED);
    CHECK_EQ(result_of(peer, ECHO).code, TW_EFAILEDSOCKET);
    atomic_store(&script[0].outcome, 0);
    tw_event result;
    do
        result = result_of(peer, ECHO);
    while (result.code == TW_EFAILEDSOCKET);
    CHECK_EQ(result.code, 0);
    tw_peer_close(peer);
    server_end(&ports.server);
    script_clear();
}

/* C8: a server that accepts but does not answer its probe is not up. */
static void
case_probe(void)
{
    struct ports ports;
    script_clear();
    ports_open(&ports, 1);
    tw_id peer = open_with(ports.all, 0, 20 * MS, "fail");
    tw_id socket = result_of(peer, ECHO).socket;
    CHECK_EQ(tw_socket_fail(socket, TW_ECLOSE), 0);
    uint64_t checks = counter(TWI_HEALTHCHECKS);
    EVENTUALLY(counter(TWI_HEALTHCHECKS) >= checks + 4);
    CHECK_EQ(tw_socket_alive(socket), 0);
    CHECK_EQ(result_of(peer, ECHO).code, TW_EFAILEDSOCKET);
    tw_peer_close(peer);

    /* The probe waits at the gate: its patience ends, it is tried again. */
    peer = open_with(ports.all, 0, 20 * MS, "gate");
    socket = result_of(peer, ECHO).socket;
    long runs = atomic_load(&ports.server.runs);
    CHECK_EQ(tw_socket_fail(socket, TW_ECLOSE), 0);
    checks = counter(TWI_HEALTHCHECKS);
    EVENTUALLY(counter(TWI_HEALTHCHECKS) >= checks + 2);
    CHECK_EQ(tw_socket_alive(socket), 0);
    open_gate(&ports.server);
    EVENTUALLY(tw_socket_alive(socket));
    CHECK(atomic_load(&ports.server.runs) > runs);
    /* The connection of the probe is the one that calls use. */
    CHECK_EQ(result_of(peer, ECHO).socket, socket);
    EVENTUALLY(tw_server_connections(ports.server.id) == 1);
    tw_peer_close(peer);
    server_end(&ports.server);
    script_clear();
}

/* L7: closing a peer ends its checks, at every moment of one. */
static void
case_closed_while_down(void)
{
    struct ports ports;
    script_clear();
    ports_open(&ports, 1);
    for (int i = 0; i < 40; i++) {
        tw_id peer = open_with(ports.all, i % 3 ? 0 : 5 * MS, MS,
                               i % 2 ? "echo" : NULL);
        tw_id socket = result_of(peer, ECHO).socket;
        if (i % 4 == 3)
            script_set(0, ports.address[0], HANGS);
        CHECK_EQ(tw_socket_fail(socket, TW_ECLOSE), 0);
        struct timespec pause = {0, (long)(check_random(&seed) % (3 * MS))};
        nanosleep(&pause, NULL);
        CHECK_EQ(tw_peer_close(peer), 0);
        CHECK_EQ(tw_socket_alive(socket), 0);
        script_clear();
    }
    EVENTUALLY(counter(TWI_CONNECTIONS_OUT) == 0);
    uint64_t checks = counter(TWI_HEALTHCHECKS);
    server_end(&ports.server);
    tw_census census;
    do
        tw_census_take(&census);
    while (census.peers);
    CHECK_EQ(counter(TWI_HEALTHCHECKS), checks);
}

/* A server closes a connection that says nothing: one that a check has brought and
 * no call has used goes idle, and the next call connects. */
static void
case_never_used(void)
{
    struct bed_server server;
    tw_server_options options = default_options;
    options.first_byte_timeout_ns = 20 * MS;
    server_start(&server, "127.0.0.1:0", 1, &options);
    for (int probes = 0; probes < 2; probes++) {
        tw_id peer = open_with(server.bound, 0, 30 * SECOND,
                               probes ? "echo" : NULL);
        tw_id socket = result_of(peer, ECHO).socket;
        CHECK_EQ(tw_socket_fail(socket, TW_ECLOSE), 0);
        EVENTUALLY(tw_socket_alive(socket));
        uint64_t checks = counter(TWI_HEALTHCHECKS);
        if (!probes) { /* a probe is something */
            EVENTUALLY(counter(TWI_CONNECTIONS_OUT) == 0);
            CHECK_EQ(tw_socket_alive(socket), 0);
        }
        tw_event result = result_of(peer, ECHO);
        CHECK_EQ(result.code, 0);
        CHECK_EQ(result.socket, socket);
        CHECK_EQ(counter(TWI_HEALTHCHECKS), checks);
        tw_peer_close(peer);
    }
    /* One that was used is sick. */
    tw_id peer = open_with(server.bound, 0, 30 * SECOND, NULL);
    CHECK_EQ(result_of(peer, ECHO).code, 0);
    CHECK_EQ(tw_server_close(server.id), 0);
    EVENTUALLY(counter(TWI_CONNECTIONS_OUT) == 0);
    CHECK_EQ(result_of(peer, ECHO).code, TW_EFAILEDSOCKET);
    tw_peer_close(peer);
    server_join(&server);
    log_is_read();
}

static const struct test_case cases[] = {
    {"delays", case_delays},
    {"down_and_up", case_down_and_up},
    {"probe", case_probe},
    {"closed_while_down", case_closed_while_down},
    {"never_used", case_never_used},
    {0},
};

int
main(int argc, char **argv)
{
    seed = check_seed();
    twi_sys.connect = scripted_connect;
    return cases_main(cases, argc, argv);
}
