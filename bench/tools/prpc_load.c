/* prpc_load: a load generator for baidu_std echo servers.
 *
 *   cc -O2 -o prpc_load prpc_load.c
 *   prpc_load [OPTIONS] PORT CONNECTIONS DEPTH SECONDS [MESSAGE_BYTES]
 *
 * Closed loop (the default): every connection keeps DEPTH requests in flight
 * to 127.0.0.1:PORT.  Open loop (--rate N): N requests a second arrive evenly
 * spaced, in turn on each connection, whether or not earlier ones have been
 * answered; DEPTH caps what a connection has out.  An arrival that finds the
 * cap full waits and keeps its time: latency counts from when a request was
 * meant to go, so a server that stalls cannot hide what it kept waiting.
 *
 * One thread checks each answer: a correlation id that is outstanding on this
 * connection (so neither foreign nor doubled), the expected error code or
 * none, the echoed bytes.  At the end it stops sending and waits for the
 * answers still out.  Prints one line:
 *
 *   qps=<right answers/s> p50=<us> p99=<us> calls=<right answers> bad=<wrong>
 *   sent=<n> lost=<never answered> [late=<n> behind=<n>] errors=<code:n,...>
 *
 * late (open loop): sent more than 1 ms after their time; behind: due, but
 * never sent because the cap was full.  qps covers SECONDS, without warm-up
 * and drain.  The percentiles cover the answers of that time; in the open loop
 * the requests due in that time, whenever answered.  calls, bad, sent, lost
 * and errors cover everything.  Exit status 1 when an answer was wrong or
 * lost or none was right, or a connection was closed; 2 for wrong usage.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "latency.h"
#include "prpc_options.h"

enum {
    MAX_CODES = 64, /* different error codes told apart */
    MAX_INTERVALS = 4096,
    HEADER = 12,
    MAX_VARINT = 10,
    MAX_HEAD = HEADER + MAX_NAMES + 8, /* up to the correlation id */
    SMALL_FRAME = 4096,                /* up to here SMALL_READ is enough */
    SMALL_READ = 16 << 10,
    LARGE_READ = 256 << 10, /* beside a large frame */
    SPARE_FILES = 16,
    EVENTS = 64,
    IDLE_WAIT_MS = 100,
    CONNECT_SECONDS = 5,
};
#define MAX_MEMORY ((size_t)2 << 30) /* all buffers together */
#define LATE_NS 1000000u
#define SECOND_NS 1000000000u

struct slot {
    uint64_t generation; /* correlation id = generation * MAX_DEPTH + index */
    uint64_t since;      /* when it was (to be) sent, 0 when not outstanding */
    uint64_t sent;       /* when it was sent; only where refusals are timed */
};

struct conn {
    int fd, armed, nfree;
    unsigned char *in, *out;
    size_t have, begin, end; /* bytes read; unsent bytes are out[begin, end) */
    struct slot *slots;
    uint16_t *free;           /* stack of indexes of idle slots */
    uint64_t pending, issued; /* open loop: arrivals waiting, arrivals sent */
};

struct interval {
    uint64_t end; /* since the start */
    long calls;
};

static struct conn *conns;
static unsigned char head[MAX_HEAD], *payload;
static size_t head_len, payload_len, answer_len, in_cap, out_cap;
static uint64_t start_ns, measure_ns, stop_ns;
static uint64_t arrivals, arrivals_total; /* open loop: released, planned */
static int ep, timer, measuring, draining;

static struct latency right, refused;
static long calls, bad, sent, outstanding, late, other_codes;
static struct { int32_t code; long count; } codes[MAX_CODES];
static int ncodes;
static struct interval intervals[MAX_INTERVALS];
static int nintervals;

static uint64_t
now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND_NS + (uint64_t)t.tv_nsec;
}

static void
fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "prpc_load: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    exit(1);
}

/* codes[] stays sorted */
static void
add_code(int32_t code)
{
    int i = 0;
    while (i < ncodes && codes[i].code < code)
        i++;
    if (i < ncodes && codes[i].code == code) {
        codes[i].count++;
    } else if (ncodes == MAX_CODES) {
        other_codes++;
    } else {
        memmove(codes + i + 1, codes + i,
                (size_t)(ncodes - i) * sizeof codes[0]);
        codes[i].code = code;
        codes[i].count = 1;
        ncodes++;
    }
}

