/* A connection without a kernel: what it reads comes from the test, in pieces of
 * the test's choice, what it writes is kept.  The test holds the baton, so that
 * it alone polls.  MUST is the includer's, who sees to one thread. */
#ifndef SCRIPTED_H
#define SCRIPTED_H

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "atomics.h"
#include "counters.h"
#include "loop.h"
#include "reader.h"
#include "server.h"
#include "sys.h"

enum { SCRIPTED_FD = 1 << 20, SCRIPTED_OUT = 1 << 20 };

static struct {
    const uint8_t *data;
    size_t left, piece; /* to come; of these in the kernel */
    uint8_t out[SCRIPTED_OUT];
    size_t out_len;
} io;

static ssize_t
scripted_recv(int fd, void *buf, size_t cap, int flags)
{
    (void)flags;
    MUST(fd == SCRIPTED_FD);
    if (!io.piece) {
        errno = EAGAIN;
        return -1;
    }
    size_t n = io.piece < cap ? io.piece : cap;
    memcpy(buf, io.data, n);
    io.data += n;
    io.left -= n;
    io.piece -= n;
    return (ssize_t)n;
}

static ssize_t
scripted_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    size_t sum = 0;
    (void)flags;
    MUST(fd == SCRIPTED_FD);
    for (size_t i = 0; i < msg->msg_iovlen; i++) {
        size_t n = msg->msg_iov[i].iov_len;
        if (io.out_len + n <= SCRIPTED_OUT)
            memcpy(io.out + io.out_len, msg->msg_iov[i].iov_base, n);
        io.out_len += n;
        sum += n;
    }
    return (ssize_t)sum;
}

static int
scripted_epoll_ctl(int ep, int op, int fd, struct epoll_event *event)
{
    return fd == SCRIPTED_FD ? 0 : epoll_ctl(ep, op, fd, event);
}

static int
scripted_close(int fd)
{
    return fd == SCRIPTED_FD ? 0 : close(fd);
}

/* The core is open and listens: from now on nobody else polls it. */
static void
scripted_begin(void)
{
    while (!twi_baton_take(TWI_MAIN))
        twi_loop_wake(TWI_MAIN); /* the dispatcher may be parked with it */
    twi_sys.recv = scripted_recv;
    twi_sys.sendmsg = scripted_sendmsg;
    twi_sys.epoll_ctl = scripted_epoll_ctl;
    twi_sys.close = scripted_close;
}

static const struct twi_socket_hooks scripted_client_hooks = {
    .readable = twi_reader_run};

/* A connection of the server, or to it if `client`, that will read these
 * bytes.  Before it is published its fields may be set. */
static struct twi_socket *
scripted_open(struct twi_server *server, int client, const uint8_t *data,
              size_t n)
{
    struct twi_socket *sock = twi_socket_open(
        client ? TWI_CLIENT_SIDE : TWI_SERVER_SIDE,
        client ? &scripted_client_hooks : &twi_server_side_hooks, 0);
    MUST(sock);
    if (!client) {
        sock->server = server;
        twi_server_ref(server);
        twi_count(TWI_CONNECTIONS_IN, 1);
        add_seq_cst(&server->connections, 1);
        sock->protocols = TW_PROTO_BAIDU_STD;
    }
    sock->max_message = server->options.max_message;
    sock->max_unwritten = server->options.max_unwritten;
    store_seq_cst(&sock->connected, 1);
    io.data = data;
    io.left = n;
    io.piece = io.out_len = 0;
    return sock;
}

static void
scripted_publish(struct twi_socket *sock)
{
    twi_socket_publish(sock);
    MUST(!twi_socket_attach(sock, SCRIPTED_FD, EPOLLIN | EPOLLRDHUP));
}

/* The next `piece` bytes arrive and are read, leftovers too. */
static void
scripted_arrive(struct twi_socket *sock, size_t piece)
{
    io.piece = piece < io.left ? piece : io.left;
    twi_reader_run(sock, EPOLLIN, 1);
    while (load_seq_cst(&sock->again) && !twi_socket_error(sock))
        twi_loop_poll(TWI_MAIN, 0);
}

#endif
