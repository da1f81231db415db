/* The connection that takes the place of a peer's, whose server stops (leave.h) or
 * which has failed meanwhile. */
#ifndef TWI_SUCCESSOR_H
#define TWI_SUCCESSOR_H

#include "socket.h"

struct twi_peer;

/* The server of a client's connection has said that it stops: the socket gets a
 * successor, which takes its place once it is connected, or at_once, as the server
 * has refused a call.  Nothing happens to one that has failed or is not its peer's
 * any more.  With the baton. */
void twi_peer_leave(struct twi_socket *sock, int at_once, int64_t now_ns);
/* The lock held, the socket has failed: a successor that lives, connected or not
 * yet, takes its place: 1 if there is one.  Then nothing waits: whoever comes
 * finds the successor, and one cannot be had once the socket has failed. */
int twi_peer_succeed(struct twi_peer *peer);
/* Whether a successor is connected and waits for a credential; and puts it in its
 * place, now that there is one. */
int twi_peer_has_successor(struct twi_peer *peer);
void twi_peer_promote(struct twi_peer *peer, int64_t now_ns);

#endif
