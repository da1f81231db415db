/* The whole core in one process, through api.h: servers with worker threads,
 * clients of every kind, peers that misbehave, faults of the system.  After
 * each case nothing may be left: no object, no descriptor, no byte. */
#include "bed.h"

#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/resource.h>

static unsigned long long seed;
static char unix_address[64];

static uint8_t *
pattern(size_t n)
{
    uint8_t *p = malloc(n + 1);
    MUST(p);
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)(check_random(&seed) >> 32);
    return p;
}

/* ------------------------------------------------------- calls that succeed */

static void
echo_sizes(const char *address)
{
    static const size_t sizes[] = {0, 1, 100, 4000, 8160, 70000, 3 << 20};
    struct bed_server server;
    static char scratch[65536];
    server_start(&server, address, 2, NULL);
    tw_id peer = peer_open(server.bound);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (size_t j = 0; j < sizeof sizes / sizeof *sizes; j++) {
            uint8_t *body = pattern(sizes[i]), *tail = pattern(sizes[j]);
            tw_extra extra = {.attachment = (char *)tail,
                              .attachment_len = sizes[j]};
            tw_event result;
            int rc = call_full(peer, ECHO, (char *)body, sizes[i], &extra, 0,
                               scratch, sizeof scratch, &result);
            CHECK_EQ(rc, 0);
            CHECK_EQ(result.code, 0);
            CHECK_EQ(result.sent, TW_SENT_ALL);
            CHECK_EQ(result.body_len, sizes[i]);
            CHECK_EQ(result.attachment_len, sizes[j]);
            CHECK(!sizes[i] || !memcmp(result.body, body, sizes[i]));
            CHECK(!sizes[j] || !memcmp(result.attachment, tail, sizes[j]));
            CHECK((result.block != NULL) ==
                  (sizes[i] + sizes[j] > sizeof scratch));
            if (result.block)
                tw_release(result.block);
            free(body);
            free(tail);
        }
    CHECK_EQ(tw_peer_close(peer), 0);
    CHECK_EQ(tw_peer_close(peer), -TW_STALE);
    server_end(&server);
}

static void
case_echo(void)
{
    echo_sizes("127.0.0.1:0");
    int fd = socket(AF_INET6, SOCK_STREAM, 0);
    struct sockaddr_in6 any = {.sin6_family = AF_INET6,
                               .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int have_v6 = fd >= 0 && !bind(fd, (struct sockaddr *)&any, sizeof any);
    close(fd);
    if (have_v6)
        echo_sizes("[::1]:0");
    else
        fprintf(stderr, "no IPv6 here: left out\n");
    echo_sizes(unix_address);
    CHECK(access(unix_address + 5, F_OK)); /* the path is gone again */
}

struct caller {
    pthread_t thread;
    tw_id peer;
    int calls, method;
    size_t size;
    unsigned long long seed;
    long good;
};

static void *
call_often(void *arg)
{
    struct caller *me = arg;
    char *body = malloc(me->size + 1);
    memset(body, 'x', me->size + 1);
    for (int i = 0; i < me->calls; i++) {
        size_t n = me->size ? check_random(&me->seed) % me->size : 0;
        snprintf(body, me->size + 1, "%llu", me->seed);
        int code = call(me->peer, me->method, body, n, SOON);
        CHECK_EQ(code, 0);
        me->good += code == 0;
    }
    free(body);
    return NULL;
}

/* n threads that make blocking calls on one connection. */
static void
call_in_parallel(tw_id peer, int n, int calls, int method, size_t size)
{
    struct caller callers[8];
    for (int i = 0; i < n; i++) {
        callers[i] = (struct caller){.peer = peer,
                                     .calls = calls,
                                     .method = method,
                                     .size = size,
                                     .seed = check_random(&seed) | 1};
        MUST(!pthread_create(&callers[i].thread, NULL, call_often, &callers[i]));
    }
    for (int i = 0; i < n; i++) {
        pthread_join(callers[i].thread, NULL);
        CHECK_EQ(callers[i].good, calls);
    }
}

static void
case_threads(void)
{
    struct bed_server server;
    server_start(&server, "127.0.0.1:0", 3, NULL);
    tw_id peer = peer_open(server.bound);
    call_in_parallel(peer, 4, 300, ECHO, 3000);
    CHECK_EQ(tw_server_connections(server.id), 1);
    CHECK_EQ(atomic_load(&server.runs), 1200);
    tw_peer_close(peer);
    server_end(&server);
}

/* ------------------------------------------------------- calls that fail */

static void
case_codes(void)
{
    struct bed_server server;
    char scratch[512];
    tw_event result;
    server_start(&server, "127.0.0.1:0", 1, NULL);
    tw_id peer = peer_open(server.bound);
    static const struct {
        const char *service, *method;
        int code;
    } table[] = {
        {"Nothing", "echo", TW_ENOSERVICE},
        {"bed.Service", "nothing", TW_ENOMETHOD},
        {"no.such.Service", "echo", TW_ENOMETHOD},
        {"Service", "echo", 0}, /* the name without its package */
        {"Service", "nothing", TW_ENOMETHOD},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        int method = tw_client_method(table[i].service, table[i].method);
        CHECK(method >= 0);
        CHECK_EQ(ended(tw_call(peer, method, "x", 1, NULL, twi_now_ns() + SOON,
                               0, scratch, sizeof scratch, &result)),
                 0);
        CHECK_EQ(result.code, table[i].code);
        CHECK_EQ(result.phase, table[i].code ? TW_PHASE_PEER : TW_PHASE_NONE);
        CHECK_EQ(result.text_len > 0, table[i].code != 0);
    }
    CHECK_EQ(tw_call(peer, 12345, "", 0, NULL, 0, 0, scratch, 1, &result),
             -EINVAL);
    CHECK_EQ(tw_call(peer + 1, 0, "", 0, NULL, 0, 0, scratch, 1, &result),
             -TW_STALE);

    CHECK_EQ(call_full(peer, FAIL, "so sad", 6, NULL, SOON, scratch,
                       sizeof scratch, &result),
             0);
    CHECK_EQ(result.code, 42);
    CHECK_EQ(result.phase, TW_PHASE_PEER);
    CHECK_EQ(result.text_len, 6);
    CHECK(!memcmp(result.text, "so sad", 6));

    CHECK_EQ(call_full(peer, HANG_UP, "", 0, NULL, SOON, scratch,
                       sizeof scratch, &result),
             0);
    CHECK_EQ(result.code, TW_EEOF);
    CHECK_EQ(result.phase, TW_PHASE_READ);
    CHECK_EQ(result.sent, TW_SENT_ALL);
    /* The next call makes a new connection. */
    CHECK_EQ(call(peer, ECHO, "again", 5, SOON), 0);
    tw_peer_close(peer);
    server_end(&server);
}

/* Waits for the one event an inbox is to get. */
static tw_event
take_event(tw_id inbox)
{
    tw_event event = {0};
    int more;
    while (tw_inbox_wait(inbox, SOON, 1) == 0) {
        int n = tw_drain(inbox, 0, &event, 1, &more);
        if (n)
            return event;
    }
    CHECK(!"an event in time");
    return event;
}

static void
case_deadline(void)
{
    struct bed_server server;
    tw_id inbox, id;
    server_start(&server, "127.0.0.1:0", 1, NULL);
    tw_id peer = peer_open(server.bound);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    uint64_t expired = counter(TWI_EXPIRED);
    uint64_t late = counter(TWI_STALE_RESPONSES);

    /* A blocking call times itself out, a submitted one by the loop. */
    CHECK_EQ(call(peer, GATE, "", 0, 30 * MS), TW_ERPCTIMEDOUT);
    int64_t began = twi_now_ns();
    CHECK_EQ(tw_submit(peer, client_methods[ECHO], "", 0, NULL, began + 30 * MS,
                       inbox, 7, 0, &id),
             0);
    tw_event event = take_event(inbox);
    CHECK_EQ(event.kind, TW_RESULT);
    CHECK_EQ(event.code, TW_ERPCTIMEDOUT);
    CHECK_EQ(event.cookie, 7);
    CHECK_EQ(event.id, id);
    CHECK(twi_now_ns() - began >= 30 * MS);
    /* A deadline that has passed already. */
    CHECK_EQ(call(peer, ECHO, "", 0, -1), TW_ERPCTIMEDOUT);

    /* The one worker stands at the gate; what waited in the queue is not run
     * any more, and answered for nobody. */
    EVENTUALLY(tw_server_in_flight(server.id) == 3);
    poll(NULL, 0, 50); /* from there on the server counts their 30 ms */
    open_gate(&server);
    EVENTUALLY(tw_server_in_flight(server.id) == 0);
    CHECK_EQ(counter(TWI_EXPIRED) - expired, 2);
    EVENTUALLY(counter(TWI_STALE_RESPONSES) - late == 3);
    CHECK_EQ(atomic_load(&server.runs), 1);
    tw_inbox_close(inbox);
    tw_peer_close(peer);
    server_end(&server);
}

static void
case_cancel(void)
{
    struct bed_server server;
    tw_id inbox, id;
    server_start(&server, "127.0.0.1:0", 1, NULL);
    tw_id peer = peer_open(server.bound);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    CHECK_EQ(tw_submit(peer, client_methods[GATE], "", 0, NULL, 0, inbox, 1, 0,
                       &id),
             0);
    await_gate(&server, 1);
    CHECK_EQ(tw_cancel(id), 0);
    CHECK_EQ(tw_cancel(id), -TW_STALE);
    tw_event event = take_event(inbox);
    CHECK_EQ(event.code, ECANCELED);
    CHECK_EQ(event.id, id);
    open_gate(&server);
    EVENTUALLY(tw_server_in_flight(server.id) == 0);
    int more;
    CHECK_EQ(tw_drain(inbox, 1, &event, 1, &more), 0);

    /* A call whose inbox closes has nobody to tell. */
    close_gate(&server);
    CHECK_EQ(tw_submit(peer, client_methods[GATE], "", 0, NULL, 0, inbox, 1, 0,
                       &id),
             0);
    CHECK_EQ(tw_inbox_close(inbox), 0);
    CHECK_EQ(tw_inbox_close(inbox), -TW_STALE);
    CHECK_EQ(tw_submit(peer, client_methods[ECHO], "", 0, NULL, 0, inbox, 1, 0,
                       &id),
             -TW_STALE);
    open_gate(&server);
    tw_peer_close(peer);
    server_end(&server);
}

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
    tw_id inbox, id;
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    CHECK_EQ(tw_submit(peer, client_methods[ECHO], "", 0, NULL, 0, inbox, 1, 0,
                       &id),
             0);
    tw_peer_close(peer);
    tw_event event = take_event(inbox);
    CHECK_EQ(event.code, ECANCELED);
    CHECK_EQ(event.sent, TW_SENT_NONE);
    tw_inbox_close(inbox);
    for (int i = 0; i < n; i++)
        close(fillers[i]);
    close(listener);
}

