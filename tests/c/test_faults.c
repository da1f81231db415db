/* Each documented errno, once, from each system call of the core that can say
 * it: what was being done fails cleanly or goes on, what it held is given back,
 * and a connection beside it notices nothing.
 *
 * Left out are the errnos that can only mean a mistake of the core's own
 * (EBADF, EFAULT, ENOTSOCK and EINVAL of a call without peer-made arguments)
 * where nothing but the call itself would be tested. */
#include "cases.h"
#include "clients.h"

#include "atomics.h"
#include "protocol.h"
#include "socket.h"

static struct bed_server server; /* with the bystander's connection */
static tw_id bystander;

struct rest {
    tw_census census;
    int fds;
};

static struct rest
look(void)
{
    struct rest rest = {.fds = count_fds()};
    tw_census_take(&rest.census);
    return rest;
}

/* The server's listener and the bystander's two ends, nothing under way: a
 * call returns a little before all that it held is given back. */
static int
is_calm(const struct rest *now)
{
    const tw_census *c = &now->census;
    return c->sockets == 3 && !c->blocks && !c->calls && !c->requests &&
           !c->write_nodes && !c->timers;
}

static struct rest
at_rest(void)
{
    struct rest rest = look();
    EVENTUALLY((rest = look(), is_calm(&rest)));
    return rest;
}

static int
is_at_rest(const struct rest *before)
{
    struct rest now = look();
    return now.fds == before->fds &&
           !memcmp(&now.census, &before->census, sizeof now.census);
}

/* After each row: the fault was met, nothing is left of it, others go on. */
static void
row_done(enum faulty_call which, int error, const struct rest *before,
         int failures)
{
    CHECK(atomic_load(&fault.fail_next[which]) <= 0);
    calm_faults();
    CHECK_EQ(call(bystander, ECHO, "x", 1, SOON), 0);
    EVENTUALLY(is_at_rest(before));
    if (failures != check_failures) {
        fprintf(stderr, "in %s, call %d: %s\n", running, (int)which,
                strerror(error));
        census_print();
    }
}

/* ------------------------------------------------------------- tw_open */

struct row {
    enum faulty_call call;
    int error;
};

static const struct row opening[] = {
    {CALL_mmap, ENOMEM},          {CALL_mmap, EAGAIN},
    {CALL_epoll_create1, EMFILE}, {CALL_epoll_create1, ENFILE},
    {CALL_epoll_create1, ENOMEM}, {CALL_eventfd, EMFILE},
    {CALL_eventfd, ENFILE},       {CALL_eventfd, ENODEV},
    {CALL_eventfd, ENOMEM},       {CALL_timerfd_create, EMFILE},
    {CALL_timerfd_create, ENFILE}, {CALL_timerfd_create, ENODEV},
    {CALL_timerfd_create, ENOMEM}, {CALL_timerfd_create, EPERM},
    {CALL_epoll_ctl, ENOMEM},     {CALL_epoll_ctl, ENOSPC},
    {CALL_pthread_create, EAGAIN}, {CALL_pthread_create, EPERM},
};

static void
the_core_does_not_open(void)
{
    int fds = count_fds();
    for (size_t i = 0; i < sizeof opening / sizeof *opening; i++) {
        atomic_store(&fault.fail_errno[opening[i].call], opening[i].error);
        atomic_store(&fault.fail_next[opening[i].call], 1);
        CHECK_EQ(tw_open(), -opening[i].error);
        CHECK(atomic_load(&fault.fail_next[opening[i].call]) <= 0);
        CHECK_EQ(count_fds(), fds);
    }
}

/* ----------------------------------------------------------- listening */

