/* The sending side over real descriptors: bytes that are lent and when they
 * come back, messages with many answers, the word that one is written, half
 * closing, closing without a reset, limits, and what a write costs. */
#include "cases.h"
#include "clients.h"

#include "atomics.h"
#include "iobuf.h"
#include "pressure.h"
#include "socket.h"
#include "writer.h"

static _Atomic long sendmsgs, epoll_ctls;

static ssize_t
counting_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    atomic_fetch_add(&sendmsgs, 1);
    return faulty_sendmsg(fd, msg, flags);
}

static int
counting_epoll_ctl(int ep, int op, int fd, struct epoll_event *event)
{
    atomic_fetch_add(&epoll_ctls, 1);
    return faulty_epoll_ctl(ep, op, fd, event);
}

/* ------------------------------------------------------------------ loans */

static uint8_t
byte_of(size_t i)
{
    return (uint8_t)(i * 7 + (i >> 12));
}

static char *
lendable(size_t n)
{
    char *bytes = malloc(n);
    MUST(bytes);
    for (size_t i = 0; i < n; i++)
        bytes[i] = (char)byte_of(i);
    return bytes;
}

static int
is_intact(const uint8_t *got, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (got[i] != byte_of(i))
            return 0;
    return 1;
}

static int64_t
loans(void)
{
    tw_census c;
    tw_census_take(&c);
    return c.lent;
}

/* As the lender's housekeeper: the sign, then the token; 0 when none came. */
static uint64_t
take_token(void)
{
    uint64_t token = 0;
    tw_log_entry entries[16];
    int64_t until = twi_now_ns() + SOON;
    while (!tw_released(&token, 1) && twi_now_ns() < until)
        tw_log_take(entries, 16, SECOND);
    return token;
}

/* So that what follows is written at once. */
static void
connect_first(tw_id peer)
{
    char scratch[8];
    tw_event result = {0};
    tw_extra extra = {.notify_sent = 1};
    CHECK_EQ(call_full(peer, ECHO, "", 0, &extra, SOON, scratch, 8, &result), 0);
    CHECK_EQ(result.code, 0);
}

/* A deadline ends a call, not the use of its bytes: they are the lender's
 * again when the peer has read them, and ASan watches. */
static void
case_loan_outlives_the_call(void)
{
    enum { SIZE = 8 << 20 };
    char bound[128], scratch[64];
    int listener = raw_socket("127.0.0.1:0", 1, bound, 4096);
    for (int way = 0; way < 2; way++) {
        tw_id peer = peer_open(bound);
        tw_event result = {0};
        uint64_t token = 0;
        char *body = lendable(SIZE);
        void *block = tw_lend(body, SIZE, 77);
        MUST(block);
        connect_first(peer);
        tw_extra extra = {.body_block = block};
        CHECK_EQ(call_full(peer, ECHO, body, SIZE, &extra, 200 * MS, scratch,
                           sizeof scratch, &result),
                 0);
        CHECK_EQ(result.code, TW_ERPCTIMEDOUT);
        CHECK_EQ(result.sent, TW_SENT_SOME);
        tw_release(block);
        CHECK_EQ(tw_released(&token, 1), 0);
        CHECK_EQ(loans(), 1);
        int fd = accept(listener, NULL, NULL);
        if (way == 0) {
            /* All of it arrives, half of it after the call's end. */
            uint8_t header[TWI_STD_HEADER];
            struct twi_std_msg first;
            free(raw_response(fd, &first)); /* a frame is a frame */
            CHECK_EQ(raw_recv(fd, header, sizeof header), sizeof header);
            size_t size = (size_t)header[4] << 24 | header[5] << 16 |
                          header[6] << 8 | header[7];
            uint8_t *got = malloc(size);
            CHECK_EQ(raw_recv(fd, got, size), size);
            CHECK(size > SIZE && is_intact(got + size - SIZE, SIZE));
            free(got);
        } else
            close(fd); /* unread: the connection fails */
        CHECK_EQ(take_token(), 77);
        free(body);
        CHECK_EQ(loans(), 0);
        if (way == 0)
            close(fd);
        tw_peer_close(peer);
    }
    close(listener);
}

