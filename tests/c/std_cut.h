/* What comes of cutting a frame of baidu_std, and whether two outcomes are the
 * same: for the tests and the fuzzer. */
#ifndef STD_CUT_H
#define STD_CUT_H

#include "baidu_std.h"

#include <string.h>

struct result {
    enum twi_cut cut;
    size_t used, need;
    const char *why;
    struct twi_std_msg msg;
};

static inline struct result
cut(const uint8_t *data, size_t n, uint64_t max_body)
{
    struct result r;
    memset(&r, 0xa5, sizeof r);
    r.cut = twi_std_cut(data, n, max_body, &r.msg, &r.used, &r.need, &r.why);
    return r;
}

static inline int
same_bytes(struct twi_str a, struct twi_str b)
{
    return a.n == b.n && (!a.n || !memcmp(a.p, b.p, a.n));
}

/* Tells none from an empty string, too. */
static inline int
same_str(struct twi_str a, struct twi_str b)
{
    return !a.p == !b.p && same_bytes(a, b);
}

/* What a packed frame can say without extra fields. */
static inline int
same_core(const struct twi_std_msg *a, const struct twi_std_msg *b)
{
    return same_str(a->body, b->body) &&
           same_str(a->attachment, b->attachment) &&
           same_str(a->service, b->service) &&
           same_str(a->method, b->method) &&
           a->correlation_id == b->correlation_id;
}

/* The same in everything but the bytes of the meta. */
static inline int
same_meaning(const struct twi_std_msg *a, const struct twi_std_msg *b)
{
    return same_core(a, b) && a->has_request == b->has_request &&
           a->has_response == b->has_response &&
           same_str(a->request_id, b->request_id) &&
           same_str(a->error_text, b->error_text) && a->log_id == b->log_id &&
           a->timeout_ms == b->timeout_ms && a->error_code == b->error_code &&
           a->compress_type == b->compress_type &&
           a->content_type == b->content_type &&
           a->checksum_type == b->checksum_type &&
           same_str(a->checksum, b->checksum) &&
           a->checksum_with_attachment == b->checksum_with_attachment &&
           a->has_user_fields == b->has_user_fields &&
           a->has_stream_settings == b->has_stream_settings &&
           a->bad_attachment == b->bad_attachment &&
           a->attachment_size == b->attachment_size &&
           same_str(a->auth, b->auth);
}

static inline int
same_result(const struct result *a, const struct result *b)
{
    if (a->cut != b->cut || a->used != b->used || a->need != b->need ||
        a->why != b->why)
        return 0;
    return a->cut != TWI_CUT_DONE || (same_str(a->msg.meta, b->msg.meta) &&
                                      same_meaning(&a->msg, &b->msg));
}

#endif
