/* Counters: buckets and bounds agree, rows and cells, errors by code, and the
 * table's end. */
#include "counters.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

static unsigned long long seed;

static void
test_bucket(uint64_t ns)
{
    uint32_t bucket = twi_histogram_bucket(ns);
    CHECK(bucket < TW_HISTOGRAM_CELLS);
    uint64_t above = tw_histogram_bound((int)bucket);
    uint64_t below = bucket ? tw_histogram_bound((int)bucket - 1) : 0;
    CHECK(below <= ns);
    CHECK(ns < above || above == UINT64_MAX);
    if (above == UINT64_MAX || ns < 1024)
        return; /* below a microsecond the buckets are 128 ns wide */
    uint64_t middle = below + (above - below) / 2;
    uint64_t error = ns > middle ? ns - middle : middle - ns;
    CHECK(error * 16 <= ns);
}

static void
test_histogram(void)
{
    for (uint64_t ns = 0; ns < 5000; ns++)
        test_bucket(ns);
    /* Around every bound, and anywhere. */
    for (int i = 0; i < TW_HISTOGRAM_CELLS - 1; i++) {
        uint64_t bound = tw_histogram_bound(i);
        CHECK(bound > (i ? tw_histogram_bound(i - 1) : 0));
        CHECK_EQ(twi_histogram_bucket(bound - 1), i);
        CHECK_EQ(twi_histogram_bucket(bound), i + 1);
        test_bucket(bound - 1);
        test_bucket(bound);
        test_bucket(bound + 1);
    }
    for (int i = 0; i < 200000; i++)
        test_bucket(check_random(&seed) >> (check_random(&seed) % 64));
    CHECK_EQ(twi_histogram_bucket(UINT64_MAX), TW_HISTOGRAM_CELLS - 1);
    CHECK_EQ(tw_histogram_bound(TW_HISTOGRAM_CELLS - 1), UINT64_MAX);
    CHECK_EQ(tw_histogram_bound(TW_HISTOGRAM_CELLS), UINT64_MAX);
    CHECK_EQ(tw_histogram_bound(-1), 0);
}

/* The number of a row, looked for by name and a label's value; -1. */
static int
find_row(const char *name, const char *value)
{
    static tw_row row;
    for (int i = 0; tw_counter_rows(&row, i, 1) == 1; i++) {
        if (strcmp(row.name, name))
            continue;
        for (const char *p = row.labels; *p; p += strlen(p) + 1)
            if (!strcmp(p, value))
                return i;
        if (!*value)
            return i;
    }
    return -1;
}

static uint64_t
value_of(const char *name, const char *label)
{
    tw_row row;
    int i = find_row(name, label);
    if (i < 0 || tw_counter_rows(&row, i, 1) != 1)
        return UINT64_MAX;
    return twi_cell_value((uint32_t)row.cell);
}

static void
test_rows(void)
{
    static tw_row rows[TWI_COUNTERS + 16];
    static uint64_t cells[TWI_CELLS_MAX];
    CHECK_EQ(tw_counter_rows(rows, 0, TWI_COUNTERS + 16), TWI_COUNTERS + 6);
    for (int i = 0; i < TWI_COUNTERS; i++) {
        CHECK_EQ(rows[i].cell, i);
        CHECK(!strncmp(rows[i].name, "tidewire_", 9));
        CHECK(rows[i].help[0]);
        CHECK(rows[i].kind == TW_COUNTER || rows[i].kind == TW_GAUGE);
        CHECK(strlen(rows[i].help) < sizeof rows[i].help - 1); /* not cut */
        for (int j = 0; j < i; j++)
            CHECK(strcmp(rows[i].name, rows[j].name));
    }
    /* Behind them a histogram of the loop's, and a counter for each phase. */
    CHECK_EQ(tw_counter_rows(rows, TWI_COUNTERS, 8), 6);
    CHECK_EQ(rows[0].kind, TW_HISTOGRAM);
    CHECK(!memcmp(rows[TW_PHASE_PEER + 1].labels, "phase\0peer\0", 12));
    CHECK_EQ(tw_counter_rows(rows, TWI_COUNTERS + 6, 4), 0);
    CHECK_EQ(tw_counter_rows(rows, -1, 4), 0);
    CHECK_EQ(tw_counter_rows(rows, 3, 2), 2);
    CHECK_EQ(rows[0].cell, 3);
    int n = tw_counter_cells(cells, 0);
    CHECK(n >= TWI_COUNTERS);
    twi_count(TWI_KEEPWRITE, 3);
    twi_count(TWI_SOCKETS, 5);
    twi_count(TWI_SOCKETS, -5);
    CHECK_EQ(tw_counter_cells(cells, TWI_CELLS_MAX), n);
    CHECK_EQ(cells[TWI_KEEPWRITE], 3);
    CHECK_EQ(cells[TWI_SOCKETS], 0);
}

