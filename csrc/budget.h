/* The process's budget for buffered bytes.
 *
 * Each connection has limits of its own; this one holds for all together, of
 * servers and clients.  What counts are the bytes of live blocks.
 *
 *   from 80 %   new requests are refused with TW_ELIMIT when they are cut
 *   from 95 %   one connection after the other is closed: the one that holds
 *               the most in a reader or writer that has not moved for a while
 *   from 100 %  the one that holds the most, moving or not
 */
#ifndef TWI_BUDGET_H
#define TWI_BUDGET_H

#include <stdint.h>

enum {
    TWI_BUDGET_REFUSE = 80, /* per cent */
    TWI_BUDGET_CLOSE = 95,
    /* Bytes below which nobody is closed: idle, and moving. */
    TWI_BUDGET_LEAST = 4096,
    TWI_BUDGET_LEAST_MOVING = 64 << 10
};
#define TWI_BUDGET_IDLE_NS INT64_C(1000000000)
/* How long the next closing waits for the memory of the last one. */
#define TWI_BUDGET_PATIENCE_NS INT64_C(1000000000)

/* 1 when no new request may be taken in.  Wait-free. */
int twi_budget_refuses(void);
/* The dispatcher's look, at each tick, so not in a process where nothing
 * happens; 1 when it has to look again soon. */
int twi_budget_tick(int64_t now_ns);
int64_t twi_budget_bytes(void);

#endif
