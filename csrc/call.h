/* A client's calls: slots whose id is the correlation id on the wire.
 *
 * Exactly one of response, error, deadline and cancel ends a call: whoever
 * turns its version odd.  Late answers meet a stale id.  A call's bytes on a
 * write stack end it themselves if they are not wholly written; after that the
 * connection's failure does. */
#ifndef TWI_CALL_H
#define TWI_CALL_H

#include "counters.h"
#include "inbox.h"
#include "proto/baidu_std.h"
#include "socket.h"
#include "timer.h"

enum { TWI_CALL_WAITING, TWI_CALL_ASLEEP, TWI_CALL_DONE };

struct twi_call {
    struct twi_inbox_item item;
    _Atomic uint64_t vref;
    uint32_t slot;
    _Atomic uint32_t word; /* TWI_CALL_*; a blocking caller's futex */
    struct twi_call *next, **link; /* among the sleeping callers */
    _Atomic tw_id socket;
    _Atomic uint64_t life; /* of the socket: the one it is answered in */
    _Atomic uint32_t sent; /* TW_SENT_* */
    _Atomic tw_id view; /* it was made through (view.h); 0: the core's own */
    _Atomic uint32_t lone; /* it has its socket to itself */
    tw_id inbox; /* 0: a blocking caller waits, or `ended` is told */
    void (*ended)(uint64_t cookie, int code); /* the core's own calls */
    uint64_t cookie;
    struct twi_method_stats *stats;
    struct twi_timer timer;
    int64_t started_ns, deadline_ns;
    /* The result, written by who ended it, before DONE or the inbox. */
    int code, phase;
    int64_t received_ns;
    struct twi_block *block; /* shares */
    struct twi_str body, attachment, meta, text;
    int coded; /* the body is no bare protobuf: meta says more */
};

/* What a response brings; all NULL for an error of our own. */
struct twi_outcome {
    int code, phase;
    struct twi_block *block;
    const struct twi_std_msg *msg;
    int64_t now_ns;
};

void twi_calls_init(void);
void twi_calls_fini(void);
int64_t twi_call_count(void);

/* A call with its additional reference and the waiter's, counted as begun in
 * the cell; NULL when slots or memory run out.  Not sent, and no timer set.  Keeps
 * `stats`; NULL: it is nobody's, and an alarm. */
struct twi_call *twi_call_open(struct twi_method_stats *stats, uint32_t cell,
                               int64_t deadline_ns, tw_id inbox,
                               uint64_t cookie, int64_t now_ns);
tw_id twi_call_id(const struct twi_call *call);
/* One reference more if the id's call has not ended, else NULL.  Wait-free. */
struct twi_call *twi_call_address(tw_id id);
/* The call that the caller is the waiter of, ended or not, by the waiter's own
 * reference; NULL when that was given back. */
struct twi_call *twi_call_waited(tw_id id);
void twi_call_unref(struct twi_call *call);

/* Ends it, if `version` is that of a call under way: 1 if this did.  The caller
 * holds a reference.  Shares the outcome's block. */
int twi_call_finish(struct twi_call *call, uint32_t version,
                    const struct twi_outcome *outcome);
/* The same for an error of our own. */
int twi_call_fail(struct twi_call *call, int code, int phase);
/* Ends the call of an id: 1 if this did. */
int twi_call_end(tw_id id, int code, int phase);
/* The same for its deadline, by who holds a reference. */
int twi_call_expire(struct twi_call *call);
/* The call of an id, if it has not ended, is to be sent on that socket, in its
 * life of now. */
void twi_call_on(tw_id id, struct twi_socket *sock);
/* What an ended call came to; points into call->block. */
void twi_call_fill(struct twi_call *call, tw_event *event);
/* Ends every call of a view, which was closed before. */
void twi_calls_cancel(tw_id view);
/* Ends every call there is (the core closes). */
void twi_calls_stop(void);

/* Hooks of connections to servers. */
void twi_call_sending(struct twi_socket *sock, struct twi_wnode *node);
void twi_call_sent(struct twi_socket *sock, struct twi_wnode *node, int code,
                   int how_far);
/* Whether a call that has not ended is on the socket, in its life of now. */
int twi_calls_on(struct twi_socket *sock);
/* The connection failed: ends the calls whose bytes it had wholly taken. */
void twi_calls_lost(struct twi_socket *sock, int code);

#endif
