/* One reader per socket at a time: the holder of the baton.  Reads into one
 * contiguous block per connection, chooses the protocol, cuts messages.
 *
 * The read size adapts to the messages; a large frame's block grows by
 * doubling what has arrived, never by the declared length alone.  A connection
 * with nothing buffered holds no block. */
#ifndef TWI_READER_H
#define TWI_READER_H

#include "socket.h"

enum {
    TWI_READ_MIN = 4096,
    TWI_READ_MAX = 524288,
    TWI_READ_MESSAGES = 16,        /* average messages per read */
    TWI_READ_LARGE = 128 << 10,    /* up to here; beyond it one message */
    TWI_READ_BUDGET = 1 << 20,     /* bytes per turn of one socket */
    TWI_READ_SLACK = 64 << 10      /* allocated beyond twice the received */
};

/* Reads and cuts until there is nothing more, the budget is used up (the rest
 * is a leftover), backpressure stops it, or the socket failed. */
void twi_reader_run(struct twi_socket *sock, uint32_t events, int64_t now_ns);

#endif
