/* baidu_std: random metas against a model, and noise. */
#include "std_bed.h"

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

int
main(void)
{
    seed = check_seed();
    make_areas();
    test_random_metas(20000);
    test_noise(50000);
    return check_done();
}
