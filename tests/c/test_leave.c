/* Clients that their server asks to leave: no call is refused or lost.  A server
 * and its successor share a port. */
#include "cases.h"
#include "clients.h"
#include "ports.h"

#include "leave.h"
#include "socket.h"

static tw_server_options shared_port;

static void
start_at(struct bed_server *server, const char *address, int workers)
{
    shared_port = default_options;
    shared_port.reuse_port = 1;
    server_start(server, address, workers, &shared_port);
}

/* P6: the call under way is answered where it was sent, later ones elsewhere, and
 * then the client has left. */
static void
case_handover(void)
{
    struct bed_server old, next;
    tw_id inbox;
    start_at(&old, "127.0.0.1:0", 2);
    MUST(tw_inbox_open(&inbox) == 0);
    tw_id peer = peer_open(old.bound);
    tw_id before = result_of(peer, ECHO).socket;
    submit(peer, GATE, "slow", inbox, 7);
    await_gate(&old, 1);
    start_at(&next, old.bound, 1);
    uint64_t left = counter(TWI_LEFT);
    CHECK_EQ(tw_server_lame_duck(old.id), 0);
    CHECK_EQ(tw_server_lame_duck(old.id), 0); /* changes nothing */
    EVENTUALLY(counter(TWI_LEFT) == left + 1);
    tw_event result = result_of(peer, ECHO);
    CHECK_EQ(result.code, 0);
    CHECK(result.socket != before);
    CHECK_EQ(tw_server_connections(next.id), 1);
    CHECK_EQ(counter(TWI_CONNECTIONS_OUT), 2);
    /* As long as it owes an answer the connection stays. */
    CHECK_EQ(tw_server_drain(old.id, 3 * TWI_LEAVE_LAST_NS), -ETIMEDOUT);
    CHECK_EQ(tw_socket_alive(before), 1);
    open_gate(&old);
    tw_event event = take_event(inbox);
    CHECK_EQ(event.code, 0);
    CHECK_EQ(event.cookie, 7);
    CHECK_EQ(event.socket, before);
    CHECK_EQ(tw_server_drain(old.id, SOON), 0);
    EVENTUALLY(tw_server_connections(old.id) == 0);
    EVENTUALLY(!tw_socket_alive(before));
    CHECK_EQ(counter(TWI_LEFT), left + 1);
    server_end(&old);
    CHECK_EQ(result_of(peer, ECHO).socket, result.socket);
    tw_peer_close(peer);
    tw_inbox_close(inbox);
    server_end(&next);
}

static _Atomic int over;

static void *
call_until_over(void *arg)
{
    struct caller *me = arg;
    while (!load_relaxed(&over)) {
        int code = call(me->peer, ECHO, "x", 1, SOON);
        CHECK_EQ(code, 0);
        me->good++;
        if (code)
            break;
    }
    return NULL;
}

/* P6: servers follow each other under load, on connections that several threads
 * share: every call is answered. */
static void
case_under_load(void)
{
    enum { PEERS = 2, CALLERS = 4, ROUNDS = 12 };
    struct bed_server servers[2];
    struct caller callers[CALLERS];
    tw_id peers[PEERS];
    start_at(&servers[0], "127.0.0.1:0", 2);
    for (int i = 0; i < PEERS; i++)
        peers[i] = peer_open(servers[0].bound);
    store_relaxed(&over, 0);
    for (int i = 0; i < CALLERS; i++) {
        callers[i] = (struct caller){.peer = peers[i % PEERS]};
        MUST(!pthread_create(&callers[i].thread, NULL, call_until_over,
                             &callers[i]));
    }
    for (int i = 0; i < ROUNDS; i++) {
        struct bed_server *old = &servers[i % 2], *next = &servers[1 - i % 2];
        EVENTUALLY(load_relaxed(&old->runs) >= 20);
        start_at(next, old->bound, 2);
        CHECK_EQ(tw_server_lame_duck(old->id), 0);
        CHECK_EQ(tw_server_drain(old->id, SOON), 0);
        CHECK_EQ(tw_server_stop(old->id), 0);
        CHECK_EQ(tw_server_drain(old->id, SOON), 0);
        server_end(old);
    }
    store_relaxed(&over, 1);
    for (int i = 0; i < CALLERS; i++)
        pthread_join(callers[i].thread, NULL);
    for (int i = 0; i < PEERS; i++)
        tw_peer_close(peers[i]);
    server_end(&servers[ROUNDS % 2]);
}

