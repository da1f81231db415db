/* R5: the n-th allocation fails, for n = 1, 2, 3 ..., in every entry of api.h,
 * until the entry gets by without meeting the failure.  Any error is right; a
 * crash, a hang or a leak is not.
 *
 *     test_nomem path/to/api.h [entry...]
 *
 * Each attempt has a process of its own, so that slabs and caches are empty,
 * and ends with the leak sanitizer's look. */
#include "bed.h"
#include "clients.h"

#include <ctype.h>
#include <sys/wait.h>

#include "worker.h"

static long nth; /* which allocation fails; 1 is the first */
static long armed_from;
static int was_armed;
static int entry_met; /* the entry met the failure */

/* From here on the entry runs. */
static void
arm(void)
{
    armed_from = atomic_load(&fault.mallocs) + nth - 1;
    was_armed = 1;
    atomic_store(&fault.malloc_from, armed_from);
    atomic_store(&fault.malloc_until, armed_from + 1);
}

static int
met(void)
{
    return atomic_load(&fault.mallocs) > armed_from;
}

/* The entry has returned and done what it does elsewhere: it succeeded, or an
 * allocation has failed. */
static void
entry_done(int good)
{
    atomic_store(&fault.malloc_until, 0);
    entry_met = met();
    CHECK(good || entry_met);
}

/* ------------------------------------------------------------- the scenes */

static struct bed_server server;
static tw_id inbox, peer;

static void
open_inbox(void)
{
    MUST(tw_inbox_open(&inbox) == 0);
}

/* A server that listens; so many workers. */
static void
serve(int workers)
{
    open_inbox();
    MUST(server_prepare(&server, NULL) == 0);
    MUST(tw_server_inboxes(server.id, inbox, inbox) == 0);
    MUST(tw_listen(server.id, "127.0.0.1:0",
                   TW_PROTO_BAIDU_STD | TW_PROTO_HTTP, 16, server.bound,
                   sizeof server.bound) == 0);
    server_workers(&server, workers);
    /* What they need they have before the entry runs. */
    EVENTUALLY(twi_worker_count() == workers);
}

static void
connect_peer(void)
{
    serve(1);
    peer = peer_open(server.bound);
}

static void
end_scene(void)
{
    if (peer)
        tw_peer_close(peer);
    if (server.id)
        server_end(&server);
    if (inbox)
        tw_inbox_close(inbox);
}

/* Puts raw bytes to the server until its loop's inbox has something. */
static tw_event
event_of(const char *method, int *fd)
{
    uint8_t frame[256] = "GET / HTTP/1.1\r\n\r\n";
    size_t n = method ? raw_request(frame, sizeof frame, "bed.Service", method,
                                    1, "x", 1)
                      : strlen((char *)frame);
    *fd = raw_connect(server.bound);
    raw_send(*fd, frame, n);
    return next_event(inbox, 0);
}

static tw_id
submit_one(int method)
{
    tw_id id = 0;
    MUST(tw_submit(peer, client_methods[method], "x", 1, NULL,
                   twi_now_ns() + SOON, inbox, 1, 0, &id) == 0);
    return id;
}

static int
result_code(void)
{
    return next_event(inbox, 0).code;
}

/* ------------------------------------------------------------ the entries */

static void
in_open(void)
{
    int fds = count_fds();
    arm();
    int rc = tw_open();
    entry_done(rc == 0);
    if (rc) {
        CHECK_EQ(count_fds(), fds);
        MUST(tw_open() == 0);
    }
    tw_close();
    tw_forked(); /* as a child of a process that had closed it */
}

static void
in_server_open(void)
{
    arm();
    int rc = tw_server_open(&default_options, &server.id);
    entry_done(rc == 0);
    if (rc)
        server.id = 0;
}

static void
in_server_method(void)
{
    static const tw_method_options limited = {
        .max_concurrency = {.kind = TW_LIMIT_NUMBER, .most = 1},
        .max_queue_age_ns = SECOND};
    MUST(tw_server_open(&default_options, &server.id) == 0);
    arm();
    int rc = tw_server_method(server.id, "a.Service", "method", TW_RUN_WORKER,
                              &limited);
    entry_done(rc >= 0);
    CHECK_EQ(tw_server_method(server.id, "a.Service", "next", TW_RUN_WORKER,
                              NULL),
             rc >= 0);
}

