#include "baidu_std.h"

#include <string.h>

/* A frame is looked at three times at most by a connection that honours
 * *need: for the prefix, for the header, and once whole.  Only the last look
 * goes through the meta, in one pass: get_field takes the next field apart
 * whatever it is, so unknown fields are skipped by being left alone, and the
 * parse_* functions pick what they know by number and wire type together.
 * Strings stay where they are; an absent one has p == NULL. */

enum { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_LEN = 2, WIRE_FIXED32 = 5 };

/* Numbers from 1 to these are known in the message they belong to; 0 is no
 * number, so that up to these nothing is skipped as unknown. */
enum { LAST_META = 13, LAST_REQUEST = 8, LAST_RESPONSE = 2 };

/* Tags and lengths are the short ones: protobuf's own readers refuse longer
 * ones even of a small number, and the meta may be read by one later. */
enum { VARINT_MAX_BYTES = 10, SHORT_MAX_BYTES = 5 };

#define TAG(number, wire) ((number) << 3 | (wire))

_Static_assert(TAG(LAST_META, WIRE_LEN) < 0x80, "tags fit one byte");
_Static_assert(TWI_STD_META_SLACK >=
                   TWI_STD_HEADER + 6 + 4 * 11 + 6 + 6 + 11 + 6 + 6,
               "header, request, log_id and trace ids, request_id, timeout, correlation, "
               "attachment and authentication");

static const char magic[4] = {'P', 'R', 'P', 'C'};

static const char wrong_field[] =
    "field 0 or a known field of another wire type in the meta";

struct field {
    uint32_t tag;   /* number << 3 | wire type */
    uint64_t value; /* of a varint */
    struct twi_str str;
    const char *why;
};

static uint32_t
get_be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 |
           (uint32_t)p[3];
}

static const uint8_t *
get_long_varint(const uint8_t *p, const uint8_t *end, uint64_t *value)
{
    size_t most = (size_t)(end - p);
    uint64_t sum = 0;
    if (most > VARINT_MAX_BYTES)
        most = VARINT_MAX_BYTES;
    for (size_t i = 0; i < most; i++) {
        /* Bits beyond the 64th fall off, as in protobuf. */
        sum |= (uint64_t)(p[i] & 0x7f) << (7 * i);
        if (p[i] < 0x80) {
            *value = sum;
            return p + i + 1;
        }
    }
    return NULL;
}

/* What follows the varint, or NULL. */
static inline const uint8_t *
get_varint(const uint8_t *p, const uint8_t *end, uint64_t *value)
{
    if (p < end && *p < 0x80) {
        *value = *p;
        return p + 1;
    }
    return get_long_varint(p, end, value);
}

/* The same for tags and lengths. */
static inline const uint8_t *
get_short(const uint8_t *p, const uint8_t *end, uint64_t *value)
{
    if (p < end && *p < 0x80) {
        *value = *p;
        return p + 1;
    }
    const uint8_t *after = get_long_varint(p, end, value);
    if (!after || after - p > SHORT_MAX_BYTES || *value > UINT32_MAX)
        return NULL;
    return after;
}

/* What follows the field, or NULL and f->why. */
static inline const uint8_t *
get_field(const uint8_t *p, const uint8_t *end, struct field *f)
{
    uint64_t tag, length;
    if (!(p = get_short(p, end, &tag))) {
        f->why = "bad tag in the meta";
        return NULL;
    }
    f->tag = (uint32_t)tag;
    switch (tag & 7) {
    case WIRE_VARINT:
        if (!(p = get_varint(p, end, &f->value)))
            f->why = "bad varint in the meta";
        return p;
    case WIRE_LEN:
        if (!(p = get_short(p, end, &length))) {
            f->why = "bad length in the meta";
            return NULL;
        }
        break;
    case WIRE_FIXED64:
        length = 8;
        break;
    case WIRE_FIXED32:
        length = 4;
        break;
    default:
        f->why = "group or unknown wire type in the meta";
        return NULL;
    }
    if (length > (uint64_t)(end - p)) {
        f->why = "truncated field in the meta";
        return NULL;
    }
    f->value = 0;
    f->str.p = p;
    f->str.n = (size_t)length;
    return p + length;
}

static inline int32_t
to_int32(uint64_t value)
{
    return (int32_t)(uint32_t)value;
}

