/* A latency histogram: exact below 2^11 us, within 1/1024 above.
 *
 * For a program of one thread.
 */
#ifndef BENCH_LATENCY_H
#define BENCH_LATENCY_H

#include <stddef.h>
#include <stdint.h>

enum {
    HIST_BITS = 11,
    HIST_HALF = 1 << (HIST_BITS - 1),
    HIST_MAX_BITS = 36, /* 19 hours: longer than any run */
    HIST_BUCKETS = (1 << HIST_BITS) + (HIST_MAX_BITS - HIST_BITS) * HIST_HALF,
};

struct latency {
    uint64_t hist[HIST_BUCKETS], max_us;
    long samples;
};

static size_t
hist_index(uint64_t us)
{
    if (us < 1u << HIST_BITS)
        return (size_t)us;
    if (us >> HIST_MAX_BITS)
        return HIST_BUCKETS - 1;
    int top = 63 - __builtin_clzll(us), shift = top - (HIST_BITS - 1);
    return (1u << HIST_BITS) + (size_t)(top - HIST_BITS) * HIST_HALF +
           (size_t)((us >> shift) - HIST_HALF);
}

/* the smallest value that is counted in bucket i */
static uint64_t
hist_floor(size_t i)
{
    if (i < 1u << HIST_BITS)
        return i;
    i -= 1u << HIST_BITS;
    return (uint64_t)(HIST_HALF + i % HIST_HALF) << (i / HIST_HALF + 1);
}

/* nearest rank; -1 without samples */
static long
percentile(const struct latency *l, double share)
{
    uint64_t seen = 0;
    for (size_t i = 0; l->samples && i < HIST_BUCKETS; i++)
        if ((seen += l->hist[i]) && (double)seen >= share * (double)l->samples)
            return (long)hist_floor(i);
    return -1;
}

static void
add_sample(struct latency *l, uint64_t ns)
{
    uint64_t us = ns / 1000;
    l->hist[hist_index(us)]++;
    l->samples++;
    if (us > l->max_us)
        l->max_us = us;
}

/* -1 without samples */
static long
longest(const struct latency *l)
{
    return l->samples ? (long)l->max_us : -1;
}

#endif