static void
in_listen(void)
{
    char bound[128];
    MUST(server_prepare(&server, NULL) == 0);
    arm();
    int rc = tw_listen(server.id, "127.0.0.1:0", TW_PROTO_BAIDU_STD, 16, bound,
                       sizeof bound);
    entry_done(rc == 0);
    CHECK_EQ(tw_listen(server.id, "127.0.0.1:0", TW_PROTO_BAIDU_STD, 16, bound,
                       sizeof bound),
             0);
}

static void
in_bind(void)
{
    char bound[128];
    arm();
    int fd = tw_bind("127.0.0.1:0", 16, &default_options, bound, sizeof bound);
    entry_done(fd >= 0);
    if (fd >= 0)
        close(fd);
}

static void
in_server_simple(void)
{
    serve(1);
    arm();
    int good = tw_server_inboxes(server.id, inbox, inbox) == 0;
    good &= tw_server_in_flight(server.id) == 0;
    good &= tw_server_connections(server.id) == 0;
    good &= tw_server_limit(server.id, -1, 1) == -EINVAL; /* it has none */
    good &= tw_server_lame_duck(server.id) == 0;
    good &= tw_server_stop(server.id) == 0;
    good &= tw_server_drain(server.id, SOON) == 0;
    good &= tw_server_close(server.id) == 0;
    entry_done(good);
    CHECK(!met()); /* ending needs no memory */
    server_join(&server);
    server.id = 0;
}

static void
in_worker(void)
{
    tw_event event;
    tw_id worker;
    serve(0);
    arm();
    int rc = tw_worker_open(server.id, &event, &worker);
    entry_done(rc == 0);
    if (rc == 0)
        CHECK_EQ(tw_worker_close(worker), 0);
}

/* Asks until there is an answer, then closes the server. */
static void *
ask_and_close(void *unused)
{
    uint8_t frame[256];
    struct twi_std_msg msg;
    (void)unused;
    for (int i = 0; i < 5; i++) {
        int fd = raw_connect(server.bound);
        raw_send(fd, frame, raw_request(frame, sizeof frame, "bed.Service",
                                        "echo", 1, "x", 1));
        uint8_t *response = raw_response(fd, &msg);
        int good = response && !msg.error_code;
        close(fd);
        free(response);
        if (good)
            break;
        CHECK(met());
        CHECK(i < 4);
    }
    tw_server_close(server.id);
    return NULL;
}

static void
in_turn(void)
{
    pthread_t thread;
    tw_event event;
    tw_id worker;
    int code = TW_NO_ANSWER, runs = 0;
    serve(0);
    MUST(tw_worker_open(server.id, &event, &worker) == 0);
    MUST(!pthread_create(&thread, NULL, ask_and_close, NULL));
    arm();
    while (tw_turn(worker, code, event.body, 1, NULL) >= 0) {
        code = 0;
        runs++;
    }
    pthread_join(thread, NULL);
    entry_done(runs == 1);
    CHECK(runs >= 1);
    CHECK_EQ(tw_worker_close(worker), 0);
    server.id = 0;
}

static void
in_reply(void)
{
    int fd;
    struct twi_std_msg msg;
    serve(0);
    tw_event event = event_of("loop_echo", &fd);
    tw_extra extra = {.attachment = "attached", .attachment_len = 8};
    arm();
    CHECK_EQ(tw_request_alive(event.id), 1);
    CHECK_EQ(tw_request_watch(event.id, inbox), 1);
    void *block = tw_request_hold(event.id);
    tw_hold(block);
    tw_release(block);
    CHECK_EQ(tw_reply(event.id, 0, "y", 1, &extra, inbox), 0);
    CHECK_EQ(tw_flush(inbox), 0);
    uint8_t *response = raw_response(fd, &msg);
    entry_done(response && !msg.error_code);
    tw_release(block);
    free(response);
    close(fd);
}

static void
in_drain(void)
{
    int fd, more, n;
    uint8_t frame[256];
    tw_event event;
    serve(0);
    arm();
    for (int i = 0; i < 2; i++) { /* the first may be lost with its memory */
        fd = raw_connect(server.bound);
        raw_send(fd, frame, raw_request(frame, sizeof frame, "bed.Service",
                                        "loop_echo", 1, "x", 1));
        struct pollfd end = {fd, POLLIN, 0};
        while ((n = tw_drain(inbox, 1, &event, 1, &more)) == 0 &&
               poll(&end, 1, 1) == 0)
            ;
        CHECK(n >= 0);
        if (n)
            CHECK_EQ(tw_reply(event.id, 0, "y", 1, NULL, 0), 0);
        else
            CHECK(met());
        close(fd);
        if (n)
            break;
    }
    entry_done(n == 1);
}

