/* Fuzzes the cutting of baidu_std frames.  The input is what a peer sent.
 *
 * Oracles: the answer for a prefix is the answer for the whole or "more" (so
 * pieces change nothing, W2); foreign bytes stay untouched (W1); nothing is
 * used or pointed to outside the input; what was understood can be packed, is
 * understood the same again, and packs to the same bytes. */
#include "fuzz.h"
#include "std_cut.h"

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size,
                               unsigned seed);
/* Of libFuzzer, or of replay.c. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

#define LIMIT ((uint64_t)64 << 20)

enum { MAX_FRAMES = 64, ALL_PREFIXES = 48, SOME_PREFIXES = 24 };

/* A copy that ends where the sanitizer watches. */
static uint8_t *
copy(const uint8_t *data, size_t n)
{
    uint8_t *p = malloc(n);
    if (n && !p)
        abort();
    if (n)
        memcpy(p, data, n);
    return p;
}

static void
check_prefix(const uint8_t *data, size_t n, size_t k, const struct result *all)
{
    uint8_t *p = copy(data, k);
    struct result r = cut(p, k, LIMIT);
    if (r.cut != TWI_CUT_MORE) {
        MUST(same_result(&r, all));
    } else {
        MUST(r.need > k && r.need >= TWI_STD_HEADER);
        MUST(r.used == 0);
        if (all->cut == TWI_CUT_DONE)
            MUST(r.need <= all->used);
        if (all->cut == TWI_CUT_MORE)
            MUST(r.need <= all->need);
        if (k >= TWI_STD_HEADER)
            MUST((n < r.need) == (all->cut == TWI_CUT_MORE));
    }
    free(p);
}

/* The bytes themselves say which prefixes are tried. */
static void
check_prefixes(const uint8_t *data, size_t n, const struct result *all)
{
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t k = 0; k < n && k < ALL_PREFIXES; k++)
        check_prefix(data, n, k, all);
    if (n <= ALL_PREFIXES)
        return;
    check_prefix(data, n, n - 1, all);
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ data[i]) * 0x100000001b3;
    for (int i = 0; i < SOME_PREFIXES; i++) {
        hash ^= hash << 13;
        hash ^= hash >> 7;
        hash ^= hash << 17;
        check_prefix(data, n, hash % n, all);
    }
}

static void
check_inside(struct twi_str s, const struct twi_str *outer)
{
    if (!s.p) {
        MUST(s.n == 0);
        return;
    }
    MUST(s.p >= outer->p && s.p <= outer->p + outer->n);
    MUST(s.n <= (size_t)(outer->p + outer->n - s.p));
}

static void
check_message(const uint8_t *data, const struct result *r)
{
    const struct twi_std_msg *m = &r->msg;
    MUST(m->meta.p == data + TWI_STD_HEADER);
    MUST(m->body.p == m->meta.p + m->meta.n);
    MUST(m->attachment.p == m->body.p + m->body.n);
    MUST(m->attachment.p + m->attachment.n == data + r->used);
    check_inside(m->service, &m->meta);
    check_inside(m->method, &m->meta);
    check_inside(m->request_id, &m->meta);
    check_inside(m->error_text, &m->meta);
    check_inside(m->checksum, &m->meta);
    check_inside(m->auth, &m->meta);
    MUST(!m->has_request || (m->service.p && m->method.p));
    MUST(m->has_request || (!m->service.p && !m->method.p));
    MUST(m->timeout_ms >= 0);
    if (m->bad_attachment)
        MUST(m->attachment.n == 0 && m->attachment_size > 0 &&
             (size_t)m->attachment_size > m->body.n);
    else
        MUST(m->attachment.n ==
             (m->attachment_size > 0 ? (size_t)m->attachment_size : 0));
}

/* Packs m, with its own meta behind when asked; the frame in new memory. */
static uint8_t *
repack(const struct twi_std_msg *m, int with_meta, size_t *frame_len)
{
    struct twi_str extra = {NULL, 0};
    if (with_meta)
        extra = m->meta;
    size_t strings = m->service.n + m->method.n + m->request_id.n +
                     m->error_text.n + extra.n;
    size_t cap = strings + 2 * TWI_STD_META_SLACK;
    uint8_t *names = malloc(cap);
    uint8_t *out = malloc(cap + m->body.n + m->attachment.n);
    if (!names || !out)
        abort();
    size_t n, exact;
    if (m->has_request) {
        size_t names_len =
            twi_std_pack_names(names, cap, m->service, m->method);
        struct twi_std_request q = {.names = {names, names_len},
                                    .request_id = m->request_id,
                                    .extra_meta = extra,
                                    .correlation_id = m->correlation_id,
                                    .log_id = m->log_id,
                                    .has_log_id = 1,
                                    .timeout_ms = m->timeout_ms,
                                    .body_len = m->body.n,
                                    .attachment_len = m->attachment.n};
        MUST(names_len >= 4);
        cap = TWI_STD_META_SLACK + names_len + q.request_id.n + extra.n;
        n = twi_std_pack_request(out, cap, &q);
        exact = n ? twi_std_pack_request(out, n, &q) : 0;
        MUST(n == 0 || twi_std_pack_request(out, n - 1, &q) == 0);
    } else {
        struct twi_std_response a = {.correlation_id = m->correlation_id,
                                     .code = m->error_code,
                                     .error_text = m->error_text,
                                     .extra_meta = extra,
                                     .body_len = m->body.n,
                                     .attachment_len = m->attachment.n};
        cap = TWI_STD_META_SLACK + a.error_text.n + extra.n;
        n = twi_std_pack_response(out, cap, &a);
        exact = n ? twi_std_pack_response(out, n, &a) : 0;
        MUST(n == 0 || twi_std_pack_response(out, n - 1, &a) == 0);
    }
    free(names);
    MUST(exact == n);
    if (n == 0) { /* the only reason left */
        MUST(cap > TWI_STD_MAX_META);
        free(out);
        return NULL;
    }
    memcpy(out + n, m->body.p, m->body.n);
    n += m->body.n;
    memcpy(out + n, m->attachment.p, m->attachment.n);
    *frame_len = n + m->attachment.n;
    return out;
}

