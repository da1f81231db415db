/* The C tests' few words.  A test program calls CHECK on what must hold and
 * ends with return check_done(); exit status 0, 1, or 77 for skipped. */
#ifndef CHECK_H
#define CHECK_H

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* Atomic: threads check too.  Counted relaxed: checking must not order what
 * TSan is to judge. */
static _Atomic int check_failures, check_count;

static inline void
check_counted(void)
{
    atomic_fetch_add_explicit(&check_count, 1, memory_order_relaxed);
}

#define CHECK(cond)                                                            \
    do {                                                                       \
        check_counted();                                                       \
        if (!(cond)) {                                                         \
            check_failures++;                                                  \
            fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__,   \
                    #cond);                                                    \
        }                                                                      \
    } while (0)

#define CHECK_EQ(a, b)                                                         \
    do {                                                                       \
        long long check_a = (long long)(a), check_b = (long long)(b);          \
        check_counted();                                                       \
        if (check_a != check_b) {                                              \
            check_failures++;                                                  \
            fprintf(stderr, "%s:%d: %s is %lld, not %s (%lld)\n", __FILE__,    \
                    __LINE__, #a, check_a, #b, check_b);                       \
        }                                                                      \
    } while (0)

/* A check whose failure makes all that follows pointless. */
#define MUST(cond)                                                             \
    do {                                                                       \
        if (!(cond)) {                                                         \
            fprintf(stderr, "%s:%d: %s does not hold: giving up\n", __FILE__,  \
                    __LINE__, #cond);                                          \
            abort();                                                           \
        }                                                                      \
    } while (0)

#define SKIP(why)                                                              \
    do {                                                                       \
        fprintf(stderr, "skipped: %s\n", why);                                 \
        exit(77);                                                              \
    } while (0)

/* A seed, printed; TW_SEED in the environment repeats a run. */
static inline unsigned long long
check_seed(void)
{
    const char *given = getenv("TW_SEED");
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    unsigned long long seed =
        given ? strtoull(given, NULL, 10)
              : (unsigned long long)now.tv_nsec ^ (unsigned long long)now.tv_sec;
    fprintf(stderr, "TW_SEED=%llu\n", seed);
    return seed | 1;
}

static inline unsigned long long
check_random(unsigned long long *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static inline int
check_done(void)
{
    fprintf(stderr, "%d checks, %d failed\n", check_count, check_failures);
    return check_failures ? 1 : 0;
}

#endif
