/* The slab in one thread: numbers, addresses, what survives, the limit (R8),
 * and no memory. */
#include "slab.h"

#include <string.h>

#include "atomics.h"
#include "check.h"
#include "sys.h"

static int no_memory;

static void *
flaky_malloc(size_t n)
{
    return no_memory ? NULL : malloc(n);
}

int
main(void)
{
    static struct twi_slab slab;
    struct object {
        uint64_t version;
        char rest[32];
    };
    twi_sys.malloc = flaky_malloc;
    twi_slab_init(&slab, sizeof(struct object));
    CHECK_EQ(twi_slab_end(&slab), 0);
    CHECK(!twi_slab_at(&slab, 0));
    CHECK(!twi_slab_at(&slab, TWI_SLAB_NONE));
    CHECK(!twi_slab_at(&slab, TWI_SLAB_MAX));
    no_memory = 1;
    CHECK_EQ(twi_slab_take(&slab), TWI_SLAB_NONE);
    CHECK_EQ(load_relaxed(&slab.live), 0);
    no_memory = 0;

    /* Objects start zeroed, are aligned and apart; content stays. */
    uint32_t slots[2 * TWI_SLAB_CHUNK];
    for (int i = 0; i < 2 * TWI_SLAB_CHUNK; i++) {
        slots[i] = twi_slab_take(&slab);
        CHECK_EQ(slots[i], i);
        struct object *object = twi_slab_at(&slab, slots[i]);
        CHECK_EQ((uintptr_t)object % 16, 0);
        CHECK_EQ(object->version, 0);
        object->version = (uint64_t)i + 1;
        memset(object->rest, i, sizeof object->rest);
    }
    CHECK_EQ(twi_slab_end(&slab), 2 * TWI_SLAB_CHUNK);
    CHECK(!twi_slab_at(&slab, 2 * TWI_SLAB_CHUNK));
    CHECK_EQ(load_relaxed(&slab.live), 2 * TWI_SLAB_CHUNK);
    for (int i = 0; i < 2 * TWI_SLAB_CHUNK; i++)
        twi_slab_give(&slab, slots[i]);
    CHECK_EQ(load_relaxed(&slab.live), 0);
    for (int i = 2 * TWI_SLAB_CHUNK - 1; i >= 0; i--) {
        uint32_t slot = twi_slab_take(&slab); /* the last given, first */
        struct object *object = twi_slab_at(&slab, slot);
        CHECK_EQ(slot, i);
        CHECK_EQ(object->version, slot + 1);
        CHECK_EQ(object->rest[31], (char)slot);
    }
    /* A chunk of memory less: it goes on with the slots there are. */
    no_memory = 1;
    CHECK_EQ(twi_slab_take(&slab), TWI_SLAB_NONE);
    twi_slab_give(&slab, 7);
    CHECK_EQ(twi_slab_take(&slab), 7);
    no_memory = 0;
    twi_slab_fini(&slab);

    /* Full. */
    twi_slab_init(&slab, 1);
    for (uint32_t i = 0; i < TWI_SLAB_MAX; i++)
        if (twi_slab_take(&slab) != i) {
            CHECK(!"slots in order");
            break;
        }
    CHECK_EQ(twi_slab_take(&slab), TWI_SLAB_NONE);
    CHECK_EQ(twi_slab_end(&slab), TWI_SLAB_MAX);
    CHECK(twi_slab_at(&slab, TWI_SLAB_MAX - 1));
    twi_slab_give(&slab, 12345);
    CHECK_EQ(twi_slab_take(&slab), 12345);
    CHECK_EQ(twi_slab_take(&slab), TWI_SLAB_NONE);
    twi_slab_fini(&slab);
    return check_done();
}