/* ------------------------------------------------- servers that misbehave */

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
        code = TW_ERESPONSE;
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
    if (behaviour == RESPONSE_COMPRESSED)
        CHECK(event.text_len > 0 && event.body_len == 0);
    CHECK_EQ(event.meta_len > 0, behaviour == RESPONSE_WITH_META);
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
static void *
call_for_ever(void *arg)
{
    struct caller *me = arg;
    me->good = call(me->peer, ECHO, "", 0, 0);
    return NULL;
}

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

/* ------------------------------------------------- clients that misbehave */

static void
case_raw_bytes(void)
{
    struct bed_server server;
    tw_server_options options = default_options;
    uint8_t frame[4096];
    struct twi_std_msg msg;
    options.max_message = 1000;
    server_start(&server, "127.0.0.1:0", 2, &options);
    static const struct {
        const char *bytes;
        size_t n;
    } bad[] = {
        {"GET / HTTP/1.1\r\n\r\n", 18},
        {"PRPX", 4},
        {"\0", 1},
        {"PRPC\0\0\3\xe9\0\0\0\1", 12},     /* one byte too large */
        {"PRPC\xff\xff\xff\xff\0\0\0\1", 12},
        {"PRPC\0\0\0\4\0\0\0\5", 12},       /* meta larger than the body */
        {"PRPC\0\0\0\4\0\0\0\4\xff\xff\xff\xff", 16}, /* no protobuf */
    };
    uint64_t errors = counter(TWI_ERRORS_PROTOCOL);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int fd = raw_connect(server.bound);
        raw_send(fd, bad[i].bytes, bad[i].n);
        CHECK(raw_ends(fd));
        close(fd);
    }
    CHECK_EQ(counter(TWI_ERRORS_PROTOCOL) - errors, sizeof bad / sizeof *bad);
    tw_log_entry entries[TW_HISTOGRAM_CELLS];
    int n = tw_log_take(entries, TW_HISTOGRAM_CELLS, 0), found = 0;
    for (int i = 0; i < n; i++)
        found += entries[i].kind == TW_LOG_BAD_BYTES &&
                 strstr(entries[i].detail,
                        fault.storm == STORM_SHORT
                            ? ": G" /* one byte was enough */
                            : "GET / HTTP/1.1\\x0d\\x0a");
    CHECK_EQ(found, 1);

    /* Every beginning of a good frame, and then the end. */
    size_t len = raw_request(frame, sizeof frame, "bed.Service", "echo", 77,
                             "hello", 5);
    for (size_t cut = 0; cut < len; cut++) {
        int fd = raw_connect(server.bound);
        raw_send(fd, frame, cut);
        if (cut % 2)
            shutdown(fd, SHUT_WR);
        else
            close(fd);
        if (cut % 2) {
            CHECK(raw_ends(fd));
            close(fd);
        }
    }
    EVENTUALLY(tw_server_connections(server.id) == 0);
    CHECK_EQ(atomic_load(&server.runs), 0);

    /* The same frame byte by byte, several times over, is understood. */
    int fd = raw_connect(server.bound), one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    for (int i = 0; i < 3; i++) {
        for (size_t j = 0; j < len; j++)
            raw_send(fd, frame + j, 1);
        uint8_t *response = raw_response(fd, &msg);
        CHECK(response);
        CHECK_EQ(msg.correlation_id, 77);
        CHECK(msg.body.n == 5 && !memcmp(msg.body.p, "hello", 5));
        free(response);
    }
    /* Many at once: each is answered once. */
    char seen[200] = {0};
    for (int i = 0; i < 200; i++) {
        len = raw_request(frame, sizeof frame, "bed.Service", "echo", i, "x", 1);
        raw_send(fd, frame, len);
    }
    for (int i = 0; i < 200; i++) {
        uint8_t *response = raw_response(fd, &msg);
        CHECK(response);
        if (!response)
            break;
        CHECK(msg.correlation_id >= 0 && msg.correlation_id < 200);
        CHECK_EQ(msg.error_code, 0);
        CHECK_EQ(seen[msg.correlation_id]++, 0);
        free(response);
    }
    /* What was asked for before the client closed its half is answered; then
     * the connection ends. */
    for (int i = 0; i < 20; i++) {
        len = raw_request(frame, sizeof frame, "bed.Service",
                          i == 19 ? "gate" : "echo", i, "x", 1);
        raw_send(fd, frame, len);
    }
    shutdown(fd, SHUT_WR);
    await_gate(&server, 1);
    open_gate(&server);
    for (int i = 0; i < 20; i++) {
        uint8_t *response = raw_response(fd, &msg);
        CHECK(response);
        free(response);
    }
    CHECK(raw_ends(fd));
    close(fd);
    server_end(&server);
}

/* Reading paused; then bytes and the end of the stream came; then it resumes:
 * the end must be seen. */
