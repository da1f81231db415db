/* Ids under TSan: objects in a slab are opened, addressed by current and stale
 * ids, looked for by walking, failed by several at once.  Exactly one fails
 * each, exactly one recycles it, and no address outlives it.  Some are kept:
 * exactly one resets those after each failure, nobody holds them then, and they
 * live again under the id they had, or are over (L4).  And one that is replaced
 * has its last user when its references say so.
 *
 * All that the test itself shares is relaxed: vref and slab alone must order
 * what is done to an object. */
#include <pthread.h>
#include <sched.h>
#include <string.h>

#include "check.h"
#include "slab.h"
#include "vref.h"

uint32_t twi_first_version;

enum { THREADS = 4, OPERATIONS = 150000, SHARED = 32 };

struct object {
    _Atomic uint64_t vref;
    uint32_t slot;
    /* Plain: written by the opener and by who recycles, read under a
     * reference.  TSan sees whoever gets in between. */
    uint32_t version;
    int alive, life;
    int left;             /* replaced, and nobody uses it any more */
    long done[THREADS];   /* by each thread, under a reference */
    _Atomic int failed, uses;
};

static struct twi_slab slab;
static _Atomic uint64_t shared[SHARED]; /* ids, stale ones among them */
static _Atomic long opened, failed, recycled, revived, forsaken;
static _Atomic long addressed, refused, walked;
static _Atomic int closing;

static void
recycle(struct object *object)
{
    CHECK_EQ(object->alive, 1);
    CHECK_EQ(load_relaxed(&object->uses), 0);
    CHECK_EQ(load_relaxed(&object->failed), 1);
    object->alive = 0;
    object->version = 0;
    add_relaxed(&recycled, 1);
    twi_slab_give(&slab, object->slot);
}

/* Unheld: this thread's alone.  Lives again, or is over. */
static void
reset(struct object *object)
{
    CHECK_EQ(object->alive, 1);
    CHECK_EQ(load_relaxed(&object->uses), 0);
    CHECK_EQ(load_relaxed(&object->failed), 1);
    if (load_relaxed(&closing) || object->life == 20) {
        vref_retire(&object->vref);
        recycle(object);
        return;
    }
    object->life++;
    store_relaxed(&object->failed, 0);
    add_relaxed(&revived, 1);
    vref_revive(&object->vref, 1);
}

static void
last_unref(struct object *object, int what)
{
    if (what == VREF_RECYCLE)
        recycle(object);
    else if (what == VREF_RESET)
        reset(object);
}

static void
unref(struct object *object)
{
    last_unref(object, vref_unref(&object->vref));
}

static struct object *
address_version(uint32_t slot, uint32_t version)
{
    struct object *object = twi_slab_at(&slab, slot);
    if (!object)
        return NULL;
    int rc = vref_address(&object->vref, version);
    if (rc < 0)
        last_unref(object, -rc);
    return rc == 1 ? object : NULL;
}

static uint64_t
open_object(int references, int keep)
{
    uint32_t slot = twi_slab_take(&slab);
    if (slot == TWI_SLAB_NONE)
        abort();
    struct object *object = twi_slab_at(&slab, slot);
    CHECK_EQ(object->alive, 0);
    object->slot = slot;
    object->alive = 1;
    object->life = object->left = 0;
    memset(object->done, 0, sizeof object->done);
    store_relaxed(&object->failed, 0);
    /* What vref_open will make it; the id is known to nobody before. */
    uint32_t version = vref_version(&object->vref);
    if (!version)
        version = twi_first_version;
    object->version = version;
    /* From here on a walker may fail it, and another recycle it. */
    CHECK_EQ(vref_open(&object->vref, (uint64_t)references |
                                              (keep ? VREF_KEPT : 0)),
             version);
    add_relaxed(&opened, 1);
    return vref_id(version, slot);
}

static void
fail_object(struct object *object)
{
    if (vref_fail(&object->vref, object->version)) {
        CHECK_EQ(atomic_exchange_explicit(&object->failed, 1,
                                          memory_order_relaxed), 0);
        add_relaxed(&failed, 1);
        unref(object); /* the additional reference */
    }
}

static void
use(struct object *object, uint32_t version, unsigned long long *dice)
{
    add_relaxed(&object->uses, 1);
    CHECK_EQ(object->alive, 1);
    CHECK_EQ(object->version, version);
    int life = object->life;
    if (check_random(dice) % 8 == 0)
        sched_yield();
    if (check_random(dice) % 4 == 0)
        fail_object(object);
    if (check_random(dice) % 128 == 0) {
        vref_forsake(&object->vref);
        add_relaxed(&forsaken, 1);
    }
    CHECK_EQ(object->version, version);
    CHECK_EQ(object->life, life); /* as long as it is held */
    sub_relaxed(&object->uses, 1);
}

