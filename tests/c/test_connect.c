/* The connect machine, arrow by arrow and against scripted connects; the lives
 * of a peer's socket; health checks. */
#include "bed.h"

#include "call.h"
#include "client.h"
#include "peer.h"
#include "pressure.h"
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

/* ------------------------------------------------------ scripted connects */

enum { SERVERS = 4, HANGS = -1, CONNECTS = 64 };

/* What connecting to one of these ports comes to. */
static struct {
    _Atomic int port, outcome; /* an errno, HANGS, or 0: connects */
} script[SERVERS];
static _Atomic int connects;          /* so many were begun ... */
static _Atomic int tried[CONNECTS];   /* ... to these ports */

static int
scripted_connect(int fd, const struct sockaddr *to, socklen_t len)
{
    int port = to->sa_family == AF_INET
                   ? ntohs(((const struct sockaddr_in *)(const void *)to)->sin_port)
                   : 0;
    int n = atomic_fetch_add(&connects, 1);
    if (n < CONNECTS)
        atomic_store(&tried[n], port);
    for (int i = 0; port && i < SERVERS; i++)
        if (atomic_load(&script[i].port) == port &&
            atomic_load(&script[i].outcome)) {
            int outcome = atomic_load(&script[i].outcome);
            errno = outcome == HANGS ? EINPROGRESS : outcome;
            return -1;
        }
    return connect(fd, to, len);
}

static int
port_of(const char *address)
{
    return atoi(strrchr(address, ':') + 1);
}

static void
script_set(int i, const char *address, int outcome)
{
    atomic_store(&script[i].port, port_of(address));
    atomic_store(&script[i].outcome, outcome);
}

static void
script_clear(void)
{
    for (int i = 0; i < SERVERS; i++)
        atomic_store(&script[i].port, 0);
    atomic_store(&connects, 0);
}

/* Several ports of one server. */
struct ports {
    struct bed_server server;
    char address[SERVERS][128], all[SERVERS * 128];
};

static void
ports_open(struct ports *ports, int n)
{
    server_start(&ports->server, "127.0.0.1:0", 1, NULL);
    snprintf(ports->address[0], 128, "%s", ports->server.bound);
    for (int i = 1; i < n; i++)
        MUST(tw_listen(ports->server.id, "127.0.0.1:0", TW_PROTO_BAIDU_STD, 16,
                       ports->address[i], 128) == 0);
    ports->all[0] = 0;
    for (int i = 0; i < n; i++) {
        strcat(ports->all, i ? "," : "");
        strcat(ports->all, ports->address[i]);
    }
}

static tw_id
open_with(const char *address, int64_t connect_timeout_ns, int64_t health_ns,
          const char *probe)
{
    tw_peer_options options = default_peer;
    tw_id peer = 0;
    options.connect_timeout_ns = connect_timeout_ns;
    options.health_interval_ns = health_ns;
    options.probe_service = probe ? "bed.Service" : NULL;
    options.probe_method = probe;
    options.probe_body = "are you there";
    options.probe_body_len = 13;
    MUST(tw_peer_open(address, &options, &peer) == 0);
    return peer;
}

/* One call; its result, of which only the numbers are good. */
static tw_event
result_of(tw_id peer, int method)
{
    static char scratch[4096];
    tw_event result = {0};
    CHECK_EQ(call_full(peer, method, "x", 1, NULL, SOON, scratch,
                       sizeof scratch, &result),
             0);
    return result;
}

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

static tw_event
take_result(tw_id inbox)
{
    tw_event event = {0};
    int more;
    while (tw_inbox_wait(inbox, SOON, 1) == 0)
        if (tw_drain(inbox, 0, &event, 1, &more))
            return event;
    CHECK(!"a result in time");
    return event;
}

