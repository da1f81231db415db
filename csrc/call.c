#include "call.h"

#include <errno.h>

#include "atomics.h"
#include "caller.h"
#include "loop.h"
#include "sys.h"
#include "vref.h"

static struct twi_slab slab;

static int fill_result(struct twi_inbox_item *item, tw_event *event,
                       void **block);

void
twi_calls_init(void)
{
    twi_slab_init(&slab, sizeof(struct twi_call));
    twi_inbox_filler(TW_RESULT, fill_result);
    twi_callers_init();
}

void
twi_calls_fini(void)
{
    twi_slab_fini(&slab);
}

int64_t
twi_call_count(void)
{
    return load_relaxed(&slab.live);
}

/* ---- life */

struct twi_call *
twi_call_open(struct twi_method_stats *stats, uint32_t cell,
              int64_t deadline_ns, tw_id inbox, uint64_t cookie, int64_t now_ns)
{
    uint32_t slot = twi_slab_take(&slab);
    if (slot == TWI_SLAB_NONE)
        return NULL;
    struct twi_call *call = twi_slab_at(&slab, slot);
    call->slot = slot;
    store_relaxed(&call->word, TWI_CALL_WAITING);
    store_relaxed(&call->sent, TW_SENT_NONE);
    store_relaxed(&call->lone, 0);
    call->link = NULL;
    call->item.kind = TW_RESULT;
    call->inbox = inbox;
    call->ended = NULL;
    call->cookie = cookie;
    call->stats = stats;
    call->started_ns = now_ns;
    call->deadline_ns = deadline_ns;
    call->timer.index = 0;
    call->block = NULL;
    call->coded = 0;
    call->body = call->attachment = call->meta = call->text =
        (struct twi_str){0};
    vref_open(&call->vref, 2);
    if (stats) {
        twi_cell_add(cell, 1);
        twi_cell_add(stats->in_flight, 1);
    }
    return call;
}

static void
recycle(struct twi_call *call)
{
    twi_block_unref(call->block);
    call->block = NULL;
    store_relaxed(&call->socket, 0);
    store_relaxed(&call->life, 0); /* no socket has that */
    store_relaxed(&call->view, 0);
    twi_slab_give(&slab, call->slot);
}

void
twi_call_unref(struct twi_call *call)
{
    if (vref_unref(&call->vref))
        recycle(call);
}

struct twi_call *
twi_call_address(tw_id id)
{
    struct twi_call *call = twi_slab_at(&slab, (uint32_t)id);
    if (!call || !id)
        return NULL;
    int rc = vref_address(&call->vref, (uint32_t)(id >> 32));
    if (rc < 0)
        recycle(call);
    return rc == 1 ? call : NULL;
}

struct twi_call *
twi_call_waited(tw_id id)
{
    struct twi_call *call = twi_slab_at(&slab, (uint32_t)id);
    /* The waiter's own reference keeps the slot; it may be over by now.
     * relaxed: the id is the waiter's own. */
    uint64_t now = call ? load_relaxed(&call->vref) : VREF_FREE;
    int is = !(now & VREF_FREE) && id >> 32 && (now >> 32 & ~1u) == id >> 32;
    return is ? call : NULL;
}

tw_id
twi_call_id(const struct twi_call *call)
{
    return vref_id(vref_version(&call->vref) & ~1u, call->slot);
}

static void
count_end(struct twi_method_stats *stats, const struct twi_outcome *outcome,
          int64_t started_ns)
{
    twi_cell_add(stats->in_flight, -1);
    twi_histogram_add(stats->core, outcome->now_ns - started_ns);
    if (!outcome->code)
        return;
    twi_method_error(stats, outcome->code);
    twi_cell_add(twi_failed_cell[outcome->phase], 1);
}

/* Before anybody learns of the call's end, so that the next one finds the
 * connection. */
static void
release_socket(struct twi_call *call, const struct twi_outcome *outcome)
{
    struct twi_socket *sock = twi_socket_address(load_seq_cst(&call->socket));
    if (!sock)
        return;
    sock->hooks->released(sock, outcome->msg || !outcome->code,
                          outcome->now_ns);
    twi_socket_unref(sock);
}

