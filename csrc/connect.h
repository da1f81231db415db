/* The connect machine: how a socket comes to be connected to a server.
 *
 *                              NEXT
 *                       +-----------------+
 *                       v                 |
 *   IDLE --WANTED--> CONNECTING --MADE--> TRANSPORT --SHAKEN--> HANDSHAKE
 *    ^  |              |  ^ |               |                     |    |
 *    |  |              |  +-+ NEXT          |                     |    | ADMITTED
 *    |  +------LOST----+---------LOST-------+--------LOST---------+    v
 *    |                           |                                   READY
 *    |                           v                                   |   ^
 *    +-----------RESET-------- FAILED <--------------LOST------------+   |
 *    |                           |                                       |
 *    |                           +-----SICK----> DOWN -------HEALED------+
 *    |                                            |
 *    +-----------RESET----------------------------+
 *
 *   IDLE        nothing is under way; the first write wants it
 *   CONNECTING  an address is being tried
 *   TRANSPORT   the transport shakes hands (transport.h): TLS's seat
 *   HANDSHAKE   the application does, before anything else is sent
 *   READY       messages flow
 *   FAILED      the socket failed; it drains until nobody holds it
 *   DOWN        reset, and its ids name nothing, until a health check succeeds
 *
 * Any thread may say WANTED and LOST, by one compare-exchange.  All else, and
 * all the work, is the baton's holder's.
 *
 * The addresses of a server are tried in order, beginning with the one that
 * last worked, until one is connected or the deadline, which covers them all,
 * has passed; each gets its fair share of what is left of it. */
#ifndef TWI_CONNECT_H
#define TWI_CONNECT_H

#include <stdint.h>

#include "addr.h"
#include "core.h"

enum { TWI_ADDRESSES_MAX = 16 }; /* of one server */

enum twi_cstate {
    TWI_C_IDLE,
    TWI_C_CONNECTING,
    TWI_C_TRANSPORT,
    TWI_C_HANDSHAKE,
    TWI_C_READY,
    TWI_C_FAILED,
    TWI_C_DOWN,
    TWI_C_STATES
};

enum twi_cevent {
    TWI_C_WANTED,   /* something is to be sent, or checked */
    TWI_C_MADE,     /* the descriptor is connected */
    TWI_C_SHAKEN,   /* the transport's handshake is done */
    TWI_C_ADMITTED, /* the application's is */
    TWI_C_NEXT,     /* this address failed, there is another */
    TWI_C_LOST,     /* the socket failed, for whatever reason */
    TWI_C_RESET,    /* nobody holds it (or can check it): as new */
    TWI_C_SICK,     /* the same, but it has to prove itself first */
    TWI_C_HEALED,   /* a check succeeded, its connection is ours now */
    TWI_C_EVENTS
};

struct twi_socket;

/* What the machine asks of the socket's owner; with the baton. */
struct twi_connect_ops {
    /* As a transport's handshake; NULL: nothing to do.  What it reads and
     * writes goes through the socket's transport. */
    int (*handshake)(struct twi_socket *sock);
    /* It is connected; messages flow as soon as this returns. */
    void (*ready)(struct twi_socket *sock, int64_t now_ns);
    /* The deadline has passed: the code to fail with. */
    int (*timed_out)(struct twi_socket *sock);
};

struct twi_connect {
    _Atomic uint32_t state; /* enum twi_cstate */
    const struct twi_connect_ops *ops;
    const struct twi_addr *addrs; /* borrowed as long as the socket */
    uint32_t n;
    const tw_socket_options *options; /* borrowed as they are */
    int64_t timeout_ns;   /* for all addresses; <= 0: none */
    _Atomic uint32_t at;  /* the address that is tried or connected */
    /* The server ended it before a byte went either way: until it is as new. */
    _Atomic uint32_t unused;
    /* The baton's holder's. */
    uint32_t good, tried; /* worked last; how many failed in this round */
    int counted;          /* as an open connection */
    int64_t deadline_ns, attempt_ends_ns; /* 0: none */
};

/* The state after an event, or -1: it is not allowed.  The table itself. */
int twi_connect_after(enum twi_cstate state, enum twi_cevent event);
/* Changes the state if the event is allowed in it: the new one, or -1.
 * Wait-free but for those who change it at the same time.  Any thread. */
int twi_connect_step(struct twi_connect *connect, enum twi_cevent event);
enum twi_cstate twi_connect_state(const struct twi_connect *connect);

/* Something was pushed: sees that the socket gets connected if it is IDLE.
 * The caller holds a reference.  Any thread. */
void twi_connect_want(struct twi_socket *sock);
/* Goes on wherever it stands, with the baton. */
void twi_connect_run(struct twi_socket *sock, int64_t now_ns);
/* The timer of the socket fired; with the baton. */
void twi_connect_timeout(tw_id socket, int64_t now_ns);

#endif
