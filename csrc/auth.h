/* Whose connection it is, decided by its first message.
 *
 * With an authenticator (tw_server_auth) the credential of a connection's
 * first message goes up as a TW_AUTH event as soon as the message's meta is
 * there.  The message itself stays unread in the connection until the verdict,
 * and nothing further is taken in: nobody else's code runs before it, and a
 * peer that floods costs one meta.
 *
 *   NONE --credential--> PENDING --verdict: CAS--> DECIDING --> ACCEPTED
 *     |                     |
 *     | none, too large     | verdict or deadline: CAS
 *     +-----> REFUSED <-----+     one error answer, then the connection ends
 *
 * Whoever turns PENDING decides; no state leaves ACCEPTED or REFUSED.  OFF:
 * nobody asks who it is. */
#ifndef TWI_AUTH_H
#define TWI_AUTH_H

#include "atomics.h"
#include "protocol.h"
#include "socket.h"

enum {
    TWI_CREDENTIAL_MAX = 64 << 10, /* bytes of one */
    TWI_IDENTITY_MAX = 1024,
    TWI_AUTH_ANSWER_MAX = 4096 /* bytes of the frame that refuses */
};

/* Who may do everything: these two come first. */
enum {
    TWI_AUTH_OFF,
    TWI_AUTH_ACCEPTED,
    TWI_AUTH_NONE,
    TWI_AUTH_PENDING,
    TWI_AUTH_DECIDING,
    TWI_AUTH_REFUSED
};

void twi_auth_init(void);
/* A new connection of a server, before it is published. */
void twi_auth_begin(struct twi_socket *sock);

/* 1 while no message of the connection may be run. */
static inline int
twi_auth_withholds(struct twi_socket *sock)
{
    /* acquire: pairs with the release of ACCEPTED, for the identity. */
    return load_acquire(&sock->auth.state) > TWI_AUTH_ACCEPTED;
}

/* What a protocol's consume does while that holds: looks for the credential,
 * hands it up once, consumes nothing.  The baton's holder. */
enum twi_cut twi_auth_first(struct twi_socket *sock, struct twi_block *block,
                            const uint8_t *data, size_t n, int64_t now_ns,
                            size_t *need, const char **why);
/* The connection failed. */
void twi_auth_failed(struct twi_socket *sock);
/* The verdict's deadline has passed. */
void twi_auth_timeout(tw_id socket);

#endif
