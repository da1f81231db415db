/* baidu_std: packing, by example, at random and at its limits. */
#include "std_bed.h"

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

    static const struct twi_str packed_traced =
        B("PRPC\0\0\0\x33\0\0\0\x2c"
          "\x0a\x28" NAMES "\x20\x01\x30\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
          "\x20\x01");
    struct twi_std_request traced = {.names = request.names,
                                     .correlation_id = 1,
                                     .trace_id = 1,
                                     .parent_span_id = -1,
                                     .body_len = 7};
    n = twi_std_pack_request(out, sizeof out, &traced);
    CHECK(n == packed_traced.n && memcmp(out, packed_traced.p, n) == 0);

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
            q.trace_id = (int64_t)random_value();
            q.span_id = below(2) ? (int64_t)random_value() : 0;
            q.parent_span_id = (int64_t)random_value();
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

int
main(void)
{
    seed = check_seed();
    make_areas();
    test_packed_examples();
    test_pack_round_trips(10000);
    test_pack_limits();
    return check_done();
}
