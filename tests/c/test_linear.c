/* W12: time is linear in the input, shown by counts.
 *
 * The core is built so that every basic block it enters calls us
 * (-fsanitize-coverage=trace-pc), and what it copies, compares and clears comes
 * by here, too (--wrap): the work that an input costs is a number that no other
 * load changes.  Twice the input may cost twice the work and 30 % more, however
 * it arrives, for the parsers of both sides (W13); and no byte is copied more
 * often than a few times. */
#include "bed.h"

#include "auth.h"
#include "scripted.h"

enum {
    /* Bytes of the smallest input; doubled up to MOST.  Below it a message may
     * be whole at the first look, and cost half. */
    LEAST = 128 << 10,
    MOST = 512 << 10
};

/* ------------------------------------------------------------- the counts */

static _Thread_local int counting;
static uint64_t steps, moved; /* blocks entered; bytes copied, compared, set */

void
__sanitizer_cov_trace_pc(void)
{
    steps += (uint64_t)counting;
}

#define COUNTED(call, n)                                                       \
    do {                                                                       \
        if (counting)                                                          \
            moved += (n);                                                      \
        return __real_##call;                                                  \
    } while (0)

void *__real_memcpy(void *to, const void *from, size_t n);
void *__real_memmove(void *to, const void *from, size_t n);
void *__real_memset(void *to, int c, size_t n);
int __real_memcmp(const void *a, const void *b, size_t n);
void *__wrap_memcpy(void *to, const void *from, size_t n);
void *__wrap_memmove(void *to, const void *from, size_t n);
void *__wrap_memset(void *to, int c, size_t n);
int __wrap_memcmp(const void *a, const void *b, size_t n);

void *
__wrap_memcpy(void *to, const void *from, size_t n)
{
    COUNTED(memcpy(to, from, n), n);
}

void *
__wrap_memmove(void *to, const void *from, size_t n)
{
    COUNTED(memmove(to, from, n), n);
}

void *
__wrap_memset(void *to, int c, size_t n)
{
    COUNTED(memset(to, c, n), n);
}

int
__wrap_memcmp(const void *a, const void *b, size_t n)
{
    COUNTED(memcmp(a, b, n), n);
}

/* ------------------------------------------------------------- the inputs */

static uint8_t input[MOST + 4096];

/* A request of `method` with a meta of about `meta` and a body of `body` bytes.
 * The meta is as costly as can be: fields that nobody knows, three bytes each. */
static size_t
request(const char *method, size_t meta, size_t body)
{
    static uint8_t extra[MOST];
    uint8_t names[256];
    for (size_t i = 0; i + 3 <= meta; i += 3)
        __real_memcpy(extra + i, "\xa0\x06\x01", 3);
    struct twi_str s = {(const uint8_t *)"bed.Service", 11},
                   m = {(const uint8_t *)method, strlen(method)};
    struct twi_std_request r = {
        .names = {names, twi_std_pack_names(names, sizeof names, s, m)},
        .auth = {(const uint8_t *)"me", 2},
        .extra_meta = {extra, meta / 3 * 3},
        .correlation_id = 1,
        .body_len = body};
    size_t n = twi_std_pack_request(input, sizeof input - body, &r);
    MUST(n);
    memset(input + n, 'b', body);
    return n + body;
}

static size_t
one_body(size_t n)
{
    return request("open", 0, n);
}

static size_t
one_meta(size_t n)
{
    return request("open", n, 1);
}

/* The method has its own limit, which is looked up when the meta is there. */
static size_t
meta_and_body(size_t n)
{
    return request("limited", n / 2, n / 2);
}

/* A declared length that is never reached. */
static size_t
never_whole(size_t n)
{
    memset(input, 'b', n);
    memcpy(input, "PRPC\2\0\0\0\0\0\0\0", TWI_STD_HEADER);
    return n;
}

/* The smallest frames there are. */
static size_t
tiny_frames(size_t n)
{
    memset(input, 0, n);
    for (size_t i = 0; i + TWI_STD_HEADER <= n; i += TWI_STD_HEADER)
        memcpy(input + i, "PRPC", 4);
    return n / TWI_STD_HEADER * TWI_STD_HEADER;
}

static size_t
no_protocol(size_t n)
{
    memset(input, 'P', n);
    return n;
}

static const struct {
    const char *name;
    size_t (*make)(size_t n);
    unsigned copies;   /* of each byte at most, what is cleared included */
    uint32_t requests; /* that it is */
    int authenticated; /* on a server that asks who it is */
} inputs[] = {
    {"one body", one_body, 4, 1, 0},
    {"one meta", one_meta, 4, 1, 0},
    {"meta and body", meta_and_body, 4, 1, 0},
    {"never whole", never_whole, 4, 0, 0},
    /* 240 bytes of struct twi_std_msg for 12 that come, and answers. */
    {"tiny frames", tiny_frames, 40, 0, 0},
    {"no protocol", no_protocol, 4, 0, 0},
    {"a first meta", one_meta, 4, 1, 1},
};

