/* A latency histogram: exact below 2^11 us, within 1/1024 above.
 *
 * One static instance for a program of one thread; include it once.
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

static uint64_t hist[HIST_BUCKETS], max_us;
static long samples;

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
percentile(double share)
{
    uint64_t seen = 0;
    for (size_t i = 0; samples && i < HIST_BUCKETS; i++)
        if ((seen += hist[i]) && (double)seen >= share * (double)samples)
            return (long)hist_floor(i);
    return -1;
}

static void
add_sample(uint64_t ns)
{
    uint64_t us = ns / 1000;
    hist[hist_index(us)]++;
    samples++;
    if (us > max_us)
        max_us = us;
}

#endif
