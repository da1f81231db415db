#include "listen.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "sockopt.h"
#include "sys.h"

/* A backlog that nobody asks for. */
enum { BIND_ONLY = -1 };

static const char *
path_of(const struct twi_addr *addr)
{
    return ((const struct sockaddr_un *)&addr->any)->sun_path;
}

/* ---- socket files */

/* Two servers that start at once must not take each other's fresh file, which
 * does not listen yet, for a stale one: the directory is locked meanwhile.
 * A descriptor, or a negative errno. */
static int
lock_directory(const char *path)
{
    char copy[sizeof((struct sockaddr_un *)0)->sun_path];
    snprintf(copy, sizeof copy, "%s", path);
    const char *directory = dirname(copy);
    int fd;
    do /* a network's file system may be interrupted */
        fd = twi_sys.open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    while (fd < 0 && errno == EINTR);
    if (fd < 0)
        /* Write-only directories exist; the lock is a courtesy. */
        return errno == EACCES ? TWI_AGAIN : -errno;
    for (int i = 0; i < TWI_LISTEN_LOCK_TRIES; i++) {
        /* Where there are no locks it goes without. */
        if (!twi_sys.flock(fd, LOCK_EX | LOCK_NB) || errno != EWOULDBLOCK)
            return fd;
        twi_sys.poll(NULL, 0, 10);
    }
    twi_sys_close(fd);
    return -EADDRINUSE;
}

/* A socket file whose server is gone refuses connections: it may be replaced.
 * Anything else at the path is left alone. */
static void
remove_stale(const struct twi_addr *addr)
{
    struct stat st;
    if (twi_sys.lstat(path_of(addr), &st) || !S_ISSOCK(st.st_mode))
        return;
    int fd = twi_sys.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return;
    if (twi_sys.connect(fd, (const struct sockaddr *)&addr->any, addr->len) &&
        errno == ECONNREFUSED)
        twi_sys.unlink(path_of(addr));
    twi_sys_close(fd);
}

/* The mode whatever the umask is.  The file was made by bind with these bits
 * or fewer (unix(7): those of the descriptor, less the umask), and nobody can
 * connect before listen. */
static int
set_mode(const struct twi_addr *addr, mode_t mode)
{
    struct stat st;
    if (!mode || twi_sys.lstat(path_of(addr), &st))
        return 0;
    if ((st.st_mode & 07777) == mode)
        return 0;
    return twi_sys.fchmodat(AT_FDCWD, path_of(addr), mode, AT_SYMLINK_NOFOLLOW)
               ? -errno
               : 0;
}

static int
listen_on_file(int fd, int backlog, mode_t mode, struct twi_listening *out)
{
    const struct twi_addr *addr = &out->addr;
    struct stat st;
    if (mode && twi_sys.fchmod(fd, mode))
        return -errno;
    int lock = lock_directory(path_of(addr)), rc = 0;
    if (lock < 0 && lock != TWI_AGAIN)
        return lock;
    remove_stale(addr);
    if (twi_sys.bind(fd, (const struct sockaddr *)&addr->any, addr->len))
        rc = -errno;
    else if ((rc = set_mode(addr, mode)))
        twi_sys.unlink(path_of(addr));
    else if (twi_sys.listen(fd, backlog)) {
        rc = -errno;
        twi_sys.unlink(path_of(addr));
    }
    if (!rc && !twi_sys.lstat(path_of(addr), &st))
        out->file_ino = st.st_ino;
    if (lock >= 0)
        twi_sys_close(lock);
    return rc;
}

void
twi_listen_unlink(const struct twi_addr *addr, uint64_t file_ino)
{
    struct stat st;
    if (file_ino && !twi_sys.lstat(path_of(addr), &st) && st.st_ino == file_ino)
        twi_sys.unlink(path_of(addr));
}

/* ---- descriptors of a supervisor */

static const char *
kind_of_file(mode_t mode)
{
    return S_ISREG(mode)    ? "a file"
           : S_ISDIR(mode)  ? "a directory"
           : S_ISCHR(mode)  ? "a character device"
           : S_ISBLK(mode)  ? "a block device"
           : S_ISFIFO(mode) ? "a pipe"
                            : "no socket";
}

static int
socket_fact(int fd, int option)
{
    int value = 0;
    socklen_t len = sizeof value;
    return twi_sys.getsockopt(fd, SOL_SOCKET, option, &value, &len) ? -1 : value;
}

