/* A channel's handle on a peer.
 *
 * Several channels may share a peer: its connections, what waits for one, its
 * health, its credential.  Each has a view of its own, which is what the ids of
 * api.h name, and every call remembers the view it was made through; so closing
 * one ends its calls and no others.  The last one closes the peer. */
#ifndef TWI_VIEW_H
#define TWI_VIEW_H

#include "peer.h"

struct twi_view {
    _Atomic uint64_t vref;
    uint32_t slot;
    int connection;        /* TW_SINGLE, TW_POOLED or TW_SHORT */
    struct twi_peer *peer; /* a reference, as long as the view */
};

void twi_views_init(void);
/* Closes all, and so all peers (the core closes). */
void twi_views_stop(void);

/* One reference more if the id's view is open, else NULL.  Wait-free. */
struct twi_view *twi_view_address(tw_id id);
void twi_view_unref(struct twi_view *view);
tw_id twi_view_id(const struct twi_view *view);
/* Whether it was closed, by who has a reference and has noted its id where
 * twi_calls_cancel looks for it. */
int twi_view_closed(const struct twi_view *view);

#endif