static void
check_repacked(const struct twi_std_msg *m)
{
    size_t n, again_len;
    uint8_t *frame = repack(m, 0, &n);
    if (!frame)
        return;
    struct result r = cut(frame, n, UINT64_MAX);
    MUST(r.cut == TWI_CUT_DONE && r.used == n);
    MUST(same_core(&r.msg, m));
    if (m->has_request) {
        MUST(r.msg.has_request && !r.msg.has_response);
        MUST(same_bytes(r.msg.request_id, m->request_id));
        MUST(r.msg.log_id == m->log_id);
        MUST(r.msg.timeout_ms == m->timeout_ms);
    } else {
        MUST(r.msg.has_response && !r.msg.has_request);
        MUST(r.msg.error_code == m->error_code);
        if (m->error_code)
            MUST(same_bytes(r.msg.error_text, m->error_text));
    }
    uint8_t *again = repack(&r.msg, 0, &again_len);
    MUST(again && again_len == n && memcmp(again, frame, n) == 0);
    free(again);
    free(frame);

    /* Behind our own fields the old meta repeats or adds, changes nothing. */
    frame = repack(m, 1, &n);
    if (!frame)
        return;
    struct twi_std_msg expected = *m;
    if (!m->has_request)
        expected.has_response = 1;
    r = cut(frame, n, UINT64_MAX);
    MUST(r.cut == TWI_CUT_DONE && r.used == n);
    MUST(same_meaning(&r.msg, &expected));
    free(frame);
}

static int
is_magic(const uint8_t *data, size_t n)
{
    return n == 0 || memcmp(data, "PRPC", n < 4 ? n : 4) == 0;
}

/* The limit decides by body_size alone, and only when the header is there. */
static void
check_limit(const uint8_t *data, size_t n, const struct result *r)
{
    if (n < TWI_STD_HEADER || r->cut == TWI_CUT_OTHER)
        return;
    uint64_t body = (uint64_t)data[4] << 24 | (uint64_t)data[5] << 16 |
                    (uint64_t)data[6] << 8 | data[7];
    struct result at = cut(data, n, body), any = cut(data, n, UINT64_MAX);
    MUST(same_result(&at, &any));
    if (body <= LIMIT)
        MUST(same_result(&at, r));
    else
        MUST(r->cut == TWI_CUT_BROKEN);
    if (body)
        MUST(cut(data, n, body - 1).cut == TWI_CUT_BROKEN);
    if (r->cut == TWI_CUT_DONE)
        MUST(r->used == TWI_STD_HEADER + body);
    if (r->cut == TWI_CUT_MORE)
        MUST(r->need == TWI_STD_HEADER + body);
}

/* Checks the frame at data; what it used. */
static size_t
check_frame(const uint8_t *data, size_t n)
{
    struct result r = cut(data, n, LIMIT);
    MUST((r.cut == TWI_CUT_OTHER) == !is_magic(data, n));
    MUST((r.cut == TWI_CUT_BROKEN) == (r.why != NULL));
    MUST(r.used <= n);
    check_limit(data, n, &r);
    check_prefixes(data, n, &r);
    if (r.cut != TWI_CUT_DONE) {
        MUST(r.used == 0);
        return 0;
    }
    MUST(r.used >= TWI_STD_HEADER);
    check_message(data, &r);
    /* Alone, without what follows, the frame is the same. */
    check_prefix(data, n, r.used, &r);
    check_repacked(&r.msg);
    return r.used;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *p = copy(data, size);
    size_t at = 0, used;
    for (int i = 0; i < MAX_FRAMES; i++) {
        if ((used = check_frame(p + at, size - at)) == 0)
            break;
        at += used;
    }
    /* Nobody wrote to the input. */
    MUST(size == 0 || memcmp(p, data, size) == 0);
    free(p);
    return 0;
}

/* Most changed inputs no longer fit their header and end there.  Three of
 * four get one that fits, so that the meta is reached. */
size_t
LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size,
                        unsigned seed)
{
    size = LLVMFuzzerMutate(data, size, max_size);
    if (size < TWI_STD_HEADER || seed % 4 == 0)
        return size;
    size_t body = size - TWI_STD_HEADER;
    size_t meta = (size_t)data[8] << 24 | (size_t)data[9] << 16 |
                  (size_t)data[10] << 8 | data[11];
    if (meta > body || seed % 4 == 1)
        meta = seed % 8 == 1 ? body : body - body / 4;
    memcpy(data, "PRPC", 4);
    for (int i = 0; i < 4; i++) {
        data[4 + i] = (uint8_t)(body >> (24 - 8 * i));
        data[8 + i] = (uint8_t)(meta >> (24 - 8 * i));
    }
    return size;
}
