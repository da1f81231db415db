#include "client.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "atomics.h"
#include "caller.h"
#include "credential.h"
#include "peer.h"
#include "std_client.h"
#include "sys.h"
#include "view.h"
#include "vref.h"
#include "writer.h"

struct client_method {
    struct twi_method_stats stats;
    size_t names_len;
    uint8_t names[TWI_NAMES_MAX];
};

static pthread_mutex_t methods_lock = PTHREAD_MUTEX_INITIALIZER;
static struct client_method *_Atomic methods[TWI_CLIENT_METHODS_MAX];
static int n_methods;

void
twi_clients_init(void)
{
    pthread_mutex_init(&methods_lock, NULL);
}

const struct twi_protocol *const twi_client_protocols[] = {
    &twi_std_client,
    NULL,
};

/* ---- methods */

int
tw_client_method(const char *service, const char *name)
{
    int rc = -ENOSPC;
    pthread_mutex_lock(&methods_lock);
    for (int i = 0; i < n_methods; i++) {
        struct client_method *known = load_relaxed(&methods[i]);
        if (!strcmp(known->stats.service, service) &&
            !strcmp(known->stats.method, name)) {
            rc = i;
            goto out;
        }
    }
    if (n_methods == TWI_CLIENT_METHODS_MAX)
        goto out;
    struct client_method *method = twi_zalloc(sizeof *method);
    char *service_copy = twi_strdup(service), *name_copy = twi_strdup(name);
    struct twi_str s = {(const uint8_t *)service, strlen(service)},
                   n = {(const uint8_t *)name, strlen(name)};
    rc = -ENOMEM;
    if (method && service_copy && name_copy) {
        method->names_len =
            twi_std_pack_names(method->names, TWI_NAMES_MAX, s, n);
        rc = method->names_len ? n_methods : -ENAMETOOLONG;
    }
    if (rc < 0) {
        free(method);
        free(service_copy);
        free(name_copy);
        goto out;
    }
    twi_method_stats_init(&method->stats, service_copy, name_copy, 1);
    /* release: pairs with the acquire in method_of. */
    store_release(&methods[n_methods++], method);
out:
    pthread_mutex_unlock(&methods_lock);
    return rc;
}

static struct client_method *
method_of(int method)
{
    if (method < 0 || method >= TWI_CLIENT_METHODS_MAX)
        return NULL;
    return load_acquire(&methods[method]);
}

static struct twi_str
names_of(const struct client_method *method)
{
    return (struct twi_str){method->names, method->names_len};
}

static uint32_t
counted_in(const struct client_method *method, const tw_extra *extra)
{
    int again = extra ? extra->again : 0;
    return again == TW_RETRY    ? method->stats.retries
           : again == TW_BACKUP ? method->stats.backups
                                : method->stats.calls;
}

/* ---- starting */

/* Sets its timer if nobody waits who would look at the clock.  0, or -1: the
 * call has ended. */
static int
set_timer(struct twi_call *call)
{
    if ((!call->inbox && !call->ended) || !call->deadline_ns ||
        !twi_loop_timer(TWI_MAIN, &call->timer, call->deadline_ns,
                        TWI_TIMER_CALL, twi_call_id(call)))
        return 0;
    twi_call_fail(call, ENOMEM, TW_PHASE_NONE);
    return -1;
}

/* Takes the node if it returns 0; else the code, and *phase. */
static int
push(struct twi_call *call, struct twi_socket *sock, struct twi_wnode *node,
     int cork, int force, int64_t now_ns, int *phase)
{
    if (sock->lone)
        store_seq_cst(&call->lone, 1);
    twi_call_on(twi_call_id(call), sock);
    /* seq_cst: who ends the call turns its version and looks then whether it has
     * a connection to itself.  Either that finds it, or we find the call ended. */
    if (sock->lone && (load_seq_cst(&call->vref) >> 32) % 2) {
        *phase = TW_PHASE_NONE;
        return ECANCELED;
    }
    int corked = cork && twi_inbox_cork(call->inbox, twi_socket_id(sock));
    int code = twi_socket_push(sock, node, corked, force, now_ns);
    *phase = code == TW_EOVERCROWDED ? TW_PHASE_WRITE
                                     : load_relaxed(&sock->phase);
    return code;
}

/* One try to send it: 0, the code that the call ends with and *phase, or EAGAIN:
 * nothing of it has left, and there is another connection to try. */
