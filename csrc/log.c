#include "log.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "atomics.h"
#include "counters.h"
#include "sys.h"

/* A mutex: entries are rare, and the taker copies them out under it. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static tw_log_entry ring[TWI_LOG_RING];
static uint32_t first, count;
static uint64_t dropped;
static int64_t second[TWI_LOG_KINDS]; /* in which `entries` were written */
static uint32_t entries_in[TWI_LOG_KINDS];
static _Atomic uint32_t bell; /* changes with every entry; the taker's futex */
static _Atomic uint32_t stopped, interrupted;

void
twi_log_init(void)
{
    pthread_mutex_init(&lock, NULL);
    first = count = 0;
    dropped = 0;
    store_relaxed(&stopped, 0);
}

/* 1 when one more entry of the kind is welcome; the lock held. */
static int
admit(int kind, int64_t when_ns)
{
    uint32_t i = (uint32_t)kind % TWI_LOG_KINDS;
    if (when_ns - second[i] >= INT64_C(1000000000)) {
        second[i] = when_ns;
        entries_in[i] = 0;
    }
    return count < TWI_LOG_RING && entries_in[i]++ < TWI_LOG_PER_SECOND;
}

/* A unix peer's path may hold anything: no line of the log may break. */
static void
make_printable(char *text)
{
    for (; *text; text++)
        if (*text < 32 || *text > 126)
            *text = '?';
}

void
twi_log_bytes(int kind, int code, const struct twi_addr *peer,
              const char *detail, const uint8_t *data, size_t n)
{
    tw_log_entry entry = {.when_ns = twi_now_ns(), .kind = kind, .code = code};
    if (load_relaxed(&stopped))
        return;
    if (peer)
        twi_addr_format(peer, entry.peer, sizeof entry.peer);
    size_t at = (size_t)snprintf(entry.detail, sizeof entry.detail - 1, "%s%s",
                                 detail, n ? ": " : "");
    make_printable(entry.peer);
    make_printable(entry.detail);
    for (size_t i = 0; i < n && i < TWI_LOG_BYTES && at + 4 < sizeof entry.detail;
         i++)
        at += (size_t)snprintf(entry.detail + at, sizeof entry.detail - at,
                               data[i] >= 32 && data[i] < 127 ? "%c" : "\\x%02x",
                               data[i]);
    pthread_mutex_lock(&lock);
    int admitted = admit(kind, entry.when_ns);
    if (!admitted) {
        dropped++;
        twi_count(TWI_LOG_DROPPED, 1);
    } else {
        entry.dropped = dropped;
        dropped = 0;
        ring[(first + count++) % TWI_LOG_RING] = entry;
    }
    pthread_mutex_unlock(&lock);
    if (admitted) {
        /* relaxed: a taker that missed the entry had the lock before us, and
         * had read the bell before that; the futex compares. */
        add_relaxed(&bell, 1);
        twi_futex_wake(&bell, 1);
    }
}

void
twi_log(int kind, int code, const struct twi_addr *peer, const char *detail)
{
    twi_log_bytes(kind, code, peer, detail, NULL, 0);
}

int64_t
twi_log_waiting(void)
{
    pthread_mutex_lock(&lock);
    int64_t n = count;
    pthread_mutex_unlock(&lock);
    return n;
}

void
twi_log_interrupt(void)
{
    /* seq_cst: the taker looks at it after it has looked at the bell. */
    if (atomic_exchange(&interrupted, 1))
        return; /* rung already */
    add_seq_cst(&bell, 1);
    twi_futex_wake(&bell, 1);
}

void
twi_log_stop(void)
{
    store_seq_cst(&stopped, 1);
    add_seq_cst(&bell, 1);
    twi_futex_wake(&bell, 1);
}

int
tw_log_take(tw_log_entry *entries, int max, int64_t timeout_ns)
{
    for (int waited = 0;;) {
        uint32_t seen = load_seq_cst(&bell);
        int n = 0;
        pthread_mutex_lock(&lock);
        for (; n < max && count > 0; n++, count--) {
            entries[n] = ring[first];
            first = (first + 1) % TWI_LOG_RING;
        }
        pthread_mutex_unlock(&lock);
        if (n > 0)
            return n;
        if (load_seq_cst(&stopped))
            return -TW_STOPPED;
        if (atomic_exchange(&interrupted, 0) || waited)
            return 0;
        int rc = twi_futex_wait(&bell, seen, timeout_ns);
        if (rc == -EINTR)
            return rc;
        waited = rc == -ETIMEDOUT;
    }
}
