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
#include "protocol.h"
#include "socket.h"
#include "timer.h"

enum {
    TWI_CLIENT_METHODS_MAX = 4096,
    TWI_NAMES_MAX = 512
};

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
};

void twi_calls_init(void);
void twi_calls_fini(void);
int64_t twi_call_count(void);

/* Ends the call of an id: 1 if this did. */
int twi_call_end(tw_id id, int code, int phase);
/* The same for its deadline, by who holds a reference. */
int twi_call_expire(struct twi_call *call);
/* The call of an id, if it has not ended, is to be sent on that socket, in its
 * life of now. */
void twi_call_on(tw_id id, struct twi_socket *sock);
/* Calls a client method on a socket that the caller has a reference to.
 * `ended` is told, once, by whoever ends the call. */
void twi_call_probe(struct twi_socket *sock, int method, const char *body,
                    size_t body_len, int64_t deadline_ns, int64_t now_ns,
                    void (*ended)(uint64_t cookie, int code), uint64_t cookie);
/* Ends every call there is (the core closes). */
void twi_calls_stop(void);

/* Hooks of connections to servers, and what they speak. */
extern const struct twi_protocol twi_std_client;
void twi_call_sending(struct twi_socket *sock, struct twi_wnode *node);
void twi_call_sent(struct twi_socket *sock, struct twi_wnode *node, int code,
                   int how_far);
/* The connection failed: ends the calls whose bytes it had wholly taken. */
void twi_calls_lost(struct twi_socket *sock, int code);

#endif
