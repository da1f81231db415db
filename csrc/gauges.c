#include "gauges.h"

#include "atomics.h"
#include "budget.h"
#include "call.h"
#include "counters.h"
#include "inbox.h"
#include "iobuf.h"
#include "log.h"
#include "loop.h"
#include "peer.h"
#include "server.h"
#include "side.h"
#include "socket.h"
#include "writer.h"

static int64_t
timers(void)
{
    int64_t n = 0;
    for (int i = 0; i < twi_sides_count(); i++)
        n += twi_timers_count(&twi_loops[i].timers);
    return n;
}

static const struct {
    enum twi_counter counter;
    int64_t (*look)(void);
} sampled[] = {
    {TWI_BLOCKS, twi_block_live},       {TWI_BLOCK_BYTES, twi_block_live_bytes},
    {TWI_BUDGET_BYTES, twi_budget_bytes}, {TWI_SERVERS, twi_server_count},
    {TWI_PEERS, twi_peer_count},        {TWI_CALLS, twi_call_count},
    {TWI_REQUESTS, twi_request_count},  {TWI_INBOXES, twi_inbox_count},
    {TWI_TIMERS, timers},               {TWI_WRITE_NODES, twi_wnode_live},
    {TWI_LOG_ENTRIES, twi_log_waiting},
};
enum { SAMPLED = sizeof sampled / sizeof *sampled };

static _Atomic int64_t last[SAMPLED];

void
twi_gauges_sample(void)
{
    for (int i = 0; i < SAMPLED; i++) {
        int64_t now = sampled[i].look();
        /* Differences, which add up whoever samples beside us, and when two
         * processes share a lane.  relaxed: as all counters. */
        twi_count(sampled[i].counter,
                  now - atomic_exchange_explicit(&last[i], now,
                                                 memory_order_relaxed));
    }
}

void
twi_gauges_forked(void)
{
    for (int i = 0; i < SAMPLED; i++)
        store_relaxed(&last[i], 0);
}