static void
test_own_rows(void)
{
    char labels[sizeof((tw_row *)0)->labels];
    memset(labels, 'x', sizeof labels);
    memcpy(labels, "state\0down", 11);
    int cell = tw_counter_row("tidewire_own", "Own", TW_GAUGE, labels, 12);
    CHECK_EQ(tw_counter_row("tidewire_own", "Own", TW_GAUGE, labels, 12), cell);
    /* Labels that are too long are cut, and end. */
    CHECK(tw_counter_row("tidewire_own", "Own", TW_GAUGE, labels,
                         sizeof labels) != cell);
    CHECK(tw_counter_row("tidewire_own", "Own", TW_GAUGE, NULL, 0) != cell);
    tw_counter_add(cell, 3);
    tw_counter_add(cell, -1);
    CHECK_EQ(value_of("tidewire_own", "down"), 2);
}

static void
test_method(void)
{
    static struct twi_method_stats server, client, again;
    twi_method_stats_init(&server, "a.Service", "run", 0);
    twi_method_stats_init(&client, "a.Service", "run", 1);
    twi_method_stats_init(&again, "a.Service", "run", 0);
    CHECK_EQ(again.calls, server.calls); /* the same counters go on */
    CHECK_EQ(again.core, server.core);
    CHECK(client.calls != server.calls);
    CHECK(find_row("tidewire_server_calls", "run") >= 0);
    CHECK(find_row("tidewire_client_latency_seconds", "a.Service") >= 0);
    twi_cell_add(server.calls, 2);
    CHECK_EQ(value_of("tidewire_server_calls", "a.Service"), 2);
    /* A histogram's count is the sum of its buckets; the sum stands behind. */
    static const int64_t times[] = {-5, 0, 1000, 1000000, INT64_MAX};
    uint64_t count = 0;
    for (int i = 0; i < 5; i++)
        twi_histogram_add(server.queue, times[i]);
    for (uint32_t i = 0; i < TW_HISTOGRAM_CELLS; i++)
        count += twi_cell_value(server.queue + i);
    CHECK_EQ(count, 5);
    CHECK_EQ(twi_cell_value(server.queue + TW_HISTOGRAM_CELLS),
             (uint64_t)INT64_MAX + 1001000);
    /* Errors by code, so many of them apart, the rest together. */
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < TWI_ERROR_CODES + 7; i++)
            twi_method_error(&server, 100000 + i);
    for (int i = 0; i < TWI_ERROR_CODES + 7; i++) {
        char code[16];
        snprintf(code, sizeof code, "%d", 100000 + i);
        CHECK_EQ(value_of("tidewire_server_errors", code),
                 i < TWI_ERROR_CODES ? 2 : UINT64_MAX);
    }
    CHECK_EQ(value_of("tidewire_server_errors", "other"), 14);
    twi_method_error(&client, ECONNREFUSED);
    twi_method_error(&client, -7);
    CHECK_EQ(value_of("tidewire_client_errors", "ECONNREFUSED"), 1);
    CHECK_EQ(value_of("tidewire_client_errors", "-7"), 1);
    /* Names too long for a row are cut, the row stays well-formed. */
    static char longer[1000];
    memset(longer, 'n', sizeof longer - 1);
    static struct twi_method_stats cut;
    twi_method_stats_init(&cut, longer, longer, 0);
    twi_method_error(&cut, TW_EOVERCROWDED);
    tw_row row;
    int i = find_row("tidewire_server_errors", "EOVERCROWDED");
    CHECK(i >= 0 && tw_counter_rows(&row, i, 1) == 1);
    int strings = 0;
    const char *p = row.labels;
    for (; *p; p += strlen(p) + 1)
        strings++;
    CHECK_EQ(strings, 6);
    CHECK(p < row.labels + sizeof row.labels);
}

