/* A server's connections: bytes in any shape, from clients that misbehave, that
 * read slowly, or that speak another protocol. */
#include "cases.h"
#include "clients.h"

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
    EVENTUALLY((tw_census_take(&c), c.block_bytes < 2 << 20));
    if (c.block_bytes >= 2 << 20)
        census_print();
    close(fd);
    free(body);
    free(frame);
    server_end(&server);
}

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
    /* Of 9 MB more remains than the limit, whatever the kernel takes. */
    for (int i = 0; i < FIRST; i++) {
        size_t n = raw_request(frame, sizeof frame, "bed.Service",
                               i ? "big" : "gate", i, "9000000", 7);
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

static const struct test_case cases[] = {
    {"raw_bytes", case_raw_bytes},
    {"end_while_paused", case_end_while_paused},
    {"declared_length", case_declared_length},
    {"slow_reader", case_slow_reader},
    {"backpressure", case_backpressure},
    {"http", case_http},
    {0},
};

int
main(int argc, char **argv)
{
    seed = check_seed();
    plant_faults(seed);
    return cases_main(cases, argc, argv);
}