static void
case_end_while_paused(void)
{
    struct bed_server server;
    tw_server_options options = default_options;
    uint8_t frame[256];
    struct twi_std_msg msg;
    options.max_pending = 2;
    server_start(&server, "127.0.0.1:0", 2, &options);
    int fd = raw_connect(server.bound);
    uint64_t pauses = counter(TWI_READ_PAUSES);
    for (int i = 0; i < 3; i++) {
        size_t n = raw_request(frame, sizeof frame, "bed.Service", "gate", i,
                               "x", 1);
        raw_send(fd, frame, n);
    }
    EVENTUALLY(counter(TWI_READ_PAUSES) > pauses);
    size_t n = raw_request(frame, sizeof frame, "bed.Service", "gate", 3, "x", 1);
    raw_send(fd, frame, n);
    shutdown(fd, SHUT_WR);
    /* The event of these has to pass while it is paused; nothing tells. */
    poll(NULL, 0, 50);
    open_gate(&server);
    for (int i = 0; i < 4; i++) {
        uint8_t *response = raw_response(fd, &msg);
        CHECK(response);
        free(response);
    }
    CHECK(raw_ends(fd));
    close(fd);
    EVENTUALLY(tw_server_connections(server.id) == 0);
    server_end(&server);
}

/* Memory follows what arrived, not what a header says. */
static void
case_declared_length(void)
{
    struct bed_server server;
    server_start(&server, "127.0.0.1:0", 2, NULL);
    int fd = raw_connect(server.bound);
    size_t size = 100000;
    uint8_t *body = pattern(size), *frame = malloc(size + 256);
    struct twi_std_msg msg;
    tw_census c;
    for (int i = 0; i < 20; i++) { /* so that reads become large */
        size_t n = raw_request(frame, size + 256, "bed.Service", "echo", i,
                               body, size);
        raw_send(fd, frame, n);
        free(raw_response(fd, &msg));
    }
    /* 60 MiB are announced; 300000 bytes come. */
    uint64_t before = counter(TWI_BYTES_IN);
    raw_send(fd, "PRPC\x03\xc0\0\0\0\0\0\x64", 12);
    for (int i = 0; i < 3; i++)
        raw_send(fd, body, size);
    EVENTUALLY(counter(TWI_BYTES_IN) - before == 12 + 3 * size);
    raw_send(fd, body, 1);
    EVENTUALLY(counter(TWI_BYTES_IN) - before == 12 + 3 * size + 1);
    poll(NULL, 0, 5);
    tw_census_take(&c);
    CHECK(c.block_bytes < 2 << 20);
    if (c.block_bytes >= 2 << 20)
        census_print();
    close(fd);
    free(body);
    free(frame);
    server_end(&server);
}

/* ------------------------------------------------------- slow readers */

static void
case_slow_reader(void)
{
    enum { CALLS = 100 };
    struct bed_server server;
    uint8_t frame[256];
    struct twi_std_msg msg;
    char seen[CALLS] = {0};
    server_start(&server, "127.0.0.1:0", 2, NULL);
    uint64_t keep = counter(TWI_KEEPWRITE), wait = counter(TWI_WAITEPOLLOUT);
    int fd = raw_socket(server.bound, 0, NULL, 4096);
    for (int i = 0; i < CALLS; i++) {
        size_t n = raw_request(frame, sizeof frame, "bed.Service", "big", i,
                               "100000", 6);
        raw_send(fd, frame, n);
    }
    EVENTUALLY(atomic_load(&server.runs) == CALLS);
    EVENTUALLY(tw_server_in_flight(server.id) == 0);
    CHECK(counter(TWI_KEEPWRITE) > keep);
    /* The answers were pushed; whoever goes on writing comes to it. */
    EVENTUALLY(counter(TWI_WAITEPOLLOUT) > wait);
    CHECK(counter(TWI_UNWRITTEN_BYTES) > 0);
    CHECK_EQ(tw_server_stop(server.id), 0);
    CHECK_EQ(tw_server_drain(server.id, 20 * MS), -ETIMEDOUT);
    for (int i = 0; i < CALLS; i++) {
        uint8_t *response = raw_response(fd, &msg);
        CHECK(response);
        if (!response)
            break;
        CHECK_EQ(msg.error_code, 0);
        CHECK_EQ(msg.body.n, 100000);
        size_t good = 0;
        while (good < msg.body.n && msg.body.p[good] == 'b')
            good++;
        CHECK_EQ(good, msg.body.n);
        CHECK_EQ(seen[msg.correlation_id % CALLS]++, 0);
        free(response);
    }
    CHECK_EQ(tw_server_drain(server.id, SOON), 0);
    close(fd);
    server_end(&server);
}

static void
case_backpressure(void)
{
    enum { FIRST = 10, MORE = 200 };
    struct bed_server server;
    tw_server_options options = default_options;
    uint8_t frame[256];
    struct twi_std_msg msg;
    options.max_unwritten = 1 << 20;
    server_start(&server, "127.0.0.1:0", 1, &options);
    uint64_t pauses = counter(TWI_READ_PAUSES), over = counter(TWI_OVERCROWDED);
    int fd = raw_socket(server.bound, 0, NULL, 4096), refused = 0;
    for (int i = 0; i < FIRST; i++) {
        size_t n = raw_request(frame, sizeof frame, "bed.Service",
                               i ? "big" : "gate", i, "2000000", 7);
        raw_send(fd, frame, n);
    }
    EVENTUALLY(tw_server_in_flight(server.id) == FIRST);
    open_gate(&server);
    EVENTUALLY(tw_server_in_flight(server.id) == 0);
    CHECK(counter(TWI_OVERCROWDED) > over);
    /* The answers wait; so what comes now is not even read. */
    for (int i = 0; i < MORE; i++) {
        size_t n = raw_request(frame, sizeof frame, "bed.Service", "echo",
                               FIRST + i, "x", 1);
        raw_send(fd, frame, n);
    }
    EVENTUALLY(counter(TWI_READ_PAUSES) > pauses);
    CHECK_EQ(atomic_load(&server.runs), FIRST);
    for (int i = 0; i < FIRST + MORE; i++) {
        uint8_t *response = raw_response(fd, &msg);
        CHECK(response);
        if (!response)
            break;
        refused += msg.error_code == TW_EOVERCROWDED;
        free(response);
    }
    CHECK(refused > 0 && refused < FIRST);
    CHECK_EQ(atomic_load(&server.runs), FIRST + MORE);
    close(fd);

    /* A client whose server does not read is refused at its own limit. */
    char bound[128];
    int listener = raw_socket("127.0.0.1:0", 1, bound, 4096), accepted, code = 0;
    tw_peer_options limited = default_peer;
    limited.max_unwritten = 1 << 20;
    tw_id peer, inbox, id;
    MUST(tw_peer_open(bound, &limited, &peer) == 0);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    char *body = calloc(1, 500000);
    int submitted = 0, ended = 0, more;
    for (; submitted < 200 && code != TW_EOVERCROWDED; submitted++) {
        tw_event event;
        CHECK_EQ(tw_submit(peer, client_methods[ECHO], body, 500000, NULL, 0,
                           inbox, 1, 0, &id),
                 0);
        while (tw_drain(inbox, 1, &event, 1, &more) == 1) {
            code = event.code;
            CHECK_EQ(event.sent, TW_SENT_NONE);
            ended++;
        }
    }
    CHECK_EQ(code, TW_EOVERCROWDED);
    free(body);
    accepted = accept(listener, NULL, NULL);
    close(accepted);
    while (ended < submitted) {
        tw_event event = take_event(inbox);
        CHECK(event.code == ECONNRESET || event.code == EPIPE ||
              event.code == TW_EEOF);
        if (!event.code)
            break;
        ended++;
    }
    tw_inbox_close(inbox);
    tw_peer_close(peer);
    close(listener);
    server_end(&server);
}

/* ------------------------------------------------------- inboxes */

