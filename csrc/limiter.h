/* How many calls may be under way at a time: a number, or what the answers
 * teach.  All that happens in here follows from what callers say; there is no
 * clock and no chance in it.
 *
 * Callers of one limiter may come from any threads; nobody waits.  Counting is
 * exact: a call that was let in is counted until twi_limiter_leave.  Learning
 * takes a sample of the answers: who finds none due, or somebody else at it,
 * leaves without. */
#ifndef TWI_LIMITER_H
#define TWI_LIMITER_H

#include "atomics.h"
#include "core.h"

enum {
    /* A window of samples ends with so many of them, */
    TWI_LIMIT_SAMPLES_MOST = 200,
    /* or with its time if there are so many, */
    TWI_LIMIT_SAMPLES = 100,
    /* or so few, if calls were refused meanwhile: else a low limit that keeps
     * its own windows empty would stay. */
    TWI_LIMIT_SAMPLES_FEW = 10
};

/* Between two samples. */
#define TWI_LIMIT_SAMPLE_NS INT64_C(100000)

struct twi_limiter {
    tw_limit how;
    _Atomic int64_t running; /* let in and not yet left */
    _Atomic int64_t limit;   /* TW_LIMIT_TIMEOUT: 1 while nobody would wait */
    _Atomic int64_t average_ns;
    /* Since the window began: whether somebody was refused, whether more than
     * half of the limit was in use, and answers without an error. */
    _Atomic uint32_t refused, pressed;
    _Atomic uint64_t answered;
    _Atomic int64_t due_ns; /* the next sample; INT64_MAX: one is being taken */
    /* What follows belongs to who takes a sample. */
    int64_t began_ns;           /* the window */
    int64_t good_ns, failed_ns; /* sums of its samples' times */
    uint32_t good, failed;
    uint64_t dice;
    double least_ns;   /* the time of a call that waits for nobody; 0: unknown */
    double forgotten_ns; /* what it was before it was looked for again */
    double most_rate;  /* answers in a nanosecond, at best */
    double explore;    /* how far beyond these two the limit goes */
    int64_t remeasure_ns; /* when least_ns is looked for again */
    int64_t settled_ns;   /* until then answers come from before; 0: no */
};

/* seed: spreads the times of servers that were started together. */
void twi_limiter_init(struct twi_limiter *limiter, const tw_limit *how,
                      uint64_t seed);

int64_t twi_limiter_test(struct twi_limiter *limiter, int64_t patience_ns);
int64_t twi_limiter_sample(struct twi_limiter *limiter, int code,
                           int64_t latency_ns, int64_t now_ns);

/* One call more: 0, or how many there would be, which is one too many; then it
 * is not counted.  patience_ns: how long its caller waits, 0: unknown. */
static inline int64_t
twi_limiter_enter(struct twi_limiter *limiter, int64_t patience_ns)
{
    return limiter->how.kind ? twi_limiter_test(limiter, patience_ns) : 0;
}

/* Another number, of TW_LIMIT_NUMBER; by how much it changed.  Any thread: calls
 * that are under way stay. */
int64_t twi_limiter_change(struct twi_limiter *limiter, uint32_t most);

/* A call that was let in is over.  Before its answer can be seen: who gets it
 * may ask again at once. */
static inline void
twi_limiter_leave(struct twi_limiter *limiter)
{
    /* relaxed: a number by itself, which nothing is read on the strength of. */
    if (limiter->how.kind)
        sub_relaxed(&limiter->running, 1);
}

/* What an answer teaches.  latency_ns: since its request was there.  By how
 * much the limit changed. */
static inline int64_t
twi_limiter_learn(struct twi_limiter *limiter, int code, int64_t latency_ns,
                  int64_t now_ns)
{
    return limiter->how.kind > TW_LIMIT_NUMBER
               ? twi_limiter_sample(limiter, code, latency_ns, now_ns)
               : 0;
}

static inline int64_t
twi_limiter_limit(struct twi_limiter *limiter)
{
    return load_relaxed(&limiter->limit);
}

#endif
