/* A limiter under TSan: threads that enter, leave and learn.  Never are more
 * in than the limit says, none is lost, and the changes that were reported add
 * up to the limit. */
#include "limiter.h"

#include <pthread.h>
#include <sched.h>

#include "check.h"

enum { THREADS = 4, CALLS = 200000, LIMIT = 3 };

static struct twi_limiter limiter;
static _Atomic int64_t inside, reported;
static _Atomic int64_t clock_ns = 1;
static _Atomic long entered;

static void *
call(void *arg)
{
    unsigned long long dice = *(unsigned long long *)arg;
    for (int i = 0; i < CALLS; i++) {
        if (twi_limiter_enter(&limiter, 0))
            continue;
        int64_t n = add_relaxed(&inside, 1) + 1;
        if (limiter.how.kind == TW_LIMIT_NUMBER)
            CHECK(n <= LIMIT);
        if (check_random(&dice) % 64 == 0)
            sched_yield();
        int64_t now = add_relaxed(&clock_ns, TWI_LIMIT_SAMPLE_NS / 2);
        int64_t change = twi_limiter_learn(
            &limiter, check_random(&dice) % 16 ? 0 : TW_EINTERNAL,
            (int64_t)(check_random(&dice) % 1000000), now);
        add_relaxed(&reported, change);
        sub_relaxed(&inside, 1);
        twi_limiter_leave(&limiter);
        add_relaxed(&entered, 1);
    }
    return NULL;
}

static void
race(tw_limit how, unsigned long long *seed)
{
    pthread_t threads[THREADS];
    unsigned long long seeds[THREADS];
    twi_limiter_init(&limiter, &how, *seed);
    store_relaxed(&reported, twi_limiter_limit(&limiter));
    store_relaxed(&entered, 0);
    for (int i = 0; i < THREADS; i++) {
        seeds[i] = check_random(seed) | 1;
        MUST(!pthread_create(&threads[i], NULL, call, &seeds[i]));
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    CHECK_EQ(load_relaxed(&limiter.running), 0);
    CHECK_EQ(load_relaxed(&reported), twi_limiter_limit(&limiter));
    CHECK(load_relaxed(&entered) > 0);
}

int
main(void)
{
    unsigned long long seed = check_seed();
    tw_limit how = {.kind = TW_LIMIT_NUMBER, .least = 1, .first = LIMIT,
                    .most = LIMIT, .window_ns = 20000000,
                    .remeasure_ns = 200000000, .timeout_ns = 500000};
    race(how, &seed);
    how.most = 100;
    how.kind = TW_LIMIT_AUTO;
    race(how, &seed);
    how.kind = TW_LIMIT_TIMEOUT;
    race(how, &seed);
    return check_done();
}
