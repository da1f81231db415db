/* The connect machine, arrow by arrow, against scripted connects and scripted
 * handshakes. */
#include "cases.h"
#include "clients.h"
#include "ports.h"

#include "call.h"
#include "client.h"
#include "reader.h"
#include "socket.h"

/* ------------------------------------------------------------ the table */

/* The arrows of the drawing in connect.h, once more. */
static const struct {
    enum twi_cstate from;
    enum twi_cevent event;
    enum twi_cstate to;
} arrows[] = {
    {TWI_C_IDLE, TWI_C_WANTED, TWI_C_CONNECTING},
    {TWI_C_IDLE, TWI_C_LOST, TWI_C_FAILED},
    {TWI_C_CONNECTING, TWI_C_MADE, TWI_C_TRANSPORT},
    {TWI_C_CONNECTING, TWI_C_NEXT, TWI_C_CONNECTING},
    {TWI_C_CONNECTING, TWI_C_LOST, TWI_C_FAILED},
    {TWI_C_TRANSPORT, TWI_C_SHAKEN, TWI_C_HANDSHAKE},
    {TWI_C_TRANSPORT, TWI_C_NEXT, TWI_C_CONNECTING},
    {TWI_C_TRANSPORT, TWI_C_LOST, TWI_C_FAILED},
    {TWI_C_HANDSHAKE, TWI_C_ADMITTED, TWI_C_READY},
    {TWI_C_HANDSHAKE, TWI_C_LOST, TWI_C_FAILED},
    {TWI_C_READY, TWI_C_LOST, TWI_C_FAILED},
    {TWI_C_FAILED, TWI_C_RESET, TWI_C_IDLE},
    {TWI_C_FAILED, TWI_C_SICK, TWI_C_DOWN},
    {TWI_C_DOWN, TWI_C_HEALED, TWI_C_READY},
    {TWI_C_DOWN, TWI_C_RESET, TWI_C_IDLE},
};
enum { ARROWS = sizeof arrows / sizeof *arrows };

static void
case_table(void)
{
    int allowed = 0;
    for (int state = 0; state < TWI_C_STATES; state++)
        for (int event = 0; event < TWI_C_EVENTS; event++) {
            int to = -1;
            for (int i = 0; i < ARROWS; i++)
                if ((int)arrows[i].from == state &&
                    (int)arrows[i].event == event)
                    to = (int)arrows[i].to;
            struct twi_connect connect = {.state = (uint32_t)state};
            CHECK_EQ(twi_connect_after((enum twi_cstate)state,
                                       (enum twi_cevent)event),
                     to);
            CHECK_EQ(twi_connect_step(&connect, (enum twi_cevent)event), to);
            CHECK_EQ(twi_connect_state(&connect), to < 0 ? state : to);
            allowed += to >= 0;
        }
    CHECK_EQ(allowed, ARROWS);
}

/* -------------------------------------------------------------- addresses */

/* The addresses are tried in order, from the one that last worked. */
static void
case_several_addresses(void)
{
    struct ports ports;
    script_clear();
    ports_open(&ports, 3);
    tw_id peer = open_with(ports.all, 0, 0, NULL);
    script_set(0, ports.address[0], ECONNREFUSED);
    script_set(1, ports.address[1], ENETUNREACH);
    CHECK_EQ(atomic_load(&connects), 0); /* the first write connects */
    tw_event result = result_of(peer, ECHO);
    char text[128];
    CHECK_EQ(result.code, 0);
    CHECK(tw_socket_peer(result.socket, text, sizeof text) > 0);
    CHECK(!strcmp(text, ports.address[2]));
    CHECK_EQ(atomic_load(&connects), 3);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(atomic_load(&tried[i]), port_of(ports.address[i]));
    /* The third has worked: it comes first now, and then around. */
    CHECK_EQ(result_of(peer, HANG_UP).code, TW_EEOF);
    script_set(2, ports.address[2], ECONNREFUSED);
    atomic_store(&script[0].outcome, 0);
    CHECK_EQ(result_of(peer, ECHO).code, 0);
    CHECK_EQ(atomic_load(&connects), 5);
    CHECK_EQ(atomic_load(&tried[3]), port_of(ports.address[2]));
    CHECK_EQ(atomic_load(&tried[4]), port_of(ports.address[0]));
    /* All fail: the last one's error is the call's. */
    CHECK_EQ(result_of(peer, HANG_UP).code, TW_EEOF);
    atomic_store(&script[0].outcome, ECONNREFUSED);
    atomic_store(&script[2].outcome, EHOSTUNREACH);
    result = result_of(peer, ECHO);
    CHECK_EQ(result.code, EHOSTUNREACH);
    CHECK_EQ(result.phase, TW_PHASE_CONNECT);
    CHECK_EQ(result.sent, TW_SENT_NONE);
    CHECK_EQ(atomic_load(&connects), 8);
    tw_peer_close(peer);
    server_end(&ports.server);
    script_clear();
}

