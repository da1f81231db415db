/* Faults planted in the system-call table, for tests of the whole core.
 *
 * Everything is off unless a case turns it on, but for the storm that TW_FAULT
 * in the environment names, which blows through the whole program (C6):
 *
 *   short  recv and sendmsg move one byte; on a descriptor that has seen
 *          SHORT_ONES of them, SHORT_MORE at most, so that large messages end
 *   again  every other recv, sendmsg and accept4 says EAGAIN
 *   intr   every other call that may be interrupted says EINTR
 *
 * The table is filled in once, before the core opens, since its threads read
 * it without a lock.  A test's own raw sockets do not use it. */
#ifndef FAULTS_H
#define FAULTS_H

#include <errno.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "sys.h"

enum { SHORT_ONES = 512, SHORT_MORE = 1021 };

/* The table's entries that can be told to fail, by name. */
#define FAULTY_CALLS(X)                                                        \
    X(recv) X(sendmsg) X(accept4) X(connect) X(socket) X(bind) X(listen)       \
    X(setsockopt) X(getsockopt) X(getsockname) X(getpeername) X(shutdown)      \
    X(epoll_create1) X(epoll_wait) X(epoll_ctl) X(eventfd) X(timerfd_create)   \
    X(timerfd_settime) X(poll) X(open) X(read) X(write) X(lstat) X(unlink)     \
    X(mmap) X(pthread_create) X(clock_gettime) X(futex)

enum faulty_call {
#define FAULTY_ENUM(name) CALL_##name,
    FAULTY_CALLS(FAULTY_ENUM)
#undef FAULTY_ENUM
    FAULTY_CALLS_N
};

enum storm { NO_STORM, STORM_SHORT, STORM_AGAIN, STORM_INTR };

static struct {
    _Atomic int recv_one;      /* recv gives one byte at a time */
    _Atomic int send_one;      /* sendmsg takes one byte at a time */
    _Atomic int again_percent; /* EAGAIN instead of doing anything */
    _Atomic int intr_percent;  /* EINTR instead */
    _Atomic int accept_errors; /* so many accepts fail ... */
    _Atomic int accept_errno;  /* ... with this */
    _Atomic int epoll_errors;  /* so many epoll_ctl fail with ENOSPC */
    _Atomic long mallocs;      /* asked for so far */
    _Atomic long malloc_from, malloc_until; /* these fail, by that number */
    /* So many of the next calls of a name fail with this. */
    _Atomic int fail_next[FAULTY_CALLS_N], fail_errno[FAULTY_CALLS_N];
    /* How far the clocks jumped: CLOCK_MONOTONIC, and the wall's. */
    _Atomic int64_t ahead_ns, wall_ahead_ns;
    _Atomic long wall_asked; /* how often the core looked at the wall's */
    _Atomic unsigned long long dice;
    int may_jump; /* set before the core opens */
    enum storm storm;
    _Atomic long gusts; /* calls that the storm hit */
} fault;

