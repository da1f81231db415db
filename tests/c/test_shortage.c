/* The system has little: no memory, no descriptor, and calls that do less than
 * was asked or nothing at all. */
#include "cases.h"
#include "clients.h"

#include <sys/resource.h>

/* Everything a small life needs, with one allocation after the other failing:
 * any error is right, a crash, a hang or a leak is not. */
static void
live_a_little(void)
{
    struct bed_server server;
    char bound[128], big[20000] = {0};
    tw_id peer = 0, inbox = 0, id;
    tw_event event;
    int more, submitted = 0;
    int ready = server_prepare(&server, NULL) == 0 &&
                tw_listen(server.id, "127.0.0.1:0", TW_PROTO_BAIDU_STD, 16,
                          bound, sizeof bound) == 0;
    if (ready)
        server_workers(&server, 1);
    if (ready && tw_peer_open(bound, &default_peer, &peer) == 0) {
        int64_t timeout = 15 * MS;
        call(peer, ECHO, "x", 1, timeout);
        call(peer, ECHO, big, sizeof big, timeout);
        if (tw_inbox_open(&inbox) == 0) {
            for (int i = 0; i < 2; i++)
                submitted += tw_submit(peer, client_methods[i ? ECHO : GATE],
                                       big, sizeof big, NULL,
                                       twi_now_ns() + timeout, inbox, 1, 0,
                                       &id) == 0;
            while (submitted > 0 && tw_inbox_wait(inbox, SOON, 1) == 0)
                submitted -= tw_drain(inbox, 0, &event, 1, &more);
            CHECK_EQ(submitted, 0);
            tw_inbox_close(inbox);
        }
        tw_peer_close(peer);
    }
    open_gate(&server);
    if (server.id) {
        tw_server_close(server.id);
        server_join(&server);
    }
}

static void
case_no_memory(void)
{
    int fds = count_fds();
    for (int many = 1; many <= 3; many += 2)
        for (long n = 0; n < 500; n++) {
            long from = atomic_load(&fault.mallocs) + n;
            atomic_store(&fault.malloc_until, from + many);
            atomic_store(&fault.malloc_from, from);
            int failed = check_failures;
            live_a_little();
            atomic_store(&fault.malloc_until, 0);
            nothing_is_left(fds);
            if (check_failures != failed) {
                fprintf(stderr, "with %d allocations from number %ld failing\n",
                        many, n);
                return;
            }
            if (atomic_load(&fault.mallocs) < from) {
                fprintf(stderr, "%ld allocations\n", n);
                break;
            }
        }
}

/* A deadline that finds no memory for its timer must not be lost. */
static void
case_no_timer_memory(void)
{
    enum { TIMERS = 64 }; /* the heap's first size */
    char bound[128];
    int listener = raw_socket("127.0.0.1:0", 1, bound, 0), more;
    tw_id peer = peer_open(bound), inbox, id;
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    for (int i = 0; i < TIMERS; i++)
        CHECK_EQ(tw_submit(peer, client_methods[ECHO], "", 0, NULL,
                           twi_now_ns() + 10 * SOON, inbox, 0, 0, &id),
                 0);
    for (int n = 0; n < 6; n++) {
        long from = atomic_load(&fault.mallocs) + n;
        atomic_store(&fault.malloc_until, from + 1);
        atomic_store(&fault.malloc_from, from);
        int rc = tw_submit(peer, client_methods[ECHO], "", 0, NULL,
                           twi_now_ns() + 5 * MS, inbox, 1, 0, &id);
        atomic_store(&fault.malloc_until, 0);
        CHECK(rc == 0 || rc == -ENOMEM);
        if (rc)
            continue;
        tw_event event = take_event(inbox);
        CHECK_EQ(event.cookie, 1);
        CHECK(event.code != 0);
        if (!event.kind)
            break;
    }
    tw_peer_close(peer);
    for (int i = 0; i < TIMERS; i++)
        CHECK_EQ(take_event(inbox).code, ECANCELED);
    tw_event event;
    CHECK_EQ(tw_drain(inbox, 0, &event, 1, &more), 0);
    tw_inbox_close(inbox);
    close(listener);
}

