/* What the tests of the whole core share: servers with worker threads, raw
 * sockets, and the accounting that every case must leave at zero; faults.h has
 * the faults of the system. */
#ifndef BED_H
#define BED_H

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#include "addr.h"
#include "check.h"
#include "core.h"
#include "counters.h"
#include "faults.h"
#include "loop.h"
#include "side.h"
#include "proto/baidu_std.h"
#include "sys.h"

#define MS INT64_C(1000000)
#define SECOND (1000 * MS)
/* How long a thing that must happen may take.  Sanitizers on a busy machine
 * are slow; nothing waits that long when all is well. */
#define SOON (20 * SECOND)

/* Waits for a condition that no descriptor announces; looks at it every
 * millisecond, for a bounded time. */
#define EVENTUALLY(cond)                                                       \
    do {                                                                       \
        int64_t bed_until = twi_now_ns() + SOON;                               \
        int bed_holds;                                                         \
        while (!(bed_holds = !!(cond)) && twi_now_ns() < bed_until)            \
            poll(NULL, 0, 1);                                                  \
        CHECK(bed_holds || !"eventually: " #cond);                             \
    } while (0)

/* ---------------------------------------------------------------- patience */

/* Where EINTR is planted a test does what the core's Python does: it goes on
 * waiting. */
static inline int
eintr_planted(void)
{
    return fault.storm == STORM_INTR || atomic_load(&fault.intr_percent);
}

/* Repeats a wait with what is left of its time, rc in hand. */
#define PATIENTLY(timeout_ns, wait)                                            \
    do {                                                                       \
        int64_t bed_until = twi_deadline_ns(twi_now_ns(), (timeout_ns));       \
        while ((rc = (wait)) == -EINTR && eintr_planted())                     \
            if (bed_until != INT64_MAX) {                                      \
                (timeout_ns) = bed_until - twi_now_ns();                       \
                (timeout_ns) = (timeout_ns) > 0 ? (timeout_ns) : 0;            \
            }                                                                  \
    } while (0)

static inline int
patient_inbox_wait(tw_id inbox, int64_t timeout_ns, int poll)
{
    int rc;
    PATIENTLY(timeout_ns, tw_inbox_wait(inbox, timeout_ns, poll));
    return rc;
}

static inline int
patient_server_drain(tw_id server, int64_t timeout_ns)
{
    int rc;
    PATIENTLY(timeout_ns, tw_server_drain(server, 0, timeout_ns));
    return rc;
}

static inline int
patient_log_take(tw_log_entry *entries, int max, int64_t timeout_ns)
{
    int rc;
    PATIENTLY(timeout_ns, tw_log_take(entries, max, timeout_ns));
    return rc;
}

static inline int
patient_call(tw_id peer, int method, const char *body, size_t body_len,
             const tw_extra *extra, int64_t deadline_ns, int interruptible,
             char *scratch, size_t cap, tw_event *result)
{
    int rc = tw_call(peer, method, body, body_len, extra, deadline_ns,
                     interruptible, scratch, cap, result);
    while (rc == -EINTR && eintr_planted())
        rc = tw_wait(result->id, interruptible, scratch, cap, result);
    return rc;
}

/* The core, with as many loops as the environment says. */
static inline void
core_open(void)
{
    const char *loops = getenv("TW_LOOPS");
    MUST(tw_loops(loops ? atoi(loops) : 1) == 0);
    MUST(tw_open() == 0);
}

#define tw_call patient_call
#define tw_inbox_wait patient_inbox_wait
#define tw_server_drain patient_server_drain
#define tw_log_take patient_log_take

/* ------------------------------------------------------------ accounting */

static inline int
count_fds(void)
{
    int n = 0;
    DIR *dir = opendir("/proc/self/fd");
    MUST(dir);
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

static inline int
census_is_zero(void)
{
    tw_census c;
    tw_census_take(&c);
    return !c.blocks && !c.block_bytes && !c.sockets && !c.calls &&
           !c.requests && !c.inboxes && !c.peers && !c.servers && !c.timers &&
           !c.write_nodes && !c.lent;
}

static inline void
census_print(void)
{
    tw_census c;
    tw_census_take(&c);
    fprintf(stderr,
            "census: %lld blocks (%lld bytes), %lld sockets, %lld calls, "
            "%lld requests, %lld inboxes, %lld peers, %lld servers, "
            "%lld timers, %lld write nodes, %lld loans; %d descriptors\n",
            (long long)c.blocks, (long long)c.block_bytes,
            (long long)c.sockets, (long long)c.calls, (long long)c.requests,
            (long long)c.inboxes, (long long)c.peers, (long long)c.servers,
            (long long)c.timers, (long long)c.write_nodes, (long long)c.lent, count_fds());
}

static inline uint64_t
counter(enum twi_counter which)
{
    return twi_cell_value((uint32_t)which);
}

/* What a program provokes on purpose. */
static uint64_t internal_errors_wanted;

/* At the end of a case: nothing lives, no descriptor is open but those that
 * were, and the gauges agree. */
static inline void
nothing_is_left(int fds)
{
    int64_t until = twi_now_ns() + SOON;
    while ((!census_is_zero() || count_fds() != fds) && twi_now_ns() < until)
        poll(NULL, 0, 1);
    if (!census_is_zero() || count_fds() != fds) {
        census_print();
        fprintf(stderr, "%d descriptors at the start\n", fds);
    }
    CHECK(census_is_zero());
    CHECK_EQ(count_fds(), fds);
    CHECK_EQ(counter(TWI_SOCKETS), 0);
    CHECK_EQ(counter(TWI_CONNECTIONS_IN), 0);
    CHECK_EQ(counter(TWI_CONNECTIONS_OUT), 0);
    CHECK_EQ(counter(TWI_UNWRITTEN_BYTES), 0);
    CHECK_EQ(counter(TWI_DOUBLE_COMPLETIONS), 0);
    CHECK_EQ(counter(TWI_INTERNAL_ERRORS), internal_errors_wanted);
}

/* --------------------------------------------------------------- servers */

/* The methods of a test server, by index. */
enum {
    ECHO,  /* body and attachment come back */
    GATE,  /* waits until the gate is opened, then as ECHO */
    FAIL,  /* answers code 42 with the body as text */
    HANG_UP, /* answers TW_ECLOSE: closes the connection */
    BIG,   /* the body says how many bytes to answer */
    LATER, /* answered by another thread, from the list */
    LOOP_ECHO, /* TW_RUN_LOOP */
    SPIN, /* computes until the gate is opened */
    METHODS
};

static const char *const method_names[METHODS] = {
    "echo", "gate", "fail", "hang_up", "big", "later", "loop_echo", "spin"};

enum { WORKERS_MAX = 4, LATER_MAX = 64 };

struct bed_server {
    tw_id id;
    char bound[128];
    int n_workers;
    pthread_t workers[WORKERS_MAX];
    /* The gate: closed until opened. */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int gate_open, at_gate;
    tw_id later[LATER_MAX];
    int n_later;
    _Atomic long runs;
    _Atomic int spinning; /* handlers that compute; 0 ends them */
};

static const tw_server_options default_options = {
    .max_message = 64 << 20,
    .max_unwritten = 64 << 20,
    .max_pending = 1024,
    .max_pending_bytes = 64 << 20,
};

static inline void
pass_gate(struct bed_server *server)
{
    pthread_mutex_lock(&server->lock);
    server->at_gate++;
    pthread_cond_broadcast(&server->changed);
    while (!server->gate_open)
        pthread_cond_wait(&server->changed, &server->lock);
    server->at_gate--;
    pthread_mutex_unlock(&server->lock);
}

static inline void
open_gate(struct bed_server *server)
{
    pthread_mutex_lock(&server->lock);
    server->gate_open = 1;
    pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->lock);
}

static inline void
close_gate(struct bed_server *server)
{
    pthread_mutex_lock(&server->lock);
    server->gate_open = 0;
    pthread_mutex_unlock(&server->lock);
}

/* Until n handlers stand at the gate. */
static inline void
await_gate(struct bed_server *server, int n)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += SOON / SECOND;
    pthread_mutex_lock(&server->lock);
    int rc = 0;
    while (server->at_gate < n && !rc)
        rc = pthread_cond_timedwait(&server->changed, &server->lock, &until);
    CHECK_EQ(server->at_gate, n);
    pthread_mutex_unlock(&server->lock);
}

