/* The command line of prpc_load: the options, their limits, the usage text.
 *
 * One static `opt`; include it once.
 */
#ifndef BENCH_PRPC_OPTIONS_H
#define BENCH_PRPC_OPTIONS_H

#include <getopt.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

enum {
    MAX_CONNECTIONS = 20000,
    MAX_DEPTH = 4096,
    MAX_MESSAGE = 16 << 20,
    MAX_SECONDS = 3600,
    MAX_RATE = 2000000,
    MAX_NAMES = 120, /* service and method, so that one length byte is enough */
    DRAIN_SECONDS = 5,
};

static struct {
    int port, nconn, depth, json;
    double seconds, warmup, rate, interval, drain;
    long size, sleep_ms, fail_code, expect_code, refusal_code;
    const char *service, *method, *path;
} opt = {
    .size = 16,
    .drain = DRAIN_SECONDS,
    .service = "example.EchoService",
    .method = "Echo",
};

static const char usage_text[] =
    "usage: prpc_load [OPTIONS] PORT CONNECTIONS DEPTH SECONDS"
    " [MESSAGE_BYTES]\n"
    "  --rate N         open loop: N requests/s over all connections\n"
    "  --service NAME   default example.EchoService\n"
    "  --method NAME    default Echo\n"
    "  --sleep-ms N     field 2 of the request\n"
    "  --fail-code N    field 3 of the request\n"
    "  --expect-code N  the error code that is the right answer\n"
    "  --refusal-code N an error code that is neither right nor wrong: with\n"
    "                   --json such answers are counted apart, and timed from\n"
    "                   when the request was sent, not was meant to be\n"
    "  --unix PATH      a unix socket; PORT is not used then, write 0\n"
    "  --warmup S       seconds of load before those that count\n"
    "  --drain S        seconds to wait for the last answers, default 5\n"
    "  --interval S     with --json: right answers in steps of S seconds\n"
    "  --json           one JSON object instead of the line\n";

static double
number(const char *name, const char *text, double least, double most)
{
    char *end;
    double v = strtod(text, &end);
    if (end != text && !*end && v >= least && v <= most)
        return v;
    fprintf(stderr, "prpc_load: %s is to be %g..%g, not %s\n", name, least,
            most, text);
    exit(2);
}

static long
whole(const char *name, const char *text, long least, long most)
{
    double v = number(name, text, (double)least, (double)most);
    if (v == (double)(long)v)
        return (long)v;
    fprintf(stderr, "prpc_load: %s is to be a whole number\n", name);
    exit(2);
}

static void
usage(void)
{
    fputs(usage_text, stderr);
    exit(2);
}

static void
parse_options(int argc, char **argv)
{
    enum { RATE = 1, SERVICE, METHOD, SLEEP, FAIL, EXPECT, REFUSAL, UNIX, WARMUP,
           DRAIN, INTERVAL, JSON };
    static const struct option table[] = {
        {"rate", 1, NULL, RATE},          {"service", 1, NULL, SERVICE},
        {"method", 1, NULL, METHOD},      {"sleep-ms", 1, NULL, SLEEP},
        {"fail-code", 1, NULL, FAIL},     {"expect-code", 1, NULL, EXPECT},
        {"unix", 1, NULL, UNIX},          {"warmup", 1, NULL, WARMUP},
        {"drain", 1, NULL, DRAIN},        {"interval", 1, NULL, INTERVAL},
        {"json", 0, NULL, JSON},          {"refusal-code", 1, NULL, REFUSAL},
        {NULL, 0, NULL, 0},
    };
    struct sockaddr_un local;
    for (int o; (o = getopt_long(argc, argv, "", table, NULL)) != -1;) {
        switch (o) {
        case RATE: opt.rate = number("--rate", optarg, 0.001, MAX_RATE); break;
        case SERVICE: opt.service = optarg; break;
        case METHOD: opt.method = optarg; break;
        case SLEEP:
            opt.sleep_ms = whole("--sleep-ms", optarg, 0, INT32_MAX);
            break;
        case FAIL:
            opt.fail_code = whole("--fail-code", optarg, INT32_MIN, INT32_MAX);
            break;
        case EXPECT:
            opt.expect_code =
                whole("--expect-code", optarg, INT32_MIN, INT32_MAX);
            break;
        case REFUSAL:
            opt.refusal_code =
                whole("--refusal-code", optarg, 1, INT32_MAX);
            break;
        case UNIX: opt.path = optarg; break;
        case WARMUP:
            opt.warmup = number("--warmup", optarg, 0, MAX_SECONDS);
            break;
        case DRAIN:
            opt.drain = number("--drain", optarg, 0, MAX_SECONDS);
            break;
        case INTERVAL:
            opt.interval = number("--interval", optarg, 0.001, MAX_SECONDS);
            break;
        case JSON: opt.json = 1; break;
        default: usage();
        }
    }
    if (argc - optind < 4 || argc - optind > 5)
        usage();
    argv += optind;
    opt.port = (int)whole("PORT", argv[0], opt.path ? 0 : 1, UINT16_MAX);
    opt.nconn = (int)whole("CONNECTIONS", argv[1], 1, MAX_CONNECTIONS);
    opt.depth = (int)whole("DEPTH", argv[2], 1, MAX_DEPTH);
    opt.seconds = number("SECONDS", argv[3], 0.001, MAX_SECONDS);
    if (argv[4])
        opt.size = whole("MESSAGE_BYTES", argv[4], 0, MAX_MESSAGE);
    if (strlen(opt.service) + strlen(opt.method) > MAX_NAMES) {
        fprintf(stderr, "prpc_load: service and method are to have %d bytes"
                " at most\n", MAX_NAMES);
        exit(2);
    }
    if (opt.path && strlen(opt.path) >= sizeof local.sun_path) {
        fprintf(stderr, "prpc_load: --unix is to have less than %zu bytes\n",
                sizeof local.sun_path);
        exit(2);
    }
}

#endif
