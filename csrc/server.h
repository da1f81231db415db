/* A server: its methods, listeners, connections, and the requests they cut.
 *
 * A request is cut by the holder of the baton, queued for a worker or put
 * into the asyncio loop's inbox, delivered once, and answered once by whoever
 * claims its id.  Its bytes stay until then. */
#ifndef TWI_SERVER_H
#define TWI_SERVER_H

#include "counters.h"
#include "inbox.h"
#include "limiter.h"
#include "protocol.h"
#include "slab.h"
#include "socket.h"
#include "workq.h"

enum {
    TWI_METHODS_MAX = 4096,   /* of one server */
    TWI_LISTENERS_MAX = 8,    /* of one server */
    TWI_ERROR_TEXT = 4096     /* bytes of an error answer's text */
};

/* How long a drained server's peers have to close their side. */
#define TWI_FAREWELL_NS INT64_C(500000000)
/* Between two looks whether a lame duck's clients have left. */
#define TWI_LAME_LOOK_NS INT64_C(10000000)

struct twi_method {
    char *service, *name;
    int run;
    uint64_t max_message; /* bytes of a request's frame body */
    int64_t max_queue_age_ns; /* INT64_MAX: any */
    struct twi_limiter limiter;
    struct twi_method_stats stats;
    /* Whether it blocks (wake.c). */
    _Atomic uint32_t blocking;
    _Atomic uint32_t evidence; /* one bit for each of the last suspected runs */
    _Atomic uint32_t runs;     /* since the last evidence, while marked */
};

/* What the current poll round of a loop has queued; its baton's holder's. */
struct twi_fresh {
    uint32_t n, blocking;
    struct twi_server *next;
};

struct twi_server {
    _Atomic uint64_t vref;
    uint32_t slot;
    tw_server_options options;
    struct twi_limiter limiter;
    struct twi_workq queue;
    struct twi_method **methods; /* n_methods of TWI_METHODS_MAX */
    int n_methods;
    int fallback; /* the index of "*" of "*" + 1 */
    uint64_t least_message; /* the least max_message of them */
    uint32_t *index; /* open addressing: method + 1 */
    uint32_t index_mask;
    _Atomic tw_id loop, http, auth; /* inboxes */
    int64_t auth_timeout_ns;
    tw_id listeners[TWI_LISTENERS_MAX];
    int n_listeners;
    _Atomic uint32_t lame, stopping, closed;
    _Atomic int64_t in_flight, connections;
    _Atomic uint32_t workers; /* threads that serve it */
    _Atomic uint32_t polls;   /* one of them waits for the main loop's events */
    _Atomic int64_t farewell_ns; /* when the connections were half-closed */
    _Atomic uint32_t draining;  /* threads in tw_server_drain */
    _Atomic uint32_t idle_bell; /* their futex */
    _Atomic int64_t woken_ns;   /* the last wake-up for an old request */
    struct twi_fresh fresh[TWI_LOOPS_MAX];
};

struct twi_request {
    struct twi_inbox_item item; /* while it waits for the loop */
    struct twi_inbox_item cancelled;
    _Atomic uint64_t vref;
    uint32_t slot;
    _Atomic tw_id watcher; /* the inbox that learns of a lost peer; 0: none */
    _Atomic tw_id socket;
    struct twi_server *server; /* shares */
    struct twi_method *method;
    struct twi_block *block;    /* shares */
    struct twi_block *identity; /* shares; NULL: nobody asked */
    struct twi_str body, attachment, meta;
    int64_t correlation_id, log_id;
    int64_t received_ns, deadline_ns, started_ns;
    uint64_t size;
    uint32_t method_index;
    int coded; /* the body is no bare protobuf: the meta says more */
};

int twi_servers_init(void);
void twi_servers_fini(void);
void twi_requests_init(void);
void twi_requests_fini(void);
int64_t twi_server_count(void);
int64_t twi_request_count(void);

/* One reference more to the live server of an id, NULL if stale. */
struct twi_server *twi_server_address(tw_id id);
void twi_server_ref(struct twi_server *server);
void twi_server_unref(struct twi_server *server);
/* Calls fn for every live server. */
void twi_server_each(void (*fn)(struct twi_server *server, void *arg),
                     void *arg);

/* Answers what is queued with TW_ELOGOFF: the server is closed. */
void twi_server_flush(struct twi_server *server);

/* The request of an id, a reference taken; NULL when it was answered. */
struct twi_request *twi_request_address(tw_id id);
void twi_request_unref(struct twi_request *request);
/* Fills the event for the handler's start.  0 when the request must not run
 * any more (expired or its peer gone): it is over then. */
int twi_request_deliver(struct twi_request *request, int64_t now_ns,
                        tw_event *event);
/* Answers; 0, or -TW_STALE when somebody else did.  The caller's reference
 * stays its own.  cork: push corked. */
int twi_request_answer(struct twi_request *request, int code, const char *body,
                       size_t body_len, const tw_extra *extra, int cork,
                       int64_t now_ns);

/* An answer with an error that is no request's; the connection lives or not, that
 * is all we can do.  close: it ends once that is written. */
void twi_server_tell(struct twi_socket *sock, int64_t correlation_id, int code,
                     const char *text, size_t n, int close, int64_t now_ns);
/* The same to what was cut, which is counted as refused. */
void twi_server_refuse(struct twi_socket *sock, int64_t correlation_id,
                       int code, const char *text, size_t n, int close,
                       int64_t now_ns);

/* drain.c: asks the connection's client to leave, once.  Any thread. */
void twi_server_notify(struct twi_socket *sock, int64_t now_ns);

/* One server that got requests in this poll round of the loop, NULL when all
 * were taken; its counts and the reference are the caller's to reset.  The
 * baton's holder. */
struct twi_server *twi_server_take_fresh(struct twi_loop *loop);

/* A connection of the server (acceptor.c calls it once accepted). */
void twi_server_adopt(struct twi_server *server, struct twi_socket *sock);
extern const struct twi_socket_hooks twi_server_side_hooks;
extern const struct twi_protocol twi_std_server;

/* raw.c: bytes handed up as chunks, HTTP. */
extern const struct twi_protocol twi_http_server;
void twi_raw_init(void);
/* The connection failed: the consumer learns it. */
void twi_raw_failed(struct twi_socket *sock);

#endif