/* Where nobody follows, the client stays and is served, until it is refused. */
static void
case_nowhere(void)
{
    struct bed_server server;
    server_start(&server, "127.0.0.1:0", 1, NULL);
    tw_id peer = peer_open(server.bound);
    tw_id before = result_of(peer, ECHO).socket;
    uint64_t left = counter(TWI_LEFT), errors = counter(TWI_ERRORS_CONNECT);
    CHECK_EQ(tw_server_lame_duck(server.id), 0);
    EVENTUALLY(counter(TWI_ERRORS_CONNECT) == errors + 1);
    for (int i = 0; i < 5; i++) {
        tw_event result = result_of(peer, ECHO);
        CHECK_EQ(result.code, 0);
        CHECK_EQ(result.socket, before);
    }
    CHECK_EQ(counter(TWI_LEFT), left);
    CHECK_EQ(tw_server_stop(server.id), 0);
    CHECK_EQ(result_of(peer, ECHO).code, TW_ELOGOFF);
    EVENTUALLY(counter(TWI_LEFT) == left + 1);
    CHECK_EQ(result_of(peer, ECHO).code, ECONNREFUSED);
    EVENTUALLY(tw_server_connections(server.id) == 0);
    tw_peer_close(peer);
    server_end(&server);
    log_is_read();
}

/* A channel with a credential for each connection is asked for the new one's,
 * and stays until it has it. */
static void
case_credential(void)
{
    struct bed_server old, next;
    start_at(&old, "127.0.0.1:0", 1);
    tw_id peer = peer_open(old.bound);
    CHECK_EQ(tw_peer_credential(peer, "one", 3, 1), 0);
    tw_id before = result_of(peer, ECHO).socket;
    CHECK_EQ(tw_peer_wants_credential(peer), 0);
    start_at(&next, old.bound, 1);
    uint64_t left = counter(TWI_LEFT);
    CHECK_EQ(tw_server_lame_duck(old.id), 0);
    EVENTUALLY(tw_peer_wants_credential(peer) == 2);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(result_of(peer, ECHO).socket, before);
    CHECK_EQ(counter(TWI_LEFT), left);
    CHECK_EQ(tw_peer_credential(peer, "two", 3, 1), 0);
    CHECK_EQ(counter(TWI_LEFT), left + 1);
    tw_event result = result_of(peer, ECHO);
    CHECK_EQ(result.code, 0);
    CHECK(result.socket != before);
    CHECK_EQ(tw_peer_wants_credential(peer), 0);
    CHECK_EQ(tw_server_drain(old.id, SOON), 0);
    server_end(&old);
    tw_peer_close(peer);
    server_end(&next);
}

/* The connection fails before its successor, which waits for its credential, has
 * taken its place, and with health checks: that is as good as any, whether
 * somebody still holds the failed one (then the next call puts it there) or not. */