/* Body, attachment or both of a request and of its answer. */
static void
case_loan_parts(void)
{
    enum { SIZE = 300000 };
    struct bed_server server;
    char *body = lendable(SIZE), *scratch = malloc(2 * SIZE + 100);
    server_start(&server, "127.0.0.1:0", 1, NULL);
    tw_id peer = peer_open(server.bound);
    for (int parts = 0; parts < 8; parts++) {
        /* Bit 0: the body is lent, 1: the attachment, 2: there is another. */
        size_t attached = parts & 4 ? SIZE : 100;
        uint64_t tokens[4] = {0};
        tw_event result = {0};
        tw_extra extra = {
            .attachment = body,
            .attachment_len = attached,
            .body_block = parts & 1 ? tw_lend(body, SIZE, 1) : NULL,
            .attachment_block = parts & 2 ? tw_lend(body, attached, 2) : NULL};
        CHECK_EQ(call_full(peer, ECHO, body, SIZE, &extra, SOON, scratch,
                           2 * SIZE + 100, &result),
                 0);
        CHECK_EQ(result.code, 0);
        CHECK_EQ(result.body_len, SIZE);
        CHECK_EQ(result.attachment_len, attached);
        CHECK(is_intact((const uint8_t *)result.body, SIZE));
        CHECK(is_intact((const uint8_t *)result.attachment, attached));
        if (extra.body_block)
            tw_release(extra.body_block);
        if (extra.attachment_block)
            tw_release(extra.attachment_block);
        /* The writer may still be on its way out of the write. */
        int lent = (parts & 1) + (parts >> 1 & 1), n = 0;
        EVENTUALLY((n += tw_released(tokens + n, 4 - n)) == lent);
    }
    tw_peer_close(peer);
    server_end(&server);
    free(body);
    free(scratch);
}

/* A server's answers are lent, its reader is slow, the server closes. */
static void
case_loan_of_an_answer(void)
{
    enum { SIZE = 6 << 20 };
    struct bed_server server;
    uint8_t frame[256];
    struct twi_std_msg msg;
    char *bytes = lendable(SIZE);
    server_start(&server, "127.0.0.1:0", 1, NULL);
    for (int way = 0; way < 3; way++) {
        uint64_t token = 0;
        int fd = raw_socket(server.bound, 0, NULL, 4096);
        raw_send(fd, frame,
                 raw_request(frame, sizeof frame, "bed.Service", "later", 1,
                             "x", 1));
        tw_id id = take_later(&server);
        void *block = tw_lend(bytes, SIZE, 5);
        tw_extra extra = {.body_block = block};
        CHECK_EQ(tw_reply(id, 0, bytes, SIZE, &extra, 0), 0);
        tw_release(block);
        CHECK_EQ(tw_released(&token, 1), 0);
        if (way == 0) {
            uint8_t *response = raw_response(fd, &msg);
            MUST(response);
            CHECK_EQ(msg.body.n, SIZE);
            CHECK(is_intact(msg.body.p, SIZE));
            free(response);
        } else if (way == 1)
            close(fd);
        else
            CHECK_EQ(tw_server_close(server.id), 0);
        CHECK_EQ(take_token(), 5);
        memset(bytes, 0, 100); /* it is ours */
        for (size_t i = 0; i < 100; i++)
            bytes[i] = (char)byte_of(i);
        if (way != 1)
            close(fd);
    }
    server_join(&server);
    free(bytes);
}

/* Without memory nothing is lent; a stale request's loan comes back at once. */
static void
case_loan_refused(void)
{
    static const char bytes[] = "0123456789";
    uint64_t tokens[3];
    for (long n = 0; n < 2; n++) {
        long now = atomic_load(&fault.mallocs);
        atomic_store(&fault.malloc_from, now + n);
        atomic_store(&fault.malloc_until, now + n + 1);
        CHECK(!tw_lend(bytes, 10, 1));
        atomic_store(&fault.malloc_until, 0);
    }
    CHECK_EQ(loans(), 0);
    void *block = tw_lend(bytes, 10, 9);
    tw_extra extra = {.body_block = block};
    CHECK_EQ(tw_reply(12345, 0, bytes, 10, &extra, 0), -TW_STALE);
    tw_release(block);
    CHECK_EQ(tw_released(tokens, 3), 1);
    CHECK_EQ(tokens[0], 9);
    /* More than are asked for wait for the next time. */
    for (uint64_t i = 1; i <= 5; i++)
        tw_release(tw_lend(bytes, 10, i));
    uint64_t sum = 0;
    for (int n; (n = tw_released(tokens, 3)) > 0;)
        for (int i = 0; i < n; i++)
            sum += tokens[i];
    CHECK_EQ(sum, 15);
}

