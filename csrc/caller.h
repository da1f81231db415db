/* Threads that wait for their call: they poll while the baton is free, else they
 * sleep until the answer comes or the baton is theirs. */
#ifndef TWI_CALLER_H
#define TWI_CALLER_H

#include "call.h"

enum {
    /* How long a wait leaves signals unseen, and how near a deadline must be
     * to be given to epoll_wait. */
    TWI_SLICE_MS = 50
};

void twi_callers_init(void);
/* The core closes: no timer any more. */
void twi_callers_stop(void);
/* Until the call is done: 0, or -EINTR, in time for a thread that runs signal
 * handlers if it is interruptible.  The caller holds the waiter's reference.
 * Blocks. */
int twi_caller_wait(struct twi_call *call, int interruptible);
/* The slice timer fired. */
void twi_caller_slice(void);

#endif
