#include "budget.h"

#include "atomics.h"
#include "counters.h"
#include "iobuf.h"
#include "log.h"
#include "loop.h"
#include "socket.h"

static _Atomic int64_t budget; /* 0: none */
/* The last closing; the dispatcher's. */
static tw_id closed;
static int64_t closed_ns;

int64_t
twi_budget_bytes(void)
{
    return load_relaxed(&budget);
}

/* relaxed: a count that is a moment old refuses one request too many or few. */
static int
over(int per_cent)
{
    int64_t limit = load_relaxed(&budget);
    return limit && twi_block_live_bytes() >= limit / 100 * per_cent;
}

int
twi_budget_refuses(void)
{
    return over(TWI_BUDGET_REFUSE);
}

struct search {
    int64_t now_ns;
    uint64_t most, most_idle;
    struct twi_socket *largest, *largest_idle; /* references */
};

static void
take(struct twi_socket **best, struct twi_socket *sock)
{
    if (*best)
        twi_socket_unref(*best);
    *best = sock;
    twi_socket_ref(sock);
}

static void
look(struct twi_socket *sock, void *arg)
{
    struct search *search = arg;
    /* relaxed: sizes are a guess by the time they are compared. */
    uint64_t holds = load_relaxed(&sock->held) +
                     load_relaxed(&sock->unwritten);
    if (sock->kind == TWI_LISTENER || holds < TWI_BUDGET_LEAST)
        return;
    if (holds >= TWI_BUDGET_LEAST_MOVING && holds > search->most) {
        search->most = holds;
        take(&search->largest, sock);
    }
    if (holds > search->most_idle &&
        search->now_ns - load_relaxed(&sock->moved_ns) > TWI_BUDGET_IDLE_NS) {
        search->most_idle = holds;
        take(&search->largest_idle, sock);
    }
}

int
twi_budget_tick(int64_t now_ns)
{
    /* First this, then the count, which is lower by then. */
    int freed = !twi_socket_holds(closed);
    if (!over(TWI_BUDGET_CLOSE))
        return 0;
    if (!freed && now_ns - closed_ns < TWI_BUDGET_PATIENCE_NS)
        return 1;
    struct search search = {.now_ns = now_ns};
    twi_socket_each(look, &search);
    struct twi_socket *sock = search.largest_idle;
    if (!sock && over(100))
        sock = search.largest;
    if (sock) {
        twi_log(TW_LOG_BUDGET, TW_ELIMIT, twi_socket_remote(sock),
                "over the memory budget: closed");
        if (twi_socket_fail(sock, TW_ELIMIT, TW_PHASE_NONE))
            twi_count(TWI_BUDGET_CLOSES, 1);
        closed = twi_socket_id(sock);
        closed_ns = now_ns;
    }
    if (search.largest)
        twi_socket_unref(search.largest);
    if (search.largest_idle)
        twi_socket_unref(search.largest_idle);
    return 1;
}

/* ---- api.h */

void
tw_memory_budget(uint64_t bytes)
{
    store_relaxed(&budget, bytes < INT64_MAX ? (int64_t)bytes : INT64_MAX);
    /* The dispatcher may be parked; it looks while something happens. */
    if (over(TWI_BUDGET_CLOSE))
        twi_loop_wake(TWI_MAIN);
}
