/* Programs with named cases.  Such a program has a table,
 *
 *     static const struct test_case cases[] = {{"echo", case_echo}, ..., {0}};
 *
 * plants in the system-call table what it needs, and ends with
 * return cases_main(cases, argc, argv).  Without arguments all cases run, in
 * the table's order; with names as arguments only those do. */
#ifndef CASES_H
#define CASES_H

#include "bed.h"

struct test_case {
    const char *name; /* NULL ends a table */
    void (*run)(void);
};

/* The case that runs, for messages. */
static const char *running = "";

/* An address in a directory of the program's own, where nothing is between
 * two cases. */
static char unix_address[64];

/* Descriptors that are open between two cases.  A case that closes the core,
 * the last of its table, puts back how many there were before. */
static int fds_at_rest, fds_without_core;

static inline double
cases_clock(void)
{
    struct timespec now; /* the machine's: a case may move the core's */
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Whether the arguments ask for the case. */
static inline int
case_wanted(const char *name, int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], name))
            return 1;
    return argc == 1;
}

/* The cases that are wanted, and what is to be done after each. */
static inline void
cases_run(const struct test_case *cases, int argc, char **argv,
          void (*after)(void))
{
    int ran = 0;
    for (const struct test_case *one = cases; one->name; one++) {
        if (!case_wanted(one->name, argc, argv))
            continue;
        int failed = check_failures;
        double began = cases_clock();
        running = one->name;
        one->run();
        after();
        ran++;
        fprintf(stderr, "%-36s %5.2f s%s\n", one->name, cases_clock() - began,
                check_failures == failed ? "" : "  FAILED");
    }
    CHECK(argc == 1 || ran == argc - 1); /* each names a case */
}

/* Of a case nothing is left, and no fault goes on but a storm. */
static inline void
case_is_over(void)
{
    calm_faults();
    nothing_is_left(fds_at_rest);
}

static inline void
cases_open(void)
{
    static char dir[] = "/tmp/tidewire-XXXXXX";
    MUST(mkdtemp(dir));
    snprintf(unix_address, sizeof unix_address, "unix:%s/socket", dir);
    fds_without_core = count_fds();
    core_open();
    client_methods_open();
    fds_at_rest = count_fds();
}

/* The program's exit status. */
static inline int
cases_close(void)
{
    tw_close();
    CHECK_EQ(count_fds(), fds_without_core);
    *strrchr(unix_address, '/') = 0;
    CHECK_EQ(rmdir(unix_address + strlen("unix:")), 0);
    CHECK((fault.storm != NO_STORM) == (atomic_load(&fault.gusts) > 0));
    return check_done();
}

static inline int
cases_main(const struct test_case *cases, int argc, char **argv)
{
    cases_open();
    cases_run(cases, argc, argv, case_is_over);
    return cases_close();
}

#endif