static void *
run(void *arg)
{
    unsigned long long dice = *(unsigned long long *)arg;
    for (long i = 0; i < OPERATIONS; i++) {
        _Atomic uint64_t *place = &shared[(check_random(&dice) >> 20) % SHARED];
        uint64_t id = load_relaxed(place);
        if (check_random(&dice) % 16 == 0) { /* by walking */
            uint32_t slot = (uint32_t)id;
            struct object *object = twi_slab_at(&slab, slot);
            uint32_t version = object ? vref_look(&object->vref) : 0;
            if ((object = address_version(slot, version))) {
                add_relaxed(&walked, 1);
                use(object, version, &dice);
                unref(object);
            }
            continue;
        }
        struct object *object = address_version((uint32_t)id, (uint32_t)(id >> 32));
        if (object) {
            add_relaxed(&addressed, 1);
            use(object, (uint32_t)(id >> 32), &dice);
            unref(object);
            continue;
        }
        add_relaxed(&refused, 1);
        /* A new one in its place, held for a moment or not at all. */
        int references = 1 + (int)(check_random(&dice) % 2);
        uint64_t fresh = open_object(references, (int)(check_random(&dice) >> 20) % 2);
        if (!atomic_compare_exchange_strong_explicit(place, &id, fresh,
                                                     memory_order_relaxed,
                                                     memory_order_relaxed)) {
            /* Somebody else was first: this one goes unseen. */
            object = address_version((uint32_t)fresh, (uint32_t)(fresh >> 32));
            if (object) {
                fail_object(object);
                unref(object);
            }
        }
        if (references == 2)
            unref(twi_slab_at(&slab, (uint32_t)fresh));
    }
    return NULL;
}

enum { REPLACEMENTS = 2000 };

static _Atomic uint64_t current;
static _Atomic long done_in_all;

/* Uses what is current, as twi_peer_socket finds it. */
static void *
use_current(void *arg)
{
    int me = *(int *)arg;
    while (!load_relaxed(&closing)) {
        uint64_t id = load_acquire(&current);
        struct object *object = address_version((uint32_t)id, (uint32_t)(id >> 32));
        if (load_relaxed(&current) == id) {
            CHECK(object);
            CHECK_EQ(object->left, 0);
            object->done[me]++;
            add_relaxed(&done_in_all, 1);
        }
        if (object)
            unref(object);
    }
    return NULL;
}

/* Replaces it again and again; each time that nobody has the former one any more
 * (vref_held_by) it is as it will stay. */
static void
test_replaced(void)
{
    pthread_t threads[THREADS];
    int number[THREADS];
    long found = 0;
    store_relaxed(&current, open_object(2, 1));
    for (int i = 0; i < THREADS; i++) {
        number[i] = i;
        if (pthread_create(&threads[i], NULL, use_current, &number[i]))
            abort();
    }
    for (int i = 0; i < REPLACEMENTS; i++) {
        uint64_t id = load_relaxed(&current);
        struct object *former = twi_slab_at(&slab, (uint32_t)id);
        /* Now and then at once, else once somebody has used it. */
        long before = load_relaxed(&done_in_all);
        while (i % 4 && load_relaxed(&done_in_all) == before)
            sched_yield();
        store_release(&current, open_object(2, 1));
        vref_forsake(&former->vref);
        while (!vref_held_by(&former->vref, 2))
            sched_yield();
        former->left = 1;
        for (int k = 0; k < THREADS; k++)
            found += former->done[k];
        fail_object(former);
        unref(former);
    }
    store_relaxed(&closing, 1);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    store_relaxed(&closing, 0);
    struct object *last = twi_slab_at(&slab, (uint32_t)load_relaxed(&current));
    for (int k = 0; k < THREADS; k++)
        found += last->done[k];
    CHECK_EQ(found, load_relaxed(&done_in_all));
    vref_forsake(&last->vref);
    fail_object(last);
    unref(last);
}

/* A free slot whose count a late reader has raised for a moment: that makes it
 * live for nobody else. */
