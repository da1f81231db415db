/* The limiters as functions of what they are told, with a time of the test's
 * own: what the gradient follows from, and a server that is simulated, slow
 * and fast, idle and overloaded. */
#include "limiter.h"

#include <errno.h>

#include "check.h"

#define MS INT64_C(1000000)
#define SECOND INT64_C(1000000000)

static struct twi_limiter limiter;
static int64_t now_ns, reported; /* the limit as its changes add up */

static void
begin(tw_limit how)
{
    twi_limiter_init(&limiter, &how, 1);
    reported = twi_limiter_limit(&limiter);
    now_ns = 5 * SECOND;
}

static tw_limit
automatic(uint32_t least, uint32_t first, uint32_t most)
{
    return (tw_limit){.kind = TW_LIMIT_AUTO, .least = least, .first = first,
                      .most = most, .window_ns = SECOND,
                      .remeasure_ns = 50 * SECOND};
}

/* n answers, one every step_ns. */
static void
answer(int n, int code, int64_t latency_ns, int64_t step_ns)
{
    for (int i = 0; i < n; i++) {
        reported += twi_limiter_learn(&limiter, code, latency_ns, now_ns);
        CHECK_EQ(reported, twi_limiter_limit(&limiter));
        now_ns += step_ns;
    }
}

/* More than half of the limit is in use, nobody is refused. */
static void
press(void)
{
    int n = 0;
    while (n <= twi_limiter_limit(&limiter) / 2) {
        CHECK_EQ(twi_limiter_enter(&limiter, 0), 0);
        n++;
    }
    while (n--)
        twi_limiter_leave(&limiter);
}

/* Somebody finds the limit reached. */
static void
refuse(void)
{
    int64_t limit = twi_limiter_limit(&limiter), n = 0;
    for (; n < limit; n++)
        CHECK_EQ(twi_limiter_enter(&limiter, 0), 0);
    CHECK_EQ(twi_limiter_enter(&limiter, 0), limit + 1);
    while (n--)
        twi_limiter_leave(&limiter);
}

static void
a_number(void)
{
    begin((tw_limit){.kind = TW_LIMIT_NUMBER, .most = 3});
    for (int i = 0; i < 3; i++)
        CHECK_EQ(twi_limiter_enter(&limiter, 0), 0);
    /* Refused ones count nowhere. */
    for (int i = 0; i < 10; i++)
        CHECK_EQ(twi_limiter_enter(&limiter, 0), 4);
    twi_limiter_leave(&limiter);
    CHECK_EQ(twi_limiter_enter(&limiter, 0), 0);
    CHECK_EQ(twi_limiter_enter(&limiter, 0), 4);
    answer(1000, TW_EINTERNAL, SECOND, MS);
    CHECK_EQ(twi_limiter_limit(&limiter), 3);
}

static void
no_limit(void)
{
    begin((tw_limit){.kind = TW_LIMIT_NONE});
    for (int i = 0; i < 1000; i++)
        CHECK_EQ(twi_limiter_enter(&limiter, 0), 0);
    CHECK_EQ(twi_limiter_limit(&limiter), 0);
    for (int i = 0; i < 1000; i++)
        twi_limiter_leave(&limiter);
    CHECK_EQ(load_relaxed(&limiter.running), 0);
}

/* brpc's numbers: 200 answers of 10 ms, 1000 in a second, 30 % on top. */
static void
first_window(void)
{
    begin(automatic(1, 40, 10000));
    CHECK_EQ(twi_limiter_limit(&limiter), 40);
    answer(1, 0, 10 * MS, MS);
    press();
    answer(198, 0, 10 * MS, MS);
    CHECK_EQ(twi_limiter_limit(&limiter), 40);
    answer(1, 0, 10 * MS, MS);
    CHECK_EQ(twi_limiter_limit(&limiter), 13);
    /* The floor is the option's. */
    begin(automatic(20, 40, 10000));
    answer(1, 0, 10 * MS, MS);
    press();
    answer(199, 0, 10 * MS, MS);
    CHECK_EQ(twi_limiter_limit(&limiter), 20);
    /* So is the ceiling. */
    begin(automatic(1, 10, 12));
    answer(1, 0, 10 * MS, MS);
    press();
    answer(199, 0, 10 * MS, MS);
    CHECK_EQ(twi_limiter_limit(&limiter), 12);
    /* And what it begins with lies between them. */
    begin(automatic(5, 1, 100));
    CHECK_EQ(twi_limiter_limit(&limiter), 5);
}

/* One answer in 100 us is looked at, all are counted: 10 000 in a second take
 * 10 ms each. */
static void
sampling(void)
{
    begin(automatic(1, 40, 10000));
    answer(1, 0, 10 * MS, 10000);
    press();
    answer(10 * 199, 0, 10 * MS, 10000); /* 200 samples */
    CHECK_EQ(twi_limiter_limit(&limiter), 1300);
}

