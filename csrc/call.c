#include "call.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "atomics.h"
#include "caller.h"
#include "credential.h"
#include "err.h"
#include "loop.h"
#include "payload.h"
#include "peer.h"
#include "sys.h"
#include "vref.h"
#include "worker.h"

struct client_method {
    struct twi_method_stats stats;
    size_t names_len;
    uint8_t names[TWI_NAMES_MAX];
};

static struct twi_slab slab;

static pthread_mutex_t methods_lock = PTHREAD_MUTEX_INITIALIZER;
static struct client_method *_Atomic methods[TWI_CLIENT_METHODS_MAX];
static int n_methods;

static int fill_result(struct twi_inbox_item *item, tw_event *event,
                       void **block);

void
twi_calls_init(void)
{
    twi_slab_init(&slab, sizeof(struct twi_call));
    twi_inbox_filler(TW_RESULT, fill_result);
    pthread_mutex_init(&methods_lock, NULL);
    twi_callers_init();
}

void
twi_calls_fini(void)
{
    twi_slab_fini(&slab);
}

int64_t
twi_call_count(void)
{
    return load_relaxed(&slab.live);
}

/* ---- methods */

int
tw_client_method(const char *service, const char *name)
{
    int rc = -ENOSPC;
    pthread_mutex_lock(&methods_lock);
    for (int i = 0; i < n_methods; i++) {
        struct client_method *known = load_relaxed(&methods[i]);
        if (!strcmp(known->stats.service, service) &&
            !strcmp(known->stats.method, name)) {
            rc = i;
            goto out;
        }
    }
    if (n_methods == TWI_CLIENT_METHODS_MAX)
        goto out;
    struct client_method *method = twi_zalloc(sizeof *method);
    char *service_copy = twi_strdup(service), *name_copy = twi_strdup(name);
    struct twi_str s = {(const uint8_t *)service, strlen(service)},
                   n = {(const uint8_t *)name, strlen(name)};
    rc = -ENOMEM;
    if (method && service_copy && name_copy) {
        method->names_len =
            twi_std_pack_names(method->names, TWI_NAMES_MAX, s, n);
        rc = method->names_len ? n_methods : -ENAMETOOLONG;
    }
    if (rc < 0) {
        free(method);
        free(service_copy);
        free(name_copy);
        goto out;
    }
    twi_method_stats_init(&method->stats, service_copy, name_copy, 1);
    /* release: pairs with the acquire in method_of. */
    store_release(&methods[n_methods++], method);
out:
    pthread_mutex_unlock(&methods_lock);
    return rc;
}

static struct client_method *
method_of(int method)
{
    if (method < 0 || method >= TWI_CLIENT_METHODS_MAX)
        return NULL;
    return load_acquire(&methods[method]);
}

/* ---- life */

static void
recycle(struct twi_call *call)
{
    twi_block_unref(call->block);
    call->block = NULL;
    store_relaxed(&call->socket, 0);
    store_relaxed(&call->life, 0); /* no socket has that */
    twi_slab_give(&slab, call->slot);
}

static void
unref(struct twi_call *call)
{
    if (vref_unref(&call->vref))
        recycle(call);
}

static struct twi_call *
address(tw_id id)
{
    struct twi_call *call = twi_slab_at(&slab, (uint32_t)id);
    if (!call || !id)
        return NULL;
    int rc = vref_address(&call->vref, (uint32_t)(id >> 32));
    if (rc < 0)
        recycle(call);
    return rc == 1 ? call : NULL;
}

static tw_id
id_of(const struct twi_call *call)
{
    return vref_id(vref_version(&call->vref) & ~1u, call->slot);
}

/* What a response brings; all NULL for an error of our own. */
struct outcome {
    int code, phase;
    struct twi_block *block;
    const struct twi_std_msg *msg;
    int64_t now_ns;
};

