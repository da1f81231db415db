/* Addresses: what parses, to what text it comes back, what is refused. */
#include "addr.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/un.h>

#include "check.h"

int
main(void)
{
    static const struct {
        const char *text, *back; /* NULL: refused */
    } table[] = {
        {"1.2.3.4:80", "1.2.3.4:80"},
        {"0.0.0.0:0", "0.0.0.0:0"},
        {"255.255.255.255:65535", "255.255.255.255:65535"},
        {"127.0.0.1:00080", "127.0.0.1:80"},
        {"[::1]:80", "[::1]:80"},
        {"[0:0:0:0:0:0:0:1]:1", "[::1]:1"},
        {"[::ffff:1.2.3.4]:5", "[::ffff:1.2.3.4]:5"},
        {"[fe80::1234:5678:9abc:def0]:65535",
         "[fe80::1234:5678:9abc:def0]:65535"},
        {"unix:/tmp/x", "unix:/tmp/x"},
        {"unix:relative", "unix:relative"},
        {"unix:with:colon:80", "unix:with:colon:80"},
        {"", NULL},
        {":", NULL},
        {":80", NULL},
        {"1.2.3.4", NULL},
        {"1.2.3.4:", NULL},
        {"1.2.3.4:65536", NULL},
        {"1.2.3.4:100000", NULL},
        {"1.2.3.4:-1", NULL},
        {"1.2.3.4:+1", NULL},
        {"1.2.3.4: 1", NULL},
        {"1.2.3.4:80 ", NULL},
        {" 1.2.3.4:80", NULL},
        {"1.2.3:80", NULL},
        {"1.2.3.256:80", NULL},
        {"localhost:80", NULL},
        {"::1:80", NULL},
        {"[::1]", NULL},
        {"[::1]80", NULL},
        {"[::1:80", NULL},
        {"[]:80", NULL},
        {"[:80", NULL},
        {"[::1]x:80", NULL},
        {"[fe80::1%lo]:80", NULL},
        {"[1.2.3.4]:80", NULL},
        {"]:80", NULL},
        {"unix:", NULL},
        {"12345678901234567890123456789012345678901234567890:80", NULL},
    };
    struct twi_addr addr, other;
    char text[TWI_ADDR_TEXT];
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        int rc = twi_addr_parse(table[i].text, &addr);
        if ((rc == 0) != (table[i].back != NULL))
            fprintf(stderr, "\"%s\": %d\n", table[i].text, rc);
        CHECK_EQ(rc, table[i].back ? 0 : -EINVAL);
        if (rc)
            continue;
        CHECK_EQ(twi_addr_format(&addr, text, sizeof text),
                 strlen(table[i].back));
        CHECK(!strcmp(text, table[i].back));
        CHECK(twi_addr_equal(&addr, &addr));
        CHECK_EQ(twi_addr_parse("9.9.9.9:9", &other), 0);
        CHECK(!twi_addr_equal(&addr, &other));
        /* Cut to every size, NUL-ended, nothing written behind. */
        for (size_t cap = 1; cap < sizeof text; cap++) {
            memset(text, 'z', sizeof text);
            int n = twi_addr_format(&addr, text, cap);
            CHECK_EQ(n, strlen(text));
            CHECK((size_t)n < cap);
            CHECK_EQ(text[cap], 'z');
            CHECK(!strncmp(text, table[i].back, (size_t)n));
        }
    }
    /* Equal but for one part. */
    static const char *const different[][2] = {
        {"1.2.3.4:80", "1.2.3.4:81"}, {"1.2.3.4:80", "1.2.3.5:80"},
        {"[::1]:80", "[::1]:81"},     {"[::1]:80", "[::2]:80"},
        {"unix:/a", "unix:/b"},       {"unix:/a", "unix:/ab"},
        {"1.2.3.4:80", "[::1]:80"},   {"[::1]:80", "unix:/a"},
    };
    for (size_t i = 0; i < sizeof different / sizeof *different; i++) {
        CHECK_EQ(twi_addr_parse(different[i][0], &addr), 0);
        CHECK_EQ(twi_addr_parse(different[i][1], &other), 0);
        CHECK(!twi_addr_equal(&addr, &other));
        CHECK(!twi_addr_equal(&other, &addr));
    }
    /* The longest unix path fits, one more does not. */
    struct sockaddr_un un;
    char path[5 + sizeof un.sun_path + 1];
    memset(path, 'p', sizeof path);
    memcpy(path, "unix:", 5);
    path[5 + sizeof un.sun_path] = 0;
    CHECK_EQ(twi_addr_parse(path, &addr), -EINVAL);
    path[5 + sizeof un.sun_path - 1] = 0;
    CHECK_EQ(twi_addr_parse(path, &addr), 0);
    CHECK_EQ(twi_addr_format(&addr, text, sizeof text), strlen(path));
    CHECK(!strcmp(text, path));
    /* An unnamed unix peer, as accept gives it. */
    addr = (struct twi_addr){.any.ss_family = AF_UNIX,
                             .len = offsetof(struct sockaddr_un, sun_path)};
    CHECK_EQ(twi_addr_format(&addr, text, sizeof text), 5);
    CHECK(!strcmp(text, "unix:"));
    /* A family nobody knows. */
    addr = (struct twi_addr){.any.ss_family = AF_PACKET};
    CHECK_EQ(twi_addr_format(&addr, text, sizeof text), 1);
    return check_done();
}
