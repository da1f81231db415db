#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "atomics.h"

/* The C library has no such function. */
static int
futex(_Atomic uint32_t *word, int op, uint32_t value,
      const struct timespec *timeout)
{
    return (int)syscall(SYS_futex, word, op, value, timeout, NULL, 0);
}

struct twi_sys twi_sys = {
    .recv = recv,
    .sendmsg = sendmsg,
    .accept4 = accept4,
    .connect = connect,
    .socket = socket,
    .bind = bind,
    .listen = listen,
    .setsockopt = setsockopt,
    .getsockopt = getsockopt,
    .getsockname = getsockname,
    .getpeername = getpeername,
    .shutdown = shutdown,
    .epoll_create1 = epoll_create1,
    .epoll_wait = epoll_wait,
    .epoll_ctl = epoll_ctl,
    .eventfd = eventfd,
    .timerfd_create = timerfd_create,
    .timerfd_settime = timerfd_settime,
    .poll = poll,
    .open = open,
    .read = read,
    .write = write,
    .close = close,
    .kill = kill,
    .lstat = lstat,
    .unlink = unlink,
    .fstat = fstat,
    .fchmod = fchmod,
    .fchmodat = fchmodat,
    .flock = flock,
    .fcntl = fcntl,
    .getrlimit = getrlimit,
    .malloc = malloc,
    .mmap = mmap,
    .pthread_create = pthread_create,
    .clock_gettime = clock_gettime,
    .futex = futex,
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

char *
twi_strdup(const char *text)
{
    size_t n = strlen(text) + 1;
    char *copy = twi_sys.malloc(n);
    return copy ? memcpy(copy, text, n) : NULL;
}

void
twi_sys_ring(int fd)
{
    uint64_t one = 1;
    /* EAGAIN: it is readable already, which is all we want. */
    while (twi_sys.write(fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

void
twi_sys_unring(int fd)
{
    uint64_t ignored;
    while (twi_sys.read(fd, &ignored, sizeof ignored) < 0 && errno == EINTR)
        ;
}

int
twi_futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t timeout_ns)
{
    struct timespec t = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    if (twi_sys.futex(word, FUTEX_WAIT_PRIVATE, expected,
                      timeout_ns < 0 ? NULL : &t) == 0)
        return 0;
    return errno == EAGAIN ? 0 : -errno;
}

void
twi_futex_wake(_Atomic uint32_t *word, int n)
{
    twi_sys.futex(word, FUTEX_WAKE_PRIVATE, (uint32_t)n, NULL);
}