/* The oldest request of LATER, waiting for it. */
static inline tw_id
take_later(struct bed_server *server)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += SOON / SECOND;
    tw_id id = 0;
    pthread_mutex_lock(&server->lock);
    int rc = 0;
    while (!server->n_later && !rc)
        rc = pthread_cond_timedwait(&server->changed, &server->lock, &until);
    if (server->n_later) {
        id = server->later[0];
        memmove(server->later, server->later + 1,
                (size_t)--server->n_later * sizeof id);
    }
    pthread_mutex_unlock(&server->lock);
    CHECK(id);
    return id;
}

static inline void *
bed_worker(void *arg)
{
    struct bed_server *server = arg;
    tw_id worker;
    int code = TW_NO_ANSWER;
    const char *body = NULL;
    char *big = NULL;
    size_t body_len = 0;
    tw_extra extra = {0};
    tw_event event;
    int rc = tw_worker_open(server->id, &event, &worker);
    if (rc) { /* no memory, or the server is closed already */
        CHECK(rc == -ENOMEM || rc == -TW_STALE);
        return NULL;
    }
    for (;;) {
        int method = tw_turn(worker, code, body, body_len, &extra);
        free(big);
        big = NULL;
        if (method < 0) {
            CHECK_EQ(method, -TW_STOPPED);
            break;
        }
        CHECK_EQ(event.kind, TW_REQUEST);
        CHECK_EQ((method & TW_TURN_RICH) != 0,
                 event.attachment_len || event.deadline_ns);
        method &= TW_TURN_METHOD;
        CHECK_EQ((uint32_t)event.cookie, method);
        add_relaxed(&server->runs, 1);
        code = 0;
        body = event.body;
        body_len = event.body_len;
        extra = (tw_extra){.attachment = event.attachment,
                           .attachment_len = event.attachment_len};
        switch (method) {
        case GATE:
            pass_gate(server);
            break;
        case SPIN:
            atomic_fetch_add(&server->spinning, 1);
            while (atomic_load(&server->spinning) > 0)
                ;
            break;
        case FAIL:
            code = 42;
            break;
        case HANG_UP:
            code = TW_ECLOSE;
            break;
        case BIG: {
            char text[24] = {0};
            memcpy(text, body, body_len < 23 ? body_len : 23);
            body_len = strtoul(text, NULL, 10);
            body = big = malloc(body_len + 1);
            memset(big, 'b', body_len);
            break;
        }
        case LATER:
            pthread_mutex_lock(&server->lock);
            MUST(server->n_later < LATER_MAX);
            server->later[server->n_later++] = event.id;
            pthread_cond_broadcast(&server->changed);
            pthread_mutex_unlock(&server->lock);
            code = TW_NO_ANSWER;
            break;
        }
    }
    CHECK_EQ(tw_worker_close(worker), 0);
    return NULL;
}