static const char *
parse_request(struct twi_str in, struct twi_std_msg *msg)
{
    const uint8_t *p = in.p, *end = in.p + in.n;
    struct field f;
    while (p < end) {
        if (!(p = get_field(p, end, &f)))
            return f.why;
        switch (f.tag) {
        case TAG(1, WIRE_LEN):
            msg->service = f.str;
            break;
        case TAG(2, WIRE_LEN):
            msg->method = f.str;
            break;
        case TAG(3, WIRE_VARINT):
            msg->log_id = (int64_t)f.value;
            break;
        case TAG(4, WIRE_VARINT): /* trace_id */
        case TAG(5, WIRE_VARINT): /* span_id */
        case TAG(6, WIRE_VARINT): /* parent_span_id */
            break;
        case TAG(7, WIRE_LEN):
            msg->request_id = f.str;
            break;
        case TAG(8, WIRE_VARINT):
            msg->timeout_ms = to_int32(f.value);
            break;
        default:
            if (f.tag >> 3 <= LAST_REQUEST)
                return wrong_field;
        }
    }
    return NULL;
}

static const char *
parse_response(struct twi_str in, struct twi_std_msg *msg)
{
    const uint8_t *p = in.p, *end = in.p + in.n;
    struct field f;
    while (p < end) {
        if (!(p = get_field(p, end, &f)))
            return f.why;
        switch (f.tag) {
        case TAG(1, WIRE_VARINT):
            msg->error_code = to_int32(f.value);
            break;
        case TAG(2, WIRE_LEN):
            msg->error_text = f.str;
            break;
        default:
            if (f.tag >> 3 <= LAST_RESPONSE)
                return wrong_field;
        }
    }
    return NULL;
}

static const char *
parse_meta(struct twi_std_msg *msg)
{
    const uint8_t *p = msg->meta.p, *end = p + msg->meta.n;
    const char *why = NULL;
    struct field f;
    while (p < end) {
        if (!(p = get_field(p, end, &f)))
            return f.why;
        switch (f.tag) {
        case TAG(1, WIRE_LEN):
            msg->has_request = 1;
            why = parse_request(f.str, msg);
            break;
        case TAG(2, WIRE_LEN):
            msg->has_response = 1;
            why = parse_response(f.str, msg);
            break;
        case TAG(3, WIRE_VARINT):
            msg->compress_type = to_int32(f.value);
            break;
        case TAG(4, WIRE_VARINT):
            msg->correlation_id = (int64_t)f.value;
            break;
        case TAG(5, WIRE_VARINT):
            msg->attachment_size = to_int32(f.value);
            break;
        case TAG(6, WIRE_LEN): /* chunk_info */
            break;
        case TAG(7, WIRE_LEN):
            msg->auth = f.str;
            break;
        case TAG(8, WIRE_LEN):
            msg->has_stream_settings = 1;
            break;
        case TAG(9, WIRE_LEN):
            msg->has_user_fields = 1;
            break;
        case TAG(10, WIRE_VARINT):
            msg->content_type = to_int32(f.value);
            break;
        case TAG(11, WIRE_VARINT):
            msg->checksum_type = to_int32(f.value);
            break;
        case TAG(12, WIRE_LEN):
            msg->checksum = f.str;
            break;
        case TAG(13, WIRE_VARINT):
            msg->checksum_with_attachment = f.value != 0;
            break;
        default:
            if (f.tag >> 3 <= LAST_META)
                return wrong_field;
        }
        if (why)
            return why;
    }
    /* Only now: request may come in several parts, which merge. */
    if (msg->has_request && (!msg->service.p || !msg->method.p))
        return "request without service_name or method_name";
    if (msg->timeout_ms < 0)
        msg->timeout_ms = 0;
    return NULL;
}

/* The header; DONE when its sizes are acceptable. */
static enum twi_cut
cut_header(const uint8_t *data, size_t n, uint64_t max_body, size_t *frame_size,
           size_t *meta_size, size_t *need, const char **why)
{
    *need = 0;
    *why = NULL;
    if (n < TWI_STD_HEADER) {
        size_t prefix = n < sizeof magic ? n : sizeof magic;
        if (prefix && memcmp(data, magic, prefix) != 0)
            return TWI_CUT_OTHER;
        *need = TWI_STD_HEADER;
        return TWI_CUT_MORE;
    }
    if (memcmp(data, magic, sizeof magic) != 0)
        return TWI_CUT_OTHER;

    uint64_t body = get_be32(data + 4), meta = get_be32(data + 8);
    uint64_t frame = TWI_STD_HEADER + body;
    if (body > max_body || frame != (size_t)frame) {
        *why = "body over the limit";
        return TWI_CUT_BROKEN;
    }
    if (meta > body) {
        *why = "meta larger than the body";
        return TWI_CUT_BROKEN;
    }
    if (meta > TWI_STD_MAX_META) {
        *why = "meta over 1 MiB";
        return TWI_CUT_BROKEN;
    }
    *frame_size = (size_t)frame;
    *meta_size = (size_t)meta;
    return TWI_CUT_DONE;
}

