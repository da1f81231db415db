/* The event ring: notable events of the core on their way to the log.  C never
 * calls Python, so entries wait here, bounded; what the ring has no room for,
 * or comes faster than anyone could read, is counted and dropped.  Any thread writes; one thread takes. */
#ifndef TWI_LOG_H
#define TWI_LOG_H

#include <stddef.h>
#include <stdint.h>

#include "addr.h"
#include "core.h"

enum {
    TWI_LOG_RING = 256,
    TWI_LOG_BYTES = 16,
    TWI_LOG_PER_SECOND = 16, /* entries of one kind; the rest is counted */
    TWI_LOG_KINDS = 16
};

void twi_log_init(void);
/* peer may be NULL; detail is copied, cut, and made printable. */
void twi_log(int kind, int code, const struct twi_addr *peer,
             const char *detail);
/* The same with the first TWI_LOG_BYTES of data, escaped, behind detail. */
void twi_log_bytes(int kind, int code, const struct twi_addr *peer,
                   const char *detail, const uint8_t *data, size_t n);
/* tw_log_take, the one under way or else the next, returns 0 at once: its
 * caller, the housekeeper, has something else to look at. */
void twi_log_interrupt(void);
/* Wakes the taker for good. */
void twi_log_stop(void);

#endif
