/* Events that wait for one consumer: an asyncio loop, a completion thread, the
 * admin thread.  Any thread puts, without a lock; the consumer takes all at
 * once.  Items are embedded in what they announce; no memory is needed.
 *
 * The consumer sleeps on an eventfd (asyncio) or a futex; whoever puts into an
 * inbox whose consumer announced sleep wakes it once. */
#ifndef TWI_INBOX_H
#define TWI_INBOX_H

#include <stdint.h>

#include "core.h"

struct twi_inbox_item {
    struct twi_inbox_item *next;
    int kind; /* TW_* event kinds */
};

/* Turns an item into an event, in the consumer's thread: 1 when *event is
 * filled, 0 when the item turned out to be stale.  *block is a reference that
 * the inbox drops at the next drain (NULL: none).  event NULL: the inbox is
 * closed, discard the item. */
typedef int twi_inbox_fill(struct twi_inbox_item *item, tw_event *event,
                           void **block);

void twi_inboxes_init(void);
void twi_inboxes_fini(void);
/* Who fills items of a kind. */
void twi_inbox_filler(int kind, twi_inbox_fill *fill);
/* Puts an item; 0, or -TW_STALE when the inbox is closed (the item is still
 * the caller's).  Any thread. */
int twi_inbox_put(tw_id inbox, struct twi_inbox_item *item);
/* A TW_RESULT will be put: a consumer that waits with `poll` polls until then.
 * 1, or 0 when the inbox is closed. */
int twi_inbox_expect(tw_id inbox);
int64_t twi_inbox_count(void);
/* Notes that the consumer corks a socket; 0 when it may not. */
int twi_inbox_cork(tw_id inbox, tw_id socket);
/* The dispatcher's look at all inboxes' corks: flushes those from before
 * before_ns; 1 when something is corked still. */
int twi_inboxes_flush_old(int64_t before_ns);
void twi_inboxes_close_fds(void);
/* Wakes every consumer with -TW_STOPPED. */
void twi_inboxes_stop(void);

#endif