/* At most TWI_ADDRESSES_MAX of them, and each must be one. */
static void
case_address_lists(void)
{
    char text[32 * (TWI_ADDRESSES_MAX + 1)] = "";
    tw_id peer;
    for (int n = 1; n <= TWI_ADDRESSES_MAX + 1; n++) {
        strcat(text, n > 1 ? ",127.0.0.1:1" : "127.0.0.1:1");
        int rc = tw_peer_open(text, &default_peer, &peer);
        CHECK_EQ(rc, n <= TWI_ADDRESSES_MAX ? 0 : -EINVAL);
        if (!rc)
            tw_peer_close(peer);
    }
    static const char *const wrong[] = {"", ",", "127.0.0.1:1,", ",[::1]:1",
                                        "127.0.0.1:1,,127.0.0.1:2", "a:1"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK_EQ(tw_peer_open(wrong[i], &default_peer, &peer), -EINVAL);
}

/* C5: what the kernel says of a connect is what the call says. */
static void
case_errnos(void)
{
    static const int codes[] = {EACCES,       EPERM,   EADDRINUSE,
                                EADDRNOTAVAIL, ECONNREFUSED, ENETUNREACH,
                                EHOSTUNREACH, ETIMEDOUT, ENOBUFS, ENOENT};
    struct ports ports;
    script_clear();
    ports_open(&ports, 1);
    tw_id peer = open_with(ports.all, 0, 0, NULL);
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        script_set(0, ports.address[0], codes[i]);
        tw_event result = result_of(peer, ECHO);
        CHECK_EQ(result.code, codes[i]);
        CHECK_EQ(result.phase, TW_PHASE_CONNECT);
        CHECK_EQ(result.sent, TW_SENT_NONE);
    }
    atomic_store(&script[0].outcome, 0);
    CHECK_EQ(result_of(peer, ECHO).code, 0);
    tw_peer_close(peer);
    server_end(&ports.server);
    script_clear();
}

/* C5: one deadline for all addresses, of which each gets its share. */
static void
case_shares(void)
{
    struct ports ports;
    script_clear();
    ports_open(&ports, 3);
    script_set(0, ports.address[0], HANGS);
    script_set(1, ports.address[1], HANGS);
    tw_id peer = open_with(ports.all, 1800 * MS, 0, NULL);
    int64_t began = twi_now_ns();
    CHECK_EQ(result_of(peer, ECHO).code, 0);
    CHECK(twi_now_ns() - began >= 1200 * MS); /* two thirds */
    CHECK_EQ(atomic_load(&connects), 3);
    tw_peer_close(peer);

    script_set(2, ports.address[2], HANGS);
    peer = open_with(ports.all, 60 * MS, 0, NULL);
    static const int codes[] = {ETIMEDOUT, ETIMEDOUT, ENETUNREACH, ETIMEDOUT};
    for (int i = 0; i < 4; i++) {
        began = twi_now_ns();
        tw_event result = result_of(peer, ECHO);
        CHECK_EQ(result.code, codes[i]);
        CHECK_EQ(result.phase, TW_PHASE_CONNECT);
        CHECK(result.received_ns - began >= 60 * MS);
    }
    /* All three each time, unless the machine stood still meanwhile. */
    CHECK(atomic_load(&connects) >= 3 + 4);
    CHECK(atomic_load(&connects) <= 3 + 4 * 3);
    tw_peer_close(peer);
    server_end(&ports.server);
    script_clear();
}

/* C5: closing the peer cancels what connects. */
static void
case_cancelled(void)
{
    struct ports ports;
    tw_id inbox;
    script_clear();
    ports_open(&ports, 2);
    script_set(0, ports.address[0], HANGS);
    script_set(1, ports.address[1], HANGS);
    MUST(tw_inbox_open(&inbox) == 0);
    for (int i = 0; i < 10; i++) {
        /* Also while it changes from one address to the next. */
        tw_id peer = open_with(ports.all, (1 + i) * 2 * MS, 0, NULL);
        submit(peer, ECHO, "", inbox, 1);
        poll(NULL, 0, i);
        CHECK_EQ(tw_peer_close(peer), 0);
        tw_event event = take_event(inbox);
        CHECK(event.code == ECANCELED || event.code == ETIMEDOUT);
        CHECK_EQ(event.sent, TW_SENT_NONE);
    }
    tw_inbox_close(inbox);
    server_end(&ports.server);
    script_clear();
}

/* ------------------------------------------------------------- handshakes */

/* A socket of the test's own, with handshakes that do as they are told. */
static _Atomic int transport_says, application_says; /* 0, TWI_AGAIN, -errno */
static _Atomic int transport_asked, application_asked, was_ready;
static _Atomic int probe_code, probe_ended;

static int
scripted_transport(struct twi_socket *sock)
{
    (void)sock;
    atomic_fetch_add(&transport_asked, 1);
    return atomic_load(&transport_says);
}

static const tw_socket_options no_options;
static struct twi_transport scripted; /* filled in before the core opens */

static int
scripted_application(struct twi_socket *sock)
{
    CHECK_EQ(load_seq_cst(&sock->connected), 0);
    atomic_fetch_add(&application_asked, 1);
    return atomic_load(&application_says);
}

