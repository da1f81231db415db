/* The loops beside the main loop: each is polled by one C thread of its own,
 * which runs no handlers and blocks all signals.
 *
 * A socket belongs to one loop for its life, so it has one reader at a time,
 * that loop's holder of the baton, however many loops there are. */
#ifndef TWI_SIDE_H
#define TWI_SIDE_H

#include "loop.h"

/* Starts the side loops that tw_loops asked for; 0 or a negative errno (none
 * runs then).  Under the core's lock, as the next three. */
int twi_sides_start(const struct twi_loop_hooks *hooks);
/* Ends and joins the threads, then shuts their loops.  Blocks. */
void twi_sides_stop(void);
/* In a forked child: the threads are not there, the descriptors are closed. */
void twi_sides_forget(void);
/* As tw_loops; hooks NULL: the core is not open, they start with it. */
int twi_sides_set(int n, const struct twi_loop_hooks *hooks);

/* The loop of a new socket: the next in turn, or the main loop if asked for.
 * From here on their number stays. */
struct twi_loop *twi_sides_choose(int main);
/* How many loops there are, the main loop among them.  Stays what it is once
 * there is a socket. */
int twi_sides_count(void);

#endif