/* The one place where a call ends. */
int
twi_call_finish(struct twi_call *call, uint32_t version,
                const struct twi_outcome *outcome)
{
    if (!vref_fail(&call->vref, version))
        return 0;
    const struct twi_std_msg *msg = outcome->msg;
    call->code = outcome->code;
    call->phase = outcome->phase;
    call->received_ns = outcome->now_ns;
    if (msg) {
        twi_block_ref(outcome->block);
        call->block = outcome->block;
        call->body = msg->body;
        call->attachment = msg->attachment;
        call->text = msg->error_text;
        call->coded = twi_std_coded(msg);
        if (msg->has_user_fields || call->coded)
            call->meta = msg->meta;
    }
    if (call->inbox || call->ended)
        twi_loop_timer_remove(TWI_MAIN, &call->timer);
    /* seq_cst: partner is push in client.c. */
    if (load_seq_cst(&call->lone))
        release_socket(call, outcome);
    if (call->stats)
        count_end(call->stats, outcome, call->started_ns);
    if (call->ended) {
        call->ended(call->cookie, outcome->code);
        twi_call_unref(call); /* the waiter's */
    } else if (!call->inbox) {
        /* release: publishes the result to the waiter's acquire. */
        uint32_t was = atomic_exchange(&call->word, TWI_CALL_DONE);
        if (was == TWI_CALL_ASLEEP)
            twi_futex_wake(&call->word, 1);
        else if (was == TWI_CALL_DONE)
            twi_count(TWI_DOUBLE_COMPLETIONS, 1);
        else
            twi_loop_nudge(TWI_MAIN); /* it may be polling */
    } else if (twi_inbox_put(call->inbox, &call->item))
        twi_call_unref(call); /* nobody is there to take it: the inbox's */
    twi_call_unref(call);     /* the additional reference */
    return 1;
}

/* Where a call stands that its deadline ends. */
static int
standing(struct twi_call *call)
{
    if (load_relaxed(&call->sent) == TW_SENT_ALL)
        return TW_PHASE_READ;
    /* relaxed: a moment's truth. */
    struct twi_socket *sock = twi_socket_address(load_relaxed(&call->socket));
    int connected = sock && sock->life == load_relaxed(&call->life) &&
                    load_relaxed(&sock->connected);
    if (sock)
        twi_socket_unref(sock);
    return connected ? TW_PHASE_WRITE : TW_PHASE_CONNECT;
}

int
twi_call_fail(struct twi_call *call, int code, int phase)
{
    if (code == TW_ERPCTIMEDOUT)
        phase = standing(call);
    struct twi_outcome outcome = {
        .code = code, .phase = phase, .now_ns = twi_now_ns()};
    uint32_t version = vref_version(&call->vref);
    return version % 2 ? 0 : twi_call_finish(call, version, &outcome);
}

int
twi_call_end(tw_id id, int code, int phase)
{
    struct twi_call *call = twi_call_address(id);
    if (!call)
        return 0;
    int ended = twi_call_fail(call, code, phase);
    twi_call_unref(call);
    return ended;
}

int
twi_call_expire(struct twi_call *call)
{
    return twi_call_fail(call, TW_ERPCTIMEDOUT, TW_PHASE_READ);
}

int
tw_cancel(tw_id id)
{
    return twi_call_end(id, ECANCELED, TW_PHASE_NONE) ? 0 : -TW_STALE;
}

/* ---- the bytes' way */

void
twi_call_on(tw_id id, struct twi_socket *sock)
{
    struct twi_call *call = twi_call_address(id);
    if (!call)
        return;
    /* seq_cst: before the push; twi_calls_lost looks for it. */
    store_seq_cst(&call->socket, twi_socket_id(sock));
    store_seq_cst(&call->life, sock->life);
    twi_call_unref(call);
}

void
twi_call_sending(struct twi_socket *sock, struct twi_wnode *node)
{
    struct twi_call *call = twi_call_address(node->id);
    (void)sock;
    if (!call) {
        node->unwanted = node->id != 0; /* 0: no call's, a last word */
        return;
    }
    /* seq_cst: a call that ends turns its version and then looks at `sent`
     * (twi_call_fill).  Either it sees this, or we see that it has ended: a
     * call that says "not sent" is never sent. */
    store_seq_cst(&call->sent, TW_SENT_SOME);
    node->unwanted = (load_seq_cst(&call->vref) >> 32) % 2 != 0;
    twi_call_unref(call);
}

