/* The contract between the core and its callers, read by the C compiler
 * (through core.h) and by cffi (through build_ffi.py).
 *
 * Ids are versioned (slot and version in 64 bits): a stale id is refused with
 * -TW_STALE or ignored, it never reaches another object.  0 is no id.
 * Functions return 0 or a count, or a negative code: -errno for the system's
 * errors, -TW_* for ours.  Times are nanoseconds of CLOCK_MONOTONIC.
 * Unless a comment says otherwise a function may be called from any thread
 * and neither blocks nor keeps its pointer arguments. */

typedef uint64_t tw_id;

/* Our codes start where no errno reaches; brpc's numbers are kept as they
 * are on the wire (err.c has name and text of each). */
enum {
    TW_ENOSERVICE = 1001,
    TW_ENOMETHOD = 1002,
    TW_EREQUEST = 1003,
    TW_ERPCAUTH = 1004,
    TW_ERPCTIMEDOUT = 1008,
    TW_EFAILEDSOCKET = 1009,
    TW_EOVERCROWDED = 1011,
    TW_EEOF = 1014,
    TW_EINTERNAL = 2001,
    TW_ERESPONSE = 2002,
    TW_ELOGOFF = 2003,
    TW_ELIMIT = 2004,
    TW_ECLOSE = 2005,
    TW_ESHUTDOWNWRITE = 2007,
    TW_STALE = 5001,   /* the id names nothing that lives */
    TW_STOPPED = 5002, /* the core, server or queue was stopped */
    TW_FORKED = 5003,  /* the object belongs to the parent process */
    TW_RICH = 5004     /* no error: *result holds more than a message */
};

/* What an event is. */
enum {
    TW_REQUEST = 1,   /* a server has a call to answer: tw_turn or tw_reply */
    TW_RESULT = 2,    /* a client call ended */
    TW_CHUNK = 3,     /* bytes of an HTTP connection: tw_raw_next when done */
    TW_CANCELLED = 4, /* the peer of a request that was delivered to a loop, or
                         is watched, is gone */
    TW_CLOSED = 5,    /* an HTTP connection ended; nothing follows on it */
    TW_AUTH = 6       /* a connection's credential: tw_auth_verdict */
};

/* How far the bytes of a failed attempt got. */
enum { TW_SENT_NONE = 0, TW_SENT_SOME = 1, TW_SENT_ALL = 2 };

/* Where a call ended (tw_event.phase). */
enum {
    TW_PHASE_NONE = 0,
    TW_PHASE_CONNECT = 1,
    TW_PHASE_WRITE = 2,
    TW_PHASE_READ = 3, /* waiting for the response or reading it */
    TW_PHASE_PEER = 4  /* the peer answered with an error */
};

/* Who runs a method. */
enum { TW_RUN_WORKER = 0, TW_RUN_LOOP = 1 };

/* Protocols a listener accepts (bits). */
enum { TW_PROTO_BAIDU_STD = 1, TW_PROTO_HTTP = 2 };

/* One event as Python reads it, with one struct.unpack.  Pointers of a
 * TW_REQUEST stay valid until it was answered, those of a TW_CHUNK until
 * tw_raw_next, those of a TW_RESULT until the inbox is
 * drained again (tw_drain) or for ever when they lie in the caller's scratch
 * (tw_call), unless tw_hold took a share. */
typedef struct {
    tw_id id;        /* request, call or HTTP connection */
    uint64_t cookie; /* TW_REQUEST: the server's slot (the low half of its id)
                        high, the method's index low; TW_RESULT: the
                        submitter's */
    int32_t kind;
    int32_t code; /* TW_RESULT: 0 or an error; others: 0 */
    int32_t phase;
    int32_t sent;
    const char *body;
    uint64_t body_len;
    const char *attachment;
    uint64_t attachment_len;
    const char *meta; /* the whole RpcMeta as received */
    uint64_t meta_len;
    const char *text; /* error text of the peer; UTF-8 is not promised */
    uint64_t text_len;
    void *block;         /* what tw_hold shares; NULL: nothing to hold */
    int64_t received_ns; /* TW_REQUEST: when its last byte was there;
                            TW_RESULT: when the call ended */
    int64_t deadline_ns; /* 0: none */
    int64_t log_id;
    int64_t started_ns; /* TW_RESULT: when the call began */
    tw_id socket;
    int64_t coded; /* 1: compressed, no protobuf, or with a checksum; the body
                      is as it came, the meta says which */
} tw_event;

