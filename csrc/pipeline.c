#include "pipeline.h"

#include <stdlib.h>

#include "sys.h"

void
twi_pipeline_init(struct twi_pipeline *pipeline)
{
    pthread_mutex_init(&pipeline->lock, NULL);
    pipeline->first = pipeline->last = NULL;
}

void
twi_pipeline_fini(struct twi_pipeline *pipeline)
{
    while (pipeline->first) {
        struct twi_awaited *awaited = pipeline->first;
        pipeline->first = awaited->next;
        free(awaited);
    }
    pipeline->last = NULL;
}

struct twi_awaited *
twi_awaited_new(uint64_t id, uint32_t count)
{
    struct twi_awaited *awaited = twi_malloc(sizeof *awaited);
    if (awaited)
        *awaited = (struct twi_awaited){.id = id, .left = count};
    return awaited;
}

void
twi_pipeline_put(struct twi_pipeline *pipeline, struct twi_awaited *awaited)
{
    pthread_mutex_lock(&pipeline->lock);
    if (pipeline->last)
        pipeline->last->next = awaited;
    else
        pipeline->first = awaited;
    pipeline->last = awaited;
    pthread_mutex_unlock(&pipeline->lock);
}

int
twi_pipeline_answered(struct twi_pipeline *pipeline, uint64_t *id,
                      uint32_t *left)
{
    pthread_mutex_lock(&pipeline->lock);
    struct twi_awaited *awaited = pipeline->first;
    if (awaited) {
        *id = awaited->id;
        *left = --awaited->left;
        if (!awaited->left) {
            pipeline->first = awaited->next;
            if (!pipeline->first)
                pipeline->last = NULL;
            free(awaited);
        }
    }
    pthread_mutex_unlock(&pipeline->lock);
    return awaited != NULL;
}
