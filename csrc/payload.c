#include "payload.h"

#include <assert.h>

/* Behind what was committed: a lent part, or a copy, for which there is room
 * in the head's block or is made behind a lent one. */
static int
append(struct twi_iobuf *buf, const char *data, size_t n,
       struct twi_block *block)
{
    if (!block)
        return twi_iobuf_append(buf, data, n);
    assert(n <= block->size);
    struct twi_slice slice = {block, 0, (uint32_t)n};
    return twi_iobuf_append_slice(buf, slice);
}

int
twi_payload_refer(struct twi_iobuf *buf, const char *body, size_t body_len,
                  const tw_extra *x)
{
    int rc = append(buf, body, body_len, x->body_block);
    return rc ? rc
              : append(buf, x->attachment, x->attachment_len,
                       x->attachment_block);
}
