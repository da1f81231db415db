/* The table a protocol fills in.  Tried in order on a new connection; the
 * choice is remembered. */
#ifndef TWI_PROTOCOL_H
#define TWI_PROTOCOL_H

#include <stddef.h>
#include <stdint.h>

#include "proto/baidu_std.h"

struct twi_socket;
struct twi_block;

struct twi_protocol {
    const char *name;
    int bit; /* TW_PROTO_* */
    /* DONE: these bytes begin one of mine; MORE: cannot tell yet; OTHER. */
    enum twi_cut (*sniff)(const uint8_t *data, size_t n);
    /* Cuts one message off the front and delivers it, with the baton held.
     * data lies in block, whose reference is the reader's: sharing it keeps
     * the bytes.  As twi_std_cut; DONE with *used 0: come back when resumed. */
    enum twi_cut (*consume)(struct twi_socket *sock, struct twi_block *block,
                            const uint8_t *data, size_t n, int64_t now_ns,
                            size_t *used, size_t *need, const char **why);
};

/* What a server's or a client's connections speak; NULL-ended. */
extern const struct twi_protocol *const twi_server_protocols[];
extern const struct twi_protocol *const twi_client_protocols[];

#endif