/* ------------------------------------------- a socket of the test's own */

enum { SENT_MAX = 8192 };

static struct {
    struct twi_socket *sock;
    int other; /* the peer's end */
    _Atomic int sent, code[SENT_MAX], failed;
    _Atomic size_t received;
    /* Answers, one byte each: whose they were. */
    _Atomic int answers;
    uint64_t answered[SENT_MAX];
    uint32_t left[SENT_MAX];
    uint64_t unexpected;
} own;

static void
own_readable(struct twi_socket *sock, uint32_t events, int64_t now_ns)
{
    uint8_t bytes[256];
    ssize_t n;
    (void)events;
    (void)now_ns;
    while ((n = twi_sys_recv(load_relaxed(&sock->fd), bytes, sizeof bytes)) > 0) {
        for (ssize_t i = 0; i < n; i++) {
            int at = atomic_load(&own.answers);
            if (at < SENT_MAX &&
                twi_pipeline_answered(&sock->pipeline, &own.answered[at],
                                      &own.left[at]))
                atomic_store(&own.answers, at + 1);
            else
                own.unexpected++;
        }
        atomic_fetch_add(&own.received, (size_t)n);
    }
    if (n != TWI_AGAIN)
        twi_socket_fail(sock, n ? (int)-n : TW_EEOF, TW_PHASE_READ);
}

static void
own_failed(struct twi_socket *sock, int code)
{
    (void)sock;
    atomic_store(&own.failed, code);
}

static void
own_sent(struct twi_socket *sock, struct twi_wnode *node, int code, int how_far)
{
    (void)sock;
    CHECK(code || how_far == TW_SENT_ALL);
    CHECK_EQ(node->seq, atomic_load(&own.sent));
    atomic_store(&own.code[node->seq], code);
    atomic_fetch_add(&own.sent, 1);
}

static const struct twi_socket_hooks own_hooks = {
    .readable = own_readable, .failed = own_failed, .sent = own_sent};

static uint32_t own_pushed;

static void
own_begin(void)
{
    int fd[2];
    memset(&own, 0, sizeof own);
    own_pushed = 0;
    MUST(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0,
                     fd));
    own.sock = twi_socket_open(TWI_CLIENT_SIDE, &own_hooks, 0);
    own.other = fd[1];
    store_seq_cst(&own.sock->connected, 1);
    twi_socket_publish(own.sock);
    MUST(!twi_socket_attach(own.sock, fd[0], EPOLLIN | EPOLLRDHUP));
}

static void
own_end(void)
{
    twi_socket_fail(own.sock, ECANCELED, TW_PHASE_NONE);
    twi_socket_unref(own.sock);
    close(own.other);
}

static struct twi_wnode *
own_node(size_t size)
{
    struct twi_wnode *node = twi_wnode_new();
    uint8_t *room = twi_iobuf_reserve(&node->buf, size);
    memset(room, 'm', size);
    twi_iobuf_commit(&node->buf, size);
    node->seq = own_pushed;
    node->id = 1000 + own_pushed;
    return node;
}

static int
own_push(struct twi_wnode *node, int force)
{
    int code = twi_socket_push(own.sock, node, 0, force, twi_now_ns());
    if (code)
        twi_wnode_free(node);
    else
        own_pushed++;
    return code;
}

/* Invariant 6: an uncontended small write is one sendmsg and nothing else. */
static void
case_write_cost(void)
{
    own_begin();
    for (int i = 0; i < 100; i++) {
        uint8_t got[100];
        long writes = atomic_load(&sendmsgs), ctls = atomic_load(&epoll_ctls);
        uint64_t keep = counter(TWI_KEEPWRITE);
        CHECK_EQ(own_push(own_node(100), 0), 0);
        CHECK_EQ(atomic_load(&sendmsgs), writes + 1);
        CHECK_EQ(atomic_load(&epoll_ctls), ctls);
        CHECK_EQ(counter(TWI_KEEPWRITE), keep);
        CHECK_EQ(atomic_load(&own.sent), i + 1);
        CHECK_EQ(raw_recv(own.other, got, 100), 100);
    }
    own_end();
}

/* R1: over the limit a push is refused at once; what must pass passes.  After
 * everything has failed nothing is counted as unwritten (invariant 8). */