/* The one place where a call ends.  The caller holds a reference. */
static int
end(struct twi_call *call, uint32_t version, const struct outcome *outcome)
{
    if (!vref_fail(&call->vref, version))
        return 0;
    const struct twi_std_msg *msg = outcome->msg;
    call->code = outcome->code;
    call->phase = outcome->phase;
    call->received_ns = outcome->now_ns;
    if (msg) {
        twi_block_ref(outcome->block);
        call->block = outcome->block;
        call->body = msg->body;
        call->attachment = msg->attachment;
        call->text = msg->error_text;
        if (msg->has_user_fields)
            call->meta = msg->meta;
    }
    if (call->inbox || call->ended)
        twi_loop_timer_remove(TWI_MAIN, &call->timer);
    twi_cell_add(call->stats->in_flight, -1);
    twi_histogram_add(call->stats->core, outcome->now_ns - call->started_ns);
    if (outcome->code)
        twi_method_error(call->stats, outcome->code);
    if (call->ended) {
        call->ended(call->cookie, outcome->code);
        unref(call); /* the waiter's */
    } else if (!call->inbox) {
        /* release: publishes the result to the waiter's acquire. */
        uint32_t was = atomic_exchange(&call->word, TWI_CALL_DONE);
        if (was == TWI_CALL_ASLEEP)
            twi_futex_wake(&call->word, 1);
        else if (was == TWI_CALL_DONE)
            twi_count(TWI_DOUBLE_COMPLETIONS, 1);
        else
            twi_loop_nudge(TWI_MAIN); /* it may be polling */
    } else if (twi_inbox_put(call->inbox, &call->item))
        unref(call); /* nobody is there to take it: the inbox's */
    unref(call);     /* the additional reference */
    return 1;
}

/* Where a call stands that its deadline ends. */
static int
standing(struct twi_call *call)
{
    if (load_relaxed(&call->sent) == TW_SENT_ALL)
        return TW_PHASE_READ;
    struct twi_socket *sock = twi_socket_address(load_seq_cst(&call->socket));
    int connected = sock && sock->life == load_seq_cst(&call->life) &&
                    load_relaxed(&sock->connected);
    if (sock)
        twi_socket_unref(sock);
    return connected ? TW_PHASE_WRITE : TW_PHASE_CONNECT;
}

static int
end_with_error(struct twi_call *call, int code, int phase)
{
    if (code == TW_ERPCTIMEDOUT)
        phase = standing(call);
    struct outcome outcome = {
        .code = code, .phase = phase, .now_ns = twi_now_ns()};
    uint32_t version = vref_version(&call->vref);
    return version % 2 ? 0 : end(call, version, &outcome);
}

int
twi_call_end(tw_id id, int code, int phase)
{
    struct twi_call *call = address(id);
    if (!call)
        return 0;
    int ended = end_with_error(call, code, phase);
    unref(call);
    return ended;
}

int
twi_call_expire(struct twi_call *call)
{
    return end_with_error(call, TW_ERPCTIMEDOUT, TW_PHASE_READ);
}

int
tw_cancel(tw_id id)
{
    return twi_call_end(id, ECANCELED, TW_PHASE_NONE) ? 0 : -TW_STALE;
}

/* ---- the bytes' way */

void
twi_call_sending(struct twi_socket *sock, struct twi_wnode *node)
{
    struct twi_call *call = address(node->id);
    (void)sock;
    if (!call) {
        node->unwanted = 1;
        return;
    }
    /* seq_cst: a call that ends turns its version and then looks at `sent`
     * (fill).  Either it sees this, or we see that it has ended: a call that
     * says "not sent" is never sent. */
    store_seq_cst(&call->sent, TW_SENT_SOME);
    node->unwanted = (load_seq_cst(&call->vref) >> 32) % 2 != 0;
    unref(call);
}

void
twi_call_sent(struct twi_socket *sock, struct twi_wnode *node, int code,
              int how_far)
{
    struct twi_call *call = address(node->id);
    if (!call)
        return;
    /* seq_cst: partner of twi_calls_lost, which runs after the socket's error
     * is set and ends only calls that it sees wholly sent. */
    store_seq_cst(&call->sent, (uint32_t)how_far);
    if (!code)
        code = twi_socket_error(sock);
    /* Not when its answer is what failed the socket (std_consume). */
    if (code && load_seq_cst(&call->socket) == twi_socket_id(sock))
        end_with_error(call, code, load_relaxed(&sock->phase));
    else if (node->notify)
        end_with_error(call, 0, TW_PHASE_NONE);
    unref(call);
}