static enum twi_cut
cut_meta(const uint8_t *data, size_t meta_size, struct twi_std_msg *msg,
         const char **why)
{
    memset(msg, 0, sizeof *msg);
    msg->meta.p = data + TWI_STD_HEADER;
    msg->meta.n = meta_size;
    return (*why = parse_meta(msg)) ? TWI_CUT_BROKEN : TWI_CUT_DONE;
}

enum twi_cut
twi_std_peek(const uint8_t *data, size_t n, uint64_t max_body,
             struct twi_std_msg *msg, size_t *need, const char **why)
{
    size_t frame_size, meta_size;
    enum twi_cut cut =
        cut_header(data, n, max_body, &frame_size, &meta_size, need, why);
    if (cut != TWI_CUT_DONE)
        return cut;
    if (n < TWI_STD_HEADER + meta_size) {
        *need = TWI_STD_HEADER + meta_size;
        return TWI_CUT_MORE;
    }
    return cut_meta(data, meta_size, msg, why);
}

enum twi_cut
twi_std_sniff(const uint8_t *data, size_t n)
{
    size_t known = n < sizeof magic ? n : sizeof magic;
    if (memcmp(data, magic, known))
        return TWI_CUT_OTHER;
    return known == sizeof magic ? TWI_CUT_DONE : TWI_CUT_MORE;
}

enum twi_cut
twi_std_cut(const uint8_t *data, size_t n, uint64_t max_body,
            struct twi_std_msg *msg, size_t *used, size_t *need,
            const char **why)
{
    size_t frame_size, meta_size;
    *used = 0;
    enum twi_cut cut =
        cut_header(data, n, max_body, &frame_size, &meta_size, need, why);
    if (cut != TWI_CUT_DONE)
        return cut;
    if (n < frame_size) {
        *need = frame_size;
        return TWI_CUT_MORE;
    }
    if ((cut = cut_meta(data, meta_size, msg, why)) != TWI_CUT_DONE)
        return cut;

    uint64_t payload = frame_size - TWI_STD_HEADER - meta_size, attachment = 0;
    if (msg->attachment_size > 0)
        attachment = (uint64_t)msg->attachment_size;
    if (attachment > payload) {
        msg->bad_attachment = 1;
        attachment = 0;
    }
    msg->body.p = msg->meta.p + meta_size;
    msg->body.n = (size_t)(payload - attachment);
    msg->attachment.p = msg->body.p + msg->body.n;
    msg->attachment.n = (size_t)attachment;
    *used = frame_size;
    return TWI_CUT_DONE;
}

/* Packing computes every length first, so that nothing is written unless all
 * of it fits. */

static uint64_t
varint_size(uint64_t value)
{
    uint64_t size = 1;
    while (value >= 0x80) {
        value >>= 7;
        size++;
    }
    return size;
}

/* Of a field with a one-byte tag. */
static uint64_t
int_size(uint64_t value)
{
    return 1 + varint_size(value);
}

static uint64_t
str_size(uint64_t n)
{
    return 1 + varint_size(n) + n;
}

static uint8_t *
put_be32(uint8_t *p, uint64_t value)
{
    p[0] = (uint8_t)(value >> 24);
    p[1] = (uint8_t)(value >> 16);
    p[2] = (uint8_t)(value >> 8);
    p[3] = (uint8_t)value;
    return p + 4;
}

static uint8_t *
put_varint(uint8_t *p, uint64_t value)
{
    while (value >= 0x80) {
        *p++ = (uint8_t)(value | 0x80);
        value >>= 7;
    }
    *p++ = (uint8_t)value;
    return p;
}

static uint8_t *
put_int(uint8_t *p, int number, uint64_t value)
{
    *p++ = (uint8_t)TAG(number, WIRE_VARINT);
    return put_varint(p, value);
}

static uint8_t *
put_bytes(uint8_t *p, struct twi_str s)
{
    if (s.n) /* memcpy takes no NULL, an empty string may be one */
        memcpy(p, s.p, s.n);
    return p + s.n;
}

/* Tag and length of a field whose content the caller writes. */
static uint8_t *
put_len(uint8_t *p, int number, uint64_t n)
{
    *p++ = (uint8_t)TAG(number, WIRE_LEN);
    return put_varint(p, n);
}

static uint8_t *
put_str(uint8_t *p, int number, struct twi_str s)
{
    return put_bytes(put_len(p, number, s.n), s);
}

/* Larger ones fit no meta; below it sums of a few cannot overflow. */
static int
too_long(struct twi_str s)
{
    return s.n > TWI_STD_MAX_META;
}

/* Where the meta goes, or NULL when there is no room or the format has no
 * number for these sizes. */
