#include "connect.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include "atomics.h"
#include "log.h"
#include "socket.h"
#include "sockopt.h"
#include "sys.h"

/* State by event; 0: not allowed.  IDLE, which is 0, stands here as TO_IDLE. */
enum { TO_IDLE = TWI_C_STATES };

static const uint8_t table[TWI_C_STATES][TWI_C_EVENTS] = {
    [TWI_C_IDLE] = {[TWI_C_WANTED] = TWI_C_CONNECTING,
                    [TWI_C_LOST] = TWI_C_FAILED},
    [TWI_C_CONNECTING] = {[TWI_C_MADE] = TWI_C_TRANSPORT,
                          [TWI_C_NEXT] = TWI_C_CONNECTING,
                          [TWI_C_LOST] = TWI_C_FAILED},
    [TWI_C_TRANSPORT] = {[TWI_C_SHAKEN] = TWI_C_HANDSHAKE,
                         [TWI_C_NEXT] = TWI_C_CONNECTING,
                         [TWI_C_LOST] = TWI_C_FAILED},
    [TWI_C_HANDSHAKE] = {[TWI_C_ADMITTED] = TWI_C_READY,
                         [TWI_C_LOST] = TWI_C_FAILED},
    [TWI_C_READY] = {[TWI_C_LOST] = TWI_C_FAILED},
    [TWI_C_FAILED] = {[TWI_C_RESET] = TO_IDLE, [TWI_C_SICK] = TWI_C_DOWN},
    [TWI_C_DOWN] = {[TWI_C_HEALED] = TWI_C_READY, [TWI_C_RESET] = TO_IDLE},
};

int
twi_connect_after(enum twi_cstate state, enum twi_cevent event)
{
    int to = table[state][event];
    return to == TO_IDLE ? TWI_C_IDLE : to ? to : -1;
}

enum twi_cstate
twi_connect_state(const struct twi_connect *connect)
{
    return (enum twi_cstate)load_relaxed(&connect->state); /* as below */
}

int
twi_connect_step(struct twi_connect *connect, enum twi_cevent event)
{
    /* relaxed: decides on one word and hands nothing over; what it guards has
     * a lock or the baton of its own. */
    uint32_t from = load_relaxed(&connect->state);
    int to;
    do
        to = twi_connect_after((enum twi_cstate)from, event);
    while (to >= 0 && !atomic_compare_exchange_weak_explicit(
                          &connect->state, &from, (uint32_t)to,
                          memory_order_relaxed, memory_order_relaxed));
    return to;
}

void
twi_connect_want(struct twi_socket *sock)
{
    /* Looking first keeps the line shared while it connects. */
    if (twi_connect_state(&sock->connect) == TWI_C_IDLE &&
        twi_connect_step(&sock->connect, TWI_C_WANTED) >= 0)
        twi_socket_again(sock, TWI_AGAIN_CONNECT);
}

/* TCP may connect a port to itself while nobody listens there. */
static int
is_self(int fd, const struct twi_addr *remote)
{
    struct twi_addr local = {.len = sizeof local.any};
    if (remote->any.ss_family == AF_UNIX ||
        twi_sys.getsockname(fd, (struct sockaddr *)&local.any, &local.len))
        return 0;
    return twi_addr_equal(&local, remote);
}

/* Sets the timer to the end of this address's share of what is left. */
static int
set_timer(struct twi_socket *sock, int64_t now_ns)
{
    struct twi_connect *c = &sock->connect;
    twi_loop_timer_remove(sock->loop, &sock->timer);
    c->attempt_ends_ns = 0;
    if (!c->deadline_ns)
        return 0;
    c->attempt_ends_ns = now_ns + (c->deadline_ns - now_ns) / (c->n - c->tried);
    return twi_loop_timer(sock->loop, &sock->timer, c->attempt_ends_ns,
                          TWI_TIMER_CONNECT, twi_socket_id(sock));
}