static void
each_call(void (*fn)(struct twi_call *, void *), void *arg)
{
    for (uint32_t i = 0; i < twi_slab_end(&slab); i++) {
        struct twi_call *call = twi_slab_at(&slab, i);
        uint32_t version = vref_look(&call->vref);
        if (!load_seq_cst(&call->socket))
            continue;
        int rc = vref_address(&call->vref, version);
        if (rc < 0)
            recycle(call);
        if (rc != 1)
            continue;
        fn(call, arg);
        unref(call);
    }
}

struct lost {
    struct twi_socket *sock;
    int code;
};

static void
end_lost(struct twi_call *call, void *arg)
{
    struct lost *lost = arg;
    if (load_seq_cst(&call->life) == lost->sock->life &&
        load_seq_cst(&call->sent) == TW_SENT_ALL)
        end_with_error(call, lost->code, load_relaxed(&lost->sock->phase));
}

void
twi_calls_lost(struct twi_socket *sock, int code)
{
    struct lost lost = {sock, code};
    each_call(end_lost, &lost);
}

static void
end_stopped(struct twi_call *call, void *arg)
{
    (void)arg;
    end_with_error(call, ECANCELED, TW_PHASE_NONE);
}

void
twi_calls_stop(void)
{
    each_call(end_stopped, NULL);
    twi_callers_stop();
}

/* ---- responses */

static enum twi_cut
std_sniff(const uint8_t *data, size_t n)
{
    size_t known = n < 4 ? n : 4;
    if (memcmp(data, "PRPC", known))
        return TWI_CUT_OTHER;
    return known == 4 ? TWI_CUT_DONE : TWI_CUT_MORE;
}

static enum twi_cut
std_consume(struct twi_socket *sock, struct twi_block *block,
            const uint8_t *data, size_t n, int64_t now_ns, size_t *used,
            size_t *need, const char **why)
{
    struct twi_std_msg msg;
    enum twi_cut cut =
        twi_std_cut(data, n, sock->max_message, &msg, used, need, why);
    if (cut != TWI_CUT_DONE)
        return cut;
    int refused = twi_credential_refused(sock, msg.error_code);
    tw_id id = (tw_id)msg.correlation_id;
    struct twi_call *call = address(id);
    /* Only from the connection that the attempt was sent on: an id may have
     * had several. */
    if (!call || load_seq_cst(&call->life) != sock->life) {
        twi_count(TWI_STALE_RESPONSES, 1);
        if (call)
            unref(call);
        if (refused)
            twi_socket_fail(sock, TW_ERPCAUTH, TW_PHASE_PEER);
        return cut;
    }
    struct outcome outcome = {.code = msg.error_code,
                              .phase = msg.error_code ? TW_PHASE_PEER
                                                      : TW_PHASE_NONE,
                              .block = block,
                              .msg = &msg,
                              .now_ns = now_ns};
    static const char odd[] = "The response is compressed or encoded in a way "
                              "this client did not ask for";
    static const char large[] = "attachment_size is larger than the response";
    if (!msg.error_code &&
        (msg.bad_attachment || msg.compress_type || msg.content_type ||
         msg.checksum_type)) {
        outcome.code = TW_ERESPONSE;
        outcome.phase = TW_PHASE_READ;
        msg.error_text.p = (const uint8_t *)(msg.bad_attachment ? large : odd);
        msg.error_text.n =
            msg.bad_attachment ? sizeof large - 1 : sizeof odd - 1;
    }
    if (outcome.code)
        msg.body.n = msg.attachment.n = 0;
    store_relaxed(&call->sent, TW_SENT_ALL);
    if (refused) {
        /* The server closes it, too, but the caller's next call must not meet
         * it.  Calls under way learn the reason; this one has a text. */
        store_seq_cst(&call->socket, 0);
        twi_socket_fail(sock, TW_ERPCAUTH, TW_PHASE_PEER);
    }
    if (!end(call, (uint32_t)(id >> 32), &outcome))
        twi_count(TWI_STALE_RESPONSES, 1);
    unref(call);
    return cut;
}

const struct twi_protocol twi_std_client = {
    .name = "baidu_std",
    .bit = TW_PROTO_BAIDU_STD,
    .sniff = std_sniff,
    .consume = std_consume,
};

const struct twi_protocol *const twi_client_protocols[] = {
    &twi_std_client,
    NULL,
};

/* ---- starting */

