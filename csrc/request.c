/* The life of one request: cut, delivered, answered. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "acceptor.h"
#include "admit.h"
#include "atomics.h"
#include "auth.h"
#include "err.h"
#include "log.h"
#include "payload.h"
#include "pressure.h"
#include "reader.h"
#include "server.h"
#include "side.h"
#include "sys.h"
#include "vref.h"
#include "writer.h"

static struct twi_slab slab;

/* Servers that got requests in each loop's current poll round. */
static struct twi_server *fresh_servers[TWI_LOOPS_MAX];

static int fill_request(struct twi_inbox_item *item, tw_event *event,
                        void **block);
static int fill_cancelled(struct twi_inbox_item *item, tw_event *event,
                          void **block);

void
twi_requests_init(void)
{
    twi_slab_init(&slab, sizeof(struct twi_request));
    twi_inbox_filler(TW_REQUEST, fill_request);
    twi_inbox_filler(TW_CANCELLED, fill_cancelled);
    memset(fresh_servers, 0, sizeof fresh_servers);
}

void
twi_requests_fini(void)
{
    twi_slab_fini(&slab);
}

int64_t
twi_request_count(void)
{
    return load_relaxed(&slab.live);
}

static tw_id
id_of(const struct twi_request *request)
{
    return vref_id(vref_version(&request->vref) & ~1u, request->slot);
}

static void
recycle(struct twi_request *request)
{
    twi_block_unref(request->block);
    twi_block_unref(request->identity);
    request->block = request->identity = NULL;
    store_relaxed(&request->socket, 0);
    twi_server_unref(request->server);
    twi_slab_give(&slab, request->slot);
}

void
twi_request_unref(struct twi_request *request)
{
    if (vref_unref(&request->vref))
        recycle(request);
}

struct twi_request *
twi_request_address(tw_id id)
{
    struct twi_request *request = twi_slab_at(&slab, (uint32_t)id);
    if (!request || !id)
        return NULL;
    int rc = vref_address(&request->vref, (uint32_t)(id >> 32));
    if (rc < 0)
        recycle(request);
    return rc == 1 ? request : NULL;
}

/* ---- answers */

/* A node with header, meta and room for the payload's parts; NULL without
 * memory. */
static struct twi_wnode *
pack(int64_t correlation_id, int code, const char *body, size_t body_len,
     const tw_extra *extra)
{
    struct twi_std_response response = {
        .correlation_id = correlation_id, .code = code};
    struct twi_wnode *node = twi_wnode_new();
    if (!node)
        return NULL;
    const tw_extra *payload = code ? NULL : extra;
    if (code) {
        response.error_text.p = (const uint8_t *)body;
        response.error_text.n =
            body_len < TWI_ERROR_TEXT ? body_len : TWI_ERROR_TEXT;
        body_len = 0;
    } else if (extra)
        response.attachment_len = extra->attachment_len;
    if (extra) {
        response.extra_meta.p = (const uint8_t *)extra->meta;
        response.extra_meta.n = extra->meta_len;
    }
    response.body_len = body_len;
    size_t head = TWI_STD_HEADER + TWI_STD_META_SLACK + response.error_text.n +
                  response.extra_meta.n;
    /* One block for all that is copied: a sole gather piece, one allocation. */
    uint8_t *room = twi_iobuf_reserve(
        &node->buf, head + twi_payload_copied(body_len, payload));
    if (!room)
        goto fail;
    size_t n = twi_std_pack_response(room, head, &response);
    if (!n) { /* the format cannot say it: over 1 MiB of meta, or 4 GiB */
        twi_iobuf_commit(&node->buf, 0);
        goto fail;
    }
    if (twi_payload_put(&node->buf, room, n, body, body_len, payload))
        goto fail;
    return node;
fail:
    twi_wnode_free(node);
    return NULL;
}

void
twi_server_tell(struct twi_socket *sock, int64_t correlation_id, int code,
                const char *text, size_t n, int close, int64_t now_ns)
{
    struct twi_wnode *node = pack(correlation_id, code, text, n, NULL);
    if (node)
        node->close_after = close != 0;
    if (!node)
        twi_socket_fail(sock, ENOMEM, TW_PHASE_WRITE);
    else if (twi_socket_push(sock, node, 0, 1, now_ns))
        twi_wnode_free(node);
}

void
twi_server_refuse(struct twi_socket *sock, int64_t correlation_id, int code,
                  const char *text, size_t n, int close, int64_t now_ns)
{
    twi_count(TWI_REFUSED, 1);
    twi_server_tell(sock, correlation_id, code, text, n, close, now_ns);
}

