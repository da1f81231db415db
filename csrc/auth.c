#include "auth.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "counters.h"
#include "log.h"
#include "server.h"
#include "sys.h"

static int fill_auth(struct twi_inbox_item *item, tw_event *event,
                     void **block);

void
twi_auth_init(void)
{
    twi_inbox_filler(TW_AUTH, fill_auth);
}

void
twi_auth_begin(struct twi_socket *sock)
{
    if (load_relaxed(&sock->server->auth))
        store_relaxed(&sock->auth.state, TWI_AUTH_NONE);
}

/* Says so, once, and ends the connection.  `why` may be NULL. */
static void
refuse(struct twi_socket *sock, const char *why, size_t n, int64_t now_ns)
{
    static const char plain[] = "Fail to authenticate";
    char text[TWI_AUTH_ANSWER_MAX - TWI_STD_HEADER - TWI_STD_META_SLACK];
    size_t at = sizeof plain - 1;
    memcpy(text, plain, at);
    if (n) {
        memcpy(text + at, ": ", 2);
        at += 2;
        if (n > sizeof text - at)
            n = sizeof text - at;
        memcpy(text + at, why, n);
        at += n;
    }
    twi_count(TWI_AUTH_FAILURES, 1);
    twi_log(TW_LOG_AUTH_REFUSED, TW_ERPCAUTH, &sock->remote,
            "authentication refused");
    twi_server_refuse(sock, sock->auth.correlation_id, TW_ERPCAUTH, text, at, 1,
                      now_ns);
}

/* The first message's meta is there: its credential goes up. */
static void
hand_up(struct twi_socket *sock, struct twi_block *block,
        const struct twi_std_msg *msg, int64_t now_ns)
{
    struct twi_auth *auth = &sock->auth;
    struct twi_server *server = sock->server;
    twi_block_ref(block);
    auth->block = block;
    auth->credential = msg->auth;
    auth->item.kind = TW_AUTH;
    /* relaxed: the timer's lock and the inbox, which follow, publish it. */
    store_relaxed(&auth->state, TWI_AUTH_PENDING);
    /* Before the event: a verdict removes it. */
    int rc = twi_loop_timer(sock->loop, &auth->timer,
                            now_ns + server->auth_timeout_ns, TWI_TIMER_AUTH,
                            twi_socket_id(sock));
    if (rc)
        rc = ENOMEM;
    twi_socket_ref(sock); /* the inbox's */
    if (!rc && !twi_inbox_put(load_relaxed(&server->auth), &auth->item))
        return;
    twi_block_unref(block);
    auth->block = NULL;
    twi_socket_fail(sock, rc ? rc : TW_ELOGOFF, TW_PHASE_NONE);
    twi_socket_unref(sock);
}

enum twi_cut
twi_auth_first(struct twi_socket *sock, struct twi_block *block,
               const uint8_t *data, size_t n, int64_t now_ns, size_t *need,
               const char **why)
{
    static const char none[] = "no credential", large[] = "too large a credential";
    struct twi_auth *auth = &sock->auth;
    struct twi_std_msg msg;
    /* relaxed: only the baton's holder, as we are, leaves NONE. */
    if (load_relaxed(&auth->state) != TWI_AUTH_NONE)
        return TWI_CUT_DONE; /* nothing used: waits, or is over */
    enum twi_cut cut = twi_std_peek(data, n, sock->max_message, &msg, need, why);
    if (cut != TWI_CUT_DONE)
        return cut;
    auth->correlation_id = msg.correlation_id;
    if (msg.auth.n && msg.auth.n <= TWI_CREDENTIAL_MAX) {
        hand_up(sock, block, &msg, now_ns);
        return cut;
    }
    store_relaxed(&auth->state, TWI_AUTH_REFUSED);
    if (msg.auth.n)
        refuse(sock, large, sizeof large - 1, now_ns);
    else
        refuse(sock, none, sizeof none - 1, now_ns);
    return cut;
}

/* 1 for the one who decides. */
static int
decide(struct twi_socket *sock, uint32_t verdict)
{
    struct twi_auth *auth = &sock->auth;
    uint32_t pending = TWI_AUTH_PENDING;
    /* relaxed: decides on one word.  Who comes here came by the inbox or the
     * timer; an identity is published by ACCEPTED, not by this. */
    if (!atomic_compare_exchange_strong_explicit(
            &auth->state, &pending, verdict, memory_order_relaxed,
            memory_order_relaxed))
        return 0;
    twi_loop_timer_remove(sock->loop, &auth->timer);
    return 1;
}

