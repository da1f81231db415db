/* The gradient follows from Little's law: as many calls are under way as come
 * in the time that one takes.  With the best rate and the shortest time that
 * were seen, that is what the server can do without calls that only wait. */
#include "limiter.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

/* A new value's weight in a running average. */
#define WEIGHT 0.1
/* How far the limit may go beyond what the law says. */
#define EXPLORE_MOST 0.3
#define EXPLORE_LEAST 0.06
#define EXPLORE_STEP 0.02
/* Of what the law says, while the shortest time is looked for. */
#define REMEASURE 0.9
/* What rounding errors may come to. */
#define EXACT 1e-6
/* Nothing takes longer. */
#define LATENCY_MOST_NS INT64_C(3600000000000)

static double
least_of(double a, double b)
{
    return a < b ? a : b;
}

static double
most_of(double a, double b)
{
    return a > b ? a : b;
}

/* The next whole number. */
static double
up(double value)
{
    double whole = (double)(int64_t)value;
    return value - whole > EXACT ? whole + 1 : whole;
}

static void
set_limit(struct twi_limiter *limiter, double value)
{
    value = most_of(limiter->how.least, least_of(limiter->how.most, value));
    store_relaxed(&limiter->limit, (int64_t)(value + EXACT));
}

void
twi_limiter_init(struct twi_limiter *limiter, const tw_limit *how,
                 uint64_t seed)
{
    memset(limiter, 0, sizeof *limiter);
    limiter->how = *how;
    limiter->dice = seed | 1;
    limiter->explore = EXPLORE_MOST;
    limiter->forgotten_ns = (double)LATENCY_MOST_NS;
    if (how->kind == TW_LIMIT_AUTO)
        set_limit(limiter, how->first);
    else
        store_relaxed(&limiter->limit, how->most);
}

int64_t
twi_limiter_change(struct twi_limiter *limiter, uint32_t most)
{
    assert(limiter->how.kind == TW_LIMIT_NUMBER);
    /* relaxed: a number by itself. */
    return most - atomic_exchange_explicit(&limiter->limit, most,
                                           memory_order_relaxed);
}

int64_t
twi_limiter_test(struct twi_limiter *limiter, int64_t patience_ns)
{
    /* relaxed, here and below: each is a number by itself.  The count is exact
     * as it is added to before it is compared: of two that come at once to the
     * last place one finds it taken. */
    int64_t running = add_relaxed(&limiter->running, 1) + 1;
    int64_t limit = limiter->how.kind == TW_LIMIT_TIMEOUT
                        ? (int64_t)limiter->how.most
                        : load_relaxed(&limiter->limit);
    if (running > limit / 2 && !load_relaxed(&limiter->pressed))
        store_relaxed(&limiter->pressed, 1);
    int refused = running > limit;
    if (limiter->how.kind == TW_LIMIT_TIMEOUT && running > 1) {
        if (!patience_ns)
            patience_ns = limiter->how.timeout_ns;
        refused |= load_relaxed(&limiter->average_ns) >= patience_ns;
    }
    if (!refused)
        return 0;
    sub_relaxed(&limiter->running, 1);
    if (!load_relaxed(&limiter->refused))
        store_relaxed(&limiter->refused, 1);
    return running;
}

/* ---- learning: all below holds the sample */

static double
average(double before, double value, double weight)
{
    return before * (1 - weight) + value * weight;
}

/* When to look for the shortest time again, between half the interval and all
 * of it. */
static int64_t
next_remeasure(struct twi_limiter *limiter, int64_t now_ns)
{
    int64_t half = limiter->how.remeasure_ns / 2;
    limiter->dice ^= limiter->dice << 13;
    limiter->dice ^= limiter->dice >> 7;
    limiter->dice ^= limiter->dice << 17;
    return now_ns + half + (int64_t)(limiter->dice % (uint64_t)(half + 1));
}

static void
begin_window(struct twi_limiter *limiter, int64_t now_ns)
{
    limiter->began_ns = now_ns;
    limiter->good = limiter->failed = 0;
    limiter->good_ns = limiter->failed_ns = 0;
    store_relaxed(&limiter->refused, 0);
    store_relaxed(&limiter->pressed, 0);
    store_relaxed(&limiter->answered, 0);
}

/* TW_LIMIT_AUTO: a window's answers took average_ns. */
static void
follow_gradient(struct twi_limiter *limiter, double average_ns, int64_t now_ns)
{
    int refused = load_relaxed(&limiter->refused) != 0;
    int pressed = load_relaxed(&limiter->pressed) != 0;
    int first = limiter->least_ns == 0;
    /* Samples are apart from each other. */
    assert(now_ns > limiter->began_ns);
    double rate = (double)load_relaxed(&limiter->answered) /
                  (double)(now_ns - limiter->began_ns);
    /* Unless somebody was refused, it shows what was asked, not what could be
     * done. */
    if (rate > limiter->most_rate)
        limiter->most_rate = rate;
    else if (refused)
        limiter->most_rate = average(limiter->most_rate, rate, WEIGHT / 10);
    if (first)
        limiter->least_ns = average_ns;
    else if (average_ns < limiter->least_ns)
        limiter->least_ns = average(limiter->least_ns, average_ns, WEIGHT);
    double law = limiter->least_ns * limiter->most_rate;
    if (!limiter->remeasure_ns)
        limiter->remeasure_ns = next_remeasure(limiter, now_ns);
    /* Under overload: less load has made it quicker and cost no answers, so calls
     * were waiting all the time, or nobody knows yet.  So less, at once. */
    if (first && refused && rate > limiter->most_rate * REMEASURE &&
        average_ns * (1 + EXPLORE_LEAST / 2) < limiter->forgotten_ns)
        limiter->remeasure_ns = now_ns;
    if (now_ns >= limiter->remeasure_ns) {
        limiter->remeasure_ns = next_remeasure(limiter, now_ns);
        limiter->settled_ns = now_ns + (int64_t)(2 * average_ns);
        if (pressed)
            set_limit(limiter, law * REMEASURE);
        return;
    }
    int quick = average_ns <= limiter->least_ns * (1 + EXPLORE_LEAST);
    if (quick || rate <= limiter->most_rate / (1 + EXPLORE_LEAST))
        limiter->explore =
            least_of(limiter->explore + EXPLORE_STEP, EXPLORE_MOST);
    else
        limiter->explore =
            most_of(limiter->explore - EXPLORE_STEP, EXPLORE_LEAST);
    double next = law * (1 + limiter->explore);
    /* As long as nobody waits the limit does not fall, and rises if it was in
     * the way: the law holds for an even flow, calls come in clusters. */
    if (quick && !first) {
        double now = (double)load_relaxed(&limiter->limit);
        next = most_of(next, refused ? up(now * (1 + limiter->explore)) : now);
    }
    /* An idle server shows how fast it is, not how much it could do. */
    if (pressed)
        set_limit(limiter, next);
}

