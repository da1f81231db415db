/* Clients whose servers refuse, hang, misbehave, go away and come back. */
#include "cases.h"
#include "clients.h"

static void
case_refused(void)
{
    char bound[128], scratch[64];
    tw_event result;
    close(raw_socket("127.0.0.1:0", 1, bound, 0));
    tw_id peer = peer_open(bound);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(call_full(peer, ECHO, "", 0, NULL, SOON, scratch,
                           sizeof scratch, &result),
                 0);
        CHECK_EQ(result.code, ECONNREFUSED);
        CHECK_EQ(result.phase, TW_PHASE_CONNECT);
        CHECK_EQ(result.sent, TW_SENT_NONE);
    }
    tw_peer_close(peer);
    peer = peer_open("unix:/nonexistent/tidewire.sock");
    CHECK_EQ(call_full(peer, ECHO, "", 0, NULL, SOON, scratch, sizeof scratch,
                       &result),
             0);
    CHECK_EQ(result.code, ENOENT);
    CHECK_EQ(result.phase, TW_PHASE_CONNECT);
    tw_peer_close(peer);
    tw_id none;
    CHECK_EQ(tw_peer_open("localhost:80", &default_peer, &none), -EINVAL);
}

static void
case_connect_timeout(void)
{
    /* A listener whose queue is full drops what comes; connecting then hangs. */
    char bound[128], scratch[64];
    struct twi_addr addr;
    tw_event result;
    int listener = raw_socket("127.0.0.1:0", 1, bound, 0), fillers[8], n = 0;
    listen(listener, 0);
    twi_addr_parse(bound, &addr);
    for (;;) {
        MUST(n < 8);
        fillers[n] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        connect(fillers[n], (struct sockaddr *)&addr.any, addr.len);
        struct pollfd one = {fillers[n++], POLLOUT, 0};
        if (poll(&one, 1, 100) == 0)
            break; /* this one hangs */
    }
    tw_peer_options options = default_peer;
    options.connect_timeout_ns = 40 * MS;
    tw_id peer;
    MUST(tw_peer_open(bound, &options, &peer) == 0);
    static const int codes[] = {ETIMEDOUT, ETIMEDOUT, ENETUNREACH, ETIMEDOUT};
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(call_full(peer, ECHO, "", 0, NULL, SOON, scratch,
                           sizeof scratch, &result),
                 0);
        CHECK_EQ(result.code, codes[i]);
        CHECK_EQ(result.phase, TW_PHASE_CONNECT);
        CHECK_EQ(result.sent, TW_SENT_NONE);
    }
    /* A call's own deadline while it connects: the attempt goes on. */
    CHECK_EQ(call(peer, ECHO, "", 0, 10 * MS), TW_ERPCTIMEDOUT);
    tw_peer_close(peer);
    /* Closing the peer ends what connects. */
    peer = peer_open(bound);
    tw_id inbox;
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    submit(peer, ECHO, "", inbox, 1);
    tw_peer_close(peer);
    tw_event event = take_event(inbox);
    CHECK_EQ(event.code, ECANCELED);
    CHECK_EQ(event.sent, TW_SENT_NONE);
    tw_inbox_close(inbox);
    for (int i = 0; i < n; i++)
        close(fillers[i]);
    close(listener);
}

enum behaviour {
    CLOSE_AT_ONCE,
    CLOSE_AFTER_REQUEST,
    RESET,
    GARBAGE,
    HALF_A_RESPONSE,
    RESPONSE_FOR_ANOTHER,
    TWO_RESPONSES,
    RESPONSE_TOO_LARGE,
    RESPONSE_COMPRESSED,
    RESPONSE_WITH_META,
    BEHAVIOURS
};

static void
respond(int fd, int64_t correlation_id, const char *meta, size_t cut_off)
{
    uint8_t out[256];
    struct twi_std_response response = {
        .correlation_id = correlation_id,
        .extra_meta = {(const uint8_t *)meta, strlen(meta)},
        .body_len = 5};
    size_t n = twi_std_pack_response(out, sizeof out, &response);
    memcpy(out + n, "hello", 5);
    raw_send(fd, out, n + 5 - cut_off);
}

