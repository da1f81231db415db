/* Fuzzes the choice of a protocol and the reader behind it, on a server's and
 * on a client's connection (W13), with scripted reads.  The first bytes say
 * which, which protocols are allowed, and how the rest arrives.
 *
 * Oracles: whole, byte by byte and in the input's own pieces the same protocol
 * is chosen, the same requests are queued, the same answers written, the same
 * HTTP bytes handed up, and the connection ends the same way (W2); the choice
 * falls within 12 bytes, 17 where HTTP is allowed (W11); nothing is left.  The
 * method has a limit of its own, which may end a message early (W4). */
#include "reader.h"

#include <errno.h>

#include "atomics.h"
#include "call.h"
#include "counters.h"
#include "fuzz.h"
#include "loop.h"
#include "protocol.h"
#include "server.h"
#include "sys.h"

enum { FD = 1 << 20, OUT = 1 << 20, DECIDED = 17 };

static tw_id server, inbox;

/* One connection's life. */
static struct {
    const uint8_t *data;
    size_t left, piece; /* to come; of these in the kernel */
    struct script splits;
    int at_once; /* pieces: all, one byte each, or as the splits say */
    uint8_t out[OUT];
    size_t out_len;
} io;

struct outcome {
    const struct twi_protocol *protocol;
    int error;
    uint64_t hash;  /* of requests and chunks, in order */
    uint64_t stale; /* responses nobody waits for */
    size_t out_len;
    uint8_t *out;
};

static ssize_t
scripted_recv(int fd, void *buf, size_t cap, int flags)
{
    (void)flags;
    MUST(fd == FD);
    if (!io.piece) {
        errno = EAGAIN;
        return -1;
    }
    size_t n = io.piece < cap ? io.piece : cap;
    memcpy(buf, io.data, n);
    io.data += n;
    io.left -= n;
    io.piece -= n;
    return (ssize_t)n;
}

static ssize_t
scripted_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    size_t sum = 0;
    (void)flags;
    MUST(fd == FD);
    for (size_t i = 0; i < msg->msg_iovlen; i++) {
        size_t n = msg->msg_iov[i].iov_len;
        if (io.out_len + n <= OUT)
            memcpy(io.out + io.out_len, msg->msg_iov[i].iov_base, n);
        io.out_len += n;
        sum += n;
    }
    return (ssize_t)sum;
}

static int
scripted_epoll_ctl(int ep, int op, int fd, struct epoll_event *event)
{
    return fd == FD ? 0 : epoll_ctl(ep, op, fd, event);
}

static int close_real(int fd);

static int
scripted_close(int fd)
{
    return fd == FD ? 0 : close_real(fd);
}

#include <unistd.h>

static int
close_real(int fd)
{
    return close(fd);
}

static const struct twi_socket_hooks client_hooks = {.readable = twi_reader_run};

/* An open core whose baton is ours for good: nobody else polls. */
static void
open_core(void)
{
    static const tw_server_options options = {.max_message = 1 << 20,
                                              .max_unwritten = 1 << 30,
                                              .max_pending = 1 << 20,
                                              .max_pending_bytes = 1 << 30};
    char bound[128];
    MUST(!tw_open() && !tw_inbox_open(&inbox));
    MUST(!tw_server_open(&options, &server));
    MUST(tw_server_method(server, "example.EchoService", "Echo",
                          TW_RUN_WORKER, 256) == 0);
    MUST(!tw_server_inboxes(server, inbox, inbox));
    MUST(!tw_listen(server, "127.0.0.1:0", TW_PROTO_BAIDU_STD, 1, bound,
                    sizeof bound));
    while (!twi_baton_take(TWI_MAIN))
        twi_loop_wake(TWI_MAIN); /* the dispatcher may be parked with it */
    twi_sys.recv = scripted_recv;
    twi_sys.sendmsg = scripted_sendmsg;
    twi_sys.epoll_ctl = scripted_epoll_ctl;
    twi_sys.close = scripted_close;
}

static void
mix(struct outcome *outcome, const void *data, size_t n)
{
    const uint8_t *p = data;
    for (size_t i = 0; i < n; i++)
        outcome->hash = (outcome->hash ^ p[i]) * 0x100000001b3;
}

/* HTTP's chunks, whatever their sizes. */
static void
take_chunks(struct outcome *outcome)
{
    tw_event event;
    int more;
    while (tw_drain(inbox, 0, &event, 1, &more) == 1)
        if (event.kind == TW_CHUNK) {
            mix(outcome, event.body, event.body_len);
            tw_raw_next(event.id);
            twi_loop_poll(TWI_MAIN, 0); /* the leftover that this made */
        }
}

