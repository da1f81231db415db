/* baidu_std: worked examples, malformed input, every length at its ends,
 * arrival in pieces, recorded traffic (directory in argv[1]), and packing. */
#include "baidu_std.h"

#include <dirent.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"

#define MIB ((size_t)1 << 20)
#define LIMIT (64 * MIB)
#define LEN(array) (sizeof(array) / sizeof *(array))
/* A literal as bytes and their number. */
#define B(text) {(const uint8_t *)(text), sizeof(text) - 1}

static unsigned long long seed;

static size_t
below(size_t bound)
{
    return (size_t)(check_random(&seed) >> 11) % bound;
}

/* ---------------------------------------------- memory that ends exactly */

/* Two areas, each followed by a page nobody may touch. */
enum { IN = 0, OUT = 1 };
#define AREA (4 * MIB)
static uint8_t *area_end[2];

static void
make_areas(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < 2; i++) {
        uint8_t *p = mmap(NULL, AREA + page, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED || mprotect(p + AREA, page, PROT_NONE) != 0)
            abort();
        area_end[i] = p + AREA;
    }
}

/* n bytes right before the forbidden page; NULL may stand for none. */
static uint8_t *
at_end(int area, const void *data, size_t n)
{
    if (n > AREA)
        abort();
    uint8_t *p = area_end[area] - n;
    if (data && n)
        memcpy(p, data, n);
    return p;
}

/* -------------------------------------------------------- cutting, watched */

struct result {
    enum twi_cut cut;
    size_t used, need;
    const char *why;
    struct twi_std_msg msg;
};

static struct result
cut(const uint8_t *data, size_t n, uint64_t max_body)
{
    struct result r;
    memset(&r, 0xa5, sizeof r);
    r.cut = twi_std_cut(data, n, max_body, &r.msg, &r.used, &r.need, &r.why);
    return r;
}

static int
same_str(struct twi_str a, struct twi_str b)
{
    return a.n == b.n && !a.p == !b.p && (!a.n || !memcmp(a.p, b.p, a.n));
}

static int
is(struct twi_str s, const char *text)
{
    return s.p && s.n == strlen(text) && memcmp(s.p, text, s.n) == 0;
}

/* The same in everything but the bytes of the meta. */
static int
same_meaning(const struct twi_std_msg *a, const struct twi_std_msg *b)
{
    return same_str(a->body, b->body) &&
           same_str(a->attachment, b->attachment) &&
           a->has_request == b->has_request &&
           a->has_response == b->has_response &&
           same_str(a->service, b->service) &&
           same_str(a->method, b->method) &&
           same_str(a->request_id, b->request_id) &&
           same_str(a->error_text, b->error_text) && a->log_id == b->log_id &&
           a->timeout_ms == b->timeout_ms && a->error_code == b->error_code &&
           a->compress_type == b->compress_type &&
           a->content_type == b->content_type &&
           a->checksum_type == b->checksum_type &&
           same_str(a->checksum, b->checksum) &&
           a->checksum_with_attachment == b->checksum_with_attachment &&
           a->correlation_id == b->correlation_id &&
           a->has_user_fields == b->has_user_fields &&
           a->has_stream_settings == b->has_stream_settings &&
           a->bad_attachment == b->bad_attachment &&
           a->attachment_size == b->attachment_size &&
           same_str(a->auth, b->auth);
}

static int
same_result(const struct result *a, const struct result *b)
{
    if (a->cut != b->cut || a->used != b->used || a->need != b->need ||
        a->why != b->why)
        return 0;
    return a->cut != TWI_CUT_DONE || (same_str(a->msg.meta, b->msg.meta) &&
                                      same_meaning(&a->msg, &b->msg));
}

/* What holds for a proper prefix, given what the whole came to. */
static void
check_prefix(const uint8_t *data, size_t n, size_t k, uint64_t max_body,
             const struct result *whole)
{
    struct result r = cut(at_end(IN, data, k), k, max_body);
    switch (r.cut) {
    case TWI_CUT_MORE:
        CHECK(r.used == 0 && r.why == NULL);
        CHECK(r.need > k && r.need >= TWI_STD_HEADER);
        if (whole->cut == TWI_CUT_MORE)
            CHECK(r.need <= whole->need);
        if (whole->cut == TWI_CUT_DONE)
            CHECK(r.need <= whole->used);
        if (k < TWI_STD_HEADER)
            CHECK_EQ(r.need, TWI_STD_HEADER);
        else if (n >= r.need)
            CHECK(whole->cut == TWI_CUT_DONE || whole->cut == TWI_CUT_BROKEN);
        else
            CHECK(whole->cut == TWI_CUT_MORE && whole->need == r.need);
        break;
    default: /* decided: more bytes change nothing */
        CHECK(same_result(&r, whole));
        CHECK(r.cut != TWI_CUT_DONE || k >= r.used);
    }
}

/* Cuts data[0, n) whole and at every length below (a sample of them when
 * there are many), always right before a forbidden page. */
static struct result
feed(const uint8_t *data, size_t n, uint64_t max_body)
{
    struct result whole = cut(data, n, max_body);
    struct result again = cut(at_end(IN, data, n), n, max_body);
    CHECK(same_result(&whole, &again));
    CHECK(whole.used <= n);
    if (whole.cut != TWI_CUT_DONE)
        CHECK_EQ(whole.used, 0);
    if (whole.cut != TWI_CUT_MORE)
        CHECK_EQ(whole.need, 0);
    CHECK((whole.cut == TWI_CUT_BROKEN) == (whole.why != NULL));
    if (n <= 4096) {
        for (size_t k = 0; k < n; k++)
            check_prefix(data, n, k, max_body, &whole);
    } else {
        for (size_t k = 0; k < 128; k++) {
            check_prefix(data, n, k, max_body, &whole);
            check_prefix(data, n, n - 1 - k, max_body, &whole);
        }
        for (int i = 0; i < 50; i++)
            check_prefix(data, n, below(n), max_body, &whole);
    }
    return whole;
}

static uint64_t
mix(uint64_t hash, const void *data, size_t n)
{
    const uint8_t *p = data;
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ p[i]) * 0x100000001b3;
    return (hash ^ n) * 0x100000001b3;
}

static uint64_t
mix_str(uint64_t hash, struct twi_str s)
{
    return mix(hash, s.p ? s.p : (const uint8_t *)"", s.n);
}

enum { WHOLE, BYTES, RANDOM };

/* What a connection sees of these bytes when they arrive in such pieces: a
 * number made of every message, where it lay, and how it ended.  *messages
 * counts. */
static uint64_t
play(const uint8_t *data, size_t n, uint64_t max_body, int pieces,
     int *messages)
{
    size_t start = 0, have = 0, need = 0;
    uint64_t hash = 0xcbf29ce484222325;
    *messages = 0;
    while (have < n) {
        size_t step = pieces == WHOLE   ? n
                      : pieces == BYTES ? 1
                                        : 1 + below(1 + below(100));
        have = step > n - have ? n : have + step;
        for (;;) {
            size_t k = have - start;
            struct result r = cut(at_end(IN, data + start, k), k, max_body);
            if (r.cut == TWI_CUT_MORE) {
                CHECK(r.need >= need);
                need = r.need;
                break;
            }
            if (r.cut != TWI_CUT_DONE) {
                hash = mix(hash, &r.cut, sizeof r.cut);
                return mix(hash, &r.why, sizeof r.why);
            }
            CHECK(k >= need);
            need = 0;
            hash = mix(hash, &start, sizeof start);
            hash = mix_str(hash, r.msg.meta);
            hash = mix_str(hash, r.msg.service);
            hash = mix_str(hash, r.msg.error_text);
            hash = mix_str(hash, r.msg.body);
            hash = mix_str(hash, r.msg.attachment);
            ++*messages;
            start += r.used;
        }
    }
    hash = mix(hash, &start, sizeof start);
    return mix(hash, &need, sizeof need);
}

/* Returns how many messages there were. */
static int
feed_stream(const uint8_t *data, size_t n, uint64_t max_body)
{
    int count, other;
    uint64_t expected = play(data, n, max_body, WHOLE, &count);
    CHECK(play(data, n, max_body, BYTES, &other) == expected);
    CHECK_EQ(other, count);
    for (int i = 0; i < 20; i++) {
        CHECK(play(data, n, max_body, RANDOM, &other) == expected);
        CHECK_EQ(other, count);
    }
    return count;
}

/* ------------------------------------------------------- writing by hand */