static int
attempt(struct twi_call *call, const struct twi_view *view,
        struct client_method *method, const char *body, size_t body_len,
        const tw_extra *extra, int cork, int64_t now_ns, int *phase)
{
    int force = extra && extra->ignore_eovercrowded;
    struct twi_peer *peer = view->peer;
    struct twi_socket *sock = NULL;
    struct twi_wnode *node = NULL;
    struct twi_block *credential;
    int code = 0;
    *phase = TW_PHASE_CONNECT;
    if (view->connection == TW_SINGLE)
        sock = twi_peer_socket(peer);
    else
        code = twi_pool_take(peer, view->connection, &sock);
    if (code || (code = twi_credential_for(&peer->credential, sock, &credential)))
        goto out;
    node = twi_std_client_pack(call, names_of(method), body, body_len, extra,
                               credential, now_ns);
    twi_block_unref(credential);
    if (!node) {
        *phase = TW_PHASE_NONE;
        code = TW_EREQUEST;
    } else if (!sock) {
        code = twi_peer_wait(peer, node, force);
        if (code == TW_EOVERCROWDED)
            *phase = TW_PHASE_WRITE;
    } else {
        code = push(call, sock, node, cork, force, now_ns, phase);
        /* It failed between finding and pushing: the next one, unless this one
         * could not even be made. */
        if (code && code != TW_EOVERCROWDED &&
            !(sock->lone && code == ECANCELED) &&
            *phase != TW_PHASE_CONNECT)
            code = EAGAIN;
    }
    if (code && node)
        twi_wnode_free(node);
out:
    if (sock && sock->lone && code)
        twi_socket_fail(sock, TW_ECLOSE, TW_PHASE_NONE);
    if (sock)
        twi_socket_unref(sock);
    return code;
}

/* Sends it; whatever goes wrong ends the call. */
static void
start(struct twi_call *call, struct twi_view *view,
      struct client_method *method, const char *body, size_t body_len,
      const tw_extra *extra, int cork, int64_t now_ns)
{
    int code, phase;
    /* seq_cst: who closes the view turns its version and looks for its calls
     * then.  Either that finds this one, or we find it closed. */
    store_seq_cst(&call->view, twi_view_id(view));
    if (twi_view_closed(view)) {
        twi_call_fail(call, ECANCELED, TW_PHASE_NONE);
        return;
    }
    if (set_timer(call))
        return;
    /* Packed anew each time: the next connection may want a credential where
     * this one did not. */
    do
        code = attempt(call, view, method, body, body_len, extra, cork, now_ns,
                       &phase);
    while (code == EAGAIN);
    if (code)
        twi_call_fail(call, code, phase);
}

void
twi_client_probe(struct twi_socket *sock, int method_index, const char *body,
                 size_t body_len, int64_t deadline_ns, int64_t now_ns,
                 void (*ended)(uint64_t, int), uint64_t cookie)
{
    struct client_method *method = method_of(method_index);
    struct twi_call *call =
        twi_call_open(&method->stats, method->stats.calls, deadline_ns, 0,
                      cookie, now_ns);
    if (!call) {
        ended(cookie, ENOMEM);
        return;
    }
    struct twi_block *credential = NULL;
    struct twi_wnode *node = NULL;
    call->ended = ended;
    vref_ref(&call->vref); /* it may be over before we return */
    int phase = TW_PHASE_CONNECT;
    /* A socket without a peer tells nobody who it is. */
    int code = sock->peer ? twi_credential_for(&sock->peer->credential, sock,
                                               &credential)
                          : 0;
    if (!code) {
        node = twi_std_client_pack(call, names_of(method), body, body_len, NULL,
                                   credential, now_ns);
        twi_block_unref(credential);
        code = node ? 0 : ENOMEM;
    }
    if (!set_timer(call) && !code)
        code = push(call, sock, node, 0, 0, now_ns, &phase);
    else if (!code)
        code = ECANCELED;
    if (code) {
        if (node)
            twi_wnode_free(node);
        twi_call_fail(call, code, phase);
    }
    twi_call_unref(call);
}

/* ---- api.h */

static const char *
into_scratch(const char *from, size_t n, char *scratch, size_t *at)
{
    if (!n)
        return NULL;
    memcpy(scratch + *at, from, n);
    *at += n;
    return scratch + *at - n;
}

