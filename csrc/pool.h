/* Connections that have one call at a time, beside the one that a peer's calls
 * share.
 *
 *   pooled   a call takes one that is idle, the last that was used, or makes one;
 *            with its answer the connection is idle again
 *   short    a call makes one, which ends with it
 *
 * A call that ends without an answer takes its connection with it: what comes on
 * it later would be nobody's.  So does a server that says that it stops.  Idle
 * connections are kept up to a number and a time.
 *
 * The peer's health is that of its own socket: a connection that cannot be made
 * fails it, if it is not in use, and while it is down no other is made. */
#ifndef TWI_POOL_H
#define TWI_POOL_H

#include "socket.h"

/* So many idle connections a peer keeps, and each for so long. */
enum { TWI_POOL_IDLE_MAX = 100 };
#define TWI_POOL_IDLE_NS INT64_C(30000000000)

struct twi_peer;

/* Of one peer, whose lock guards it. */
struct twi_pool {
    struct twi_socket *newest, *oldest; /* idle; they live (or are failing) */
    uint32_t idle;
    struct twi_timer timer;
    int timed;              /* it is set */
    _Atomic uint32_t good;  /* the address that was last connected */
};

void twi_pool_init(struct twi_pool *pool);
/* A connection for a call, with a reference for the caller, who pushes or fails
 * it: 0, or the code to fail with.  connection: TW_POOLED, TW_SHORT. */
int twi_pool_take(struct twi_peer *peer, int connection,
                  struct twi_socket **sock);
/* Whether a call finds an idle one. */
int twi_pool_has_idle(struct twi_peer *peer);
/* The call that had it has ended; reusable: nothing more comes of it. */
void twi_pool_released(struct twi_socket *sock, int reusable, int64_t now_ns);
/* It has failed. */
void twi_pool_failed(struct twi_socket *sock);
/* Its server stops: it gets no further call. */
void twi_pool_leave(struct twi_socket *sock);
/* The timer of the idle ones. */
void twi_pool_timer(tw_id peer, int64_t now_ns);

#endif