/* Windows by time: too few samples say nothing. */
static void
windows(void)
{
    begin(automatic(1, 40, 10000));
    for (int i = 0; i < 30; i++) {
        answer(20, 0, 100 * MS, 50 * MS);
        press();
    }
    CHECK_EQ(twi_limiter_limit(&limiter), 40);
    /* 101 of them in a second say that 10 wait at a time. */
    now_ns += 2 * SECOND;
    answer(1, 0, 100 * MS, 10 * MS);
    press();
    answer(100, 0, 100 * MS, 10 * MS);
    CHECK_EQ(twi_limiter_limit(&limiter), 13);
}

/* Where the limit itself keeps answers away a few are enough: it rises again,
 * from 1, too. */
static void
out_of_the_hole(void)
{
    begin(automatic(1, 1, 10000));
    for (int i = 0; i < 100 && twi_limiter_limit(&limiter) < 20; i++) {
        int64_t limit = twi_limiter_limit(&limiter);
        answer(1, 0, 50 * MS, 50 * MS / limit);
        refuse();
        answer((int)(21 * limit), 0, 50 * MS, 50 * MS / limit);
    }
    CHECK(twi_limiter_limit(&limiter) >= 20);
    CHECK(now_ns < 5 * SECOND + 20 * SECOND);
}

/* A server on which nobody waits keeps its limit, however little is asked. */
static void
idle(void)
{
    begin(automatic(1, 40, 10000));
    answer(50000, 0, 10 * MS, 5 * MS);
    CHECK_EQ(twi_limiter_limit(&limiter), 40);
}

static void
failures(void)
{
    static const int failed[] = {TW_ERPCTIMEDOUT, TW_EOVERCROWDED,
                                 TW_EINTERNAL, TW_ERESPONSE, EHOSTDOWN},
                     nothing[] = {TW_ELIMIT, TW_ELOGOFF, TW_EEOF, TW_ECLOSE};
    /* All of a window: half of the limit, down to the least. */
    for (int i = 0; i < 5; i++) {
        begin(automatic(3, 40, 10000));
        answer(200, failed[i], MS, MS);
        CHECK_EQ(twi_limiter_limit(&limiter), 20);
        answer(2000, failed[i], MS, MS);
        CHECK_EQ(twi_limiter_limit(&limiter), 3);
    }
    for (int i = 0; i < 4; i++) {
        begin(automatic(3, 40, 10000));
        answer(2000, nothing[i], MS, MS);
        CHECK_EQ(twi_limiter_limit(&limiter), 40);
    }
    /* What a handler has to say is an answer. */
    begin(automatic(1, 40, 10000));
    answer(1, ENXIO, 10 * MS, MS);
    press();
    answer(199, ENXIO, 10 * MS, MS);
    CHECK_EQ(twi_limiter_limit(&limiter), 13);
    /* Half of them fail: the good ones, half as many, pay for their time. */
    begin(automatic(1, 40, 10000));
    answer(1, 0, 10 * MS, MS);
    press();
    for (int i = 0; i < 100; i++) {
        answer(1, TW_EINTERNAL, 10 * MS, MS);
        answer(1, 0, 10 * MS, MS);
    }
    CHECK_EQ(twi_limiter_limit(&limiter), 12); /* 99 in 199 ms */
}

/* ---- a server of so many workers */

struct server {
    int workers;
    int64_t work_ns;
    int64_t busy_until[64];
};

enum { CALLS = 1 << 16 };
static struct {
    int64_t at_ns, latency_ns;
} coming[CALLS]; /* answers, in order of time as work is even */

struct outcome {
    long good, refused;
    int64_t longest_ns;
};

/* Calls at an even rate for a time, each of which takes the next free worker
 * if the limiter lets it in. */
static struct outcome
run(struct server *server, double rate, int64_t time_ns)
{
    struct outcome outcome = {0};
    uint32_t first = 0, end = 0;
    int64_t began = now_ns;
    for (long i = 0; now_ns < began + time_ns; i++) {
        now_ns = began + (int64_t)((double)i / rate * 1e9);
        for (; first != end && coming[first % CALLS].at_ns <= now_ns; first++) {
            twi_limiter_leave(&limiter);
            reported += twi_limiter_learn(&limiter, 0,
                                          coming[first % CALLS].latency_ns,
                                          coming[first % CALLS].at_ns);
            outcome.good++;
        }
        if (twi_limiter_enter(&limiter, 0)) {
            outcome.refused++;
            continue;
        }
        int next = 0;
        for (int w = 1; w < server->workers; w++)
            if (server->busy_until[w] < server->busy_until[next])
                next = w;
        int64_t start = server->busy_until[next];
        start = start > now_ns ? start : now_ns;
        server->busy_until[next] = start + server->work_ns;
        MUST(end - first < CALLS);
        coming[end % CALLS].at_ns = start + server->work_ns;
        coming[end % CALLS].latency_ns = start + server->work_ns - now_ns;
        if (coming[end % CALLS].latency_ns > outcome.longest_ns)
            outcome.longest_ns = coming[end % CALLS].latency_ns;
        end++;
    }
    for (; first != end; first++)
        twi_limiter_leave(&limiter);
    CHECK_EQ(load_relaxed(&limiter.running), 0);
    CHECK_EQ(reported, twi_limiter_limit(&limiter));
    return outcome;
}