static void
case_inbox(void)
{
    enum { CALLS = 3000 };
    static char done[CALLS];
    struct bed_server server;
    tw_id inbox, id;
    tw_event events[64];
    int ended = 0, more;
    server_start(&server, unix_address, 2, NULL);
    tw_id peer = peer_open(server.bound);
    memset(done, 0, sizeof done);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    for (int i = 0; i < CALLS; i++) {
        char body[16];
        int n = snprintf(body, sizeof body, "%d", i);
        CHECK_EQ(tw_submit(peer, client_methods[ECHO], body, (size_t)n, NULL,
                           twi_now_ns() + SOON, inbox, (uint64_t)i, i % 3 != 0,
                           &id),
                 0);
        if (i % 100 != 99)
            continue;
        CHECK_EQ(tw_flush(inbox), 0);
        while (i + 1 - ended > 200 &&
               tw_inbox_wait(inbox, SOON, i % 200 == 99) == 0) {
            int got = tw_drain(inbox, i % 300 == 99, events, 64, &more);
            for (int j = 0; j < got; j++) {
                CHECK_EQ(events[j].code, 0);
                CHECK_EQ(done[events[j].cookie]++, 0);
                char body[16];
                int n = snprintf(body, sizeof body, "%d", (int)events[j].cookie);
                CHECK_EQ(events[j].body_len, n);
                CHECK(!memcmp(events[j].body, body, (size_t)n));
            }
            ended += got;
        }
    }
    while (ended < CALLS && tw_inbox_wait(inbox, SOON, 1) == 0) {
        int got = tw_drain(inbox, 0, events, 64, &more);
        for (int j = 0; j < got; j++)
            CHECK_EQ(done[events[j].cookie]++, 0);
        ended += got;
    }
    CHECK_EQ(ended, CALLS);
    CHECK_EQ(tw_inbox_wait(inbox, 5 * MS, 0), -ETIMEDOUT);
    CHECK_EQ(tw_inbox_wait(inbox, 5 * MS, 1), -ETIMEDOUT);
    tw_inbox_close(inbox);
    CHECK_EQ(tw_inbox_wait(inbox, 5 * MS, 0), -TW_STOPPED);
    /* A cork left behind by an inbox that closes is flushed all the same. */
    tw_id second, other;
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    CHECK_EQ(tw_inbox_open(&second), 0);
    CHECK_EQ(tw_submit(peer, client_methods[ECHO], "x", 1, NULL, 0, second, 5, 1,
                       &other),
             0);
    CHECK_EQ(tw_inbox_wait(second, INT64_MAX, 1), 0);
    tw_event event = take_event(second);
    CHECK_EQ(event.cookie, 5);
    CHECK_EQ(tw_server_drain(server.id, INT64_MAX), 0);
    CHECK_EQ(tw_inbox_close(second), 0);
    tw_inbox_close(inbox);
    tw_peer_close(peer);
    server_end(&server);
}

/* An event loop as asyncio's: watches the core's epoll descriptor and the
 * inbox's, drains, answers. */
struct loop_thread {
    pthread_t thread;
    tw_id inbox;
    int quit_fd;
    long requests, cancelled, results;
    _Atomic tw_id kept; /* a request whose body says "keep" */
};

static void *
run_loop(void *arg)
{
    struct loop_thread *me = arg;
    int ep = tw_watch(me->inbox), fd = tw_inbox_fd(me->inbox);
    CHECK(ep >= 0);
    CHECK(fd >= 0);
    for (int more = 0;;) {
        struct pollfd set[] = {
            {ep, POLLIN, 0}, {fd, POLLIN, 0}, {me->quit_fd, POLLIN, 0}};
        poll(set, 3, more ? 0 : -1);
        if (set[2].revents)
            break;
        tw_event events[16];
        int n = tw_drain(me->inbox, 1, events, 16, &more);
        for (int i = 0; i < n; i++) {
            tw_event *e = &events[i];
            if (e->kind == TW_CANCELLED) {
                me->cancelled++;
                tw_reply(e->id, TW_EEOF, "", 0, NULL, 0);
            } else if (e->kind == TW_REQUEST) {
                me->requests++;
                tw_extra extra = {.attachment = e->attachment,
                                  .attachment_len = e->attachment_len};
                if (e->body_len == 4 && !memcmp(e->body, "keep", 4)) {
                    atomic_store(&me->kept, e->id);
                    continue;
                }
                CHECK_EQ(tw_request_alive(e->id), 1);
                CHECK_EQ(tw_reply(e->id, 0, e->body, e->body_len, &extra,
                                  i % 2 ? me->inbox : 0),
                         0);
                CHECK_EQ(tw_reply(e->id, 0, "", 0, NULL, 0), -TW_STALE);
            } else
                me->results++;
        }
        tw_flush(me->inbox);
    }
    tw_unwatch(me->inbox);
    return NULL;
}

static void
case_loop(void)
{
    struct bed_server server;
    struct loop_thread loop = {.quit_fd = eventfd(0, EFD_CLOEXEC)};
    CHECK_EQ(tw_inbox_open(&loop.inbox), 0);
    MUST(server_prepare(&server, NULL) == 0);
    MUST(tw_listen(server.id, "127.0.0.1:0", TW_PROTO_BAIDU_STD, 64,
                   server.bound, sizeof server.bound) == 0);
    CHECK_EQ(tw_server_method(server.id, "late", "late", 0, 0), -EBUSY);
    server_workers(&server, 2);
    tw_id peer = peer_open(server.bound);
    /* Nobody serves the loop's methods yet. */
    CHECK_EQ(call(peer, LOOP_ECHO, "x", 1, SOON), TW_ELIMIT);
    CHECK_EQ(tw_server_inboxes(server.id, loop.inbox, 0), 0);
    MUST(!pthread_create(&loop.thread, NULL, run_loop, &loop));
    call_in_parallel(peer, 3, 200, LOOP_ECHO, 2000);
    call_in_parallel(peer, 3, 200, ECHO, 2000);
    /* A peer that goes away while the loop's handler runs. */
    uint8_t frame[256];
    int fd = raw_connect(server.bound);
    size_t n = raw_request(frame, sizeof frame, "bed.Service", "loop_echo", 1,
                           "keep", 4);
    raw_send(fd, frame, n);
    EVENTUALLY(atomic_load(&loop.kept) != 0);
    CHECK_EQ(tw_request_alive(atomic_load(&loop.kept)), 1);
    void *share = tw_request_hold(atomic_load(&loop.kept));
    CHECK(share);
    struct linger now = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(fd);
    EVENTUALLY(!tw_request_alive(atomic_load(&loop.kept)));
    EVENTUALLY(tw_server_in_flight(server.id) == 0);
    CHECK(!tw_request_hold(atomic_load(&loop.kept)));
    tw_release(share);
    /* A second loop may not watch; the first still does. */
    tw_id second;
    CHECK_EQ(tw_inbox_open(&second), 0);
    CHECK_EQ(tw_watch(second), -EBUSY);
    tw_inbox_close(second);
    uint64_t one = 1;
    MUST(write(loop.quit_fd, &one, sizeof one) == sizeof one);
    pthread_join(loop.thread, NULL);
    CHECK_EQ(loop.requests, 601);
    CHECK_EQ(loop.cancelled, 1);
    /* Without the loop the workers poll again. */
    call_in_parallel(peer, 2, 50, ECHO, 100);
    close(loop.quit_fd);
    tw_inbox_close(loop.inbox);
    CHECK_EQ(call(peer, LOOP_ECHO, "x", 1, SOON), TW_ELIMIT);
    tw_peer_close(peer);
    server_end(&server);
}

/* ------------------------------------------------------- raw connections */