/* What is wrong with it; NULL: it is a listening stream socket. */
static const char *
no_listener(int fd)
{
    struct stat st;
    if (twi_sys.fstat(fd, &st))
        return "not open";
    if (!S_ISSOCK(st.st_mode))
        return kind_of_file(st.st_mode);
    int family = socket_fact(fd, SO_DOMAIN), type = socket_fact(fd, SO_TYPE);
    if (family != AF_INET && family != AF_INET6 && family != AF_UNIX)
        return "a socket of another family than IPv4, IPv6 and unix";
    if (type != SOCK_STREAM)
        return type == SOCK_DGRAM ? "a datagram socket"
                                  : "a socket that is no stream";
    return socket_fact(fd, SO_ACCEPTCONN) == 1
               ? NULL
               : "a stream socket that does not listen";
}

/* A duplicate is ours to close; the caller's stays its own. */
static int
inherit(const char *number, int backlog, const tw_server_options *options,
        struct twi_listening *out, char *why)
{
    const char *refused = "";
    size_t n = strspn(number, "0123456789");
    if (!n || n > 9 || number[n])
        return -EINVAL;
    int given = (int)strtol(number, NULL, 10);
    const char *wrong = no_listener(given);
    if (wrong) {
        snprintf(why, TWI_LISTEN_WHY, "descriptor %d is %s", given, wrong);
        return -EINVAL;
    }
    out->fd = twi_sys.fcntl(given, F_DUPFD_CLOEXEC, 3);
    if (out->fd < 0)
        return -errno;
    /* The supervisor had to leave it open for us; our children are none of
     * its business. */
    twi_sys.fcntl(given, F_SETFD, FD_CLOEXEC);
    int flags = twi_sys.fcntl(out->fd, F_GETFL), rc;
    out->addr.len = sizeof out->addr.any;
    if ((rc = twi_sockopt_apply(out->fd, &options->socket, &refused))) {
        snprintf(why, TWI_LISTEN_WHY, "option %s is refused", refused);
        twi_sys_close(out->fd);
        return rc;
    }
    if (flags < 0 || twi_sys.fcntl(out->fd, F_SETFL, flags | O_NONBLOCK) ||
        twi_sys.listen(out->fd, backlog) ||
        twi_sys.getsockname(out->fd, (struct sockaddr *)&out->addr.any,
                    &out->addr.len)) {
        rc = -errno;
        twi_sys_close(out->fd);
        return rc;
    }
    out->inherited = 1;
    return 0;
}

/* ---- both */

static int
listen_on(int fd, int backlog, const tw_server_options *options,
          struct twi_listening *out, char *why)
{
    int one = 1, family = out->addr.any.ss_family;
    const char *refused = "";
    int rc = twi_sockopt_apply(fd, &options->socket, &refused);
    if (rc) {
        snprintf(why, TWI_LISTEN_WHY, "option %s is refused", refused);
        return rc;
    }
    if (family == AF_UNIX)
        return listen_on_file(fd, backlog, options->unix_mode, out);
    if (twi_sys.setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) ||
        (options->reuse_port &&
         twi_sys.setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one)) ||
        (family == AF_INET6 &&
         twi_sys.setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one)) ||
        twi_sys.bind(fd, (const struct sockaddr *)&out->addr.any, out->addr.len) ||
        (backlog != BIND_ONLY && twi_sys.listen(fd, backlog)))
        return -errno;
    return 0;
}

int
twi_listen_bind(const char *address, int backlog,
                const tw_server_options *options, struct twi_listening *out,
                char *why)
{
    struct twi_addr addr;
    int is_tcp = strncmp(address, "fd:", 3) &&
                 !twi_addr_parse(address, &addr) &&
                 addr.any.ss_family != AF_UNIX;
    return twi_listen(address, is_tcp ? BIND_ONLY : backlog, options, out, why);
}

int
twi_listen(const char *address, int backlog, const tw_server_options *options,
           struct twi_listening *out, char *why)
{
    memset(out, 0, sizeof *out);
    why[0] = 0;
    if (!strncmp(address, "fd:", 3))
        return inherit(address + 3, backlog, options, out, why);
    int rc = twi_addr_parse(address, &out->addr);
    if (rc)
        return rc;
    out->fd = twi_sys.socket(out->addr.any.ss_family,
                     SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (out->fd < 0)
        return -errno;
    rc = listen_on(out->fd, backlog, options, out, why);
    if (!rc) {
        out->addr.len = sizeof out->addr.any;
        if (twi_sys.getsockname(out->fd, (struct sockaddr *)&out->addr.any,
                        &out->addr.len))
            rc = -errno;
    }
    if (rc) {
        twi_listen_unlink(&out->addr, out->file_ino);
        twi_sys_close(out->fd);
    }
    return rc;
}
