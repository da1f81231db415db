/* Every counter of the core, in one arena of shared memory.
 *
 * The arena is mapped MAP_SHARED before any fork: a directory of rows (name,
 * labels, kind; append-only) and one lane of cells for each process.  A value
 * is the sum of its cell over all lanes, so totals never fall and any process
 * can answer for all.  Increments are relaxed: a counter orders nothing, it
 * only has to lose nothing. */
#ifndef TWI_COUNTERS_H
#define TWI_COUNTERS_H

#include <stdint.h>

#include "atomics.h"
#include "core.h"

enum {
    TWI_ROWS_MAX = 4096,
    TWI_CELLS_MAX = 1 << 18, /* 2 MiB a lane */
    TWI_LANES_MAX = 64,
    TWI_ERROR_CODES = 15 /* codes a method counts apart; others: "other" */
};

/* The core's own rows, in the order of counters.c's table. */
enum twi_counter {
    TWI_KEEPWRITE,
    TWI_WAITEPOLLOUT,
    TWI_EVENTTHREAD,
    TWI_SOCKETS,
    TWI_CONNECTIONS_IN,
    TWI_CONNECTIONS_OUT,
    TWI_ACCEPTED,
    TWI_CONNECTED,
    TWI_LEFT,
    TWI_HEALTHCHECKS,
    TWI_BYTES_IN,
    TWI_BYTES_OUT,
    TWI_MESSAGES_IN,
    TWI_MESSAGES_OUT,
    TWI_WRITE_REQUESTS,
    TWI_WRITEV_CALLS,
    TWI_READ_CALLS,
    TWI_UNWRITTEN_BYTES,
    TWI_OVERCROWDED,
    TWI_READ_PAUSES,
    TWI_ACCEPT_PAUSES,
    TWI_CONNECTIONS_REFUSED,
    TWI_TIMEOUTS_FIRST_BYTE,
    TWI_TIMEOUTS_STALL,
    TWI_TIMEOUTS_IDLE,
    TWI_ERRORS_CONNECT,
    TWI_ERRORS_READ,
    TWI_ERRORS_WRITE,
    TWI_ERRORS_PROTOCOL,
    TWI_STALE_EVENTS,
    TWI_STALE_RESPONSES,
    TWI_POLLS,
    TWI_DISPATCHER_POLLS,
    TWI_WAKEUPS,
    TWI_CORKED,
    TWI_EXPIRED,
    TWI_MAX_CONCURRENCY,
    TWI_LIMIT_REFUSALS,
    TWI_REFUSED,
    TWI_BLOCKS,
    TWI_BLOCK_BYTES,
    TWI_BUDGET_BYTES,
    TWI_BUDGET_REFUSALS,
    TWI_BUDGET_CLOSES,
    TWI_SERVERS,
    TWI_PEERS,
    TWI_CALLS,
    TWI_REQUESTS,
    TWI_INBOXES,
    TWI_TIMERS,
    TWI_WRITE_NODES,
    TWI_LOG_ENTRIES,
    TWI_AUTHENTICATIONS,
    TWI_AUTH_FAILURES,
    TWI_DOUBLE_COMPLETIONS,
    TWI_INTERNAL_ERRORS,
    TWI_LOG_DROPPED,
    TWI_ROWS_DROPPED,
    TWI_COUNTERS
};

extern _Atomic uint64_t *twi_lane;

static inline void
twi_count(enum twi_counter counter, int64_t n)
{
    add_relaxed(&twi_lane[counter], (uint64_t)n);
}

/* Maps the arena (once a process tree) and takes a lane; 0 or -errno. */
int twi_counters_open(void);
/* In a forked child: another lane of the same arena. */
void twi_counters_forked(void);
/* Called before cells are copied out: sampled gauges. */
extern void (*twi_counters_sample)(void);
/* A cell's value over all lanes. */
uint64_t twi_cell_value(uint32_t cell);

/* The histogram of a poll round's work; its cell. */
extern uint32_t twi_round_cell;
/* Attempts of calls that failed, by TW_PHASE_*. */
extern uint32_t twi_failed_cell[TW_PHASE_PEER + 1];

/* What one method counts.  Cells; errors by code are rows made when first
 * needed. */
struct twi_method_stats {
    uint32_t calls, in_flight;
    uint32_t queue, handler, core; /* histograms; a client has only core */
    uint32_t retries, backups;     /* a client's, beside its calls */
    /* Of methods with such limits (twi_method_limits). */
    uint32_t max_concurrency, over_concurrency, over_age;
    const char *service, *method;  /* borrowed as long as the stats live */
    int client;
    _Atomic uint64_t errors[TWI_ERROR_CODES + 1]; /* code (32) | cell (32) */
};

void twi_method_stats_init(struct twi_method_stats *stats, const char *service,
                           const char *method, int client);
/* The rows of a method whose concurrency or requests' age is limited. */
void twi_method_limits(struct twi_method_stats *stats, int concurrency,
                       int age);
void twi_method_error(struct twi_method_stats *stats, int code);

/* The bucket of a time.  Bounds grow by 1/8 of a power of two: a bucket's
 * middle is within 1/16 of every time in it. */
uint32_t twi_histogram_bucket(uint64_t ns);

static inline void
twi_histogram_add(uint32_t cell, int64_t ns)
{
    uint64_t v = ns > 0 ? (uint64_t)ns : 0;
    add_relaxed(&twi_lane[cell + twi_histogram_bucket(v)], 1);
    add_relaxed(&twi_lane[cell + TW_HISTOGRAM_CELLS], v);
}

static inline void
twi_cell_add(uint32_t cell, int64_t n)
{
    add_relaxed(&twi_lane[cell], (uint64_t)n);
}

#endif