static void
answer_requests(struct outcome *outcome, struct twi_server *s)
{
    for (tw_id id; (id = twi_workq_pop(&s->queue));) {
        struct twi_request *request = twi_request_address(id);
        MUST(request);
        mix(outcome, request->body.p, request->body.n);
        mix(outcome, request->attachment.p, request->attachment.n);
        mix(outcome, &request->correlation_id, sizeof(int64_t));
        MUST(!twi_request_answer(request, 0, "ok", 2, NULL, 0, 1));
        twi_request_unref(request);
        twi_request_unref(request); /* the queue's */
    }
    twi_loop_after_poll(TWI_MAIN);
}

static struct outcome
live(const uint8_t *data, size_t n, uint8_t flags, int at_once,
     struct script splits)
{
    struct outcome outcome = {.hash = 0xcbf29ce484222325};
    int client = flags & 1;
    uint64_t stale = twi_cell_value(TWI_STALE_RESPONSES);
    struct twi_server *s = twi_server_address(server);
    struct twi_socket *sock =
        twi_socket_open(client ? TWI_CLIENT_SIDE : TWI_SERVER_SIDE,
                        client ? &client_hooks : &twi_server_side_hooks, 0);
    MUST(s && sock);
    if (!client) {
        sock->server = s;
        twi_server_ref(s);
        twi_count(TWI_CONNECTIONS_IN, 1);
        add_seq_cst(&s->connections, 1);
        sock->protocols = flags >> 1 & (TW_PROTO_BAIDU_STD | TW_PROTO_HTTP);
    }
    sock->max_message = s->options.max_message;
    sock->max_unwritten = s->options.max_unwritten;
    store_seq_cst(&sock->connected, 1);
    twi_socket_publish(sock);
    MUST(!twi_socket_attach(sock, FD, EPOLLIN | EPOLLRDHUP));
    io.data = data;
    io.left = n;
    io.piece = io.out_len = 0;
    size_t seen = 0;
    while (io.left && !twi_socket_error(sock)) {
        size_t piece = at_once == 2   ? io.left
                       : at_once == 1 ? 1
                                      : next_size(&splits, io.left);
        io.piece = piece ? piece : 1;
        seen += io.piece;
        twi_reader_run(sock, EPOLLIN, 1);
        while (load_seq_cst(&sock->again) && !twi_socket_error(sock))
            twi_loop_poll(TWI_MAIN, 0);
        take_chunks(&outcome);
        if (seen >= DECIDED)
            MUST(twi_socket_error(sock) ||
                 load_relaxed(&sock->reader.protocol));
    }
    outcome.protocol = load_relaxed(&sock->reader.protocol);
    outcome.error = twi_socket_error(sock);
    answer_requests(&outcome, s);
    outcome.stale = twi_cell_value(TWI_STALE_RESPONSES) - stale;
    outcome.out_len = io.out_len;
    outcome.out = malloc(io.out_len + 1);
    if (io.out_len <= OUT)
        memcpy(outcome.out, io.out, io.out_len);
    twi_socket_fail(sock, TW_ECLOSE, TW_PHASE_NONE);
    take_chunks(&outcome); /* and the word that it is closed */
    twi_loop_poll(TWI_MAIN, 0);
    take_chunks(&outcome);
    twi_socket_unref(sock);
    twi_server_unref(s);
    tw_census census;
    tw_census_take(&census);
    MUST(census.sockets == 1 && !census.requests && !census.blocks &&
         !census.write_nodes);
    return outcome;
}

static void
same(const struct outcome *a, const struct outcome *b)
{
    MUST(a->protocol == b->protocol);
    MUST(a->error == b->error);
    MUST(a->hash == b->hash);
    MUST(a->stale == b->stale);
    MUST(a->out_len == b->out_len);
    MUST(a->out_len > OUT || !memcmp(a->out, b->out, a->out_len));
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct script script = {data, size};
    if (!server)
        open_core();
    uint8_t flags = next_byte(&script);
    size_t n_splits = next_byte(&script) % 16;
    struct script splits = {script.data,
                            n_splits < script.n ? n_splits : script.n};
    data = script.data + splits.n;
    size = script.n - splits.n;
    struct outcome whole = live(data, size, flags, 2, splits);
    struct outcome own = live(data, size, flags, 0, splits);
    same(&whole, &own);
    free(own.out);
    if (size <= 4096) {
        struct outcome single = live(data, size, flags, 1, splits);
        same(&whole, &single);
        free(single.out);
    }
    free(whole.out);
    return 0;
}