/* An encoder of its own, so that a mistake is not made twice. */
static uint8_t scratch[3 * MIB];

struct writer {
    uint8_t *p;
    size_t n;
};

static void
w_bytes(struct writer *w, const void *data, size_t n)
{
    if (n)
        memcpy(w->p + w->n, data, n);
    w->n += n;
}

/* `pad` more bytes than needed, while ten are not exceeded. */
static void
w_varint(struct writer *w, uint64_t value, size_t pad)
{
    size_t n = 0;
    do {
        w->p[w->n++] = (uint8_t)((value & 0x7f) | 0x80);
        value >>= 7;
        n++;
    } while (value || (pad && n < 10 && pad--));
    w->p[w->n - 1] &= 0x7f;
}

static void
w_int(struct writer *w, uint64_t number, uint64_t value)
{
    w_varint(w, number << 3, 0);
    w_varint(w, value, 0);
}

static void
w_str(struct writer *w, uint64_t number, const void *data, size_t n)
{
    w_varint(w, number << 3 | 2, 0);
    w_varint(w, n, 0);
    w_bytes(w, data, n);
}

static void
w_be32(struct writer *w, uint64_t value)
{
    for (int shift = 24; shift >= 0; shift -= 8)
        w->p[w->n++] = (uint8_t)(value >> shift);
}

static void
w_header(struct writer *w, uint64_t body_size, uint64_t meta_size)
{
    w_bytes(w, "PRPC", 4);
    w_be32(w, body_size);
    w_be32(w, meta_size);
}

static void
w_frame(struct writer *w, const void *meta, size_t meta_len,
        const void *payload, size_t payload_len)
{
    w_header(w, (uint64_t)meta_len + payload_len, meta_len);
    w_bytes(w, meta, meta_len);
    w_bytes(w, payload, payload_len);
}

/* -------------------------------------------------- the spec's section 13 */

#define MESSAGE "\x0a\x05hello"
#define NAMES "\x0a\x13" "example.EchoService" "\x12\x04" "Echo"
#define NO_TEXT_66                                                             \
    "[10.0.0.1:8000][E1002]Fail to find method=example.EchoService/Nope"

static const struct twi_str full_request =
    B("PRPC\0\0\0\x38\0\0\0\x2e"
      "\x0a\x20" NAMES "\x18\x07\x40\xf4\x03"
      "\x18\0\x20\x01\x28\x03\x50\0\x58\0\x62\0" MESSAGE "ATT");
static const struct twi_str success =
    B("PRPC\0\0\0\x15\0\0\0\x0e"
      "\x12\x02\x08\0\x18\0\x20\x01\x50\0\x58\0\x62\0" MESSAGE);
static const struct twi_str failure =
    B("PRPC\0\0\0\x53\0\0\0\x53"
      "\x12\x47\x08\xea\x07\x12\x42" NO_TEXT_66
      "\x18\0\x20\x01\x50\0\x58\0\x62\0");
static const struct twi_str smallest =
    B("PRPC\0\0\0\x26\0\0\0\x1f"
      "\x0a\x1b" NAMES "\x20\x01" MESSAGE);

static void
test_worked_examples(void)
{
    struct result r = feed(full_request.p, full_request.n, LIMIT);
    CHECK_EQ(full_request.n, 68);
    CHECK_EQ(r.cut, TWI_CUT_DONE);
    CHECK_EQ(r.used, 68);
    CHECK(r.msg.meta.p == full_request.p + 12 && r.msg.meta.n == 46);
    CHECK(is(r.msg.body, MESSAGE) && is(r.msg.attachment, "ATT"));
    CHECK(r.msg.has_request && !r.msg.has_response);
    CHECK(is(r.msg.service, "example.EchoService"));
    CHECK(is(r.msg.method, "Echo"));
    CHECK_EQ(r.msg.log_id, 7);
    CHECK_EQ(r.msg.timeout_ms, 500);
    CHECK_EQ(r.msg.correlation_id, 1);
    CHECK_EQ(r.msg.attachment_size, 3);
    CHECK(!r.msg.bad_attachment && !r.msg.compress_type);
    CHECK(!r.msg.content_type && !r.msg.checksum_type);
    CHECK(is(r.msg.checksum, "") && !r.msg.checksum_with_attachment);
    CHECK(!r.msg.request_id.p && !r.msg.error_text.p && !r.msg.auth.p);
    CHECK(!r.msg.has_user_fields && !r.msg.has_stream_settings);

    r = feed(success.p, success.n, LIMIT);
    CHECK_EQ(success.n, 33);
    CHECK_EQ(r.cut, TWI_CUT_DONE);
    CHECK(!r.msg.has_request && r.msg.has_response);
    CHECK_EQ(r.msg.error_code, 0);
    CHECK(!r.msg.error_text.p && !r.msg.service.p);
    CHECK_EQ(r.msg.correlation_id, 1);
    CHECK(is(r.msg.body, MESSAGE) && is(r.msg.attachment, ""));

    r = feed(failure.p, failure.n, LIMIT);
    CHECK_EQ(failure.n, 95);
    CHECK_EQ(r.cut, TWI_CUT_DONE);
    CHECK_EQ(r.msg.error_code, 1002);
    CHECK(is(r.msg.error_text, NO_TEXT_66) && is(r.msg.body, ""));

    r = feed(smallest.p, smallest.n, LIMIT);
    CHECK_EQ(smallest.n, 50);
    CHECK_EQ(r.cut, TWI_CUT_DONE);
    CHECK(is(r.msg.service, "example.EchoService") && !r.msg.checksum.p);
    CHECK_EQ(r.msg.correlation_id, 1);
    CHECK_EQ(r.msg.timeout_ms, 0);

    /* All four in one stream, twice, whole or in pieces. */
    struct writer w = {scratch, 0};
    for (int i = 0; i < 2; i++) {
        w_bytes(&w, full_request.p, full_request.n);
        w_bytes(&w, success.p, success.n);
        w_bytes(&w, failure.p, failure.n);
        w_bytes(&w, smallest.p, smallest.n);
    }
    CHECK_EQ(feed_stream(w.p, w.n, LIMIT), 8);
    CHECK_EQ(feed_stream(w.p, w.n - 1, LIMIT), 7);
    CHECK_EQ(feed_stream(w.p, w.n, 56), 1 + 1); /* the failure is larger */
    w_bytes(&w, "STRM", 4);
    CHECK_EQ(feed_stream(w.p, w.n, LIMIT), 8);
}

/* The same messages from the packing side. */
static void
test_packed_examples(void)
{
    static const struct twi_str service = B("example.EchoService");
    static const struct twi_str method = B("Echo"), none = {NULL, 0};
    uint8_t out[256], names[64];
    size_t n;

    n = twi_std_pack_names(names, sizeof names, service, method);
    CHECK(n == 27 && memcmp(names, NAMES, n) == 0);
    struct twi_std_request request = {
        .names = {names, n}, .correlation_id = 1, .body_len = 7};
    n = twi_std_pack_request(out, sizeof out, &request);
    CHECK(n == smallest.n - 7 && memcmp(out, smallest.p, n) == 0);

    /* The full one less compress_type, which would stand in the middle. */
    static const struct twi_str packed =
        B("PRPC\0\0\0\x36\0\0\0\x2c"
          "\x0a\x20" NAMES "\x18\x07\x40\xf4\x03"
          "\x20\x01\x28\x03\x50\0\x58\0\x62\0");
    static const struct twi_str types = B("\x50\0\x58\0\x62\0");
    request.has_log_id = 1;
    request.log_id = 7;
    request.timeout_ms = 500;
    request.attachment_len = 3;
    request.extra_meta = types;
    n = twi_std_pack_request(out, sizeof out, &request);
    CHECK(n == packed.n && memcmp(out, packed.p, n) == 0);

    static const struct twi_str packed_id =
        B("PRPC\0\0\0\x31\0\0\0\x31"
          "\x0a\x23" NAMES "\x3a\x06" "req-42" "\x20\x82\x80\x80\x80\x10"
          "\x50\0\x58\0\x62\0");
    static const struct twi_str request_id = B("req-42");
    struct twi_std_request with_id = {.names = request.names,
                                      .request_id = request_id,
                                      .extra_meta = types,
                                      .correlation_id = 0x100000002,
                                      .timeout_ms = -1};
    n = twi_std_pack_request(out, sizeof out, &with_id);
    CHECK(n == packed_id.n && memcmp(out, packed_id.p, n) == 0);

    static const struct twi_str packed_success =
        B("PRPC\0\0\0\x0b\0\0\0\x04\x12\0\x20\x01");
    struct twi_std_response response = {.correlation_id = 1, .body_len = 7};
    n = twi_std_pack_response(out, sizeof out, &response);
    CHECK(n == packed_success.n && memcmp(out, packed_success.p, n) == 0);
    /* A text without a code is not sent. */
    static const struct twi_str text = B(NO_TEXT_66);
    response.error_text = text;
    n = twi_std_pack_response(out, sizeof out, &response);
    CHECK(n == packed_success.n && memcmp(out, packed_success.p, n) == 0);

    static const struct twi_str packed_failure =
        B("PRPC\0\0\0\x51\0\0\0\x51"
          "\x12\x47\x08\xea\x07\x12\x42" NO_TEXT_66
          "\x20\x01\x50\0\x58\0\x62\0");
    response.code = 1002;
    response.body_len = 0;
    response.extra_meta = types;
    n = twi_std_pack_response(out, sizeof out, &response);
    CHECK(n == packed_failure.n && memcmp(out, packed_failure.p, n) == 0);
    /* A code without a text. */
    static const struct twi_str packed_code =
        B("PRPC\0\0\0\x0f\0\0\0\x0f"
          "\x12\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x20\x00");
    struct twi_std_response bare = {.code = -1, .error_text = none};
    n = twi_std_pack_response(out, sizeof out, &bare);
    CHECK(n == packed_code.n && memcmp(out, packed_code.p, n) == 0);
}

