#include "std_client.h"

#include <string.h>

#include "atomics.h"
#include "counters.h"
#include "credential.h"
#include "payload.h"
#include "successor.h"
#include "writer.h"

struct twi_wnode *
twi_std_client_pack(const struct twi_call *call, struct twi_str names,
                    const char *body, size_t body_len, const tw_extra *extra,
                    const struct twi_block *credential, int64_t now_ns)
{
    static const tw_extra none;
    const tw_extra *x = extra ? extra : &none;
    struct twi_std_request request = {
        .names = names,
        .request_id = {(const uint8_t *)x->request_id, x->request_id_len},
        .extra_meta = {(const uint8_t *)x->meta, x->meta_len},
        .correlation_id = (int64_t)twi_call_id(call),
        .log_id = x->log_id,
        .has_log_id = x->has_log_id,
        .trace_id = x->trace_id,
        .span_id = x->span_id,
        .parent_span_id = x->parent_span_id,
        .body_len = body_len,
        .attachment_len = x->attachment_len,
    };
    if (credential)
        request.auth = (struct twi_str){credential->data, credential->size};
    if (call->deadline_ns && !x->no_timeout_on_wire) {
        int64_t ms = (call->deadline_ns - now_ns + 999999) / 1000000;
        request.timeout_ms = ms > INT32_MAX ? 0 : ms < 1 ? 1 : (int32_t)ms;
    }
    size_t head = TWI_STD_HEADER + TWI_STD_META_SLACK + names.n +
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
    node->id = twi_call_id(call);
    node->notify = x->notify_sent != 0;
    return node;
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
    tw_id id = (tw_id)msg.correlation_id;
    if (msg.error_code == TW_ELOGOFF) {
        twi_peer_leave(sock, id != 0, now_ns);
        if (!id)
            return cut; /* a notice */
    }
    int refused = twi_credential_refused(sock, msg.error_code);
    struct twi_call *call = twi_call_address(id);
    /* Only from the connection that the attempt was sent on: an id may have
     * had several.  relaxed: noted before the bytes left that are answered. */
    if (!call || load_relaxed(&call->life) != sock->life) {
        twi_count(TWI_STALE_RESPONSES, 1);
        if (call)
            twi_call_unref(call);
        if (refused)
            twi_socket_fail(sock, TW_ERPCAUTH, TW_PHASE_PEER);
        return cut;
    }
    struct twi_outcome outcome = {.code = msg.error_code,
                              .phase = msg.error_code ? TW_PHASE_PEER
                                                      : TW_PHASE_NONE,
                              .block = block,
                              .msg = &msg,
                              .now_ns = now_ns};
    static const char large[] = "attachment_size is larger than the response";
    if (!msg.error_code && msg.bad_attachment) {
        outcome.code = TW_ERESPONSE;
        outcome.phase = TW_PHASE_READ;
        msg.error_text.p = (const uint8_t *)large;
        msg.error_text.n = sizeof large - 1;
    }
    if (outcome.code)
        msg.body.n = msg.attachment.n = 0;
    store_relaxed(&call->sent, TW_SENT_ALL);
    if (refused) {
        /* The server closes it, too, but the caller's next call must not meet
         * it.  Calls under way learn the reason; this one has a text.
         * relaxed: the error publishes it to twi_call_sent. */
        store_relaxed(&call->socket, 0);
        twi_socket_fail(sock, TW_ERPCAUTH, TW_PHASE_PEER);
    }
    if (!twi_call_finish(call, (uint32_t)(id >> 32), &outcome))
        twi_count(TWI_STALE_RESPONSES, 1);
    twi_call_unref(call);
    return cut;
}

const struct twi_protocol twi_std_client = {
    .name = "baidu_std",
    .bit = TW_PROTO_BAIDU_STD,
    .sniff = twi_std_sniff,
    .consume = std_consume,
};