/* TW_LIMIT_TIMEOUT. */
static void
follow_average(struct twi_limiter *limiter, int64_t average_ns)
{
    if (average_ns > LATENCY_MOST_NS)
        average_ns = LATENCY_MOST_NS;
    store_relaxed(&limiter->average_ns, average_ns);
    store_relaxed(&limiter->limit, average_ns < limiter->how.timeout_ns
                                       ? (int64_t)limiter->how.most
                                       : 1);
}

static void
end_window(struct twi_limiter *limiter, int64_t now_ns)
{
    /* What failed took its time for nothing: others pay for it. */
    int64_t sum_ns = limiter->good_ns + limiter->failed_ns;
    int is_auto = limiter->how.kind == TW_LIMIT_AUTO;
    if (!limiter->good && is_auto)
        set_limit(limiter, (double)(load_relaxed(&limiter->limit) / 2));
    else if (!limiter->good)
        follow_average(limiter, 2 * load_relaxed(&limiter->average_ns));
    else if (is_auto)
        follow_gradient(limiter, (double)sum_ns / limiter->good, now_ns);
    else
        follow_average(limiter, sum_ns / limiter->good);
    begin_window(limiter, now_ns);
}

static void
add_sample(struct twi_limiter *limiter, int failed, int64_t latency_ns,
           int64_t now_ns)
{
    if (now_ns < limiter->settled_ns)
        return;
    if (limiter->settled_ns) {
        limiter->settled_ns = 0;
        limiter->forgotten_ns = limiter->least_ns;
        limiter->least_ns = 0;
        begin_window(limiter, now_ns);
    }
    uint32_t n = limiter->good + limiter->failed;
    int over = n && now_ns - limiter->began_ns >= limiter->how.window_ns;
    int refused = load_relaxed(&limiter->refused) != 0;
    if (over && !refused && n + 1 < TWI_LIMIT_SAMPLES) {
        /* Too few to say anything. */
        begin_window(limiter, now_ns);
    } else if (!n) {
        limiter->began_ns = now_ns;
        store_relaxed(&limiter->answered, 0);
    }
    if (failed) {
        limiter->failed++;
        limiter->failed_ns += latency_ns;
    } else {
        limiter->good++;
        limiter->good_ns += latency_ns;
    }
    n = limiter->good + limiter->failed;
    uint32_t enough = refused ? TWI_LIMIT_SAMPLES_FEW : TWI_LIMIT_SAMPLES;
    if (n >= TWI_LIMIT_SAMPLES_MOST || (over && n >= enough))
        end_window(limiter, now_ns);
}

/* 1: the server failed, 0: it did its work, whatever it said, -1: the answer
 * says nothing about work. */
static int
is_failure(int code)
{
    switch (code) {
    case TW_ELIMIT:
    case TW_ELOGOFF:
    case TW_EEOF:
    case TW_ECLOSE:
        return -1;
    case TW_ERPCTIMEDOUT:
    case TW_EOVERCROWDED:
    case TW_EINTERNAL:
    case TW_ERESPONSE:
    case EHOSTDOWN: /* Unavailable */
        return 1;
    default:
        return 0;
    }
}

int64_t
twi_limiter_sample(struct twi_limiter *limiter, int code, int64_t latency_ns,
                   int64_t now_ns)
{
    int failed = is_failure(code);
    if (failed < 0)
        return 0;
    if (!failed)
        add_relaxed(&limiter->answered, 1);
    int64_t due_ns = load_relaxed(&limiter->due_ns);
    /* acquire: partner is the release below, by who took the last one. */
    if (now_ns < due_ns ||
        !atomic_compare_exchange_strong_explicit(
            &limiter->due_ns, &due_ns, INT64_MAX, memory_order_acquire,
            memory_order_relaxed))
        return 0;
    int64_t before = load_relaxed(&limiter->limit);
    latency_ns = latency_ns < 1                 ? 1
                 : latency_ns > LATENCY_MOST_NS ? LATENCY_MOST_NS
                                                : latency_ns;
    add_sample(limiter, failed, latency_ns, now_ns);
    int64_t change = load_relaxed(&limiter->limit) - before;
    /* release: partner is the acquire above, by who takes the next one. */
    store_release(&limiter->due_ns, now_ns + TWI_LIMIT_SAMPLE_NS);
    return change;
}
