/* What the tests of baidu_std share: memory that ends exactly, cutting at every
 * length, an encoder of their own, the examples of the specification. */
#ifndef STD_BED_H
#define STD_BED_H

#include "std_cut.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"

#define MIB ((size_t)1 << 20)
#define LIMIT (64 * MIB)
#define LEN(array) (sizeof(array) / sizeof *(array))
/* A literal as bytes and their number. */
#define B(text) {(const uint8_t *)(text), sizeof(text) - 1}

static unsigned long long seed;

static inline size_t
below(size_t bound)
{
    return (size_t)(check_random(&seed) >> 11) % bound;
}

/* ---------------------------------------------- memory that ends exactly */

/* Two areas, each followed by a page nobody may touch. */
enum { IN = 0, OUT = 1 };
#define AREA (4 * MIB)
static uint8_t *area_end[2];

static inline void
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
static inline uint8_t *
at_end(int area, const void *data, size_t n)
{
    if (n > AREA)
        abort();
    uint8_t *p = area_end[area] - n;
    if (data && n)
        memcpy(p, data, n);
    return p;
}

static inline int
is(struct twi_str s, const char *text)
{
    return s.p && s.n == strlen(text) && memcmp(s.p, text, s.n) == 0;
}

/* -------------------------------------------------------- cutting, watched */

/* What holds for a proper prefix, given what the whole came to. */
static inline void
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
static inline struct result
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

static inline uint64_t
mix(uint64_t hash, const void *data, size_t n)
{
    const uint8_t *p = data;
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ p[i]) * 0x100000001b3;
    return (hash ^ n) * 0x100000001b3;
}

static inline uint64_t
mix_str(uint64_t hash, struct twi_str s)
{
    return mix(hash, s.p ? s.p : (const uint8_t *)"", s.n);
}

enum { WHOLE, BYTES, RANDOM };

/* What a connection sees of these bytes when they arrive in such pieces: a
 * number made of every message, where it lay, and how it ended.  *messages
 * counts. */
static inline uint64_t
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
static inline int
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

static inline void
w_bytes(struct writer *w, const void *data, size_t n)
{
    if (n)
        memcpy(w->p + w->n, data, n);
    w->n += n;
}

/* `pad` more bytes than needed, while ten are not exceeded. */
static inline void
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

static inline void
w_int(struct writer *w, uint64_t number, uint64_t value)
{
    w_varint(w, number << 3, 0);
    w_varint(w, value, 0);
}

static inline void
w_str(struct writer *w, uint64_t number, const void *data, size_t n)
{
    w_varint(w, number << 3 | 2, 0);
    w_varint(w, n, 0);
    w_bytes(w, data, n);
}

static inline void
w_be32(struct writer *w, uint64_t value)
{
    for (int shift = 24; shift >= 0; shift -= 8)
        w->p[w->n++] = (uint8_t)(value >> shift);
}

static inline void
w_header(struct writer *w, uint64_t body_size, uint64_t meta_size)
{
    w_bytes(w, "PRPC", 4);
    w_be32(w, body_size);
    w_be32(w, meta_size);
}

static inline void
w_frame(struct writer *w, const void *meta, size_t meta_len,
        const void *payload, size_t payload_len)
{
    w_header(w, (uint64_t)meta_len + payload_len, meta_len);
    w_bytes(w, meta, meta_len);
    w_bytes(w, payload, payload_len);
}

#define NINE_80 "\x80\x80\x80\x80\x80\x80\x80\x80\x80"
#define TEN_FF "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"

/* A frame around meta and payload, fed at every length. */
static inline struct result
feed_meta(const void *meta, size_t meta_len, const char *payload)
{
    struct writer w = {scratch, 0};
    w_frame(&w, meta, meta_len, payload, strlen(payload));
    return feed(w.p, w.n, LIMIT);
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

/* --------------------------------------------------------------- at random */

enum { MODEL_TEXT = 40 };

static inline struct twi_str
random_text(void)
{
    static uint8_t pool[4096];
    if (!pool[0])
        for (size_t i = 0; i < sizeof pool; i++)
            pool[i] = (uint8_t)(check_random(&seed) | 1);
    size_t n = below(8) ? below(MODEL_TEXT) : below(300);
    return (struct twi_str){pool + below(sizeof pool - n), n};
}

static inline uint64_t
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

#endif