/* Of the next calls of a name so many fail. */
#define FAIL_NEXT(name, n, code)                                               \
    (atomic_store(&fault.fail_errno[CALL_##name], (code)),                     \
     atomic_store(&fault.fail_next[CALL_##name], (n)))

static inline int
unlucky(int percent)
{
    if (!percent)
        return 0;
    unsigned long long d = atomic_fetch_add_explicit(
        &fault.dice, 0x9e3779b97f4a7c15u, memory_order_relaxed);
    d ^= d >> 31;
    d *= 0xbf58476d1ce4e5b9u;
    d ^= d >> 29;
    return (int)(d % 100) < percent;
}

/* 1, and errno is set, when this call is one that was told to fail. */
static inline int
told_to_fail(enum faulty_call which)
{
    if (atomic_load(&fault.fail_next[which]) <= 0 ||
        atomic_fetch_sub(&fault.fail_next[which], 1) <= 0)
        return 0;
    errno = atomic_load(&fault.fail_errno[which]);
    return 1;
}

/* 1 for every other call of a name in a thread, while the storm blows: who
 * tries again gets through. */
static inline int
blown(enum storm storm, enum faulty_call which)
{
    static _Thread_local unsigned char turn[FAULTY_CALLS_N];
    if (fault.storm != storm || !(turn[which] ^= 1))
        return 0;
    atomic_fetch_add(&fault.gusts, 1);
    return 1;
}

static inline int
interrupted_call(enum faulty_call which)
{
    if (!unlucky(atomic_load(&fault.intr_percent)) &&
        !blown(STORM_INTR, which))
        return 0;
    errno = EINTR;
    return 1;
}

/* What epoll was told about each descriptor: a recv that pretends that there
 * is nothing (more) has to make a new edge, as the kernel would for bytes that
 * come later. */
enum { FDS = 4096 };
static struct {
    _Atomic int ep;
    _Atomic uint32_t events;
    _Atomic uint64_t data;
    _Atomic uint32_t recvs, sends; /* short ones */
} watched[FDS];

static inline void
new_edge(int fd)
{
    if (fd < 0 || fd >= FDS)
        return;
    struct epoll_event event = {.events = atomic_load(&watched[fd].events),
                                .data.u64 = atomic_load(&watched[fd].data)};
    int saved = errno;
    /* A writer may ask for EPOLLOUT at this moment: not to take that away. */
    if (event.events & EPOLLRDHUP)
        event.events |= EPOLLOUT;
    int ep = atomic_load(&watched[fd].ep);
    /* The kernel modifies no exclusive watch; taken up anew it looks, too. */
    if (event.events & EPOLLEXCLUSIVE) {
        epoll_ctl(ep, EPOLL_CTL_DEL, fd, NULL);
        epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event);
    } else if (event.events)
        epoll_ctl(ep, EPOLL_CTL_MOD, fd, &event);
    errno = saved;
}

/* How much a short call may move. */
static inline size_t
short_size(_Atomic uint32_t *calls, int one)
{
    if (one)
        return 1;
    if (fault.storm != STORM_SHORT)
        return SIZE_MAX;
    atomic_fetch_add(&fault.gusts, 1);
    return atomic_fetch_add(calls, 1) < SHORT_ONES ? 1 : SHORT_MORE;
}

static inline int
faulty_epoll_ctl(int ep, int op, int fd, struct epoll_event *event)
{
    if (told_to_fail(CALL_epoll_ctl))
        return -1;
    if (op != EPOLL_CTL_DEL && atomic_load(&fault.epoll_errors) > 0 &&
        atomic_fetch_sub(&fault.epoll_errors, 1) > 0) {
        errno = ENOSPC;
        return -1;
    }
    if (fd >= 0 && fd < FDS) {
        if (op == EPOLL_CTL_ADD) {
            atomic_store(&watched[fd].ep, ep);
            atomic_store(&watched[fd].recvs, 0);
            atomic_store(&watched[fd].sends, 0);
        }
        atomic_store(&watched[fd].data, event->data.u64);
        atomic_store(&watched[fd].events,
                     op == EPOLL_CTL_DEL ? 0 : event->events);
    }
    return epoll_ctl(ep, op, fd, event);
}

static inline ssize_t
faulty_recv(int fd, void *buf, size_t cap, int flags)
{
    if (told_to_fail(CALL_recv) || interrupted_call(CALL_recv))
        return -1;
    if (unlucky(atomic_load(&fault.again_percent)) ||
        blown(STORM_AGAIN, CALL_recv)) {
        new_edge(fd);
        errno = EAGAIN;
        return -1;
    }
    size_t most = short_size(&watched[fd % FDS].recvs,
                             atomic_load(&fault.recv_one));
    ssize_t n = recv(fd, buf, cap < most ? cap : most, flags);
    if (n > 0 && (size_t)n == most)
        new_edge(fd);
    return n;
}

static inline ssize_t
faulty_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    if (told_to_fail(CALL_sendmsg) || interrupted_call(CALL_sendmsg))
        return -1;
    if (unlucky(atomic_load(&fault.again_percent)) ||
        blown(STORM_AGAIN, CALL_sendmsg)) {
        errno = EAGAIN; /* the core re-arms, which makes a new edge */
        return -1;
    }
    size_t most = short_size(&watched[fd % FDS].sends,
                             atomic_load(&fault.send_one));
    if (most == SIZE_MAX)
        return sendmsg(fd, msg, flags);
    struct iovec one = msg->msg_iov[0];
    struct msghdr short_msg = {.msg_iov = &one, .msg_iovlen = 1};
    if (one.iov_len > most)
        one.iov_len = most;
    return sendmsg(fd, &short_msg, flags);
}

static inline int
faulty_accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
    if (told_to_fail(CALL_accept4) || interrupted_call(CALL_accept4))
        return -1;
    if (atomic_load(&fault.accept_errors) > 0 &&
        atomic_fetch_sub(&fault.accept_errors, 1) > 0) {
        errno = atomic_load(&fault.accept_errno);
        return -1;
    }
    if (blown(STORM_AGAIN, CALL_accept4)) {
        new_edge(fd);
        errno = EAGAIN;
        return -1;
    }
    return accept4(fd, addr, len, flags);
}

/* An interrupted connect goes on in the kernel. */
static inline int
faulty_connect(int fd, const struct sockaddr *to, socklen_t len)
{
    if (told_to_fail(CALL_connect))
        return -1;
    int rc = connect(fd, to, len);
    if ((!rc || errno == EINPROGRESS) && interrupted_call(CALL_connect))
        return -1;
    return rc;
}

static inline int
faulty_epoll_wait(int ep, struct epoll_event *events, int max, int timeout)
{
    if (told_to_fail(CALL_epoll_wait) || interrupted_call(CALL_epoll_wait))
        return -1;
    return epoll_wait(ep, events, max, timeout);
}

static inline int
faulty_poll(struct pollfd *set, nfds_t n, int timeout)
{
    if (told_to_fail(CALL_poll) || interrupted_call(CALL_poll))
        return -1;
    return poll(set, n, timeout);
}

static inline ssize_t
faulty_read(int fd, void *buf, size_t n)
{
    if (told_to_fail(CALL_read) || interrupted_call(CALL_read))
        return -1;
    return read(fd, buf, n);
}

static inline ssize_t
faulty_write(int fd, const void *buf, size_t n)
{
    if (told_to_fail(CALL_write) || interrupted_call(CALL_write))
        return -1;
    return write(fd, buf, n);
}

static inline int
faulty_open(const char *path, int flags, ...)
{
    if (told_to_fail(CALL_open) || interrupted_call(CALL_open))
        return -1;
    return open(path, flags); /* the core creates no file */
}

/* The kernel's clock does not jump with the table's: a wait that may outlast a
 * jump looks at the table's clock now and then. */
static inline int
futex_by_table(_Atomic uint32_t *word, int op, uint32_t value,
               const struct timespec *timeout)
{
    int64_t until = twi_now_ns() + timeout->tv_sec * INT64_C(1000000000) +
                    timeout->tv_nsec;
    for (;;) {
        int64_t left = until - twi_now_ns(), most = INT64_C(20000000);
        if (left <= 0) {
            errno = ETIMEDOUT;
            return -1;
        }
        struct timespec slice = {0, left < most ? left : most};
        int rc = (int)syscall(SYS_futex, word, op, value, &slice, NULL, 0);
        if (rc == 0 || errno != ETIMEDOUT)
            return rc;
    }
}

static inline int
faulty_futex(_Atomic uint32_t *word, int op, uint32_t value,
             const struct timespec *timeout)
{
    if (op == FUTEX_WAIT_PRIVATE &&
        (told_to_fail(CALL_futex) || interrupted_call(CALL_futex)))
        return -1;
    if (op == FUTEX_WAIT_PRIVATE && timeout && fault.may_jump)
        return futex_by_table(word, op, value, timeout);
    return (int)syscall(SYS_futex, word, op, value, timeout, NULL, 0);
}

static inline void *
faulty_malloc(size_t n)
{
    long number = atomic_fetch_add(&fault.mallocs, 1);
    if (number >= atomic_load(&fault.malloc_from) &&
        number < atomic_load(&fault.malloc_until))
        return NULL;
    return malloc(n);
}

static inline void *
faulty_mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset)
{
    if (told_to_fail(CALL_mmap))
        return MAP_FAILED;
    return mmap(at, n, prot, flags, fd, offset);
}

static inline int
faulty_pthread_create(pthread_t *thread, const pthread_attr_t *attr,
                      void *(*body)(void *), void *arg)
{
    if (told_to_fail(CALL_pthread_create))
        return errno;
    return pthread_create(thread, attr, body, arg);
}

/* ------------------------------------------------------------------ clocks */

static inline struct timespec
shifted(struct timespec t, int64_t ns)
{
    int64_t sum = t.tv_sec * INT64_C(1000000000) + t.tv_nsec + ns;
    return (struct timespec){sum / 1000000000, sum % 1000000000};
}

static inline int
faulty_clock_gettime(clockid_t clock, struct timespec *t)
{
    /* The monotonic clock cannot fail; a thread's own goes with it. */
    if (clock != CLOCK_MONOTONIC && told_to_fail(CALL_clock_gettime))
        return -1;
    int rc = clock_gettime(clock, t);
    if (clock == CLOCK_MONOTONIC)
        *t = shifted(*t, atomic_load(&fault.ahead_ns));
    else if (clock == CLOCK_REALTIME) {
        *t = shifted(*t, atomic_load(&fault.wall_ahead_ns));
        atomic_fetch_add(&fault.wall_asked, 1);
    }
    return rc;
}

/* The kernel's clock does not jump with the table's: deadlines are put where
 * the jump has brought them, and those that were set are set again. */
static pthread_mutex_t timerfd_lock = PTHREAD_MUTEX_INITIALIZER;
static struct itimerspec timerfd_spec;
static int timerfd_set = -1;

static inline int
timerfd_set_shifted(void)
{
    struct itimerspec spec = timerfd_spec;
    int64_t ahead = atomic_load(&fault.ahead_ns);
    if (ahead && (spec.it_value.tv_sec || spec.it_value.tv_nsec)) {
        spec.it_value = shifted(spec.it_value, -ahead);
        if (spec.it_value.tv_sec < 0 ||
            (!spec.it_value.tv_sec && spec.it_value.tv_nsec <= 0))
            spec.it_value = (struct timespec){0, 1};
    }
    return timerfd_settime(timerfd_set, TFD_TIMER_ABSTIME, &spec, NULL);
}

static inline int
faulty_timerfd_settime(int fd, int flags, const struct itimerspec *spec,
                       struct itimerspec *old)
{
    if (told_to_fail(CALL_timerfd_settime))
        return -1;
    (void)flags, (void)old; /* absolute, and never asked for */
    pthread_mutex_lock(&timerfd_lock);
    timerfd_set = fd;
    timerfd_spec = *spec;
    int rc = timerfd_set_shifted();
    pthread_mutex_unlock(&timerfd_lock);
    return rc;
}

static inline void
jump_clock(int64_t ns)
{
    pthread_mutex_lock(&timerfd_lock);
    atomic_fetch_add(&fault.ahead_ns, ns);
    if (timerfd_set >= 0)
        timerfd_set_shifted();
    pthread_mutex_unlock(&timerfd_lock);
}

/* ---------------------------------------------------------- the plain ones */

#define PLAIN_FAULT(name, parameters, arguments)                               \
    static inline int faulty_##name parameters                                 \
    {                                                                          \
        return told_to_fail(CALL_##name) ? -1 : name arguments;                \
    }

PLAIN_FAULT(socket, (int family, int type, int proto), (family, type, proto))
PLAIN_FAULT(bind, (int fd, const struct sockaddr *to, socklen_t n), (fd, to, n))
PLAIN_FAULT(listen, (int fd, int backlog), (fd, backlog))
PLAIN_FAULT(setsockopt, (int fd, int level, int o, const void *v, socklen_t n),
            (fd, level, o, v, n))
PLAIN_FAULT(getsockopt, (int fd, int level, int o, void *v, socklen_t *n),
            (fd, level, o, v, n))
PLAIN_FAULT(getsockname, (int fd, struct sockaddr *a, socklen_t *n), (fd, a, n))
PLAIN_FAULT(getpeername, (int fd, struct sockaddr *a, socklen_t *n), (fd, a, n))
PLAIN_FAULT(shutdown, (int fd, int how), (fd, how))
PLAIN_FAULT(epoll_create1, (int flags), (flags))
PLAIN_FAULT(eventfd, (unsigned value, int flags), (value, flags))
PLAIN_FAULT(timerfd_create, (clockid_t clock, int flags), (clock, flags))
PLAIN_FAULT(lstat, (const char *path, struct stat *st), (path, st))
PLAIN_FAULT(unlink, (const char *path), (path))

static inline void
plant_faults(unsigned long long seed)
{
    const char *storm = getenv("TW_FAULT");
    atomic_store(&fault.dice, seed);
    if (storm && *storm)
        fault.storm = !strcmp(storm, "short")   ? STORM_SHORT
                      : !strcmp(storm, "again") ? STORM_AGAIN
                      : !strcmp(storm, "intr")  ? STORM_INTR
                                                : (abort(), NO_STORM);
#define PLANT(name) twi_sys.name = faulty_##name;
    FAULTY_CALLS(PLANT)
#undef PLANT
    twi_sys.malloc = faulty_malloc;
}

/* Between two cases: all but the storm is over. */
static inline void
calm_faults(void)
{
    atomic_store(&fault.recv_one, 0);
    atomic_store(&fault.send_one, 0);
    atomic_store(&fault.again_percent, 0);
    atomic_store(&fault.intr_percent, 0);
    atomic_store(&fault.accept_errors, 0);
    atomic_store(&fault.epoll_errors, 0);
    atomic_store(&fault.malloc_until, 0);
    for (int i = 0; i < FAULTY_CALLS_N; i++)
        atomic_store(&fault.fail_next[i], 0);
}

#endif
