#include "transport.h"

#include "atomics.h"
#include "socket.h"
#include "sys.h"

static int
plain_handshake(struct twi_socket *sock)
{
    (void)sock;
    return 0;
}

static ssize_t
plain_read(struct twi_socket *sock, void *buf, size_t cap)
{
    /* relaxed: the baton's holder attached it, or took it over since. */
    return twi_sys_recv(load_relaxed(&sock->fd), buf, cap);
}

static ssize_t
plain_writev(struct twi_socket *sock, const struct iovec *iov, int n)
{
    /* relaxed: published before `connected`, which the writer has seen. */
    return twi_sys_writev(load_relaxed(&sock->fd), iov, n);
}

static void
plain_close(struct twi_socket *sock, int fd)
{
    (void)sock;
    twi_sys_close(fd);
}

const struct twi_transport twi_transport_plain = {
    .handshake = plain_handshake,
    .read = plain_read,
    .writev = plain_writev,
    .close = plain_close,
};