static struct twi_wnode *
pack(const struct twi_call *call, const struct client_method *method,
     const char *body, size_t body_len, const tw_extra *extra,
     const struct twi_block *credential, int64_t now_ns)
{
    static const tw_extra none;
    const tw_extra *x = extra ? extra : &none;
    struct twi_std_request request = {
        .names = {method->names, method->names_len},
        .request_id = {(const uint8_t *)x->request_id, x->request_id_len},
        .extra_meta = {(const uint8_t *)x->meta, x->meta_len},
        .correlation_id = (int64_t)id_of(call),
        .log_id = x->log_id,
        .has_log_id = x->has_log_id,
        .body_len = body_len,
        .attachment_len = x->attachment_len,
    };
    if (credential)
        request.auth = (struct twi_str){credential->data, credential->size};
    if (credential)
        request.auth = (struct twi_str){credential->data, credential->size};
    if (call->deadline_ns && !x->no_timeout_on_wire) {
        int64_t ms = (call->deadline_ns - now_ns + 999999) / 1000000;
        request.timeout_ms = ms > INT32_MAX ? 0 : ms < 1 ? 1 : (int32_t)ms;
    }
    size_t head = TWI_STD_HEADER + TWI_STD_META_SLACK + method->names_len +
                  x->request_id_len + x->meta_len + request.auth.n;
    struct twi_wnode *node = twi_wnode_new();
    if (!node)
        return NULL;
    uint8_t *room = twi_iobuf_reserve(
        &node->buf, head + twi_payload_copied(body_len, x));
    size_t n = room ? twi_std_pack_request(room, head, &request) : 0;
    if (room && !n) /* the format cannot say it */
        twi_iobuf_commit(&node->buf, 0);
    if (!n || twi_payload_put(&node->buf, room, n, body, body_len, x)) {
        twi_wnode_free(node);
        return NULL;
    }
    node->id = id_of(call);
    node->notify = x->notify_sent != 0;
    return node;
}

/* A call with its additional reference and the waiter's. */
static struct twi_call *
open_call(struct client_method *method, int64_t deadline_ns, tw_id inbox,
          uint64_t cookie, int64_t now_ns)
{
    uint32_t slot = twi_slab_take(&slab);
    if (slot == TWI_SLAB_NONE)
        return NULL;
    struct twi_call *call = twi_slab_at(&slab, slot);
    call->slot = slot;
    store_relaxed(&call->word, TWI_CALL_WAITING);
    store_relaxed(&call->sent, TW_SENT_NONE);
    call->link = NULL;
    call->item.kind = TW_RESULT;
    call->inbox = inbox;
    call->ended = NULL;
    call->cookie = cookie;
    call->stats = &method->stats;
    call->started_ns = now_ns;
    call->deadline_ns = deadline_ns;
    call->timer.index = 0;
    call->block = NULL;
    call->body = call->attachment = call->meta = call->text =
        (struct twi_str){0};
    vref_open(&call->vref, 2);
    twi_cell_add(method->stats.calls, 1);
    twi_cell_add(method->stats.in_flight, 1);
    return call;
}

void
twi_call_on(tw_id id, struct twi_socket *sock)
{
    struct twi_call *call = address(id);
    if (!call)
        return;
    /* seq_cst: before the push; twi_calls_lost looks for it. */
    store_seq_cst(&call->socket, twi_socket_id(sock));
    store_seq_cst(&call->life, sock->life);
    unref(call);
}

/* Sets its timer if nobody waits who would look at the clock.  0, or -1: the
 * call has ended. */
static int
set_timer(struct twi_call *call)
{
    if ((!call->inbox && !call->ended) || !call->deadline_ns ||
        !twi_loop_timer(TWI_MAIN, &call->timer, call->deadline_ns,
                        TWI_TIMER_CALL, id_of(call)))
        return 0;
    end_with_error(call, ENOMEM, TW_PHASE_NONE);
    return -1;
}

/* Takes the node if it returns 0; else the code, and *phase. */
static int
push(struct twi_call *call, struct twi_socket *sock, struct twi_wnode *node,
     int cork, int force, int64_t now_ns, int *phase)
{
    twi_call_on(id_of(call), sock);
    int corked = cork && twi_inbox_cork(call->inbox, twi_socket_id(sock));
    int code = twi_socket_push(sock, node, corked, force, now_ns);
    *phase = code == TW_EOVERCROWDED ? TW_PHASE_WRITE
                                     : load_relaxed(&sock->phase);
    return code;
}