static void
case_http(void)
{
    struct bed_server server;
    tw_id http;
    tw_event event;
    int more;
    CHECK_EQ(tw_inbox_open(&http), 0);
    MUST(server_prepare(&server, NULL) == 0);
    CHECK_EQ(tw_server_inboxes(server.id, 0, http), 0);
    MUST(tw_listen(server.id, "127.0.0.1:0", TW_PROTO_BAIDU_STD | TW_PROTO_HTTP,
                   64, server.bound, sizeof server.bound) == 0);
    server_workers(&server, 1);
    size_t size = 300000, have = 0;
    uint8_t *data = pattern(size), *got = malloc(size);
    memcpy(data, "POST /x ", 8);
    for (int way = 0; way < 2; way++) {
        int fd = raw_connect(server.bound);
        raw_send(fd, data, size);
        tw_id id = 0;
        for (have = 0; have < size;) {
            event = take_event(http);
            CHECK_EQ(event.kind, TW_CHUNK);
            if (event.kind != TW_CHUNK)
                break;
            CHECK(!id || event.id == id);
            id = event.id;
            CHECK(event.body_len > 0 && event.body_len <= size - have);
            memcpy(got + have, event.body, event.body_len);
            have += event.body_len;
            CHECK_EQ(tw_raw_next(id), 0);
        }
        CHECK_EQ(have, size);
        CHECK(!memcmp(got, data, size));
        if (way == 0) {
            /* The server ends it, once all is written. */
            CHECK_EQ(tw_raw_write(id, (char *)data, size, 0), 0);
            CHECK_EQ(tw_raw_write(id, (char *)data, size, 1), 0);
            CHECK_EQ(raw_recv(fd, got, size), size);
            CHECK(!memcmp(got, data, size));
            CHECK_EQ(raw_recv(fd, got, size), size);
            CHECK(!memcmp(got, data, size));
        } else {
            /* The client does, with a chunk out: answered all the same. */
            raw_send(fd, "x", 1);
            event = take_event(http);
            CHECK_EQ(event.kind, TW_CHUNK);
            shutdown(fd, SHUT_WR);
            poll(NULL, 0, 20);
            CHECK_EQ(tw_raw_write(id, "bye", 3, 0), 0);
            CHECK_EQ(tw_raw_next(id), 0);
            CHECK_EQ(raw_recv(fd, got, 3), 3);
        }
        event = take_event(http);
        CHECK_EQ(event.kind, TW_CLOSED);
        CHECK_EQ(event.id, id);
        CHECK(raw_ends(fd)); /* the event held the connection */
        CHECK_EQ(tw_raw_next(id), -TW_STALE);
        CHECK_EQ(tw_raw_write(id, "x", 1, 0), -TW_STALE);
        CHECK_EQ(tw_drain(http, 0, &event, 1, &more), 0);
        close(fd);
    }
    /* RPC goes on beside it. */
    tw_id peer = peer_open(server.bound);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    tw_peer_close(peer);
    /* A chunk that nobody takes, and the server closes. */
    int fd = raw_connect(server.bound);
    raw_send(fd, data, size);
    CHECK_EQ(tw_inbox_wait(http, SOON, 1), 0);
    server_end(&server);
    tw_inbox_close(http);
    close(fd);
    free(data);
    free(got);
}

/* ------------------------------------------------------- servers end */

static void
case_stop(void)
{
    struct bed_server server;
    tw_id inbox, id;
    server_start(&server, "127.0.0.1:0", 2, NULL);
    tw_id peer = peer_open(server.bound);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    CHECK_EQ(tw_submit(peer, client_methods[GATE], "", 0, NULL, 0, inbox, 1, 0,
                       &id),
             0);
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

/* Closed with calls in the handler, in the queue and on the way. */
static void
case_close_in_flight(void)
{
    enum { CALLS = 50 };
    struct bed_server server;
    tw_id inbox, id;
    server_start(&server, "127.0.0.1:0", 2, NULL);
    tw_id peer = peer_open(server.bound);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    for (int i = 0; i < CALLS; i++)
        CHECK_EQ(tw_submit(peer, client_methods[GATE], "", 0, NULL, 0, inbox,
                           (uint64_t)i, 0, &id),
                 0);
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
    tw_id inbox, id, requests[8];
    server_start(&server, "127.0.0.1:0", 1, NULL);
    tw_id peer = peer_open(server.bound);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    for (int i = 0; i < 8; i++) {
        CHECK_EQ(tw_submit(peer, client_methods[LATER], "x", 1, NULL, 0, inbox,
                           (uint64_t)i, 0, &id),
                 0);
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
    struct linger now = {1, 0};
    size_t n = raw_request(frame, sizeof frame, "bed.Service", "later", 1, "", 0);
    raw_send(fd, frame, n);
    requests[0] = take_later(&server);
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(fd);
    EVENTUALLY(!tw_request_alive(requests[0]));
    CHECK_EQ(tw_reply(requests[0], 0, "answer", 6, NULL, 0), 0);
    CHECK_EQ(tw_reply(requests[0], 0, "answer", 6, NULL, 0), -TW_STALE);
    tw_peer_close(peer);
    tw_inbox_close(inbox);
    server_end(&server);
}

/* Limits on calls and connections. */
static void
case_limits(void)
{
    struct bed_server server;
    tw_server_options options = default_options;
    options.max_concurrency = 3;
    options.max_connections = 2;
    tw_id inbox, id;
    server_start(&server, "127.0.0.1:0", 4, &options);
    tw_id peer = peer_open(server.bound);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(tw_submit(peer, client_methods[GATE], "", 0, NULL, 0, inbox, 1,
                           0, &id),
                 0);
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
    tw_id inbox, id;
    server_start(&server, "127.0.0.1:0", 4, NULL);
    tw_id peer = peer_open(server.bound);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < 3; i++)
            CHECK_EQ(tw_submit(peer, client_methods[GATE], "", 0, NULL, 0,
                               inbox, 1, 0, &id),
                     0);
        await_gate(&server, 3);
        int64_t began = twi_now_ns();
        CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
        CHECK(twi_now_ns() - began < SECOND);
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
    tw_id inbox, id;
    server_start(&server, "127.0.0.1:0", 3, NULL);
    tw_id peer = peer_open(server.bound);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(tw_submit(peer, client_methods[SPIN], "", 0, NULL, 0, inbox, 1,
                           0, &id),
                 0);
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

/* An idle process sleeps: no thread of it is woken over and over. */
static long
wakeups(int ms)
{
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    poll(NULL, 0, ms);
    getrusage(RUSAGE_SELF, &after);
    return after.ru_nvcsw - before.ru_nvcsw;
}

/* One look is enough: a late event makes the dispatcher tick for a while. */
static int
falls_quiet(void)
{
    int64_t until = twi_now_ns() + SOON;
    while (twi_now_ns() < until)
        if (wakeups(200) < 20)
            return 1;
    return 0;
}

static void
case_quiet(void)
{
    struct bed_server server;
    tw_id inbox, id;
    server_start(&server, "127.0.0.1:0", 2, NULL);
    tw_id peer = peer_open(server.bound);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    CHECK(falls_quiet());
    /* Woken from there it works at once. */
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    /* An inbox that closes with something corked leaves nothing behind. */
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    CHECK_EQ(tw_submit(peer, client_methods[ECHO], "x", 1, NULL, 0, inbox, 1, 1,
                       &id),
             0);
    CHECK_EQ(tw_inbox_close(inbox), 0);
    CHECK(falls_quiet());
    CHECK_EQ(atomic_load(&server.runs), 3);
    /* Nor does a loop that watches and never comes. */
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    CHECK(tw_watch(inbox) >= 0);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    CHECK(falls_quiet());
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    CHECK_EQ(tw_inbox_close(inbox), 0);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    tw_peer_close(peer);
    server_end(&server);
}

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
            CHECK_EQ(tw_server_method(any, "a", "b", 0, 0), -TW_STALE);
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

/* ------------------------------------------------------- signals */

static _Atomic int signals;

static void
on_signal(int number)
{
    (void)number;
    atomic_fetch_add(&signals, 1);
}

struct interrupted {
    pthread_t thread;
    tw_id peer, inbox, server;
    int what;
    _Atomic int times, done;
};

static void *
be_interrupted(void *arg)
{
    struct interrupted *me = arg;
    char scratch[64];
    tw_event result = {0};
    tw_log_entry entry;
    int rc;
    switch (me->what) {
    case 0:
    case 1:
        rc = tw_call(me->peer, client_methods[GATE], "x", 1, NULL, 0, me->what,
                     scratch, sizeof scratch, &result);
        while (rc == -EINTR) {
            atomic_fetch_add(&me->times, 1);
            rc = tw_wait(result.id, me->what, scratch, sizeof scratch, &result);
        }
        CHECK_EQ(ended(rc), 0);
        CHECK_EQ(result.code, 0);
        CHECK_EQ(result.body_len, 1);
        break;
    case 2:
    case 3:
        rc = tw_inbox_wait(me->inbox, SOON, me->what == 3);
        CHECK_EQ(rc, -EINTR);
        atomic_fetch_add(&me->times, rc == -EINTR);
        break;
    case 4:
        rc = tw_server_drain(me->server, SOON);
        CHECK_EQ(rc, -EINTR);
        atomic_fetch_add(&me->times, rc == -EINTR);
        break;
    case 5:
        while ((rc = tw_log_take(&entry, 1, SOON)) == 1)
            ;
        CHECK_EQ(rc, -EINTR);
        atomic_fetch_add(&me->times, rc == -EINTR);
        break;
    }
    atomic_store(&me->done, 1);
    return NULL;
}

static void
case_signals(void)
{
    struct bed_server server;
    struct sigaction action = {.sa_handler = on_signal};
    tw_id inbox;
    sigaction(SIGUSR1, &action, NULL); /* no SA_RESTART */
    server_start(&server, "127.0.0.1:0", 1, NULL);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    tw_id peer = peer_open(server.bound);
    for (int what = 0; what < 6; what++) {
        struct interrupted me = {
            .what = what, .peer = peer, .inbox = inbox, .server = server.id};
        atomic_store(&signals, 0);
        close_gate(&server);
        if (what == 4) {
            tw_id id;
            CHECK_EQ(tw_submit(peer, client_methods[GATE], "", 0, NULL, 0,
                               inbox, 1, 0, &id),
                     0);
            await_gate(&server, 1);
        }
        MUST(!pthread_create(&me.thread, NULL, be_interrupted, &me));
        if (what < 2)
            await_gate(&server, 1);
        /* Until it was: a signal before it waits finds nobody waiting. */
        int64_t until = twi_now_ns() + SOON;
        while (!atomic_load(&me.times) && !atomic_load(&me.done) &&
               twi_now_ns() < until) {
            pthread_kill(me.thread, SIGUSR1);
            poll(NULL, 0, 1);
        }
        CHECK(atomic_load(&me.times) > 0);
        open_gate(&server);
        pthread_join(me.thread, NULL);
        CHECK(atomic_load(&signals) > 0);
        if (what == 4)
            CHECK_EQ(take_event(inbox).code, 0);
    }
    tw_inbox_close(inbox);
    tw_peer_close(peer);
    server_end(&server);
    signal(SIGUSR1, SIG_DFL);
}

/* ------------------------------------------------------- planted faults */

/* So many log entries of a kind wait, with that code. */
static int
logged(int kind, int code)
{
    tw_log_entry entries[64];
    int n, found = 0;
    while ((n = tw_log_take(entries, 64, 0)) == -EINTR)
        ;
    for (int i = 0; i < n; i++)
        found += entries[i].kind == kind && entries[i].code == code;
    return found;
}

static void
log_is_read(void)
{
    tw_log_entry entries[64];
    int n;
    while ((n = tw_log_take(entries, 64, 0)) > 0 || n == -EINTR)
        ;
}

/* R4: each errno of accept, once or more, in front of a connection. */
static void
case_accept_errors(void)
{
    static const struct {
        int code, times, pauses;
    } table[] = {
        {EMFILE, 2, 2},       {ENFILE, 2, 2},      {ENOBUFS, 2, 2},
        {ENOMEM, 2, 2},       {EPERM, 1, 1},       {ENOSR, 1, 1},
        {EINTR, 1, 0},        {ECONNABORTED, 1, 0}, {EPROTO, 1, 0},
        {ENETDOWN, 1, 0},     {ENOPROTOOPT, 1, 0}, {EHOSTDOWN, 1, 0},
        {ENONET, 1, 0},       {EHOSTUNREACH, 1, 0}, {EOPNOTSUPP, 1, 0},
        {ENETUNREACH, 1, 0},  {ECONNRESET, 1, 0},  {ETIMEDOUT, 1, 0},
        {ECONNABORTED, 63, 0},
        /* Nothing else in a whole turn: it may go on like this. */
        {ECONNABORTED, 100, 1},
    };
    struct bed_server server;
    server_start(&server, "127.0.0.1:0", 2, NULL);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        uint64_t pauses = counter(TWI_ACCEPT_PAUSES);
        log_is_read();
        atomic_store(&fault.accept_errno, table[i].code);
        atomic_store(&fault.accept_errors, table[i].times);
        tw_id peer = peer_open(server.bound);
        CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
        int found = logged(TW_LOG_ACCEPT_PAUSED, table[i].code);
        /* An interrupted attempt is one of the turn's, too. */
        if (table[i].times < 32 || !eintr_planted()) {
            CHECK_EQ(counter(TWI_ACCEPT_PAUSES) - pauses, table[i].pauses);
            CHECK_EQ(found, table[i].pauses);
        }
        tw_peer_close(peer);
    }
    server_end(&server);
    /* Of these none comes back, and the address is free. */
    static const int fatal[] = {EBADF, EFAULT, EINVAL, ENOTSOCK, ENOSYS};
    for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++) {
        server_start(&server, "127.0.0.1:0", 1, NULL);
        log_is_read();
        atomic_store(&fault.accept_errno, fatal[i]);
        atomic_store(&fault.accept_errors, 1);
        int fd = raw_connect(server.bound);
        CHECK(raw_ends(fd));
        close(fd);
        CHECK_EQ(logged(TW_LOG_ACCEPT_FAILED, fatal[i]), 1);
        server_end(&server);
    }
}