static void
in_raw(void)
{
    int fd;
    char byte;
    serve(0);
    tw_event event = event_of(NULL, &fd);
    CHECK_EQ(event.kind, TW_CHUNK);
    arm();
    CHECK_EQ(tw_raw_next(event.id), 0);
    int rc = tw_raw_write(event.id, "x", 1, 0);
    entry_done(rc == 0);
    if (rc == 0)
        CHECK_EQ(raw_recv(fd, &byte, 1), 1);
    close(fd);
}

static void
in_peer(void)
{
    tw_peer_options options = default_peer;
    options.health_interval_ns = SECOND;
    options.probe_service = "bed.Service";
    options.probe_method = method_names[ECHO];
    options.probe_body = "are you there";
    options.probe_body_len = 13;
    arm();
    int rc = tw_peer_open("127.0.0.1:1,127.0.0.1:2", &options, &peer);
    entry_done(rc == 0);
    if (rc)
        peer = 0;
}

static void
in_share(void)
{
    tw_id another;
    connect_peer();
    arm();
    int rc = tw_peer_share(peer, TW_SINGLE, &another);
    entry_done(rc == 0);
    if (!rc)
        CHECK_EQ(tw_peer_close(another), 0);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
}

static void
in_peer_close(void)
{
    connect_peer();
    submit_one(GATE);
    await_gate(&server, 1);
    arm();
    int rc = tw_peer_close(peer);
    entry_done(rc == 0); /* what others allocate meanwhile may fail */
    CHECK_EQ(result_code(), ECANCELED);
    peer = 0;
}

static void
in_client_method(void)
{
    arm();
    int rc = tw_client_method("another.Service", "method");
    entry_done(rc >= 0);
}

static void
in_call(void)
{
    connect_peer();
    arm();
    int rc = call(peer, ECHO, "x", 1, SOON);
    entry_done(rc == 0);
    EVENTUALLY(call(peer, ECHO, "x", 1, SOON) == 0);
}

static void
in_wait(void)
{
    char scratch[64];
    tw_event result;
    connect_peer();
    FAIL_NEXT(epoll_wait, 1000000, EINTR);
    int rc = tw_call(peer, client_methods[ECHO], "x", 1, NULL, 0, 1, scratch,
                     sizeof scratch, &result);
    atomic_store(&fault.fail_next[CALL_epoll_wait], 0);
    arm();
    while (rc == -EINTR)
        rc = tw_wait(result.id, 0, scratch, sizeof scratch, &result);
    entry_done(rc == 1);
    CHECK(rc == 1 || rc == -TW_RICH);
}

static void
in_submit(void)
{
    tw_id id;
    connect_peer();
    arm();
    int rc = tw_submit(peer, client_methods[ECHO], "x", 1, NULL,
                       twi_now_ns() + SOON, inbox, 1, 1, &id);
    if (rc == 0) {
        tw_flush(inbox);
        int code = result_code();
        entry_done(code == 0);
    } else
        entry_done(0);
}

static void
in_cancel(void)
{
    connect_peer();
    tw_id id = submit_one(GATE);
    await_gate(&server, 1);
    arm();
    int rc = tw_cancel(id);
    entry_done(rc == 0); /* what others allocate meanwhile may fail */
    CHECK_EQ(result_code(), ECANCELED);
}

static void
in_alarm(void)
{
    tw_id id;
    connect_peer();
    arm();
    int rc = tw_alarm(inbox, twi_now_ns() + MS, 1, &id);
    /* Without memory for its timer it comes at once. */
    int code = rc == 0 ? result_code() : TW_ERPCTIMEDOUT;
    CHECK(code == TW_ERPCTIMEDOUT || code == ENOMEM);
    entry_done(rc == 0 && code == TW_ERPCTIMEDOUT);
}

static void
in_inbox(void)
{
    arm();
    int rc = tw_inbox_open(&inbox);
    int good = rc == 0;
    if (rc == 0) {
        good &= tw_inbox_fd(inbox) >= 0;
        good &= tw_watch(inbox) >= 0;
        tw_unwatch(inbox);
        good &= tw_flush(inbox) == 0;
        good &= tw_inbox_wait(inbox, 0, 1) == -ETIMEDOUT;
        good &= tw_inbox_close(inbox) == 0;
    }
    entry_done(good);
    inbox = 0;
}

