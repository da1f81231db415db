/* echo_limit: the ceiling for a baidu_std echo server on this machine.
 *
 *   cc -O2 -o echo_limit echo_limit.c
 *   echo_limit PORT
 *
 * PORT 0 lets the kernel choose; the choice is then printed as `port=NNNN`.
 * It serves 127.0.0.1 until it is ended by a signal.
 *
 * One thread, one epoll set, no queue, no lock, no allocation per call: it
 * cuts baidu_std requests, copies the payload back behind a minimal response
 * header and writes once per readable connection.  Of what a peer sends it
 * checks only what its own memory depends on, so it is no server to use; it
 * stands for what the kernel and the wire format cost by themselves.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    HEADER = 12,
    BUFFER = 256 << 10, /* per connection and direction, grown when needed */
    MAX_BODY = 64 << 20,
    EVENTS = 64,
    BACKLOG = 1024,
    WRITE_WAIT_MS = 1000,
};

struct conn {
    int fd;
    unsigned char *in, *out;
    size_t have, in_cap, out_cap;
};

static int ep;

static void
stop(const char *what)
{
    perror(what);
    exit(1);
}

static void
forget(struct conn *c)
{
    close(c->fd);
    free(c->in);
    free(c->out);
    free(c);
}

static void
accept_all(int listener)
{
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct conn *c = calloc(1, sizeof *c);
        if (!c)
            stop("calloc");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        c->fd = fd;
        c->in_cap = c->out_cap = BUFFER;
        c->in = malloc(c->in_cap);
        c->out = malloc(c->out_cap);
        if (!c->in || !c->out)
            stop("malloc");
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
    }
}

static void
grow(unsigned char **buffer, size_t *cap, size_t need)
{
    if (need <= *cap)
        return;
    *cap = need + BUFFER;
    *buffer = realloc(*buffer, *cap);
    if (!*buffer)
        stop("realloc");
}

/* the answer to one whole request at p; bytes written at o */
static size_t
answer(unsigned char *o, unsigned char *p, uint32_t body, uint32_t meta)
{
    /* The last field of the request meta is tag 0x20 (correlation id) and a
     * varint: it goes back as it came. */
    unsigned char *m = p + HEADER, *id = m + 2 + m[1];
    size_t id_len = (size_t)(m + meta - id), len = body - meta;
    uint32_t ometa = (uint32_t)(2 + id_len), obody = ometa + (uint32_t)len;
    uint32_t body_be = htonl(obody), meta_be = htonl(ometa);
    memcpy(o, "PRPC", 4);
    memcpy(o + 4, &body_be, 4);
    memcpy(o + 8, &meta_be, 4);
    o[HEADER] = 0x12;
    o[HEADER + 1] = 0;
    memcpy(o + HEADER + 2, id, id_len);
    memcpy(o + HEADER + ometa, m + meta, len);
    return HEADER + (size_t)obody;
}

/* 0, or -1 when the connection is to be closed */
static int
serve(struct conn *c)
{
    ssize_t g = read(c->fd, c->in + c->have, c->in_cap - c->have);
    if (g <= 0)
        return g < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
    c->have += (size_t)g;
    size_t off = 0, out = 0;
    while (c->have - off >= HEADER) {
        uint32_t body, meta;
        memcpy(&body, c->in + off + 4, 4);
        memcpy(&meta, c->in + off + 8, 4);
        body = ntohl(body);
        meta = ntohl(meta);
        if (body > MAX_BODY || meta > body || meta < 2)
            return -1;
        size_t need = HEADER + (size_t)body;
        grow(&c->in, &c->in_cap, need);
        if (c->have - off < need)
            break;
        if (2u + c->in[off + HEADER + 1] > meta)
            return -1;
        grow(&c->out, &c->out_cap, out + need);
        out += answer(c->out + out, c->in + off, body, meta);
        off += need;
    }
    c->have -= off;
    memmove(c->in, c->in + off, c->have);
    for (size_t w = 0; w < out;) {
        ssize_t k = write(c->fd, c->out + w, out - w);
        if (k < 0 && errno != EAGAIN)
            return -1;
        if (k < 0) {
            struct pollfd p = {c->fd, POLLOUT, 0};
            poll(&p, 1, WRITE_WAIT_MS);
        } else {
            w += (size_t)k;
        }
    }
    return 0;
}

static int
open_listener(int port)
{
    struct sockaddr_in a = {
        .sin_family = AF_INET,
        .sin_port = htons((uint16_t)port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    socklen_t len = sizeof a;
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (fd < 0)
        stop("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, BACKLOG))
        stop("bind");
    if (!port && !getsockname(fd, (struct sockaddr *)&a, &len)) {
        printf("port=%d\n", ntohs(a.sin_port));
        fflush(stdout);
    }
    return fd;
}

int
main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: echo_limit PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    int listener = open_listener(atoi(argv[1]));
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
    ep = epoll_create1(0);
    if (ep < 0 || epoll_ctl(ep, EPOLL_CTL_ADD, listener, &e))
        stop("epoll");
    for (;;) {
        struct epoll_event ev[EVENTS];
        int n = epoll_wait(ep, ev, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            if (!ev[i].data.ptr)
                accept_all(listener);
            else if (serve(ev[i].data.ptr))
                forget(ev[i].data.ptr);
        }
    }
}
