/* A socket's life.
 *
 * A socket is a slot with a 32-bit version; its id (version high, slot low) is
 * what events, calls and Python hold.  An even version lives or is free, an
 * odd one has failed.
 *
 *   open            address(id) works, refs = 1 (the additional reference)
 *   fail (once)     error set, version + 1: address(id) fails from now on;
 *                   the queue drains, calls end, additional reference dropped
 *   last unref      version + 1: recycle: out of epoll, close, slot free
 *
 * A kept socket, a peer's, is not recycled then: the poller resets it (out of
 * epoll, close, reader and write stack as new) and tells its owner, to whom it
 * belongs from there on; the owner revives it under its old id, or retires it.
 * Every such life has a number of its own: a call is answered only in the life
 * in which it was sent.
 *
 * Events carry slot and binding generation.  The generation belongs to the
 * slot's memory, grows whenever a descriptor is attached and is never reset,
 * so an event of an old descriptor reaches neither a new binding nor the
 * slot's next tenant. */
#ifndef TWI_SOCKET_H
#define TWI_SOCKET_H

#include <stdint.h>

#include "addr.h"
#include "connect.h"
#include "core.h"
#include "inbox.h"
#include "iobuf.h"
#include "loop.h"
#include "pipeline.h"
#include "proto/baidu_std.h"
#include "slab.h"
#include "timer.h"
#include "transport.h"
#include "wstack.h"

enum twi_socket_kind { TWI_LISTENER, TWI_SERVER_SIDE, TWI_CLIENT_SIDE };

/* What leftover work a socket has (bits). */
enum {
    TWI_AGAIN_READ = 1,
    TWI_AGAIN_WRITE = 2,
    TWI_AGAIN_CONNECT = 4,
    TWI_AGAIN_RESET = 8 /* unheld: alone, and without a reference */
};

enum twi_timer_kind {
    TWI_TIMER_CALL,
    TWI_TIMER_CONNECT,
    TWI_TIMER_CHECK,
    TWI_TIMER_ACCEPT,
    TWI_TIMER_TIMEOUTS,
    TWI_TIMER_LINGER,
    TWI_TIMER_SLICE,
    TWI_TIMER_AUTH,
    TWI_TIMER_LEAVE,
    TWI_TIMER_POOL
};

struct twi_peer;
struct twi_protocol;
struct twi_server;
struct twi_socket;

/* What the layers above do for a kind of socket. */
struct twi_socket_hooks {
    /* Readable (or hung up), with the baton. */
    void (*readable)(struct twi_socket *sock, uint32_t events, int64_t now_ns);
    /* Any event before it is connected, or TWI_AGAIN_CONNECT, with the baton;
     * may be NULL. */
    void (*connect)(struct twi_socket *sock, int64_t now_ns);
    /* A message was pushed before it is connected; any thread; may be NULL. */
    void (*wanted)(struct twi_socket *sock);
    /* Once, by the thread that failed it, after the queue was drained. */
    void (*failed)(struct twi_socket *sock, int code);
    /* It is reset and belongs to its owner; with the baton.  Kept sockets. */
    void (*unheld)(struct twi_socket *sock, int64_t now_ns);
    /* Once, by the last unref or the owner, before the slot is free. */
    void (*recycled)(struct twi_socket *sock);
    /* A node was written or dropped; may be NULL. */
    void (*sent)(struct twi_socket *sock, struct twi_wnode *node, int code,
                 int how_far);
    /* A call that had it to itself has ended; reusable: nothing of that is still to
     * come.  Any thread; connections that are `lone`. */
    void (*released)(struct twi_socket *sock, int reusable, int64_t now_ns);
    /* The node's first byte goes to the kernel; may be NULL. */
    void (*sending)(struct twi_socket *sock, struct twi_wnode *node);
};

/* The baton's holder's alone (reader.c). */
struct twi_reader {
    struct twi_block *block; /* NULL while nothing is buffered */
    uint32_t begin, end;     /* unconsumed bytes of it */
    uint64_t need;           /* size of the frame at `begin`, if known */
    uint64_t average;        /* message size, over about ten */
    uint32_t judged; /* the front message's meta was looked at, once */
    /* What timeouts.c looks at; 0: no byte yet, no partial message. */
    int64_t accepted_ns, received_ns;
    int64_t partial_ns; /* since when the front one lies here in part, */
    uint64_t partial_bytes; /* and how much came since then */
    uint64_t dropped;        /* bytes read while lingering */
    _Atomic uint32_t held;   /* somebody reads; for asserts */
    /* NULL until one was recognised; a failing thread looks at it, too. */
    const struct twi_protocol *_Atomic protocol;
};

/* Whose connection it is (auth.h); of a connection to a server, what tells it
 * (credential.h). */
struct twi_auth {
    _Atomic uint32_t state;
    struct twi_block *block; /* shares: where the credential lies */
    struct twi_str credential;
    struct twi_block *identity; /* shares; set before ACCEPTED, then constant */
    int64_t correlation_id;     /* of the first message */
    struct twi_inbox_item item;
    struct twi_timer timer; /* the verdict's deadline */
};

struct twi_socket {
    _Atomic uint64_t vref; /* version (32) | references (32) */
    uint32_t slot;
    uint8_t kind;
    struct twi_loop *loop; /* reads it, for all its life */
    _Atomic uint32_t generation;
    _Atomic int fd;
    _Atomic int error; /* 0 while alive; set once, before the version turns */
    _Atomic int phase; /* of the error */
    _Atomic uint32_t connected;
    const struct twi_socket_hooks *hooks;
    const struct twi_transport *transport;
    uint64_t life; /* no other socket, and no other life of it, has it */
    struct twi_addr remote; /* twi_socket_remote tells, for all kinds */
    struct twi_wstack ws;
    _Atomic int64_t written_ns; /* the last write; the write role's holder's */
    _Atomic int64_t moved_ns; /* when bytes last went in or out */
    /* Bytes on the write stack and TWI_MESSAGE_COST for each message. */
    _Atomic uint64_t unwritten;
    uint64_t max_unwritten, max_message, max_pending, max_pending_bytes;
    int cancel_on_eof; /* a server's peer that ends its sending is gone */