/* ---- the wire ---- */

static size_t
put_varint(unsigned char *p, uint64_t v)
{
    size_t n = 0;
    while (v >= 128) {
        p[n++] = (unsigned char)(v | 128);
        v >>= 7;
    }
    p[n++] = (unsigned char)v;
    return n;
}

/* bytes used, 0 when there is no whole varint before `end` */
static size_t
get_varint(const unsigned char *p, const unsigned char *end, uint64_t *v)
{
    size_t n = 0;
    *v = 0;
    for (int shift = 0; p + n < end && shift < 64; shift += 7) {
        *v |= (uint64_t)(p[n] & 127) << shift;
        if (!(p[n++] & 128))
            return n;
    }
    return 0;
}

static size_t
put_string(unsigned char *p, unsigned char tag, const char *text)
{
    size_t len = strlen(text); /* short, see MAX_NAMES */
    p[0] = tag;
    p[1] = (unsigned char)len;
    memcpy(p + 2, text, len);
    return len + 2;
}

/* what all requests share: header and meta up to the id, then the message */
static void
make_request(void)
{
    unsigned char *request = head + HEADER + 2;
    size_t n = put_string(request, 0x0a, opt.service);
    n += put_string(request + n, 0x12, opt.method);
    memcpy(head, "PRPC", 4);
    head[HEADER] = 0x0a;
    head[HEADER + 1] = (unsigned char)n;
    request[n] = 0x20;
    head_len = HEADER + 2 + n + 1;

    size_t size = (size_t)opt.size;
    payload = malloc(size + 4 * (1 + MAX_VARINT));
    if (!payload)
        fail("no memory");
    payload[payload_len++] = 0x0a;
    payload_len += put_varint(payload + payload_len, size);
    memset(payload + payload_len, 'x', size);
    payload_len += size;
    answer_len = payload_len; /* the echo has the message only */
    if (opt.sleep_ms) {
        payload[payload_len++] = 0x10;
        payload_len += put_varint(payload + payload_len,
                                  (uint64_t)opt.sleep_ms);
    }
    if (opt.fail_code) {
        payload[payload_len++] = 0x18;
        payload_len += put_varint(payload + payload_len,
                                  (uint64_t)opt.fail_code);
    }
}

static void
issue(struct conn *c, uint64_t since)
{
    size_t most = head_len + MAX_VARINT + payload_len;
    uint16_t index = c->free[--c->nfree];
    struct slot *s = &c->slots[index];
    if (c->begin == c->end) {
        c->begin = c->end = 0;
    } else if (c->end + most > out_cap) {
        memmove(c->out, c->out + c->begin, c->end - c->begin);
        c->end -= c->begin;
        c->begin = 0;
    }
    unsigned char *o = c->out + c->end;
    memcpy(o, head, head_len);
    size_t n = head_len + put_varint(o + head_len,
                                     s->generation * MAX_DEPTH + index);
    uint32_t meta_be = htonl((uint32_t)(n - HEADER));
    uint32_t body_be = htonl((uint32_t)(n - HEADER + payload_len));
    memcpy(o + 4, &body_be, 4);
    memcpy(o + 8, &meta_be, 4);
    memcpy(o + n, payload, payload_len);
    c->end += n + payload_len;
    s->since = since;
    s->sent = opt.refusal_code ? now() : since;
    sent++;
    outstanding++;
}

static void
parse_meta(const unsigned char *p, size_t len, uint64_t *id, uint64_t *error)
{
    const unsigned char *end = p + len;
    uint64_t tag, v;
    for (size_t n; p < end; p += n) {
        if (!(n = get_varint(p, end, &tag)))
            return;
        p += n;
        if (!(n = get_varint(p, end, &v)))
            return;
        if ((tag & 7) == 2) {
            if (v > (uint64_t)(end - p) - n)
                return;
            if (tag >> 3 == 2 && v >= 2 && p[n] == 0x08)
                get_varint(p + n + 1, p + n + v, error);
            n += v;
        } else if ((tag & 7) != 0) {
            return;
        } else if (tag >> 3 == 4) {
            *id = v;
        }
    }
}