enum { TW_RETRY = 1, TW_BACKUP = 2 };

/* Rarer parts of a message.  `meta` is appended to the RpcMeta as it is
 * (user_fields, encoded by the caller).  All borrowed until the call returns,
 * but the blocks, which are shared: with one, the body or the attachment is
 * not copied but sent from that block, made by tw_lend of just those bytes. */
typedef struct {
    const char *attachment;
    uint64_t attachment_len;
    void *body_block;
    void *attachment_block;
    const char *meta;
    uint64_t meta_len;
    const char *request_id;
    uint64_t request_id_len;
    int64_t trace_id, span_id, parent_span_id; /* of a request; 0: none */
    int64_t log_id;
    int32_t has_log_id;
    int32_t no_timeout_on_wire;
    int32_t ignore_eovercrowded; /* send it although max_unwritten is reached */
    int32_t again; /* 0: the first attempt of a call; TW_RETRY, TW_BACKUP: one
                      more, counted apart */
    int32_t notify_sent; /* a call ends, with code 0, when it is wholly written:
                            its answer is not waited for */
} tw_extra;

/* ------------------------------------------------------------- the core */

/* Opens the process's core and starts its dispatcher thread; a second call
 * changes nothing.  All other functions need an open core. */
int tw_open(void);
/* Fails every connection and call, wakes every waiter with -TW_STOPPED, ends
 * and joins the C threads, and closes every descriptor once no thread uses it
 * (unless an asyncio loop watches still).  Memory stays readable until the
 * process ends, and a call that comes too late ends with an error.  Waits for
 * threads that are inside the core, for a moment. */
void tw_close(void);
/* Maps the counters, nothing else: processes forked from now on share them. */
int tw_share_counters(void);
/* How many loops poll the process's sockets, 1 to 16 (1 unless this is called).
 * Each beyond the first has a thread of its own; connections are given to them
 * in turn.  For the whole process: before the first listener or connection,
 * open or not, else -EBUSY (unless that is the number already); -EINVAL. */
int tw_loops(int n);
/* In the child of a fork, before anything else: closes the descriptors that
 * were inherited, touches nothing of the parent's; tw_open may follow. */
void tw_forked(void);
/* How many bytes of messages the process may hold, received or to be sent; 0:
 * any.  From 80 % on new requests are refused with TW_ELIMIT, from 95 % on the
 * largest idle connections are closed. */
void tw_memory_budget(uint64_t bytes);
/* Text of a code, "" when unknown.  Static. */
const char *tw_error_name(int code);
const char *tw_error_text(int code);
/* Writes the peer's address as text, NUL-ended; length or a negative code. */
int tw_socket_peer(tw_id socket, char *text, size_t cap);
/* 1 while a connection lives, else 0. */
int tw_socket_alive(tw_id socket);
/* Fails a connection at once with `code`. */
int tw_socket_fail(tw_id socket, int code);

/* Of TCP and unix sockets; 0 leaves what the system has. */
typedef struct {
    int32_t keepalive;          /* 1: on */
    int32_t keepalive_idle;     /* seconds of silence before the first probe */
    int32_t keepalive_interval; /* seconds between probes */
    int32_t keepalive_count;    /* probes without an answer */
    int32_t user_timeout_ms;    /* sent and unacknowledged for so long: dead */
    int32_t tos;                /* the byte in each packet's header */
    int32_t send_buffer, receive_buffer; /* bytes; the kernel doubles them */
    char bind[48];              /* a client's local address, without a port */
} tw_socket_options;

/* Tries options on a socket of the address's family: 0, or a negative errno
 * with the refused option's name in `refused`. */
int tw_socket_check(const char *address, const tw_socket_options *options,
                    char *refused, size_t cap);

/* ----------------------------------------------------------- the server */

