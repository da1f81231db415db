/* The options of sockets, in one place for both directions.  Accepted
 * connections inherit them from their listener, so the kernel copies what a
 * system call each would set. */
#ifndef TWI_SOCKOPT_H
#define TWI_SOCKOPT_H

#include "core.h"

/* Sets what `options` ask for, on a socket that neither connects nor listens
 * yet: buffer sizes count in the window that the handshake offers.  What has
 * no meaning for a unix socket is left out.  0, or a negative errno with the
 * refused option's name (static) in *refused. */
int twi_sockopt_apply(int fd, const tw_socket_options *options,
                      const char **refused);

#endif
