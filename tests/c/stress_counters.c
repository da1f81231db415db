/* The table of rows under TSan: threads register rows, the same and their own,
 * others read the table and the cells, and lanes of dead processes are swept
 * meanwhile.  A row is whole when its number is told, one name has one row, and
 * what was counted in it stays. */
#include <pthread.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "counters.h"

enum { REGISTRARS = 3, METHODS = 24, CHILDREN = 12 };

static _Atomic int running = 1;

static void
method_name(char *name, size_t cap, int number)
{
    snprintf(name, cap, "method_%d", number);
}

/* Every second method is also the others'. */
static void *
register_rows(void *arg)
{
    int me = (int)(long)arg;
    for (int i = 0; i < METHODS; i++) {
        struct twi_method_stats stats;
        char name[32];
        method_name(name, sizeof name, i % 2 ? i : i + 1000 * me);
        twi_method_stats_init(&stats, "stress", name, 1);
        twi_cell_add(stats.calls, 1);
        twi_method_error(&stats, 1000 + i % 4);
    }
    return NULL;
}

static void *
read_table(void *arg)
{
    static _Thread_local tw_row rows[TWI_ROWS_MAX];
    (void)arg;
    for (int last = 0; atomic_load_explicit(&running, memory_order_relaxed);) {
        int n = tw_counter_rows(rows, 0, TWI_ROWS_MAX);
        CHECK(n >= last && n > 0);
        for (int i = last; i < n; i++)
            CHECK(rows[i].name[0] && rows[i].help[0]);
        last = n;
    }
    return NULL;
}

/* And sweeps: it never asks for rows, which would order it behind them. */
static void *
read_cells(void *arg)
{
    static uint64_t cells[TWI_CELLS_MAX];
    (void)arg;
    while (atomic_load_explicit(&running, memory_order_relaxed))
        CHECK(tw_counter_cells(cells, TWI_CELLS_MAX) > 0);
    return NULL;
}

/* A process that counts and dies: its lane waits for the next sweep. */
static void
dead_child(void)
{
    pid_t pid = fork();
    if (pid < 0)
        abort();
    if (!pid) {
        twi_counters_forked();
        twi_count(TWI_SOCKETS, 1); /* a gauge */
        twi_count(TWI_ACCEPTED, 1);
        _exit(0);
    }
    while (waitpid(pid, NULL, 0) < 0)
        ;
}

static uint64_t
calls_of(const char *name)
{
    static tw_row rows[TWI_ROWS_MAX];
    static uint64_t cells[TWI_CELLS_MAX];
    uint64_t sum = 0;
    int n = tw_counter_rows(rows, 0, TWI_ROWS_MAX), found = 0;
    CHECK(tw_counter_cells(cells, TWI_CELLS_MAX) > 0);
    for (int i = 0; i < n; i++) {
        const char *labels = rows[i].labels; /* service, s, method, m */
        for (int skipped = 0; skipped < 3; skipped++)
            labels += strlen(labels) + 1;
        if (!strcmp(rows[i].name, "tidewire_client_calls") &&
            !strcmp(labels, name)) {
            sum += cells[rows[i].cell];
            found++;
        }
    }
    CHECK_EQ(found, 1);
    return sum;
}

int
main(void)
{
    pthread_t registrars[REGISTRARS], readers[2];
    if (twi_counters_open())
        abort();
    for (int i = 0; i < 2; i++)
        if (pthread_create(&readers[i], NULL, i ? read_cells : read_table, NULL))
            abort();
    for (int i = 0; i < REGISTRARS; i++)
        if (pthread_create(&registrars[i], NULL, register_rows,
                           (void *)(long)(i + 1)))
            abort();
    for (int i = 0; i < CHILDREN; i++)
        dead_child();
    for (int i = 0; i < REGISTRARS; i++)
        pthread_join(registrars[i], NULL);
    atomic_store(&running, 0);
    for (int i = 0; i < 2; i++)
        pthread_join(readers[i], NULL);
    for (int i = 0; i < METHODS; i++) {
        char name[32];
        method_name(name, sizeof name, i % 2 ? i : i + 1000);
        CHECK_EQ(calls_of(name), i % 2 ? REGISTRARS : 1);
    }
    static uint64_t cells[TWI_CELLS_MAX];
    CHECK(tw_counter_cells(cells, TWI_CELLS_MAX) > 0);
    CHECK_EQ(cells[TWI_SOCKETS], 0);
    CHECK_EQ(cells[TWI_ACCEPTED], CHILDREN);
    return check_done();
}