void
twi_auth_failed(struct twi_socket *sock)
{
    if (!twi_auth_withholds(sock))
        return;
    twi_loop_timer_remove(sock->loop, &sock->auth.timer);
    /* A question that nobody has taken yet keeps the descriptor open; the peer
     * need not wait for that. */
    twi_sys.shutdown(load_relaxed(&sock->fd), SHUT_RDWR);
}

void
twi_auth_timeout(tw_id id)
{
    static const char late[] = "no verdict in time";
    struct twi_socket *sock = twi_socket_address(id);
    if (!sock)
        return;
    if (decide(sock, TWI_AUTH_REFUSED))
        refuse(sock, late, sizeof late - 1, twi_now_ns());
    twi_socket_unref(sock);
}

static int
fill_auth(struct twi_inbox_item *item, tw_event *event, void **block)
{
    struct twi_auth *auth =
        (struct twi_auth *)((char *)item - offsetof(struct twi_auth, item));
    struct twi_socket *sock =
        (struct twi_socket *)((char *)auth - offsetof(struct twi_socket, auth));
    int filled = 0;
    /* The share is the inbox's now, or nobody's: this runs once. */
    if (event && !twi_socket_error(sock) &&
        load_relaxed(&auth->state) == TWI_AUTH_PENDING) {
        *event = (tw_event){
            .id = twi_socket_id(sock),
            .socket = twi_socket_id(sock),
            .kind = TW_AUTH,
            .body = (const char *)auth->credential.p,
            .body_len = auth->credential.n,
        };
        *block = auth->block;
        filled = 1;
    } else
        twi_block_unref(auth->block);
    auth->block = NULL;
    twi_socket_unref(sock);
    return filled;
}

/* ---- api.h */

int
tw_server_auth(tw_id id, tw_id inbox, int64_t timeout_ns)
{
    struct twi_server *server = twi_server_address(id);
    int rc = 0;
    if (!server)
        return -TW_STALE;
    if (server->n_listeners || timeout_ns <= 0)
        rc = server->n_listeners ? -EBUSY : -EINVAL;
    else {
        server->auth_timeout_ns = timeout_ns;
        store_relaxed(&server->auth, inbox);
    }
    twi_server_unref(server);
    return rc;
}

static int
accept_as(struct twi_socket *sock, const char *name, size_t n)
{
    struct twi_block *identity;
    if (!n || n > TWI_IDENTITY_MAX)
        return -EINVAL;
    if (!(identity = twi_block_new(n)))
        return -ENOMEM;
    memcpy(identity->data, name, n);
    identity->size = (uint32_t)n;
    if (!decide(sock, TWI_AUTH_DECIDING)) {
        twi_block_unref(identity);
        return -EALREADY;
    }
    sock->auth.identity = identity;
    twi_count(TWI_AUTHENTICATIONS, 1);
    /* release: publishes the identity to twi_auth_withholds. */
    store_release(&sock->auth.state, TWI_AUTH_ACCEPTED);
    twi_socket_again(sock, TWI_AGAIN_READ);
    return 0;
}

int
tw_auth_verdict(tw_id id, int accept, const char *text, size_t text_len)
{
    struct twi_socket *sock = twi_socket_address(id);
    int rc = 0;
    if (!sock)
        return -TW_STALE;
    if (accept)
        rc = accept_as(sock, text, text_len);
    else if (decide(sock, TWI_AUTH_REFUSED))
        refuse(sock, text, text_len, twi_now_ns());
    else
        rc = -EALREADY;
    twi_socket_unref(sock);
    return rc;
}

int
tw_request_identity(tw_id id, char *text, size_t cap)
{
    struct twi_request *request = twi_request_address(id);
    int rc = -ENODATA;
    if (!request)
        return -TW_STALE;
    const struct twi_block *identity = request->identity;
    if (identity && identity->size > cap)
        rc = -ENOSPC;
    else if (identity) {
        memcpy(text, identity->data, identity->size);
        rc = (int)identity->size;
    }
    twi_request_unref(request);
    return rc;
}
