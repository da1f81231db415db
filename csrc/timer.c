#include "timer.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "sys.h"

int
twi_timers_init(struct twi_timers *timers)
{
    memset(timers, 0, sizeof *timers);
    return -pthread_mutex_init(&timers->lock, NULL);
}

void
twi_timers_fini(struct twi_timers *timers)
{
    free(timers->heap);
    pthread_mutex_destroy(&timers->lock);
    memset(timers, 0, sizeof *timers);
}

static void
place(struct twi_timers *timers, uint32_t i, struct twi_timer *timer)
{
    timers->heap[i] = timer;
    timer->index = i + 1;
}

static void
sift_up(struct twi_timers *timers, uint32_t i, struct twi_timer *timer)
{
    while (i > 0) {
        uint32_t parent = (i - 1) / 2;
        if (timers->heap[parent]->when_ns <= timer->when_ns)
            break;
        place(timers, i, timers->heap[parent]);
        i = parent;
    }
    place(timers, i, timer);
}

static void
sift_down(struct twi_timers *timers, uint32_t i, struct twi_timer *timer)
{
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= timers->n)
            break;
        if (child + 1 < timers->n && timers->heap[child + 1]->when_ns <
                                         timers->heap[child]->when_ns)
            child++;
        if (timer->when_ns <= timers->heap[child]->when_ns)
            break;
        place(timers, i, timers->heap[child]);
        i = child;
    }
    place(timers, i, timer);
}

static void
take_out(struct twi_timers *timers, uint32_t i)
{
    timers->heap[i]->index = 0;
    struct twi_timer *last = timers->heap[--timers->n];
    if (i == timers->n)
        return;
    if (i > 0 && last->when_ns < timers->heap[(i - 1) / 2]->when_ns)
        sift_up(timers, i, last);
    else
        sift_down(timers, i, last);
}

static int
grow(struct twi_timers *timers)
{
    if (timers->n < timers->cap)
        return 0;
    uint32_t cap = timers->cap ? 2 * timers->cap : 64;
    struct twi_timer **heap = twi_malloc(cap * sizeof *heap);
    if (!heap)
        return -ENOMEM;
    if (timers->n)
        memcpy(heap, timers->heap, timers->n * sizeof *heap);
    free(timers->heap);
    timers->heap = heap;
    timers->cap = cap;
    return 0;
}

int
twi_timers_add(struct twi_timers *timers, struct twi_timer *timer,
               int64_t when_ns, int kind, uint64_t id)
{
    pthread_mutex_lock(&timers->lock);
    assert(timer->index == 0);
    int rc = grow(timers);
    if (rc == 0) {
        timer->when_ns = when_ns;
        timer->kind = kind;
        timer->id = id;
        sift_up(timers, timers->n++, timer);
        rc = timer->index == 1;
    }
    pthread_mutex_unlock(&timers->lock);
    return rc;
}

void
twi_timers_remove(struct twi_timers *timers, struct twi_timer *timer)
{
    pthread_mutex_lock(&timers->lock);
    if (timer->index)
        take_out(timers, timer->index - 1);
    pthread_mutex_unlock(&timers->lock);
}

int
twi_timers_pop(struct twi_timers *timers, int64_t now_ns, int *kind,
               uint64_t *id)
{
    int due = 0;
    pthread_mutex_lock(&timers->lock);
    if (timers->n && timers->heap[0]->when_ns <= now_ns) {
        *kind = timers->heap[0]->kind;
        *id = timers->heap[0]->id;
        take_out(timers, 0);
        due = 1;
    }
    pthread_mutex_unlock(&timers->lock);
    return due;
}

int64_t
twi_timers_next(struct twi_timers *timers)
{
    pthread_mutex_lock(&timers->lock);
    int64_t next = timers->n ? timers->heap[0]->when_ns : INT64_MAX;
    pthread_mutex_unlock(&timers->lock);
    return next;
}

uint32_t
twi_timers_count(struct twi_timers *timers)
{
    pthread_mutex_lock(&timers->lock);
    uint32_t n = timers->n;
    pthread_mutex_unlock(&timers->lock);
    return n;
}
