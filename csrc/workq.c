#include "workq.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "atomics.h"
#include "counters.h"
#include "sys.h"

int
twi_workq_init(struct twi_workq *q)
{
    memset(q, 0, sizeof *q);
    q->ring = twi_zalloc(TWI_WORKQ_SIZE * sizeof *q->ring);
    if (!q->ring)
        return -ENOMEM;
    pthread_mutex_init(&q->lock, NULL);
    pthread_mutex_init(&q->intake, NULL);
    return 0;
}

void
twi_workq_fini(struct twi_workq *q)
{
    if (!q->ring)
        return;
    free((void *)q->ring);
    pthread_mutex_destroy(&q->lock);
    pthread_mutex_destroy(&q->intake);
    memset(q, 0, sizeof *q);
}

static int
push(struct twi_workq *q, tw_id request)
{
    uint64_t tail = load_relaxed(&q->tail);
    /* acquire: pairs with pop's release; the consumer has read the cell. */
    if (tail - load_acquire(&q->head) >= TWI_WORKQ_SIZE)
        return -ENOSPC;
    store_relaxed(&q->ring[tail % TWI_WORKQ_SIZE], request);
    /* seq_cst: publishes the cell to pop, and stands before the producer's
     * look for sleepers. */
    store_seq_cst(&q->tail, tail + 1);
    return 0;
}

int
twi_workq_push(struct twi_workq *q, tw_id request, int shared)
{
    if (!shared)
        return push(q, request);
    pthread_mutex_lock(&q->intake);
    int rc = push(q, request);
    pthread_mutex_unlock(&q->intake);
    return rc;
}

tw_id
twi_workq_pop(struct twi_workq *q)
{
    uint64_t head = load_relaxed(&q->head);
    for (;;) {
        /* seq_cst: partner of push's store, after announcing sleep. */
        if (head >= load_seq_cst(&q->tail))
            return 0;
        /* A cell that was overwritten meanwhile is one whose head has moved
         * on: then the exchange fails. */
        tw_id request = load_relaxed(&q->ring[head % TWI_WORKQ_SIZE]);
        if (atomic_compare_exchange_weak_explicit(&q->head, &head, head + 1,
                                                  memory_order_acq_rel,
                                                  memory_order_relaxed))
            return request;
    }
}

tw_id
twi_workq_peek(struct twi_workq *q)
{
    /* relaxed: a moment's truth; the id is addressed, which orders. */
    uint64_t head = load_relaxed(&q->head);
    if (head >= load_relaxed(&q->tail))
        return 0;
    return load_relaxed(&q->ring[head % TWI_WORKQ_SIZE]);
}

uint32_t
twi_workq_length(struct twi_workq *q)
{
    uint64_t head = load_seq_cst(&q->head), tail = load_seq_cst(&q->tail);
    return tail > head ? (uint32_t)(tail - head) : 0;
}

void
twi_workq_announce(struct twi_workq *q, struct twi_sleeper *sleeper)
{
    pthread_mutex_lock(&q->lock);
    store_relaxed(&sleeper->word, 0);
    sleeper->next = q->sleepers;
    store_relaxed(&sleeper->listed, 1);
    q->sleepers = sleeper;
    add_seq_cst(&q->asleep, 1);
    pthread_mutex_unlock(&q->lock);
}

void
twi_workq_cancel(struct twi_workq *q, struct twi_sleeper *sleeper)
{
    pthread_mutex_lock(&q->lock);
    if (load_relaxed(&sleeper->listed)) {
        struct twi_sleeper **link = &q->sleepers;
        while (*link != sleeper)
            link = &(*link)->next;
        *link = sleeper->next;
        store_relaxed(&sleeper->listed, 0);
        /* relaxed: who sees the old count takes the lock in vain. */
        sub_relaxed(&q->asleep, 1);
    }
    pthread_mutex_unlock(&q->lock);
}

void
twi_workq_sleep(struct twi_sleeper *sleeper)
{
    /* acquire: pairs with the store in wake. */
    while (!load_acquire(&sleeper->word))
        twi_futex_wait(&sleeper->word, 0, -1);
}

int
twi_workq_wake(struct twi_workq *q, int n)
{
    int woken = 0;
    while (woken < n && load_seq_cst(&q->asleep)) {
        pthread_mutex_lock(&q->lock);
        struct twi_sleeper *sleeper = q->sleepers;
        if (sleeper) {
            q->sleepers = sleeper->next;
            store_relaxed(&sleeper->listed, 0);
            sub_relaxed(&q->asleep, 1); /* as in cancel */
            /* Under the lock: a sleeper that cancels waits for it, so its
             * memory is still there. */
            store_release(&sleeper->word, 1);
            twi_futex_wake(&sleeper->word, 1);
            woken++;
        }
        pthread_mutex_unlock(&q->lock);
        if (!sleeper)
            break;
    }
    if (woken)
        twi_count(TWI_WAKEUPS, woken);
    return woken;
}

uint32_t
twi_workq_asleep(struct twi_workq *q)
{
    return load_seq_cst(&q->asleep);
}
