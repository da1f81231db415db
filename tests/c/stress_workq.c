/* The request queue under TSan: one producer, or several that share it as loops
 * do, and many consumers that sleep and are woken.  Each item is popped exactly
 * once, with all that its producer wrote for it, and no sleeper is left behind
 * with work in the queue. */
#include <errno.h>
#include <pthread.h>
#include <sched.h>

#include "atomics.h"
#include "check.h"
#include "counters.h"
#include "workq.h"

enum { CONSUMERS = 4, PRODUCERS = 3, ITEMS = 150000, ROUNDS = 4 };

static struct twi_workq queue;
static _Atomic uint8_t popped[ITEMS + 1];
static int load[ITEMS + 1]; /* plain: written before the push, read after it */
static _Atomic uint32_t closed, total;
static _Atomic long slept;

/* As a worker's turn: take, or announce, look again, sleep. */
static void *
consume(void *arg)
{
    struct twi_sleeper sleeper = {0};
    unsigned long long dice = *(unsigned long long *)arg;
    for (;;) {
        tw_id id = twi_workq_pop(&queue);
        if (id) {
            /* relaxed: the queue alone must order what is pushed. */
            CHECK_EQ(add_relaxed(&popped[id], 1), 0);
            CHECK_EQ(load[id], (int)id);
            add_relaxed(&total, 1);
            if (check_random(&dice) % 64 == 0)
                sched_yield();
            continue;
        }
        if (load_seq_cst(&closed))
            return NULL;
        twi_workq_announce(&queue, &sleeper);
        if (twi_workq_length(&queue) || load_seq_cst(&closed)) {
            twi_workq_cancel(&queue, &sleeper);
            continue;
        }
        twi_workq_sleep(&sleeper);
        add_relaxed(&slept, 1);
    }
}

struct producer {
    pthread_t thread;
    unsigned long long dice;
    int first, step; /* of the items, which are its own */
};

static void *
produce(void *arg)
{
    struct producer *me = arg;
    time_t began = time(NULL);
    for (int id = me->first; id <= ITEMS; id += me->step) {
        int rc;
        load[id] = id;
        while ((rc = twi_workq_push(&queue, (tw_id)id, me->step > 1)) ==
               -ENOSPC) {
            twi_workq_wake(&queue, CONSUMERS);
            sched_yield();
        }
        CHECK_EQ(rc, 0);
        /* The rule that must not lose a wake-up: store, then look. */
        if (twi_workq_asleep(&queue))
            twi_workq_wake(&queue, 1);
        if (check_random(&me->dice) % 512 == 0) /* let them fall asleep */
            while (me->step == 1 && twi_workq_asleep(&queue) < CONSUMERS &&
                   time(NULL) - began < 30)
                sched_yield();
    }
    return NULL;
}

/* The tick's: an id that stands first in the queue, or did a moment ago. */
static void *
peek(void *unused)
{
    (void)unused;
    while (!load_relaxed(&closed))
        CHECK(twi_workq_peek(&queue) <= ITEMS);
    return NULL;
}

/* What its waker did is done for a sleeper: alone, so that nothing else orders
 * them. */
enum { WAKES = 2000 };
static int given;

static void *
sleep_often(void *unused)
{
    struct twi_sleeper sleeper = {0};
    (void)unused;
    for (int i = 1; i <= WAKES; i++) {
        twi_workq_announce(&queue, &sleeper);
        twi_workq_sleep(&sleeper);
        CHECK_EQ(given, i);
    }
    return NULL;
}

static void
test_wake_publishes(void)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, sleep_often, NULL))
        abort();
    for (int i = 1; i <= WAKES; i++) {
        while (!twi_workq_asleep(&queue))
            sched_yield();
        given = i;
        CHECK_EQ(twi_workq_wake(&queue, 1), 1);
    }
    pthread_join(thread, NULL);
}

static void
round_of(unsigned long long *seed, int n_producers)
{
    pthread_t threads[CONSUMERS], peeker;
    unsigned long long dice[CONSUMERS];
    struct producer producers[PRODUCERS];
    store_seq_cst(&closed, 0);
    atomic_store(&total, 0);
    for (int i = 0; i <= ITEMS; i++)
        atomic_store(&popped[i], load[i] = 0);
    for (int i = 0; i < CONSUMERS; i++) {
        dice[i] = check_random(seed) | 1;
        if (pthread_create(&threads[i], NULL, consume, &dice[i]))
            abort();
    }
    if (pthread_create(&peeker, NULL, peek, NULL))
        abort();
    time_t began = time(NULL);
    for (int i = 0; i < n_producers; i++) {
        producers[i] = (struct producer){.dice = check_random(seed) | 1,
                                         .first = i + 1,
                                         .step = n_producers};
        if (pthread_create(&producers[i].thread, NULL, produce, &producers[i]))
            abort();
    }
    for (int i = 0; i < n_producers; i++)
        pthread_join(producers[i].thread, NULL);
    /* All awake to the last item, or the test hangs here. */
    while (atomic_load(&total) < ITEMS && time(NULL) - began < 30)
        sched_yield();
    CHECK_EQ(atomic_load(&total), ITEMS);
    CHECK_EQ(twi_workq_length(&queue), 0);
    CHECK_EQ(twi_workq_peek(&queue), 0);
    store_seq_cst(&closed, 1);
    twi_workq_wake(&queue, INT32_MAX);
    for (int i = 0; i < CONSUMERS; i++)
        pthread_join(threads[i], NULL);
    pthread_join(peeker, NULL);
    for (int i = 1; i <= ITEMS; i++)
        CHECK_EQ(atomic_load(&popped[i]), 1);
    CHECK_EQ(twi_workq_asleep(&queue), 0);
}

int
main(void)
{
    unsigned long long seed = check_seed();
    if (twi_counters_open() || twi_workq_init(&queue))
        abort();
    test_wake_publishes();
    for (int i = 0; i < ROUNDS && !check_failures; i++)
        round_of(&seed, i < ROUNDS / 2 ? 1 : PRODUCERS);
    fprintf(stderr, "slept %ld times\n", atomic_load(&slept));
    twi_workq_fini(&queue);
    return check_done();
}
