/* baidu_std: the worked examples, every value of the header, metas and bodies
 * at their largest. */
#include "std_bed.h"

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

int
main(void)
{
    seed = check_seed();
    make_areas();
    test_worked_examples();
    test_header();
    test_large_meta();
    return check_done();
}