/* How many calls may be unanswered at a time. */
enum {
    TW_LIMIT_NONE = 0,
    TW_LIMIT_NUMBER = 1, /* `most` */
    TW_LIMIT_AUTO = 2,   /* as many as are served without waiting for another */
    TW_LIMIT_TIMEOUT = 3 /* `most`, as long as the average answer comes in time */
};
typedef struct {
    int32_t kind;
    uint32_t most;         /* over 0 */
    uint32_t least, first; /* TW_LIMIT_AUTO: between least and most, at first */
    int64_t window_ns;     /* AUTO, TIMEOUT: what is learnt from at once */
    int64_t remeasure_ns;  /* AUTO: how old the best time may be */
    int64_t timeout_ns;    /* TIMEOUT: of calls that do not say theirs */
} tw_limit;

typedef struct {
    uint64_t max_message;       /* bytes of one frame's body */
    uint64_t max_unwritten;     /* bytes queued for one connection */
    uint64_t max_pending;       /* requests cut but unanswered, a connection */
    uint64_t max_pending_bytes; /* the same in bytes */
    tw_limit max_concurrency;   /* over it TW_ELIMIT */
    uint64_t max_connections;   /* 0: any */
    /* A connection is closed when nothing came since it was accepted, when a
     * partial message brings less than 1 KiB/s, when nothing was asked, sent or
     * received for so long; 0: never. */
    int64_t first_byte_timeout_ns, stall_timeout_ns, idle_timeout_ns;
    /* A request that waited longer for its handler's start does not run:
     * TW_ELIMIT; 0: any time. */
    int64_t max_queue_age_ns;
    int32_t reuse_port; /* 1: several processes listen at one address */
    int32_t cancel_on_eof; /* 1: a peer that ends its sending while requests are
                              unanswered is gone */
    uint32_t unix_mode; /* of socket files; 0: as the umask says */
    tw_socket_options socket; /* of the listeners and their connections */
} tw_server_options;

int tw_server_open(const tw_server_options *options, tw_id *server);
/* What a method has for itself; its requests must pass the server's limits on
 * messages and concurrency, too. */
typedef struct {
    uint64_t max_message;     /* 0: the server's alone */
    tw_limit max_concurrency;
    int64_t max_queue_age_ns; /* 0: the server's */
} tw_method_options;

/* Registers a method before the first tw_listen; its index or a code.  "*" of
 * "*" serves what no other does; the meta says what was asked for.  options:
 * NULL: nothing for itself. */
int tw_server_method(tw_id server, const char *service, const char *method,
                     int run, const tw_method_options *options);
/* Another `most` for the max_concurrency of a method, or of the server (-1), that
 * is a TW_LIMIT_NUMBER; of what runs nothing ends.  Any time: 0, or -EINVAL. */
int tw_server_limit(tw_id server, int method, uint32_t most);
/* Where TW_RUN_LOOP requests and HTTP bytes go; 0: nowhere (yet). */
int tw_server_inboxes(tw_id server, tw_id loop, tw_id http);
/* Every connection's first message must carry a credential, which goes to
 * `inbox` as a TW_AUTH event: id the socket, body the credential, good until
 * the inbox is drained again.  Nothing of the connection runs before
 * tw_auth_verdict; without one it is refused after timeout_ns (over 0).
 * Before the first tw_listen. */
int tw_server_auth(tw_id server, tw_id inbox, int64_t timeout_ns);
/* The word about a connection, once.  accept: text is its identity, 1 to 1024
 * bytes; else it is refused with TW_ERPCAUTH and, if there is one, the text.
 * -EALREADY: too late, -TW_STALE: it is gone. */
int tw_auth_verdict(tw_id socket, int accept, const char *text,
                    size_t text_len);
/* Binds and listens; `address` is "1.2.3.4:80", "[::1]:80", "unix:/path", or
 * "fd:N" for a descriptor that listens already (a duplicate of it is used).
 * The bound address is written to `bound`; after an error, what was refused,
 * or "" when the errno says it all.  protocols: TW_PROTO_* bits.  May block for
 * a moment while another process replaces the same socket file. */
int tw_listen(tw_id server, const char *address, int protocols, int backlog,
              char *bound, size_t cap);
/* For a process that starts others, before the core is open there: binds for
 * them.  A TCP address is only bound (reuse_port is set for it: they listen at it
 * themselves); a unix one and "fd:N" listen, to be inherited.  The descriptor,
 * which like the socket file is the caller's to give up, or a negative errno;
 * `bound` as for tw_listen. */