/* Begins to connect to the address at hand: 0 or a negative errno. */
static int
begin(struct twi_socket *sock, int64_t now_ns)
{
    const struct twi_addr *to = twi_socket_remote(sock);
    const char *refused = "";
    int one = 1, rc;
    int fd = twi_sys.socket(to->any.ss_family,
                            SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    if (to->any.ss_family != AF_UNIX)
        twi_sys.setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if ((rc = twi_sockopt_apply(fd, sock->connect.options, &refused))) {
        twi_log(TW_LOG_CONNECT_FAILED, -rc, to, refused);
        twi_sys_close(fd);
        return rc;
    }
    rc = twi_sys_connect(fd, (const struct sockaddr *)&to->any, to->len);
    if ((rc < 0 && rc != TWI_AGAIN) || (rc = set_timer(sock, now_ns)) ||
        (rc = twi_socket_attach(sock, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP)))
        twi_sys_close(fd);
    return rc;
}

/* The address at hand has failed with a positive code: on to the next one, if
 * there is one and time is left for it. */
static void
try_next(struct twi_socket *sock, int code, int64_t now_ns)
{
    struct twi_connect *c = &sock->connect;
    for (;;) {
        twi_socket_detach(sock);
        c->tried++;
        if (c->tried >= c->n || (c->deadline_ns && now_ns >= c->deadline_ns) ||
            twi_connect_step(c, TWI_C_NEXT) < 0)
            break;
        /* relaxed: for others an index into what does not change. */
        store_relaxed(&c->at, (c->good + c->tried) % c->n);
        int rc = begin(sock, now_ns);
        if (!rc)
            return;
        code = -rc;
    }
    twi_socket_fail(sock, code, TW_PHASE_CONNECT);
}

static void
start(struct twi_socket *sock)
{
    struct twi_connect *c = &sock->connect;
    /* Not the round's: the call that wants it may have begun later. */
    int64_t now_ns = twi_now_ns();
    c->tried = 0;
    c->deadline_ns = c->timeout_ns > 0 ? twi_deadline_ns(now_ns, c->timeout_ns)
                                       : 0;
    store_relaxed(&c->at, c->good); /* as above */
    int rc = begin(sock, now_ns);
    if (rc)
        try_next(sock, -rc, now_ns);
}

/* What became of the attempt: 0, TWI_AGAIN, or a negative errno. */
static int
outcome(struct twi_socket *sock)
{
    int fd = load_relaxed(&sock->fd), code = 0;
    socklen_t len = sizeof code;
    struct sockaddr_storage any;
    socklen_t any_len = sizeof any;
    if (twi_sys.getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &len))
        code = errno;
    if (!code && twi_sys.getpeername(fd, (struct sockaddr *)&any, &any_len)) {
        if (errno == ENOTCONN)
            return TWI_AGAIN; /* an early event: still under way */
        code = errno;
    }
    if (!code && is_self(fd, twi_socket_remote(sock)))
        code = ECONNREFUSED;
    return -code;
}

static void
ready(struct twi_socket *sock, int64_t now_ns)
{
    struct twi_connect *c = &sock->connect;
    c->good = load_relaxed(&c->at);
    twi_loop_timer_remove(sock->loop, &sock->timer);
    c->ops->ready(sock, now_ns);
    /* seq_cst: who parks as CONNECTING looks at it afterwards (ws_writable). */
    store_seq_cst(&sock->connected, 1);
    if (twi_wstack_take(&sock->ws, TWI_W_CONNECTING))
        twi_wstack_run(&sock->ws);
}

void
twi_connect_run(struct twi_socket *sock, int64_t now_ns)
{
    struct twi_connect *c = &sock->connect;
    int rc;
    /* From one state to the next, as far as it goes at once.  A step that is
     * not allowed any more means that the socket failed meanwhile. */
    switch (twi_connect_state(c)) {
    case TWI_C_CONNECTING:
        if (load_relaxed(&sock->fd) < 0) {
            start(sock);
            return;
        }
        rc = outcome(sock);
        if (rc < 0 && rc != TWI_AGAIN)
            try_next(sock, -rc, now_ns);
        if (rc || twi_connect_step(c, TWI_C_MADE) < 0)
            return;
        /* fall through */
    case TWI_C_TRANSPORT:
        rc = sock->transport->handshake(sock);
        if (rc < 0 && rc != TWI_AGAIN)
            try_next(sock, -rc, now_ns);
        if (rc || twi_connect_step(c, TWI_C_SHAKEN) < 0)
            return;
        /* fall through */
    case TWI_C_HANDSHAKE:
        rc = c->ops->handshake ? c->ops->handshake(sock) : 0;
        if (rc < 0 && rc != TWI_AGAIN) /* refused: by this server everywhere */
            twi_socket_fail(sock, -rc, TW_PHASE_CONNECT);
        if (rc || twi_connect_step(c, TWI_C_ADMITTED) < 0)
            return;
        ready(sock, now_ns);
        return;
    default:
        return;
    }
}

void
twi_connect_timeout(tw_id id, int64_t now_ns)
{
    struct twi_socket *sock = twi_socket_address(id);
    if (!sock)
        return;
    struct twi_connect *c = &sock->connect;
    enum twi_cstate state = twi_connect_state(c);
    if (c->attempt_ends_ns && now_ns >= c->attempt_ends_ns) {
        if ((state == TWI_C_CONNECTING || state == TWI_C_TRANSPORT) &&
            c->tried + 1 < c->n && now_ns < c->deadline_ns)
            try_next(sock, ETIMEDOUT, now_ns);
        else if (state >= TWI_C_CONNECTING && state <= TWI_C_HANDSHAKE)
            twi_socket_fail(sock, c->ops->timed_out(sock), TW_PHASE_CONNECT);
    }
    twi_socket_unref(sock);
}
