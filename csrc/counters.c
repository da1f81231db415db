#include "counters.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "err.h"
#include "sys.h"

#define C TW_COUNTER
#define G TW_GAUGE

static const struct {
    const char *name, *help, *unit;
    int kind;
} table[] = {
    [TWI_KEEPWRITE] = {"tidewire_keepwrite", "Times a socket entered keep-write (brpc: nkeepwrite)", "", C},
    [TWI_WAITEPOLLOUT] = {"tidewire_waitepollout", "Waits for a writable socket inside keep-write (brpc: nwaitepollout)", "", C},
    [TWI_EVENTTHREAD] = {"tidewire_eventthread", "Readable events that started a reader (brpc: neventthread)", "", C},
    [TWI_SOCKETS] = {"tidewire_sockets", "Live sockets, listeners and those of open channels included (brpc: rpc_socket_count)", "", G},
    [TWI_CONNECTIONS_IN] = {"tidewire_connections_in", "Open accepted connections", "", G},
    [TWI_CONNECTIONS_OUT] = {"tidewire_connections_out", "Open connections to servers (brpc: rpc_channel_connection_count)", "", G},
    [TWI_ACCEPTED] = {"tidewire_accepted_connections", "Connections accepted", "", C},
    [TWI_CONNECTED] = {"tidewire_established_connections", "Connections established to servers", "", C},
    [TWI_LEFT] = {"tidewire_left_connections", "Connections to servers that were left for new ones since the server stops", "", C},
    [TWI_HEALTHCHECKS] = {"tidewire_healthcheck", "Health check attempts (brpc: rpc_health_check_count)", "", C},
    [TWI_BYTES_IN] = {"tidewire_received_bytes", "Bytes read from sockets", "bytes", C},
    [TWI_BYTES_OUT] = {"tidewire_sent_bytes", "Bytes the kernel accepted", "bytes", C},
    [TWI_MESSAGES_IN] = {"tidewire_received_messages", "Messages cut from sockets", "", C},
    [TWI_MESSAGES_OUT] = {"tidewire_sent_messages", "Messages wholly accepted by the kernel", "", C},
    [TWI_WRITE_REQUESTS] = {"tidewire_write_requests", "Messages pushed on write stacks", "", C},
    [TWI_WRITEV_CALLS] = {"tidewire_writev_calls", "Gather writes issued", "", C},
    [TWI_READ_CALLS] = {"tidewire_read_calls", "Reads issued", "", C},
    [TWI_UNWRITTEN_BYTES] = {"tidewire_unwritten_bytes", "Bytes on write stacks", "bytes", G},
    [TWI_OVERCROWDED] = {"tidewire_overcrowded", "Messages refused because the connection held too many unwritten bytes", "", C},
    [TWI_READ_PAUSES] = {"tidewire_read_pauses", "Times reading a connection paused for backpressure", "", C},
    [TWI_ACCEPT_PAUSES] = {"tidewire_accept_pauses", "Times a listener paused for want of descriptors or memory", "", C},
    [TWI_CONNECTIONS_REFUSED] = {"tidewire_refused_connections", "Connections accepted and closed at once, over a limit or for want of memory", "", C},
    [TWI_TIMEOUTS_FIRST_BYTE] = {"tidewire_first_byte_timeouts", "Connections closed since nothing came after they were accepted", "", C},
    [TWI_TIMEOUTS_STALL] = {"tidewire_stall_timeouts", "Connections closed since a message began and did not go on", "", C},
    [TWI_TIMEOUTS_IDLE] = {"tidewire_idle_timeouts", "Connections closed since nothing was asked for long", "", C},
    [TWI_ERRORS_CONNECT] = {"tidewire_connect_errors", "Connections that failed while connecting", "", C},
    [TWI_ERRORS_READ] = {"tidewire_read_errors", "Connections that failed on reading, end of stream included", "", C},
    [TWI_ERRORS_WRITE] = {"tidewire_write_errors", "Connections that failed on writing", "", C},
    [TWI_ERRORS_PROTOCOL] = {"tidewire_protocol_errors", "Connections closed for unacceptable bytes", "", C},
    [TWI_STALE_EVENTS] = {"tidewire_stale_events", "Poller events of an earlier binding, dropped", "", C},
    [TWI_STALE_RESPONSES] = {"tidewire_stale_responses", "Responses nobody waited for, dropped", "", C},
    [TWI_POLLS] = {"tidewire_polls", "Poll rounds", "", C},
    [TWI_DISPATCHER_POLLS] = {"tidewire_dispatcher_polls", "Poll rounds by the dispatcher", "", C},
    [TWI_WAKEUPS] = {"tidewire_worker_wakeups", "Sleeping workers woken", "", C},
    [TWI_CORKED] = {"tidewire_corks", "Times answers were held back for the next ones of their connection", "", C},
    [TWI_EXPIRED] = {"tidewire_expired_requests", "Requests dropped unrun since their deadline had passed", "", C},
    [TWI_MAX_CONCURRENCY] = {"tidewire_max_concurrency", "Calls that the servers admit at a time, of those that limit them", "", G},
    [TWI_LIMIT_REFUSALS] = {"tidewire_concurrency_refusals", "Requests refused since their server was at its max_concurrency", "", C},
    [TWI_REFUSED] = {"tidewire_refused_requests", "Requests refused before a method was found or run", "", C},
    [TWI_INTERNAL_ERRORS] = {"tidewire_internal_errors", "Checks of the core that failed: a fault, its connection was closed", "", C},
    [TWI_BLOCKS] = {"tidewire_blocks", "Blocks that hold received bytes or bytes to be sent (brpc: iobuf_block_count)", "", G},
    [TWI_BLOCK_BYTES] = {"tidewire_block_bytes", "Bytes of these blocks (brpc: iobuf_block_memory)", "bytes", G},
    [TWI_BUDGET_BYTES] = {"tidewire_memory_budget_bytes", "Bytes that the blocks may have together; 0: any", "bytes", G},
    [TWI_BUDGET_REFUSALS] = {"tidewire_budget_refusals", "Requests refused since the memory budget was nearly used up", "", C},
    [TWI_BUDGET_CLOSES] = {"tidewire_budget_closes", "Connections closed since the memory budget was used up", "", C},
    [TWI_SERVERS] = {"tidewire_servers", "Live servers (brpc: rpc_server_count)", "", G},
    [TWI_PEERS] = {"tidewire_peers", "Addresses that channels hold", "", G},
    [TWI_CALLS] = {"tidewire_calls", "Slots of client calls in use", "", G},
    [TWI_REQUESTS] = {"tidewire_requests", "Slots of requests in use", "", G},
    [TWI_INBOXES] = {"tidewire_inboxes", "Queues of events for loops and threads", "", G},
    [TWI_TIMERS] = {"tidewire_timers", "Timers that are set", "", G},
    [TWI_WRITE_NODES] = {"tidewire_write_nodes", "Messages held for writing", "", G},
    [TWI_LOG_ENTRIES] = {"tidewire_log_entries", "Log entries that wait for their thread", "", G},
    [TWI_AUTHENTICATIONS] = {"tidewire_authentications", "Connections whose first message was accepted by the authenticator", "", C},
    [TWI_AUTH_FAILURES] = {"tidewire_authentication_failures", "Connections refused: no credential, a wrong one, or no verdict in time", "", C},
    [TWI_DOUBLE_COMPLETIONS] = {"tidewire_double_completions", "Calls completed a second time: a fault", "", C},
    [TWI_LOG_DROPPED] = {"tidewire_dropped_log_entries", "Log entries lost because the ring was full", "", C},
    [TWI_ROWS_DROPPED] = {"tidewire_dropped_rows", "Metric rows that found the table full", "", C},
};
_Static_assert(sizeof table / sizeof *table == TWI_COUNTERS, "one row each");

