/* The request queue in one thread: order, its limit (R8), announcing, cancelling
 * and waking; without memory.  stress_workq.c has the threads. */
#include "workq.h"

#include <errno.h>

#include "check.h"
#include "counters.h"
#include "sys.h"

static void *
no_malloc(size_t n)
{
    (void)n;
    return NULL;
}

int
main(void)
{
    unsigned long long seed = check_seed();
    static struct twi_workq q;
    static struct twi_sleeper sleepers[4];
    CHECK_EQ(twi_counters_open(), 0);
    twi_sys.malloc = no_malloc;
    CHECK_EQ(twi_workq_init(&q), -ENOMEM);
    twi_workq_fini(&q);
    twi_sys.malloc = malloc;
    CHECK_EQ(twi_workq_init(&q), 0);

    CHECK_EQ(twi_workq_pop(&q), 0);
    CHECK_EQ(twi_workq_peek(&q), 0);
    CHECK_EQ(twi_workq_length(&q), 0);
    /* First in, first out, many times around the ring. */
    tw_id in = 0, out = 0;
    for (int i = 0; i < 200000; i++) {
        if (check_random(&seed) % 2) {
            int rc = twi_workq_push(&q, in + 1, 0);
            CHECK_EQ(rc, in - out == TWI_WORKQ_SIZE ? -ENOSPC : 0);
            in += rc == 0;
        } else {
            CHECK_EQ(twi_workq_peek(&q), in > out ? out + 1 : 0);
            tw_id id = twi_workq_pop(&q);
            CHECK_EQ(id, in > out ? out + 1 : 0);
            out += id != 0;
        }
        CHECK_EQ(twi_workq_length(&q), in - out);
    }
    for (; in - out < TWI_WORKQ_SIZE; in++)
        CHECK_EQ(twi_workq_push(&q, in + 1, in % 2), 0);
    CHECK_EQ(twi_workq_push(&q, 1, 1), -ENOSPC);
    CHECK_EQ(twi_workq_length(&q), TWI_WORKQ_SIZE);
    while (in > out)
        CHECK_EQ(twi_workq_pop(&q), ++out);
    CHECK_EQ(twi_workq_pop(&q), 0);

    /* Sleepers: the newest is woken first, a cancelled one not at all. */
    CHECK_EQ(twi_workq_wake(&q, 3), 0);
    for (int i = 0; i < 4; i++)
        twi_workq_announce(&q, &sleepers[i]);
    CHECK_EQ(twi_workq_asleep(&q), 4);
    twi_workq_cancel(&q, &sleepers[1]);
    twi_workq_cancel(&q, &sleepers[1]);
    CHECK_EQ(twi_workq_asleep(&q), 3);
    uint64_t before = twi_cell_value(TWI_WAKEUPS);
    CHECK_EQ(twi_workq_wake(&q, 1), 1);
    twi_workq_sleep(&sleepers[3]); /* returns: it was woken */
    CHECK_EQ(twi_workq_wake(&q, 0), 0);
    CHECK_EQ(twi_workq_wake(&q, 100), 2);
    twi_workq_sleep(&sleepers[2]);
    twi_workq_sleep(&sleepers[0]);
    CHECK_EQ(twi_workq_asleep(&q), 0);
    CHECK_EQ(twi_cell_value(TWI_WAKEUPS) - before, 3);
    twi_workq_cancel(&q, &sleepers[0]); /* woken already: nothing */
    /* And announced anew. */
    twi_workq_announce(&q, &sleepers[1]);
    CHECK_EQ(twi_workq_wake(&q, 1), 1);
    twi_workq_sleep(&sleepers[1]);
    twi_workq_fini(&q);
    twi_workq_fini(&q);
    return check_done();
}
