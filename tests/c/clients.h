/* Clients of the bed's servers: bodies at random, events of an inbox, threads
 * that call, and what the log says of it all. */
#ifndef CLIENTS_H
#define CLIENTS_H

#include <sys/resource.h>

#include "bed.h"

/* The program's; its main says what it is. */
static unsigned long long seed;

static inline uint8_t *
pattern(size_t n)
{
    uint8_t *p = malloc(n + 1);
    MUST(p);
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)(check_random(&seed) >> 32);
    return p;
}

/* The inbox's next event, whose bell rings for it and for nothing else. */
static inline tw_event
next_event(tw_id inbox, int poll)
{
    tw_event event = {0};
    int more;
    CHECK_EQ(tw_inbox_wait(inbox, SOON, poll), 0);
    CHECK_EQ(tw_drain(inbox, 0, &event, 1, &more), 1);
    return event;
}

/* The same where it also rings for what the inbox is to write. */
static inline tw_event
take_event(tw_id inbox)
{
    tw_event event = {0};
    int more;
    while (tw_inbox_wait(inbox, SOON, 1) == 0) {
        int n = tw_drain(inbox, 0, &event, 1, &more);
        if (n)
            return event;
    }
    CHECK(!"an event in time");
    return event;
}

/* A call without a deadline, its body a string; its id. */
static inline tw_id
submit(tw_id peer, int method, const char *body, tw_id inbox, int cookie)
{
    tw_id id = 0;
    CHECK_EQ(tw_submit(peer, client_methods[method], body, strlen(body), NULL,
                       0, inbox, (uint64_t)cookie, 0, &id),
             0);
    return id;
}

struct caller {
    pthread_t thread;
    tw_id peer;
    int calls, method;
    size_t size;
    unsigned long long seed;
    long good;
};

static inline void *
call_often(void *arg)
{
    struct caller *me = arg;
    char *body = malloc(me->size + 1);
    memset(body, 'x', me->size + 1);
    for (int i = 0; i < me->calls; i++) {
        size_t n = me->size ? check_random(&me->seed) % me->size : 0;
        snprintf(body, me->size + 1, "%llu", me->seed);
        int code = call(me->peer, me->method, body, n, SOON);
        CHECK_EQ(code, 0);
        me->good += code == 0;
    }
    free(body);
    return NULL;
}

/* n threads that make blocking calls on one connection. */
static inline void
call_in_parallel(tw_id peer, int n, int calls, int method, size_t size)
{
    struct caller callers[8];
    for (int i = 0; i < n; i++) {
        callers[i] = (struct caller){.peer = peer,
                                     .calls = calls,
                                     .method = method,
                                     .size = size,
                                     .seed = check_random(&seed) | 1};
        MUST(!pthread_create(&callers[i].thread, NULL, call_often, &callers[i]));
    }
    for (int i = 0; i < n; i++) {
        pthread_join(callers[i].thread, NULL);
        CHECK_EQ(callers[i].good, calls);
    }
}

/* One call without a deadline; what became of it is in good. */
static inline void *
call_for_ever(void *arg)
{
    struct caller *me = arg;
    me->good = call(me->peer, ECHO, "", 0, 0);
    return NULL;
}

/* How often threads of the process go to sleep in so long, this one once. */
static inline long
wakeups(int ms)
{
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    poll(NULL, 0, ms);
    getrusage(RUSAGE_SELF, &after);
    return after.ru_nvcsw - before.ru_nvcsw;
}

/* So many log entries of a kind wait, with that code. */
static inline int
logged(int kind, int code)
{
    tw_log_entry entries[64];
    int n, found = 0;
    while ((n = tw_log_take(entries, 64, 0)) == -EINTR)
        ;
    for (int i = 0; i < n; i++)
        found += entries[i].kind == kind && entries[i].code == code;
    return found;
}

static inline void
log_is_read(void)
{
    tw_log_entry entries[64];
    int n;
    while ((n = tw_log_take(entries, 64, 0)) > 0 || n == -EINTR)
        ;
}

#endif
