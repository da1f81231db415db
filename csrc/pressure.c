#include "pressure.h"

#include "atomics.h"

/* So many halves of a limit are reached. */
static int
over(struct twi_socket *sock, uint64_t halves)
{
    uint64_t bytes = load_seq_cst(&sock->pending_bytes);
    return 2 * (load_seq_cst(&sock->unwritten) + bytes) >=
               halves * sock->max_unwritten ||
           2 * bytes >= halves * sock->max_pending_bytes ||
           2 * (uint64_t)load_seq_cst(&sock->pending) >=
               halves * sock->max_pending;
}

int
twi_socket_crowded(struct twi_socket *sock)
{
    return sock->kind == TWI_SERVER_SIDE && over(sock, 2);
}

uint64_t
twi_socket_room(struct twi_socket *sock)
{
    uint64_t held = load_relaxed(&sock->unwritten) +
                    load_relaxed(&sock->pending_bytes);
    return held < sock->max_unwritten ? sock->max_unwritten - held : 0;
}

void
twi_socket_relax(struct twi_socket *sock)
{
    /* Partner: the reader sets `paused`, then looks at the counts again. */
    if (load_seq_cst(&sock->paused) && !over(sock, 1) &&
        atomic_exchange(&sock->paused, 0))
        /* Begins with a read: the edge is gone. */
        twi_socket_again(sock, TWI_AGAIN_READ);
}

void
twi_socket_settle(struct twi_socket *sock)
{
    /* seq_cst throughout: the reader sets `eof` and then looks at the counts,
     * who lowers a count then looks at `eof`. */
    if (load_seq_cst(&sock->eof) && !load_seq_cst(&sock->pending) &&
        !load_seq_cst(&sock->unwritten) && !load_seq_cst(&sock->chunk_out))
        twi_socket_fail(sock, TW_EEOF, TW_PHASE_READ);
    else
        twi_socket_relax(sock);
}