static void
scripted_ready(struct twi_socket *sock, int64_t now_ns)
{
    (void)sock, (void)now_ns;
    atomic_fetch_add(&was_ready, 1);
}

static int
scripted_timed_out(struct twi_socket *sock)
{
    (void)sock;
    return ETIMEDOUT;
}

static void
own_failed(struct twi_socket *sock, int code)
{
    twi_connect_step(&sock->connect, TWI_C_LOST);
    twi_calls_lost(sock, code);
}

static const struct twi_socket_hooks own_hooks = {
    .readable = twi_reader_run,
    .connect = twi_connect_run,
    .wanted = twi_connect_want,
    .failed = own_failed,
    .sent = twi_call_sent,
    .sending = twi_call_sending,
};

static const struct twi_connect_ops own_ops = {
    .handshake = scripted_application,
    .ready = scripted_ready,
    .timed_out = scripted_timed_out,
};

static void
probe_answered(uint64_t cookie, int code)
{
    CHECK_EQ(cookie, 77);
    atomic_store(&probe_code, code);
    atomic_fetch_add(&probe_ended, 1);
}

static void
handshake(const struct twi_addr *addrs, uint32_t n, int transport,
          int application, int64_t timeout_ns, int expected)
{
    atomic_store(&transport_says, transport);
    atomic_store(&application_says, application);
    atomic_store(&transport_asked, 0);
    atomic_store(&application_asked, 0);
    atomic_store(&was_ready, 0);
    atomic_store(&probe_ended, 0);
    atomic_store(&connects, 0);
    struct twi_socket *sock = twi_socket_open(TWI_CLIENT_SIDE, &own_hooks, 0);
    MUST(sock);
    sock->transport = &scripted;
    sock->connect.ops = &own_ops;
    sock->connect.addrs = addrs;
    sock->connect.n = n;
    sock->connect.timeout_ns = timeout_ns;
    sock->connect.options = &no_options;
    twi_socket_publish(sock);
    int64_t now = twi_now_ns();
    twi_client_probe(sock, client_methods[ECHO], "hello", 5, now + SOON, now,
                   probe_answered, 77);
    if (transport == TWI_AGAIN || application == TWI_AGAIN) {
        /* Nothing leaves before the hands are shaken; another event, any,
         * goes on with it. */
        EVENTUALLY(atomic_load(transport == TWI_AGAIN ? &transport_asked
                                                      : &application_asked));
        if (!timeout_ns) {
            CHECK_EQ(atomic_load(&was_ready), 0);
            CHECK(!twi_wstack_idle(&sock->ws));
            atomic_store(&transport_says, 0);
            atomic_store(&application_says, 0);
            twi_socket_again(sock, TWI_AGAIN_CONNECT);
        }
    }
    EVENTUALLY(atomic_load(&probe_ended) == 1);
    CHECK_EQ(atomic_load(&probe_code), expected);
    CHECK_EQ(atomic_load(&was_ready), expected == 0);
    twi_socket_fail(sock, TW_ECLOSE, TW_PHASE_NONE);
    twi_socket_unref(sock);
}

static void
case_handshakes(void)
{
    struct ports ports;
    struct twi_addr addrs[2];
    script_clear();
    ports_open(&ports, 2);
    for (int i = 0; i < 2; i++)
        MUST(twi_addr_parse(ports.address[i], &addrs[i]) == 0);
    handshake(addrs, 1, 0, 0, 0, 0);
    CHECK_EQ(atomic_load(&transport_asked), 1);
    CHECK_EQ(atomic_load(&application_asked), 1);
    handshake(addrs, 1, TWI_AGAIN, 0, 0, 0);
    handshake(addrs, 1, 0, TWI_AGAIN, 0, 0);
    CHECK_EQ(atomic_load(&transport_asked), 1);
    /* A transport that fails: the next address; a server that refuses: not. */
    handshake(addrs, 2, -EPROTO, 0, 0, EPROTO);
    CHECK_EQ(atomic_load(&connects), 2);
    CHECK_EQ(atomic_load(&application_asked), 0);
    handshake(addrs, 2, 0, -EACCES, 0, EACCES);
    CHECK_EQ(atomic_load(&connects), 1);
    /* The deadline of connecting is theirs, too. */
    handshake(addrs, 2, TWI_AGAIN, 0, 400 * MS, ETIMEDOUT);
    CHECK_EQ(atomic_load(&connects), 2);
    handshake(addrs, 2, 0, TWI_AGAIN, 400 * MS, ETIMEDOUT);
    CHECK_EQ(atomic_load(&connects), 1);
    server_end(&ports.server);
    script_clear();
}

static const struct test_case cases[] = {
    {"table", case_table},
    {"several_addresses", case_several_addresses},
    {"address_lists", case_address_lists},
    {"errnos", case_errnos},
    {"shares", case_shares},
    {"cancelled", case_cancelled},
    {"handshakes", case_handshakes},
    {0},
};

int
main(int argc, char **argv)
{
    twi_sys.connect = scripted_connect;
    scripted = twi_transport_plain;
    scripted.handshake = scripted_transport;
    return cases_main(cases, argc, argv);
}
