/* Health checks: how a peer that is down comes back.
 *
 * A check is a connection under an id of its own, and, if the peer has a probe
 * method, one call on it, which must be answered without an error.  If it goes
 * well the connection becomes the peer's.  A peer has one check at a time: the
 * first 0.1 s after the failure, the delay doubling up to the peer's interval,
 * each shortened by chance to as little as its half. */
#ifndef TWI_HEALTH_H
#define TWI_HEALTH_H

#include "core.h"

/* How long a check waits to be connected, if the peer's options do not say,
 * and for the probe's answer: what brpc's checks have, so that a server that
 * is slow at its worst, but not ill, comes back. */
#define TWI_CHECK_PATIENCE_NS INT64_C(500000000)

/* The peer's check is due; with the baton. */
void twi_health_timer(tw_id peer, int64_t now_ns);

#endif
