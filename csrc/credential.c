#include "credential.h"

#include <errno.h>
#include <string.h>

#include "peer.h"

void
twi_credential_init(struct twi_credential *credential)
{
    store_relaxed(&credential->wanted, 0);
    pthread_mutex_init(&credential->lock, NULL);
    credential->block = NULL;
    credential->once = credential->fresh = 0;
}

void
twi_credential_fini(struct twi_credential *credential)
{
    pthread_mutex_destroy(&credential->lock);
    twi_block_unref(credential->block);
    credential->block = NULL;
}

/* The connection's first request: takes what was given for it. */
static int
take(struct twi_credential *credential, struct twi_socket *sock)
{
    struct twi_auth *auth = &sock->auth;
    if (!credential->block || (credential->once && !credential->fresh))
        return TW_EFAILEDSOCKET;
    credential->fresh = 0;
    twi_block_unref(auth->block);
    twi_block_ref(credential->block);
    auth->block = credential->block;
    store_relaxed(&auth->state, TWI_AUTH_PENDING);
    return 0;
}

int
twi_credential_for(struct twi_credential *credential, struct twi_socket *sock,
                   struct twi_block **block)
{
    struct twi_auth *auth = &sock->auth;
    int rc = 0;
    *block = NULL;
    /* relaxed: set before the peer's first call; `state` orders nothing. */
    if (!load_relaxed(&credential->wanted) ||
        load_relaxed(&auth->state) == TWI_AUTH_ACCEPTED)
        return 0;
    pthread_mutex_lock(&credential->lock);
    if (load_relaxed(&auth->state) == TWI_AUTH_OFF)
        rc = take(credential, sock);
    if (!rc && load_relaxed(&auth->state) == TWI_AUTH_PENDING) {
        twi_block_ref(auth->block);
        *block = auth->block;
    }
    pthread_mutex_unlock(&credential->lock);
    return rc;
}

/* ---- api.h */

int
tw_peer_credential(tw_id id, const char *data, size_t len, int once)
{
    struct twi_peer *peer = twi_peer_address(id);
    struct twi_block *block = NULL;
    int rc = 0;
    if (!peer)
        return -TW_STALE;
    struct twi_credential *credential = twi_peer_credential(peer);
    if (!len || len > TWI_CREDENTIAL_MAX)
        rc = -EINVAL;
    else if (!(block = twi_block_new(len)))
        rc = -ENOMEM;
    else {
        memcpy(block->data, data, len);
        block->size = (uint32_t)len;
        pthread_mutex_lock(&credential->lock);
        twi_block_unref(credential->block);
        credential->block = block;
        credential->once = once;
        credential->fresh = 1;
        store_relaxed(&credential->wanted, 1);
        pthread_mutex_unlock(&credential->lock);
    }
    twi_peer_unref(peer);
    return rc;
}

int
tw_peer_wants_credential(tw_id id)
{
    struct twi_peer *peer = twi_peer_address(id);
    if (!peer)
        return -TW_STALE;
    struct twi_credential *credential = twi_peer_credential(peer);
    struct twi_socket *sock = twi_peer_connection(peer);
    pthread_mutex_lock(&credential->lock);
    int wants = !credential->fresh &&
                (!sock || load_relaxed(&sock->auth.state) == TWI_AUTH_OFF);
    pthread_mutex_unlock(&credential->lock);
    if (sock)
        twi_socket_unref(sock);
    twi_peer_unref(peer);
    return wants;
}
