/* The slab under TSan: no slot is out twice, what an object holds survives
 * give and take, the count of live slots comes back to zero. */
#include <pthread.h>

#include "atomics.h"
#include "check.h"
#include "slab.h"

enum { THREADS = 4, OPERATIONS = 200000, HELD = 300 };

struct object {
    _Atomic int out;
    long takes; /* plain: its holder's */
};

static struct twi_slab slab;

static void *
run(void *arg)
{
    unsigned long long dice = *(unsigned long long *)arg;
    uint32_t held[HELD];
    int n = 0;
    for (long i = 0; i < OPERATIONS; i++) {
        int take = n == 0 || (n < HELD && check_random(&dice) % 2);
        if (take) {
            uint32_t slot = twi_slab_take(&slab);
            if (slot == TWI_SLAB_NONE)
                abort();
            struct object *object = twi_slab_at(&slab, slot);
            /* relaxed: the slab alone must order what its holders do. */
            CHECK_EQ(atomic_exchange_explicit(&object->out, 1,
                                              memory_order_relaxed), 0);
            CHECK(slot < twi_slab_end(&slab));
            object->takes++;
            held[n++] = slot;
        } else {
            int which = (int)((check_random(&dice) >> 20) % (unsigned)n);
            struct object *object = twi_slab_at(&slab, held[which]);
            CHECK_EQ(atomic_exchange_explicit(&object->out, 0,
                                              memory_order_relaxed), 1);
            twi_slab_give(&slab, held[which]);
            held[which] = held[--n];
        }
    }
    while (n > 0) {
        struct object *object = twi_slab_at(&slab, held[--n]);
        CHECK_EQ(atomic_exchange_explicit(&object->out, 0,
                                              memory_order_relaxed), 1);
        twi_slab_give(&slab, held[n]);
    }
    return NULL;
}

int
main(void)
{
    unsigned long long seed = check_seed(), dice[THREADS];
    pthread_t threads[THREADS];
    twi_slab_init(&slab, sizeof(struct object));
    for (int i = 0; i < THREADS; i++) {
        dice[i] = check_random(&seed) | 1;
        if (pthread_create(&threads[i], NULL, run, &dice[i]))
            abort();
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    CHECK_EQ(load_relaxed(&slab.live), 0);
    CHECK(twi_slab_end(&slab) <= THREADS * HELD);
    long takes = 0;
    for (uint32_t i = 0; i < twi_slab_end(&slab); i++)
        takes += ((struct object *)twi_slab_at(&slab, i))->takes;
    CHECK(takes >= THREADS * (long)OPERATIONS / 2);
    twi_slab_fini(&slab);
    return check_done();
}
