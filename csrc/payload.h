/* What stands behind a message's head: the body and the attachment, copied
 * into the head's own block or, if they are lent, referred to. */
#ifndef TWI_PAYLOAD_H
#define TWI_PAYLOAD_H

#include <string.h>

#include "core.h"
#include "iobuf.h"

/* How many of the bytes are to be copied, room for which the head's block
 * must have.  x may be NULL, here and below. */
static inline size_t
twi_payload_copied(size_t body_len, const tw_extra *x)
{
    if (!x)
        return body_len;
    return (x->body_block ? 0 : body_len) +
           (x->attachment_block ? 0 : x->attachment_len);
}

/* The part of twi_payload_put for messages of which something is lent. */
int twi_payload_refer(struct twi_iobuf *buf, const char *body, size_t body_len,
                      const tw_extra *x);

/* Completes a message: `room` is what twi_iobuf_reserve gave for the head and
 * the bytes to copy, its first `head` bytes are written.  Shares lent blocks.
 * 0 or -ENOMEM (the buf then holds a part). */
static inline int
twi_payload_put(struct twi_iobuf *buf, uint8_t *room, size_t head,
                const char *body, size_t body_len, const tw_extra *x)
{
    if (x && (x->body_block || x->attachment_block)) {
        twi_iobuf_commit(buf, head);
        return twi_payload_refer(buf, body, body_len, x);
    }
    if (body_len)
        memcpy(room + head, body, body_len);
    head += body_len;
    if (x && x->attachment_len) {
        memcpy(room + head, x->attachment, x->attachment_len);
        head += x->attachment_len;
    }
    twi_iobuf_commit(buf, head);
    return 0;
}

#endif
