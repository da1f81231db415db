#include "lent.h"

#include <stdlib.h>

#include "atomics.h"
#include "log.h"
#include "sys.h"

static struct twi_lent *_Atomic given_back; /* newest first */
static _Atomic int64_t live;

struct twi_lent *
twi_lent_new(uint64_t token)
{
    struct twi_lent *lent = twi_malloc(sizeof *lent);
    if (!lent)
        return NULL;
    lent->token = token;
    add_relaxed(&live, 1);
    return lent;
}

/* Pushes alone race here, and a take of everything: no ABA. */
static void
put(struct twi_lent *lent)
{
    struct twi_lent *head = load_relaxed(&given_back);
    do
        lent->next = head;
    /* release: pairs with the acquire in tw_released; all reads of the memory
     * come before it is the lender's again. */
    while (!atomic_compare_exchange_weak_explicit(
        &given_back, &head, lent, memory_order_release, memory_order_relaxed));
}

void
twi_lent_back(struct twi_lent *lent, int call)
{
    put(lent);
    if (call)
        twi_log_interrupt();
}

int64_t
twi_lent_live(void)
{
    return load_relaxed(&live);
}

void
twi_lent_forked(void)
{
    store_relaxed(&given_back, NULL);
    store_relaxed(&live, 0);
}

/* ---- api.h */

int
tw_released(uint64_t *tokens, int max)
{
    int n = 0;
    if (!load_relaxed(&given_back))
        return 0; /* the usual answer */
    /* acquire: pairs with the release in put. */
    struct twi_lent *lent =
        atomic_exchange_explicit(&given_back, NULL, memory_order_acquire);
    while (lent) {
        struct twi_lent *next = lent->next;
        if (n < max) {
            tokens[n++] = lent->token;
            sub_relaxed(&live, 1);
            free(lent);
        } else
            put(lent); /* for the next call */
        lent = next;
    }
    return n;
}