/* One try to send it: 0, the code that the call ends with and *phase, or EAGAIN:
 * nothing of it has left, and there is another connection to try. */
static int
attempt(struct twi_call *call, struct twi_peer *peer,
        struct client_method *method, const char *body, size_t body_len,
        const tw_extra *extra, int cork, int64_t now_ns, int *phase)
{
    int force = extra && extra->ignore_eovercrowded;
    struct twi_socket *sock = twi_peer_socket(peer);
    struct twi_wnode *node = NULL;
    struct twi_block *credential;
    *phase = TW_PHASE_CONNECT;
    int code = twi_credential_for(&peer->credential, sock, &credential);
    if (code)
        goto out;
    node = pack(call, method, body, body_len, extra, credential, now_ns);
    twi_block_unref(credential);
    if (!node) {
        *phase = TW_PHASE_NONE;
        code = TW_EREQUEST;
    } else if (!sock) {
        code = twi_peer_wait(peer, node, force);
        if (code == TW_EOVERCROWDED)
            *phase = TW_PHASE_WRITE;
    } else {
        code = push(call, sock, node, cork, force, now_ns, phase);
        /* It failed between finding and pushing: the next one, unless this one
         * could not even be made. */
        if (code && code != TW_EOVERCROWDED && *phase != TW_PHASE_CONNECT)
            code = EAGAIN;
    }
    if (code && node)
        twi_wnode_free(node);
out:
    if (sock)
        twi_socket_unref(sock);
    return code;
}

/* Sends it; whatever goes wrong ends the call. */
static void
start(struct twi_call *call, struct twi_peer *peer,
      struct client_method *method, const char *body, size_t body_len,
      const tw_extra *extra, int cork, int64_t now_ns)
{
    int code, phase;
    if (set_timer(call))
        return;
    /* Packed anew each time: the next connection may want a credential where
     * this one did not. */
    do
        code = attempt(call, peer, method, body, body_len, extra, cork, now_ns,
                       &phase);
    while (code == EAGAIN);
    if (code)
        end_with_error(call, code, phase);
}

void
twi_call_probe(struct twi_socket *sock, int method_index, const char *body,
               size_t body_len, int64_t deadline_ns, int64_t now_ns,
               void (*ended)(uint64_t, int), uint64_t cookie)
{
    struct client_method *method = method_of(method_index);
    struct twi_call *call = open_call(method, deadline_ns, 0, cookie, now_ns);
    if (!call) {
        ended(cookie, ENOMEM);
        return;
    }
    struct twi_block *credential = NULL;
    struct twi_wnode *node = NULL;
    call->ended = ended;
    vref_ref(&call->vref); /* it may be over before we return */
    int phase = TW_PHASE_CONNECT;
    /* A socket without a peer tells nobody who it is. */
    int code = sock->peer ? twi_credential_for(&sock->peer->credential, sock,
                                               &credential)
                          : 0;
    if (!code) {
        node = pack(call, method, body, body_len, NULL, credential, now_ns);
        twi_block_unref(credential);
        code = node ? 0 : ENOMEM;
    }
    if (!set_timer(call) && !code)
        code = push(call, sock, node, 0, 0, now_ns, &phase);
    else if (!code)
        code = ECANCELED;
    if (code) {
        if (node)
            twi_wnode_free(node);
        end_with_error(call, code, phase);
    }
    unref(call);
}

/* ---- results */

static void
fill(struct twi_call *call, tw_event *event)
{
    *event = (tw_event){
        .id = id_of(call),
        .cookie = call->cookie,
        .kind = TW_RESULT,
        .code = call->code,
        .phase = call->phase,
        .sent = (int32_t)load_seq_cst(&call->sent),
        .body = (const char *)call->body.p,
        .body_len = call->body.n,
        .attachment = (const char *)call->attachment.p,
        .attachment_len = call->attachment.n,
        .meta = (const char *)call->meta.p,
        .meta_len = call->meta.n,
        .text = (const char *)call->text.p,
        .text_len = call->text.n,
        .block = call->block,
        .received_ns = call->received_ns,
        .deadline_ns = call->deadline_ns,
        .started_ns = call->started_ns,
        .socket = load_relaxed(&call->socket),
    };
}