    struct twi_pipeline pipeline;

    struct twi_reader reader;
    _Atomic uint32_t held; /* the reader's block, for others' eyes */
    _Atomic uint32_t paused; /* reading stopped for backpressure */
    _Atomic uint32_t again;  /* TWI_AGAIN_* bits; the list's claim */
    struct twi_leftover leftover;
    struct twi_timer timer; /* connect deadline, accept retry, timeouts, leave */
    /* All is written and the half shut; the rest is dropped. */
    _Atomic uint32_t lingering;
    struct twi_timer linger_timer;

    /* Accepted connections and listeners. */
    struct twi_server *server;    /* shares */
    int protocols;                /* TW_PROTO_* bits */
    _Atomic uint32_t eof;         /* the peer has closed its half */
    _Atomic uint32_t pending;     /* requests cut, unanswered */
    _Atomic uint64_t pending_bytes;
    _Atomic uint32_t queued;      /* of these, not yet taken by a worker */
    _Atomic uint32_t noticed;     /* the peer was asked to leave (drain.c) */
    struct twi_inbox_item chunk;  /* the one chunk that is out */
    struct twi_inbox_item closed; /* and the word that no more follows */
    _Atomic uint32_t chunk_out;
    struct twi_block *chunk_block; /* shares */
    const uint8_t *chunk_data;
    uint32_t chunk_len;
    uint64_t pause_ns; /* an accept retry's delay */
    int inherited;     /* a listener that is others', too */
    uint64_t file_ino; /* the socket file that a listener made; 0: none */

    /* Connections to servers. */
    struct twi_peer *peer; /* shares */
    struct twi_connect connect;
    int lone;      /* for one call at a time (pool.h); set before it is published */
    int last_call; /* it ends with the one that it has; this and the rest: pool.c */
    struct twi_socket *newer, *older; /* among the idle ones */
    int64_t idle_ns;
    int64_t leave_ns; /* between looks at its last calls (leave.c) */

    struct twi_auth auth;
};

int twi_sockets_init(void);
void twi_sockets_fini(void);

/* A socket with its additional reference and one for the caller; NULL when
 * slots or memory run out.  It has no descriptor yet, and nobody walks to it
 * before twi_socket_publish, which must come once its fields are set and
 * before anything else is done with it.  keep: its owner's, even failed. */
struct twi_socket *twi_socket_open(enum twi_socket_kind kind,
                                   const struct twi_socket_hooks *hooks,
                                   int keep);
void twi_socket_publish(struct twi_socket *sock);
tw_id twi_socket_id(const struct twi_socket *sock);
/* Where it is connected to, or listens.  As long as the socket. */
const struct twi_addr *twi_socket_remote(const struct twi_socket *sock);
/* One reference more if the id's socket lives, else NULL.  Wait-free. */
struct twi_socket *twi_socket_address(tw_id id);
/* One more for who has one. */
void twi_socket_ref(struct twi_socket *sock);
void twi_socket_unref(struct twi_socket *sock);
/* Publishes fd, then watches it.  Takes fd on success.  0 or -errno (the
 * descriptor is the caller's again and not published). */
int twi_socket_attach(struct twi_socket *sock, int fd, uint32_t events);
/* Watches it anew: what can be read or written by now is reported, whether an
 * event for it was lost or not.  0 or -errno. */
int twi_socket_rearm(struct twi_socket *sock);
/* Takes the descriptor away and closes it, if it has one.  With the baton,
 * while nobody writes: before it is connected, or when it is unheld. */
void twi_socket_detach(struct twi_socket *sock);
/* The connected descriptor of `from`, on which nothing is under way, becomes
 * the unheld socket's.  With the baton of `from`, which is left without one.
 * 0 or a negative errno: the descriptor is closed. */
int twi_socket_adopt(struct twi_socket *sock, struct twi_socket *from);
/* An unheld socket lives again, in a new life, with its additional reference
 * and one for the caller. */
void twi_socket_revive(struct twi_socket *sock);
/* An unheld socket is over. */
void twi_socket_retire(struct twi_socket *sock);
/* It is kept no longer: if it is not unheld yet it never will be, unless that
 * is on its way (then hooks->unheld follows, which retires it). */
void twi_socket_forsake(struct twi_socket *sock);
/* Fails it with a positive code; 1 for the one who did, 0 for later ones.
 * The caller holds a reference.  Any thread. */
int twi_socket_fail(struct twi_socket *sock, int code, int phase);
/* Bytes that the slot of an id holds, read or to be written; 0: none (any
 * more). */
uint64_t twi_socket_holds(tw_id id);
/* 0 while it lives. */
int twi_socket_error(struct twi_socket *sock);
/* Marks leftover work for the next poller. */
void twi_socket_again(struct twi_socket *sock, uint32_t what);
/* Calls fn for every live socket, a reference held. */
void twi_socket_each(void (*fn)(struct twi_socket *sock, void *arg), void *arg);
int64_t twi_socket_count(void);
/* Closes every descriptor, touches nothing else (a forked child). */
void twi_sockets_close_fds(void);

/* The loop's hooks. */
void twi_socket_event(uint64_t data, uint32_t events, int64_t now_ns);
void twi_socket_leftover(struct twi_leftover *item, int64_t now_ns);

#endif
