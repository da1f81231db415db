#include "sys.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "atomics.h"

struct twi_sys twi_sys = {
    .recv = recv,
    .sendmsg = sendmsg,
    .accept4 = accept4,
    .connect = connect,
    .epoll_wait = epoll_wait,
    .epoll_ctl = epoll_ctl,
    .shutdown = shutdown,
    .close = close,
    .malloc = malloc,
    .clock_gettime = clock_gettime,
};

ssize_t
twi_sys_recv(int fd, void *buf, size_t cap)
{
    for (;;) {
        ssize_t n = twi_sys.recv(fd, buf, cap, MSG_DONTWAIT);
        if (n >= 0)
            return n;
        if (errno == EAGAIN || errno == EWOULDBLOCK)
            return TWI_AGAIN;
        if (errno != EINTR)
            return -errno;
    }
}

ssize_t
twi_sys_writev(int fd, const struct iovec *iov, int n)
{
    /* writev would raise SIGPIPE; its socket form can be told not to. */
    struct msghdr msg = {.msg_iov = (struct iovec *)iov,
                         .msg_iovlen = (size_t)n};
    for (;;) {
        ssize_t sent = twi_sys.sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0)
            return sent;
        if (errno == EAGAIN || errno == EWOULDBLOCK)
            return TWI_AGAIN;
        if (errno != EINTR)
            return -errno;
    }
}

int
twi_sys_accept(int fd, struct sockaddr_storage *peer, socklen_t *len)
{
    for (;;) {
        *len = sizeof *peer;
        int conn = twi_sys.accept4(fd, (struct sockaddr *)peer, len,
                                   SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (conn >= 0)
            return conn;
        if (errno == EAGAIN || errno == EWOULDBLOCK)
            return TWI_AGAIN;
        /* accept(2): a connection that died in the queue is no error of the
         * listener's; neither are the network errors Linux passes on. */
        switch (errno) {
        case EINTR:
        case ECONNABORTED:
        case EPROTO:
        case ENETDOWN:
        case ENOPROTOOPT:
        case EHOSTDOWN:
        case ENONET:
        case EHOSTUNREACH:
        case ENETUNREACH:
            continue;
        default:
            return -errno;
        }
    }
}

int
twi_sys_connect(int fd, const struct sockaddr *to, socklen_t len)
{
    if (twi_sys.connect(fd, to, len) == 0)
        return 0;
    /* EINTR leaves the attempt under way, as EINPROGRESS does.  A unix
     * socket's EAGAIN means a full backlog: that attempt is over. */
    if (errno == EINPROGRESS || errno == EINTR)
        return TWI_AGAIN;
    return errno == EAGAIN ? -ECONNREFUSED : -errno;
}

int
twi_sys_epoll_wait(int fd, struct epoll_event *events, int max, int timeout_ms)
{
    int n = twi_sys.epoll_wait(fd, events, max, timeout_ms);
    return n < 0 ? -errno : n;
}

int
twi_sys_epoll_ctl(int ep, int op, int fd, uint32_t events, uint64_t data)
{
    struct epoll_event event = {.events = events, .data.u64 = data};
    return twi_sys.epoll_ctl(ep, op, fd, &event) ? -errno : 0;
}

int
twi_sys_shutdown_write(int fd)
{
    return twi_sys.shutdown(fd, SHUT_WR) ? -errno : 0;
}

void
twi_sys_close(int fd)
{
    int saved = errno;
    twi_sys.close(fd);
    errno = saved;
}

int64_t
twi_now_ns(void)
{
    struct timespec t;
    twi_sys.clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

int64_t
twi_deadline_ns(int64_t now_ns, int64_t timeout_ns)
{
    if (timeout_ns < 0 || timeout_ns > INT64_MAX - now_ns)
        return INT64_MAX;
    return now_ns + timeout_ns;
}

void *
twi_malloc(size_t n)
{
    return twi_sys.malloc(n);
}

void *
twi_zalloc(size_t n)
{
    void *p = twi_sys.malloc(n);
    return p ? memset(p, 0, n) : NULL;
}

int
twi_futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t timeout_ns)
{
    struct timespec t = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    if (syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected,
                timeout_ns < 0 ? NULL : &t, NULL, 0) == 0)
        return 0;
    return errno == EAGAIN ? 0 : -errno;
}

void
twi_futex_wake(_Atomic uint32_t *word, int n)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}
