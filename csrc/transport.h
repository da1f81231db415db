/* How bytes travel over a connection: plainly, or some day through TLS.
 *
 * A transport is a table over a socket that has a descriptor.  handshake, read
 * and close are the baton's holder's, writev the write role's; results are as
 * in sys.h: a count, 0 at the end of the stream, TWI_AGAIN or a negative
 * errno.  None blocks. */
#ifndef TWI_TRANSPORT_H
#define TWI_TRANSPORT_H

#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>

struct twi_socket;

struct twi_transport {
    /* Called once the descriptor is connected, and at each event from then on
     * until it is done (0) or fails (a negative errno); TWI_AGAIN: not yet. */
    int (*handshake)(struct twi_socket *sock);
    ssize_t (*read)(struct twi_socket *sock, void *buf, size_t cap);
    ssize_t (*writev)(struct twi_socket *sock, const struct iovec *iov, int n);
    /* Frees what the transport holds and closes the descriptor. */
    void (*close)(struct twi_socket *sock, int fd);
};

extern const struct twi_transport twi_transport_plain;

#endif
