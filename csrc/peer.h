/* One server, at one address or several, and the connection to it: made when
 * first needed, and again after it failed.
 *
 * A peer keeps one socket, and with it one socket id, until it is closed or the
 * server says that it stops: then it goes on with another socket, its successor,
 * and the former one ends by itself (leave.h).  After a failure a successor, if
 * there is one, takes its place.  Else, as soon as nobody holds the socket any
 * more, it is as new, and the next call connects it; calls that come before that
 * wait in a list.
 * With health checks on, it is down instead: calls fail at once until a check
 * has succeeded (health.h), unless the server ended a connection on which nothing
 * was ever sent. */
#ifndef TWI_PEER_H
#define TWI_PEER_H

#include <pthread.h>

#include "credential.h"
#include "pool.h"
#include "socket.h"

enum { TWI_TIMEOUTS_UNREACHABLE = 3 }; /* connect timeouts in a row */

/* The first check after a failure; the delay doubles up to the interval. */
#define TWI_CHECK_FIRST_NS INT64_C(100000000)

struct twi_peer {
    _Atomic uint64_t vref;
    uint32_t slot;
    struct twi_addr *addrs;
    uint32_t n_addrs;
    tw_peer_options options; /* but for the pointers */
    int probe_method;        /* a client method; -1: connecting is enough */
    char *probe_body;        /* options.probe_body_len bytes */
    struct twi_credential credential;
    _Atomic tw_id socket;      /* the socket's id */
    _Atomic uint32_t timeouts; /* connect timeouts in a row */

    pthread_mutex_t lock; /* guards the rest */
    struct twi_socket *sock; /* kept */
    struct twi_socket *successor; /* NULL: none; it connects */
    struct twi_pool pool;
    uint32_t others;         /* sockets but `sock` that are not over yet */
    uint32_t views;          /* that are open (view.h) */
    int64_t logoff_ns;       /* when an ELOGOFF to a call last opened one; or 0 */
    int closed;
    int down; /* the socket is unheld, and ours until a check succeeds */
    struct twi_wnode *waiting, *last_waiting; /* for the next life */
    uint64_t waiting_bytes;
    struct twi_timer check; /* the next health check */
    int64_t check_ns;       /* its delay before the jitter; 0: none yet */
    tw_id checker;          /* the socket of the one under way */
};

void twi_peers_init(void);
void twi_peers_fini(void);
int64_t twi_peer_count(void);

/* As tw_peer_open; a reference for the caller, who is its first view. */
int twi_peer_open(const char *text, const tw_peer_options *options,
                  struct twi_peer **peer);
/* One view more, unless the last has gone: 1 or 0.  And one less: 1 for the last,
 * who closes it. */
int twi_peer_join(struct twi_peer *peer);
int twi_peer_part(struct twi_peer *peer);
/* Fails its connections and ends the calls on them and those that wait for one. */
void twi_peer_close(struct twi_peer *peer);
struct twi_peer *twi_peer_address(tw_id id);
tw_id twi_peer_id(const struct twi_peer *peer);
void twi_peer_ref(struct twi_peer *peer);
void twi_peer_unref(struct twi_peer *peer);
/* The peer's socket, a reference taken, or NULL while it has failed. */
struct twi_socket *twi_peer_socket(struct twi_peer *peer);
/* What a new connection to the peer has: limits, addresses, options.  Borrows
 * the peer, of which the caller has a reference to give. */
void twi_peer_equip(struct twi_peer *peer, struct twi_socket *sock,
                    const struct twi_connect_ops *ops);
/* The lock held: a further connection of the peer, to be published; NULL without
 * memory.  keep: as twi_socket_open. */
struct twi_socket *twi_peer_open_other(struct twi_peer *peer, int keep);
/* The lock held: 0, or the code of a call that wants a connection of its own. */
int twi_peer_refuses(struct twi_peer *peer);
/* For a call that found no socket: takes the node, to be sent in the next
 * life, and returns 0.  Else the code to fail with, or EAGAIN: there is a
 * socket by now.  force: over max_unwritten, too. */
int twi_peer_wait(struct twi_peer *peer, struct twi_wnode *node, int force);
/* The unheld socket lives again, as new, to be connected by the next call; or
 * with the checker's connection, whose baton is held (NULL: that cannot be
 * watched, and is closed).  The peer's lock held; to be passed on to
 * twi_peer_revived, without it. */
struct twi_socket *twi_peer_revive(struct twi_peer *peer, int64_t now_ns);
struct twi_socket *twi_peer_heal(struct twi_peer *peer,
                                 struct twi_socket *checker);
void twi_peer_revived(struct twi_socket *sock);
/* Sets the timer of the next check, the lock held.  0 or -ENOMEM. */
int twi_peer_check_later(struct twi_peer *peer, int64_t now_ns);
/* The delay of the check that follows one after last_ns, before the jitter. */
int64_t twi_check_delay(int64_t last_ns, int64_t interval_ns);

#endif
