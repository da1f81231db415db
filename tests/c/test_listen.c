/* Listeners: what they may be bound to, what they take over, what accepting
 * gives them. */
#include "cases.h"
#include "clients.h"

#include <sys/file.h>

/* R4: each errno of accept, once or more, in front of a connection. */
static void
case_accept_errors(void)
{
    static const struct {
        int code, times, pauses;
    } table[] = {
        {EMFILE, 2, 2},       {ENFILE, 2, 2},      {ENOBUFS, 2, 2},
        {ENOMEM, 2, 2},       {EPERM, 1, 1},       {ENOSR, 1, 1},
        {EINTR, 1, 0},        {ECONNABORTED, 1, 0}, {EPROTO, 1, 0},
        {ENETDOWN, 1, 0},     {ENOPROTOOPT, 1, 0}, {EHOSTDOWN, 1, 0},
        {ENONET, 1, 0},       {EHOSTUNREACH, 1, 0}, {EOPNOTSUPP, 1, 0},
        {ENETUNREACH, 1, 0},  {ECONNRESET, 1, 0},  {ETIMEDOUT, 1, 0},
        {ECONNABORTED, 63, 0},
        /* Nothing else in a whole turn: it may go on like this. */
        {ECONNABORTED, 100, 1},
    };
    struct bed_server server;
    server_start(&server, "127.0.0.1:0", 2, NULL);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        uint64_t pauses = counter(TWI_ACCEPT_PAUSES);
        log_is_read();
        atomic_store(&fault.accept_errno, table[i].code);
        atomic_store(&fault.accept_errors, table[i].times);
        tw_id peer = peer_open(server.bound);
        CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
        int found = logged(TW_LOG_ACCEPT_PAUSED, table[i].code);
        /* An interrupted attempt is one of the turn's, too. */
        if (table[i].times < 32 || !eintr_planted()) {
            CHECK_EQ(counter(TWI_ACCEPT_PAUSES) - pauses, table[i].pauses);
            CHECK_EQ(found, table[i].pauses);
        }
        tw_peer_close(peer);
    }
    server_end(&server);
    /* Of these none comes back, and the address is free. */
    static const int fatal[] = {EBADF, EFAULT, EINVAL, ENOTSOCK, ENOSYS};
    for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++) {
        server_start(&server, "127.0.0.1:0", 1, NULL);
        log_is_read();
        atomic_store(&fault.accept_errno, fatal[i]);
        atomic_store(&fault.accept_errors, 1);
        int fd = raw_connect(server.bound);
        CHECK(raw_ends(fd));
        close(fd);
        CHECK_EQ(logged(TW_LOG_ACCEPT_FAILED, fatal[i]), 1);
        server_end(&server);
    }
}

/* For other processes: a TCP address is taken but nobody listens there until
 * they do; a socket file listens at once. */
static void
case_bind(void)
{
    struct bed_server server;
    tw_server_options options = default_options;
    char bound[128], again[128];
    options.reuse_port = 1;
    int held = tw_bind("127.0.0.1:0", 16, &options, bound, sizeof bound);
    CHECK(held >= 0);
    tw_id peer = peer_open(bound);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), ECONNREFUSED);
    server_start(&server, bound, 1, &options);
    EVENTUALLY(call(peer, ECHO, "x", 1, SOON) == 0);
    CHECK_EQ(tw_bind(bound, 16, &default_options, again, sizeof again),
             -EADDRINUSE);
    tw_peer_close(peer);
    server_end(&server);
    close(held);
    /* A server takes it over as a descriptor, and leaves it when it ends. */
    held = tw_bind(unix_address, 16, &default_options, bound, sizeof bound);
    CHECK(held >= 0);
    CHECK(!strcmp(bound, unix_address));
    snprintf(again, sizeof again, "fd:%d", held);
    server_start(&server, again, 1, NULL);
    peer = peer_open(unix_address);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    tw_peer_close(peer);
    server_end(&server);
    CHECK_EQ(access(unix_address + 5, F_OK), 0);
    close(held);
    CHECK_EQ(unlink(unix_address + 5), 0);
    CHECK_EQ(tw_bind("localhost:0", 16, &default_options, bound, sizeof bound),
             -EINVAL);
    CHECK_EQ(tw_bind("fd:99999", 16, &default_options, bound, sizeof bound),
             -EINVAL);
    CHECK(strstr(bound, "descriptor 99999 is not open"));
}