int tw_bind(const char *address, int backlog, const tw_server_options *options,
            char *bound, size_t cap);
/* Accepts who waits in the listeners' queues, closes them, and asks the clients to
 * leave, whose calls are served as long as they come.  What may come first when a
 * server ends. */
int tw_server_lame_duck(tw_id server);
/* The same, but later requests are answered TW_ELOGOFF, and nobody is asked. */
int tw_server_stop(tw_id server);
/* Waits until no request is unanswered but `own`, those whose handlers wait
 * here, and every answer is written, then, of a lame duck, until every client has
 * left; or, if the server was stopped, half-closes its connections and waits until
 * the peers have closed theirs, half a second at most; or until the timeout
 * passed: 0, -ETIMEDOUT or -EINTR.  May block. */
int tw_server_drain(tw_id server, int own, int64_t timeout_ns);
/* Fails the connections and frees the server; its workers get -TW_STOPPED. */
int tw_server_close(tw_id server);
/* Requests cut and not yet answered; open connections. */
int64_t tw_server_in_flight(tw_id server);
int64_t tw_server_connections(tw_id server);

/* A worker belongs to the thread that opened it.  Each turn fills *next, which
 * must stay until tw_worker_close. */
int tw_worker_open(tw_id server, tw_event *next, tw_id *worker);
/* Before its thread ends. */
int tw_worker_close(tw_id worker);
enum {
    TW_NO_ANSWER = -1,     /* as code: nothing to answer in this turn */
    TW_TURN_METHOD = 65535, /* mask: the method's index */
    TW_TURN_RICH = 65536   /* the request has an attachment or a deadline, or is
                              coded */
};
/* The server's one crossing per call: answers the request of the last turn
 * with `code` and `body` (the message, or the error text when code is not 0),
 * then waits for the next request, polling the loop if nobody does.  Returns
 * the method's index, with TW_TURN_RICH added where it holds, or
 * -TW_STOPPED.  Blocks. */
int tw_turn(tw_id worker, int code, const char *body, size_t body_len,
            const tw_extra *extra);
/* Answers a request outside a turn.  cork: the inbox whose tw_flush (or next
 * tw_drain) follows at once, 0: write now. */
int tw_reply(tw_id request, int code, const char *body, size_t body_len,
             const tw_extra *extra, tw_id cork);
/* The identity of the request's connection, which stays that until it was
 * answered: its length, -ENODATA without an authenticator, -ENOSPC. */
int tw_request_identity(tw_id request, char *text, size_t cap);
enum { TW_ALIVE_MUTE = 2 };
/* Not 0 while the request waits for its answer and its peer is there: 1, or
 * TW_ALIVE_MUTE when the peer has ended its sending (and may still read). */
int tw_request_alive(tw_id request);
/* A TW_CANCELLED goes to `inbox` when the peer of a request that a worker runs
 * is gone before the answer; those of loops go to the loop anyway.  1, or 0:
 * it is gone, and an event may or may not come; -TW_STALE: it was answered. */
int tw_request_watch(tw_id request, tw_id inbox);
/* A share of the request's block (tw_release gives it back), or NULL when the
 * request was answered: its bytes are then gone. */
void *tw_request_hold(tw_id request);

/* ----------------------------------------------------------- the client */

/* Which connection a handle's calls go over: the one that they all share; one of
 * their own each, kept for later calls; one of their own each, closed after it. */
enum { TW_SINGLE = 0, TW_POOLED = 1, TW_SHORT = 2 };

typedef struct {
    uint64_t max_message;
    uint64_t max_unwritten;
    int64_t connect_timeout_ns; /* for all addresses together; <= 0: only the
                                   call's deadline */
    int64_t health_interval_ns; /* the longest time between health checks;
                                   <= 0: none, the next call connects anew */
    const char *probe_service; /* the method that a check calls; NULL: it is */
    const char *probe_method;  /* enough that it can connect */
    const char *probe_body;    /* its message */
    uint64_t probe_body_len;
    tw_socket_options socket;
    int32_t connection; /* TW_SINGLE, TW_POOLED or TW_SHORT */
} tw_peer_options;

