/* Sockets that listen: made from an address, or inherited from a supervisor
 * as "fd:N". */
#ifndef TWI_LISTEN_H
#define TWI_LISTEN_H

#include "addr.h"
#include "core.h"

enum {
    TWI_LISTEN_WHY = 96,        /* bytes of a reason with its NUL */
    TWI_LISTEN_LOCK_TRIES = 100 /* 10 ms apart: others replace a socket file */
};

struct twi_listening {
    int fd; /* the caller's to close; non-blocking, close-on-exec */
    struct twi_addr addr;
    int inherited;     /* others listen on it, too: never shut it down */
    uint64_t file_ino; /* the socket file that we made; 0: none */
};

/* Listens.  0, or a negative errno; `why` then holds what was refused, "" when
 * the errno says it all.  A socket file in the way is replaced if nobody
 * listens on it.  May block for a moment while another process replaces one. */
int twi_listen(const char *address, int backlog,
               const tw_server_options *options, struct twi_listening *out,
               char *why);
/* Binds and, unless it is a TCP address, listens: for other processes, which
 * share it or listen at the address themselves.  As twi_listen. */
int twi_listen_bind(const char *address, int backlog,
                    const tw_server_options *options,
                    struct twi_listening *out, char *why);
/* Removes the socket file at the address if it is still the one we made. */
void twi_listen_unlink(const struct twi_addr *addr, uint64_t file_ino);

#endif