/* Behind the core's rows: where rows that found no room count. */
enum { OVERFLOW_CELL = TWI_COUNTERS,
       FIRST_FREE_CELL = OVERFLOW_CELL + TW_HISTOGRAM_CELLS + 1 };

/* No process has such a number. */
#define FREE 0u
#define SHARED UINT32_MAX
#define SWEPT (UINT32_MAX - 1) /* somebody is about to free it */

static struct arena {
    _Atomic uint32_t lock; /* guards appending; held for nanoseconds */
    _Atomic uint32_t rows, cells, lanes;
    /* The lanes' processes.  SHARED: of those that found none. */
    _Atomic uint32_t owner[TWI_LANES_MAX];
    tw_row row[TWI_ROWS_MAX];
    _Alignas(64) _Atomic uint64_t lane[TWI_LANES_MAX][TWI_CELLS_MAX];
} *arena;

_Atomic uint64_t *twi_lane;
uint32_t twi_round_cell;
uint32_t twi_failed_cell[TW_PHASE_PEER + 1];
void (*twi_counters_sample)(void);

static void
arena_lock(void)
{
    uint32_t free = 0;
    /* acquire/release: the lock's own pair, between processes too. */
    while (!atomic_compare_exchange_weak_explicit(
        &arena->lock, &free, 1, memory_order_acquire, memory_order_relaxed)) {
        free = 0;
        cpu_relax();
    }
}

