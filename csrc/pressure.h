/* Backpressure: a server's connection is not read while it owes too much, in
 * unanswered requests, their bytes or unwritten bytes. */
#ifndef TWI_PRESSURE_H
#define TWI_PRESSURE_H

#include "socket.h"

/* What a queued message or an unanswered request takes beside its bytes: its
 * node or slot, the block's header, room that packing left.  Small messages
 * would otherwise hold a multiple of the limit that their bytes stay under. */
enum { TWI_MESSAGE_COST = 320 };

/* Resumes reading if backpressure stopped it and half of it is gone. */
void twi_socket_relax(struct twi_socket *sock);
/* After something was answered or written: relaxes, or, when the peer has
 * closed its half and nothing is owed to it any more, ends the connection. */
void twi_socket_settle(struct twi_socket *sock);
/* 1 while backpressure holds. */
int twi_socket_crowded(struct twi_socket *sock);
/* Bytes that may still be read before it does. */
uint64_t twi_socket_room(struct twi_socket *sock);

#endif