static void
refuse(struct twi_socket *sock, int64_t correlation_id, int code,
       const char *text, int64_t now_ns)
{
    twi_server_refuse(sock, correlation_id, code, text, strlen(text), 0,
                      now_ns);
}

/* The limiters' part of a call that ends. */
static void
leave(struct twi_server *server, struct twi_method *method)
{
    twi_limiter_leave(&method->limiter);
    twi_limiter_leave(&server->limiter);
}

static void
learn(struct twi_request *request, int code, int64_t now_ns)
{
    struct twi_method *method = request->method;
    int64_t latency_ns = now_ns - request->received_ns;
    int64_t change =
        twi_limiter_learn(&method->limiter, code, latency_ns, now_ns);
    if (change)
        twi_cell_add(method->stats.max_concurrency, change);
    change = twi_limiter_learn(&request->server->limiter, code, latency_ns,
                               now_ns);
    if (change)
        twi_count(TWI_MAX_CONCURRENCY, change);
}

/* The request is over, whatever was said to the peer. */
static void
end(struct twi_request *request, struct twi_socket *sock)
{
    struct twi_server *server = request->server;
    if (sock) {
        sub_seq_cst(&sock->pending, 1);
        sub_seq_cst(&sock->pending_bytes, request->size);
        twi_socket_settle(sock);
    }
    /* seq_cst: partner of tw_server_drain, which looks after announcing. */
    if (sub_seq_cst(&server->in_flight, 1) == 1 &&
        load_seq_cst(&server->draining)) {
        add_seq_cst(&server->idle_bell, 1);
        twi_futex_wake(&server->idle_bell, INT32_MAX);
    }
    twi_request_unref(request); /* the additional reference */
}

int
twi_request_answer(struct twi_request *request, int code, const char *body,
                   size_t body_len, const tw_extra *extra, int cork,
                   int64_t now_ns)
{
    struct twi_method_stats *stats = &request->method->stats;
    uint32_t version = vref_version(&request->vref);
    if (version % 2 || !vref_fail(&request->vref, version))
        return -TW_STALE;
    struct twi_socket *sock =
        twi_socket_address(load_relaxed(&request->socket));
    struct twi_wnode *node = NULL;
    if (sock && code != TW_ECLOSE) {
        node = pack(request->correlation_id, code, body, body_len, extra);
        if (!node) {
            static const char text[] = "The answer is too large to be packed";
            code = TW_ERESPONSE;
            node = pack(request->correlation_id, code, text, sizeof text - 1,
                        NULL);
        }
    }
    learn(request, code, now_ns);
    /* Counted before it can reach the wire. */
    leave(request->server, request->method);
    twi_cell_add(stats->calls, 1);
    twi_cell_add(stats->in_flight, -1);
    if (code)
        twi_method_error(stats, code);
    if (request->started_ns)
        twi_histogram_add(stats->handler, now_ns - request->started_ns);
    if (sock && code == TW_ECLOSE)
        twi_socket_fail(sock, TW_ECLOSE, TW_PHASE_NONE);
    else if (sock && !node)
        twi_socket_fail(sock, ENOMEM, TW_PHASE_WRITE);
    else if (sock) {
        node->stats = stats;
        node->pushed_ns = now_ns;
        int force = code != 0 || (extra && extra->ignore_eovercrowded);
        int rc = twi_socket_push(sock, node, cork, force, now_ns);
        if (rc == TW_EOVERCROWDED) {
            /* Its bytes may not wait, a word about it may. */
            static const char text[] =
                "Too many answers wait unread on this connection";
            twi_wnode_free(node);
            if (!code)
                twi_method_error(stats, TW_EOVERCROWDED);
            code = TW_EOVERCROWDED;
            node = pack(request->correlation_id, code, text, sizeof text - 1,
                        NULL);
            rc = node ? twi_socket_push(sock, node, 0, 1, now_ns) : 0;
        }
        if (rc && node)
            twi_wnode_free(node);
    }
    end(request, sock);
    if (sock)
        twi_socket_unref(sock);
    return 0;
}

/* ---- delivery */