/* How it arrives: pieces of so many bytes. */
static const size_t pieces[] = {1, 5, 1460, MOST + 4096};

/* ---------------------------------------------------------------- the runs */

static struct twi_server *servers[2]; /* the second one authenticates */
static tw_id inbox;

static void
open_servers(void)
{
    static const tw_server_options options = {.max_message = 64 << 20,
                                              .max_unwritten = 1 << 30,
                                              .max_pending = 1 << 20,
                                              .max_pending_bytes = 1 << 30};
    static const tw_method_options limited = {.max_message = 2 * MOST},
                                   least = {.max_message = 1};
    MUST(!tw_open() && !tw_inbox_open(&inbox));
    for (int i = 0; i < 2; i++) {
        tw_id id;
        MUST(!tw_server_open(&options, &id));
        MUST(!tw_server_method(id, "bed.Service", "open", TW_RUN_WORKER, NULL));
        MUST(tw_server_method(id, "bed.Service", "limited", TW_RUN_WORKER,
                              &limited) == 1);
        MUST(tw_server_method(id, "bed.Service", "least", TW_RUN_WORKER,
                              &least) == 2);
        if (i)
            MUST(!tw_server_auth(id, inbox, 3600 * SECOND));
        char bound[128];
        MUST(!tw_listen(id, "127.0.0.1:0", TW_PROTO_BAIDU_STD, 1, bound,
                        sizeof bound));
        MUST((servers[i] = twi_server_address(id)));
    }
    scripted_begin();
}

static void
counted_arrive(struct twi_socket *sock, size_t piece)
{
    counting = 1;
    scripted_arrive(sock, piece);
    counting = 0;
}

/* Requests that were queued, so that the next run finds none. */
static uint32_t
drop_requests(struct twi_server *server)
{
    uint32_t n = 0;
    for (tw_id id; (id = twi_workq_pop(&server->queue)); n++) {
        struct twi_request *request = twi_request_address(id);
        MUST(request);
        MUST(!twi_request_answer(request, 0, "", 0, NULL, 0, 1));
        twi_request_unref(request);
        twi_request_unref(request); /* the queue's */
    }
    twi_loop_after_poll(TWI_MAIN);
    return n;
}

/* What the input costs; `steps` and `moved` have it. */
static uint32_t
run(int which, size_t size, size_t piece, int client)
{
    struct twi_server *server = servers[inputs[which].authenticated];
    size_t n = inputs[which].make(size);
    struct twi_socket *sock = scripted_open(server, client, input, n);
    if (!client)
        twi_auth_begin(sock);
    scripted_publish(sock);
    steps = moved = 0;
    while (io.left && !twi_socket_error(sock) &&
           load_relaxed(&sock->auth.state) != TWI_AUTH_PENDING)
        counted_arrive(sock, piece);
    if (load_relaxed(&sock->auth.state) == TWI_AUTH_PENDING) {
        tw_event event;
        int more;
        MUST(tw_drain(inbox, 0, &event, 1, &more) == 1);
        MUST(!tw_auth_verdict(event.id, 1, "me", 2));
        while (io.left || load_seq_cst(&sock->again))
            counted_arrive(sock, piece);
    }
    uint32_t ran = drop_requests(server);
    twi_socket_fail(sock, TW_ECLOSE, TW_PHASE_NONE);
    twi_loop_poll(TWI_MAIN, 0);
    twi_socket_unref(sock);
    return ran;
}

static void
bounded(const char *what, uint64_t count, uint64_t bound, int which, size_t n,
        size_t piece, int client)
{
    if (count <= bound)
        return;
    fprintf(stderr, "%zu bytes of %s, %zu at a time, by a %s: %llu %s\n", n,
            inputs[which].name, piece, client ? "client" : "server",
            (unsigned long long)count, what);
    CHECK(!"linear");
}

static void
linear(int which, size_t piece, int client)
{
    uint64_t before = 0;
    for (size_t n = LEAST; n <= MOST; n *= 2) {
        uint32_t ran = run(which, n, piece, client);
        CHECK_EQ(ran, client ? 0 : inputs[which].requests);
        CHECK(steps > 0);
        if (before)
            bounded("steps", steps, before * 26 / 10, which, n, piece, client);
        bounded("bytes moved", moved, inputs[which].copies * n, which, n, piece,
                client);
        before = steps;
    }
    printf("%-13s %6zu at a time, %s: %6.2f steps and %5.2f moved per byte\n",
           inputs[which].name, piece, client ? "client" : "server",
           (double)steps / MOST, (double)moved / MOST);
}

int
main(void)
{
    open_servers();
    for (int which = 0; which < (int)(sizeof inputs / sizeof *inputs); which++)
        for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++)
            for (int client = 0; client < 2; client++)
                if (!(client && inputs[which].authenticated))
                    linear(which, pieces[i], client);
    twi_baton_drop(TWI_MAIN);
    return check_done();
}