/* One server and the connection to it, made when first needed and again after
 * it failed.  `address`: one as for tw_listen, or up to 16 of them with commas
 * between, under which the one server is reached; tried in order, beginning
 * with the one that last worked.  With health checks calls fail at once, with
 * TW_EFAILEDSOCKET, from a failure until a check has succeeded; that the server
 * ends a connection that was never used is none. */
int tw_peer_open(const char *address, const tw_peer_options *options,
                 tw_id *peer);
/* Another handle on the same peer, for a channel that shares its connections, its
 * health and its credential; connection: its own. */
int tw_peer_share(tw_id peer, int connection, tw_id *another);
/* What the peer's connections tell the server, 1 to 65536 bytes, with every
 * request until one of the connection was answered.  once: it is for one
 * connection; a call on another one ends with TW_EFAILEDSOCKET, nothing sent,
 * unless a further credential was given. */
int tw_peer_credential(tw_id peer, const char *data, size_t len, int once);
/* 1 when the next call would need one: for a new connection, none is there.  2:
 * only the successor of a connection that works still waits for one. */
int tw_peer_wants_credential(tw_id peer);
/* Ends the calls made through the handle with ECANCELED's number; the last handle
 * of a peer ends its connections, too. */
int tw_peer_close(tw_id peer);
/* A client method: its counters and the encoded names; index or a code. */
int tw_client_method(const char *service, const char *method);

/* One blocking call: packs, sends, waits (polling the loop if nobody does).
 * deadline_ns 0: none.  Small answers are copied into scratch; of others
 * result->block is a share that tw_release gives back.  When the call has
 * ended *result is filled, its id 0; the return value is then the length of
 * the message at the front of scratch if that is all there is, or -TW_RICH for
 * everything else (an error in result->code, a block, an attachment,
 * metadata).  -EINTR, with the call's id in result->id: the caller runs its
 * signal handlers and goes on with tw_wait.  `interruptible`: the thread runs
 * signal handlers, so wake it for them.  Blocks. */
int tw_call(tw_id peer, int method, const char *body, size_t body_len,
            const tw_extra *extra, int64_t deadline_ns, int interruptible,
            char *scratch, size_t scratch_cap, tw_event *result);
int tw_wait(tw_id call, int interruptible, char *scratch, size_t scratch_cap,
            tw_event *result);
/* A call whose TW_RESULT goes to an inbox.  cork: the inbox's tw_flush (or
 * next tw_drain) follows at once. */
int tw_submit(tw_id peer, int method, const char *body, size_t body_len,
              const tw_extra *extra, int64_t deadline_ns, tw_id inbox,
              uint64_t cookie, int cork, tw_id *call);
/* Ends a call with ECANCELED's number; its result arrives as any other. */
int tw_cancel(tw_id call);
/* A TW_RESULT with ERPCTIMEDOUT's number at that time of the monotonic clock,
 * unless tw_cancel is earlier. */
int tw_alarm(tw_id inbox, int64_t when_ns, uint64_t cookie, tw_id *id);

/* --------------------------------------------------------------- inboxes */

/* Where events wait for one consumer: an asyncio loop, a completion thread,
 * the admin thread. */
int tw_inbox_open(tw_id *inbox);
int tw_inbox_close(tw_id inbox);
/* The descriptor that is readable while the inbox has events. */
int tw_inbox_fd(tw_id inbox);
/* Asks to watch the core's epoll descriptor for this inbox's loop: the
 * descriptor, or -EBUSY when another loop does. */
int tw_watch(tw_id inbox);
void tw_unwatch(tw_id inbox);
/* Takes up to `max` events; one consumer at a time.  poll: first one poll
 * round without waiting, if nobody else is polling.  Pointers of the results
 * of the previous drain end here.  `more`: something is left. */
int tw_drain(tw_id inbox, int poll, tw_event *events, int max, int *more);
/* Writes what was corked for this inbox; its consumer's thread. */
int tw_flush(tw_id inbox);
/* Waits until the inbox has events: 0, -ETIMEDOUT, -EINTR, -TW_STOPPED.
 * timeout_ns < 0: for ever.  poll: polls the loop while calls submitted for
 * this inbox are under way, if nobody else does.  Blocks. */
int tw_inbox_wait(tw_id inbox, int64_t timeout_ns, int poll);