static uint8_t *
put_header(uint8_t *out, size_t cap, uint64_t meta_len, uint64_t body_len,
           uint64_t attachment_len)
{
    if (meta_len > TWI_STD_MAX_META || TWI_STD_HEADER + meta_len > cap)
        return NULL;
    if (attachment_len > INT32_MAX || body_len > UINT32_MAX)
        return NULL;
    uint64_t body_size = meta_len + body_len + attachment_len;
    if (body_size > UINT32_MAX)
        return NULL;
    memcpy(out, magic, sizeof magic);
    out = put_be32(out + sizeof magic, body_size);
    return put_be32(out, meta_len);
}

/* correlation_id, attachment_size and the caller's fields: the end of both
 * kinds of meta. */
static uint64_t
tail_size(int64_t correlation_id, uint64_t attachment_len,
          struct twi_str extra_meta)
{
    uint64_t size = int_size((uint64_t)correlation_id) + extra_meta.n;
    if (attachment_len)
        size += int_size(attachment_len);
    return size;
}

static uint8_t *
put_tail(uint8_t *p, int64_t correlation_id, uint64_t attachment_len,
         struct twi_str extra_meta)
{
    p = put_int(p, 4, (uint64_t)correlation_id);
    if (attachment_len)
        p = put_int(p, 5, attachment_len);
    return put_bytes(p, extra_meta);
}

size_t
twi_std_pack_names(uint8_t *out, size_t cap, struct twi_str service,
                   struct twi_str method)
{
    if (too_long(service) || too_long(method))
        return 0;
    if (str_size(service.n) + str_size(method.n) > cap)
        return 0;
    uint8_t *p = put_str(out, 1, service);
    return (size_t)(put_str(p, 2, method) - out);
}

size_t
twi_std_pack_request(uint8_t *out, size_t cap,
                     const struct twi_std_request *request)
{
    const struct twi_std_request *r = request;
    if (too_long(r->names) || too_long(r->request_id) || too_long(r->auth) ||
        too_long(r->extra_meta))
        return 0;
    uint64_t inner = r->names.n;
    if (r->has_log_id)
        inner += int_size((uint64_t)r->log_id);
    if (r->trace_id)
        inner += int_size((uint64_t)r->trace_id);
    if (r->span_id)
        inner += int_size((uint64_t)r->span_id);
    if (r->parent_span_id)
        inner += int_size((uint64_t)r->parent_span_id);
    if (r->request_id.n)
        inner += str_size(r->request_id.n);
    if (r->timeout_ms > 0)
        inner += int_size((uint64_t)r->timeout_ms);
    uint64_t meta = str_size(inner) + tail_size(r->correlation_id,
                                                r->attachment_len,
                                                r->extra_meta);
    if (r->auth.n)
        meta += str_size(r->auth.n);
    uint8_t *p = put_header(out, cap, meta, r->body_len, r->attachment_len);
    if (!p)
        return 0;

    p = put_bytes(put_len(p, 1, inner), r->names);
    if (r->has_log_id)
        p = put_int(p, 3, (uint64_t)r->log_id);
    if (r->trace_id)
        p = put_int(p, 4, (uint64_t)r->trace_id);
    if (r->span_id)
        p = put_int(p, 5, (uint64_t)r->span_id);
    if (r->parent_span_id)
        p = put_int(p, 6, (uint64_t)r->parent_span_id);
    if (r->request_id.n)
        p = put_str(p, 7, r->request_id);
    if (r->timeout_ms > 0)
        p = put_int(p, 8, (uint64_t)r->timeout_ms);
    if (r->auth.n)
        p = put_str(p, 7, r->auth);
    p = put_tail(p, r->correlation_id, r->attachment_len, r->extra_meta);
    return (size_t)(p - out);
}

size_t
twi_std_pack_response(uint8_t *out, size_t cap,
                      const struct twi_std_response *response)
{
    const struct twi_std_response *r = response;
    /* Negative codes are sign-extended to ten bytes, as protobuf wants. */
    uint64_t code = (uint64_t)(int64_t)r->code;
    struct twi_str text = {NULL, 0};
    if (r->code)
        text = r->error_text;
    if (too_long(text) || too_long(r->extra_meta))
        return 0;
    uint64_t inner = 0;
    if (r->code)
        inner += int_size(code);
    if (text.n)
        inner += str_size(text.n);
    uint64_t meta = str_size(inner) + tail_size(r->correlation_id,
                                                r->attachment_len,
                                                r->extra_meta);
    uint8_t *p = put_header(out, cap, meta, r->body_len, r->attachment_len);
    if (!p)
        return 0;

    p = put_len(p, 2, inner);
    if (r->code)
        p = put_int(p, 1, code);
    if (text.n)
        p = put_str(p, 2, text);
    p = put_tail(p, r->correlation_id, r->attachment_len, r->extra_meta);
    return (size_t)(p - out);
}
