/* The write stack: any thread pushes, exactly one writes.
 *
 * push is wait-free: one exchange on the head.  Whoever found the head empty
 * holds the writer's role, all others are done.  The role's holder writes in
 * push order and leaves only through the compare-exchange that proves that
 * nobody has pushed since.
 *
 * The role may also be parked: nobody runs, the queue waits.
 *
 *      push finds no head          leave (CAS head -> empty)
 *   idle ---------------> RUNNING ---------------------------> idle
 *                          |   ^
 *                     park |   | twi_wstack_take (CAS, one winner)
 *                          v   |
 *              CORKED  POLLOUT  READY  CONNECTING
 *
 *   CORKED      more answers for this socket are about to come
 *   POLLOUT     the kernel's buffer is full; the poller resumes on EPOLLOUT
 *   READY       the budget of one turn is used up; the poller resumes
 *   CONNECTING  there is no connection yet; the connector resumes
 *
 * A parked role is taken by one compare-exchange, by whoever has a reason to:
 * losers do nothing.  Whoever parks looks again afterwards at what could have
 * made parking wrong, whoever changes that looks at the state afterwards; both
 * sides seq_cst (store, then load: acquire and release are not enough).
 *
 * A stack that keeps waiting or is handed over is in keep-write: a
 * continuation, not a thread. */
#ifndef TWI_WSTACK_H
#define TWI_WSTACK_H

#include <stdint.h>
#include <sys/types.h>

#include "iobuf.h"

enum {
    TWI_WSTACK_IOVECS = 256,      /* per gather write, nodes and iovecs */
    TWI_WSTACK_BUDGET = 256 << 10, /* bytes before the role is handed over */
    TWI_CORK_MESSAGES = 64,
    TWI_CORK_BYTES = 256 << 10
};

enum twi_wstate {
    TWI_W_RUNNING, /* or idle: the head tells */
    TWI_W_CORKED,
    TWI_W_POLLOUT,
    TWI_W_READY,
    TWI_W_CONNECTING
};

struct twi_awaited;

/* One message.  The stack takes it at push and gives it back through
 * ops->done, once. */
struct twi_wnode {
    struct twi_wnode *_Atomic next; /* older while stacked, newer once taken */
    struct twi_iobuf buf;
    uint64_t size; /* bytes at push */
    uint64_t id;   /* the rest is the pusher's */
    void *stats;
    int64_t pushed_ns;
    uint32_t seq;
    uint8_t kind, done, started;
    uint8_t unwanted; /* set by ops->start: drop it, nobody waits any more */
    uint8_t notify;   /* the pusher is told when it is wholly written */
    /* Once it is written nothing is written any more: the half is shut; or
     * the connection ends, in the order that lets the peer read all of it. */
    uint8_t shutdown_after, close_after;
    /* What its answers are told by, if the protocol has no other means; goes
     * to the socket's pipeline when the first byte leaves. */
    struct twi_awaited *awaited;
};

struct twi_wstack;

/* What the stack asks of its owner.  All but `failed` and `writable` are
 * called by the role's holder only; `done` may free the node. */
struct twi_wstack_ops {
    /* Bytes accepted, TWI_AGAIN or a negative errno. */
    ssize_t (*write)(struct twi_wstack *ws, const struct iovec *iov, int n);
    /* So many bytes have left the queue, written or dropped. */
    void (*account)(struct twi_wstack *ws, uint64_t bytes);
    /* The node is written (code 0) or will never be (an error).  sent:
     * TW_SENT_*.  Not yet free: freed by `free_node` later. */
    void (*done)(struct twi_wstack *ws, struct twi_wnode *node, int code,
                 int sent);
    void (*free_node)(struct twi_wstack *ws, struct twi_wnode *node);
    /* Before a write that includes the node's first byte.  May set
     * node->unwanted: it is then dropped, none of its bytes leaves. */
    void (*start)(struct twi_wstack *ws, struct twi_wnode *node);
    /* The role is parked as POLLOUT / READY: see that it is resumed. */
    void (*arm)(struct twi_wstack *ws);
    void (*again)(struct twi_wstack *ws);
    /* The last message is written (shutdown_after, or close_after: `close`).
     * The stack drops what follows with TW_ESHUTDOWNWRITE. */
    void (*shutdown)(struct twi_wstack *ws, int close);
    /* A write failed: mark the owner failed.  The stack drains by itself. */
    void (*fail)(struct twi_wstack *ws, int code);
    /* The owner's error once it failed, else 0 (seq_cst load). */
    int (*failed)(struct twi_wstack *ws);
    /* 0 while connecting (seq_cst load). */
    int (*writable)(struct twi_wstack *ws);
};

struct twi_wstack {
    struct twi_wnode *_Atomic head;
    _Atomic uint32_t state;
    _Atomic uint32_t corked; /* messages since the cork was set */
    _Atomic uint64_t corked_bytes;
    _Atomic int64_t corked_ns; /* when the cork was set */
    /* Nothing is written any more.  Set by the role's holder; a pusher's look
     * is only early. */
    _Atomic uint8_t shut;
    _Atomic uint8_t held; /* somebody has the role; for asserts */
    /* The role holder's, handed over with the state. */
    struct twi_wnode *first, *last;
    int keeping; /* keep-write was counted for this tenure */
    const struct twi_wstack_ops *ops;
};

void twi_wstack_init(struct twi_wstack *ws, const struct twi_wstack_ops *ops);
/* Takes the node.  cork: leave it for a later flush if nobody is writing.
 * Wait-free but for the writing itself, which never blocks. */
void twi_wstack_push(struct twi_wstack *ws, struct twi_wnode *node, int cork,
                     int64_t now_ns);
/* Takes the role if it is parked as `state`: 1, and the caller must call
 * twi_wstack_run; else 0.  Wait-free. */
int twi_wstack_take(struct twi_wstack *ws, enum twi_wstate state);
/* Writes, as the role's holder, until the role is left or parked. */
void twi_wstack_run(struct twi_wstack *ws);
/* After the owner failed (ops->failed is set): drains a parked role. */
void twi_wstack_failed(struct twi_wstack *ws);
/* 1 when nothing waits and nobody writes. */
int twi_wstack_idle(struct twi_wstack *ws);

#endif