/* ------------------------------------------------------------- raw bytes */

/* The consumer is done with the current chunk; the next one may come. */
int tw_raw_next(tw_id socket);
/* Sends bytes on an HTTP connection; close: end it once they are written. */
int tw_raw_write(tw_id socket, const char *data, size_t len, int close);

/* ----------------------------------------------------------------- bytes */

/* Takes a share of a block that an event names / gives one back. */
void tw_hold(void *block);
void tw_release(void *block);
/* Lends bytes: a block that refers to them, with one share for the caller
 * (tw_release gives it back); NULL without memory.  They must stay as they are
 * until tw_released has returned the token: the end of a call is not the end of
 * their use. */
void *tw_lend(const char *data, size_t len, uint64_t token);
/* Takes up to `max` tokens of loans of which nobody holds a share any more: how
 * many.  If the last share was not one given back by tw_release, tw_log_take
 * returns 0 as a sign that there is something to take here. */
int tw_released(uint64_t *tokens, int max);

/* -------------------------------------------------------------- counters */

enum { TW_COUNTER = 0, TW_GAUGE = 1, TW_HISTOGRAM = 2 };
enum { TW_HISTOGRAM_CELLS = 250 };

/* A row of the table.  A counter or gauge has one cell; a histogram has
 * TW_HISTOGRAM_CELLS buckets and then the sum. */
typedef struct {
    char name[64];    /* the Prometheus name without "_total" */
    char help[128];
    char unit[16];    /* "", "bytes", "seconds" (cells are then nanoseconds) */
    char labels[256]; /* label names and values, each NUL-ended; then a NUL */
    int32_t kind;
    int32_t cell;
} tw_row;

/* A counter or gauge of the caller's own, with labels as in tw_row: its cell, for
 * tw_counter_add.  The same name and labels give the same cell; where the table is
 * full, one that nobody reads.  Any thread. */
int tw_counter_row(const char *name, const char *help, int kind,
                   const char *labels, size_t labels_len);
void tw_counter_add(int cell, int64_t n);
/* Copies up to `max` rows from `first` on: how many.  Rows only grow. */
int tw_counter_rows(tw_row *rows, int first, int max);
/* All cells, if `max` is enough; how many there are.  They only grow. */
int tw_counter_cells(uint64_t *cells, int max);
/* The same for one process's lane, 0 to tw_counter_lanes() - 1.  A dead process's
 * goes on with the one that took it over. */
int tw_lane_cells(int lane, uint64_t *cells, int max);
/* Lanes used so far; they only grow. */
int tw_counter_lanes(void);
/* Upper bound of a histogram's bucket in nanoseconds; the last is UINT64_MAX. */
uint64_t tw_histogram_bound(int bucket);

/* ---------------------------------------------------------------- the log */

typedef struct {
    int64_t when_ns;
    uint64_t dropped; /* entries lost just before this one */
    int32_t kind;     /* TW_LOG_* */
    int32_t code;
    char peer[120];
    char detail[72]; /* printable */
} tw_log_entry;

enum {
    TW_LOG_ACCEPT_PAUSED = 1,
    TW_LOG_ACCEPT_FAILED = 2,
    TW_LOG_CONNECT_FAILED = 3,
    TW_LOG_CONNECTION_FAILED = 4,
    TW_LOG_BAD_BYTES = 5,
    TW_LOG_TOO_BIG = 6,
    TW_LOG_OVERCROWDED = 7,
    TW_LOG_PEER_UP = 8,
    TW_LOG_TOO_SLOW = 9,
    TW_LOG_AUTH_REFUSED = 10,
    TW_LOG_BUDGET = 11
};

/* Waits for entries and takes up to `max`: a count, -EINTR, -TW_STOPPED or,
 * after timeout_ns without any or when tw_released has something, 0.  Blocks. */
int tw_log_take(tw_log_entry *entries, int max, int64_t timeout_ns);
/* Threads of the core, blocks, slots and so on for leak checks: the
 * `rpc_...`-like gauges are rows; these are the rest. */
typedef struct {
    int64_t blocks, block_bytes, sockets, calls, requests, inboxes, peers,
        servers, timers, write_nodes, lent;
} tw_census;
void tw_census_take(tw_census *census);