int
twi_request_deliver(struct twi_request *request, int64_t now_ns,
                    tw_event *event)
{
    tw_id id = id_of(request), socket = load_relaxed(&request->socket);
    if (request->deadline_ns && now_ns >= request->deadline_ns) {
        static const char text[] =
            "The deadline passed before the handler could start";
        twi_count(TWI_EXPIRED, 1);
        twi_request_answer(request, TW_ERPCTIMEDOUT, text, sizeof text - 1,
                           NULL, 0, now_ns);
        return 0;
    }
    if (!tw_socket_alive(socket)) {
        twi_request_answer(request, TW_EEOF, "", 0, NULL, 0, now_ns);
        return 0;
    }
    if (now_ns - request->received_ns > request->method->max_queue_age_ns) {
        static const char text[] = "Waited longer than max_queue_age";
        twi_cell_add(request->method->stats.over_age, 1);
        twi_request_answer(request, TW_ELIMIT, text, sizeof text - 1, NULL, 0,
                           now_ns);
        return 0;
    }
    request->started_ns = now_ns;
    twi_histogram_add(request->method->stats.queue,
                      now_ns - request->received_ns);
    *event = (tw_event){
        .id = id,
        .cookie = (uint64_t)request->server->slot << 32 | request->method_index,
        .kind = TW_REQUEST,
        .body = (const char *)request->body.p,
        .body_len = request->body.n,
        .attachment = (const char *)request->attachment.p,
        .attachment_len = request->attachment.n,
        .meta = (const char *)request->meta.p,
        .meta_len = request->meta.n,
        .block = request->block,
        .received_ns = request->received_ns,
        .deadline_ns = request->deadline_ns,
        .log_id = request->log_id,
        .socket = socket,
        .coded = request->coded,
    };
    /* seq_cst: who fails the connection sees the watcher, or the handler sees
     * the connection gone. */
    if (request->method->run == TW_RUN_LOOP)
        store_seq_cst(&request->watcher, load_relaxed(&request->server->loop));
    return 1;
}

static struct twi_request *
request_of(struct twi_inbox_item *item, size_t offset)
{
    return (struct twi_request *)((char *)item - offset);
}

static int
fill_request(struct twi_inbox_item *item, tw_event *event, void **block)
{
    struct twi_request *request =
        request_of(item, offsetof(struct twi_request, item));
    int64_t now_ns = twi_now_ns();
    int filled = 0;
    (void)block; /* the request keeps it until it is answered */
    if (event)
        filled = twi_request_deliver(request, now_ns, event);
    else
        twi_request_answer(request, TW_ELOGOFF, "", 0, NULL, 0, now_ns);
    twi_request_unref(request); /* the inbox's */
    return filled;
}

static int
fill_cancelled(struct twi_inbox_item *item, tw_event *event, void **block)
{
    struct twi_request *request =
        request_of(item, offsetof(struct twi_request, cancelled));
    (void)block;
    if (event)
        *event = (tw_event){.id = id_of(request), .kind = TW_CANCELLED};
    twi_request_unref(request);
    return event != NULL;
}

/* Tells who watches that the peer is gone. */
static void
cancel_requests(struct twi_socket *sock)
{
    tw_id socket = twi_socket_id(sock);
    uint32_t end_slot = load_seq_cst(&sock->pending) ? twi_slab_end(&slab) : 0;
    for (uint32_t i = 0; i < end_slot; i++) {
        struct twi_request *request = twi_slab_at(&slab, i);
        if (load_relaxed(&request->socket) != socket)
            continue;
        uint32_t version = vref_look(&request->vref);
        int rc = vref_address(&request->vref, version);
        if (rc < 0)
            recycle(request);
        if (rc != 1)
            continue;
        request->cancelled.kind = TW_CANCELLED;
        tw_id watcher = load_seq_cst(&request->watcher);
        if (load_relaxed(&request->socket) != socket || !watcher ||
            twi_inbox_put(watcher, &request->cancelled))
            twi_request_unref(request);
    }
}

/* ---- cutting */

/* The last check: whether the method's limiter lets the call in.  Its method
 * counts what it refuses as a call. */
static int
enter(struct twi_socket *sock, const struct twi_std_msg *msg,
      struct twi_method *method, int64_t now_ns)
{
    int64_t running = twi_limiter_enter(&method->limiter, twi_std_patience_ns(msg));
    char text[256];
    if (!running)
        return 1;
    twi_limiter_leave(&sock->server->limiter);
    twi_cell_add(method->stats.calls, 1);
    twi_cell_add(method->stats.over_concurrency, 1);
    twi_method_error(&method->stats, TW_ELIMIT);
    snprintf(text, sizeof text,
             "Rejected by %.100s.%.80s's ConcurrencyLimiter, concurrency=%lld",
             method->service, method->name, (long long)running);
    twi_server_tell(sock, msg->correlation_id, TW_ELIMIT, text, strlen(text), 0,
                    now_ns);
    return 0;
}