static const struct row listening[] = {
    {CALL_socket, EACCES},      {CALL_socket, EAFNOSUPPORT},
    {CALL_socket, EMFILE},      {CALL_socket, ENFILE},
    {CALL_socket, ENOBUFS},     {CALL_socket, ENOMEM},
    {CALL_socket, EPROTONOSUPPORT}, {CALL_setsockopt, ENOPROTOOPT},
    {CALL_setsockopt, ENOMEM},  {CALL_setsockopt, ENOBUFS},
    {CALL_bind, EACCES},        {CALL_bind, EADDRINUSE},
    {CALL_bind, EADDRNOTAVAIL}, {CALL_bind, EINVAL},
    {CALL_bind, ELOOP},         {CALL_bind, ENAMETOOLONG},
    {CALL_bind, ENOENT},        {CALL_bind, ENOMEM},
    {CALL_bind, ENOTDIR},       {CALL_bind, EROFS},
    {CALL_listen, EADDRINUSE},  {CALL_listen, EOPNOTSUPP},
    {CALL_getsockname, ENOBUFS}, {CALL_epoll_ctl, ENOMEM},
    {CALL_epoll_ctl, ENOSPC},   {CALL_epoll_ctl, EPERM},
};

static int
listen_at(tw_id id, const char *address)
{
    char bound[128];
    return tw_listen(id, address, TW_PROTO_BAIDU_STD, 16, bound, sizeof bound);
}

static void
a_listener_fails(void)
{
    for (size_t i = 0; i < 2 * (sizeof listening / sizeof *listening); i++) {
        const struct row *row = &listening[i / 2];
        const char *address = i % 2 ? unix_address : "127.0.0.1:0";
        struct bed_server mine;
        int failures = check_failures;
        if (i % 2 && row->call == CALL_setsockopt)
            continue; /* a unix socket needs no option */
        struct rest before = at_rest();
        MUST(server_prepare(&mine, NULL) == 0);
        atomic_store(&fault.fail_errno[row->call], row->error);
        atomic_store(&fault.fail_next[row->call], 1);
        CHECK_EQ(listen_at(mine.id, address), -row->error);
        if (i % 2)
            CHECK(access(unix_address + 5, F_OK)); /* no file stays behind */
        CHECK_EQ(listen_at(mine.id, address), 0);
        server_end(&mine);
        row_done(row->call, row->error, &before, failures);
    }
}

/* What lies at a unix address, and cannot be looked at or taken away. */
static void
a_stale_file_stays(void)
{
    static const struct row rows[] = {
        {CALL_lstat, EACCES},  {CALL_lstat, ELOOP},   {CALL_lstat, ENOMEM},
        {CALL_unlink, EACCES}, {CALL_unlink, EBUSY},  {CALL_unlink, EPERM},
        {CALL_unlink, EROFS},  {CALL_connect, EACCES},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct bed_server mine;
        char bound[128];
        int failures = check_failures;
        struct rest before = at_rest();
        close(raw_socket(unix_address, 1, bound, 0)); /* the file stays */
        MUST(server_prepare(&mine, NULL) == 0);
        atomic_store(&fault.fail_errno[rows[i].call], rows[i].error);
        atomic_store(&fault.fail_next[rows[i].call], 1);
        CHECK_EQ(listen_at(mine.id, unix_address), -EADDRINUSE);
        CHECK_EQ(listen_at(mine.id, unix_address), 0);
        server_end(&mine);
        row_done(rows[i].call, rows[i].error, &before, failures);
    }
}

/* ---------------------------------------------------------- connecting */

static const struct row connecting[] = {
    {CALL_socket, EACCES},        {CALL_socket, EAFNOSUPPORT},
    {CALL_socket, EMFILE},        {CALL_socket, ENFILE},
    {CALL_socket, ENOBUFS},       {CALL_socket, ENOMEM},
    {CALL_connect, EACCES},       {CALL_connect, EPERM},
    {CALL_connect, EADDRINUSE},   {CALL_connect, EADDRNOTAVAIL},
    {CALL_connect, EAFNOSUPPORT}, {CALL_connect, EALREADY},
    {CALL_connect, ECONNREFUSED}, {CALL_connect, EISCONN},
    {CALL_connect, ENETUNREACH},  {CALL_connect, EHOSTUNREACH},
    {CALL_connect, EPROTOTYPE},   {CALL_connect, ETIMEDOUT},
    {CALL_getsockopt, ENOPROTOOPT}, {CALL_getsockopt, ENOBUFS},
    {CALL_getpeername, ENOBUFS},  {CALL_epoll_ctl, ENOMEM},
    {CALL_epoll_ctl, ENOSPC},     {CALL_epoll_ctl, EPERM},
};