/* What the methods of the next server have for themselves. */
static const tw_method_options *method_options[METHODS];

/* A server without listeners and workers. */
static inline int
server_prepare(struct bed_server *server, const tw_server_options *options)
{
    memset(server, 0, sizeof *server);
    pthread_mutex_init(&server->lock, NULL);
    pthread_cond_init(&server->changed, NULL);
    int rc = tw_server_open(options ? options : &default_options, &server->id);
    for (int i = 0; i < METHODS && rc >= 0; i++)
        rc = tw_server_method(server->id, "bed.Service", method_names[i],
                              i == LOOP_ECHO ? TW_RUN_LOOP : TW_RUN_WORKER,
                              method_options[i]);
    return rc < 0 ? rc : 0;
}

static inline void
server_workers(struct bed_server *server, int n)
{
    server->n_workers = n;
    for (int i = 0; i < n; i++)
        MUST(!pthread_create(&server->workers[i], NULL, bed_worker, server));
}

static inline void
server_start(struct bed_server *server, const char *address, int workers,
             const tw_server_options *options)
{
    MUST(server_prepare(server, options) == 0);
    MUST(tw_listen(server->id, address, TW_PROTO_BAIDU_STD, 128, server->bound,
                   sizeof server->bound) == 0);
    server_workers(server, workers);
}