static void
case_overcrowded(void)
{
    enum { LIMIT = 1 << 20, SIZE = 10000 };
    own_begin();
    CHECK_EQ(own.sock->max_unwritten, 64 << 20); /* the default */
    own.sock->max_unwritten = LIMIT;
    uint64_t over = counter(TWI_OVERCROWDED);
    int code = 0, pushed = 0;
    while (!code && pushed < 2000)
        if (!(code = own_push(own_node(SIZE), 0)))
            pushed++;
    CHECK_EQ(code, TW_EOVERCROWDED);
    CHECK_EQ(counter(TWI_OVERCROWDED), over + 1);
    uint64_t unwritten = load_seq_cst(&own.sock->unwritten);
    CHECK(unwritten >= LIMIT && unwritten < LIMIT + 2 * SIZE);
    CHECK_EQ(own_push(own_node(100), 0), TW_EOVERCROWDED);
    CHECK_EQ(own_push(own_node(100), 1), 0); /* an error's answer, say */
    CHECK_EQ(load_seq_cst(&own.sock->unwritten),
             unwritten + 100 + TWI_MESSAGE_COST);
    CHECK(counter(TWI_UNWRITTEN_BYTES) > 0);
    twi_socket_fail(own.sock, ECONNRESET, TW_PHASE_WRITE);
    CHECK_EQ(atomic_load(&own.sent), pushed + 1);
    CHECK_EQ(atomic_load(&own.code[pushed]), ECONNRESET);
    CHECK_EQ(load_seq_cst(&own.sock->unwritten), 0);
    CHECK_EQ(counter(TWI_UNWRITTEN_BYTES), 0);
    own_end();
    /* The same when the peer reads all of it: then it is open again. */
    own_begin();
    own.sock->max_unwritten = LIMIT;
    for (code = 0; !code;)
        code = own_push(own_node(SIZE), 0);
    size_t all = (size_t)own_pushed * SIZE;
    uint8_t *got = malloc(all);
    CHECK_EQ(raw_recv(own.other, got, all), all);
    EVENTUALLY(!load_seq_cst(&own.sock->unwritten));
    CHECK_EQ(own_push(own_node(SIZE), 0), 0);
    free(got);
    own_end();
}

/* Messages that expect several answers, which come in order and name nobody. */
static void
case_pipelined(void)
{
    static const uint32_t counts[] = {1, 3, 2, TWI_PIPELINED_MAX, 1};
    enum { N = sizeof counts / sizeof *counts };
    own_begin();
    struct twi_wnode *node = own_node(10);
    CHECK_EQ(twi_wnode_pipelined(node, 0), -EINVAL);
    CHECK_EQ(twi_wnode_pipelined(node, TWI_PIPELINED_MAX + 1), -EOVERFLOW);
    CHECK_EQ(TWI_PIPELINED_MAX, 16383);
    twi_wnode_free(node);
    for (int i = 0; i < N; i++) {
        node = own_node(10);
        CHECK_EQ(twi_wnode_pipelined(node, counts[i]), 0);
        CHECK_EQ(own_push(node, 0), 0);
        CHECK_EQ(own_push(own_node(5), 0), 0); /* one without answers */
    }
    char *answers = calloc(1, 6);
    raw_send(own.other, answers, 6);
    EVENTUALLY(atomic_load(&own.answers) == 6);
    static const int whose[] = {0, 2, 2, 2, 4, 4}, more[] = {0, 2, 1, 0, 1, 0};
    for (int i = 0; i < 6; i++) {
        CHECK_EQ(own.answered[i], 1000 + whose[i]);
        CHECK_EQ(own.left[i], more[i]);
    }
    atomic_store(&own.answers, 0);
    raw_send(own.other, answers, 6);
    EVENTUALLY(atomic_load(&own.answers) == 6);
    CHECK_EQ(own.answered[5], 1006);
    CHECK_EQ(own.left[5], TWI_PIPELINED_MAX - 6);
    CHECK_EQ(own.unexpected, 0);
    free(answers);
    /* Nothing is lost when it fails with answers to come, nor is a message's
     * count kept that was never sent. */
    own.sock->max_unwritten = UINT64_MAX / 4;
    for (int i = 0; i < 200; i++) {
        node = own_node(10000);
        CHECK_EQ(twi_wnode_pipelined(node, 2), 0);
        CHECK_EQ(own_push(node, 0), 0);
    }
    own_end();
}