static void
in_socket(void)
{
    char text[128];
    connect_peer();
    submit_one(GATE);
    await_gate(&server, 1);
    tw_event result;
    char scratch[64];
    /* The socket's id comes with a result. */
    tw_call(peer, client_methods[ECHO], "x", 1, NULL, twi_now_ns() + MS, 0,
            scratch, sizeof scratch, &result);
    arm();
    int good = tw_socket_alive(result.socket) == 1;
    good &= tw_socket_peer(result.socket, text, sizeof text) > 0;
    good &= tw_socket_fail(result.socket, ECONNRESET) == 0;
    entry_done(good);
    CHECK_EQ(result_code(), ECONNRESET);
}

static void
in_looks(void)
{
    static tw_row rows[8];
    static uint64_t cells[TWI_CELLS_MAX];
    tw_log_entry entry;
    tw_census census;
    arm();
    int good = tw_error_name(TW_EEOF)[0] != 0;
    good &= tw_error_text(TW_EEOF)[0] != 0;
    good &= tw_counter_rows(rows, 0, 8) == 8;
    tw_counter_add(tw_counter_row("tidewire_own", "Own", TW_GAUGE, NULL, 0), 1);
    good &= tw_share_counters() == 0; /* they are there */
    good &= tw_counter_cells(cells, TWI_CELLS_MAX) > 0;
    good &= tw_counter_lanes() > 0;
    good &= tw_lane_cells(0, cells, TWI_CELLS_MAX) > 0;
    good &= tw_histogram_bound(0) > 0;
    good &= tw_log_take(&entry, 1, 0) == 0;
    tw_census_take(&census);
    entry_done(good);
    CHECK(!met());
}

static void
in_lend(void)
{
    static const char lent[] = "lent";
    uint64_t token = 0;
    arm();
    void *block = tw_lend(lent, sizeof lent, 7);
    entry_done(block != NULL);
    if (!block)
        return;
    tw_release(block);
    CHECK_EQ(tw_released(&token, 1), 1);
    CHECK_EQ(token, 7);
}

static void
in_loops(void)
{
    arm();
    int rc = tw_loops(3);
    entry_done(rc == 0);
    CHECK(tw_loops(1) == 0);
}

static void
in_budget(void)
{
    arm();
    tw_memory_budget(1 << 30);
    tw_memory_budget(0);
    entry_done(1);
    CHECK(!met());
}

static void
in_socket_check(void)
{
    tw_socket_options options = {0};
    char refused[64];
    arm();
    entry_done(!tw_socket_check("127.0.0.1:1", &options, refused,
                                sizeof refused));
}

static void
in_credential(void)
{
    peer = peer_open("127.0.0.1:1");
    arm();
    int rc = tw_peer_credential(peer, "secret", 6, 1);
    entry_done(rc == 0);
    CHECK_EQ(tw_peer_wants_credential(peer), rc != 0);
}

/* The next event, or 0 when a failed allocation has cost it. */
static int
event_or_none(tw_event *event)
{
    int more;
    while (tw_inbox_wait(inbox, TWI_TICK_NS, 0))
        if (met())
            return 0;
    return tw_drain(inbox, 0, event, 1, &more);
}

static void
in_auth(void)
{
    uint8_t frame[256];
    char who[16];
    tw_event event;
    open_inbox();
    MUST(server_prepare(&server, NULL) == 0);
    MUST(tw_server_inboxes(server.id, inbox, inbox) == 0);
    MUST(tw_server_auth(server.id, inbox, SOON) == 0);
    MUST(tw_listen(server.id, "127.0.0.1:0", TW_PROTO_BAIDU_STD, 16,
                   server.bound, sizeof server.bound) == 0);
    int fd = raw_connect(server.bound);
    EVENTUALLY(tw_server_connections(server.id) == 1);
    size_t n = raw_request_as(frame, sizeof frame, "secret", "loop_echo");
    arm();
    raw_send(fd, frame, n);
    int good = event_or_none(&event) &&
               !tw_auth_verdict(event.id, 1, "somebody", 8) &&
               event_or_none(&event) &&
               tw_request_identity(event.id, who, sizeof who) == 8 &&
               !tw_reply(event.id, 0, "y", 1, NULL, 0);
    entry_done(good);
    close(fd);
}

