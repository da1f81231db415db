/* Memory that the caller lends instead of having it copied.
 *
 * Each loan has a receipt.  Whoever drops the last share of the lent block
 * gives the receipt back, from any thread and without waiting; the lender
 * collects the tokens with tw_released and may then free the memory. */
#ifndef TWI_LENT_H
#define TWI_LENT_H

#include <stdint.h>

#include "core.h"

struct twi_lent {
    struct twi_lent *next; /* among those given back */
    uint64_t token;        /* the lender's */
};

/* NULL without memory. */
struct twi_lent *twi_lent_new(uint64_t token);
/* Takes the receipt: the memory is not looked at any more.  call: the lender
 * does not know, wake its housekeeper.  Lock-free; any thread. */
void twi_lent_back(struct twi_lent *lent, int call);
/* Receipts made and not yet collected. */
int64_t twi_lent_live(void);
/* In a forked child: nothing was lent here. */
void twi_lent_forked(void);

#endif