/* Reads one request from the core's client and answers it. */
static void
answer_one(int listener)
{
    uint8_t out[256];
    struct twi_std_msg msg;
    int fd = accept(listener, NULL, NULL);
    MUST(fd >= 0);
    uint8_t *request = raw_response(fd, &msg); /* frames look alike */
    CHECK(request && msg.has_request);
    if (request) {
        struct twi_std_response response = {
            .correlation_id = msg.correlation_id};
        raw_send(fd, out, twi_std_pack_response(out, sizeof out, &response));
    }
    free(request);
    char byte;
    CHECK_EQ(raw_recv(fd, &byte, 1), 0); /* the client hangs up in the end */
    close(fd);
}

static tw_event
submit_and_wait(tw_id peer, tw_id inbox)
{
    tw_id id;
    int more;
    MUST(tw_submit(peer, client_methods[LATER], "", 0, NULL,
                   twi_now_ns() + SOON, inbox, 7, 0, &id) == 0);
    tw_event event = next_event(inbox, 1);
    CHECK_EQ(event.cookie, 7);
    CHECK_EQ(tw_drain(inbox, 0, &(tw_event){0}, 1, &more), 0);
    return event;
}

static void *
answer_in_thread(void *listener)
{
    answer_one(*(int *)listener);
    return NULL;
}

static void
a_connection_is_not_made(void)
{
    char bound[128];
    int listener = raw_socket("127.0.0.1:0", 1, bound, 0);
    tw_id inbox;
    MUST(tw_inbox_open(&inbox) == 0);
    for (size_t i = 0; i < sizeof connecting / sizeof *connecting; i++) {
        const struct row *row = &connecting[i];
        int failures = check_failures;
        pthread_t thread;
        struct rest before = at_rest();
        tw_id peer = peer_open(bound);
        atomic_store(&fault.fail_errno[row->call], row->error);
        atomic_store(&fault.fail_next[row->call], 1);
        tw_event event = submit_and_wait(peer, inbox);
        CHECK_EQ(event.code, row->error);
        CHECK_EQ(event.phase, TW_PHASE_CONNECT);
        CHECK_EQ(event.sent, TW_SENT_NONE);
        tw_peer_close(peer);
        /* A connection that the kernel made meanwhile is nobody's. */
        struct pollfd waiting = {listener, POLLIN, 0};
        while (poll(&waiting, 1, 0) == 1)
            close(accept(listener, NULL, NULL));
        peer = peer_open(bound);
        MUST(!pthread_create(&thread, NULL, answer_in_thread, &listener));
        CHECK_EQ(submit_and_wait(peer, inbox).code, 0);
        tw_peer_close(peer);
        pthread_join(thread, NULL);
        row_done(row->call, row->error, &before, failures);
    }
    tw_inbox_close(inbox);
    close(listener);
}