/* ------------------------------------------------------------- the header */

static void
test_header(void)
{
    uint8_t *p = scratch;
    struct result r = cut(NULL, 0, LIMIT);
    CHECK(r.cut == TWI_CUT_MORE && r.need == TWI_STD_HEADER);

    /* Any other byte in the magic is seen at once, alone or with more. */
    for (size_t i = 0; i < 4; i++) {
        for (int byte = 0; byte < 256; byte++) {
            memcpy(p, "PRPC\0\0\0\0\0\0\0\0", 12);
            if (p[i] == byte)
                continue;
            p[i] = (uint8_t)byte;
            r = feed(p, 12, LIMIT);
            CHECK_EQ(r.cut, TWI_CUT_OTHER);
            for (size_t n = 1; n < 12; n++) {
                r = cut(at_end(IN, p, n), n, LIMIT);
                CHECK_EQ(r.cut, n > i ? TWI_CUT_OTHER : TWI_CUT_MORE);
            }
        }
    }

    static const struct {
        uint64_t body, meta, max_body;
        enum twi_cut cut;
    } rows[] = {
        {0, 0, 0, TWI_CUT_DONE},
        {0, 0, UINT64_MAX, TWI_CUT_DONE},
        {1, 0, 0, TWI_CUT_BROKEN},
        {1, 0, 1, TWI_CUT_MORE},
        {0, 1, 0, TWI_CUT_BROKEN},
        {0, 1, LIMIT, TWI_CUT_BROKEN},
        {1, 1, LIMIT, TWI_CUT_MORE},
        {1, 2, LIMIT, TWI_CUT_BROKEN},
        {0, UINT32_MAX, UINT64_MAX, TWI_CUT_BROKEN},
        {UINT32_MAX, UINT32_MAX, UINT64_MAX, TWI_CUT_BROKEN},
        {UINT32_MAX, TWI_STD_MAX_META, UINT64_MAX, TWI_CUT_MORE},
        {UINT32_MAX, TWI_STD_MAX_META + 1, UINT64_MAX, TWI_CUT_BROKEN},
        {UINT32_MAX, 0, UINT64_MAX, TWI_CUT_MORE},
        {UINT32_MAX, 0, UINT32_MAX, TWI_CUT_MORE},
        {UINT32_MAX, 0, (uint64_t)UINT32_MAX - 1, TWI_CUT_BROKEN},
        {UINT32_MAX, 0, LIMIT, TWI_CUT_BROKEN},
        {LIMIT, 0, LIMIT, TWI_CUT_MORE},
        {LIMIT + 1, 0, LIMIT, TWI_CUT_BROKEN},
        {0x80000000, 0x7fffffff, UINT64_MAX, TWI_CUT_BROKEN},
    };
    for (size_t i = 0; i < LEN(rows); i++) {
        struct writer w = {p, 0};
        w_header(&w, rows[i].body, rows[i].meta);
        r = feed(w.p, w.n, rows[i].max_body);
        CHECK_EQ(r.cut, rows[i].cut);
        if (r.cut == TWI_CUT_MORE)
            CHECK(r.need == 12 + rows[i].body);
        if (r.cut == TWI_CUT_BROKEN) /* eleven bytes are not enough */
            CHECK_EQ(cut(w.p, 11, rows[i].max_body).cut, TWI_CUT_MORE);
        if (r.cut == TWI_CUT_DONE)
            CHECK(!r.msg.has_request && !r.msg.has_response &&
                  is(r.msg.meta, "") && is(r.msg.body, "") &&
                  is(r.msg.attachment, "") && !r.msg.correlation_id);
    }
}

/* A meta of exactly 1 MiB and one byte more; also many small fields. */
static void
test_large_meta(void)
{
    static uint8_t big[MIB + 64];
    for (size_t extra = 0; extra < 2; extra++) {
        struct writer w = {scratch, 0};
        size_t n = MIB + extra;
        w_header(&w, n + 3, n);
        w_varint(&w, 15 << 3 | 2, 0);
        w_varint(&w, n - 4, 0);
        w_bytes(&w, big, n - 4);
        w_bytes(&w, "abc", 3);
        CHECK_EQ(w.n, 12 + n + 3);
        struct result r = feed(w.p, w.n, LIMIT);
        CHECK_EQ(r.cut, extra ? TWI_CUT_BROKEN : TWI_CUT_DONE);
        CHECK(extra || is(r.msg.body, "abc"));
    }
    /* 524288 fields of two bytes, the last one known. */
    struct writer w = {scratch, 0};
    w_header(&w, MIB, MIB);
    while (w.n < 12 + MIB - 2)
        w_bytes(&w, "\x78\x01", 2);
    w_bytes(&w, "\x20\x09", 2);
    struct result r = feed(w.p, w.n, LIMIT);
    CHECK_EQ(r.cut, TWI_CUT_DONE);
    CHECK_EQ(r.msg.correlation_id, 9);
    w.p[w.n - 1] = 0x80;
    CHECK_EQ(feed(w.p, w.n, LIMIT).cut, TWI_CUT_BROKEN);
    /* The same inside the request. */
    w.n = 0;
    w_header(&w, MIB, MIB);
    w_varint(&w, 1 << 3 | 2, 0);
    w_varint(&w, MIB - 4, 0);
    w_bytes(&w, NAMES, 27);
    while (w.n + 2 <= 12 + MIB)
        w_bytes(&w, "\x48\x01", 2);
    if (w.n < 12 + MIB) { /* an odd byte: make the last varint longer */
        w.p[w.n - 1] |= 0x80;
        w_bytes(&w, "\x01", 1);
    }
    r = feed(w.p, w.n, LIMIT);
    CHECK_EQ(r.cut, TWI_CUT_DONE);
    CHECK(is(r.msg.method, "Echo"));
}

/* --------------------------------------------------------------- the meta */

/* A frame around meta and payload, fed at every length. */
static struct result
feed_meta(const void *meta, size_t meta_len, const char *payload)
{
    struct writer w = {scratch, 0};
    w_frame(&w, meta, meta_len, payload, strlen(payload));
    return feed(w.p, w.n, LIMIT);
}

#define NINE_80 "\x80\x80\x80\x80\x80\x80\x80\x80\x80"
#define TEN_FF "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"

