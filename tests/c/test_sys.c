/* The system-call table: what EINTR, EAGAIN and errors become. */
#include "sys.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "atomics.h"
#include "check.h"

/* What the replaced call says, in order: so often EINTR, then this. */
static int interrupts, result, error, called;

static int
next(void)
{
    called++;
    if (interrupts-- > 0) {
        errno = EINTR;
        return -1;
    }
    errno = error;
    return error ? -1 : result;
}

static ssize_t
our_recv(int fd, void *buf, size_t n, int flags)
{
    (void)fd, (void)buf, (void)n;
    CHECK(flags & MSG_DONTWAIT);
    return next();
}

static ssize_t
our_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    (void)fd;
    CHECK(flags & MSG_DONTWAIT);
    CHECK(flags & MSG_NOSIGNAL);
    CHECK_EQ(msg->msg_iovlen, 2);
    return next();
}

static int
our_accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
    (void)fd, (void)addr;
    CHECK_EQ(flags, SOCK_NONBLOCK | SOCK_CLOEXEC);
    CHECK_EQ(*len, sizeof(struct sockaddr_storage));
    return next();
}

static int
our_connect(int fd, const struct sockaddr *addr, socklen_t len)
{
    (void)fd, (void)addr, (void)len;
    return next();
}

static int
our_epoll_wait(int fd, struct epoll_event *events, int max, int timeout)
{
    (void)fd, (void)events, (void)max, (void)timeout;
    return next();
}

static int
our_close(int fd)
{
    (void)fd;
    called++;
    errno = EINTR;
    return -1;
}

static void
prepare(int n, int code, int value)
{
    interrupts = n;
    error = code;
    result = value;
    called = 0;
}

