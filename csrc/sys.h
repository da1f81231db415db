/* The system-call table: every call into the kernel that can fail, and every
 * decision about EINTR and EAGAIN.  Tests replace entries of twi_sys. */
#ifndef TWI_SYS_H
#define TWI_SYS_H

#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

struct twi_sys {
    ssize_t (*recv)(int, void *, size_t, int);
    ssize_t (*sendmsg)(int, const struct msghdr *, int);
    int (*accept4)(int, struct sockaddr *, socklen_t *, int);
    int (*connect)(int, const struct sockaddr *, socklen_t);
    int (*socket)(int, int, int);
    int (*bind)(int, const struct sockaddr *, socklen_t);
    int (*listen)(int, int);
    int (*setsockopt)(int, int, int, const void *, socklen_t);
    int (*getsockopt)(int, int, int, void *, socklen_t *);
    int (*getsockname)(int, struct sockaddr *, socklen_t *);
    int (*getpeername)(int, struct sockaddr *, socklen_t *);
    int (*shutdown)(int, int);
    int (*epoll_create1)(int);
    int (*epoll_wait)(int, struct epoll_event *, int, int);
    int (*epoll_ctl)(int, int, int, struct epoll_event *);
    int (*eventfd)(unsigned, int);
    int (*timerfd_create)(clockid_t, int);
    int (*timerfd_settime)(int, int, const struct itimerspec *,
                           struct itimerspec *);
    int (*poll)(struct pollfd *, nfds_t, int);
    int (*open)(const char *, int, ...);
    ssize_t (*read)(int, void *, size_t);
    ssize_t (*write)(int, const void *, size_t);
    int (*close)(int);
    int (*kill)(pid_t, int);
    int (*lstat)(const char *, struct stat *);
    int (*unlink)(const char *);
    int (*fstat)(int, struct stat *);
    int (*fchmod)(int, mode_t);
    int (*fchmodat)(int, const char *, mode_t, int);
    int (*flock)(int, int);
    int (*fcntl)(int, int, ...);
    int (*getrlimit)(__rlimit_resource_t, struct rlimit *);
    void *(*malloc)(size_t);
    void *(*mmap)(void *, size_t, int, int, int, off_t);
    int (*pthread_create)(pthread_t *, const pthread_attr_t *,
                          void *(*)(void *), void *);
    int (*clock_gettime)(clockid_t, struct timespec *);
    int (*futex)(_Atomic uint32_t *, int, uint32_t, const struct timespec *);
};

extern struct twi_sys twi_sys;

/* What an attempt at I/O came to: so many bytes (> 0, or 0 at the end of the
 * stream), TWI_AGAIN, or a negative errno. */
enum { TWI_AGAIN = INT32_MIN };

/* Retry EINTR; never block. */
ssize_t twi_sys_recv(int fd, void *buf, size_t cap);
ssize_t twi_sys_writev(int fd, const struct iovec *iov, int n);
/* One attempt: a non-blocking, close-on-exec descriptor or a negative errno,
 * whose class says what to do. */
int twi_sys_accept(int fd, struct sockaddr_storage *peer, socklen_t *len);

/* What an error of accept means for the listener. */
enum twi_accept_class {
    TWI_ACCEPT_NONE,  /* nobody waits: until the next event */
    TWI_ACCEPT_NOW,   /* that connection is lost, try the next one */
    TWI_ACCEPT_LATER, /* something has run out: pause */
    TWI_ACCEPT_FATAL  /* the listener is of no use any more */
};
/* code: positive.  Codes nobody has heard of are fatal. */
enum twi_accept_class twi_sys_accept_class(int code);
/* 0: connected, TWI_AGAIN: in progress, or a negative errno. */
int twi_sys_connect(int fd, const struct sockaddr *to, socklen_t len);
/* Events, or -EINTR.  timeout_ms < 0: for ever.  Blocks. */
int twi_sys_epoll_wait(int fd, struct epoll_event *events, int max,
                       int timeout_ms);
/* 0 or a negative errno. */
int twi_sys_epoll_ctl(int ep, int op, int fd, uint32_t events, uint64_t data);
/* Ends the stream that we write; 0 or a negative errno. */
int twi_sys_shutdown_write(int fd);
/* Never retried: on Linux the descriptor is gone whatever close says. */
void twi_sys_close(int fd);
int64_t twi_now_ns(void);
/* So much later, at most the end of time; timeout_ns < 0: the end of time. */
int64_t twi_deadline_ns(int64_t now_ns, int64_t timeout_ns);
/* NULL when there is no memory.  twi_zalloc's is zeroed. */
void *twi_malloc(size_t n);
void *twi_zalloc(size_t n);
char *twi_strdup(const char *text);

/* An eventfd becomes readable / any counting descriptor, a timerfd too, is so
 * no more. */
void twi_sys_ring(int fd);
void twi_sys_unring(int fd);

/* Sleeps while *word is `expected`: 0 (woken or it differs), -ETIMEDOUT or
 * -EINTR.  timeout_ns < 0: for ever.  May wake for nothing.  Blocks. */
int twi_futex_wait(_Atomic uint32_t *word, uint32_t expected,
                   int64_t timeout_ns);
void twi_futex_wake(_Atomic uint32_t *word, int n);

#endif
