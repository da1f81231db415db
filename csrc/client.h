/* Calls as they begin: a method, a peer's connection or the wait for one, the
 * deadline's timer; and what tw_call and tw_submit return. */
#ifndef TWI_CLIENT_H
#define TWI_CLIENT_H

#include "socket.h"

enum {
    TWI_CLIENT_METHODS_MAX = 4096,
    TWI_NAMES_MAX = 512
};

void twi_clients_init(void);
/* Calls a client method on a socket that the caller has a reference to.
 * `ended` is told, once, by whoever ends the call. */
void twi_client_probe(struct twi_socket *sock, int method, const char *body,
                      size_t body_len, int64_t deadline_ns, int64_t now_ns,
                      void (*ended)(uint64_t cookie, int code), uint64_t cookie);

#endif
