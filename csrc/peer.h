/* One server at one address, and the connection to it: made when first needed,
 * and again after it failed. */
#ifndef TWI_PEER_H
#define TWI_PEER_H

#include "socket.h"

enum { TWI_TIMEOUTS_UNREACHABLE = 3 }; /* connect timeouts in a row */

struct twi_peer;
struct twi_credential;

void twi_peers_init(void);
void twi_peers_fini(void);
int64_t twi_peer_count(void);

struct twi_peer *twi_peer_address(tw_id id);
void twi_peer_unref(struct twi_peer *peer);
/* The peer's connection, connecting if need be, a reference taken; NULL with
 * *code set. */
struct twi_socket *twi_peer_socket(struct twi_peer *peer, int64_t now_ns,
                                   int *code);
/* The live one there is, a reference taken; NULL: none. */
struct twi_socket *twi_peer_connection(struct twi_peer *peer);
struct twi_credential *twi_peer_credential(struct twi_peer *peer);
/* A connect deadline has passed. */
void twi_connect_timeout(tw_id socket);

#endif
