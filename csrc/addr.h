/* Socket addresses as text: "1.2.3.4:80", "[::1]:80", "unix:/path". */
#ifndef TWI_ADDR_H
#define TWI_ADDR_H

#include <stddef.h>
#include <sys/socket.h>

enum { TWI_ADDR_TEXT = 120 }; /* the longest text with its NUL */

struct twi_addr {
    struct sockaddr_storage any;
    socklen_t len;
};

/* Numeric addresses only; 0 or -EINVAL. */
int twi_addr_parse(const char *text, struct twi_addr *addr);
/* NUL-ended, cut to cap; its length.  An unnamed unix peer is "unix:". */
int twi_addr_format(const struct twi_addr *addr, char *text, size_t cap);
/* 1 when both name the same end point. */
int twi_addr_equal(const struct twi_addr *a, const struct twi_addr *b);

#endif