static void
case_io_faults(void)
{
    struct bed_server server;
    server_start(&server, "127.0.0.1:0", 2, NULL);
    static const struct {
        int one, again, intr, calls;
        size_t size;
    } runs[] = {
        {1, 0, 0, 6, 800},
        {0, 40, 0, 60, 20000},
        {0, 0, 60, 60, 20000},
        {1, 20, 20, 5, 500},
        {0, 30, 30, 40, 300000},
    };
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        atomic_store(&fault.recv_one, runs[i].one);
        atomic_store(&fault.send_one, runs[i].one);
        atomic_store(&fault.again_percent, runs[i].again);
        atomic_store(&fault.intr_percent, runs[i].intr);
        tw_id peer = peer_open(server.bound);
        call_in_parallel(peer, 4, runs[i].calls, ECHO, runs[i].size);
        tw_peer_close(peer);
    }
    server_end(&server);
}

/* The poller refuses: whatever was to be watched fails, nothing else. */
static void
case_epoll_faults(void)
{
    struct bed_server server;
    char bound[128];
    server_start(&server, "127.0.0.1:0", 2, NULL);
    for (int n = 1; n < 4; n++) {
        tw_id peer = peer_open(server.bound);
        atomic_store(&fault.epoll_errors, n);
        /* Some meet the client's attempt, some the server's accepted one. */
        for (int i = 0; i < 6 && atomic_load(&fault.epoll_errors) > 0; i++) {
            int code = call(peer, ECHO, "x", 1, SOON);
            CHECK(code == ENOSPC || code == TW_EEOF || code == ECONNRESET ||
                  code == EPIPE || code == 0);
        }
        CHECK(atomic_load(&fault.epoll_errors) <= 0);
        int code = call(peer, ECHO, "x", 1, SOON);
        if (code) /* the last one's connection was the server's to refuse */
            code = call(peer, ECHO, "x", 1, SOON);
        CHECK_EQ(code, 0);
        tw_peer_close(peer);
    }
    atomic_store(&fault.epoll_errors, 1);
    CHECK_EQ(tw_listen(server.id, "127.0.0.1:0", TW_PROTO_BAIDU_STD, 16, bound,
                       sizeof bound),
             -ENOSPC);
    atomic_store(&fault.epoll_errors, 1);
    CHECK_EQ(tw_listen(server.id, unix_address, TW_PROTO_BAIDU_STD, 16, bound,
                       sizeof bound),
             -ENOSPC);
    CHECK(access(unix_address + 5, F_OK));
    /* While a message waits for the kernel. */
    int fd = raw_socket(server.bound, 0, NULL, 4096);
    uint8_t frame[256];
    size_t n = raw_request(frame, sizeof frame, "bed.Service", "big", 1,
                           "9000000", 7);
    EVENTUALLY(tw_server_connections(server.id) == 1);
    atomic_store(&fault.epoll_errors, 1);
    raw_send(fd, frame, n);
    EVENTUALLY(tw_server_connections(server.id) == 0);
    close(fd);
    server_end(&server);
}