void
twi_call_sent(struct twi_socket *sock, struct twi_wnode *node, int code,
              int how_far)
{
    struct twi_call *call = twi_call_address(node->id);
    if (!call)
        return;
    /* seq_cst: partner of twi_calls_lost, which runs after the socket's error
     * is set and ends only calls that it sees wholly sent. */
    store_seq_cst(&call->sent, (uint32_t)how_far);
    if (!code)
        code = twi_socket_error(sock);
    /* Not when its answer is what failed the socket (std_client.c).  relaxed:
     * the error, which we have seen, publishes that. */
    if (code && load_relaxed(&call->socket) == twi_socket_id(sock))
        twi_call_fail(call, code, load_relaxed(&sock->phase));
    else if (node->notify)
        twi_call_fail(call, 0, TW_PHASE_NONE);
    twi_call_unref(call);
}

static void
each_call(void (*fn)(struct twi_call *, void *), void *arg)
{
    for (uint32_t i = 0; i < twi_slab_end(&slab); i++) {
        struct twi_call *call = twi_slab_at(&slab, i);
        uint32_t version = vref_look(&call->vref);
        if (!load_seq_cst(&call->socket))
            continue;
        int rc = vref_address(&call->vref, version);
        if (rc < 0)
            recycle(call);
        if (rc != 1)
            continue;
        fn(call, arg);
        twi_call_unref(call);
    }
}

struct on {
    uint64_t life;
    int calls;
};

static void
count_on(struct twi_call *call, void *arg)
{
    struct on *on = arg;
    /* relaxed: twi_leave_timer has acquired what it relies on. */
    on->calls += load_relaxed(&call->life) == on->life;
}

int
twi_calls_on(struct twi_socket *sock)
{
    struct on on = {sock->life, 0};
    each_call(count_on, &on);
    return on.calls != 0;
}

struct lost {
    struct twi_socket *sock;
    int code;
};

static void
end_lost(struct twi_call *call, void *arg)
{
    struct lost *lost = arg;
    if (load_seq_cst(&call->life) == lost->sock->life &&
        load_seq_cst(&call->sent) == TW_SENT_ALL)
        twi_call_fail(call, lost->code, load_relaxed(&lost->sock->phase));
}

void
twi_calls_lost(struct twi_socket *sock, int code)
{
    struct lost lost = {sock, code};
    each_call(end_lost, &lost);
}

void
twi_calls_cancel(tw_id view)
{
    for (uint32_t i = 0; i < twi_slab_end(&slab); i++) {
        struct twi_call *call = twi_slab_at(&slab, i);
        tw_id id = vref_id(vref_look(&call->vref), i);
        /* seq_cst: partner is start in client.c.  It may be a former call's. */
        if (load_seq_cst(&call->view) != view || !(call = twi_call_address(id)))
            continue;
        if (load_relaxed(&call->view) == view)
            twi_call_fail(call, ECANCELED, TW_PHASE_NONE);
        twi_call_unref(call);
    }
}

static void
end_stopped(struct twi_call *call, void *arg)
{
    (void)arg;
    twi_call_fail(call, ECANCELED, TW_PHASE_NONE);
}

void
twi_calls_stop(void)
{
    each_call(end_stopped, NULL);
    twi_callers_stop();
}

/* ---- results */

void
twi_call_fill(struct twi_call *call, tw_event *event)
{
    *event = (tw_event){
        .id = twi_call_id(call),
        .cookie = call->cookie,
        .kind = TW_RESULT,
        .code = call->code,
        .phase = call->phase,
        .sent = (int32_t)load_seq_cst(&call->sent),
        .body = (const char *)call->body.p,
        .body_len = call->body.n,
        .attachment = (const char *)call->attachment.p,
        .attachment_len = call->attachment.n,
        .meta = (const char *)call->meta.p,
        .meta_len = call->meta.n,
        .text = (const char *)call->text.p,
        .text_len = call->text.n,
        .block = call->block,
        .received_ns = call->received_ns,
        .deadline_ns = call->deadline_ns,
        .started_ns = call->started_ns,
        .socket = load_relaxed(&call->socket),
        .coded = call->coded,
    };
}

static int
fill_result(struct twi_inbox_item *item, tw_event *event, void **block)
{
    struct twi_call *call =
        (struct twi_call *)((char *)item - offsetof(struct twi_call, item));
    if (event) {
        twi_call_fill(call, event);
        *block = call->block; /* the inbox takes the call's share */
        call->block = NULL;
    }
    twi_call_unref(call); /* the waiter's */
    return event != NULL;
}