static void
case_io_faults(void)
{
    struct bed_server server;
    server_start(&server, "127.0.0.1:0", 2, NULL);
    static const struct {
        int one, again, intr, calls;
        size_t size;
    } runs[] = {
        {1, 0, 0, 6, 800},
        {0, 40, 0, 60, 20000},
        {0, 0, 60, 60, 20000},
        {1, 20, 20, 5, 500},
        {0, 30, 30, 40, 300000},
    };
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        atomic_store(&fault.recv_one, runs[i].one);
        atomic_store(&fault.send_one, runs[i].one);
        atomic_store(&fault.again_percent, runs[i].again);
        atomic_store(&fault.intr_percent, runs[i].intr);
        tw_id peer = peer_open(server.bound);
        call_in_parallel(peer, 4, runs[i].calls, ECHO, runs[i].size);
        tw_peer_close(peer);
    }
    server_end(&server);
}

/* The poller refuses: whatever was to be watched fails, nothing else. */
static void
case_epoll_faults(void)
{
    struct bed_server server;
    char bound[128];
    server_start(&server, "127.0.0.1:0", 2, NULL);
    for (int n = 1; n < 4; n++) {
        tw_id peer = peer_open(server.bound);
        atomic_store(&fault.epoll_errors, n);
        /* Some meet the client's attempt, some the server's accepted one. */
        for (int i = 0; i < 6 && atomic_load(&fault.epoll_errors) > 0; i++) {
            int code = call(peer, ECHO, "x", 1, SOON);
            CHECK(code == ENOSPC || code == TW_EEOF || code == ECONNRESET ||
                  code == EPIPE || code == 0);
        }
        CHECK(atomic_load(&fault.epoll_errors) <= 0);
        int code = call(peer, ECHO, "x", 1, SOON);
        if (code) /* the last one's connection was the server's to refuse */
            code = call(peer, ECHO, "x", 1, SOON);
        CHECK_EQ(code, 0);
        tw_peer_close(peer);
    }
    atomic_store(&fault.epoll_errors, 1);
    CHECK_EQ(tw_listen(server.id, "127.0.0.1:0", TW_PROTO_BAIDU_STD, 16, bound,
                       sizeof bound),
             -ENOSPC);
    atomic_store(&fault.epoll_errors, 1);
    CHECK_EQ(tw_listen(server.id, unix_address, TW_PROTO_BAIDU_STD, 16, bound,
                       sizeof bound),
             -ENOSPC);
    CHECK(access(unix_address + 5, F_OK));
    /* While a message waits for the kernel. */
    int fd = raw_socket(server.bound, 0, NULL, 4096);
    uint8_t frame[256];
    size_t n = raw_request(frame, sizeof frame, "bed.Service", "big", 1,
                           "9000000", 7);
    EVENTUALLY(tw_server_connections(server.id) == 1);
    atomic_store(&fault.epoll_errors, 1);
    raw_send(fd, frame, n);
    EVENTUALLY(tw_server_connections(server.id) == 0);
    close(fd);
    server_end(&server);
}

/* No descriptor left for anybody, as the system itself says it. */
static void
case_descriptor_limit(void)
{
    struct bed_server server;
    struct rlimit before, none;
    tw_id inbox;
    char scratch[64];
    tw_event result;
    server_start(&server, "127.0.0.1:0", 2, NULL);
    tw_id peer = peer_open(server.bound);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    int probe = dup(0);
    close(probe);
    getrlimit(RLIMIT_NOFILE, &before);
    none = before;
    none.rlim_cur = (rlim_t)probe; /* the lowest free number: none is free */
    MUST(setrlimit(RLIMIT_NOFILE, &none) == 0);
    CHECK_EQ(call_full(peer, ECHO, "x", 1, NULL, SOON, scratch, sizeof scratch,
                       &result),
             0);
    CHECK_EQ(tw_inbox_fd(inbox), -EMFILE);
    CHECK_EQ(tw_listen(server.id, "127.0.0.1:0", TW_PROTO_BAIDU_STD, 16, scratch,
                       sizeof scratch),
             -EMFILE);
    MUST(setrlimit(RLIMIT_NOFILE, &before) == 0);
    CHECK_EQ(result.code, EMFILE);
    CHECK_EQ(result.phase, TW_PHASE_CONNECT);
    CHECK_EQ(result.sent, TW_SENT_NONE);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    CHECK(tw_inbox_fd(inbox) >= 0);
    tw_inbox_close(inbox);
    tw_peer_close(peer);
    server_end(&server);
}

static const struct test_case cases[] = {
    {"no_memory", case_no_memory}, /* first: nothing is allocated yet */
    {"no_timer_memory", case_no_timer_memory},
    {"io_faults", case_io_faults},
    {"epoll_faults", case_epoll_faults},
    {"descriptor_limit", case_descriptor_limit},
    {0},
};

int
main(int argc, char **argv)
{
    seed = check_seed();
    plant_faults(seed);
    return cases_main(cases, argc, argv);
}