/* An answer that nobody waits for names nobody. */
static void
case_unexpected_answer(void)
{
    own_begin();
    raw_send(own.other, "x", 1);
    EVENTUALLY(atomic_load(&own.received) == 1);
    CHECK_EQ(own.unexpected, 1);
    own_end();
}

/* C3: half closing sends what was queued before it, nothing after it, and the
 * reading side goes on. */
static void
case_shutdown_write(void)
{
    for (int queued = 0; queued < 2; queued++) {
        own_begin();
        size_t size = queued ? 1 << 20 : 100, all = 2 * size;
        CHECK_EQ(own_push(own_node(size), 0), 0);
        struct twi_wnode *node = own_node(size);
        node->shutdown_after = 1;
        CHECK_EQ(own_push(node, 0), 0);
        int code = own_push(own_node(size), 0);
        CHECK_EQ(code, queued ? 0 : TW_ESHUTDOWNWRITE);
        uint8_t *got = malloc(all + 1);
        CHECK_EQ(raw_recv(own.other, got, all + 1), all); /* and the end */
        free(got);
        EVENTUALLY(atomic_load(&own.sent) == 2 + queued);
        CHECK_EQ(atomic_load(&own.code[0]), 0);
        CHECK_EQ(atomic_load(&own.code[1]), 0);
        if (queued)
            CHECK_EQ(atomic_load(&own.code[2]), TW_ESHUTDOWNWRITE);
        CHECK_EQ(own_push(own_node(1), 0), TW_ESHUTDOWNWRITE);
        CHECK_EQ(own_push(own_node(1), 1), TW_ESHUTDOWNWRITE);
        CHECK_EQ(load_seq_cst(&own.sock->unwritten), 0);
        CHECK_EQ(twi_socket_error(own.sock), 0);
        raw_send(own.other, "still heard", 11);
        EVENTUALLY(atomic_load(&own.received) == 11);
        own_end();
    }
}

/* --------------------------------------------------------------- the calls */

/* With notify_sent a call ends when it is wholly written, answered or not. */
static void
case_notify_sent(void)
{
    enum { SIZE = 8 << 20 };
    char bound[128], scratch[64];
    int listener = raw_socket("127.0.0.1:0", 1, bound, 4096), more;
    tw_id peer = peer_open(bound), inbox, id;
    tw_extra extra = {.notify_sent = 1};
    tw_event event = {0};
    CHECK_EQ(call_full(peer, ECHO, "x", 1, &extra, SOON, scratch, 64, &event), 0);
    CHECK_EQ(event.code, 0);
    CHECK_EQ(event.sent, TW_SENT_ALL);
    CHECK_EQ(event.body_len, 0);
    int fd = accept(listener, NULL, NULL);
    char *body = calloc(1, SIZE);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    CHECK_EQ(tw_submit(peer, client_methods[ECHO], body, SIZE, &extra, 0, inbox,
                       1, 0, &id),
             0);
    /* Half of it lies in the kernel, the other half waits. */
    CHECK_EQ(tw_inbox_wait(inbox, 50 * MS, 1), -ETIMEDOUT);
    raw_recv(fd, body, SIZE);
    CHECK_EQ(tw_inbox_wait(inbox, SOON, 1), 0);
    CHECK_EQ(tw_drain(inbox, 1, &event, 1, &more), 1);
    CHECK_EQ(event.kind, TW_RESULT);
    CHECK_EQ(event.code, 0);
    CHECK_EQ(event.sent, TW_SENT_ALL);
    /* One that is never written fails as ever. */
    CHECK_EQ(tw_submit(peer, client_methods[ECHO], body, SIZE, &extra, 0, inbox,
                       2, 0, &id),
             0);
    close(fd);
    CHECK_EQ(tw_inbox_wait(inbox, SOON, 1), 0);
    CHECK_EQ(tw_drain(inbox, 1, &event, 1, &more), 1);
    CHECK(event.code != 0);
    free(body);
    tw_inbox_close(inbox);
    tw_peer_close(peer);
    close(listener);
}