/* A failure that only makes things slower, or tells nothing. */
static void
a_connection_is_made_all_the_same(void)
{
    static const struct row rows[] = {
        {CALL_setsockopt, ENOPROTOOPT}, {CALL_setsockopt, ENOMEM},
        {CALL_getsockname, ENOBUFS},    {CALL_accept4, EINTR},
        {CALL_accept4, ECONNABORTED},   {CALL_accept4, EPROTO},
        {CALL_accept4, ENETDOWN},       {CALL_accept4, ENOPROTOOPT},
        {CALL_accept4, EHOSTDOWN},      {CALL_accept4, ENONET},
        {CALL_accept4, EHOSTUNREACH},   {CALL_accept4, ENETUNREACH},
        {CALL_accept4, EMFILE},         {CALL_accept4, ENFILE},
        {CALL_accept4, ENOBUFS},        {CALL_accept4, ENOMEM},
        {CALL_recv, EINTR},             {CALL_sendmsg, EINTR},
        {CALL_epoll_wait, EINTR},       {CALL_futex, EINTR},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int failures = check_failures;
        struct rest before = at_rest();
        tw_id peer = peer_open(server.bound);
        atomic_store(&fault.fail_errno[rows[i].call], rows[i].error);
        atomic_store(&fault.fail_next[rows[i].call], 1);
        char scratch[64];
        tw_event result;
        int64_t deadline = twi_now_ns() + SOON;
        int rc = tw_call(peer, client_methods[ECHO], "xyz", 3, NULL, deadline,
                         0, scratch, sizeof scratch, &result);
        while (rc == -EINTR)
            rc = tw_wait(result.id, 0, scratch, sizeof scratch, &result);
        CHECK_EQ(rc, 3);
        /* Nobody may have slept: then nothing was interrupted. */
        if (rows[i].call == CALL_futex || rows[i].call == CALL_epoll_wait)
            atomic_store(&fault.fail_next[rows[i].call], 0);
        tw_peer_close(peer);
        row_done(rows[i].call, rows[i].error, &before, failures);
    }
}

/* ----------------------------------------------------- reading, writing */

static const int receiving[] = {ECONNRESET, ETIMEDOUT,    ECONNREFUSED, ENOMEM,
                                ENOTCONN,   EHOSTUNREACH, ENETDOWN,     ENOBUFS,
                                EIO,        EPIPE};
static const int sending[] = {EPIPE,    ECONNRESET,  EACCES,       EALREADY,
                              EISCONN,  EMSGSIZE,    ENOBUFS,      ENOMEM,
                              ENOTCONN, EOPNOTSUPP,  EDESTADDRREQ, ENETDOWN,
                              EIO,      ENETUNREACH, EHOSTUNREACH, ETIMEDOUT};

static int
ask(uint8_t *frame, size_t cap)
{
    int fd = raw_connect(server.bound);
    raw_send(fd, frame,
             raw_request(frame, cap, "bed.Service", "echo", 5, "abc", 3));
    return fd;
}

static void
a_server_side_fails(enum faulty_call which, const int *errors, size_t n)
{
    uint8_t frame[256];
    struct twi_std_msg msg;
    for (size_t i = 0; i < n; i++) {
        int failures = check_failures;
        struct rest before = at_rest();
        atomic_store(&fault.fail_errno[which], errors[i]);
        atomic_store(&fault.fail_next[which], 1);
        int fd = ask(frame, sizeof frame);
        CHECK(raw_ends(fd));
        close(fd);
        fd = ask(frame, sizeof frame);
        uint8_t *response = raw_response(fd, &msg);
        CHECK(response && msg.body.n == 3 && !msg.error_code);
        free(response);
        close(fd);
        row_done(which, errors[i], &before, failures);
    }
}

static void
a_client_side_fails(enum faulty_call which, const int *errors, size_t n)
{
    char bound[128];
    int listener = raw_socket("127.0.0.1:0", 1, bound, 0);
    tw_id inbox, id;
    MUST(tw_inbox_open(&inbox) == 0);
    for (size_t i = 0; i < n; i++) {
        int failures = check_failures;
        struct rest before = at_rest();
        tw_id peer = peer_open(bound);
        uint8_t out[256];
        struct twi_std_msg msg;
        atomic_store(&fault.fail_errno[which], errors[i]);
        if (which == CALL_sendmsg)
            atomic_store(&fault.fail_next[which], 1);
        MUST(tw_submit(peer, client_methods[LATER], "", 0, NULL,
                       twi_now_ns() + SOON, inbox, i, 0, &id) == 0);
        int fd = accept(listener, NULL, NULL);
        MUST(fd >= 0);
        if (which == CALL_recv) {
            uint8_t *request = raw_response(fd, &msg);
            CHECK(request);
            struct twi_std_response response = {
                .correlation_id = msg.correlation_id};
            size_t len = twi_std_pack_response(out, sizeof out, &response);
            atomic_store(&fault.fail_next[which], 1);
            raw_send(fd, out, len);
            free(request);
        }
        tw_event event = next_event(inbox, 1);
        CHECK_EQ(event.cookie, i);
        CHECK_EQ(event.code, errors[i]);
        CHECK_EQ(event.phase,
                 which == CALL_recv ? TW_PHASE_READ : TW_PHASE_WRITE);
        CHECK_EQ(event.sent,
                 which == CALL_recv ? TW_SENT_ALL : TW_SENT_NONE);
        CHECK(raw_ends(fd));
        close(fd);
        tw_peer_close(peer);
        row_done(which, errors[i], &before, failures);
    }
    tw_inbox_close(inbox);
    close(listener);
}