/* Hands the result to a blocking caller and ends the call's life; tw_call's
 * return value. */
static int
take_result(struct twi_call *call, char *scratch, size_t cap, tw_event *event)
{
    twi_call_fill(call, event);
    event->id = 0; /* it is over: there is nothing to wait for any more */
    size_t total = event->body_len + event->attachment_len + event->meta_len +
                   event->text_len;
    if (!call->block || total <= cap) {
        size_t at = 0;
        event->body = into_scratch(event->body, event->body_len, scratch, &at);
        event->attachment = into_scratch(event->attachment,
                                         event->attachment_len, scratch, &at);
        event->meta = into_scratch(event->meta, event->meta_len, scratch, &at);
        event->text = into_scratch(event->text, event->text_len, scratch, &at);
        event->block = NULL;
    } else
        call->block = NULL; /* the caller's share now */
    twi_call_unref(call);
    int plain = !event->code && !event->block && !event->attachment_len &&
                !event->meta_len && !event->coded;
    return plain ? (int)event->body_len : -TW_RICH;
}

int
tw_call(tw_id peer_id, int method_index, const char *body, size_t body_len,
        const tw_extra *extra, int64_t deadline_ns, int interruptible,
        char *scratch, size_t scratch_cap, tw_event *result)
{
    struct client_method *method = method_of(method_index);
    struct twi_view *view = twi_view_address(peer_id);
    int64_t now_ns = twi_now_ns();
    if (!method || !view) {
        if (view)
            twi_view_unref(view);
        return method ? -TW_STALE : -EINVAL;
    }
    struct twi_call *call =
        twi_call_open(&method->stats, counted_in(method, extra), deadline_ns, 0,
                      0, now_ns);
    if (call)
        start(call, view, method, body, body_len, extra, 0, now_ns);
    twi_view_unref(view);
    if (!call)
        return -ENOMEM;
    if (twi_caller_wait(call, interruptible)) {
        result->id = twi_call_id(call);
        return -EINTR;
    }
    return take_result(call, scratch, scratch_cap, result);
}

int
tw_wait(tw_id id, int interruptible, char *scratch, size_t scratch_cap,
        tw_event *result)
{
    struct twi_call *call = twi_call_waited(id);
    if (!call)
        return -TW_STALE;
    if (twi_caller_wait(call, interruptible)) {
        result->id = id;
        return -EINTR;
    }
    return take_result(call, scratch, scratch_cap, result);
}

int
tw_submit(tw_id peer_id, int method_index, const char *body, size_t body_len,
          const tw_extra *extra, int64_t deadline_ns, tw_id inbox,
          uint64_t cookie, int cork, tw_id *id)
{
    struct client_method *method = method_of(method_index);
    struct twi_view *view = twi_view_address(peer_id);
    int64_t now_ns = twi_now_ns();
    int rc = 0;
    if (!method || !inbox)
        rc = -EINVAL;
    else if (!view)
        rc = -TW_STALE;
    struct twi_call *call = NULL;
    if (!rc && !(call = twi_call_open(&method->stats, counted_in(method, extra),
                                      deadline_ns, inbox, cookie, now_ns)))
        rc = -ENOMEM;
    if (!rc && !twi_inbox_expect(inbox)) {
        /* It finds no inbox and gives back the waiter's reference, too. */
        twi_call_fail(call, ECANCELED, TW_PHASE_NONE);
        rc = -TW_STALE;
    }
    if (!rc) {
        /* Its result may come, and the call be over, before we return. */
        *id = twi_call_id(call);
        vref_ref(&call->vref);
        start(call, view, method, body, body_len, extra, cork, now_ns);
        twi_call_unref(call);
    }
    if (view)
        twi_view_unref(view);
    return rc;
}

int
tw_alarm(tw_id inbox, int64_t when_ns, uint64_t cookie, tw_id *id)
{
    if (!inbox)
        return -EINVAL;
    struct twi_call *call =
        twi_call_open(NULL, 0, when_ns, inbox, cookie, twi_now_ns());
    if (!call)
        return -ENOMEM;
    *id = twi_call_id(call);
    vref_ref(&call->vref);
    int rc = twi_inbox_expect(inbox) ? 0 : -TW_STALE;
    if (rc)
        twi_call_fail(call, ECANCELED, TW_PHASE_NONE);
    else
        set_timer(call); /* without memory it comes at once */
    twi_call_unref(call);
    return rc;
}
