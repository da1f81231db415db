/* R2: the process's budget for buffered bytes, with a tiny one. */
#include "cases.h"

enum { BUDGET = 1 << 20 };

static int64_t
buffered(void)
{
    tw_census census;
    tw_census_take(&census);
    return census.block_bytes;
}

/* A connection whose request of n bytes stays a byte short. */
static int
half_sent(const char *address, size_t n)
{
    uint8_t *frame = malloc(n + 512);
    MUST(frame);
    memset(frame, 'x', n + 512);
    int fd = raw_connect(address);
    uint8_t *body = calloc(1, n);
    MUST(body);
    size_t size = raw_request(frame, n + 512, "bed.Service", "echo", 1, body, n);
    raw_send(fd, frame, size - 1);
    free(body);
    free(frame);
    return fd;
}

/* Requests wait at the gate, which hold more and more; from 80 % on they are
 * refused, and taken in again when there is room. */
static void
case_refuses(void)
{
    struct bed_server server;
    static char large[60 << 10], answer[512];
    tw_event result;
    tw_id inbox, id;
    server_start(&server, "127.0.0.1:0", 1, NULL);
    tw_id peer = peer_open(server.bound);
    MUST(tw_inbox_open(&inbox) == 0);
    uint64_t refusals = counter(TWI_BUDGET_REFUSALS);
    CHECK_EQ(call(peer, ECHO, "before", 6, SOON), 0);
    tw_memory_budget(BUDGET);
    int sent = 0;
    /* Each holds its bytes in the server until it is answered. */
    while (counter(TWI_BUDGET_REFUSALS) == refusals && sent < 64) {
        CHECK_EQ(tw_submit(peer, client_methods[GATE], large, sizeof large,
                           NULL, 0, inbox, 1, 0, &id),
                 0);
        sent++;
        EVENTUALLY(tw_server_in_flight(server.id) == sent ||
                   counter(TWI_BUDGET_REFUSALS) > refusals);
    }
    CHECK(sent > 4 && sent < 20);
    CHECK(buffered() < BUDGET);
    /* Small ones as well; the connection stays. */
    CHECK_EQ(call_full(peer, ECHO, "no", 2, NULL, SOON, answer, sizeof answer,
                       &result),
             0);
    CHECK_EQ(result.code, TW_ELIMIT);
    CHECK_EQ(result.phase, TW_PHASE_PEER);
    open_gate(&server);
    EVENTUALLY(tw_server_in_flight(server.id) == 0);
    for (int got = 0, more; got < sent; got++) {
        MUST(tw_inbox_wait(inbox, SOON, 1) == 0);
        MUST(tw_drain(inbox, 1, &result, 1, &more) == 1);
        CHECK(!result.code || result.code == TW_ELIMIT);
    }
    int more;
    tw_drain(inbox, 0, &result, 0, &more);
    EVENTUALLY(call(peer, ECHO, "after", 5, SOON) == 0);
    CHECK_EQ(tw_server_connections(server.id), 1);
    tw_memory_budget(0);
    tw_inbox_close(inbox);
    tw_peer_close(peer);
    server_end(&server);
}

/* Half-sent requests pile up; the largest that has not moved goes first, and no
 * more go than must. */
static void
case_closes_readers(void)
{
    struct bed_server server;
    server_start(&server, "127.0.0.1:0", 1, NULL);
    uint64_t closes = counter(TWI_BUDGET_CLOSES);
    int large = half_sent(server.bound, 500 << 10);
    EVENTUALLY(buffered() > 400 << 10);
    int small = half_sent(server.bound, 100 << 10);
    EVENTUALLY(buffered() > 500 << 10);
    int tiny = raw_connect(server.bound);
    raw_send(tiny, "PRPC", 4);
    CHECK_EQ(counter(TWI_BUDGET_CLOSES), closes);
    tw_memory_budget(500 << 10);
    CHECK(raw_ends(large));
    EVENTUALLY(counter(TWI_BUDGET_CLOSES) == closes + 1);
    EVENTUALLY(buffered() < 400 << 10);
    EVENTUALLY(tw_server_connections(server.id) == 2);
    close(large);
    close(small);
    close(tiny);
    EVENTUALLY(tw_server_connections(server.id) == 0);
    CHECK_EQ(counter(TWI_BUDGET_CLOSES), closes + 1);
    tw_memory_budget(0);
    server_end(&server);
}

/* A peer that asks for much and reads nothing. */
static void
case_closes_writers(void)
{
    struct bed_server server;
    uint8_t frame[512];
    server_start(&server, "127.0.0.1:0", 1, NULL);
    uint64_t closes = counter(TWI_BUDGET_CLOSES);
    int fd = raw_socket(server.bound, 0, NULL, 4096);
    size_t n = raw_request(frame, sizeof frame, "bed.Service", "big", 1,
                           "33554432", 8);
    raw_send(fd, frame, n);
    EVENTUALLY(tw_server_in_flight(server.id) == 0 && buffered() > 8 << 20);
    /* Between 95 and 100 %: it goes when it has not moved for a second. */
    int64_t began = twi_now_ns();
    tw_memory_budget((uint64_t)buffered() / 97 * 100);
    EVENTUALLY(counter(TWI_BUDGET_CLOSES) == closes + 1);
    CHECK(twi_now_ns() - began > SECOND / 2);
    EVENTUALLY(tw_server_connections(server.id) == 0);
    EVENTUALLY(buffered() < 1 << 20);
    tw_memory_budget(0);
    close(fd);
    server_end(&server);
}

/* What a caller holds on purpose is nobody's connection: none is closed. */
static void
case_closes_nobody_for_nothing(void)
{
    struct bed_server server;
    server_start(&server, "127.0.0.1:0", 1, NULL);
    tw_id peer = peer_open(server.bound);
    static char scratch[16];
    tw_event result;
    uint64_t closes = counter(TWI_BUDGET_CLOSES);
    CHECK_EQ(call_full(peer, BIG, "2000000", 7, NULL, SOON, scratch,
                       sizeof scratch, &result),
             0);
    CHECK(result.block != NULL);
    /* The next one's reader has no such large messages in mind. */
    tw_peer_close(peer);
    EVENTUALLY(tw_server_connections(server.id) == 0);
    peer = peer_open(server.bound);
    tw_memory_budget(1 << 20);
    /* Ticks go by. */
    for (int i = 0; i < 5; i++)
        CHECK_EQ(call(peer, ECHO, "x", 1, SOON), TW_ELIMIT);
    CHECK_EQ(counter(TWI_BUDGET_CLOSES), closes);
    tw_release(result.block);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    tw_memory_budget(0);
    tw_peer_close(peer);
    server_end(&server);
}

static const struct test_case cases[] = {
    {"refuses", case_refuses},
    {"closes_readers", case_closes_readers},
    {"closes_writers", case_closes_writers},
    {"closes_nobody_for_nothing", case_closes_nobody_for_nothing},
    {0},
};

int
main(int argc, char **argv)
{
    plant_faults(check_seed());
    return cases_main(cases, argc, argv);
}