/* R1: a call that ignores the limit passes it; others do not. */
static void
case_ignore_eovercrowded(void)
{
    enum { SIZE = 1 << 20 };
    char bound[128], scratch[64];
    int listener = raw_socket("127.0.0.1:0", 1, bound, 4096);
    tw_peer_options limited = default_peer;
    limited.max_unwritten = SIZE;
    tw_id peer;
    tw_event result = {0};
    char *body = calloc(1, 8 * SIZE);
    MUST(tw_peer_open(bound, &limited, &peer) == 0);
    tw_extra ignore = {.ignore_eovercrowded = 1};
    connect_first(peer);
    CHECK_EQ(call(peer, ECHO, body, 8 * SIZE, 20 * MS), TW_ERPCTIMEDOUT);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), TW_EOVERCROWDED);
    CHECK_EQ(call_full(peer, ECHO, "x", 1, &ignore, 20 * MS, scratch, 64,
                       &result),
             0);
    CHECK_EQ(result.code, TW_ERPCTIMEDOUT); /* it waits its turn */
    CHECK_EQ(result.sent, TW_SENT_NONE);
    free(body);
    tw_peer_close(peer);
    close(listener);
}

/* ----------------------------------------------------- the last answer */

/* A connection that ends with an answer, with input unread: no reset overtakes
 * the answer.  Bounded in time and bytes for peers that never end. */
static void
case_linger(void)
{
    enum { JUNK = 256 << 10 };
    struct bed_server server;
    tw_id http;
    char *junk = calloc(1, JUNK), got[64];
    CHECK_EQ(tw_inbox_open(&http), 0);
    MUST(server_prepare(&server, NULL) == 0);
    CHECK_EQ(tw_server_inboxes(server.id, 0, http), 0);
    MUST(tw_listen(server.id, "127.0.0.1:0", TW_PROTO_HTTP, 64, server.bound,
                   sizeof server.bound) == 0);
    for (int way = 0; way < 3; way++) {
        int fd = raw_connect(server.bound);
        raw_send(fd, "POST /x HTTP/1.1\r\n", 18);
        tw_event event = take_event(http);
        CHECK_EQ(event.kind, TW_CHUNK);
        tw_id id = event.id;
        raw_send(fd, junk, JUNK); /* nobody reads it: the chunk is out */
        int64_t began = twi_now_ns();
        CHECK_EQ(tw_raw_write(id, "400 no", 6, 1), 0);
        if (way == 0) {
            /* The answer and a clean end, then the peer's. */
            CHECK_EQ(raw_recv(fd, got, 6), 6);
            CHECK(!memcmp(got, "400 no", 6));
            CHECK_EQ(recv(fd, got, 1, 0), 0);
            shutdown(fd, SHUT_WR);
            event = take_event(http);
        } else if (way == 1) {
            event = take_event(http); /* the peer never ends: the time does */
            CHECK(twi_now_ns() - began >= TWI_LINGER_NS);
        } else {
            /* The peer sends without end: the bytes do. */
            uint64_t before = counter(TWI_BYTES_IN);
            int more;
            while (tw_drain(http, 0, &event, 1, &more) != 1 &&
                   twi_now_ns() < began + SOON)
                if (send(fd, junk, JUNK, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
                    poll(NULL, 0, 1);
            uint64_t dropped = counter(TWI_BYTES_IN) - before;
            CHECK(dropped < TWI_LINGER_BYTES + JUNK);
            CHECK(dropped + JUNK >= TWI_LINGER_BYTES ||
                  twi_now_ns() - began >= TWI_LINGER_NS);
        }
        CHECK_EQ(event.kind, TW_CLOSED);
        CHECK_EQ(event.code, TW_ECLOSE);
        CHECK_EQ(event.id, id);
        close(fd);
    }
    server_end(&server);
    tw_inbox_close(http);
    free(junk);
}

static const struct test_case cases[] = {
    {"loan_outlives_the_call", case_loan_outlives_the_call},
    {"loan_parts", case_loan_parts},
    {"loan_of_an_answer", case_loan_of_an_answer},
    {"loan_refused", case_loan_refused},
    {"write_cost", case_write_cost},
    {"overcrowded", case_overcrowded},
    {"pipelined", case_pipelined},
    {"unexpected_answer", case_unexpected_answer},
    {"shutdown_write", case_shutdown_write},
    {"notify_sent", case_notify_sent},
    {"ignore_eovercrowded", case_ignore_eovercrowded},
    {"linger", case_linger},
    {0},
};

int
main(int argc, char **argv)
{
    plant_faults(check_seed());
    twi_sys.sendmsg = counting_sendmsg;
    twi_sys.epoll_ctl = counting_epoll_ctl;
    return cases_main(cases, argc, argv);
}
