/* The client half of baidu_std: calls packed as requests, responses that end
 * calls.  Which connection a request goes to is client.c's. */
#ifndef TWI_STD_CLIENT_H
#define TWI_STD_CLIENT_H

#include "call.h"
#include "protocol.h"

/* What connections to servers speak. */
extern const struct twi_protocol twi_std_client;

/* The call's request, not pushed yet; NULL: no memory, or one of its parts is
 * too large for the format.  names: the method's, from twi_std_pack_names.
 * Shares lent bytes and copies the rest.  Any thread. */
struct twi_wnode *
twi_std_client_pack(const struct twi_call *call, struct twi_str names,
                    const char *body, size_t body_len, const tw_extra *extra,
                    const struct twi_block *credential, int64_t now_ns);

#endif
