/* baidu_std, brpc's main protocol: bytes in, message out, no I/O, no memory.
 *
 * A frame is "PRPC", body_size u32 BE, meta_size u32 BE, then body_size bytes:
 * meta_size bytes of RpcMeta (protobuf) and the payload, whose last
 * attachment_size bytes are the attachment. */
#ifndef TWI_BAIDU_STD_H
#define TWI_BAIDU_STD_H

#include <stddef.h>
#include <stdint.h>

enum {
    TWI_STD_HEADER = 12,
    TWI_STD_MAX_META = 1 << 20,
    /* Room twi_std_pack_* may need beside the caller's strings. */
    TWI_STD_META_SLACK = 128
};

enum twi_cut {
    TWI_CUT_DONE,  /* one message; *used bytes were it */
    TWI_CUT_MORE,  /* incomplete; *need bytes in all are known to be needed */
    TWI_CUT_OTHER, /* not this protocol; nothing was consumed */
    TWI_CUT_BROKEN /* not acceptable: close the connection */
};

/* A string in the caller's buffer; p is NULL when the field was absent. */
struct twi_str {
    const uint8_t *p;
    size_t n;
};

struct twi_std_msg {
    struct twi_str meta, body, attachment; /* body: payload less attachment */
    int has_request, has_response;
    struct twi_str service, method, request_id, error_text;
    int64_t log_id;
    int32_t timeout_ms; /* 0: none (negative ones count as none) */
    int32_t error_code;
    int32_t compress_type, content_type, checksum_type;
    struct twi_str checksum;
    int checksum_with_attachment;
    int64_t correlation_id;
    int has_user_fields, has_stream_settings;
    int bad_attachment; /* attachment_size > payload: body is the payload, the
                           attachment empty (negative sizes count as none) */
    int32_t attachment_size;
    struct twi_str auth;
};

/* Whether a connection's first bytes are this protocol's. */
enum twi_cut twi_std_sniff(const uint8_t *data, size_t n);

/* How long the caller of a request waits for its answer; 0: unknown. */
static inline int64_t
twi_std_patience_ns(const struct twi_std_msg *msg)
{
    return msg->timeout_ms > 0 ? msg->timeout_ms * INT64_C(1000000) : 0;
}

/* Whether the body is anything but bare protobuf. */
static inline int
twi_std_coded(const struct twi_std_msg *msg)
{
    return msg->compress_type || msg->content_type || msg->checksum_type;
}

/* Cuts one frame off data[0, n).  max_body bounds body_size (equal is
 * accepted).  *need is at least n + 1 and at least TWI_STD_HEADER after MORE,
 * the whole frame's size once the header is there.  BROKEN: *why says so in a
 * static text.  *msg holds something after DONE only.  Pure: same bytes, same
 * answer, however they arrived. */
enum twi_cut twi_std_cut(const uint8_t *data, size_t n, uint64_t max_body,
                         struct twi_std_msg *msg, size_t *used, size_t *need,
                         const char **why);

/* The same once header and meta are there, the payload or not: DONE with what
 * the meta says, nothing consumed; msg->body and attachment are not set. */
enum twi_cut twi_std_peek(const uint8_t *data, size_t n, uint64_t max_body,
                          struct twi_std_msg *msg, size_t *need,
                          const char **why);

/* Header and meta of a request into out; their length, or 0 when cap is too
 * small or the format cannot say it: meta over TWI_STD_MAX_META, attachment
 * over INT32_MAX, everything behind the header over UINT32_MAX.  `names` is
 * the encoded service_name and method_name (twi_std_pack_names).  An empty
 * request_id or auth, ids of 0 and timeout_ms <= 0 are left out.  `extra_meta` is appended to
 * the meta as it is.  body_len does not count the attachment. */
struct twi_std_request {
    struct twi_str names, request_id, auth, extra_meta;
    int64_t correlation_id, log_id, trace_id, span_id, parent_span_id;
    int has_log_id;
    int32_t timeout_ms;
    uint64_t body_len, attachment_len;
};
size_t twi_std_pack_request(uint8_t *out, size_t cap,
                            const struct twi_std_request *request);
/* Fields 1 and 2 of RpcRequestMeta; length, or 0 when cap is too small. */
size_t twi_std_pack_names(uint8_t *out, size_t cap, struct twi_str service,
                          struct twi_str method);

/* Header and meta of a response; error_text and code only when code != 0.
 * 0 as for a request: an error_text that may be long is cut by the caller. */
struct twi_std_response {
    int64_t correlation_id;
    int32_t code;
    struct twi_str error_text, extra_meta;
    uint64_t body_len, attachment_len;
};
size_t twi_std_pack_response(uint8_t *out, size_t cap,
                             const struct twi_std_response *response);

#endif
