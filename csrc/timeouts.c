#include "timeouts.h"

#include <errno.h>

#include "atomics.h"
#include "counters.h"
#include "log.h"
#include "server.h"
#include "sys.h"

/* What a connection is closed for. */
struct verdict {
    int64_t due_ns; /* when, if nothing happens until then */
    enum twi_counter counter;
    const char *why; /* NULL: not worth a line in the log */
};

/* The earlier of the two, a limit of 0 aside. */
static void
bound(struct verdict *next, int64_t since_ns, int64_t limit_ns,
      enum twi_counter counter, const char *why)
{
    int64_t due_ns = twi_deadline_ns(since_ns, limit_ns);
    if (limit_ns > 0 && due_ns < next->due_ns)
        *next = (struct verdict){due_ns, counter, why};
}

/* Whether we keep the peer waiting and not it us: then it cannot be late.
 * relaxed: raised by the baton's holder, as we are; lowered by others, which is
 * seen the next time. */
static int
our_turn(struct twi_socket *sock)
{
    return load_relaxed(&sock->paused) || load_relaxed(&sock->chunk_out);
}

/* A partial message that has brought enough, or could not, gets another
 * period of the limit. */
static void
renew_stall(struct twi_socket *sock, int64_t limit_ns, int64_t now_ns)
{
    struct twi_reader *reader = &sock->reader;
    uint64_t enough = (uint64_t)limit_ns / 1000000 * TWI_STALL_BYTES / 1000;
    if (!reader->partial_ns || now_ns - reader->partial_ns < limit_ns)
        return;
    if (our_turn(sock) || reader->partial_bytes >= enough) {
        reader->partial_ns = now_ns;
        reader->partial_bytes = 0;
    }
}

static struct verdict
judge(struct twi_socket *sock, int64_t now_ns)
{
    const tw_server_options *options = &sock->server->options;
    struct twi_reader *reader = &sock->reader;
    struct verdict next = {.due_ns = INT64_MAX};
    if (!reader->received_ns)
        bound(&next, reader->accepted_ns, options->first_byte_timeout_ns,
              TWI_TIMEOUTS_FIRST_BYTE, "no byte in time after accept: closed");
    if (options->stall_timeout_ns > 0)
        renew_stall(sock, options->stall_timeout_ns, now_ns);
    if (reader->partial_ns)
        bound(&next, reader->partial_ns, options->stall_timeout_ns,
              TWI_TIMEOUTS_STALL, "a message without progress: closed");
    /* relaxed: a stamp missed by a moment is seen next time. */
    int64_t last_ns = load_relaxed(&sock->written_ns);
    if (last_ns < reader->received_ns)
        last_ns = reader->received_ns;
    if (last_ns < reader->accepted_ns)
        last_ns = reader->accepted_ns;
    if (load_relaxed(&sock->pending) || load_relaxed(&sock->chunk_out))
        last_ns = now_ns; /* it waits for us */
    bound(&next, last_ns, options->idle_timeout_ns, TWI_TIMEOUTS_IDLE, NULL);
    return next;
}

/* When to look again: a message may begin to stall at any time from now on. */
static int
sleep_until(struct twi_socket *sock, int64_t due_ns, int64_t now_ns)
{
    int64_t stall_ns = sock->server->options.stall_timeout_ns;
    if (stall_ns > 0 && due_ns > twi_deadline_ns(now_ns, stall_ns))
        due_ns = twi_deadline_ns(now_ns, stall_ns);
    if (due_ns == INT64_MAX)
        return 0; /* nothing is ever due */
    twi_loop_timer_remove(sock->loop, &sock->timer);
    return twi_loop_timer(sock->loop, &sock->timer, due_ns,
                          TWI_TIMER_TIMEOUTS, twi_socket_id(sock)) < 0
               ? -ENOMEM
               : 0;
}

int
twi_timeouts_start(struct twi_socket *sock, int64_t now_ns)
{
    sock->reader.accepted_ns = now_ns;
    return sleep_until(sock, judge(sock, now_ns).due_ns, now_ns);
}

static void
look(struct twi_socket *sock, int64_t now_ns)
{
    struct verdict next = judge(sock, now_ns);
    if (next.due_ns <= now_ns) {
        /* Were we late ourselves?  What has come counts. */
        sock->hooks->readable(sock, 0, now_ns);
        if (twi_socket_error(sock))
            return;
        next = judge(sock, now_ns);
    }
    if (next.due_ns > now_ns) {
        if (sleep_until(sock, next.due_ns, now_ns))
            twi_socket_fail(sock, ENOMEM, TW_PHASE_NONE);
        return;
    }
    twi_count(next.counter, 1);
    if (next.why)
        twi_log(TW_LOG_TOO_SLOW, ETIMEDOUT, &sock->remote, next.why);
    twi_socket_fail(sock, TW_ECLOSE, TW_PHASE_NONE);
}

void
twi_timeouts_fired(tw_id id, int64_t now_ns)
{
    struct twi_socket *sock = twi_socket_address(id);
    if (!sock)
        return;
    look(sock, now_ns);
    twi_socket_unref(sock);
}
