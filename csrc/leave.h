/* A server that is about to stop asks its clients to leave: a new connection
 * takes the place of this one, which ends when its last call has its answer.
 *
 *   server                                client
 *     | <--- calls ------------------------ |
 *     | ---- notice: ELOGOFF to call 0 ---> |   connects anew, where it can; the
 *     |                                     |   next calls go there
 *     | ---- the answers still missing ---> |   this one waits for them
 *     | <--- end of stream ---------------- |   then half-closes
 *     | ---- end of stream ---------------> |
 *
 * No call is refused or lost.  An ELOGOFF to a call, which is what brpc's servers
 * say, means the same, but the next call does not wait for the new connection to
 * succeed: this one is of no use any more.  A handler may answer it, too, and the
 * client cannot tell; so a call's ELOGOFF makes it connect anew at most once in
 * TWI_LEAVE_AGAIN_NS, which a server that stops does not need more often, while a
 * notice, which no handler can send, always does.  brpc's clients drop a notice, for no
 * call of theirs has the number 0.
 *
 * successor.h has what takes its place; here is how it ends. */
#ifndef TWI_LEAVE_H
#define TWI_LEAVE_H

#include "socket.h"

/* When a connection that is to be left is looked at for the first time; the
 * delay doubles from the one to the other. */
#define TWI_LEAVE_FIRST_NS INT64_C(1000000)
#define TWI_LEAVE_LAST_NS INT64_C(64000000)

/* From one ELOGOFF to a call for which a peer connects anew to the next. */
#define TWI_LEAVE_AGAIN_NS INT64_C(1000000000)

/* The connection was replaced: it ends as soon as it can.  Any thread, once. */
void twi_left(struct twi_socket *sock, int64_t now_ns);
/* The timer; with the baton. */
void twi_leave_timer(tw_id socket, int64_t now_ns);

#endif