static inline void
server_join(struct bed_server *server)
{
    for (int i = 0; i < server->n_workers; i++)
        pthread_join(server->workers[i], NULL);
    server->n_workers = 0;
}

static inline void
server_end(struct bed_server *server)
{
    open_gate(server);
    CHECK_EQ(tw_server_close(server->id), 0);
    server_join(server);
}

/* --------------------------------------------------------------- clients */

static const tw_peer_options default_peer = {
    .max_message = 64 << 20,
    .max_unwritten = 64 << 20,
};

static int client_methods[METHODS];

static inline void
client_methods_open(void)
{
    for (int i = 0; i < METHODS; i++) {
        client_methods[i] = tw_client_method("bed.Service", method_names[i]);
        MUST(client_methods[i] >= 0);
    }
}

static inline tw_id
peer_open(const char *address)
{
    tw_id peer = 0;
    MUST(tw_peer_open(address, &default_peer, &peer) == 0);
    return peer;
}

/* tw_call and tw_wait say the message's length or -TW_RICH when a call has
 * ended: 0 for both, anything else as it is. */
static inline int
ended(int rc)
{
    return rc >= 0 || rc == -TW_RICH ? 0 : rc;
}

/* A blocking call, gone on with when a signal interrupts it: 0 when the call
 * has ended, result->code tells how.  timeout_ns 0: no deadline. */
static inline int
call_full(tw_id peer, int method, const char *body, size_t body_len,
          const tw_extra *extra, int64_t timeout_ns, char *scratch, size_t cap,
          tw_event *result)
{
    int64_t deadline = timeout_ns ? twi_now_ns() + timeout_ns : 0;
    int rc = tw_call(peer, client_methods[method], body, body_len, extra,
                     deadline, 0, scratch, cap, result);
    while (rc == -EINTR)
        rc = tw_wait(result->id, 0, scratch, cap, result);
    if (rc < 0 && rc != -TW_RICH)
        return rc;
    /* Plain: a message in scratch and nothing else. */
    int plain = !result->code && !result->block && !result->attachment_len &&
                !result->meta_len;
    CHECK_EQ(rc, plain ? (int)result->body_len : -TW_RICH);
    CHECK(!plain || !rc || result->body == scratch);
    return 0;
}

/* The result's code.  The block, if there is one, is given back: for what is
 * inside use call_full. */
static inline int
call(tw_id peer, int method, const char *body, size_t body_len,
     int64_t timeout_ns)
{
    static _Thread_local char scratch[65536];
    tw_event result = {0};
    int rc = call_full(peer, method, body, body_len, NULL, timeout_ns, scratch,
                       sizeof scratch, &result);
    if (rc)
        return rc;
    if (!result.code && (method == ECHO || method == GATE)) {
        CHECK_EQ(result.body_len, body_len);
        if (result.body_len == body_len && body_len)
            CHECK(!memcmp(result.body, body, body_len));
    }
    if (result.block)
        tw_release(result.block);
    return result.code;
}

/* ------------------------------------------------------------ raw sockets */

/* A plain socket of the address's family, connected to it or listening. */
static inline int
raw_socket(const char *address, int listening, char *bound, int recv_buffer)
{
    struct twi_addr addr;
    MUST(twi_addr_parse(address, &addr) == 0);
    int fd = socket(addr.any.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    MUST(fd >= 0);
    if (recv_buffer)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &recv_buffer, sizeof recv_buffer);
    if (!listening) {
        MUST(connect(fd, (struct sockaddr *)&addr.any, addr.len) == 0);
        return fd;
    }
    MUST(bind(fd, (struct sockaddr *)&addr.any, addr.len) == 0);
    MUST(listen(fd, 16) == 0);
    addr.len = sizeof addr.any;
    MUST(getsockname(fd, (struct sockaddr *)&addr.any, &addr.len) == 0);
    twi_addr_format(&addr, bound, 128);
    return fd;
}

static inline int
raw_connect(const char *address)
{
    return raw_socket(address, 0, NULL, 0);
}

