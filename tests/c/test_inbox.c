/* Inboxes, and the event loops that watch them. */
#include "cases.h"
#include "clients.h"

#include <sys/eventfd.h>

static void
case_inbox(void)
{
    enum { CALLS = 3000 };
    static char done[CALLS];
    struct bed_server server;
    tw_id inbox, id;
    tw_event events[64];
    int ended = 0, more;
    server_start(&server, unix_address, 2, NULL);
    tw_id peer = peer_open(server.bound);
    memset(done, 0, sizeof done);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    for (int i = 0; i < CALLS; i++) {
        char body[16];
        int n = snprintf(body, sizeof body, "%d", i);
        CHECK_EQ(tw_submit(peer, client_methods[ECHO], body, (size_t)n, NULL,
                           twi_now_ns() + SOON, inbox, (uint64_t)i, i % 3 != 0,
                           &id),
                 0);
        if (i % 100 != 99)
            continue;
        CHECK_EQ(tw_flush(inbox), 0);
        while (i + 1 - ended > 200 &&
               tw_inbox_wait(inbox, SOON, i % 200 == 99) == 0) {
            int got = tw_drain(inbox, i % 300 == 99, events, 64, &more);
            for (int j = 0; j < got; j++) {
                CHECK_EQ(events[j].code, 0);
                CHECK_EQ(done[events[j].cookie]++, 0);
                char body[16];
                int n = snprintf(body, sizeof body, "%d", (int)events[j].cookie);
                CHECK_EQ(events[j].body_len, n);
                CHECK(!memcmp(events[j].body, body, (size_t)n));
            }
            ended += got;
        }
    }
    while (ended < CALLS && tw_inbox_wait(inbox, SOON, 1) == 0) {
        int got = tw_drain(inbox, 0, events, 64, &more);
        for (int j = 0; j < got; j++)
            CHECK_EQ(done[events[j].cookie]++, 0);
        ended += got;
    }
    CHECK_EQ(ended, CALLS);
    CHECK_EQ(tw_inbox_wait(inbox, 5 * MS, 0), -ETIMEDOUT);
    CHECK_EQ(tw_inbox_wait(inbox, 5 * MS, 1), -ETIMEDOUT);
    tw_inbox_close(inbox);
    CHECK_EQ(tw_inbox_wait(inbox, 5 * MS, 0), -TW_STOPPED);
    /* A cork left behind by an inbox that closes is flushed all the same. */
    tw_id second, other;
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    CHECK_EQ(tw_inbox_open(&second), 0);
    CHECK_EQ(tw_submit(peer, client_methods[ECHO], "x", 1, NULL, 0, second, 5, 1,
                       &other),
             0);
    CHECK_EQ(tw_inbox_wait(second, INT64_MAX, 1), 0);
    tw_event event = take_event(second);
    CHECK_EQ(event.cookie, 5);
    CHECK_EQ(tw_server_drain(server.id, INT64_MAX), 0);
    CHECK_EQ(tw_inbox_close(second), 0);
    tw_inbox_close(inbox);
    tw_peer_close(peer);
    server_end(&server);
}

/* An event loop as asyncio's: watches the core's epoll descriptor and the
 * inbox's, drains, answers. */
struct loop_thread {
    pthread_t thread;
    tw_id inbox;
    int quit_fd;
    long requests, cancelled, results;
    _Atomic tw_id kept; /* a request whose body says "keep" */
};

