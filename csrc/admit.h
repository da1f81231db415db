/* Which method a request means, and whether the server lets it in; the checks
 * stand in brpc's order.  For the thread that cuts it. */
#ifndef TWI_ADMIT_H
#define TWI_ADMIT_H

#include "proto/baidu_std.h"
#include "server.h"

/* Where a method stands in the server's index, before masking. */
uint32_t twi_method_hash(struct twi_str service, struct twi_str name);

/* The method, its index in *which, and the call is counted with the server's
 * limiter; or NULL with *code and the text for the peer, and it is not.  What is
 * left to ask is the method's own limiter. */
struct twi_method *twi_admit(struct twi_server *server,
                             const struct twi_std_msg *msg, uint32_t *which,
                             int *code, char *text, size_t cap);

/* W4: whether a body of so many bytes is over its method's limit; *why then says
 * so.  Knows the meta alone. */
int twi_admit_too_large(struct twi_server *server,
                        const struct twi_std_msg *msg, uint64_t body,
                        const char **why);

#endif