static int
fill_result(struct twi_inbox_item *item, tw_event *event, void **block)
{
    struct twi_call *call =
        (struct twi_call *)((char *)item - offsetof(struct twi_call, item));
    if (event) {
        fill(call, event);
        *block = call->block; /* the inbox takes the call's share */
        call->block = NULL;
    }
    unref(call); /* the waiter's */
    return event != NULL;
}

static const char *
into_scratch(const char *from, size_t n, char *scratch, size_t *at)
{
    if (!n)
        return NULL;
    memcpy(scratch + *at, from, n);
    *at += n;
    return scratch + *at - n;
}

/* Hands the result to a blocking caller and ends the call's life; tw_call's
 * return value. */
static int
take_result(struct twi_call *call, char *scratch, size_t cap, tw_event *event)
{
    fill(call, event);
    event->id = 0; /* it is over: there is nothing to wait for any more */
    size_t total = event->body_len + event->attachment_len + event->meta_len +
                   event->text_len;
    if (!call->block || total <= cap) {
        size_t at = 0;
        event->body = into_scratch(event->body, event->body_len, scratch, &at);
        event->attachment = into_scratch(event->attachment,
                                         event->attachment_len, scratch, &at);
        event->meta = into_scratch(event->meta, event->meta_len, scratch, &at);
        event->text = into_scratch(event->text, event->text_len, scratch, &at);
        event->block = NULL;
    } else
        call->block = NULL; /* the caller's share now */
    unref(call);
    int plain = !event->code && !event->block && !event->attachment_len &&
                !event->meta_len;
    return plain ? (int)event->body_len : -TW_RICH;
}

int
tw_call(tw_id peer_id, int method_index, const char *body, size_t body_len,
        const tw_extra *extra, int64_t deadline_ns, int interruptible,
        char *scratch, size_t scratch_cap, tw_event *result)
{
    struct client_method *method = method_of(method_index);
    struct twi_peer *peer = twi_peer_address(peer_id);
    int64_t now_ns = twi_now_ns();
    if (!method || !peer) {
        if (peer)
            twi_peer_unref(peer);
        return method ? -TW_STALE : -EINVAL;
    }
    struct twi_call *call = open_call(method, deadline_ns, 0, 0, now_ns);
    if (call)
        start(call, peer, method, body, body_len, extra, 0, now_ns);
    twi_peer_unref(peer);
    if (!call)
        return -ENOMEM;
    if (twi_caller_wait(call, interruptible)) {
        result->id = id_of(call);
        return -EINTR;
    }
    return take_result(call, scratch, scratch_cap, result);
}

int
tw_wait(tw_id id, int interruptible, char *scratch, size_t scratch_cap,
        tw_event *result)
{
    struct twi_call *call = twi_slab_at(&slab, (uint32_t)id);
    /* The waiter's own reference keeps the slot; it may be over by now. */
    uint64_t now = call ? load_acquire(&call->vref) : VREF_FREE;
    if (now & VREF_FREE || !(id >> 32) || (now >> 32 & ~1u) != id >> 32)
        return -TW_STALE;
    if (twi_caller_wait(call, interruptible)) {
        result->id = id;
        return -EINTR;
    }
    return take_result(call, scratch, scratch_cap, result);
}

int
tw_submit(tw_id peer_id, int method_index, const char *body, size_t body_len,
          const tw_extra *extra, int64_t deadline_ns, tw_id inbox,
          uint64_t cookie, int cork, tw_id *id)
{
    struct client_method *method = method_of(method_index);
    struct twi_peer *peer = twi_peer_address(peer_id);
    int64_t now_ns = twi_now_ns();
    int rc = 0;
    if (!method || !inbox)
        rc = -EINVAL;
    else if (!peer)
        rc = -TW_STALE;
    struct twi_call *call = NULL;
    if (!rc &&
        !(call = open_call(method, deadline_ns, inbox, cookie, now_ns)))
        rc = -ENOMEM;
    if (!rc && !twi_inbox_expect(inbox)) {
        /* end() finds no inbox and gives back the waiter's reference. */
        end_with_error(call, ECANCELED, TW_PHASE_NONE);
        rc = -TW_STALE;
    }
    if (!rc) {
        /* Its result may come, and the call be over, before we return. */
        *id = id_of(call);
        vref_ref(&call->vref);
        start(call, peer, method, body, body_len, extra, cork, now_ns);
        unref(call);
    }
    if (peer)
        twi_peer_unref(peer);
    return rc;
}