static void
arena_unlock(void)
{
    store_release(&arena->lock, 0);
}

/* A process that was killed holds nothing any more: its gauges go, its totals
 * stay, and the lane is free.  (Not before its parent has waited for it, nor
 * while a new process has its number.)  Without the lock, which a process may
 * be killed with: then the lane is lost, and no more. */
static void
sweep(uint32_t lane)
{
    uint32_t owner = load_relaxed(&arena->owner[lane]);
    if (owner == FREE || owner == SHARED || owner == SWEPT ||
        !twi_sys.kill((pid_t)owner, 0) || errno != ESRCH ||
        !atomic_compare_exchange_strong(&arena->owner[lane], &owner, SWEPT))
        return;
    /* acquire: pairs with the release in add_row. */
    for (uint32_t i = 0; i < load_acquire(&arena->rows); i++)
        if (arena->row[i].kind == TW_GAUGE)
            store_relaxed(&arena->lane[lane][arena->row[i].cell], 0);
    /* release: who takes the lane counts from these zeros on. */
    store_release(&arena->owner[lane], FREE);
}

static void
sweep_all(void)
{
    uint32_t lanes = load_relaxed(&arena->lanes);
    for (uint32_t i = 0; i < lanes; i++)
        sweep(i);
}

/* A dead process's lane, whose totals go on, or a new one. */
static void
take_lane(void)
{
    uint32_t lane, lanes = load_relaxed(&arena->lanes), free = FREE;
    sweep_all();
    for (lane = 0; lane < TWI_LANES_MAX; lane++, free = FREE)
        if (atomic_compare_exchange_strong(&arena->owner[lane], &free,
                                           (uint32_t)getpid()))
            break;
    if (lane == TWI_LANES_MAX) {
        /* More processes than lanes share the last: sums stay right. */
        lane--;
        store_relaxed(&arena->owner[lane], SHARED); /* a mark for sweep */
    }
    /* relaxed: only grows; a lane that is missed is counted the next time. */
    while (lanes <= lane && !atomic_compare_exchange_weak_explicit(
                                &arena->lanes, &lanes, lane + 1,
                                memory_order_relaxed, memory_order_relaxed))
        ;
    twi_lane = arena->lane[lane];
}

/* A row's first cell.  `labels` is in tw_row's form. */
static uint32_t
add_row(const char *name, const char *help, const char *unit, int kind,
        const char *labels, size_t labels_len)
{
    uint32_t n = kind == TW_HISTOGRAM ? TW_HISTOGRAM_CELLS + 1 : 1;
    arena_lock();
    uint32_t rows = load_relaxed(&arena->rows);
    for (uint32_t i = TWI_COUNTERS; i < rows; i++)
        if (!strcmp(arena->row[i].name, name) &&
            !memcmp(arena->row[i].labels, labels, labels_len)) {
            uint32_t cell = (uint32_t)arena->row[i].cell;
            arena_unlock();
            return cell; /* registered before: go on counting there */
        }
    uint32_t cell = load_relaxed(&arena->cells);
    if (rows == TWI_ROWS_MAX || cell + n > TWI_CELLS_MAX) {
        arena_unlock();
        twi_count(TWI_ROWS_DROPPED, 1);
        return OVERFLOW_CELL;
    }
    tw_row *row = &arena->row[rows];
    snprintf(row->name, sizeof row->name, "%s", name);
    snprintf(row->help, sizeof row->help, "%s", help);
    snprintf(row->unit, sizeof row->unit, "%s", unit);
    memcpy(row->labels, labels, labels_len);
    row->kind = kind;
    row->cell = (int32_t)cell;
    store_relaxed(&arena->cells, cell + n);
    /* release: pairs with the acquire in tw_counter_rows. */
    store_release(&arena->rows, rows + 1);
    arena_unlock();
    return cell;
}

/* Appends one NUL-ended string; the end, which stays where it is when the
 * string does not fit (the row then has a shorter label). */
static size_t
put(char *labels, size_t at, const char *text)
{
    size_t room = sizeof((tw_row *)0)->labels / 2 - 24, n = strlen(text);
    if (n > room)
        n = room;
    memcpy(labels + at, text, n);
    labels[at + n] = 0;
    return at + n + 1;
}

