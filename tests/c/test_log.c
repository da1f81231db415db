/* The event ring: order, what is dropped and that it is counted, texts made
 * printable and cut, waiting and its end. */
#include "log.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/un.h>

#include "check.h"
#include "counters.h"
#include "sys.h"

/* The clock is ours: the limit per second must not depend on the machine. */
static _Atomic int64_t now_ns = 5000000000;

static int
our_clock(clockid_t id, struct timespec *t)
{
    (void)id;
    int64_t now = now_ns;
    *t = (struct timespec){now / 1000000000, now % 1000000000};
    return 0;
}

static tw_log_entry entries[2 * TWI_LOG_RING];

static void *
write_one(void *unused)
{
    (void)unused;
    twi_log(TW_LOG_TOO_BIG, 9, NULL, "woken");
    return NULL;
}

static void *
stop(void *unused)
{
    (void)unused;
    twi_log_stop();
    return NULL;
}

static int
printable(const char *text)
{
    for (; *text; text++)
        if (*text < 32 || *text > 126)
            return 0;
    return 1;
}

int
main(void)
{
    unsigned long long seed = check_seed();
    twi_sys.clock_gettime = our_clock;
    CHECK_EQ(twi_counters_open(), 0);
    twi_log_init();
    CHECK_EQ(tw_log_take(entries, 10, 0), 0);
    CHECK_EQ(tw_log_take(entries, 10, 2000000), 0);

    struct twi_addr peer;
    CHECK_EQ(twi_addr_parse("1.2.3.4:80", &peer), 0);
    twi_log(TW_LOG_CONNECT_FAILED, ECONNREFUSED, &peer, "ECONNREFUSED");
    twi_log_bytes(TW_LOG_BAD_BYTES, EINVAL, NULL, "bad",
                  (const uint8_t *)"A\0\n\x7f\xff z", 7);
    CHECK_EQ(tw_log_take(entries, 1, 0), 1);
    CHECK_EQ(entries[0].kind, TW_LOG_CONNECT_FAILED);
    CHECK_EQ(entries[0].code, ECONNREFUSED);
    CHECK_EQ(entries[0].when_ns, now_ns);
    CHECK_EQ(entries[0].dropped, 0);
    CHECK(!strcmp(entries[0].peer, "1.2.3.4:80"));
    CHECK(!strcmp(entries[0].detail, "ECONNREFUSED"));
    CHECK_EQ(tw_log_take(entries, 10, 0), 1);
    CHECK(!strcmp(entries[0].detail, "bad: A\\x00\\x0a\\x7f\\xff z"));
    CHECK_EQ(entries[0].peer[0], 0);

    /* R8: more than one kind may have in a second; then more than there is
     * room for: what is lost is told with the next that is not. */
    for (int i = 0; i < TWI_LOG_PER_SECOND + 10; i++)
        twi_log(TW_LOG_ACCEPT_FAILED, i, NULL, "");
    CHECK_EQ(tw_log_take(entries, 2 * TWI_LOG_RING, 0), TWI_LOG_PER_SECOND);
    CHECK_EQ(twi_cell_value(TWI_LOG_DROPPED), 10);
    twi_log(TW_LOG_ACCEPT_FAILED, 0, NULL, "");
    twi_log(TW_LOG_OVERCROWDED, 77, NULL, "");
    CHECK_EQ(tw_log_take(entries, 10, 0), 1);
    CHECK_EQ(entries[0].code, 77);
    CHECK_EQ(entries[0].dropped, 11);
    int taken = 0;
    for (int i = 0; i < TWI_LOG_RING + 44; i++) {
        now_ns += 1000000000;
        twi_log(TW_LOG_ACCEPT_FAILED, i, NULL, "");
    }
    for (int n; (n = tw_log_take(entries, 7, 0)) > 0; taken += n)
        for (int i = 0; i < n; i++)
            CHECK_EQ(entries[i].code, taken + i);
    CHECK_EQ(taken, TWI_LOG_RING);
    CHECK_EQ(twi_cell_value(TWI_LOG_DROPPED), 11 + 44);
    now_ns += 1000000000;
    twi_log(TW_LOG_ACCEPT_FAILED, 1, NULL, "");
    CHECK_EQ(tw_log_take(entries, 7, 0), 1);
    CHECK_EQ(entries[0].dropped, 44);

    /* Whatever the peer sends or is called. */
    for (int i = 0; i < 2000; i++) {
        uint8_t data[64];
        char detail[120];
        size_t n = check_random(&seed) % sizeof data;
        size_t len = check_random(&seed) % sizeof detail;
        for (size_t j = 0; j < sizeof data; j++)
            data[j] = (uint8_t)(check_random(&seed) >> 9);
        for (size_t j = 0; j < len; j++)
            detail[j] = (char)(1 + (check_random(&seed) >> 9) % 255);
        detail[len] = 0;
        struct sockaddr_un *un = (struct sockaddr_un *)&peer.any;
        un->sun_family = AF_UNIX;
        memcpy(un->sun_path, detail, sizeof un->sun_path);
        un->sun_path[sizeof un->sun_path - 1] = 0;
        peer.len = sizeof *un;
        now_ns += 1000000000;
        twi_log_bytes(TW_LOG_BAD_BYTES, 1, &peer, detail, data, n);
        CHECK_EQ(tw_log_take(entries, 7, 0), 1);
        CHECK(strnlen(entries[0].detail, sizeof entries[0].detail) <
              sizeof entries[0].detail);
        CHECK(strnlen(entries[0].peer, sizeof entries[0].peer) <
              sizeof entries[0].peer);
        CHECK(printable(entries[0].detail));
        CHECK(printable(entries[0].peer));
        if (check_failures)
            break;
    }

    /* A waiting taker is woken, by an entry and by the end. */
    pthread_t thread;
    now_ns += 1000000000;
    if (pthread_create(&thread, NULL, write_one, NULL))
        abort();
    CHECK_EQ(tw_log_take(entries, 7, -1), 1);
    CHECK(!strcmp(entries[0].detail, "woken"));
    pthread_join(thread, NULL);
    if (pthread_create(&thread, NULL, stop, NULL))
        abort();
    CHECK_EQ(tw_log_take(entries, 7, -1), -TW_STOPPED);
    pthread_join(thread, NULL);
    /* After the end nothing is written any more. */
    twi_log(TW_LOG_TOO_BIG, 9, NULL, "late");
    CHECK_EQ(tw_log_take(entries, 7, -1), -TW_STOPPED);
    twi_log_init();
    CHECK_EQ(tw_log_take(entries, 7, 0), 0);
    return check_done();
}
