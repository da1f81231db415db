/* C11: clocks that jump.  The wall's clock does not matter at all; when the
 * monotonic clock jumps forwards, what is due by it ends at once and the rest
 * goes on. */
#include "cases.h"
#include "clients.h"

enum { CALLS = 20, CALLERS = 3 };

#define DAY (86400 * SECOND)
#define HOUR (3600 * SECOND)

static struct bed_server server;
static tw_id peer, inbox;

static int
later_count(void)
{
    pthread_mutex_lock(&server.lock);
    int n = server.n_later;
    pthread_mutex_unlock(&server.lock);
    return n;
}

static void
answer_later(int n)
{
    for (int i = 0; i < n; i++)
        tw_reply(take_later(&server), 0, "", 0, NULL, 0);
}

static void
submit_later(uint64_t cookie, int64_t timeout_ns)
{
    tw_extra extra = {.no_timeout_on_wire = 1};
    tw_id id;
    MUST(tw_submit(peer, client_methods[LATER], "", 0, &extra,
                   timeout_ns ? twi_now_ns() + timeout_ns : 0, inbox, cookie, 0,
                   &id) == 0);
}

/* Days forwards and back while calls are under way. */
static void
the_wall_jumps(void)
{
    static const int64_t jumps[] = {DAY, -2 * DAY, 365 * DAY, 0};
    for (size_t i = 0; i < sizeof jumps / sizeof *jumps; i++) {
        submit_later(1, 0);
        submit_later(2, 20 * MS);
        submit_later(3, HOUR);
        EVENTUALLY(later_count() == 3);
        atomic_store(&fault.wall_ahead_ns, jumps[i]);
        tw_event event = next_event(inbox, 1);
        CHECK_EQ(event.cookie, 2);
        CHECK_EQ(event.code, TW_ERPCTIMEDOUT);
        CHECK(event.received_ns >= event.deadline_ns);
        CHECK(event.deadline_ns - event.started_ns >= 19 * MS);
        CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
        answer_later(3);
        CHECK_EQ(next_event(inbox, 1).code, 0);
        CHECK_EQ(next_event(inbox, 1).code, 0);
    }
    CHECK_EQ(atomic_load(&fault.wall_asked), 0);
}

static void *
call_for_an_hour(void *code)
{
    char scratch[64];
    tw_event result;
    tw_extra extra = {.no_timeout_on_wire = 1};
    int rc = call_full(peer, LATER, "", 0, &extra, HOUR / 2, scratch,
                       sizeof scratch, &result);
    *(int *)code = rc ? rc : result.code;
    return NULL;
}

static void
the_monotonic_clock_jumps(void)
{
    pthread_t threads[CALLERS];
    int codes[CALLERS], seen[CALLS + 2] = {0};
    for (int i = 0; i < CALLS; i++)
        submit_later((uint64_t)i, HOUR / 4 + i * SECOND);
    submit_later(CALLS, 0);
    submit_later(CALLS + 1, 10 * HOUR);
    for (int i = 0; i < CALLERS; i++)
        MUST(!pthread_create(&threads[i], NULL, call_for_an_hour, &codes[i]));
    EVENTUALLY(later_count() == CALLS + 2 + CALLERS);
    jump_clock(HOUR);
    for (int i = 0; i < CALLERS; i++) {
        pthread_join(threads[i], NULL);
        CHECK_EQ(codes[i], TW_ERPCTIMEDOUT);
    }
    for (int i = 0; i < CALLS; i++) {
        tw_event event = next_event(inbox, 1);
        CHECK_EQ(event.code, TW_ERPCTIMEDOUT);
        CHECK(event.received_ns >= event.deadline_ns);
        MUST(event.cookie < CALLS);
        CHECK_EQ(seen[event.cookie]++, 0);
    }
    /* What is not due goes on, and new deadlines are as long as they say. */
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    answer_later(CALLS + 2 + CALLERS);
    CHECK_EQ(next_event(inbox, 1).code, 0);
    CHECK_EQ(next_event(inbox, 1).code, 0);
    submit_later(7, 20 * MS);
    tw_event event = next_event(inbox, 1);
    CHECK_EQ(event.code, TW_ERPCTIMEDOUT);
    CHECK(event.received_ns >= event.deadline_ns);
    answer_later(1);
}

int
main(void)
{
    plant_faults(check_seed());
    fault.may_jump = 1;
    cases_open();
    MUST(tw_inbox_open(&inbox) == 0);
    server_start(&server, "127.0.0.1:0", 2, NULL);
    peer = peer_open(server.bound);
    the_wall_jumps();
    for (int i = 0; i < 3; i++)
        the_monotonic_clock_jumps();
    tw_peer_close(peer);
    server_end(&server);
    tw_inbox_close(inbox);
    nothing_is_left(fds_at_rest);
    return cases_close();
}
