/* baidu_std: metas that are malformed, short, of other wire types, and what
 * the others mean. */
#include "std_bed.h"

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

int
main(void)
{
    seed = check_seed();
    make_areas();
    test_malformed();
    test_wire_types();
    test_short_meta();
    test_meanings();
    return check_done();
}
