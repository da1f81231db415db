#include "cork.h"

#include "atomics.h"
#include "socket.h"

int
twi_cork_add(struct twi_corks *corks, tw_id socket)
{
    uint32_t n = load_relaxed(&corks->n);
    for (uint32_t i = 0; i < n; i++)
        if (load_relaxed(&corks->id[i]) == socket)
            return 1;
    if (n == TWI_CORKS)
        return 0;
    store_relaxed(&corks->id[n], socket);
    /* seq_cst: before the push; the dispatcher looks here once it has announced
     * parking (park in dispatcher.c says why that is enough). */
    store_seq_cst(&corks->n, n + 1);
    return 1;
}

static void
flush(tw_id id, int64_t before_ns)
{
    struct twi_socket *sock = twi_socket_address(id);
    if (!sock)
        return;
    if (load_relaxed(&sock->ws.corked_ns) < before_ns &&
        twi_wstack_take(&sock->ws, TWI_W_CORKED))
        twi_wstack_run(&sock->ws);
    twi_socket_unref(sock);
}

void
twi_cork_flush(struct twi_corks *corks)
{
    uint32_t n = load_relaxed(&corks->n);
    if (!n)
        return;
    for (uint32_t i = 0; i < n; i++)
        flush(load_relaxed(&corks->id[i]), INT64_MAX);
    /* relaxed: who sees the old count looks for corks that are gone. */
    store_relaxed(&corks->n, 0);
}

void
twi_cork_flush_old(struct twi_corks *corks, int64_t before_ns)
{
    /* relaxed: a cork that is missed is flushed by a later tick; twi_cork_empty
     * keeps the dispatcher from parking until then. */
    uint32_t n = load_relaxed(&corks->n);
    for (uint32_t i = 0; i < n && i < TWI_CORKS; i++)
        flush(load_relaxed(&corks->id[i]), before_ns);
}

int
twi_cork_empty(struct twi_corks *corks)
{
    return load_seq_cst(&corks->n) == 0;
}