/* An entry, and with it those that its scene runs under the same failure. */
static const struct {
    const char *names;
    void (*run)(void);
} entries[] = {
    {"tw_open tw_close tw_forked", in_open},
    {"tw_error_name tw_error_text tw_counter_row tw_counter_add "
     "tw_counter_rows tw_counter_cells "
     "tw_share_counters tw_counter_lanes tw_lane_cells tw_histogram_bound "
     "tw_log_take tw_census_take",
     in_looks},
    {"tw_socket_peer tw_socket_alive tw_socket_fail", in_socket},
    {"tw_server_open", in_server_open},
    {"tw_server_method", in_server_method},
    {"tw_listen", in_listen},
    {"tw_bind", in_bind},
    {"tw_server_inboxes tw_server_limit tw_server_lame_duck tw_server_stop "
     "tw_server_drain tw_server_close tw_server_in_flight tw_server_connections",
     in_server_simple},
    {"tw_worker_open tw_worker_close", in_worker},
    {"tw_turn", in_turn},
    {"tw_reply tw_request_alive tw_request_watch tw_request_hold tw_hold "
     "tw_release tw_flush",
     in_reply},
    {"tw_drain", in_drain},
    {"tw_raw_next tw_raw_write", in_raw},
    {"tw_peer_open", in_peer},
    {"tw_peer_share", in_share},
    {"tw_peer_close", in_peer_close},
    {"tw_client_method", in_client_method},
    {"tw_call", in_call},
    {"tw_wait", in_wait},
    {"tw_submit", in_submit},
    {"tw_cancel", in_cancel},
    {"tw_alarm", in_alarm},
    {"tw_inbox_open tw_inbox_close tw_inbox_fd tw_watch tw_unwatch "
     "tw_inbox_wait",
     in_inbox},
    {"tw_lend tw_released", in_lend},
    {"tw_loops", in_loops},
    {"tw_memory_budget", in_budget},
    {"tw_socket_check", in_socket_check},
    {"tw_peer_credential tw_peer_wants_credential", in_credential},
    {"tw_server_auth tw_auth_verdict tw_request_identity", in_auth},
};

/* ------------------------------------------------------------ the attempts */

enum { MET = 3, TOO_MANY = 60 };

static int
attempt(void (*run)(void))
{
    plant_faults(1);
    if (run == in_open)
        run();
    else {
        MUST(tw_open() == 0);
        client_methods_open();
        int fds = count_fds();
        run();
        end_scene();
        nothing_is_left(fds);
        tw_close();
    }
    MUST(was_armed);
    return check_failures ? 1 : entry_met ? MET : 0;
}

static int
status_of(void (*run)(void))
{
    int status;
    pid_t child = fork();
    MUST(child >= 0);
    if (child == 0) {
        alarm(60);
        check_failures = 0; /* the parent's */
        /* exit, not _exit: the leak sanitizer looks then. */
        exit(attempt(run));
    }
    MUST(waitpid(child, &status, 0) == child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* ------------------------------------------------------ the list is complete */

static int
is_listed(const char *name)
{
    size_t n = strlen(name);
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++)
        for (const char *at = entries[i].names; (at = strstr(at, name)); at++)
            if (at[n] == ' ' || !at[n])
                return 1;
    return 0;
}

static void
check_list(const char *path)
{
    char text[65536], name[64];
    FILE *f = fopen(path, "r");
    MUST(f);
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    MUST(feof(f));
    fclose(f);
    int found = 0;
    for (char *p = text; *p; p++) {
        if (p[0] == '/' && p[1] == '*') {
            p = strstr(p, "*/");
            MUST(p);
        }
        if (strncmp(p, "tw_", 3) || isalnum((unsigned char)p[-1]) ||
            p[-1] == '_')
            continue;
        size_t n = strspn(p, "abcdefghijklmnopqrstuvwxyz0123456789_");
        if (p[n] != '(')
            continue;
        snprintf(name, sizeof name, "%.*s", (int)n, p);
        found++;
        if (!is_listed(name))
            fprintf(stderr, "%s of api.h has no scene here\n", name);
        CHECK(is_listed(name));
    }
    CHECK(found >= 40);
}

int
main(int argc, char **argv)
{
    MUST(argc >= 2);
    check_list(argv[1]);
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++) {
        int wanted = argc == 2, status = MET;
        for (int j = 2; j < argc; j++)
            wanted |= strstr(entries[i].names, argv[j]) != NULL;
        for (nth = 1; wanted && nth < TOO_MANY && status == MET; nth++) {
            status = status_of(entries[i].run);
            CHECK(status == MET || status == 0);
            if (status != MET && status)
                fprintf(stderr, "%s, allocation %ld: status %d\n",
                        entries[i].names, nth, status);
        }
        CHECK(nth < TOO_MANY);
        if (wanted)
            fprintf(stderr, "%-60.60s %ld allocations\n", entries[i].names,
                    nth - 2);
    }
    return check_done();
}
