/* C1: connections that are silent, slow or idle, with a clock that the cases
 * move.  It never goes back, and timers fire when a case says so: the kernel's
 * timer knows the real time only. */
#include "cases.h"
#include "later.h"
#include "timeouts.h"

enum { FIRST = 10, STALL = 60, IDLE = 3600 };

static struct bed_server server;
static uint8_t request[256];
static size_t request_len;
static uint64_t answers;
static int waiting; /* requests at the gate */

static void
start(int first, int stall, int idle)
{
    tw_server_options options = default_options;
    options.first_byte_timeout_ns = first * SECOND;
    options.stall_timeout_ns = stall * SECOND;
    options.idle_timeout_ns = idle * SECOND;
    server_start(&server, "127.0.0.1:0", 2, &options);
}

static int
arrive(void)
{
    int64_t before = tw_server_connections(server.id);
    int fd = raw_connect(server.bound);
    EVENTUALLY(tw_server_connections(server.id) == before + 1);
    return fd;
}

/* Sends a part of the request and waits until it was read. */
static void
send_part(int fd, size_t from, size_t n)
{
    uint64_t before = counter(TWI_BYTES_IN);
    raw_send(fd, request + from, n);
    EVENTUALLY(counter(TWI_BYTES_IN) >= before + n);
}

static int
is_open(int fd)
{
    char byte;
    return recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN;
}

static void
get_answer(int fd)
{
    struct twi_std_msg msg;
    uint8_t *frame = raw_response(fd, &msg);
    CHECK(frame);
    free(frame);
    /* The write is stamped after the kernel has the bytes. */
    answers++;
    EVENTUALLY(counter(TWI_MESSAGES_OUT) == answers);
    tw_census census;
    EVENTUALLY((tw_census_take(&census), !census.requests || waiting));
}

static void
case_first_byte(void)
{
    uint64_t closed = counter(TWI_TIMEOUTS_FIRST_BYTE);
    start(FIRST, 0, 0);
    int silent = arrive(), half = arrive(), good = arrive();
    send_part(half, 0, 1);
    send_part(good, 0, request_len);
    get_answer(good);
    later(FIRST - 1);
    CHECK(is_open(silent));
    int late = arrive();
    later(2);
    CHECK(raw_ends(silent));
    CHECK_EQ(counter(TWI_TIMEOUTS_FIRST_BYTE) - closed, 1);
    later(FIRST - 3);
    CHECK(is_open(late));
    later(3);
    CHECK(raw_ends(late));
    later(10 * IDLE);
    CHECK(is_open(half));
    CHECK(is_open(good));
    CHECK_EQ(counter(TWI_TIMEOUTS_FIRST_BYTE) - closed, 2);
    close(silent), close(half), close(good), close(late);
    server_end(&server);
}

static void
fire(struct twi_socket *sock, void *unused)
{
    (void)unused;
    if (sock->kind == TWI_SERVER_SIDE)
        twi_timeouts_fired(twi_socket_id(sock), twi_now_ns());
}

/* Bytes that wait in the kernel while we are late count as received. */
static void
case_we_are_late(void)
{
    start(FIRST, STALL, 0);
    int fd = arrive();
    while (!twi_baton_take(TWI_MAIN))
        twi_loop_wake(TWI_MAIN);
    raw_send(fd, request, request_len);
    atomic_fetch_add(&ahead_ns, 2 * FIRST * SECOND);
    twi_socket_each(fire, NULL);
    twi_baton_drop(TWI_MAIN);
    later(0);
    get_answer(fd);
    close(fd);
    server_end(&server);
}

