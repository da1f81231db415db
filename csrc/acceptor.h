/* Accepting: until EAGAIN, each connection watched at once.  What an error
 * means stands in one table (twi_sys_accept_class).  Out of descriptors or
 * memory the listener pauses and tries again by timer, after 10 ms growing to
 * 1 s. */
#ifndef TWI_ACCEPTOR_H
#define TWI_ACCEPTOR_H

#include "server.h"

#define TWI_ACCEPT_PAUSE_NS INT64_C(10000000)
#define TWI_ACCEPT_PAUSE_MAX_NS INT64_C(1000000000)
enum {
    TWI_ACCEPT_BATCH = 64,      /* per turn of one listener */
    TWI_ACCEPT_LAST = 65536,    /* at its end: more than any queue holds */
    TWI_CONNECTIONS_MAX = 10000, /* of a process, unless a server asks for more */
    TWI_DESCRIPTORS_PERCENT = 80, /* of RLIMIT_NOFILE are for connections, */
    TWI_DESCRIPTORS_SPARE = 64,   /* less so many */
    TWI_CONNECTIONS_ADMIN = 16    /* more for listeners that serve HTTP only */
};

void twi_acceptor_init(void);

/* A listening socket for the server; its id through *listener.  As tw_listen. */
int twi_acceptor_open(struct twi_server *server, const char *address,
                      int protocols, int backlog, char *bound, size_t cap,
                      tw_id *listener);
/* Accepts who waits in the listener's queue, unless other processes share it,
 * then closes it.  Any thread. */
void twi_acceptor_stop(struct twi_socket *listener);
/* An accepted connection is gone. */
void twi_acceptor_left(void);
/* A paused listener's timer. */
void twi_acceptor_timer(tw_id listener, int64_t now_ns);

#endif
