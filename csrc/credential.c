#include "credential.h"

#include <errno.h>
#include <string.h>

#include "sys.h"

void
twi_credential_init(struct twi_credential *credential)
{
    store_relaxed(&credential->wanted, 0);
    pthread_mutex_init(&credential->lock, NULL);
    credential->block = credential->next = NULL;
    credential->once = credential->fresh = 0;
}

void
twi_credential_fini(struct twi_credential *credential)
{
    pthread_mutex_destroy(&credential->lock);
    twi_block_unref(credential->block);
    twi_block_unref(credential->next);
    credential->block = credential->next = NULL;
}

/* A connection's first request: takes what was given for it.  again: if there is
 * none, what another connection has had, for they are made by calls that know
 * nothing of each other. */
static int
take(struct twi_credential *credential, int again, struct twi_block **block)
{
    if (!credential->block ||
        (credential->once && !credential->fresh && !again))
        return TW_EFAILEDSOCKET;
    credential->fresh = 0;
    twi_block_ref(credential->block);
    *block = credential->block;
    return 0;
}

static void
begin(struct twi_auth *auth, struct twi_block *block)
{
    twi_block_unref(auth->block);
    auth->block = block;
    store_relaxed(&auth->state, TWI_AUTH_PENDING);
}

/* The lock held; the block is still the keeper's. */
static int
find(struct twi_credential *credential, struct twi_socket *sock,
     struct twi_block **block)
{
    int rc = 0;
    if (!sock) {
        if (!credential->next)
            rc = take(credential, 0, &credential->next);
        *block = credential->next;
        return rc;
    }
    struct twi_auth *auth = &sock->auth;
    if (load_relaxed(&auth->state) == TWI_AUTH_OFF) {
        /* What a call took that came just before the connection did. */
        struct twi_block *first = credential->next;
        credential->next = NULL;
        if (first || !(rc = take(credential, sock->lone, &first)))
            begin(auth, first);
    }
    if (load_relaxed(&auth->state) == TWI_AUTH_PENDING)
        *block = auth->block;
    return rc;
}

int
twi_credential_for(struct twi_credential *credential, struct twi_socket *sock,
                   struct twi_block **block)
{
    *block = NULL;
    /* relaxed: set before the peer's first call; `state` orders nothing. */
    if (!load_relaxed(&credential->wanted) ||
        (sock && load_relaxed(&sock->auth.state) == TWI_AUTH_ACCEPTED))
        return 0;
    pthread_mutex_lock(&credential->lock);
    int rc = find(credential, sock, block);
    if (*block)
        twi_block_ref(*block);
    pthread_mutex_unlock(&credential->lock);
    return rc;
}

int
twi_credential_lacks(struct twi_credential *credential)
{
    if (!load_relaxed(&credential->wanted))
        return 0;
    pthread_mutex_lock(&credential->lock);
    int lacks = credential->once && !credential->fresh;
    pthread_mutex_unlock(&credential->lock);
    return lacks;
}

void
twi_credential_revived(struct twi_credential *credential,
                       struct twi_socket *sock)
{
    if (!load_relaxed(&credential->wanted))
        return;
    pthread_mutex_lock(&credential->lock);
    if (credential->next)
        begin(&sock->auth, credential->next);
    credential->next = NULL;
    pthread_mutex_unlock(&credential->lock);
}

void
twi_credential_adopt(struct twi_socket *sock, struct twi_socket *checker)
{
    twi_block_unref(sock->auth.block);
    sock->auth.block = checker->auth.block;
    checker->auth.block = NULL;
    store_relaxed(&sock->auth.state, load_relaxed(&checker->auth.state));
}

int
twi_credential_give(struct twi_credential *credential, const char *data,
                    size_t len, int once)
{
    struct twi_block *block;
    if (!len || len > TWI_CREDENTIAL_MAX)
        return -EINVAL;
    if (!(block = twi_block_new(len)))
        return -ENOMEM;
    memcpy(block->data, data, len);
    block->size = (uint32_t)len;
    pthread_mutex_lock(&credential->lock);
    twi_block_unref(credential->block);
    credential->block = block;
    credential->once = once;
    credential->fresh = 1;
    store_relaxed(&credential->wanted, 1);
    pthread_mutex_unlock(&credential->lock);
    return 0;
}

int
twi_credential_wanted(struct twi_credential *credential,
                      struct twi_socket *sock)
{
    pthread_mutex_lock(&credential->lock);
    int wanted = !credential->fresh && !credential->next &&
                 (!sock || load_relaxed(&sock->auth.state) == TWI_AUTH_OFF);
    pthread_mutex_unlock(&credential->lock);
    return wanted;
}