/* The front message is not whole, `frame` bytes of it are to come: as soon as
 * its meta is there, and only then, whether it may. */
static enum twi_cut
judge(struct twi_socket *sock, const uint8_t *data, size_t n, size_t frame,
      const char **why)
{
    struct twi_std_msg msg;
    size_t need;
    if (n < TWI_STD_HEADER || sock->reader.judged ||
        frame - TWI_STD_HEADER <= sock->server->least_message)
        return TWI_CUT_MORE;
    enum twi_cut cut = twi_std_peek(data, n, sock->max_message, &msg, &need, why);
    if (cut == TWI_CUT_MORE)
        return cut;
    /* Once: it costs what the meta is long, and the rest may come in bits. */
    sock->reader.judged = 1;
    if (cut == TWI_CUT_DONE &&
        !twi_admit_too_large(sock->server, &msg, frame - TWI_STD_HEADER, why))
        cut = TWI_CUT_MORE;
    return cut == TWI_CUT_DONE ? TWI_CUT_BROKEN : cut;
}

static void
note_fresh(struct twi_loop *loop, struct twi_server *server,
           const struct twi_method *method)
{
    uint32_t at = twi_loop_index(loop);
    struct twi_fresh *fresh = &server->fresh[at];
    if (!fresh->n++) {
        twi_server_ref(server);
        fresh->next = fresh_servers[at];
        fresh_servers[at] = server;
    }
    fresh->blocking += load_relaxed(&method->blocking);
}

struct twi_server *
twi_server_take_fresh(struct twi_loop *loop)
{
    uint32_t at = twi_loop_index(loop);
    struct twi_server *server = fresh_servers[at];
    if (server)
        fresh_servers[at] = server->fresh[at].next;
    return server;
}

static void
queue_request(struct twi_socket *sock, struct twi_block *block,
              const struct twi_std_msg *msg, uint64_t size,
              struct twi_method *method, uint32_t which, int64_t now_ns)
{
    struct twi_server *server = sock->server;
    uint32_t slot = twi_slab_take(&slab);
    if (slot == TWI_SLAB_NONE) {
        leave(server, method);
        refuse(sock, msg->correlation_id, TW_ELIMIT,
               "The server holds too many requests", now_ns);
        return;
    }
    struct twi_request *request = twi_slab_at(&slab, slot);
    request->slot = slot;
    request->server = server;
    twi_server_ref(server);
    request->method = method;
    request->method_index = which;
    request->block = block;
    twi_block_ref(block);
    if ((request->identity = sock->auth.identity))
        twi_block_ref(request->identity);
    request->body = msg->body;
    request->attachment = msg->attachment;
    request->meta = msg->meta;
    request->coded = twi_std_coded(msg);
    request->correlation_id = msg->correlation_id;
    request->log_id = msg->log_id;
    request->received_ns = now_ns;
    int64_t patience = twi_std_patience_ns(msg);
    request->deadline_ns = patience ? now_ns + patience : 0;
    request->started_ns = 0;
    request->size = size + TWI_MESSAGE_COST;
    request->item.kind = TW_REQUEST;
    store_relaxed(&request->watcher, 0);
    store_relaxed(&request->socket, twi_socket_id(sock));
    vref_open(&request->vref, 2); /* the additional one, the queue's */
    add_seq_cst(&sock->pending, 1);
    /* relaxed: the queue publishes these with the request. */
    add_relaxed(&sock->pending_bytes, request->size);
    add_relaxed(&server->in_flight, 1);
    twi_cell_add(method->stats.in_flight, 1);
    int rc;
    if (method->run == TW_RUN_LOOP)
        rc = twi_inbox_put(load_relaxed(&server->loop), &request->item);
    else {
        add_relaxed(&sock->queued, 1); /* for may_cork's guess */
        rc = twi_workq_push(&server->queue, id_of(request),
                            twi_sides_count() > 1);
        if (rc)
            sub_relaxed(&sock->queued, 1);
        else {
            note_fresh(sock->loop, server, method);
            /* seq_cst: tw_server_close sets it, then empties the queue. */
            if (load_seq_cst(&server->closed))
                twi_server_flush(server);
        }
    }
    if (rc) {
        static const char text[] = "The server's queue is full or closed";
        twi_request_answer(request, TW_ELIMIT, text, sizeof text - 1, NULL, 0,
                           now_ns);
        twi_request_unref(request); /* the queue's */
    }
}

