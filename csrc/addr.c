#include "addr.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

static int
parse_port(const char *text, in_port_t *port)
{
    size_t n = strspn(text, "0123456789");
    if (n == 0 || n > 5 || text[n])
        return -EINVAL;
    unsigned long value = strtoul(text, NULL, 10);
    if (value > 65535)
        return -EINVAL;
    *port = htons((in_port_t)value);
    return 0;
}

static int
parse_unix(const char *path, struct twi_addr *addr)
{
    struct sockaddr_un *un = (struct sockaddr_un *)&addr->any;
    size_t n = strlen(path);
    if (n == 0 || n >= sizeof un->sun_path)
        return -EINVAL;
    un->sun_family = AF_UNIX;
    memcpy(un->sun_path, path, n + 1);
    addr->len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n + 1);
    return 0;
}

int
twi_addr_parse(const char *text, struct twi_addr *addr)
{
    char host[INET6_ADDRSTRLEN];
    memset(addr, 0, sizeof *addr);
    if (!strncmp(text, "unix:", 5))
        return parse_unix(text + 5, addr);
    const char *colon = strrchr(text, ':');
    int v6 = text[0] == '[';
    if (!colon || colon == text || (v6 && colon[-1] != ']'))
        return -EINVAL;
    size_t n = (size_t)(colon - text) - (v6 ? 2 : 0);
    if (n >= sizeof host)
        return -EINVAL;
    memcpy(host, text + v6, n);
    host[n] = 0;
    if (v6) {
        struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&addr->any;
        in6->sin6_family = AF_INET6;
        addr->len = sizeof *in6;
        if (inet_pton(AF_INET6, host, &in6->sin6_addr) != 1)
            return -EINVAL;
        return parse_port(colon + 1, &in6->sin6_port);
    }
    struct sockaddr_in *in = (struct sockaddr_in *)&addr->any;
    in->sin_family = AF_INET;
    addr->len = sizeof *in;
    if (inet_pton(AF_INET, host, &in->sin_addr) != 1)
        return -EINVAL;
    return parse_port(colon + 1, &in->sin_port);
}

int
twi_addr_format(const struct twi_addr *addr, char *text, size_t cap)
{
    char host[INET6_ADDRSTRLEN] = "?";
    int n;
    switch (addr->any.ss_family) {
    case AF_INET: {
        const struct sockaddr_in *in = (const void *)&addr->any;
        inet_ntop(AF_INET, &in->sin_addr, host, sizeof host);
        n = snprintf(text, cap, "%s:%u", host, ntohs(in->sin_port));
        break;
    }
    case AF_INET6: {
        const struct sockaddr_in6 *in6 = (const void *)&addr->any;
        inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof host);
        n = snprintf(text, cap, "[%s]:%u", host, ntohs(in6->sin6_port));
        break;
    }
    case AF_UNIX: {
        const struct sockaddr_un *un = (const void *)&addr->any;
        size_t head = offsetof(struct sockaddr_un, sun_path);
        size_t len = addr->len > head ? addr->len - head : 0;
        n = snprintf(text, cap, "unix:%.*s", (int)strnlen(un->sun_path, len),
                     un->sun_path);
        break;
    }
    default:
        n = snprintf(text, cap, "?");
    }
    return n < (int)cap ? n : (int)cap - 1;
}

int
twi_addr_equal(const struct twi_addr *a, const struct twi_addr *b)
{
    if (a->any.ss_family != b->any.ss_family)
        return 0;
    if (a->any.ss_family == AF_INET) {
        const struct sockaddr_in *x = (const void *)&a->any,
                                 *y = (const void *)&b->any;
        return x->sin_port == y->sin_port &&
               x->sin_addr.s_addr == y->sin_addr.s_addr;
    }
    if (a->any.ss_family == AF_INET6) {
        const struct sockaddr_in6 *x = (const void *)&a->any,
                                  *y = (const void *)&b->any;
        return x->sin6_port == y->sin6_port &&
               !memcmp(&x->sin6_addr, &y->sin6_addr, sizeof x->sin6_addr);
    }
    return a->len == b->len && !memcmp(&a->any, &b->any, a->len);
}
