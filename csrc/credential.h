/* What a client tells a server about itself on each new connection.
 *
 * The credential goes with every request of a connection until one was
 * answered: servers look at the first message only, and which of several
 * callers' is written first nobody knows when they are packed. */
#ifndef TWI_CREDENTIAL_H
#define TWI_CREDENTIAL_H

#include <pthread.h>

#include "atomics.h"
#include "auth.h"
#include "socket.h"

/* Of one peer. */
struct twi_credential {
    _Atomic uint32_t wanted; /* 0: none is to be sent, ever */
    pthread_mutex_t lock;    /* guards the rest, and the sockets' `block` */
    struct twi_block *block; /* shares; NULL: not given yet */
    int once, fresh;         /* every connection needs another; here it is */
    /* Taken for the connection to come, by a call that waits for it; shares. */
    struct twi_block *next;
};

void twi_credential_init(struct twi_credential *credential);
void twi_credential_fini(struct twi_credential *credential);
/* What every connection tells from now on, or the next one (once), copied: 0, -EINVAL or -ENOMEM. */
int twi_credential_give(struct twi_credential *credential, const char *data,
                        size_t len, int once);
/* Whether the next call on the connection (NULL: on the one to come) needs one
 * and none is there. */
int twi_credential_wanted(struct twi_credential *credential,
                          struct twi_socket *sock);
/* What the next request on the connection carries (NULL: on the one to come):
 * *block is a share for the caller, or NULL.  0, or a positive code when the
 * connection needs a credential that nobody has given. */
int twi_credential_for(struct twi_credential *credential,
                       struct twi_socket *sock, struct twi_block **block);

/* Whether a new connection has to wait for a credential of its own. */
int twi_credential_lacks(struct twi_credential *credential);

/* The connection to come is this one: before it lives. */
void twi_credential_revived(struct twi_credential *credential,
                            struct twi_socket *sock);
/* The socket goes on with the checker's connection: before it lives. */
void twi_credential_adopt(struct twi_socket *sock, struct twi_socket *checker);

/* A response came on the connection: 1 when it is that the credential was
 * refused, so that the connection is of no use. */
static inline int
twi_credential_refused(struct twi_socket *sock, int code)
{
    /* relaxed: whoever sees the old state sends what is ignored. */
    if (load_relaxed(&sock->auth.state) != TWI_AUTH_PENDING)
        return 0;
    if (code == TW_ERPCAUTH)
        return 1;
    store_relaxed(&sock->auth.state, TWI_AUTH_ACCEPTED);
    return 0;
}

#endif