static uint32_t
failed_row(int phase)
{
    static const char *const names[] = {"none", "connect", "write", "read", "peer"};
    _Static_assert(sizeof names / sizeof *names == TW_PHASE_PEER + 1, "phases");
    char labels[sizeof arena->row[0].labels] = {0};
    put(labels, put(labels, 0, "phase"), names[phase]);
    return add_row("tidewire_client_failures", "Attempts that failed, by how far they had come",
                   "", C, labels, sizeof labels);
}

int
twi_counters_open(void)
{
    if (arena)
        return 0;
    void *map = twi_sys.mmap(NULL, sizeof *arena, PROT_READ | PROT_WRITE,
                             MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return -errno;
    arena = map;
    for (int i = 0; i < TWI_COUNTERS; i++) {
        tw_row *row = &arena->row[i];
        snprintf(row->name, sizeof row->name, "%s", table[i].name);
        snprintf(row->help, sizeof row->help, "%s", table[i].help);
        snprintf(row->unit, sizeof row->unit, "%s", table[i].unit);
        row->kind = table[i].kind;
        row->cell = i;
    }
    store_relaxed(&arena->cells, FIRST_FREE_CELL);
    store_relaxed(&arena->rows, TWI_COUNTERS); /* nobody else is there yet */
    take_lane();
    const char labels[sizeof arena->row[0].labels] = {0};
    twi_round_cell = add_row(
        "tidewire_loop_round_seconds",
        "Time from an event loop's waking to the end of its round's work",
        "seconds", TW_HISTOGRAM, labels, sizeof labels);
    for (int i = 0; i <= TW_PHASE_PEER; i++)
        twi_failed_cell[i] = failed_row(i);
    return 0;
}

void
twi_counters_forked(void)
{
    if (arena)
        take_lane();
}

int
tw_counter_row(const char *name, const char *help, int kind,
               const char *labels, size_t labels_len)
{
    char all[sizeof((tw_row *)0)->labels] = {0};
    /* The last two stay NUL: the value's end, and the labels'. */
    if (labels_len > sizeof all - 2)
        labels_len = sizeof all - 2;
    if (labels_len)
        memcpy(all, labels, labels_len);
    return (int)add_row(name, help, "", kind, all, sizeof all);
}

void
tw_counter_add(int cell, int64_t n)
{
    twi_cell_add((uint32_t)cell, n);
}

uint64_t
twi_cell_value(uint32_t cell)
{
    uint32_t lanes = load_relaxed(&arena->lanes);
    uint64_t sum = 0;
    for (uint32_t i = 0; i < lanes && i < TWI_LANES_MAX; i++)
        sum += load_relaxed(&arena->lane[i][cell]);
    return sum;
}

static uint32_t
method_row(const struct twi_method_stats *stats, const char *what,
           const char *help, const char *unit, int kind, const char *label, const char *value)
{
    char name[64], labels[256] = {0};
    _Static_assert(sizeof labels == sizeof((tw_row *)0)->labels, "labels");
    size_t at = put(labels, 0, "service");
    /* A service of 80 and a method of 60 characters fit beside the names. */
    char text[84];
    snprintf(text, sizeof text, "%s", stats->service);
    at = put(labels, at, text);
    at = put(labels, at, "method");
    snprintf(text, sizeof text, "%s", stats->method);
    at = put(labels, at, text);
    if (label) {
        at = put(labels, at, label);
        put(labels, at, value);
    }
    snprintf(name, sizeof name, "tidewire_%s_%s",
             stats->client ? "client" : "server", what);
    return add_row(name, help, unit, kind, labels, sizeof labels);
}

void
twi_method_stats_init(struct twi_method_stats *stats, const char *service,
                      const char *method, int client)
{
    memset(stats, 0, sizeof *stats);
    stats->service = service;
    stats->method = method;
    stats->client = client;
    stats->calls = method_row(stats, "calls", client ? "Calls started" : "Calls answered", "", C, NULL, NULL);
    stats->in_flight = method_row(stats, "in_flight", "Calls not yet ended", "", G, NULL, NULL);
    if (client) {
        stats->retries = method_row(stats, "retries", "Attempts after one that failed", "", C, NULL, NULL);
        stats->backups = method_row(stats, "backups", "Attempts beside one that had no answer yet", "", C, NULL, NULL);
        stats->core = method_row(stats, "latency_seconds", "Time from the call to its end", "seconds", TW_HISTOGRAM, NULL, NULL);
        return;
    }
    stats->queue = method_row(stats, "queue_seconds", "Time from a request's last byte to its handler's start", "seconds", TW_HISTOGRAM, NULL, NULL);
    stats->handler = method_row(stats, "handler_seconds", "Time in the handler, decoding and encoding included", "seconds", TW_HISTOGRAM, NULL, NULL);
    stats->core = method_row(stats, "core_seconds", "Time from the handler's end until the kernel had the whole answer", "seconds", TW_HISTOGRAM, NULL, NULL);
}

void
twi_method_limits(struct twi_method_stats *stats, int concurrency, int age)
{
    const char *what = "refusals", *help = "Calls refused unrun, by what was exceeded";
    if (concurrency) {
        stats->max_concurrency = method_row(stats, "max_concurrency", "Calls admitted at a time", "", G, NULL, NULL);
        stats->over_concurrency = method_row(stats, what, help, "", C, "reason", "max_concurrency");
    }
    if (age)
        stats->over_age = method_row(stats, what, help, "", C, "reason", "max_queue_age");
}

static uint32_t
error_row(const struct twi_method_stats *stats, const char *code)
{
    return method_row(stats, "errors", "Calls that ended with an error, by code", "", C, "code", code);
}

void
twi_method_error(struct twi_method_stats *stats, int code)
{
    char name[24];
    snprintf(name, sizeof name, "%s", twi_err_name(code));
    if (!name[0])
        snprintf(name, sizeof name, "%d", code);
    for (int i = 0; i < TWI_ERROR_CODES; i++) {
        uint64_t entry = load_relaxed(&stats->errors[i]);
        if (!entry) {
            /* Two threads may add one code twice: add_row gives both the same
             * cell, so nothing is lost. */
            uint64_t fresh = (uint64_t)(uint32_t)code << 32 | error_row(stats, name);
            if (atomic_compare_exchange_strong_explicit(
                    &stats->errors[i], &entry, fresh, memory_order_relaxed,
                    memory_order_relaxed))
                entry = fresh;
        }
        if ((int32_t)(entry >> 32) == code) {
            twi_cell_add((uint32_t)entry, 1);
            return;
        }
    }
    uint64_t other = load_relaxed(&stats->errors[TWI_ERROR_CODES]);
    if (!other) {
        other = error_row(stats, "other");
        store_relaxed(&stats->errors[TWI_ERROR_CODES], other);
    }
    twi_cell_add((uint32_t)other, 1);
}

uint32_t
twi_histogram_bucket(uint64_t ns)
{
    /* Units of 128 ns; the first eight buckets are one unit wide, then eight
     * to every power of two. */
    uint64_t u = ns >> 7;
    if (u < 8)
        return (uint32_t)u;
    uint32_t e = 63 - (uint32_t)__builtin_clzll(u);
    uint32_t bucket = 8 + (e - 3) * 8 + (uint32_t)((u >> (e - 3)) & 7);
    return bucket < TW_HISTOGRAM_CELLS ? bucket : TW_HISTOGRAM_CELLS - 1;
}

uint64_t
tw_histogram_bound(int bucket)
{
    if (bucket < 0)
        return 0;
    if (bucket >= TW_HISTOGRAM_CELLS - 1)
        return UINT64_MAX;
    if (bucket < 8)
        return (uint64_t)(bucket + 1) << 7;
    uint32_t e = (uint32_t)(bucket - 8) / 8, sub = (uint32_t)(bucket - 8) % 8;
    return (uint64_t)(8 + sub + 1) << e << 7;
}

int
tw_counter_rows(tw_row *rows, int first, int max)
{
    if (!arena || first < 0)
        return 0;
    /* acquire: pairs with the release in add_row. */
    int n = (int)load_acquire(&arena->rows) - first;
    if (n > max)
        n = max;
    if (n > 0)
        memcpy(rows, &arena->row[first], (size_t)n * sizeof *rows);
    return n > 0 ? n : 0;
}

/* How many cells there are to be copied; more than max: none are. */
static int
prepare_cells(int max)
{
    if (!arena)
        return 0;
    if (twi_counters_sample)
        twi_counters_sample();
    int n = (int)load_relaxed(&arena->cells);
    if (n <= max)
        sweep_all();
    return n;
}

int
tw_counter_cells(uint64_t *cells, int max)
{
    int n = prepare_cells(max);
    for (int i = 0; n <= max && i < n; i++)
        cells[i] = twi_cell_value((uint32_t)i);
    return n;
}

int
tw_counter_lanes(void)
{
    return arena ? (int)load_relaxed(&arena->lanes) : 0;
}

int
tw_lane_cells(int lane, uint64_t *cells, int max)
{
    if (lane < 0 || lane >= tw_counter_lanes())
        return -EINVAL;
    int n = prepare_cells(max);
    for (int i = 0; n <= max && i < n; i++)
        cells[i] = load_relaxed(&arena->lane[lane][i]);
    return n;
}