static void
test_malformed(void)
{
    static const struct {
        const char *what;
        struct twi_str meta;
    } rows[] = {
        {"tag cut off", B("\x80")},
        {"tag of eleven bytes", B(NINE_80 "\x80\x01\x01")},
        {"tag of six bytes", B("\xa0\x80\x80\x80\x80\0\x01")},
        {"tag beyond 32 bits", B("\xa0\x80\x80\x80\x10\x01")},
        {"value missing", B("\x20")},
        {"value cut off", B("\x20\x80")},
        {"value of eleven bytes", B("\x20" NINE_80 "\x80\x01")},
        {"value never ends", B("\x20" TEN_FF TEN_FF)},
        {"fixed64 cut off", B("\x79" "1234567")},
        {"fixed64 missing", B("\x79")},
        {"fixed32 cut off", B("\x7d" "123")},
        {"length missing", B("\x62")},
        {"length cut off", B("\x62\x80")},
        {"length of six bytes", B("\x62\x82\x80\x80\x80\x80\0" "ab")},
        {"length of eleven bytes", B("\x62" NINE_80 "\x80\x01")},
        {"one byte short", B("\x62\x03" "ab")},
        {"length 2^31 - 1", B("\x62\xff\xff\xff\xff\x07" "ab")},
        {"length 2^32 - 1", B("\x62\xff\xff\xff\xff\x0f" "ab")},
        {"length 2^32", B("\x62\x80\x80\x80\x80\x10" "ab")},
        {"length 2^63", B("\x62" NINE_80 "\x01" "ab")},
        {"length 2^64 - 1", B("\x62\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")},
        {"unknown field, length 2^64 - 12",
         B("\x7a\xf4\xff\xff\xff\xff\xff\xff\xff\xff\x01" "0123456789")},
        {"field 0, varint", B("\0\x01")},
        {"field 0, string", B("\x02\0")},
        {"field 0 in more bytes", B("\x80\0\x01")},
        {"group", B("\x7b\x7c")},
        {"end of group", B("\x7c")},
        {"wire type 6", B("\x7e\x01")},
        {"wire type 7", B("\x7f\x01")},
        {"request as varint", B("\x08\x01")},
        {"response as varint", B("\x10\x01")},
        {"compress_type as string", B("\x1a\x01\x01")},
        {"correlation_id as string", B("\x22\x01\x01")},
        {"correlation_id as fixed64", B("\x21" "12345678")},
        {"correlation_id as fixed32", B("\x25" "1234")},
        {"attachment_size as string", B("\x2a\x01\x01")},
        {"chunk_info as varint", B("\x30\x01")},
        {"authentication_data as varint", B("\x38\x01")},
        {"stream_settings as varint", B("\x40\x01")},
        {"user_fields as varint", B("\x48\x01")},
        {"content_type as string", B("\x52\x01\x01")},
        {"checksum_type as string", B("\x5a\x01\x01")},
        {"checksum_value as varint", B("\x60\x01")},
        {"checksum_with_attachment as string", B("\x6a\x01\x01")},
        {"request as group", B("\x0b\x0c")},
        {"empty request", B("\x0a\0")},
        {"request without method", B("\x0a\x03\x0a\x01s")},
        {"request without service", B("\x0a\x03\x12\x01m")},
        {"request, service twice", B("\x0a\x06\x0a\x01s\x0a\x01s")},
        {"request with a field 0", B("\x0a\x08\x0a\x01s\x12\x01m\0\0")},
        {"request, string leaves it", B("\x0a\x06\x0a\x01s\x12\x02m\x20\x01")},
        {"request, varint leaves it", B("\x0a\x08\x0a\x01s\x12\x01m\x18\x80"
                                        "\x01")},
        {"request, tag leaves it", B("\x0a\x07\x0a\x01s\x12\x01m\x98\x01\x01")},
        {"request longer than the meta", B("\x0a\x07\x0a\x01s\x12\x01m")},
        {"service as varint", B("\x0a\x05\x08\x01\x12\x01m")},
        {"method as varint", B("\x0a\x05\x0a\x01s\x10\x01")},
        {"log_id as string", B("\x0a\x08\x0a\x01s\x12\x01m\x1a\0")},
        {"trace_id as string", B("\x0a\x08\x0a\x01s\x12\x01m\x22\0")},
        {"span_id as string", B("\x0a\x08\x0a\x01s\x12\x01m\x2a\0")},
        {"parent_span_id as string", B("\x0a\x08\x0a\x01s\x12\x01m\x32\0")},
        {"request_id as varint", B("\x0a\x08\x0a\x01s\x12\x01m\x38\x01")},
        {"timeout_ms as string", B("\x0a\x08\x0a\x01s\x12\x01m\x42\0")},
        {"group in the request", B("\x0a\x08\x0a\x01s\x12\x01m\x4b\x4c")},
        {"error_code as string", B("\x12\x02\x0a\0")},
        {"error_text as varint", B("\x12\x02\x10\x01")},
        {"response with a field 0", B("\x12\x02\0\0")},
        {"response, varint leaves it", B("\x12\x02\x08\x80\x01")},
        {"response, text leaves it", B("\x12\x03\x12\x02t\x20\x01")},
        {"group in the response", B("\x12\x02\x1b\x1c")},
        {"good fields, then a bad one", B("\x20\x01\x28\0\x7a\x01")},
        {"bad request, then a good one",
         B("\x0a\x02\x08\x01\x0a\x06\x0a\x01s\x12\x01m")},
    };
    for (size_t i = 0; i < LEN(rows); i++) {
        /* The payload would satisfy whoever reads on. */
        struct result r = feed_meta(rows[i].meta.p, rows[i].meta.n,
                                    "\x01\x01\x01\x01\x01\x01\x01\x01");
        CHECK_EQ(r.cut, TWI_CUT_BROKEN);
        if (r.cut != TWI_CUT_BROKEN)
            fprintf(stderr, "  in the row: %s\n", rows[i].what);
        r = feed_meta(rows[i].meta.p, rows[i].meta.n, "");
        CHECK_EQ(r.cut, TWI_CUT_BROKEN);
    }
}

/* Each wire type but its own makes a known field broken. */
static void
test_wire_types(void)
{
    static const char meta_types[] = "?2200022220020";
    static const char request_types[] = "?22000020", response_types[] = "?02";
    for (int message = 0; message < 3; message++) {
        const char *types = message == 0   ? meta_types
                            : message == 1 ? request_types
                                           : response_types;
        for (uint64_t number = 1; number < 40; number++) {
            for (unsigned wire = 0; wire < 8; wire++) {
                uint8_t in[64], out[128];
                struct writer f = {in, 0}, w = {out, 0};
                int known = number < strlen(types);
                int good = wire == 0 || wire == 1 || wire == 2 || wire == 5;
                if (known)
                    good = wire == (unsigned)(types[number] - '0');
                if (message == 1 || (message == 0 && number == 1))
                    w_bytes(&f, NAMES, 27);
                if (message == 0 && number == 1 && wire == 2) {
                    w_str(&w, 1, f.p, f.n);
                } else {
                    if (message == 0)
                        f.n = 0;
                    w_varint(&f, number << 3 | wire, 0);
                    w_bytes(&f, "\0\0\0\0\0\0\0\0",
                            wire == 1   ? 8
                            : wire == 5 ? 4
                                        : 1);
                    if (message)
                        w_str(&w, (uint64_t)message, f.p, f.n);
                    else
                        w_bytes(&w, f.p, f.n);
                }
                struct result r = feed_meta(w.p, w.n, "");
                CHECK_EQ(r.cut, good ? TWI_CUT_DONE : TWI_CUT_BROKEN);
            }
        }
    }
}

/* Cutting a good meta short is broken except between two fields. */
static void
test_short_meta(void)
{
    const uint8_t *meta = full_request.p + 12;
    static const size_t ends[] = {0, 34, 36, 38, 40, 42, 44, 46};
    for (size_t n = 0, i = 0; n <= 46; n++) {
        int between = n == ends[i];
        i += (size_t)between;
        struct result r = feed_meta(meta, n, "payload");
        CHECK_EQ(r.cut, between ? TWI_CUT_DONE : TWI_CUT_BROKEN);
    }
}

