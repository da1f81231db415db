/* The poller of last resort: one C thread that ticks while there is traffic,
 * takes the baton when nobody polled for a tick, and parks when all is quiet.
 * It blocks all signals. */
#ifndef TWI_DISPATCHER_H
#define TWI_DISPATCHER_H

/* 0 or a negative errno. */
int twi_dispatcher_start(void);
/* Ends and joins the thread. */
void twi_dispatcher_stop(void);
/* In a forked child: the thread is not there. */
void twi_dispatcher_forget(void);

#endif