static void
test_full(void)
{
    static struct twi_method_stats stats[TWI_ROWS_MAX / 2];
    static char names[TWI_ROWS_MAX / 2][16];
    int n = 0;
    static tw_row row;
    for (; n < TWI_ROWS_MAX / 2 &&
           tw_counter_rows(&row, TWI_ROWS_MAX - 1, 1) == 0 &&
           !twi_cell_value(TWI_ROWS_DROPPED);
         n++) {
        snprintf(names[n], sizeof names[n], "m%d", n);
        /* Servers have histograms, which fill the cells; clients' errors
         * fill the rows. */
        twi_method_stats_init(&stats[n], "full", names[n], 1);
        for (int code = 1; code <= 10; code++)
            twi_method_error(&stats[n], code);
    }
    /* Now all that is new counts in one place, and the loss is counted. */
    uint64_t dropped = twi_cell_value(TWI_ROWS_DROPPED);
    static struct twi_method_stats late;
    twi_method_stats_init(&late, "full", "late", 0);
    CHECK(twi_cell_value(TWI_ROWS_DROPPED) >= dropped + 1);
    twi_cell_add(late.calls, 1);
    twi_histogram_add(late.core, INT64_MAX);
    twi_method_error(&late, ENOENT);
    CHECK_EQ(find_row("tidewire_server_calls", "late"), -1);
    CHECK(tw_counter_rows(&row, TWI_ROWS_MAX, 1) == 0);
    CHECK(tw_counter_cells(NULL, 0) <= TWI_CELLS_MAX);
    /* What had a row before keeps it. */
    twi_cell_add(stats[0].calls, 1);
    CHECK_EQ(value_of("tidewire_client_calls", "m0"), 1);
    fprintf(stderr, "%d methods until the table was full\n", n);
    CHECK(n > 100);
}

/* What a killed process held is no more, what it counted stays; the next one
 * goes on in its lane. */
static void
test_dead_process(void)
{
    static uint64_t cells[TWI_CELLS_MAX];
    for (int i = 1; i <= 2 * TWI_LANES_MAX; i++) {
        int status;
        pid_t child = fork();
        if (!child) {
            twi_counters_forked();
            twi_count(TWI_SOCKETS, 5);
            twi_count(TWI_ACCEPTED, 3);
            kill(getpid(), SIGKILL);
        }
        CHECK_EQ(waitpid(child, &status, 0), child);
        CHECK(tw_counter_cells(cells, TWI_CELLS_MAX) > 0);
        CHECK_EQ(cells[TWI_SOCKETS], 0);
        CHECK_EQ(cells[TWI_ACCEPTED], 3 * i);
    }
    /* Lane by lane it is the same. */
    int lanes = tw_counter_lanes(), n = tw_counter_cells(cells, 0);
    uint64_t sum = 0;
    CHECK(lanes >= 1 && lanes <= TWI_LANES_MAX);
    for (int lane = 0; lane < lanes; lane++) {
        CHECK_EQ(tw_lane_cells(lane, cells, 0), n);
        CHECK_EQ(tw_lane_cells(lane, cells, TWI_CELLS_MAX), n);
        sum += cells[TWI_ACCEPTED];
    }
    CHECK_EQ(sum, 3 * 2 * TWI_LANES_MAX);
    CHECK_EQ(tw_lane_cells(lanes, cells, TWI_CELLS_MAX), -EINVAL);
    CHECK_EQ(tw_lane_cells(-1, cells, TWI_CELLS_MAX), -EINVAL);
}

int
main(void)
{
    seed = check_seed();
    CHECK_EQ(tw_counter_rows(NULL, 0, 1), 0); /* not open yet */
    CHECK_EQ(tw_counter_cells(NULL, 1), 0);
    CHECK_EQ(tw_counter_lanes(), 0);
    CHECK_EQ(tw_lane_cells(0, NULL, 1), -EINVAL);
    CHECK_EQ(twi_counters_open(), 0);
    CHECK_EQ(twi_counters_open(), 0);
    test_histogram();
    test_rows();
    test_own_rows();
    test_method();
    /* Another lane, as after a fork: totals go on. */
    _Atomic uint64_t *lane = twi_lane;
    twi_counters_forked();
    CHECK(twi_lane != lane);
    twi_count(TWI_KEEPWRITE, 4);
    CHECK_EQ(twi_cell_value(TWI_KEEPWRITE), 7);
    test_dead_process();
    for (int i = 0; i < 2 * TWI_LANES_MAX; i++) {
        twi_counters_forked(); /* more processes than lanes share the last */
        twi_count(TWI_KEEPWRITE, 1);
    }
    CHECK_EQ(twi_cell_value(TWI_KEEPWRITE), 7 + 2 * TWI_LANES_MAX);
    test_full();
    return check_done();
}
