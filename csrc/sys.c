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
    *len = sizeof *peer;
    int conn = twi_sys.accept4(fd, (struct sockaddr *)peer, len,
                               SOCK_NONBLOCK | SOCK_CLOEXEC);
    return conn < 0 ? -errno : conn;
}

/* accept(2), "Error handling": Linux passes on what has happened to the
 * connection in the queue, and that is no error of the listener's. */
static const struct {
    int code;
    enum twi_accept_class class;
} accept_errors[] = {
    {EAGAIN, TWI_ACCEPT_NONE},
#if EWOULDBLOCK != EAGAIN
    {EWOULDBLOCK, TWI_ACCEPT_NONE},
#endif
    {EINTR, TWI_ACCEPT_NOW},
    {ECONNABORTED, TWI_ACCEPT_NOW},
    {ECONNRESET, TWI_ACCEPT_NOW},
    {EPROTO, TWI_ACCEPT_NOW},
    {ENOPROTOOPT, TWI_ACCEPT_NOW},
    {ENETDOWN, TWI_ACCEPT_NOW},
    {ENETUNREACH, TWI_ACCEPT_NOW},
    {ENONET, TWI_ACCEPT_NOW},
    {EHOSTDOWN, TWI_ACCEPT_NOW},
    {EHOSTUNREACH, TWI_ACCEPT_NOW},
    {ETIMEDOUT, TWI_ACCEPT_NOW},
    /* A listener is a stream socket, so this is the protocol's answer. */
    {EOPNOTSUPP, TWI_ACCEPT_NOW},
    /* A firewall's word on one connection, or a sandbox's on all: the pause
     * is right for both. */
    {EPERM, TWI_ACCEPT_LATER},
    {EMFILE, TWI_ACCEPT_LATER},
    {ENFILE, TWI_ACCEPT_LATER},
    {ENOBUFS, TWI_ACCEPT_LATER},
    {ENOMEM, TWI_ACCEPT_LATER},
    {ENOSR, TWI_ACCEPT_LATER},
    {EBADF, TWI_ACCEPT_FATAL},
    {EFAULT, TWI_ACCEPT_FATAL},
    {EINVAL, TWI_ACCEPT_FATAL},
    {ENOTSOCK, TWI_ACCEPT_FATAL},
    {ENOSYS, TWI_ACCEPT_FATAL},
};

enum twi_accept_class
twi_sys_accept_class(int code)
{
    for (size_t i = 0; i < sizeof accept_errors / sizeof *accept_errors; i++)
        if (accept_errors[i].code == code)
            return accept_errors[i].class;
    return TWI_ACCEPT_FATAL;
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