/* No descriptor left for anybody, as the system itself says it. */
static void
case_descriptor_limit(void)
{
    struct bed_server server;
    struct rlimit before, none;
    tw_id inbox;
    char scratch[64];
    tw_event result;
    server_start(&server, "127.0.0.1:0", 2, NULL);
    tw_id peer = peer_open(server.bound);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    int probe = dup(0);
    close(probe);
    getrlimit(RLIMIT_NOFILE, &before);
    none = before;
    none.rlim_cur = (rlim_t)probe; /* the lowest free number: none is free */
    MUST(setrlimit(RLIMIT_NOFILE, &none) == 0);
    CHECK_EQ(call_full(peer, ECHO, "x", 1, NULL, SOON, scratch, sizeof scratch,
                       &result),
             0);
    CHECK_EQ(tw_inbox_fd(inbox), -EMFILE);
    CHECK_EQ(tw_listen(server.id, "127.0.0.1:0", TW_PROTO_BAIDU_STD, 16, scratch,
                       sizeof scratch),
             -EMFILE);
    MUST(setrlimit(RLIMIT_NOFILE, &before) == 0);
    CHECK_EQ(result.code, EMFILE);
    CHECK_EQ(result.phase, TW_PHASE_CONNECT);
    CHECK_EQ(result.sent, TW_SENT_NONE);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    CHECK(tw_inbox_fd(inbox) >= 0);
    tw_inbox_close(inbox);
    tw_peer_close(peer);
    server_end(&server);
}

/* Addresses that cannot be listened on, and files that are in the way. */
static void
case_listen(void)
{
    struct bed_server server, second;
    char bound[128], spare[128];
    const char *path = unix_address + 5;
    server_start(&server, "127.0.0.1:0", 1, NULL);
    MUST(server_prepare(&second, NULL) == 0);
    CHECK_EQ(tw_listen(second.id, server.bound, TW_PROTO_BAIDU_STD, 16, bound,
                       sizeof bound),
             -EADDRINUSE);
    CHECK_EQ(tw_listen(second.id, "localhost:0", TW_PROTO_BAIDU_STD, 16, bound,
                       sizeof bound),
             -EINVAL);
    CHECK_EQ(tw_listen(second.id, "unix:/nonexistent/x", TW_PROTO_BAIDU_STD, 16,
                       bound, sizeof bound),
             -ENOENT);
    /* A living server's socket file and a plain file are left alone ... */
    CHECK_EQ(tw_listen(server.id, unix_address, TW_PROTO_BAIDU_STD, 16, bound,
                       sizeof bound),
             0);
    CHECK_EQ(tw_listen(second.id, unix_address, TW_PROTO_BAIDU_STD, 16, bound,
                       sizeof bound),
             -EADDRINUSE);
    tw_id peer = peer_open(unix_address);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    tw_peer_close(peer);
    server_end(&server);
    CHECK(access(path, F_OK));
    close(open(path, O_CREAT | O_WRONLY, 0600));
    CHECK_EQ(tw_listen(second.id, unix_address, TW_PROTO_BAIDU_STD, 16, bound,
                       sizeof bound),
             -EADDRINUSE);
    CHECK_EQ(access(path, F_OK), 0);
    unlink(path);
    /* ... a dead one's is replaced. */
    close(raw_socket(unix_address, 1, spare, 0));
    CHECK_EQ(access(path, F_OK), 0);
    CHECK_EQ(tw_listen(second.id, unix_address, TW_PROTO_BAIDU_STD, 16, bound,
                       sizeof bound),
             0);
    CHECK(!strcmp(bound, unix_address));
    int rc = 0, listeners = 1;
    while ((rc = tw_listen(second.id, "127.0.0.1:0", TW_PROTO_BAIDU_STD, 16,
                           bound, sizeof bound)) == 0)
        listeners++;
    CHECK_EQ(rc, -ENOSPC);
    CHECK_EQ(listeners, 8);
    server_workers(&second, 1);
    peer = peer_open(bound);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    tw_peer_close(peer);
    /* More connections at once than one turn accepts. */
    int fds[150];
    for (int i = 0; i < 150; i++)
        fds[i] = raw_connect(i % 2 ? bound : unix_address);
    EVENTUALLY(tw_server_connections(second.id) == 150);
    for (int i = 0; i < 150; i++)
        close(fds[i]);
    EVENTUALLY(tw_server_connections(second.id) == 0);
    /* A listener that fails for good says so; the others go on. */
    tw_log_entry entries[64];
    log_is_read();
    atomic_store(&fault.accept_errno, EBADF);
    atomic_store(&fault.accept_errors, 1);
    fds[0] = raw_connect(bound);
    CHECK(raw_ends(fds[0]));
    close(fds[0]);
    int found = 0, n = tw_log_take(entries, 64, SOON);
    for (int i = 0; i < n; i++)
        found += entries[i].kind == TW_LOG_ACCEPT_FAILED &&
                 entries[i].code == EBADF;
    CHECK_EQ(found, 1);
    peer = peer_open(unix_address);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    tw_peer_close(peer);
    server_end(&second);
}

/* Who replaces a socket file keeps others out, though not for ever. */
static void
case_locked_directory(void)
{
    struct bed_server server;
    char bound[128], dir[64];
    snprintf(dir, sizeof dir, "%s", unix_address + strlen("unix:"));
    *strrchr(dir, '/') = 0;
    int fd = open(dir, O_RDONLY | O_CLOEXEC);
    MUST(fd >= 0 && !flock(fd, LOCK_EX));
    MUST(server_prepare(&server, NULL) == 0);
    CHECK_EQ(tw_listen(server.id, unix_address, TW_PROTO_BAIDU_STD, 16, bound,
                       sizeof bound),
             -EADDRINUSE);
    close(fd);
    CHECK_EQ(tw_listen(server.id, unix_address, TW_PROTO_BAIDU_STD, 16, bound,
                       sizeof bound),
             0);
    server_end(&server);
}

/* What the kernel refuses is named, where it is asked for. */
static void
case_socket_options(void)
{
    static const struct {
        tw_socket_options options;
        const char *name;
    } table[] = {
        {{.keepalive_idle = 32768}, "keepalive.idle"},
        {{.keepalive_interval = 32768}, "keepalive.interval"},
        {{.keepalive_count = 128}, "keepalive.count"},
        {{.bind = "nonsense"}, "bind"},
        {{.bind = "::1"}, "bind"},
        {{.bind = "192.0.2.1"}, "bind"},
    };
    char text[128], expected[128];
    struct bed_server server;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        tw_server_options options = default_options;
        options.socket = table[i].options;
        MUST(server_prepare(&server, &options) == 0);
        CHECK(tw_listen(server.id, "127.0.0.1:0", TW_PROTO_BAIDU_STD, 16, text,
                        sizeof text) < 0);
        snprintf(expected, sizeof expected, "option %s is refused",
                 table[i].name);
        CHECK(!strcmp(text, expected));
        CHECK_EQ(tw_server_close(server.id), 0);
        CHECK(tw_socket_check("127.0.0.1:1", &table[i].options, text,
                              sizeof text) < 0);
        CHECK(!strcmp(text, table[i].name));
        /* And while connecting: the call fails, unsent, and the log says why. */
        tw_peer_options peer_options = default_peer;
        tw_event result;
        tw_id peer;
        log_is_read();
        peer_options.socket = table[i].options;
        MUST(tw_peer_open("127.0.0.1:1", &peer_options, &peer) == 0);
        CHECK_EQ(call_full(peer, ECHO, "x", 1, NULL, SOON, text, sizeof text,
                           &result),
                 0);
        CHECK(result.code != 0 && result.code != ECONNREFUSED);
        CHECK_EQ(result.phase, TW_PHASE_CONNECT);
        CHECK_EQ(result.sent, TW_SENT_NONE);
        CHECK(logged(TW_LOG_CONNECT_FAILED, result.code) >= 1);
        tw_peer_close(peer);
    }
    /* A unix socket has no use for most of them. */
    CHECK_EQ(tw_socket_check("unix:/x", &table[0].options, text, sizeof text),
             0);
}

