#include "sockopt.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "addr.h"
#include "sys.h"

static int
family_of(int fd)
{
    int family = AF_UNSPEC;
    socklen_t len = sizeof family;
    twi_sys.getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &len);
    return family;
}

/* The local address of a connection, any port. */
static int
bind_to(int fd, int family, const char *host)
{
    char text[sizeof((tw_socket_options *)0)->bind + 8];
    struct twi_addr addr;
    int one = 1;
    snprintf(text, sizeof text, strchr(host, ':') ? "[%s]:0" : "%s:0", host);
    int rc = twi_addr_parse(text, &addr);
    if (rc)
        return rc;
    if (addr.any.ss_family != family)
        return -EAFNOSUPPORT;
    /* The port is chosen by connect, which knows the other side: so the ports
     * do not run out at one local address.  Old kernels do without. */
    twi_sys.setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    return twi_sys.bind(fd, (const struct sockaddr *)&addr.any, addr.len) ? -errno : 0;
}

int
twi_sockopt_apply(int fd, const tw_socket_options *options,
                  const char **refused)
{
    static const tw_socket_options nothing;
    if (!options || !memcmp(options, &nothing, sizeof nothing))
        return 0;
    int family = family_of(fd), inet = family != AF_UNIX;
    int v6 = family == AF_INET6;
    const struct {
        const char *name;
        int wanted, level, option, value;
    } table[] = {
        {"send_buffer", options->send_buffer > 0, SOL_SOCKET, SO_SNDBUF,
         options->send_buffer},
        {"receive_buffer", options->receive_buffer > 0, SOL_SOCKET, SO_RCVBUF,
         options->receive_buffer},
        {"keepalive", inet && options->keepalive, SOL_SOCKET, SO_KEEPALIVE, 1},
        {"keepalive.idle", inet && options->keepalive_idle > 0, IPPROTO_TCP,
         TCP_KEEPIDLE, options->keepalive_idle},
        {"keepalive.interval", inet && options->keepalive_interval > 0,
         IPPROTO_TCP, TCP_KEEPINTVL, options->keepalive_interval},
        {"keepalive.count", inet && options->keepalive_count > 0, IPPROTO_TCP,
         TCP_KEEPCNT, options->keepalive_count},
        {"user_timeout", inet && options->user_timeout_ms > 0, IPPROTO_TCP,
         TCP_USER_TIMEOUT, options->user_timeout_ms},
        {"tos", inet && options->tos > 0, v6 ? IPPROTO_IPV6 : IPPROTO_IP,
         v6 ? IPV6_TCLASS : IP_TOS, options->tos},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (table[i].wanted &&
            twi_sys.setsockopt(fd, table[i].level, table[i].option, &table[i].value,
                       sizeof table[i].value)) {
            *refused = table[i].name;
            return -errno;
        }
    *refused = "bind";
    return options->bind[0] ? bind_to(fd, family, options->bind) : 0;
}

int
tw_socket_check(const char *address, const tw_socket_options *options,
                char *refused, size_t cap)
{
    struct twi_addr addr;
    const char *name = "";
    refused[0] = 0;
    int rc = twi_addr_parse(address, &addr);
    if (rc)
        return rc;
    int fd = twi_sys.socket(addr.any.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    rc = twi_sockopt_apply(fd, options, &name);
    twi_sys_close(fd);
    if (rc)
        snprintf(refused, cap, "%s", name);
    return rc;
}
