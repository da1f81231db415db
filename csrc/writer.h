/* What goes out of a socket: messages are pushed as nodes and counted against
 * the socket's limit; whoever has the write stack's role sends them.  After a
 * last message the connection lingers until the peer has read it. */
#ifndef TWI_WRITER_H
#define TWI_WRITER_H

#include "socket.h"

/* How much of a connection that we end is read and dropped, and how long, so
 * that the peer can read our last message: closing with input unread would
 * reset the connection, and a reset overtakes what was sent before. */
enum { TWI_LINGER_BYTES = 16 << 20 };
#define TWI_LINGER_NS INT64_C(2000000000)

/* A socket's side of its write stack. */
extern const struct twi_wstack_ops twi_writer_ops;

/* Queues a message.  Takes the node if it returns 0; a positive code: failed
 * already, TW_ESHUTDOWNWRITE, or TW_EOVERCROWDED (unless force).  Any thread. */
int twi_socket_push(struct twi_socket *sock, struct twi_wnode *node, int cork,
                    int force, int64_t now_ns);
/* Half-closes it behind what was pushed, and drops what still comes until the
 * peer has closed its half, too.  Any thread. */
void twi_socket_finish(struct twi_socket *sock, int64_t now_ns);
/* The time for dropping input is over (its timer). */
void twi_socket_lingered(tw_id id);

struct twi_wnode *twi_wnode_new(void);
/* Before the push of a message whose answers name nobody: so many are
 * expected, 1 to TWI_PIPELINED_MAX.  node->id must be set.  0, -EINVAL,
 * -EOVERFLOW or -ENOMEM. */
int twi_wnode_pipelined(struct twi_wnode *node, uint32_t count);
/* An unsent node's memory; pushed ones are freed by the stack. */
void twi_wnode_free(struct twi_wnode *node);
int64_t twi_wnode_live(void);

#endif