static void
test_io(void)
{
    struct iovec iov[2] = {{"a", 1}, {"b", 1}};
    char buf[4];
    twi_sys.recv = our_recv;
    twi_sys.sendmsg = our_sendmsg;
    static const struct {
        int error, result;
        ssize_t answer;
    } table[] = {{0, 3, 3},
                 {0, 0, 0},
                 {EAGAIN, 0, TWI_AGAIN},
                 {ECONNRESET, 0, -ECONNRESET},
                 {EPIPE, 0, -EPIPE}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        for (int n = 0; n < 1000; n += 333) {
            prepare(n, table[i].error, table[i].result);
            CHECK_EQ(twi_sys_recv(0, buf, 4), table[i].answer);
            CHECK_EQ(called, n + 1);
            prepare(n, table[i].error, table[i].result);
            CHECK_EQ(twi_sys_writev(0, iov, 2), table[i].answer);
            CHECK_EQ(called, n + 1);
        }
}

static void
test_others(void)
{
    struct sockaddr_storage any;
    struct epoll_event event;
    socklen_t len;
    twi_sys.accept4 = our_accept4;
    twi_sys.connect = our_connect;
    twi_sys.epoll_wait = our_epoll_wait;
    twi_sys.close = our_close;
    prepare(0, 0, 5);
    CHECK_EQ(twi_sys_accept(0, &any, &len), 5);
    prepare(0, EAGAIN, 0);
    CHECK_EQ(twi_sys_accept(0, &any, &len), -EAGAIN);
    prepare(0, EMFILE, 0);
    CHECK_EQ(twi_sys_accept(0, &any, &len), -EMFILE);
    CHECK_EQ(called, 1);

    prepare(0, 0, 0);
    CHECK_EQ(twi_sys_connect(0, NULL, 0), 0);
    prepare(1, 0, 0); /* EINTR: under way, and must not be asked again */
    CHECK_EQ(twi_sys_connect(0, NULL, 0), TWI_AGAIN);
    CHECK_EQ(called, 1);
    prepare(0, EINPROGRESS, 0);
    CHECK_EQ(twi_sys_connect(0, NULL, 0), TWI_AGAIN);
    prepare(0, EAGAIN, 0); /* a unix socket's full backlog */
    CHECK_EQ(twi_sys_connect(0, NULL, 0), -ECONNREFUSED);
    prepare(0, EACCES, 0);
    CHECK_EQ(twi_sys_connect(0, NULL, 0), -EACCES);

    prepare(1, 0, 0); /* passed on: signals have handlers to run */
    CHECK_EQ(twi_sys_epoll_wait(0, &event, 1, 0), -EINTR);
    prepare(0, 0, 7);
    CHECK_EQ(twi_sys_epoll_wait(0, &event, 1, 0), 7);

    prepare(0, 0, 0); /* never again, and errno stays */
    errno = EXDEV;
    twi_sys_close(99);
    CHECK_EQ(called, 1);
    CHECK_EQ(errno, EXDEV);
}

static ssize_t
our_read(int fd, void *buf, size_t n)
{
    (void)fd, (void)buf;
    CHECK_EQ(n, 8);
    return next();
}

static ssize_t
our_write(int fd, const void *buf, size_t n)
{
    (void)fd;
    CHECK_EQ(n, 8);
    CHECK_EQ(*(const uint64_t *)buf, 1);
    return next();
}

static void
test_bells(void)
{
    twi_sys.read = our_read;
    twi_sys.write = our_write;
    prepare(7, 0, 8);
    twi_sys_ring(0);
    CHECK_EQ(called, 8);
    prepare(7, 0, 8);
    twi_sys_unring(0);
    CHECK_EQ(called, 8);
    prepare(0, EAGAIN, 0); /* rung already, or not at all: as wanted */
    twi_sys_ring(0);
    CHECK_EQ(called, 1);
    twi_sys_unring(0);
    CHECK_EQ(called, 2);
}

/* R4: every errno that accept(2) names has its class, and so has the rest. */
static void
test_accept_classes(void)
{
    static const int none[] = {EAGAIN, EWOULDBLOCK},
                     now[] = {EINTR,     ECONNABORTED, EPROTO,
                              ENETDOWN,  ENOPROTOOPT,  EHOSTDOWN,
                              ENONET,    EHOSTUNREACH, EOPNOTSUPP,
                              ENETUNREACH, ECONNRESET, ETIMEDOUT},
                     later[] = {EMFILE, ENFILE, ENOBUFS, ENOMEM, EPERM, ENOSR},
                     fatal[] = {EBADF, EFAULT, EINVAL, ENOTSOCK, ENOSYS,
                                EISDIR, 4095};
#define CLASS(list, class)                                                     \
    for (size_t i = 0; i < sizeof(list) / sizeof *(list); i++)                 \
    CHECK_EQ(twi_sys_accept_class((list)[i]), class)
    CLASS(none, TWI_ACCEPT_NONE);
    CLASS(now, TWI_ACCEPT_NOW);
    CLASS(later, TWI_ACCEPT_LATER);
    CLASS(fatal, TWI_ACCEPT_FATAL);
}

static void *
no_malloc(size_t n)
{
    (void)n;
    return NULL;
}

static _Atomic uint32_t word;

static void *
wake_later(void *unused)
{
    (void)unused;
    atomic_store(&word, 1);
    twi_futex_wake(&word, 1);
    return NULL;
}

static void
on_signal(int number)
{
    (void)number;
}

static _Atomic int interrupted;

static void *
wait_interrupted(void *unused)
{
    (void)unused;
    atomic_store(&interrupted, twi_futex_wait(&word, 1, -1));
    return NULL;
}

static void
test_futex(void)
{
    pthread_t thread;
    int64_t began = twi_now_ns();
    CHECK_EQ(twi_futex_wait(&word, 1, -1), 0); /* it differs */
    CHECK_EQ(twi_futex_wait(&word, 0, 3000000), -ETIMEDOUT);
    CHECK(twi_now_ns() - began >= 3000000);
    CHECK_EQ(twi_futex_wait(&word, 0, 0), -ETIMEDOUT);
    if (pthread_create(&thread, NULL, wake_later, NULL))
        abort();
    while (!load_acquire(&word))
        CHECK_EQ(twi_futex_wait(&word, 0, -1), 0);
    pthread_join(thread, NULL);
    /* A signal ends the wait. */
    struct sigaction action = {.sa_handler = on_signal};
    struct timespec moment = {0, 1000000};
    sigaction(SIGUSR1, &action, NULL);
    if (pthread_create(&thread, NULL, wait_interrupted, NULL))
        abort();
    for (int i = 0; i < 20000 && !atomic_load(&interrupted); i++) {
        pthread_kill(thread, SIGUSR1);
        nanosleep(&moment, NULL);
    }
    CHECK_EQ(atomic_load(&interrupted), -EINTR);
    pthread_join(thread, NULL);
}

int
main(void)
{
    test_io();
    test_others();
    test_accept_classes();
    test_futex();
    test_bells();
    char *text = twi_strdup("text");
    CHECK(text && !strcmp(text, "text"));
    free(text);
    unsigned char *zeroed = twi_zalloc(100);
    CHECK(zeroed && !zeroed[0] && !memcmp(zeroed, zeroed + 1, 99));
    free(zeroed);
    twi_sys.malloc = no_malloc;
    CHECK(!twi_malloc(1));
    CHECK(!twi_zalloc(1));
    CHECK(!twi_strdup(""));
    return check_done();
}