/* Addresses that cannot be listened on, and files that are in the way. */
static void
case_listen(void)
{
    struct bed_server server, second;
    char bound[128], spare[128];
    const char *path = unix_address + 5;
    server_start(&server, "127.0.0.1:0", 1, NULL);
    MUST(server_prepare(&second, NULL) == 0);
    CHECK_EQ(tw_listen(second.id, server.bound, TW_PROTO_BAIDU_STD, 16, bound,
                       sizeof bound),
             -EADDRINUSE);
    CHECK_EQ(tw_listen(second.id, "localhost:0", TW_PROTO_BAIDU_STD, 16, bound,
                       sizeof bound),
             -EINVAL);
    CHECK_EQ(tw_listen(second.id, "unix:/nonexistent/x", TW_PROTO_BAIDU_STD, 16,
                       bound, sizeof bound),
             -ENOENT);
    /* A living server's socket file and a plain file are left alone ... */
    CHECK_EQ(tw_listen(server.id, unix_address, TW_PROTO_BAIDU_STD, 16, bound,
                       sizeof bound),
             0);
    CHECK_EQ(tw_listen(second.id, unix_address, TW_PROTO_BAIDU_STD, 16, bound,
                       sizeof bound),
             -EADDRINUSE);
    tw_id peer = peer_open(unix_address);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    tw_peer_close(peer);
    server_end(&server);
    CHECK(access(path, F_OK));
    close(open(path, O_CREAT | O_WRONLY, 0600));
    CHECK_EQ(tw_listen(second.id, unix_address, TW_PROTO_BAIDU_STD, 16, bound,
                       sizeof bound),
             -EADDRINUSE);
    CHECK_EQ(access(path, F_OK), 0);
    unlink(path);
    /* ... a dead one's is replaced. */
    close(raw_socket(unix_address, 1, spare, 0));
    CHECK_EQ(access(path, F_OK), 0);
    CHECK_EQ(tw_listen(second.id, unix_address, TW_PROTO_BAIDU_STD, 16, bound,
                       sizeof bound),
             0);
    CHECK(!strcmp(bound, unix_address));
    int rc = 0, listeners = 1;
    while ((rc = tw_listen(second.id, "127.0.0.1:0", TW_PROTO_BAIDU_STD, 16,
                           bound, sizeof bound)) == 0)
        listeners++;
    CHECK_EQ(rc, -ENOSPC);
    CHECK_EQ(listeners, 8);
    server_workers(&second, 1);
    peer = peer_open(bound);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    tw_peer_close(peer);
    /* More connections at once than one turn accepts. */
    int fds[150];
    for (int i = 0; i < 150; i++)
        fds[i] = raw_connect(i % 2 ? bound : unix_address);
    EVENTUALLY(tw_server_connections(second.id) == 150);
    for (int i = 0; i < 150; i++)
        close(fds[i]);
    EVENTUALLY(tw_server_connections(second.id) == 0);
    /* A listener that fails for good says so; the others go on. */
    tw_log_entry entries[64];
    log_is_read();
    atomic_store(&fault.accept_errno, EBADF);
    atomic_store(&fault.accept_errors, 1);
    fds[0] = raw_connect(bound);
    CHECK(raw_ends(fds[0]));
    close(fds[0]);
    int found = 0, n = tw_log_take(entries, 64, SOON);
    for (int i = 0; i < n; i++)
        found += entries[i].kind == TW_LOG_ACCEPT_FAILED &&
                 entries[i].code == EBADF;
    CHECK_EQ(found, 1);
    peer = peer_open(unix_address);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    tw_peer_close(peer);
    server_end(&second);
}

/* Who replaces a socket file keeps others out, though not for ever. */
static void
case_locked_directory(void)
{
    struct bed_server server;
    char bound[128], dir[64];
    snprintf(dir, sizeof dir, "%s", unix_address + strlen("unix:"));
    *strrchr(dir, '/') = 0;
    int fd = open(dir, O_RDONLY | O_CLOEXEC);
    MUST(fd >= 0 && !flock(fd, LOCK_EX));
    MUST(server_prepare(&server, NULL) == 0);
    CHECK_EQ(tw_listen(server.id, unix_address, TW_PROTO_BAIDU_STD, 16, bound,
                       sizeof bound),
             -EADDRINUSE);
    close(fd);
    CHECK_EQ(tw_listen(server.id, unix_address, TW_PROTO_BAIDU_STD, 16, bound,
                       sizeof bound),
             0);
    server_end(&server);
}

/* What the kernel refuses is named, where it is asked for. */
static void
case_socket_options(void)
{
    static const struct {
        tw_socket_options options;
        const char *name;
    } table[] = {
        {{.keepalive_idle = 32768}, "keepalive.idle"},
        {{.keepalive_interval = 32768}, "keepalive.interval"},
        {{.keepalive_count = 128}, "keepalive.count"},
        {{.bind = "nonsense"}, "bind"},
        {{.bind = "::1"}, "bind"},
        {{.bind = "192.0.2.1"}, "bind"},
    };
    char text[128], expected[128];
    struct bed_server server;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        tw_server_options options = default_options;
        options.socket = table[i].options;
        MUST(server_prepare(&server, &options) == 0);
        CHECK(tw_listen(server.id, "127.0.0.1:0", TW_PROTO_BAIDU_STD, 16, text,
                        sizeof text) < 0);
        snprintf(expected, sizeof expected, "option %s is refused",
                 table[i].name);
        CHECK(!strcmp(text, expected));
        CHECK_EQ(tw_server_close(server.id), 0);
        CHECK(tw_socket_check("127.0.0.1:1", &table[i].options, text,
                              sizeof text) < 0);
        CHECK(!strcmp(text, table[i].name));
        /* And while connecting: the call fails, unsent, and the log says why. */
        tw_peer_options peer_options = default_peer;
        tw_event result;
        tw_id peer;
        log_is_read();
        peer_options.socket = table[i].options;
        MUST(tw_peer_open("127.0.0.1:1", &peer_options, &peer) == 0);
        CHECK_EQ(call_full(peer, ECHO, "x", 1, NULL, SOON, text, sizeof text,
                           &result),
                 0);
        CHECK(result.code != 0 && result.code != ECONNREFUSED);
        CHECK_EQ(result.phase, TW_PHASE_CONNECT);
        CHECK_EQ(result.sent, TW_SENT_NONE);
        CHECK(logged(TW_LOG_CONNECT_FAILED, result.code) >= 1);
        tw_peer_close(peer);
    }
    /* A unix socket has no use for most of them. */
    CHECK_EQ(tw_socket_check("unix:/x", &table[0].options, text, sizeof text),
             0);
}

static const struct test_case cases[] = {
    {"accept_errors", case_accept_errors},
    {"bind", case_bind},
    {"listen", case_listen},
    {"locked_directory", case_locked_directory},
    {"socket_options", case_socket_options},
    {0},
};

int
main(int argc, char **argv)
{
    seed = check_seed();
    plant_faults(seed);
    return cases_main(cases, argc, argv);
}