static void
misbehave(int listener, tw_id peer, tw_id inbox, enum behaviour behaviour)
{
    tw_id id;
    uint64_t stale = counter(TWI_STALE_RESPONSES);
    CHECK_EQ(tw_submit(peer, client_methods[ECHO], "body", 4, NULL,
                       twi_now_ns() + SOON, inbox, 1, 0, &id),
             0);
    int fd = accept(listener, NULL, NULL);
    MUST(fd >= 0);
    struct linger now = {1, 0};
    int answered = 0, code = TW_EEOF;
    if (behaviour != CLOSE_AT_ONCE) {
        /* The whole request: closing on unread bytes would reset. */
        uint8_t request[512];
        CHECK_EQ(raw_recv(fd, request, TWI_STD_HEADER), TWI_STD_HEADER);
        size_t rest = (size_t)request[6] << 8 | request[7];
        CHECK_EQ(raw_recv(fd, request, rest), rest);
    }
    switch (behaviour) {
    case RESET:
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
        code = ECONNRESET;
        break;
    case GARBAGE:
        raw_send(fd, "HTTP/1.1 200 OK\r\n\r\n", 19);
        CHECK(raw_ends(fd));
        code = EINVAL;
        break;
    case HALF_A_RESPONSE:
        respond(fd, (int64_t)id, "", 3);
        break;
    case RESPONSE_FOR_ANOTHER:
        respond(fd, (int64_t)id + 1, "", 0);
        break;
    case TWO_RESPONSES:
        respond(fd, (int64_t)id, "", 0);
        respond(fd, (int64_t)id, "", 0);
        answered = 1;
        break;
    case RESPONSE_TOO_LARGE:
        raw_send(fd, "PRPC\xff\xff\xff\xf0\0\0\0\1", 12);
        CHECK(raw_ends(fd));
        code = EINVAL;
        break;
    case RESPONSE_COMPRESSED: /* field 3: compress_type 1 */
        respond(fd, (int64_t)id, "\x18\x01", 0);
        answered = 1;
        break;
    case RESPONSE_WITH_META: /* a user field "a": "b" */
        respond(fd, (int64_t)id, "\x4a\x06\x0a\x01\x61\x12\x01\x62", 0);
        answered = 1;
        break;
    default:
        break;
    }
    close(fd);
    tw_event event = take_event(inbox);
    CHECK_EQ(event.id, id);
    CHECK_EQ(event.coded, behaviour == RESPONSE_COMPRESSED);
    CHECK_EQ(event.meta_len > 0, behaviour == RESPONSE_WITH_META ||
                                     behaviour == RESPONSE_COMPRESSED);
    if (answered) {
        CHECK_EQ(event.code, 0);
        CHECK_EQ(event.body_len, 5);
        CHECK(event.body && !memcmp(event.body, "hello", 5));
    } else if (behaviour == CLOSE_AT_ONCE) {
        /* Its request met a closed socket: which error depends on time. */
        CHECK(event.code == TW_EEOF || event.code == ECONNRESET ||
              event.code == EPIPE);
    } else {
        CHECK_EQ(event.code, code);
        CHECK_EQ(event.phase, TW_PHASE_READ);
        CHECK_EQ(event.sent, TW_SENT_ALL);
    }
    if (behaviour == RESPONSE_FOR_ANOTHER || behaviour == TWO_RESPONSES)
        EVENTUALLY(counter(TWI_STALE_RESPONSES) == stale + 1);
    EVENTUALLY(counter(TWI_CONNECTIONS_OUT) == 0);
}

static void
case_bad_servers(void)
{
    char bound[128];
    int listener = raw_socket("127.0.0.1:0", 1, bound, 0);
    tw_id inbox;
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    for (int i = 0; i < BEHAVIOURS; i++) {
        tw_id peer = peer_open(bound);
        misbehave(listener, peer, inbox, (enum behaviour)i);
        tw_peer_close(peer);
    }
    tw_inbox_close(inbox);
    close(listener);
}

/* A call that waits for ever must notice that its connection was failed by
 * another thread, whoever happens to poll. */
static void
case_failed_while_polling(void)
{
    char bound[128];
    int listener = raw_socket("127.0.0.1:0", 1, bound, 0);
    for (int i = 0; i < 6; i++) {
        struct caller callers[2];
        tw_id peer = peer_open(bound);
        for (int j = 0; j < 2; j++) {
            callers[j].peer = peer;
            MUST(!pthread_create(&callers[j].thread, NULL, call_for_ever,
                                 &callers[j]));
        }
        int fd = accept(listener, NULL, NULL);
        char byte;
        CHECK_EQ(raw_recv(fd, &byte, 1), 1);
        if (i % 2) /* let everybody fall asleep where they are */
            poll(NULL, 0, 40);
        CHECK_EQ(tw_peer_close(peer), 0);
        for (int j = 0; j < 2; j++) {
            pthread_join(callers[j].thread, NULL);
            CHECK(callers[j].good == ECANCELED || callers[j].good == -TW_STALE);
        }
        close(fd);
    }
    close(listener);
}

/* A server that goes and comes back at the same address, at once. */
static void
reconnect_to(const char *address)
{
    struct bed_server server;
    char bound[128];
    server_start(&server, address, 1, NULL);
    snprintf(bound, sizeof bound, "%s", server.bound);
    tw_id peer = peer_open(bound);
    for (int i = 0; i < 20; i++) {
        /* The old connection may be found dead only by using it. */
        int code = call(peer, ECHO, "x", 1, SOON);
        if (code)
            code = call(peer, ECHO, "x", 1, SOON);
        CHECK_EQ(code, 0);
        server_end(&server);
        server_start(&server, bound, 1, NULL);
    }
    tw_peer_close(peer);
    server_end(&server);
}

static void
case_reconnect(void)
{
    reconnect_to("127.0.0.1:0");
    reconnect_to(unix_address);
}

static const struct test_case cases[] = {
    {"refused", case_refused},
    {"connect_timeout", case_connect_timeout},
    {"bad_servers", case_bad_servers},
    {"failed_while_polling", case_failed_while_polling},
    {"reconnect", case_reconnect},
    {0},
};

int
main(int argc, char **argv)
{
    seed = check_seed();
    plant_faults(seed);
    return cases_main(cases, argc, argv);
}