/* 1 when the answer frees a slot, 0 when it belongs to none */
static int
check_answer(struct conn *c, uint64_t t, const unsigned char *meta,
             size_t meta_len, size_t body_len)
{
    const unsigned char *body = meta + meta_len;
    uint64_t id = UINT64_MAX, error = 0;
    parse_meta(meta, meta_len, &id, &error);
    uint64_t index = id % MAX_DEPTH;
    struct slot *s = &c->slots[index];
    if (id == UINT64_MAX || index >= (uint64_t)opt.depth ||
        s->generation != id / MAX_DEPTH || s->since == 0) {
        bad++;
        return 0;
    }
    int32_t code = (int32_t)error;
    if (code)
        add_code(code);
    int counts = opt.rate ? s->since >= measure_ns : measuring;
    uint64_t took = t > s->since ? t - s->since : 0;
    if (code && code == (int32_t)opt.refusal_code) {
        if (counts)
            add_sample(&refused, t > s->sent ? t - s->sent : 0);
    } else if (code != (int32_t)opt.expect_code ||
               (!code && (body_len != answer_len ||
                          memcmp(body, payload, body_len)))) {
        bad++;
    } else {
        calls++;
        if (counts)
            add_sample(&right, took);
    }
    s->since = 0;
    s->generation++;
    c->free[c->nfree++] = (uint16_t)index;
    outstanding--;
    return 1;
}

/* ---- connections ---- */

static void
flush(struct conn *c)
{
    while (c->begin < c->end) {
        ssize_t w = send(c->fd, c->out + c->begin, c->end - c->begin,
                         MSG_NOSIGNAL | MSG_DONTWAIT);
        if (w < 0 && errno == EINTR)
            continue;
        if (w < 0 && errno != EAGAIN)
            fail("send: %s", strerror(errno));
        if (w < 0)
            break;
        c->begin += (size_t)w;
    }
    int want = c->begin < c->end;
    if (want != c->armed) {
        struct epoll_event e = {.events = EPOLLIN | (want ? EPOLLOUT : 0),
                                .data.ptr = c};
        epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
        c->armed = want;
    }
}

/* the time arrival k is meant to be sent */
static uint64_t
due(uint64_t k)
{
    return start_ns + (uint64_t)((double)k * (SECOND_NS / opt.rate));
}

/* how many arrivals are due before stop_ns */
static void
plan_arrivals(void)
{
    double seconds = (double)(stop_ns - start_ns) / SECOND_NS;
    uint64_t n = (uint64_t)(seconds * opt.rate); /* may be off by one */
    while (n && due(n - 1) >= stop_ns)
        n--;
    while (due(n) < stop_ns)
        n++;
    arrivals_total = n;
}

static void
issue_pending(struct conn *c, uint64_t t)
{
    uint64_t place = (uint64_t)(c - conns);
    uint64_t since = due(place + c->issued * (uint64_t)opt.nconn);
    if (t > since + LATE_NS)
        late++;
    issue(c, since);
    c->issued++;
    c->pending--;
}

/* open loop: release what is due by t, arm the timer for the next arrival */
static void
release_arrivals(uint64_t t)
{
    static uint64_t armed;
    while (arrivals < arrivals_total && due(arrivals) <= t) {
        struct conn *c = &conns[arrivals++ % (uint64_t)opt.nconn];
        c->pending++;
        if (c->nfree) {
            issue_pending(c, t);
            flush(c);
        }
    }
    uint64_t next = arrivals < arrivals_total ? due(arrivals) : 0;
    if (next != armed) {
        struct itimerspec at = {.it_value = {
            .tv_sec = (time_t)(next / SECOND_NS),
            .tv_nsec = (long)(next % SECOND_NS),
        }};
        timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
        armed = next;
    }
}

static void
receive(struct conn *c)
{
    ssize_t g = recv(c->fd, c->in + c->have, in_cap - c->have, MSG_DONTWAIT);
    if (g == 0 || (g < 0 && errno != EAGAIN && errno != EINTR))
        fail("connection closed by server with %d calls out",
             opt.depth - c->nfree);
    if (g < 0)
        return;
    uint64_t t = now();
    c->have += (size_t)g;
    size_t off = 0;
    while (c->have - off >= HEADER) {
        uint32_t body, meta;
        memcpy(&body, c->in + off + 4, 4);
        memcpy(&meta, c->in + off + 8, 4);
        body = ntohl(body);
        meta = ntohl(meta);
        if (memcmp(c->in + off, "PRPC", 4) || meta > body)
            fail("malformed answer");
        if (HEADER + (size_t)body > in_cap)
            fail("answer of %zu bytes, %zu expected", HEADER + (size_t)body,
                 answer_len);
        if (c->have - off < HEADER + (size_t)body)
            break;
        if (check_answer(c, t, c->in + off + HEADER, meta, body - meta) &&
            !draining) {
            if (!opt.rate)
                issue(c, t);
            else if (c->pending)
                issue_pending(c, t);
        }
        off += HEADER + (size_t)body;
    }
    c->have -= off;
    memmove(c->in, c->in + off, c->have);
}

