#include "leave.h"

#include "call.h"
#include "counters.h"
#include "vref.h"
#include "writer.h"

/* Without memory for a timer the server's end ends it. */
static void
look_later(struct twi_socket *sock, int64_t delay_ns, int64_t now_ns)
{
    sock->leave_ns = delay_ns < TWI_LEAVE_LAST_NS ? delay_ns : TWI_LEAVE_LAST_NS;
    twi_loop_timer_remove(sock->loop, &sock->timer);
    twi_loop_timer(sock->loop, &sock->timer, now_ns + sock->leave_ns,
                   TWI_TIMER_LEAVE, twi_socket_id(sock));
}

void
twi_left(struct twi_socket *sock, int64_t now_ns)
{
    twi_count(TWI_LEFT, 1);
    look_later(sock, TWI_LEAVE_FIRST_NS, now_ns);
}

void
twi_leave_timer(tw_id id, int64_t now_ns)
{
    struct twi_socket *sock = twi_socket_address(id);
    if (!sock)
        return;
    /* First the references: a caller that found the socket in time has said by
     * then that its call is on it. */
    if (vref_held_by(&sock->vref, 2) && !twi_calls_on(sock))
        twi_socket_finish(sock, now_ns);
    else
        look_later(sock, 2 * sock->leave_ns, now_ns);
    twi_socket_unref(sock);
}
