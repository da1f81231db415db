/* The sockets that one thread has corked: answers it pushed without writing
 * because more for the same socket are about to come.
 *
 * Only the owning thread adds and clears; the dispatcher looks on at each tick
 * and flushes what is too old.  Ids, no references: a socket that failed has
 * drained itself. */
#ifndef TWI_CORK_H
#define TWI_CORK_H

#include <stdint.h>

#include "core.h"

enum { TWI_CORKS = 16 };
#define TWI_CORK_NS INT64_C(200000) /* the longest a message waits corked */

struct twi_corks {
    _Atomic tw_id id[TWI_CORKS];
    _Atomic uint32_t n;
};

/* Notes a socket that is about to get a corked push: 1, or 0 when the set is
 * full (push uncorked then). */
int twi_cork_add(struct twi_corks *corks, tw_id socket);
/* Writes what the sockets hold and empties the set. */
void twi_cork_flush(struct twi_corks *corks);
/* The dispatcher's look: flushes sockets corked before `before_ns`. */
void twi_cork_flush_old(struct twi_corks *corks, int64_t before_ns);
int twi_cork_empty(struct twi_corks *corks);

#endif