static void
turn(int timeout_ms)
{
    struct epoll_event ev[EVENTS];
    int n = epoll_wait(ep, ev, EVENTS, timeout_ms);
    for (int i = 0; i < n; i++) {
        struct conn *c = ev[i].data.ptr;
        if (!c) /* the timer, edge-triggered: all it does is end the wait */
            continue;
        if (ev[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
            receive(c);
        flush(c);
    }
}

static void
allow_files(int files)
{
    struct rlimit limit;
    rlim_t need = (rlim_t)files + SPARE_FILES;
    if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur >= need)
        return;
    limit.rlim_cur = need < limit.rlim_max ? need : limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static int
connect_server(void)
{
    struct sockaddr_in inet = {
        .sin_family = AF_INET,
        .sin_port = htons((uint16_t)opt.port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    /* connect(2) of a blocking socket obeys SO_SNDTIMEO: socket(7) */
    struct timeval limit = {.tv_sec = CONNECT_SECONDS};
    int one = 1, rc, fd = socket(opt.path ? AF_UNIX : AF_INET, SOCK_STREAM, 0);
    if (fd < 0)
        fail("socket: %s", strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (opt.path) {
        strncpy(local.sun_path, opt.path, sizeof local.sun_path - 1);
        rc = connect(fd, (struct sockaddr *)&local, sizeof local);
    } else {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        rc = connect(fd, (struct sockaddr *)&inet, sizeof inet);
    }
    if (rc)
        fail("connect: %s", strerror(errno));
    return fd;
}

static void
open_connections(void)
{
    size_t frame = head_len + MAX_VARINT + payload_len, depth, one;
    depth = (size_t)opt.depth;
    in_cap = frame <= SMALL_FRAME ? SMALL_READ : frame + LARGE_READ;
    out_cap = depth * frame;
    one = sizeof *conns + in_cap + out_cap +
          depth * (sizeof(struct slot) + sizeof(uint16_t));
    if (one > MAX_MEMORY / (size_t)opt.nconn)
        fail("CONNECTIONS x DEPTH x MESSAGE_BYTES need more than %zu MiB",
             MAX_MEMORY >> 20);
    allow_files(opt.nconn);
    conns = calloc((size_t)opt.nconn, sizeof *conns);
    ep = epoll_create1(0);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event te = {.events = EPOLLIN | EPOLLET, .data.ptr = NULL};
    if (!conns || ep < 0 || timer < 0 ||
        epoll_ctl(ep, EPOLL_CTL_ADD, timer, &te))
        fail("cannot start: %s", strerror(errno));
    for (struct conn *c = conns; c < conns + opt.nconn; c++) {
        c->fd = connect_server();
        c->in = malloc(in_cap);
        c->out = malloc(out_cap);
        c->slots = calloc(depth, sizeof *c->slots);
        c->free = malloc(depth * sizeof *c->free);
        if (!c->in || !c->out || !c->slots || !c->free)
            fail("no memory");
        while (c->nfree < opt.depth) {
            c->free[c->nfree] = (uint16_t)(opt.depth - 1 - c->nfree);
            c->nfree++;
        }
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e);
    }
}

/* ---- the run ---- */

static uint64_t
earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* milliseconds to wait at most, rounded up: waking early would spin */
static int
wait_ms(uint64_t t, uint64_t until)
{
    uint64_t ms = until > t ? (until - t + 999999) / 1000000 : 0;
    return (int)earlier(ms, IDLE_WAIT_MS);
}

static void
add_interval(uint64_t t)
{
    static long before;
    if (nintervals == MAX_INTERVALS)
        return;
    intervals[nintervals].end = t - start_ns;
    intervals[nintervals++].calls = calls - before;
    before = calls;
}

/* fills `measured` and `elapsed` for the time without warm-up */
static void
run(long *measured, double *elapsed)
{
    uint64_t step = (uint64_t)(opt.interval * SECOND_NS), mark, t;
    long calls_before = 0;
    start_ns = now();
    measure_ns = start_ns + (uint64_t)(opt.warmup * SECOND_NS);
    stop_ns = measure_ns + (uint64_t)(opt.seconds * SECOND_NS);
    mark = step ? start_ns + step : UINT64_MAX;
    if (opt.rate)
        plan_arrivals();
    for (struct conn *c = conns; !opt.rate && c < conns + opt.nconn; c++) {
        for (int k = 0; k < opt.depth; k++)
            issue(c, now());
        flush(c);
    }
    while ((t = now()) < stop_ns) {
        if (!measuring && t >= measure_ns) {
            measuring = 1;
            measure_ns = opt.rate ? measure_ns : t;
            calls_before = calls;
        }
        if (t >= mark) {
            add_interval(t);
            mark = t + step;
        }
        if (opt.rate)
            release_arrivals(t);
        turn(wait_ms(t, earlier(measuring ? stop_ns : measure_ns, mark)));
    }
    *measured = calls - calls_before;
    *elapsed = (double)(t - measure_ns) / SECOND_NS;
    measuring = 0;
    if (opt.rate)
        release_arrivals(stop_ns);
    draining = 1;
    stop_ns = now() + (uint64_t)(opt.drain * SECOND_NS);
    while (outstanding && (t = now()) < stop_ns)
        turn(wait_ms(t, stop_ns));
}

/* `quote` surrounds the codes, `separator` stands between them */
static void
print_codes(const char *quote, const char *separator)
{
    const char *comma = "";
    for (int i = 0; i < ncodes; i++, comma = separator)
        printf("%s%s%d%s:%ld", comma, quote, codes[i].code, quote,
               codes[i].count);
    if (other_codes)
        printf("%s%sother%s:%ld", comma, quote, quote, other_codes);
}

static void
print_json(double qps, double elapsed, uint64_t behind)
{
    printf("{\"qps\": %.1f, \"p50_us\": %ld, \"p90_us\": %ld, "
           "\"p99_us\": %ld, \"p999_us\": %ld, \"max_us\": %ld, "
           "\"calls\": %ld, \"bad\": %ld, \"sent\": %ld, \"lost\": %ld, "
           "\"late\": %ld, \"behind\": %llu, \"seconds\": %.3f, "
           "\"start\": %.6f, \"errors\": {",
           qps, percentile(&right, 0.5), percentile(&right, 0.9),
           percentile(&right, 0.99), percentile(&right, 0.999),
           longest(&right), calls, bad, sent,
           outstanding, late, (unsigned long long)behind, elapsed,
           (double)start_ns / SECOND_NS);
    print_codes("\"", ", ");
    printf("}, \"refused\": {\"calls\": %ld, \"p50_us\": %ld, "
           "\"p99_us\": %ld, \"p999_us\": %ld, \"max_us\": %ld",
           refused.samples, percentile(&refused, 0.5),
           percentile(&refused, 0.99), percentile(&refused, 0.999),
           longest(&refused));
    printf("}, \"intervals\": [");
    for (int i = 0; i < nintervals; i++)
        printf("%s[%.4f, %ld]", i ? ", " : "",
               (double)intervals[i].end / SECOND_NS, intervals[i].calls);
    printf("]}\n");
}

static void
print_line(double qps, uint64_t behind)
{
    printf("qps=%.0f p50=%ld p99=%ld calls=%ld bad=%ld sent=%ld lost=%ld", qps,
           percentile(&right, 0.5), percentile(&right, 0.99), calls, bad, sent,
           outstanding);
    if (opt.rate)
        printf(" late=%ld behind=%llu", late, (unsigned long long)behind);
    printf(" errors=");
    print_codes("", ",");
    printf("\n");
}

int
main(int argc, char **argv)
{
    long measured;
    double elapsed;
    uint64_t behind = 0;
    parse_options(argc, argv);
    make_request();
    open_connections();
    run(&measured, &elapsed);
    for (struct conn *c = conns; c < conns + opt.nconn; c++)
        behind += c->pending;
    if (opt.json)
        print_json((double)measured / elapsed, elapsed, behind);
    else
        print_line((double)measured / elapsed, behind);
    return bad || outstanding || !calls;
}
