/* baidu_std: recorded traffic (its directory in argv[1]) means what it meant,
 * and is packed to the same. */
#include "std_bed.h"

#include <dirent.h>

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
    MUST(argc == 2);
    test_recorded(argv[1]);
    return check_done();
}
