/* The system-call table: every call into the kernel that can fail, and every
 * decision about EINTR and EAGAIN.  Tests replace entries of twi_sys. */
#ifndef TWI_SYS_H
#define TWI_SYS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

struct twi_sys {
    ssize_t (*recv)(int, void *, size_t, int);
    ssize_t (*sendmsg)(int, const struct msghdr *, int);
    int (*accept4)(int, struct sockaddr *, socklen_t *, int);
    int (*connect)(int, const struct sockaddr *, socklen_t);
    int (*epoll_wait)(int, struct epoll_event *, int, int);
    int (*epoll_ctl)(int, int, int, struct epoll_event *);
    int (*shutdown)(int, int);
    int (*close)(int);
    void *(*malloc)(size_t);
    int (*clock_gettime)(clockid_t, struct timespec *);
};

extern struct twi_sys twi_sys;

/* What an attempt at I/O came to: so many bytes (> 0, or 0 at the end of the
 * stream), TWI_AGAIN, or a negative errno. */
enum { TWI_AGAIN = INT32_MIN };

/* Retry EINTR; never block. */
ssize_t twi_sys_recv(int fd, void *buf, size_t cap);
ssize_t twi_sys_writev(int fd, const struct iovec *iov, int n);
/* A non-blocking, close-on-exec descriptor, TWI_AGAIN or a negative errno. */
int twi_sys_accept(int fd, struct sockaddr_storage *peer, socklen_t *len);
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

/* Sleeps while *word is `expected`: 0 (woken or it differs), -ETIMEDOUT or
 * -EINTR.  timeout_ns < 0: for ever.  May wake for nothing.  Blocks. */
int twi_futex_wait(_Atomic uint32_t *word, uint32_t expected,
                   int64_t timeout_ns);
void twi_futex_wake(_Atomic uint32_t *word, int n);

#endif