/* Everything a small life needs, with one allocation after the other failing:
 * any error is right, a crash, a hang or a leak is not. */
static void
live_a_little(void)
{
    struct bed_server server;
    char bound[128], big[20000] = {0};
    tw_id peer = 0, inbox = 0, id;
    tw_event event;
    int more, submitted = 0;
    int ready = server_prepare(&server, NULL) == 0 &&
                tw_listen(server.id, "127.0.0.1:0", TW_PROTO_BAIDU_STD, 16,
                          bound, sizeof bound) == 0;
    if (ready)
        server_workers(&server, 1);
    if (ready && tw_peer_open(bound, &default_peer, &peer) == 0) {
        int64_t timeout = 15 * MS;
        call(peer, ECHO, "x", 1, timeout);
        call(peer, ECHO, big, sizeof big, timeout);
        if (tw_inbox_open(&inbox) == 0) {
            for (int i = 0; i < 2; i++)
                submitted += tw_submit(peer, client_methods[i ? ECHO : GATE],
                                       big, sizeof big, NULL,
                                       twi_now_ns() + timeout, inbox, 1, 0,
                                       &id) == 0;
            while (submitted > 0 && tw_inbox_wait(inbox, SOON, 1) == 0)
                submitted -= tw_drain(inbox, 0, &event, 1, &more);
            CHECK_EQ(submitted, 0);
            tw_inbox_close(inbox);
        }
        tw_peer_close(peer);
    }
    open_gate(&server);
    if (server.id) {
        tw_server_close(server.id);
        server_join(&server);
    }
}

static void
case_no_memory(void)
{
    int fds = count_fds();
    for (int many = 1; many <= 3; many += 2)
        for (long n = 0; n < 500; n++) {
            long from = atomic_load(&fault.mallocs) + n;
            atomic_store(&fault.malloc_until, from + many);
            atomic_store(&fault.malloc_from, from);
            int failed = check_failures;
            live_a_little();
            atomic_store(&fault.malloc_until, 0);
            nothing_is_left(fds);
            if (check_failures != failed) {
                fprintf(stderr, "with %d allocations from number %ld failing\n",
                        many, n);
                return;
            }
            if (atomic_load(&fault.mallocs) < from) {
                fprintf(stderr, "%ld allocations\n", n);
                break;
            }
        }
}

/* A deadline that finds no memory for its timer must not be lost. */
static void
case_no_timer_memory(void)
{
    enum { TIMERS = 64 }; /* the heap's first size */
    char bound[128];
    int listener = raw_socket("127.0.0.1:0", 1, bound, 0), more;
    tw_id peer = peer_open(bound), inbox, id;
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    for (int i = 0; i < TIMERS; i++)
        CHECK_EQ(tw_submit(peer, client_methods[ECHO], "", 0, NULL,
                           twi_now_ns() + 10 * SOON, inbox, 0, 0, &id),
                 0);
    for (int n = 0; n < 6; n++) {
        long from = atomic_load(&fault.mallocs) + n;
        atomic_store(&fault.malloc_until, from + 1);
        atomic_store(&fault.malloc_from, from);
        int rc = tw_submit(peer, client_methods[ECHO], "", 0, NULL,
                           twi_now_ns() + 5 * MS, inbox, 1, 0, &id);
        atomic_store(&fault.malloc_until, 0);
        CHECK(rc == 0 || rc == -ENOMEM);
        if (rc)
            continue;
        tw_event event = take_event(inbox);
        CHECK_EQ(event.cookie, 1);
        CHECK(event.code != 0);
        if (!event.kind)
            break;
    }
    tw_peer_close(peer);
    for (int i = 0; i < TIMERS; i++)
        CHECK_EQ(take_event(inbox).code, ECANCELED);
    tw_event event;
    CHECK_EQ(tw_drain(inbox, 0, &event, 1, &more), 0);
    tw_inbox_close(inbox);
    close(listener);
}

/* ------------------------------------------------------- fork, close */

#if !defined(__SANITIZE_THREAD__)
#include <sys/wait.h>

static void
case_fork(void)
{
    struct bed_server server;
    server_start(&server, "127.0.0.1:0", 2, NULL);
    tw_id peer = peer_open(server.bound);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
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

/* The number of loops, and that all of them work. */
static void
case_loops(void)
{
    int n = twi_sides_count();
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

/* The last case: the core closes under everybody's feet. */
static void
case_close(void)
{
    struct bed_server server;
    char bound[128];
    int listener = raw_socket("127.0.0.1:0", 1, bound, 0);
    struct caller callers[4];
    tw_id inbox, id;
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
    CHECK_EQ(tw_submit(peer, client_methods[GATE], "", 0, NULL, 0, inbox, 1, 0,
                       &id),
             0);
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
}

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {
    {"no_memory", case_no_memory}, /* first: nothing is allocated yet */
    {"no_timer_memory", case_no_timer_memory},
    {"echo", case_echo},
    {"threads", case_threads},
    {"codes", case_codes},
    {"deadline", case_deadline},
    {"cancel", case_cancel},
    {"refused", case_refused},
    {"connect_timeout", case_connect_timeout},
    {"bad_servers", case_bad_servers},
    {"failed_while_polling", case_failed_while_polling},
    {"raw_bytes", case_raw_bytes},
    {"end_while_paused", case_end_while_paused},
    {"declared_length", case_declared_length},
    {"slow_reader", case_slow_reader},
    {"backpressure", case_backpressure},
    {"inbox", case_inbox},
    {"loop", case_loop},
    {"http", case_http},
    {"stop", case_stop},
    {"close_in_flight", case_close_in_flight},
    {"later", case_later},
    {"limits", case_limits},
    {"descriptor_share", case_descriptor_share},
    {"blocked_workers", case_blocked_workers},
    {"computing_worker", case_computing_worker},
    {"quiet", case_quiet},
    {"ids", case_ids},
    {"reconnect", case_reconnect},
    {"signals", case_signals},
    {"accept_errors", case_accept_errors},
    {"io_faults", case_io_faults},
    {"epoll_faults", case_epoll_faults},
    {"descriptor_limit", case_descriptor_limit},
    {"listen", case_listen},
    {"locked_directory", case_locked_directory},
    {"socket_options", case_socket_options},
    {"loops", case_loops},
#if !defined(__SANITIZE_THREAD__)
    {"fork", case_fork},
#endif
    {"close", case_close}, /* last: there is no core behind it */
};

/* With names as arguments, only those cases. */
static int
wanted(const char *name, int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], name))
            return 1;
    return argc == 1;
}

int
main(int argc, char **argv)
{
    seed = check_seed();
    plant_faults(seed);
    char dir[] = "/tmp/tidewire-XXXXXX";
    MUST(mkdtemp(dir));
    snprintf(unix_address, sizeof unix_address, "unix:%s/socket", dir);
    int no_core = count_fds();
    core_open();
    CHECK_EQ(tw_open(), 0);
    client_methods_open();
    int fds = count_fds();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (!wanted(cases[i].name, argc, argv))
            continue;
        /* It tells real interruptions from none. */
        if (fault.storm == STORM_INTR && cases[i].run == case_signals)
            continue;
        int64_t began = twi_now_ns();
        int failed = check_failures;
        cases[i].run();
        calm_faults();
        nothing_is_left(cases[i].run == case_close ? no_core : fds);
        fprintf(stderr, "%-22s %5.2f s%s\n", cases[i].name,
                (double)(twi_now_ns() - began) / 1e9,
                check_failures == failed ? "" : "  FAILED");
    }
    tw_close();
    CHECK_EQ(count_fds(), no_core);
    rmdir(dir);
    CHECK((fault.storm != NO_STORM) == (atomic_load(&fault.gusts) > 0));
    return check_done();
}