static void
case_fails_early(void)
{
    for (int held = 0; held < 2; held++) {
        struct bed_server old, next;
        start_at(&old, "127.0.0.1:0", 1);
        tw_id peer = open_with(old.bound, 0, SECOND, NULL);
        CHECK_EQ(tw_peer_credential(peer, "one", 3, 1), 0);
        tw_id before = result_of(peer, ECHO).socket;
        start_at(&next, old.bound, 1);
        uint64_t checks = counter(TWI_HEALTHCHECKS);
        CHECK_EQ(tw_server_lame_duck(old.id), 0);
        EVENTUALLY(tw_peer_wants_credential(peer) == 2);
        struct twi_socket *sock = twi_socket_address(before);
        MUST(sock);
        CHECK_EQ(tw_socket_fail(before, TW_ECLOSE), 0);
        if (!held) {
            twi_socket_unref(sock);
            EVENTUALLY(counter(TWI_CONNECTIONS_OUT) == 1);
        }
        CHECK_EQ(tw_peer_wants_credential(peer), 1);
        CHECK_EQ(tw_peer_credential(peer, "two", 3, 1), 0);
        tw_event result = result_of(peer, ECHO);
        CHECK_EQ(result.code, 0);
        CHECK(result.socket != before);
        CHECK_EQ(tw_peer_wants_credential(peer), 0);
        if (held)
            twi_socket_unref(sock);
        EVENTUALLY(counter(TWI_CONNECTIONS_OUT) == 1);
        CHECK_EQ(result_of(peer, ECHO).socket, result.socket);
        CHECK_EQ(counter(TWI_HEALTHCHECKS), checks);
        CHECK_EQ(tw_server_drain(old.id, SOON), 0);
        server_end(&old);
        tw_peer_close(peer);
        server_end(&next);
    }
}

/* The same while the successor is being connected: calls wait for it. */
static void
case_fails_earlier(void)
{
    for (int held = 0; held < 2; held++) {
        struct bed_server old, next;
        char both[256];
        script_clear();
        start_at(&old, "127.0.0.1:0", 1);
        start_at(&next, "127.0.0.1:0", 1);
        snprintf(both, sizeof both, "%s,%s", old.bound, next.bound);
        tw_id peer = open_with(both, 600 * MS, SECOND, NULL);
        tw_id before = result_of(peer, ECHO).socket;
        uint64_t checks = counter(TWI_HEALTHCHECKS);
        script_set(0, old.bound, HANGS);
        CHECK_EQ(tw_server_lame_duck(old.id), 0);
        EVENTUALLY(atomic_load(&connects) == 2);
        struct twi_socket *sock = twi_socket_address(before);
        MUST(sock);
        CHECK_EQ(tw_socket_fail(before, TW_ECLOSE), 0);
        if (!held) {
            twi_socket_unref(sock);
            EVENTUALLY(counter(TWI_CONNECTIONS_OUT) == 0);
        }
        CHECK_EQ(result_of(peer, ECHO).code, 0);
        if (held)
            twi_socket_unref(sock);
        EVENTUALLY(counter(TWI_CONNECTIONS_OUT) == 1);
        CHECK_EQ(counter(TWI_HEALTHCHECKS), checks);
        /* One that fails in its turn is as any other. */
        script_set(1, next.bound, ECONNREFUSED);
        CHECK_EQ(tw_server_close(next.id), 0);
        EVENTUALLY(result_of(peer, ECHO).code == TW_EFAILEDSOCKET);
        tw_peer_close(peer);
        server_join(&next);
        server_end(&old);
        script_clear();
        log_is_read();
    }
}

/* An ELOGOFF to a call, which is what brpc's servers say, does it, too. */
static void
case_logoff(void)
{
    struct bed_server old, next;
    start_at(&old, "127.0.0.1:0", 1);
    tw_id peer = peer_open(old.bound);
    tw_id before = result_of(peer, ECHO).socket;
    start_at(&next, old.bound, 1);
    CHECK_EQ(tw_server_stop(old.id), 0);
    CHECK_EQ(result_of(peer, ECHO).code, TW_ELOGOFF);
    tw_event result = result_of(peer, ECHO);
    CHECK_EQ(result.code, 0);
    CHECK(result.socket != before);
    EVENTUALLY(tw_server_connections(old.id) == 0);
    server_end(&old);
    tw_peer_close(peer);
    server_end(&next);
}