/* C5: closing the peer cancels what connects. */
static void
case_cancelled(void)
{
    struct ports ports;
    tw_id inbox, id;
    script_clear();
    ports_open(&ports, 2);
    script_set(0, ports.address[0], HANGS);
    script_set(1, ports.address[1], HANGS);
    MUST(tw_inbox_open(&inbox) == 0);
    for (int i = 0; i < 10; i++) {
        /* Also while it changes from one address to the next. */
        tw_id peer = open_with(ports.all, (1 + i) * 2 * MS, 0, NULL);
        CHECK_EQ(tw_submit(peer, client_methods[ECHO], "", 0, NULL, 0, inbox, 1,
                           0, &id),
                 0);
        poll(NULL, 0, i);
        CHECK_EQ(tw_peer_close(peer), 0);
        tw_event event = take_result(inbox);
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

/* ------------------------------------------------------------- the lives */

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
            CHECK_EQ(tw_submit(peer, client_methods[ECHO], "x", 1, NULL, 0,
                               inbox, i, 0, &id[i]),
                     0);
        CHECK_EQ(tw_cancel(id[1]), 0);
        CHECK_EQ(take_result(inbox).code, ECANCELED);
        if (round == 0) {
            twi_socket_unref(held);
            for (uint64_t i = 0; i < 3; i += 2) {
                tw_event event = take_result(inbox);
                CHECK_EQ(event.code, 0);
                CHECK_EQ(event.cookie, i);
                CHECK_EQ(event.socket, socket);
            }
        } else { /* closed first: they end, unsent */
            tw_peer_close(peer);
            for (int i = 0; i < 2; i++) {
                tw_event event = take_result(inbox);
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
    tw_id inbox, id, peer;
    server_start(&server, "127.0.0.1:0", 1, NULL);
    MUST(tw_inbox_open(&inbox) == 0);
    options.max_unwritten = 2 * TWI_MESSAGE_COST;
    MUST(tw_peer_open(server.bound, &options, &peer) == 0);
    tw_id socket = result_of(peer, ECHO).socket;
    struct twi_socket *held = twi_socket_address(socket);
    MUST(held);
    CHECK_EQ(tw_socket_fail(socket, TW_ECLOSE), 0);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(tw_submit(peer, client_methods[ECHO], "x", 1, NULL, 0, inbox,
                           (uint64_t)i, 0, &id),
                 0);
    tw_event event = take_result(inbox);
    CHECK_EQ(event.code, TW_EOVERCROWDED);
    CHECK_EQ(event.cookie, 2);
    twi_socket_unref(held);
    for (int i = 0; i < 2; i++)
        CHECK_EQ(take_result(inbox).code, 0);
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

/* --------------------------------------------------------- health checks */

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

static int
log_has(int kind)
{
    tw_log_entry entries[64];
    int n = tw_log_take(entries, 64, 0), found = 0;
    for (int i = 0; i < n; i++)
        found |= entries[i].kind == kind;
    return found;
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
    while (log_has(TW_LOG_PEER_UP))
        ;
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
        int logged = 0;
        EVENTUALLY(logged || (logged = log_has(TW_LOG_PEER_UP)));
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
    unsigned long long seed = check_seed();
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

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {
    {"table", case_table},
    {"several_addresses", case_several_addresses},
    {"address_lists", case_address_lists},
    {"errnos", case_errnos},
    {"shares", case_shares},
    {"cancelled", case_cancelled},
    {"handshakes", case_handshakes},
    {"same_id", case_same_id},
    {"waiting", case_waiting},
    {"waiting_limit", case_waiting_limit},
    {"stale_events", case_stale_events},
    {"closed_last", case_closed_last},
    {"delays", case_delays},
    {"down_and_up", case_down_and_up},
    {"probe", case_probe},
    {"closed_while_down", case_closed_while_down},
};

int
main(int argc, char **argv)
{
    twi_sys.connect = scripted_connect;
    twi_sys.epoll_ctl = seen_epoll_ctl;
    twi_sys.close = seen_close;
    scripted = twi_transport_plain;
    scripted.handshake = scripted_transport;
    core_open();
    client_methods_open();
    int fds = count_fds();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int wanted = argc == 1, failed = check_failures;
        for (int j = 1; j < argc; j++)
            wanted |= !strcmp(argv[j], cases[i].name);
        if (!wanted)
            continue;
        int64_t began = twi_now_ns();
        cases[i].run();
        nothing_is_left(fds);
        fprintf(stderr, "%-22s %5.2f s%s\n", cases[i].name,
                (double)(twi_now_ns() - began) / 1e9,
                check_failures == failed ? "" : "  FAILED");
    }
    tw_close();
    return check_done();
}