static void
io_fails(void)
{
    a_server_side_fails(CALL_recv, receiving,
                        sizeof receiving / sizeof *receiving);
    a_server_side_fails(CALL_sendmsg, sending, sizeof sending / sizeof *sending);
    a_client_side_fails(CALL_recv, receiving,
                        sizeof receiving / sizeof *receiving);
    a_client_side_fails(CALL_sendmsg, sending, sizeof sending / sizeof *sending);
}

/* An accepted connection that cannot be watched, or not be watched for room:
 * closed, and the next one is served. */
static void
the_poller_refuses(void)
{
    static const int errors[] = {ENOMEM, ENOSPC, EPERM};
    uint8_t frame[256];
    struct twi_std_msg msg;
    for (size_t i = 0; i < 6; i++) {
        int failures = check_failures, fd;
        struct rest before = at_rest();
        if (i < 3) {
            FAIL_NEXT(epoll_ctl, 1, errors[i]);
            fd = ask(frame, sizeof frame);
        } else {
            /* A write finds no room; the request for news of room fails. */
            fd = ask(frame, sizeof frame);
            free(raw_response(fd, &msg));
            FAIL_NEXT(epoll_ctl, 1, errors[i - 3]);
            FAIL_NEXT(sendmsg, 1, EAGAIN);
            raw_send(fd, frame, raw_request(frame, sizeof frame, "bed.Service",
                                            "echo", 6, "abc", 3));
        }
        CHECK(raw_ends(fd));
        close(fd);
        fd = ask(frame, sizeof frame);
        uint8_t *response = raw_response(fd, &msg);
        CHECK(response && msg.body.n == 3);
        free(response);
        close(fd);
        row_done(CALL_epoll_ctl, errors[i % 3], &before, failures);
    }
}

/* ------------------------------------------------- what only helps along */