static void
test_meanings(void)
{
    struct result r;
#define FEED(bytes, payload) feed_meta(bytes, sizeof(bytes) - 1, payload)
    r = FEED("", "all of it");
    CHECK(r.cut == TWI_CUT_DONE && is(r.msg.body, "all of it"));
    CHECK(!r.msg.has_request && r.msg.correlation_id == 0);

    /* Varints at their ends. */
    r = FEED("\x20\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "");
    CHECK(r.cut == TWI_CUT_DONE && r.msg.correlation_id == -1);
    r = FEED("\x20" NINE_80 "\x01", "");
    CHECK(r.cut == TWI_CUT_DONE && r.msg.correlation_id == INT64_MIN);
    r = FEED("\x20\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "");
    CHECK(r.cut == TWI_CUT_DONE && r.msg.correlation_id == INT64_MAX);
    r = FEED("\x20\x81\x80\x80\x80\x80\x80\x80\x80\x80\0", "");
    CHECK(r.cut == TWI_CUT_DONE && r.msg.correlation_id == 1);
    r = FEED("\x20\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "");
    CHECK(r.cut == TWI_CUT_DONE && r.msg.correlation_id == -1);
    r = FEED("\xa0\x80\x80\x80\0\x05", ""); /* a tag in five bytes */
    CHECK(r.cut == TWI_CUT_DONE && r.msg.correlation_id == 5);
    r = FEED("\xf8\xff\xff\xff\x0f\x05", ""); /* the largest field number */
    CHECK(r.cut == TWI_CUT_DONE && r.msg.correlation_id == 0);

    /* 32-bit fields keep the low 32 bits, unknown values are kept. */
    r = FEED("\x18\x85\x80\x80\x80\x10\x50\xff\xff\xff\xff\x07"
             "\x58\xff\xff\xff\xff\x0f", "");
    CHECK_EQ(r.cut, TWI_CUT_DONE);
    CHECK_EQ(r.msg.compress_type, 5);
    CHECK_EQ(r.msg.content_type, INT32_MAX);
    CHECK_EQ(r.msg.checksum_type, -1);
    r = FEED("\x68\x80\x80\x80\x80\x10", ""); /* a bool keeps them all */
    CHECK(r.cut == TWI_CUT_DONE && r.msg.checksum_with_attachment == 1);
    r = FEED("\x68\x01\x68\0", "");
    CHECK(r.cut == TWI_CUT_DONE && r.msg.checksum_with_attachment == 0);

    /* The last scalar wins, sub-messages merge, also interleaved. */
    r = FEED("\x0a\x03\x0a\x01s\x20\x01\x0a\x05\x12\x01m\x18\x09\x20\x02"
             "\x0a\x02\x18\x08\x12\x02\x08\x07\x12\x03\x12\x01t", "");
    CHECK_EQ(r.cut, TWI_CUT_DONE);
    CHECK(is(r.msg.service, "s") && is(r.msg.method, "m"));
    CHECK_EQ(r.msg.log_id, 8);
    CHECK_EQ(r.msg.correlation_id, 2);
    CHECK(r.msg.has_request && r.msg.has_response);
    CHECK(r.msg.error_code == 7 && is(r.msg.error_text, "t"));
    r = FEED("\x0a\x0c\x0a\x01s\x12\x01m\x0a\x01r\x12\x01n", "");
    CHECK(is(r.msg.service, "r") && is(r.msg.method, "n"));
    r = FEED("\x0a\x04\x0a\0\x12\0", ""); /* empty names are names */
    CHECK(r.cut == TWI_CUT_DONE && is(r.msg.service, ""));
    r = FEED("\x12\0", "");
    CHECK(r.cut == TWI_CUT_DONE && r.msg.has_response);

    /* timeout_ms: none, negative, largest, beyond 32 bits. */
    r = FEED("\x0a\x08\x0a\0\x12\0\x40\0\x48\0", "");
    CHECK(r.cut == TWI_CUT_DONE && r.msg.timeout_ms == 0);
    r = FEED("\x0a\x0f\x0a\0\x12\0\x40\xff\xff\xff\xff\xff\xff\xff\xff"
                     "\xff\x01", "");
    CHECK(r.cut == TWI_CUT_DONE && r.msg.timeout_ms == 0);
    r = FEED("\x0a\x0a\x0a\0\x12\0\x40\xff\xff\xff\xff\x07", "");
    CHECK(r.cut == TWI_CUT_DONE && r.msg.timeout_ms == INT32_MAX);
    r = FEED("\x0a\x0a\x0a\0\x12\0\x40\x81\x80\x80\x80\x10", "");
    CHECK(r.cut == TWI_CUT_DONE && r.msg.timeout_ms == 1);

    /* attachment_size against a payload of five. */
    static const struct {
        struct twi_str meta;
        const char *body, *attachment;
        int32_t size;
        int bad;
    } rows[] = {
        {B(""), "12345", "", 0, 0},
        {B("\x28\0"), "12345", "", 0, 0},
        {B("\x28\x01"), "1234", "5", 1, 0},
        {B("\x28\x04"), "1", "2345", 4, 0},
        {B("\x28\x05"), "", "12345", 5, 0},
        {B("\x28\x06"), "12345", "", 6, 1},
        {B("\x28\xff\xff\xff\xff\x07"), "12345", "", INT32_MAX, 1},
        {B("\x28\x80\x80\x80\x80\x08"), "12345", "", INT32_MIN, 0},
        {B("\x28\xff\xff\xff\xff\x0f"), "12345", "", -1, 0},
        {B("\x28\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), "12345", "", -1, 0},
        {B("\x28\x81\x80\x80\x80\x10"), "1234", "5", 1, 0},
        {B("\x28\x06\x28\x02"), "123", "45", 2, 0},
    };
    for (size_t i = 0; i < LEN(rows); i++) {
        r = feed_meta(rows[i].meta.p, rows[i].meta.n, "12345");
        CHECK_EQ(r.cut, TWI_CUT_DONE);
        CHECK(is(r.msg.body, rows[i].body));
        CHECK(is(r.msg.attachment, rows[i].attachment));
        CHECK_EQ(r.msg.attachment_size, rows[i].size);
        CHECK_EQ(r.msg.bad_attachment, rows[i].bad);
    }

    /* Strings of 0, 1, 127, 128 and many bytes in every place. */
    static const size_t sizes[] = {0, 1, 127, 128, 16383, 16384, 65536};
    static uint8_t text[65536], in[70000], meta[400000];
    memset(text, 0xe4, sizeof text);
    for (size_t i = 0; i < LEN(sizes); i++) {
        size_t n = sizes[i];
        struct writer m = {meta, 0}, s = {in, 0};
        w_str(&s, 1, text, n);
        w_str(&s, 2, "m", 1);
        w_str(&m, 1, s.p, s.n);
        s.n = 0;
        w_str(&s, 2, text, n);
        w_str(&m, 2, s.p, s.n);
        w_str(&m, 7, text, n);
        w_str(&m, 12, text, n);
        w_str(&m, 14, text, n);
        r = feed_meta(m.p, m.n, "b");
        CHECK_EQ(r.cut, TWI_CUT_DONE);
        struct twi_str expected = {text, n};
        CHECK(same_str(r.msg.service, expected));
        CHECK(same_str(r.msg.error_text, expected));
        CHECK(same_str(r.msg.auth, expected));
        CHECK(same_str(r.msg.checksum, expected));
        CHECK(is(r.msg.body, "b"));
    }
}

/* ------------------------------------------- random metas against a model */

enum { MODEL_TEXT = 40 };

static struct twi_str
random_text(void)
{
    static uint8_t pool[4096];
    if (!pool[0])
        for (size_t i = 0; i < sizeof pool; i++)
            pool[i] = (uint8_t)(check_random(&seed) | 1);
    size_t n = below(8) ? below(MODEL_TEXT) : below(300);
    return (struct twi_str){pool + below(sizeof pool - n), n};
}

static uint64_t
random_value(void)
{
    static const uint64_t ends[] = {
        0, 1, 127, 128, 16383, 16384, INT32_MAX, (uint64_t)INT32_MAX + 1,
        UINT32_MAX, (uint64_t)UINT32_MAX + 1, INT64_MAX,
        (uint64_t)INT64_MAX + 1, UINT64_MAX - 1, UINT64_MAX};
    if (below(3) == 0)
        return ends[below(LEN(ends))];
    return check_random(&seed) >> below(64);
}

/* Sometimes longer than needed, never longer than five bytes. */
static void
put_tag(struct writer *w, uint64_t number, unsigned wire)
{
    w_varint(w, number << 3 | wire, number > 15 || below(4) ? 0 : below(5));
}

static void
put_field(struct writer *w, uint64_t number, uint64_t value)
{
    put_tag(w, number, 0);
    w_varint(w, value, below(4) ? 0 : below(10));
}

static void
put_text(struct writer *w, uint64_t number, struct twi_str text)
{
    put_tag(w, number, 2);
    w_varint(w, text.n, below(4) ? 0 : below(4)); /* five bytes at most */
    w_bytes(w, text.p, text.n);
}

static void
put_unknown(struct writer *w, uint64_t first)
{
    uint64_t number = first + (below(2) ? below(20) : below(1 << 28));
    switch (below(4)) {
    case 0:
        put_field(w, number, random_value());
        break;
    case 1:
        put_text(w, number, random_text());
        break;
    case 2:
        put_tag(w, number, 1);
        w_bytes(w, TEN_FF, 8);
        break;
    case 3:
        put_tag(w, number, 5);
        w_bytes(w, TEN_FF, 4);
    }
}

/* One more part of the request, with k fields of any kind. */
static void
put_request(struct writer *meta, struct twi_std_msg *model, size_t k, int all)
{
    static uint8_t buffer[16384];
    struct writer w = {buffer, 0};
    uint64_t v = random_value();
    for (size_t i = 0; i < k; i++) {
        switch (below(7)) {
        case 0:
            put_text(&w, 1, model->service = random_text());
            break;
        case 1:
            put_text(&w, 2, model->method = random_text());
            break;
        case 2:
            put_field(&w, 3, v);
            model->log_id = (int64_t)v;
            break;
        case 3:
            put_field(&w, 4 + below(3), v);
            break;
        case 4:
            put_text(&w, 7, model->request_id = random_text());
            break;
        case 5:
            put_field(&w, 8, v);
            model->timeout_ms = (int32_t)(uint32_t)v;
            break;
        case 6:
            put_unknown(&w, 9);
        }
    }
    if (all && !model->service.p)
        put_text(&w, 1, model->service = random_text());
    if (all && !model->method.p)
        put_text(&w, 2, model->method = random_text());
    model->has_request = 1;
    put_text(meta, 1, (struct twi_str){w.p, w.n});
}

static void
put_response(struct writer *meta, struct twi_std_msg *model, size_t k)
{
    static uint8_t buffer[16384];
    struct writer w = {buffer, 0};
    uint64_t v = random_value();
    for (size_t i = 0; i < k; i++) {
        switch (below(3)) {
        case 0:
            put_field(&w, 1, v);
            model->error_code = (int32_t)(uint32_t)v;
            break;
        case 1:
            put_text(&w, 2, model->error_text = random_text());
            break;
        case 2:
            put_unknown(&w, 3);
        }
    }
    model->has_response = 1;
    put_text(meta, 2, (struct twi_str){w.p, w.n});
}

static void
put_meta_field(struct writer *w, struct twi_std_msg *model)
{
    uint64_t v = random_value();
    int32_t low = (int32_t)(uint32_t)v;
    switch (below(14)) {
    case 0:
        put_request(w, model, below(5), 0);
        break;
    case 1:
        put_response(w, model, below(4));
        break;
    case 2:
        put_field(w, 3, v);
        model->compress_type = low;
        break;
    case 3:
        put_field(w, 4, v);
        model->correlation_id = (int64_t)v;
        break;
    case 4:
        v = below(2) ? v : below(30);
        put_field(w, 5, v);
        model->attachment_size = (int32_t)(uint32_t)v;
        break;
    case 5:
        put_text(w, 6, random_text());
        break;
    case 6:
        put_text(w, 7, model->auth = random_text());
        break;
    case 7:
        put_text(w, 8, random_text());
        model->has_stream_settings = 1;
        break;
    case 8:
        put_text(w, 9, random_text());
        model->has_user_fields = 1;
        break;
    case 9:
        put_field(w, 10, v);
        model->content_type = low;
        break;
    case 10:
        put_field(w, 11, v);
        model->checksum_type = low;
        break;
    case 11:
        put_text(w, 12, model->checksum = random_text());
        break;
    case 12:
        put_field(w, 13, v);
        model->checksum_with_attachment = v != 0;
        break;
    case 13:
        put_unknown(w, 14);
    }
}

static void
test_random_metas(int rounds)
{
    static uint8_t meta[65536], stream[262144];
    static const uint8_t payload[] = "the payload of a random frame";
    struct writer s = {stream, 0};
    int frames = 0;
    for (int round = 0; round < rounds; round++) {
        struct writer m = {meta, 0}, w = {scratch, 0};
        struct twi_std_msg model = {0};
        for (size_t k = below(12); k > 0; k--)
            put_meta_field(&m, &model);
        if (model.has_request)
            put_request(&m, &model, below(3), 1);
        size_t n = below(sizeof payload), attachment = 0;
        if (model.timeout_ms < 0)
            model.timeout_ms = 0;
        if (model.attachment_size > 0)
            attachment = (size_t)model.attachment_size;
        if (attachment > n) {
            model.bad_attachment = 1;
            attachment = 0;
        }
        model.body = (struct twi_str){payload, n - attachment};
        model.attachment =
            (struct twi_str){payload + (n - attachment), attachment};
        w_frame(&w, m.p, m.n, payload, n);
        struct result r = round % 16 ? cut(at_end(IN, w.p, w.n), w.n, LIMIT)
                                     : feed(w.p, w.n, LIMIT);
        CHECK_EQ(r.cut, TWI_CUT_DONE);
        CHECK_EQ(r.used, w.n);
        CHECK(same_meaning(&r.msg, &model));
        if (round % 64 == 0 && s.n + w.n <= sizeof stream && frames < 20) {
            w_bytes(&s, w.p, w.n);
            frames++;
        }
    }
    CHECK_EQ(feed_stream(s.p, s.n, LIMIT), frames);
}

/* Noise: nothing is promised but an answer within the bytes. */
static void
test_noise(int rounds)
{
    for (int round = 0; round < rounds; round++) {
        uint8_t meta[64];
        size_t n = below(sizeof meta);
        struct writer w = {scratch, 0};
        for (size_t i = 0; i < n; i++)
            meta[i] = (uint8_t)(below(3) ? below(32) : check_random(&seed));
        w_frame(&w, meta, n, "payload", below(8));
        struct result r = cut(at_end(IN, w.p, w.n), w.n, LIMIT);
        CHECK(r.cut == TWI_CUT_DONE || r.cut == TWI_CUT_BROKEN);
        /* A worked example with a few bytes changed. */
        w.n = 0;
        w_bytes(&w, full_request.p, full_request.n);
        for (size_t i = below(4); i > 0; i--)
            w.p[8 + below(w.n - 8)] = (uint8_t)check_random(&seed);
        cut(at_end(IN, w.p, w.n), w.n, LIMIT);
    }
}

/* ---------------------------------------------------------------- packing */

static size_t
pack(int response, uint8_t *out, size_t cap, const void *what)
{
    return response ? twi_std_pack_response(out, cap, what)
                    : twi_std_pack_request(out, cap, what);
}

/* Packs at the exact size, one byte less, and more; returns the length with
 * the bytes at *packed. */
static size_t
pack_exactly(int response, const void *what, uint8_t **packed)
{
    size_t n = pack(response, at_end(OUT, NULL, MIB * 2), MIB * 2, what);
    CHECK(n >= TWI_STD_HEADER);
    CHECK_EQ(pack(response, at_end(OUT, NULL, n - 1), n - 1, what), 0);
    *packed = at_end(OUT, NULL, n);
    CHECK_EQ(pack(response, *packed, n, what), n);
    return n;
}

static void
test_pack_round_trips(int rounds)
{
    static const uint8_t payload[] = "message and attachment";
    for (int round = 0; round < rounds; round++) {
        uint8_t names[1024], *packed;
        struct twi_std_msg model = {0};
        size_t split = below(sizeof payload), n;
        struct twi_str extra = {NULL, 0};
        model.body = (struct twi_str){payload, split};
        model.attachment =
            (struct twi_str){payload + split, sizeof payload - split};
        if (below(2))
            model.attachment.n = 0;
        model.attachment_size = (int32_t)model.attachment.n;
        model.correlation_id = (int64_t)random_value();
        if (below(2)) {
            extra = (struct twi_str)B("\x4a\x04\x0a\0\x12\0\x58\x01");
            model.has_user_fields = 1;
            model.checksum_type = 1;
        }
        size_t slack = TWI_STD_META_SLACK + extra.n;
        if (below(2)) {
            struct twi_std_request q = {.extra_meta = extra};
            model.has_request = 1;
            model.service = random_text();
            model.method = random_text();
            n = twi_std_pack_names(names, sizeof names, model.service,
                                   model.method);
            CHECK(n >= 4 && n <= 4 + 2 + model.service.n + model.method.n);
            uint8_t *exact = at_end(OUT, NULL, n);
            CHECK_EQ(twi_std_pack_names(exact, n, model.service,
                                        model.method), n);
            CHECK(memcmp(exact, names, n) == 0);
            CHECK_EQ(twi_std_pack_names(at_end(OUT, NULL, n - 1), n - 1,
                                        model.service, model.method), 0);
            q.names = (struct twi_str){names, n};
            slack += n;
            if (below(2)) {
                q.request_id = random_text();
                slack += q.request_id.n;
                if (q.request_id.n)
                    model.request_id = q.request_id;
            }
            q.has_log_id = below(2) != 0;
            q.log_id = (int64_t)random_value();
            if (q.has_log_id)
                model.log_id = q.log_id;
            q.timeout_ms = (int32_t)(uint32_t)random_value();
            if (q.timeout_ms > 0)
                model.timeout_ms = q.timeout_ms;
            q.correlation_id = model.correlation_id;
            q.body_len = model.body.n;
            q.attachment_len = model.attachment.n;
            n = pack_exactly(0, &q, &packed);
        } else {
            struct twi_std_response a = {.extra_meta = extra};
            model.has_response = 1;
            a.code = (int32_t)(uint32_t)random_value();
            a.error_text = random_text();
            slack += a.error_text.n;
            if (a.code && a.error_text.n)
                model.error_text = a.error_text;
            model.error_code = a.code;
            a.correlation_id = model.correlation_id;
            a.body_len = model.body.n;
            a.attachment_len = model.attachment.n;
            n = pack_exactly(1, &a, &packed);
        }
        CHECK(n <= slack);
        struct writer w = {scratch, 0};
        w_bytes(&w, packed, n);
        w_bytes(&w, model.body.p, model.body.n);
        w_bytes(&w, model.attachment.p, model.attachment.n);
        struct result r = round % 16 ? cut(at_end(IN, w.p, w.n), w.n, LIMIT)
                                     : feed(w.p, w.n, LIMIT);
        CHECK_EQ(r.cut, TWI_CUT_DONE);
        CHECK_EQ(r.used, w.n);
        CHECK_EQ(r.msg.meta.n, n - TWI_STD_HEADER);
        CHECK(same_meaning(&r.msg, &model));
    }
}

/* Sizes the format can just say, and one more. */
static void
test_pack_limits(void)
{
    static const struct twi_str names = B("\x0a\x01s\x12\x01m");
    static uint8_t out[MIB + 4096], text[MIB + 1];
    static const struct {
        uint64_t body, attachment;
        int fits;
    } rows[] = {
        {0, 0, 1},
        {1, 0, 1},
        {0, 1, 1},
        {0, INT32_MAX, 1},
        {0, (uint64_t)INT32_MAX + 1, 0},
        {UINT32_MAX - 10, 0, 1}, /* the meta takes ten */
        {UINT32_MAX - 9, 0, 0},
        {UINT32_MAX, 0, 0},
        {(uint64_t)UINT32_MAX + 1, 0, 0},
        {UINT32_MAX - 16, 0, 1},
        {UINT32_MAX - 17 - 4, 5, 1},
        {UINT32_MAX - 16, 5, 0},
        {UINT64_MAX, 0, 0},
        {0, UINT64_MAX, 0},
        {UINT64_MAX, UINT64_MAX, 0},
        {UINT64_MAX - 9, 0, 0},
        {(uint64_t)1 << 63, (uint64_t)1 << 63, 0},
    };
    for (size_t i = 0; i < LEN(rows); i++) {
        struct twi_std_request q = {.names = names,
                                    .body_len = rows[i].body,
                                    .attachment_len = rows[i].attachment};
        size_t n = twi_std_pack_request(out, sizeof out, &q);
        CHECK_EQ(n != 0, rows[i].fits);
        if (n) {
            struct result r = cut(out, n, UINT32_MAX);
            uint64_t whole = n + rows[i].body + rows[i].attachment;
            CHECK(whole == n ? r.cut == TWI_CUT_DONE : r.need == whole);
        }
        struct twi_std_response a = {.body_len = rows[i].body,
                                     .attachment_len = rows[i].attachment};
        /* Its meta has six bytes less. */
        n = twi_std_pack_response(out, sizeof out, &a);
        if (rows[i].fits)
            CHECK(n != 0);
        if (rows[i].body > UINT32_MAX || rows[i].attachment > INT32_MAX)
            CHECK_EQ(n, 0);
    }

    /* No room at all, also where nobody may write. */
    struct twi_std_request q = {.names = names};
    struct twi_std_response a = {.code = 1};
    for (size_t cap = 0; cap < TWI_STD_HEADER; cap++) {
        uint8_t *p = at_end(OUT, NULL, cap);
        CHECK_EQ(twi_std_pack_request(p, cap, &q), 0);
        CHECK_EQ(twi_std_pack_response(p, cap, &a), 0);
    }
    CHECK_EQ(twi_std_pack_names(NULL, 0, names, names), 0);

    /* A meta of 1 MiB goes and is understood, a larger one does not. */
    for (size_t n = MIB - 16; n <= MIB; n++) {
        struct twi_str long_text = {text, n};
        struct twi_std_response e = {.code = 1, .error_text = long_text};
        size_t length = twi_std_pack_response(out, sizeof out, &e);
        /* 2, 4 and 2, 4 around it, code 2, correlation_id 2 bytes */
        CHECK_EQ(length, n + 12 <= MIB ? n + 24 : 0);
        if (length) {
            struct result r = cut(out, length, LIMIT);
            CHECK(r.cut == TWI_CUT_DONE && same_str(r.msg.error_text,
                                                    long_text));
        }
    }
    /* Lengths no memory has: refused before they are added up. */
    static const size_t huge[] = {MIB + 1, UINT32_MAX, SIZE_MAX / 2,
                                  SIZE_MAX - 20, SIZE_MAX};
    for (size_t i = 0; i < LEN(huge); i++) {
        struct twi_str s = {text, huge[i]};
        struct twi_std_request in_names = {.names = s};
        struct twi_std_request in_id = {.names = names, .request_id = s};
        struct twi_std_request in_extra = {.names = names, .extra_meta = s};
        struct twi_std_response in_text = {.code = 1, .error_text = s};
        struct twi_std_response in_tail = {.extra_meta = s};
        CHECK_EQ(twi_std_pack_request(out, SIZE_MAX, &in_names), 0);
        CHECK_EQ(twi_std_pack_request(out, SIZE_MAX, &in_id), 0);
        CHECK_EQ(twi_std_pack_request(out, SIZE_MAX, &in_extra), 0);
        CHECK_EQ(twi_std_pack_response(out, SIZE_MAX, &in_text), 0);
        CHECK_EQ(twi_std_pack_response(out, SIZE_MAX, &in_tail), 0);
        CHECK_EQ(twi_std_pack_names(out, SIZE_MAX, s, names), 0);
        CHECK_EQ(twi_std_pack_names(out, SIZE_MAX, names, s), 0);
    }
}

/* ------------------------------------------------------- recorded traffic */

#define CORRELATION 0x100000002 /* of every recorded call */

static const struct recorded {
    const char *name;
    int response;
    int frames; /* PRPC frames, also inside STRM frames */
    const char *service, *method, *attachment, *request_id, *auth;
    int64_t log_id;
    int32_t error_code, compress_type, checksum_type;
    int checksum_with_attachment, user_fields, stream_settings;
} recorded[] = {
#define CALL(case_name)                                                        \
    .name = case_name ".c2s.bin", .frames = 1,                                 \
    .service = "example.EchoService", .method = "Echo"
#define ANSWER(case_name)                                                      \
    .name = case_name ".s2c.bin", .frames = 1, .response = 1
    {CALL("plain")},
    {ANSWER("plain")},
    {CALL("attachment"), .attachment = "ATTACHMENT-bytes"},
    {ANSWER("attachment"), .attachment = "ATTACHMENT-bytes"},
    {CALL("gzip"), .compress_type = 2},
    {ANSWER("gzip"), .compress_type = 2},
    {CALL("zlib"), .compress_type = 3},
    {ANSWER("zlib"), .compress_type = 3},
    {CALL("snappy"), .compress_type = 1},
    {ANSWER("snappy"), .compress_type = 1},
    {CALL("gzip_attachment"), .compress_type = 2,
     .attachment = "ATTACHMENT-bytes"},
    {ANSWER("gzip_attachment"), .compress_type = 2,
     .attachment = "ATTACHMENT-bytes"},
    {CALL("crc32c"), .checksum_type = 1},
    {ANSWER("crc32c"), .checksum_type = 1},
    {CALL("crc32c_attachment"), .checksum_type = 1,
     .attachment = "ATTACHMENT-bytes"},
    {ANSWER("crc32c_attachment"), .checksum_type = 1,
     .attachment = "ATTACHMENT-bytes"},
    {CALL("crc32c_gzip"), .checksum_type = 1, .compress_type = 2},
    {ANSWER("crc32c_gzip"), .checksum_type = 1, .compress_type = 2},
    {CALL("log_id"), .log_id = 123456789},
    {ANSWER("log_id")},
    {CALL("request_id"), .request_id = "req-42"},
    {ANSWER("request_id")},
    {CALL("user_fields"), .user_fields = 1},
    {ANSWER("user_fields")},
    {CALL("fail")},
    {ANSWER("fail"), .error_code = 2001},
    {CALL("big")},
    {ANSWER("big")},
    {CALL("timeout")},
    {.name = "timeout.s2c.bin", .response = 1},
    {CALL("stream"), .stream_settings = 1},
    {ANSWER("stream"), .stream_settings = 1},
    {CALL("auth_ok"), .auth = "secret-token"},
    {ANSWER("auth_ok")},
    {CALL("auth_bad"), .auth = "wrong"},
    {ANSWER("auth_bad"), .error_code = 1004},
    {.name = "bad_method.c2s.bin", .frames = 1,
     .service = "example.EchoService", .method = "NoSuchMethod"},
    {ANSWER("bad_method"), .error_code = 1002},
    {.name = "bad_service.c2s.bin", .frames = 1,
     .service = "example.NoSuchService",
     .method = "Echo"},
    {ANSWER("bad_service"), .error_code = 1002},
};

/* Packs the same message and compares what comes out. */
static void
check_repacked(const struct twi_std_msg *msg)
{
    static uint8_t out[4096], frame[2 * MIB];
    uint8_t names[256], types[256];
    struct writer t = {types, 0}, w = {frame, 0};
    if (msg->compress_type)
        w_int(&t, 3, (uint64_t)msg->compress_type);
    if (msg->auth.p)
        w_str(&t, 7, msg->auth.p, msg->auth.n);
    if (msg->has_stream_settings)
        w_str(&t, 8, "\x08\0", 2);
    if (msg->has_user_fields)
        w_str(&t, 9, "\x0a\0\x12\0", 4);
    if (msg->checksum_type)
        w_int(&t, 11, (uint64_t)msg->checksum_type);
    if (msg->checksum.p)
        w_str(&t, 12, msg->checksum.p, msg->checksum.n);
    struct twi_str extra = {t.p, t.n};
    size_t n;
    if (msg->has_request) {
        size_t names_len = twi_std_pack_names(names, sizeof names,
                                              msg->service, msg->method);
        struct twi_std_request q = {.names = {names, names_len},
                                    .request_id = msg->request_id,
                                    .extra_meta = extra,
                                    .correlation_id = msg->correlation_id,
                                    .log_id = msg->log_id,
                                    .has_log_id = msg->log_id != 0,
                                    .timeout_ms = msg->timeout_ms,
                                    .body_len = msg->body.n,
                                    .attachment_len = msg->attachment.n};
        n = twi_std_pack_request(out, sizeof out, &q);
    } else {
        struct twi_std_response a = {.correlation_id = msg->correlation_id,
                                     .code = msg->error_code,
                                     .error_text = msg->error_text,
                                     .extra_meta = extra,
                                     .body_len = msg->body.n,
                                     .attachment_len = msg->attachment.n};
        n = twi_std_pack_response(out, sizeof out, &a);
    }
    CHECK(n > 0);
    w_bytes(&w, out, n);
    w_bytes(&w, msg->body.p, msg->body.n);
    w_bytes(&w, msg->attachment.p, msg->attachment.n);
    struct result r = cut(w.p, w.n, LIMIT);
    CHECK_EQ(r.cut, TWI_CUT_DONE);
    CHECK(same_meaning(&r.msg, msg));
}

static void
check_recorded(const struct recorded *c, const struct twi_std_msg *msg)
{
    CHECK_EQ(msg->correlation_id, CORRELATION);
    CHECK_EQ(msg->has_request, !c->response);
    CHECK_EQ(msg->has_response, c->response);
    if (c->service)
        CHECK(is(msg->service, c->service));
    if (c->method)
        CHECK(is(msg->method, c->method));
    CHECK(is(msg->attachment, c->attachment ? c->attachment : ""));
    CHECK(c->request_id ? is(msg->request_id, c->request_id)
                        : !msg->request_id.p);
    CHECK(c->auth ? is(msg->auth, c->auth) : !msg->auth.p);
    CHECK_EQ(msg->log_id, c->log_id);
    CHECK_EQ(msg->error_code, c->error_code);
    CHECK_EQ(msg->error_text.n > 0, c->error_code != 0);
    CHECK_EQ(msg->compress_type, c->compress_type);
    CHECK_EQ(msg->checksum_type, c->checksum_type);
    CHECK_EQ(msg->checksum.n, c->checksum_type ? 4 : 0);
    CHECK_EQ(msg->has_user_fields, c->user_fields);
    CHECK_EQ(msg->has_stream_settings, c->stream_settings);
    CHECK(!msg->bad_attachment && msg->timeout_ms == 0);
    check_repacked(msg);
}

static void
check_frames(const struct recorded *c, const uint8_t *data, size_t n)
{
    int frames = 0;
    size_t at = 0;
    while (at < n) {
        struct result r = feed(data + at, n - at, LIMIT);
        if (n - at >= 12 && memcmp(data + at, "PRPC", 4) == 0) {
            CHECK_EQ(r.cut, TWI_CUT_DONE);
            if (r.cut != TWI_CUT_DONE)
                break;
            check_recorded(c, &r.msg);
            frames++;
            at += r.used;
            continue;
        }
        /* A stream's frame is another protocol's; it may hold our answer,
         * then ends with it. */
        CHECK(n - at >= 12 && memcmp(data + at, "STRM", 4) == 0);
        CHECK_EQ(r.cut, TWI_CUT_OTHER);
        if (n - at < 12)
            break;
        size_t size = 12 + ((size_t)data[at + 6] << 8 | data[at + 7]);
        size_t head = 12 + ((size_t)data[at + 10] << 8 | data[at + 11]);
        CHECK(head <= size && size <= n - at);
        if (head > size || size > n - at)
            break;
        if (size - head >= 12 && memcmp(data + at + head, "PRPC", 4) == 0) {
            r = feed(data + at + head, size - head, LIMIT);
            CHECK_EQ(r.cut, TWI_CUT_DONE);
            CHECK_EQ(r.used, size - head);
            if (r.cut == TWI_CUT_DONE)
                check_recorded(c, &r.msg);
            frames++;
        }
        at += size;
    }
    CHECK_EQ(frames, c->frames);
    if (n < 4096) {
        int whole = feed_stream(data, n, LIMIT);
        CHECK_EQ(whole, n && data[0] == 'P' ? c->frames : 0);
    }
}

static void
test_recorded(const char *directory)
{
    static uint8_t data[2 * MIB];
    DIR *d = opendir(directory);
    CHECK(d != NULL);
    if (!d)
        return;
    size_t seen = 0;
    for (struct dirent *e; (e = readdir(d));) {
        size_t length = strlen(e->d_name);
        if (length < 4 || strcmp(e->d_name + length - 4, ".bin") != 0)
            continue;
        const struct recorded *c = NULL;
        for (size_t i = 0; i < LEN(recorded); i++)
            if (strcmp(recorded[i].name, e->d_name) == 0)
                c = &recorded[i];
        CHECK(c != NULL);
        if (!c) {
            fprintf(stderr, "  nothing is known of %s\n", e->d_name);
            continue;
        }
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", directory, e->d_name);
        FILE *f = fopen(path, "rb");
        CHECK(f != NULL);
        if (!f)
            continue;
        size_t n = fread(data, 1, sizeof data, f);
        fclose(f);
        CHECK(n < sizeof data);
        int failures = check_failures;
        check_frames(c, data, n);
        if (check_failures != failures)
            fprintf(stderr, "  in %s\n", e->d_name);
        seen++;
    }
    closedir(d);
    CHECK_EQ(seen, LEN(recorded));
}

int
main(int argc, char **argv)
{
    seed = check_seed();
    make_areas();
    test_worked_examples();
    test_packed_examples();
    test_header();
    test_large_meta();
    test_malformed();
    test_wire_types();
    test_short_meta();
    test_meanings();
    test_random_metas(20000);
    test_noise(50000);
    test_pack_round_trips(10000);
    test_pack_limits();
    if (argc > 1)
        test_recorded(argv[1]);
    else
        fprintf(stderr, "without the recorded traffic: no directory given\n");
    return check_done();
}
