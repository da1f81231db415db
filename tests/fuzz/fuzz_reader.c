/* Fuzzes the choice of a protocol and the reader behind it, on a server's and
 * on a client's connection (W13), with scripted reads.  The first bytes say
 * which, which protocols are allowed, and how the rest arrives.
 *
 * Oracles: whole, byte by byte and in the input's own pieces the same protocol
 * is chosen, the same requests are queued, the same answers written, the same
 * HTTP bytes handed up, and the connection ends the same way (W2); the choice
 * falls within 12 bytes, 17 where HTTP is allowed (W11); nothing is left.  The
 * method has a limit of its own, which may end a message early (W4). */
#include "call.h"
#include "fuzz.h"
#include "protocol.h"
#include "scripted.h"

enum { DECIDED = 17 };

static tw_id server, inbox;

struct outcome {
    const struct twi_protocol *protocol;
    int error;
    uint64_t hash;  /* of requests and chunks, in order */
    uint64_t stale; /* responses nobody waits for */
    size_t out_len;
    uint8_t *out;
};

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
                          TW_RUN_WORKER,
                          &(tw_method_options){.max_message = 256}) == 0);
    MUST(!tw_server_inboxes(server, inbox, inbox));
    MUST(!tw_listen(server, "127.0.0.1:0", TW_PROTO_BAIDU_STD, 1, bound,
                    sizeof bound));
    scripted_begin();
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
    MUST(s);
    struct twi_socket *sock = scripted_open(s, client, data, n);
    if (!client)
        sock->protocols = flags >> 1 & (TW_PROTO_BAIDU_STD | TW_PROTO_HTTP);
    scripted_publish(sock);
    size_t seen = 0;
    while (io.left && !twi_socket_error(sock)) {
        size_t piece = at_once == 2   ? io.left
                       : at_once == 1 ? 1
                                      : next_size(&splits, io.left);
        piece = piece ? piece : 1;
        seen += piece;
        scripted_arrive(sock, piece);
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
    if (io.out_len <= SCRIPTED_OUT)
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
    MUST(a->out_len > SCRIPTED_OUT || !memcmp(a->out, b->out, a->out_len));
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