static void
bells_and_looks(void)
{
    struct rest before = at_rest();
    int failures = check_failures;
    tw_id inbox;
    MUST(tw_inbox_open(&inbox) == 0);
    static const int errors[] = {EMFILE, ENFILE, ENODEV, ENOMEM};
    for (int i = 0; i < 4; i++) {
        FAIL_NEXT(eventfd, 1, errors[i]);
        CHECK_EQ(tw_inbox_fd(inbox), -errors[i]);
    }
    CHECK(tw_inbox_fd(inbox) >= 0);
    /* The dispatcher waits beside a watching loop, and is told no. */
    CHECK(tw_watch(inbox) >= 0);
    for (int i = 0; i < 2; i++) {
        FAIL_NEXT(poll, 1, i ? ENOMEM : EINTR);
        EVENTUALLY(atomic_load(&fault.fail_next[CALL_poll]) <= 0);
        CHECK_EQ(call(bystander, ECHO, "x", 1, SOON), 0);
    }
    tw_unwatch(inbox);
    tw_inbox_close(inbox);
    row_done(CALL_eventfd, EMFILE, &before, failures);

    /* The look at a worker that seems to stand still. */
    static const struct row looks[] = {
        {CALL_clock_gettime, EINVAL}, {CALL_open, EMFILE}, {CALL_open, ENFILE},
        {CALL_open, ENOMEM},          {CALL_open, ENOENT}, {CALL_read, EIO},
        {CALL_read, ESRCH},           {CALL_open, EINTR},
    };
    MUST(tw_inbox_open(&inbox) == 0);
    for (size_t i = 0; i < sizeof looks / sizeof *looks; i++) {
        int more;
        failures = check_failures;
        close_gate(&server);
        before = at_rest();
        submit(bystander, GATE, "", inbox, i);
        await_gate(&server, 1);
        atomic_store(&fault.fail_errno[looks[i].call], looks[i].error);
        atomic_store(&fault.fail_next[looks[i].call], 1);
        CHECK_EQ(call(bystander, ECHO, "x", 1, SOON), 0);
        open_gate(&server);
        tw_event event = next_event(inbox, 1);
        CHECK_EQ(event.code, 0);
        CHECK_EQ(tw_drain(inbox, 0, &event, 1, &more), 0);
        /* Whether it was looked at depends on the clock. */
        atomic_store(&fault.fail_next[looks[i].call], 0);
        row_done(looks[i].call, looks[i].error, &before, failures);
    }
    tw_inbox_close(inbox);

    /* A listener that cannot be shut down is closed all the same. */
    failures = check_failures;
    before = at_rest();
    struct bed_server mine;
    server_start(&mine, "127.0.0.1:0", 1, NULL);
    FAIL_NEXT(shutdown, 1, ENOTCONN);
    server_end(&mine);
    row_done(CALL_shutdown, ENOTCONN, &before, failures);
}

/* ---------------------------------------------------------- our own faults */

/* W9: a parser that claims more than there is ends its connection and is
 * counted; the process and its other connections live. */
static enum twi_cut
lie(struct twi_socket *sock, struct twi_block *block, const uint8_t *data,
    size_t n, int64_t now_ns, size_t *used, size_t *need, const char **why)
{
    (void)sock, (void)block, (void)data, (void)now_ns, (void)need, (void)why;
    *used = n + 1;
    return TWI_CUT_DONE;
}

static const struct twi_protocol liar = {.name = "liar", .consume = lie};

static void
make_a_liar(struct twi_socket *sock, void *undecided)
{
    if (sock->kind == TWI_SERVER_SIDE && !load_seq_cst(&sock->reader.protocol)) {
        store_seq_cst(&sock->reader.protocol, &liar);
        ++*(int *)undecided;
    }
}

static void
a_parser_lies(void)
{
    int failures = check_failures, found = 0;
    struct rest before = at_rest();
    uint64_t accepted = counter(TWI_ACCEPTED);
    int fd = raw_connect(server.bound);
    EVENTUALLY(counter(TWI_ACCEPTED) > accepted);
    twi_socket_each(make_a_liar, &found);
    CHECK_EQ(found, 1);
    raw_send(fd, "PRPC", 4);
    CHECK(raw_ends(fd));
    close(fd);
    CHECK_EQ(counter(TWI_INTERNAL_ERRORS), ++internal_errors_wanted);
    row_done(CALL_recv, 0, &before, failures);
}

static const struct test_case cases[] = {
    {"a listener fails", a_listener_fails},
    {"a stale file stays", a_stale_file_stays},
    {"a connection is not made", a_connection_is_not_made},
    {"a connection is made all the same", a_connection_is_made_all_the_same},
    {"reading or writing fails", io_fails},
    {"the poller refuses", the_poller_refuses},
    {"bells and looks", bells_and_looks},
    {"a parser lies", a_parser_lies},
    {0},
};

int
main(int argc, char **argv)
{
    plant_faults(check_seed());
    the_core_does_not_open();
    cases_open();
    server_start(&server, "127.0.0.1:0", 2, NULL);
    bystander = peer_open(server.bound);
    CHECK_EQ(call(bystander, ECHO, "x", 1, SOON), 0);
    cases_run(cases, argc, argv, calm_faults);
    tw_peer_close(bystander);
    server_end(&server);
    nothing_is_left(fds_at_rest);
    return cases_close();
}