static void *
run_loop(void *arg)
{
    struct loop_thread *me = arg;
    int ep = tw_watch(me->inbox), fd = tw_inbox_fd(me->inbox);
    CHECK(ep >= 0);
    CHECK(fd >= 0);
    for (int more = 0;;) {
        struct pollfd set[] = {
            {ep, POLLIN, 0}, {fd, POLLIN, 0}, {me->quit_fd, POLLIN, 0}};
        poll(set, 3, more ? 0 : -1);
        if (set[2].revents)
            break;
        tw_event events[16];
        int n = tw_drain(me->inbox, 1, events, 16, &more);
        for (int i = 0; i < n; i++) {
            tw_event *e = &events[i];
            if (e->kind == TW_CANCELLED) {
                me->cancelled++;
                tw_reply(e->id, TW_EEOF, "", 0, NULL, 0);
            } else if (e->kind == TW_REQUEST) {
                me->requests++;
                tw_extra extra = {.attachment = e->attachment,
                                  .attachment_len = e->attachment_len};
                if (e->body_len == 4 && !memcmp(e->body, "keep", 4)) {
                    atomic_store(&me->kept, e->id);
                    continue;
                }
                CHECK_EQ(tw_request_alive(e->id), 1);
                CHECK_EQ(tw_reply(e->id, 0, e->body, e->body_len, &extra,
                                  i % 2 ? me->inbox : 0),
                         0);
                CHECK_EQ(tw_reply(e->id, 0, "", 0, NULL, 0), -TW_STALE);
            } else
                me->results++;
        }
        tw_flush(me->inbox);
    }
    tw_unwatch(me->inbox);
    return NULL;
}

static void
case_loop(void)
{
    struct bed_server server;
    struct loop_thread loop = {.quit_fd = eventfd(0, EFD_CLOEXEC)};
    CHECK_EQ(tw_inbox_open(&loop.inbox), 0);
    MUST(server_prepare(&server, NULL) == 0);
    MUST(tw_listen(server.id, "127.0.0.1:0", TW_PROTO_BAIDU_STD, 64,
                   server.bound, sizeof server.bound) == 0);
    CHECK_EQ(tw_server_method(server.id, "late", "late", 0, NULL), -EBUSY);
    server_workers(&server, 2);
    tw_id peer = peer_open(server.bound);
    /* Nobody serves the loop's methods yet. */
    CHECK_EQ(call(peer, LOOP_ECHO, "x", 1, SOON), TW_ELIMIT);
    CHECK_EQ(tw_server_inboxes(server.id, loop.inbox, 0), 0);
    MUST(!pthread_create(&loop.thread, NULL, run_loop, &loop));
    call_in_parallel(peer, 3, 200, LOOP_ECHO, 2000);
    call_in_parallel(peer, 3, 200, ECHO, 2000);
    /* A peer that goes away while the loop's handler runs. */
    uint8_t frame[256];
    int fd = raw_connect(server.bound);
    size_t n = raw_request(frame, sizeof frame, "bed.Service", "loop_echo", 1,
                           "keep", 4);
    raw_send(fd, frame, n);
    EVENTUALLY(atomic_load(&loop.kept) != 0);
    CHECK_EQ(tw_request_alive(atomic_load(&loop.kept)), 1);
    void *share = tw_request_hold(atomic_load(&loop.kept));
    CHECK(share);
    raw_reset(fd);
    EVENTUALLY(!tw_request_alive(atomic_load(&loop.kept)));
    EVENTUALLY(tw_server_in_flight(server.id) == 0);
    CHECK(!tw_request_hold(atomic_load(&loop.kept)));
    tw_release(share);
    /* A second loop may not watch; the first still does. */
    tw_id second;
    CHECK_EQ(tw_inbox_open(&second), 0);
    CHECK_EQ(tw_watch(second), -EBUSY);
    tw_inbox_close(second);
    uint64_t one = 1;
    MUST(write(loop.quit_fd, &one, sizeof one) == sizeof one);
    pthread_join(loop.thread, NULL);
    CHECK_EQ(loop.requests, 601);
    CHECK_EQ(loop.cancelled, 1);
    /* Without the loop the workers poll again. */
    call_in_parallel(peer, 2, 50, ECHO, 100);
    close(loop.quit_fd);
    tw_inbox_close(loop.inbox);
    CHECK_EQ(call(peer, LOOP_ECHO, "x", 1, SOON), TW_ELIMIT);
    tw_peer_close(peer);
    server_end(&server);
}

static const struct test_case cases[] = {
    {"inbox", case_inbox},
    {"loop", case_loop},
    {0},
};

int
main(int argc, char **argv)
{
    seed = check_seed();
    plant_faults(seed);
    return cases_main(cases, argc, argv);
}