/* A connection that waits for an answer ends with the channel, or when the server
 * does not wait, and its call with it. */
static void
case_ends_early(void)
{
    struct bed_server old, next;
    tw_id inbox;
    MUST(tw_inbox_open(&inbox) == 0);
    for (int closes = 0; closes < 2; closes++) {
        start_at(&old, "127.0.0.1:0", 1);
        tw_id peer = peer_open(old.bound);
        submit(peer, GATE, "x", inbox, 1);
        await_gate(&old, 1);
        start_at(&next, old.bound, 1);
        uint64_t left = counter(TWI_LEFT);
        CHECK_EQ(tw_server_lame_duck(old.id), 0);
        EVENTUALLY(counter(TWI_LEFT) == left + 1);
        CHECK_EQ(result_of(peer, ECHO).code, 0);
        if (closes)
            tw_peer_close(peer);
        else
            CHECK_EQ(tw_server_close(old.id), 0);
        int code = take_event(inbox).code;
        if (closes)
            CHECK_EQ(code, ECANCELED);
        else
            CHECK(code == TW_EEOF || code == ECONNRESET || code == EPIPE);
        open_gate(&old);
        if (closes)
            CHECK_EQ(tw_server_close(old.id), 0);
        else {
            CHECK_EQ(result_of(peer, ECHO).code, 0);
            tw_peer_close(peer);
        }
        server_join(&old);
        server_end(&next);
    }
    tw_inbox_close(inbox);
}

static void
ask(int fd, int64_t correlation_id)
{
    uint8_t bytes[256];
    size_t n = raw_request(bytes, sizeof bytes, "bed.Service", "echo",
                           correlation_id, "x", 1);
    raw_send(fd, bytes, n);
}

static int
told(int fd, int64_t correlation_id)
{
    struct twi_std_msg msg = {0};
    uint8_t *frame = raw_response(fd, &msg);
    CHECK(frame != NULL);
    CHECK_EQ(msg.correlation_id, correlation_id);
    free(frame);
    return msg.error_code;
}

/* Who does not understand the notice is served until the server stops; it hears
 * it once, whether it has said something before or not. */
static void
case_deaf(void)
{
    struct bed_server server;
    server_start(&server, "127.0.0.1:0", 1, NULL);
    int known = raw_connect(server.bound), mute = raw_connect(server.bound);
    ask(known, 1);
    CHECK_EQ(told(known, 1), 0);
    EVENTUALLY(tw_server_connections(server.id) == 2);
    CHECK_EQ(tw_server_lame_duck(server.id), 0);
    CHECK_EQ(told(known, 0), TW_ELOGOFF);
    ask(mute, 2);
    CHECK_EQ(told(mute, 0), TW_ELOGOFF);
    CHECK_EQ(told(mute, 2), 0);
    for (int i = 3; i < 6; i++) {
        ask(known, i);
        CHECK_EQ(told(known, i), 0);
        ask(mute, i);
        CHECK_EQ(told(mute, i), 0);
    }
    CHECK_EQ(tw_server_drain(server.id, 10 * MS), -ETIMEDOUT);
    CHECK_EQ(tw_server_stop(server.id), 0);
    ask(known, 9);
    CHECK_EQ(told(known, 9), TW_ELOGOFF);
    close(known);
    close(mute);
    CHECK_EQ(tw_server_drain(server.id, SOON), 0);
    server_end(&server);
}

static const struct test_case cases[] = {
    {"handover", case_handover},
    {"under_load", case_under_load},
    {"nowhere", case_nowhere},
    {"credential", case_credential},
    {"fails_early", case_fails_early},
    {"fails_earlier", case_fails_earlier},
    {"logoff", case_logoff},
    {"ends_early", case_ends_early},
    {"deaf", case_deaf},
    {0},
};

int
main(int argc, char **argv)
{
    twi_sys.connect = scripted_connect;
    return cases_main(cases, argc, argv);
}
