/* How long an accepted connection may be silent, slow or idle.
 *
 * One timer for each connection.  Nothing re-arms it when bytes come: the
 * reader notes the time, and the timer, when it fires, looks whether anything
 * is due and else sleeps until something can be.  A limit of 0 is off. */
#ifndef TWI_TIMEOUTS_H
#define TWI_TIMEOUTS_H

#include "socket.h"

/* What a partial message has to bring for each second of its limit. */
enum { TWI_STALL_BYTES = 1024 };

/* Of a connection that was just accepted.  0 or -ENOMEM. */
int twi_timeouts_start(struct twi_socket *sock, int64_t now_ns);
/* Its timer has fired.  The baton's holder. */
void twi_timeouts_fired(tw_id socket, int64_t now_ns);

#endif
