/* Messages of one socket whose answers come in order and name nobody: who is
 * to get the next one.  The writer appends as a message's first byte leaves,
 * the reader counts answers off; a lock, since few protocols need this. */
#ifndef TWI_PIPELINE_H
#define TWI_PIPELINE_H

#include <pthread.h>
#include <stdint.h>

enum { TWI_PIPELINED_MAX = 16383 }; /* answers to one message */

struct twi_awaited {
    struct twi_awaited *next;
    uint64_t id; /* the message's */
    uint32_t left; /* answers still to come */
};

struct twi_pipeline {
    pthread_mutex_t lock;
    struct twi_awaited *first, *last;
};

void twi_pipeline_init(struct twi_pipeline *pipeline);
/* Frees what is awaited still. */
void twi_pipeline_fini(struct twi_pipeline *pipeline);
/* NULL without memory. */
struct twi_awaited *twi_awaited_new(uint64_t id, uint32_t count);
/* Takes it. */
void twi_pipeline_put(struct twi_pipeline *pipeline,
                      struct twi_awaited *awaited);
/* One answer came: 1 with the id of its message and how many more that one
 * awaits, or 0 when none was expected. */
int twi_pipeline_answered(struct twi_pipeline *pipeline, uint64_t *id,
                          uint32_t *left);

#endif
