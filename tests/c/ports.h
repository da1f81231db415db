/* Connects that come to what a script says, and servers of several ports. */
#ifndef PORTS_H
#define PORTS_H

#include "bed.h"

enum { SERVERS = 4, HANGS = -1, CONNECTS = 64 };

/* What connecting to one of these ports comes to. */
static struct {
    _Atomic int port, outcome; /* an errno, HANGS, or 0: connects */
} script[SERVERS];
static _Atomic int connects;          /* so many were begun ... */
static _Atomic int tried[CONNECTS];   /* ... to these ports */

static inline int
scripted_connect(int fd, const struct sockaddr *to, socklen_t len)
{
    int port = to->sa_family == AF_INET
                   ? ntohs(((const struct sockaddr_in *)(const void *)to)->sin_port)
                   : 0;
    int n = atomic_fetch_add(&connects, 1);
    if (n < CONNECTS)
        atomic_store(&tried[n], port);
    for (int i = 0; port && i < SERVERS; i++)
        if (atomic_load(&script[i].port) == port &&
            atomic_load(&script[i].outcome)) {
            int outcome = atomic_load(&script[i].outcome);
            errno = outcome == HANGS ? EINPROGRESS : outcome;
            return -1;
        }
    return connect(fd, to, len);
}

static inline int
port_of(const char *address)
{
    return atoi(strrchr(address, ':') + 1);
}

static inline void
script_set(int i, const char *address, int outcome)
{
    atomic_store(&script[i].port, port_of(address));
    atomic_store(&script[i].outcome, outcome);
}

static inline void
script_clear(void)
{
    for (int i = 0; i < SERVERS; i++)
        atomic_store(&script[i].port, 0);
    atomic_store(&connects, 0);
}

/* Several ports of one server. */
struct ports {
    struct bed_server server;
    char address[SERVERS][128], all[SERVERS * 128];
};

static inline void
ports_open(struct ports *ports, int n)
{
    server_start(&ports->server, "127.0.0.1:0", 1, NULL);
    snprintf(ports->address[0], 128, "%s", ports->server.bound);
    for (int i = 1; i < n; i++)
        MUST(tw_listen(ports->server.id, "127.0.0.1:0", TW_PROTO_BAIDU_STD, 16,
                       ports->address[i], 128) == 0);
    ports->all[0] = 0;
    for (int i = 0; i < n; i++) {
        strcat(ports->all, i ? "," : "");
        strcat(ports->all, ports->address[i]);
    }
}

static inline tw_id
open_with(const char *address, int64_t connect_timeout_ns, int64_t health_ns,
          const char *probe)
{
    tw_peer_options options = default_peer;
    tw_id peer = 0;
    options.connect_timeout_ns = connect_timeout_ns;
    options.health_interval_ns = health_ns;
    options.probe_service = probe ? "bed.Service" : NULL;
    options.probe_method = probe;
    options.probe_body = "are you there";
    options.probe_body_len = 13;
    MUST(tw_peer_open(address, &options, &peer) == 0);
    return peer;
}

/* One call; its result, of which only the numbers are good. */
static inline tw_event
result_of(tw_id peer, int method)
{
    static char scratch[4096];
    tw_event result = {0};
    CHECK_EQ(call_full(peer, method, "x", 1, NULL, SOON, scratch,
                       sizeof scratch, &result),
             0);
    return result;
}

#endif