static enum twi_cut
std_consume(struct twi_socket *sock, struct twi_block *block,
            const uint8_t *data, size_t n, int64_t now_ns, size_t *used,
            size_t *need, const char **why)
{
    struct twi_std_msg msg;
    char text[256];
    int code = 0;
    uint32_t which = 0;
    if (twi_auth_withholds(sock))
        return twi_auth_first(sock, block, data, n, now_ns, need, why);
    enum twi_cut cut =
        twi_std_cut(data, n, sock->max_message, &msg, used, need, why);
    if (cut == TWI_CUT_MORE)
        return judge(sock, data, n, *need, why);
    if (cut != TWI_CUT_DONE)
        return cut;
    if (twi_admit_too_large(sock->server, &msg, *used - TWI_STD_HEADER, why))
        return TWI_CUT_BROKEN;
    struct twi_method *method =
        twi_admit(sock->server, &msg, &which, &code, text, sizeof text);
    /* relaxed: see tw_server_lame_duck. */
    if (load_relaxed(&sock->server->lame))
        twi_server_notify(sock, now_ns);
    if (method && enter(sock, &msg, method, now_ns))
        queue_request(sock, block, &msg, *used, method, which, now_ns);
    else if (!method)
        refuse(sock, msg.correlation_id, code, text, now_ns);
    return cut;
}

const struct twi_protocol twi_std_server = {
    .name = "baidu_std",
    .bit = TW_PROTO_BAIDU_STD,
    .sniff = twi_std_sniff,
    .consume = std_consume,
};

/* ---- a server's connections */

static void
server_sent(struct twi_socket *sock, struct twi_wnode *node, int code, int sent)
{
    struct twi_method_stats *stats = node->stats;
    (void)sent;
    if (stats && !code)
        twi_histogram_add(stats->core, load_relaxed(&sock->written_ns) -
                                           node->pushed_ns);
}

static void
server_failed(struct twi_socket *sock, int code)
{
    (void)code;
    cancel_requests(sock);
    twi_raw_failed(sock);
    twi_auth_failed(sock);
}

static void
server_recycled(struct twi_socket *sock)
{
    struct twi_server *server = sock->server;
    twi_count(TWI_CONNECTIONS_IN, -1);
    sub_relaxed(&server->connections, 1);
    twi_acceptor_left();
    twi_server_unref(server);
}

const struct twi_socket_hooks twi_server_side_hooks = {
    .readable = twi_reader_run,
    .failed = server_failed,
    .recycled = server_recycled,
    .sent = server_sent,
};

/* ---- api.h */

int
tw_reply(tw_id id, int code, const char *body, size_t body_len,
         const tw_extra *extra, tw_id cork)
{
    struct twi_request *request = twi_request_address(id);
    if (!request)
        return -TW_STALE;
    int corked =
        cork && twi_inbox_cork(cork, load_relaxed(&request->socket));
    int rc = twi_request_answer(request, code, body, body_len, extra, corked,
                                twi_now_ns());
    twi_request_unref(request);
    return rc;
}

int
tw_request_alive(tw_id id)
{
    struct twi_request *request = twi_request_address(id);
    if (!request)
        return 0;
    struct twi_socket *sock =
        twi_socket_address(load_relaxed(&request->socket));
    int alive = 0;
    if (sock) {
        alive = load_relaxed(&sock->eof) ? TW_ALIVE_MUTE : 1;
        twi_socket_unref(sock);
    }
    twi_request_unref(request);
    return alive;
}

int
tw_request_watch(tw_id id, tw_id inbox)
{
    struct twi_request *request = twi_request_address(id);
    if (!request)
        return -TW_STALE;
    /* seq_cst: partner of cancel_requests, which looks after the connection
     * has failed; we look at the connection after this. */
    if (request->method->run == TW_RUN_WORKER)
        store_seq_cst(&request->watcher, inbox);
    int alive = tw_socket_alive(load_relaxed(&request->socket));
    twi_request_unref(request);
    return alive;
}

void *
tw_request_hold(tw_id id)
{
    struct twi_request *request = twi_request_address(id);
    if (!request)
        return NULL;
    struct twi_block *block = request->block;
    twi_block_ref(block);
    twi_request_unref(request);
    return block;
}