static inline void
raw_send(int fd, const void *data, size_t n)
{
    const char *p = data;
    while (n > 0) {
        ssize_t sent = send(fd, p, n, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return; /* the peer closed, as some cases want */
        p += sent;
        n -= (size_t)sent;
    }
}

/* Until n bytes are there or the stream ended; how many. */
static inline size_t
raw_recv(int fd, void *data, size_t n)
{
    char *p = data;
    size_t have = 0;
    int64_t until = twi_now_ns() + SOON;
    while (have < n) {
        struct pollfd one = {fd, POLLIN, 0};
        int64_t left = until - twi_now_ns();
        if (left <= 0 || poll(&one, 1, (int)(left / MS) + 1) == 0) {
            fprintf(stderr, "raw_recv: %zu of %zu bytes in time\n", have, n);
            CHECK(!"bytes in time");
            break;
        }
        ssize_t got = recv(fd, p + have, n - have, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        have += (size_t)got;
    }
    return have;
}

/* Whether the stream ends, or is reset, without a further byte. */
static inline int
raw_ends(int fd)
{
    char byte;
    struct pollfd one = {fd, POLLIN, 0};
    if (poll(&one, 1, (int)(SOON / MS)) != 1)
        return 0;
    return recv(fd, &byte, 1, 0) <= 0;
}

/* Ends a connection with a reset. */
static inline void
raw_reset(int fd)
{
    struct linger now = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(fd);
}

/* A request that says who sends it; correlation_id 1, body "x". */
static inline size_t
raw_request_as(uint8_t *out, size_t cap, const char *credential,
               const char *method)
{
    uint8_t names[256];
    struct twi_str s = {(const uint8_t *)"bed.Service", 11},
                   m = {(const uint8_t *)method, strlen(method)};
    struct twi_std_request request = {
        .names = {names, twi_std_pack_names(names, sizeof names, s, m)},
        .auth = {(const uint8_t *)credential, strlen(credential)},
        .correlation_id = 1,
        .body_len = 1};
    size_t head = twi_std_pack_request(out, cap, &request);
    MUST(head && head < cap);
    out[head] = 'x';
    return head + 1;
}

/* A request's frame; its length. */
static inline size_t
raw_request(uint8_t *out, size_t cap, const char *service, const char *method,
            int64_t correlation_id, const void *body, size_t body_len)
{
    uint8_t names[256];
    struct twi_str s = {(const uint8_t *)service, strlen(service)},
                   m = {(const uint8_t *)method, strlen(method)};
    struct twi_std_request request = {
        .names = {names, twi_std_pack_names(names, sizeof names, s, m)},
        .correlation_id = correlation_id,
        .body_len = body_len};
    size_t n = twi_std_pack_request(out, cap - body_len, &request);
    MUST(n);
    if (body_len)
        memcpy(out + n, body, body_len);
    return n + body_len;
}

/* Reads one response frame into a buffer of its own, which the caller frees;
 * NULL when the stream ended. */
static inline uint8_t *
raw_response(int fd, struct twi_std_msg *msg)
{
    uint8_t header[TWI_STD_HEADER];
    size_t n = raw_recv(fd, header, sizeof header), used, need;
    const char *why = "";
    if (n < sizeof header)
        return NULL;
    size_t size = sizeof header + ((size_t)header[4] << 24 | header[5] << 16 |
                                   header[6] << 8 | header[7]);
    uint8_t *frame = malloc(size);
    MUST(frame);
    memcpy(frame, header, sizeof header);
    if (raw_recv(fd, frame + n, size - n) < size - n) {
        free(frame);
        return NULL;
    }
    enum twi_cut cut = twi_std_cut(frame, size, size, msg, &used, &need, &why);
    CHECK_EQ(cut, TWI_CUT_DONE);
    return frame;
}

/* ---------------------------------------------------------------- the baton */

static tw_id baton_watch;

/* The baton stays here: nobody else reads until it is dropped.  As an asyncio
 * loop does, it watches first, so that the others let go. */
static inline void
take_baton(void)
{
    int taken = 0;
    MUST(!tw_inbox_open(&baton_watch));
    MUST(tw_watch(baton_watch) >= 0);
    EVENTUALLY((taken = taken || twi_baton_take(TWI_MAIN)));
    MUST(taken);
}

static inline void
drop_baton(void)
{
    twi_baton_drop(TWI_MAIN);
    CHECK_EQ(tw_inbox_close(baton_watch), 0);
}

#endif