static void
test_late_reader(void)
{
    static _Atomic uint64_t word;
    uint32_t version = vref_open(&word, 1);
    CHECK_EQ(vref_address(&word, version), 1);
    CHECK_EQ(vref_fail(&word, version), 1);
    CHECK_EQ(vref_fail(&word, version), 0);
    CHECK_EQ(vref_unref(&word), 0);
    CHECK_EQ(vref_unref(&word), 1);
    add_relaxed(&word, 1); /* between its addition and its unref */
    CHECK_EQ(vref_address(&word, version), 0);
    CHECK_EQ(vref_address(&word, version + 2), 0);
    CHECK_EQ(vref_address(&word, vref_look(&word)), 0);
    CHECK_EQ(vref_open(&word, 2), version + 2);
    CHECK_EQ(vref_unref(&word), 0); /* its unref */
    CHECK_EQ(vref_address(&word, version + 2), 1);
    CHECK_EQ(vref_look(&word), version + 2);
    CHECK_EQ(vref_fail(&word, version + 2), 1);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(vref_unref(&word), i == 2);
}

/* L4: a kept object's id names nothing while it has failed, itself again once
 * it is revived, and nothing for ever once it is retired. */
static void
test_kept(void)
{
    static _Atomic uint64_t word;
    uint32_t version = vref_open(&word, 2 | VREF_KEPT);
    for (int life = 0; life < 3; life++) {
        CHECK_EQ(vref_address(&word, version), 1);
        CHECK_EQ(vref_look(&word), version);
        CHECK_EQ(vref_fail(&word, version), 1);
        CHECK_EQ(vref_address(&word, version), 0);
        CHECK_EQ(vref_unref(&word), VREF_HELD);
        CHECK_EQ(vref_unref(&word), VREF_HELD);
        CHECK_EQ(vref_unref(&word), VREF_RESET);
        /* Late readers leave no second reset, and nothing finds it. */
        CHECK_EQ(vref_address(&word, version), 0);
        CHECK_EQ(vref_address(&word, version + 2), 0);
        CHECK_EQ(vref_look(&word), 1);
        CHECK_EQ(vref_fail(&word, version), 0);
        add_relaxed(&word, 1); /* one between its addition and its unref */
        vref_revive(&word, 2);
        CHECK_EQ(vref_unref(&word), VREF_HELD);
    }
    CHECK_EQ(vref_fail(&word, version), 1);
    CHECK_EQ(vref_unref(&word), VREF_HELD);
    CHECK_EQ(vref_unref(&word), VREF_RESET);
    vref_forsake(&word); /* too late: it is its owner's */
    add_relaxed(&word, 1);
    vref_retire(&word);
    CHECK_EQ(vref_address(&word, version), 0);
    CHECK_EQ(vref_unref(&word), VREF_HELD);
    CHECK_EQ(vref_open(&word, 1 | VREF_KEPT), version + 2);
    CHECK_EQ(vref_address(&word, version), 0);
    vref_forsake(&word);
    CHECK_EQ(vref_fail(&word, version + 2), 1);
    CHECK_EQ(vref_unref(&word), VREF_RECYCLE);
}

int
main(void)
{
    unsigned long long seed = check_seed(), dice[THREADS];
    pthread_t threads[THREADS];
    /* Not far from the end, so that versions wrap around. */
    twi_first_version = UINT32_MAX - 2001;
    test_late_reader();
    test_kept();
    twi_slab_init(&slab, sizeof(struct object));
    test_replaced();
    for (int i = 0; i < THREADS; i++) {
        dice[i] = check_random(&seed) | 1;
        if (pthread_create(&threads[i], NULL, run, &dice[i]))
            abort();
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    store_relaxed(&closing, 1);
    for (uint32_t slot = 0; slot < twi_slab_end(&slab); slot++) {
        struct object *object = twi_slab_at(&slab, slot);
        uint32_t version = vref_look(&object->vref);
        if ((object = address_version(slot, version))) {
            fail_object(object);
            CHECK(!address_version(slot, version));
            unref(object);
        }
    }
    fprintf(stderr,
            "%ld opened, %ld revived, %ld addressed, %ld walked to, "
            "%ld refused\n",
            load_relaxed(&opened), load_relaxed(&revived), load_relaxed(&addressed),
            load_relaxed(&walked), load_relaxed(&refused));
    CHECK_EQ(load_relaxed(&failed), load_relaxed(&opened) + load_relaxed(&revived));
    CHECK(load_relaxed(&revived) > 1000 && load_relaxed(&forsaken) > 10);
    CHECK_EQ(load_relaxed(&recycled), load_relaxed(&opened));
    CHECK_EQ(load_relaxed(&slab.live), 0);
    CHECK(load_relaxed(&addressed) > 1000 && load_relaxed(&walked) > 100);
    twi_slab_fini(&slab);
    return check_done();
}