/* Five times what it can do: it does what it can, and after some seconds those
 * who are served hardly wait. */
static void
overload(int workers, int64_t work_ns)
{
    struct server server = {.workers = workers, .work_ns = work_ns};
    double capacity = workers * 1e9 / (double)work_ns;
    begin(automatic(1, 40, 10000));
    struct outcome outcome = run(&server, 5 * capacity, 20 * SECOND);
    CHECK(outcome.good >= 0.9 * capacity * 20);
    for (int i = 0; i < 5; i++) {
        outcome = run(&server, 5 * capacity, 60 * SECOND);
        CHECK(outcome.good >= 0.9 * capacity * 60);
        CHECK(outcome.longest_ns <= 4 * work_ns);
        printf("%d workers, %lld us: limit %lld, longest answer %.1f times the"
               " work\n",
               workers, (long long)work_ns / 1000,
               (long long)twi_limiter_limit(&limiter),
               (double)outcome.longest_ns / (double)work_ns);
    }
}

/* Half of what it can do: nobody is refused, also after an overload. */
static void
half_load(void)
{
    struct server server = {.workers = 8, .work_ns = 10 * MS};
    begin(automatic(1, 40, 10000));
    CHECK_EQ(run(&server, 400, 120 * SECOND).refused, 0);
    run(&server, 4000, 120 * SECOND);
    CHECK_EQ(run(&server, 400, 120 * SECOND).refused, 0);
}

/* It becomes twice as slow: after the shortest time was measured again it
 * serves what it can. */
static void
slower(void)
{
    struct server server = {.workers = 8, .work_ns = 10 * MS};
    begin(automatic(1, 40, 10000));
    run(&server, 4000, 60 * SECOND);
    server.work_ns *= 2;
    run(&server, 4000, 120 * SECOND);
    struct outcome outcome = run(&server, 4000, 60 * SECOND);
    CHECK(outcome.good >= 0.9 * 400 * 60);
}

/* ---- TW_LIMIT_TIMEOUT */

static void
by_timeout(void)
{
    begin((tw_limit){.kind = TW_LIMIT_TIMEOUT, .most = 100,
                     .window_ns = SECOND, .timeout_ns = 500 * MS});
    CHECK_EQ(twi_limiter_limit(&limiter), 100);
    for (int i = 0; i < 100; i++)
        CHECK_EQ(twi_limiter_enter(&limiter, 0), 0);
    CHECK_EQ(twi_limiter_enter(&limiter, 0), 101);
    for (int i = 0; i < 100; i++)
        twi_limiter_leave(&limiter);
    /* 300 ms on average: in time unless its caller waits for less. */
    answer(200, 0, 300 * MS, MS);
    CHECK_EQ(twi_limiter_enter(&limiter, 0), 0);
    CHECK_EQ(twi_limiter_enter(&limiter, 0), 0);
    CHECK_EQ(twi_limiter_enter(&limiter, 300 * MS), 3);
    CHECK_EQ(twi_limiter_enter(&limiter, 301 * MS), 0);
    /* All failed: twice as long, which is too late for the two that are
     * there; one at a time may always try. */
    answer(200, TW_EINTERNAL, MS, MS);
    CHECK_EQ(twi_limiter_limit(&limiter), 1);
    CHECK_EQ(twi_limiter_enter(&limiter, 0), 4);
    CHECK_EQ(twi_limiter_enter(&limiter, SECOND), 0);
    for (int i = 0; i < 4; i++)
        twi_limiter_leave(&limiter);
    CHECK_EQ(twi_limiter_enter(&limiter, 0), 0);
    CHECK_EQ(twi_limiter_enter(&limiter, 0), 2);
    /* These few are enough to find that it is quick again. */
    now_ns += SECOND;
    answer(11, 0, 100 * MS, 100 * MS);
    CHECK_EQ(twi_limiter_limit(&limiter), 100);
    CHECK_EQ(twi_limiter_enter(&limiter, 0), 0);
    twi_limiter_leave(&limiter);
    twi_limiter_leave(&limiter);
    /* Failing for ever it stays a number. */
    answer(200 * 100, TW_EINTERNAL, INT64_MAX, MS);
    CHECK_EQ(twi_limiter_enter(&limiter, 3600 * SECOND), 0);
    CHECK_EQ(twi_limiter_enter(&limiter, 3600 * SECOND), 2);
}

int
main(void)
{
    a_number();
    no_limit();
    first_window();
    sampling();
    windows();
    out_of_the_hole();
    idle();
    failures();
    overload(8, 10 * MS);
    overload(1, MS);
    overload(64, 100 * MS);
    half_load();
    slower();
    by_timeout();
    return check_done();
}