static void
case_stall(void)
{
    enum { BODY = 200 << 10, ENOUGH = STALL * TWI_STALL_BYTES };
    static char body[BODY];
    static uint8_t big[BODY + 256];
    uint64_t closed = counter(TWI_TIMEOUTS_STALL);
    size_t n = raw_request(big, sizeof big, "bed.Service", "echo", 1, body,
                           BODY);
    start(0, STALL, 0);
    int dead = arrive(), slow = arrive(), fine = arrive(), quiet = arrive();
    later(STALL / 2); /* the timers' looks and the messages' begins differ */
    send_part(dead, 0, 20);
    later(STALL - 1);
    CHECK(is_open(dead));
    size_t at = 0;
    uint64_t before = counter(TWI_BYTES_IN);
    raw_send(slow, big, 100);
    raw_send(fine, big, 100);
    at = 100;
    EVENTUALLY(counter(TWI_BYTES_IN) == before + 200);
    later(2);
    CHECK(raw_ends(dead));
    /* Of two that go on, one brings a byte less than it must. */
    before = counter(TWI_BYTES_IN);
    raw_send(slow, big + at, ENOUGH - 1);
    raw_send(fine, big + at, ENOUGH);
    at += ENOUGH;
    EVENTUALLY(counter(TWI_BYTES_IN) == before + 2 * ENOUGH - 1);
    later(STALL);
    CHECK(raw_ends(slow));
    CHECK(is_open(fine));
    before = counter(TWI_BYTES_IN);
    raw_send(fine, big + at, ENOUGH);
    at += ENOUGH;
    EVENTUALLY(counter(TWI_BYTES_IN) == before + ENOUGH);
    later(STALL + 1);
    CHECK(is_open(fine));
    raw_send(fine, big + at, n - at);
    get_answer(fine);
    /* Between messages nothing stalls; the next one is measured anew. */
    later(10 * IDLE);
    CHECK(is_open(fine));
    CHECK(is_open(quiet));
    send_part(fine, 0, 10);
    later(STALL - 1);
    CHECK(is_open(fine));
    later(2);
    CHECK(raw_ends(fine));
    CHECK_EQ(counter(TWI_TIMEOUTS_STALL) - closed, 3);
    close(dead), close(slow), close(fine), close(quiet);
    server_end(&server);
}

static void
case_idle(void)
{
    uint64_t closed = counter(TWI_TIMEOUTS_IDLE);
    uint8_t gate[256];
    start(FIRST, STALL, IDLE);
    int fd = arrive(), asking = arrive();
    size_t n = raw_request(gate, sizeof gate, "bed.Service", "gate", 1, "x", 1);
    send_part(fd, 0, request_len);
    get_answer(fd);
    raw_send(asking, gate, n);
    await_gate(&server, 1);
    waiting = 1;
    later(IDLE - 1);
    CHECK(is_open(fd));
    send_part(fd, 0, request_len); /* as good as new */
    get_answer(fd);
    later(IDLE - 1);
    CHECK(is_open(fd));
    later(2);
    CHECK(raw_ends(fd));
    /* Who waits for us is not idle, and not at once when it was answered. */
    later(5 * IDLE);
    CHECK(is_open(asking));
    open_gate(&server);
    waiting = 0;
    get_answer(asking);
    later(IDLE - 1);
    CHECK(is_open(asking));
    later(2);
    CHECK(raw_ends(asking));
    CHECK_EQ(counter(TWI_TIMEOUTS_IDLE) - closed, 2);
    close(fd), close(asking);
    server_end(&server);
}

/* All off: no timer at all.  On: one each, however much is said. */
static void
case_one_timer_each(void)
{
    tw_census census;
    start(0, 0, 0);
    int fd = arrive();
    send_part(fd, 0, 10);
    tw_census_take(&census);
    CHECK_EQ(census.timers, 0);
    later(100 * IDLE);
    CHECK(is_open(fd));
    close(fd);
    server_end(&server);
    start(FIRST, STALL, IDLE);
    int fds[20];
    for (int i = 0; i < 20; i++)
        fds[i] = arrive();
    for (int i = 0; i < 20; i++)
        for (int j = 0; j < 10; j++) {
            raw_send(fds[i], request, request_len);
            get_answer(fds[i]);
        }
    later(FIRST + 1);
    tw_census_take(&census);
    CHECK_EQ(census.timers, 20);
    for (int i = 0; i < 20; i++)
        close(fds[i]);
    server_end(&server);
}

static const struct test_case cases[] = {
    {"first_byte", case_first_byte},
    {"we_are_late", case_we_are_late},
    {"stall", case_stall},
    {"idle", case_idle},
    {"one_timer_each", case_one_timer_each},
    {0},
};

int
main(int argc, char **argv)
{
    twi_sys.clock_gettime = moved_clock;
    request_len =
        raw_request(request, sizeof request, "bed.Service", "echo", 1, "x", 1);
    return cases_main(cases, argc, argv);
}
