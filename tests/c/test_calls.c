/* Calls through the whole core: what they carry, all the ways in which they
 * end, and how long the core sleeps when there are none. */
#include "cases.h"
#include "clients.h"

static void
echo_sizes(const char *address)
{
    static const size_t sizes[] = {0, 1, 100, 4000, 8160, 70000, 3 << 20};
    struct bed_server server;
    static char scratch[65536];
    server_start(&server, address, 2, NULL);
    tw_id peer = peer_open(server.bound);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (size_t j = 0; j < sizeof sizes / sizeof *sizes; j++) {
            uint8_t *body = pattern(sizes[i]), *tail = pattern(sizes[j]);
            tw_extra extra = {.attachment = (char *)tail,
                              .attachment_len = sizes[j]};
            tw_event result;
            int rc = call_full(peer, ECHO, (char *)body, sizes[i], &extra, 0,
                               scratch, sizeof scratch, &result);
            CHECK_EQ(rc, 0);
            CHECK_EQ(result.code, 0);
            CHECK_EQ(result.sent, TW_SENT_ALL);
            CHECK_EQ(result.body_len, sizes[i]);
            CHECK_EQ(result.attachment_len, sizes[j]);
            CHECK(!sizes[i] || !memcmp(result.body, body, sizes[i]));
            CHECK(!sizes[j] || !memcmp(result.attachment, tail, sizes[j]));
            CHECK((result.block != NULL) ==
                  (sizes[i] + sizes[j] > sizeof scratch));
            if (result.block)
                tw_release(result.block);
            free(body);
            free(tail);
        }
    CHECK_EQ(tw_peer_close(peer), 0);
    CHECK_EQ(tw_peer_close(peer), -TW_STALE);
    server_end(&server);
}

static void
case_echo(void)
{
    echo_sizes("127.0.0.1:0");
    int fd = socket(AF_INET6, SOCK_STREAM, 0);
    struct sockaddr_in6 any = {.sin6_family = AF_INET6,
                               .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int have_v6 = fd >= 0 && !bind(fd, (struct sockaddr *)&any, sizeof any);
    close(fd);
    if (have_v6)
        echo_sizes("[::1]:0");
    else
        fprintf(stderr, "no IPv6 here: left out\n");
    echo_sizes(unix_address);
    CHECK(access(unix_address + 5, F_OK)); /* the path is gone again */
}

static void
case_threads(void)
{
    struct bed_server server;
    server_start(&server, "127.0.0.1:0", 3, NULL);
    tw_id peer = peer_open(server.bound);
    call_in_parallel(peer, 4, 300, ECHO, 3000);
    CHECK_EQ(tw_server_connections(server.id), 1);
    CHECK_EQ(atomic_load(&server.runs), 1200);
    tw_peer_close(peer);
    server_end(&server);
}

/* "*" of "*" serves what nobody else does, and no more. */
static void
case_fallback(void)
{
    struct bed_server server;
    MUST(server_prepare(&server, NULL) == 0);
    int all = tw_server_method(server.id, "*", "*", TW_RUN_WORKER, NULL);
    CHECK(all > 0);
    MUST(tw_listen(server.id, "127.0.0.1:0", TW_PROTO_BAIDU_STD, 16,
                   server.bound, sizeof server.bound) == 0);
    server_workers(&server, 1);
    tw_id peer = peer_open(server.bound);
    static const struct {
        const char *service, *method;
        int code;
    } table[] = {
        {"Nothing", "echo", 0},       {"bed.Service", "nothing", 0},
        {"no.such.Service", "x", 0},  {"*", "*", 0},
        {"bed.Service", "fail", 42},  {"Service", "fail", 42},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        char scratch[512];
        tw_event result;
        int method = tw_client_method(table[i].service, table[i].method);
        CHECK_EQ(ended(tw_call(peer, method, "x", 1, NULL, twi_now_ns() + SOON,
                               0, scratch, sizeof scratch, &result)),
                 0);
        CHECK_EQ(result.code, table[i].code);
    }
    tw_peer_close(peer);
    server_end(&server);
}

static void
case_codes(void)
{
    struct bed_server server;
    char scratch[512];
    tw_event result;
    server_start(&server, "127.0.0.1:0", 1, NULL);
    tw_id peer = peer_open(server.bound);
    static const struct {
        const char *service, *method;
        int code;
    } table[] = {
        {"Nothing", "echo", TW_ENOSERVICE},
        {"bed.Service", "nothing", TW_ENOMETHOD},
        {"no.such.Service", "echo", TW_ENOMETHOD},
        {"Service", "echo", 0}, /* the name without its package */
        {"Service", "nothing", TW_ENOMETHOD},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        int method = tw_client_method(table[i].service, table[i].method);
        CHECK(method >= 0);
        CHECK_EQ(ended(tw_call(peer, method, "x", 1, NULL, twi_now_ns() + SOON,
                               0, scratch, sizeof scratch, &result)),
                 0);
        CHECK_EQ(result.code, table[i].code);
        CHECK_EQ(result.phase, table[i].code ? TW_PHASE_PEER : TW_PHASE_NONE);
        CHECK_EQ(result.text_len > 0, table[i].code != 0);
    }
    CHECK_EQ(tw_call(peer, 12345, "", 0, NULL, 0, 0, scratch, 1, &result),
             -EINVAL);
    CHECK_EQ(tw_call(peer + 1, 0, "", 0, NULL, 0, 0, scratch, 1, &result),
             -TW_STALE);

    CHECK_EQ(call_full(peer, FAIL, "so sad", 6, NULL, SOON, scratch,
                       sizeof scratch, &result),
             0);
    CHECK_EQ(result.code, 42);
    CHECK_EQ(result.phase, TW_PHASE_PEER);
    CHECK_EQ(result.text_len, 6);
    CHECK(!memcmp(result.text, "so sad", 6));

    CHECK_EQ(call_full(peer, HANG_UP, "", 0, NULL, SOON, scratch,
                       sizeof scratch, &result),
             0);
    CHECK_EQ(result.code, TW_EEOF);
    CHECK_EQ(result.phase, TW_PHASE_READ);
    CHECK_EQ(result.sent, TW_SENT_ALL);
    /* The next call makes a new connection. */
    CHECK_EQ(call(peer, ECHO, "again", 5, SOON), 0);
    tw_peer_close(peer);
    server_end(&server);
}

static void
case_deadline(void)
{
    struct bed_server server;
    tw_id inbox, id;
    char scratch[64];
    tw_event result;
    server_start(&server, "127.0.0.1:0", 1, NULL);
    tw_id peer = peer_open(server.bound);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    CHECK_EQ(call(peer, ECHO, "", 0, SOON), 0); /* connected */
    uint64_t expired = counter(TWI_EXPIRED);
    uint64_t late = counter(TWI_STALE_RESPONSES);

    /* A blocking call times itself out, a submitted one by the loop. */
    CHECK_EQ(call(peer, GATE, "", 0, 30 * MS), TW_ERPCTIMEDOUT);
    int64_t began = twi_now_ns();
    CHECK_EQ(tw_submit(peer, client_methods[ECHO], "", 0, NULL, began + 30 * MS,
                       inbox, 7, 0, &id),
             0);
    tw_event event = take_event(inbox);
    CHECK_EQ(event.kind, TW_RESULT);
    CHECK_EQ(event.code, TW_ERPCTIMEDOUT);
    CHECK_EQ(event.cookie, 7);
    CHECK_EQ(event.id, id);
    CHECK(twi_now_ns() - began >= 30 * MS);
    /* A deadline that has passed already. */
    CHECK_EQ(call_full(peer, ECHO, "", 0, NULL, -1, scratch, sizeof scratch,
                       &result),
             0);
    CHECK_EQ(result.code, TW_ERPCTIMEDOUT);
    /* Behind others that are still being written it is not sent at all. */
    int queued = (event.sent != TW_SENT_NONE) + (result.sent != TW_SENT_NONE);

    /* The one worker stands at the gate; what waited in the queue is not run
     * any more, and answered for nobody. */
    EVENTUALLY(tw_server_in_flight(server.id) == 1 + queued);
    poll(NULL, 0, 50); /* from there on the server counts their 30 ms */
    open_gate(&server);
    EVENTUALLY(tw_server_in_flight(server.id) == 0);
    CHECK_EQ(counter(TWI_EXPIRED) - expired, queued);
    EVENTUALLY(counter(TWI_STALE_RESPONSES) - late == 1 + (uint64_t)queued);
    CHECK_EQ(atomic_load(&server.runs), 2);
    tw_inbox_close(inbox);
    tw_peer_close(peer);
    server_end(&server);
}

static void
case_cancel(void)
{
    struct bed_server server;
    tw_id inbox, id;
    server_start(&server, "127.0.0.1:0", 1, NULL);
    tw_id peer = peer_open(server.bound);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    id = submit(peer, GATE, "", inbox, 1);
    await_gate(&server, 1);
    CHECK_EQ(tw_cancel(id), 0);
    CHECK_EQ(tw_cancel(id), -TW_STALE);
    tw_event event = take_event(inbox);
    CHECK_EQ(event.code, ECANCELED);
    CHECK_EQ(event.id, id);
    open_gate(&server);
    EVENTUALLY(tw_server_in_flight(server.id) == 0);
    int more;
    CHECK_EQ(tw_drain(inbox, 1, &event, 1, &more), 0);

    /* A call whose inbox closes has nobody to tell. */
    close_gate(&server);
    id = submit(peer, GATE, "", inbox, 1);
    CHECK_EQ(tw_inbox_close(inbox), 0);
    CHECK_EQ(tw_inbox_close(inbox), -TW_STALE);
    CHECK_EQ(tw_submit(peer, client_methods[ECHO], "", 0, NULL, 0, inbox, 1, 0,
                       &id),
             -TW_STALE);
    open_gate(&server);
    tw_peer_close(peer);
    server_end(&server);
}

static void
case_alarm(void)
{
    tw_id inbox, first, second, id;
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    int64_t now_ns = twi_now_ns();
    CHECK_EQ(tw_alarm(inbox, now_ns + 60 * SECOND, 1, &first), 0);
    CHECK_EQ(tw_alarm(inbox, now_ns + 20 * MS, 2, &second), 0);
    tw_event event = take_event(inbox);
    CHECK_EQ(event.cookie, 2);
    CHECK_EQ(event.id, second);
    CHECK_EQ(event.code, TW_ERPCTIMEDOUT);
    CHECK(event.received_ns >= now_ns + 20 * MS);
    CHECK_EQ(tw_cancel(second), -TW_STALE);
    /* One that is not waited for any more comes at once. */
    CHECK_EQ(tw_cancel(first), 0);
    event = take_event(inbox);
    CHECK_EQ(event.cookie, 1);
    CHECK_EQ(event.code, ECANCELED);
    /* One whose time has passed, too. */
    CHECK_EQ(tw_alarm(inbox, 1, 3, &id), 0);
    CHECK_EQ(take_event(inbox).cookie, 3);
    /* With its inbox it is gone. */
    CHECK_EQ(tw_alarm(inbox, now_ns + 60 * SECOND, 4, &id), 0);
    CHECK_EQ(tw_inbox_close(inbox), 0);
    CHECK_EQ(tw_cancel(id), 0);
    CHECK_EQ(tw_alarm(inbox, now_ns, 5, &id), -TW_STALE);
    CHECK_EQ(tw_alarm(0, now_ns, 5, &id), -EINVAL);
}

/* ------------------------------------------------------- signals */

static _Atomic int signals;

static void
on_signal(int number)
{
    (void)number;
    atomic_fetch_add(&signals, 1);
}

struct interrupted {
    pthread_t thread;
    tw_id peer, inbox, server;
    int what;
    _Atomic int times, done;
};

static void *
be_interrupted(void *arg)
{
    struct interrupted *me = arg;
    char scratch[64];
    tw_event result = {0};
    tw_log_entry entry;
    int rc;
    switch (me->what) {
    case 0:
    case 1:
        rc = tw_call(me->peer, client_methods[GATE], "x", 1, NULL, 0, me->what,
                     scratch, sizeof scratch, &result);
        while (rc == -EINTR) {
            atomic_fetch_add(&me->times, 1);
            rc = tw_wait(result.id, me->what, scratch, sizeof scratch, &result);
        }
        CHECK_EQ(ended(rc), 0);
        CHECK_EQ(result.code, 0);
        CHECK_EQ(result.body_len, 1);
        break;
    case 2:
    case 3:
        rc = tw_inbox_wait(me->inbox, SOON, me->what == 3);
        CHECK_EQ(rc, -EINTR);
        atomic_fetch_add(&me->times, rc == -EINTR);
        break;
    case 4:
        rc = tw_server_drain(me->server, SOON);
        CHECK_EQ(rc, -EINTR);
        atomic_fetch_add(&me->times, rc == -EINTR);
        break;
    case 5:
        while ((rc = tw_log_take(&entry, 1, SOON)) == 1)
            ;
        CHECK_EQ(rc, -EINTR);
        atomic_fetch_add(&me->times, rc == -EINTR);
        break;
    }
    atomic_store(&me->done, 1);
    return NULL;
}

static void
case_signals(void)
{
    struct bed_server server;
    struct sigaction action = {.sa_handler = on_signal};
    tw_id inbox;
    /* It tells real interruptions from none. */
    if (fault.storm == STORM_INTR)
        return;
    sigaction(SIGUSR1, &action, NULL); /* no SA_RESTART */
    server_start(&server, "127.0.0.1:0", 1, NULL);
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    tw_id peer = peer_open(server.bound);
    for (int what = 0; what < 6; what++) {
        struct interrupted me = {
            .what = what, .peer = peer, .inbox = inbox, .server = server.id};
        atomic_store(&signals, 0);
        close_gate(&server);
        if (what == 4) {
            submit(peer, GATE, "", inbox, 1);
            await_gate(&server, 1);
        }
        MUST(!pthread_create(&me.thread, NULL, be_interrupted, &me));
        if (what < 2)
            await_gate(&server, 1);
        /* Until it was: a signal before it waits finds nobody waiting. */
        int64_t until = twi_now_ns() + SOON;
        while (!atomic_load(&me.times) && !atomic_load(&me.done) &&
               twi_now_ns() < until) {
            pthread_kill(me.thread, SIGUSR1);
            poll(NULL, 0, 1);
        }
        CHECK(atomic_load(&me.times) > 0);
        open_gate(&server);
        pthread_join(me.thread, NULL);
        CHECK(atomic_load(&signals) > 0);
        if (what == 4)
            CHECK_EQ(take_event(inbox).code, 0);
    }
    tw_inbox_close(inbox);
    tw_peer_close(peer);
    server_end(&server);
    signal(SIGUSR1, SIG_DFL);
}

/* An idle process sleeps: no thread of it is woken over and over.  One look is
 * enough: a late event makes the dispatcher tick for a while. */
static int
falls_quiet(void)
{
    int64_t until = twi_now_ns() + SOON;
    while (twi_now_ns() < until)
        if (wakeups(200) < 20)
            return 1;
    return 0;
}

static void
case_quiet(void)
{
    struct bed_server server;
    tw_id inbox, id;
    server_start(&server, "127.0.0.1:0", 2, NULL);
    tw_id peer = peer_open(server.bound);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    CHECK(falls_quiet());
    /* Woken from there it works at once. */
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    /* An inbox that closes with something corked leaves nothing behind. */
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    CHECK_EQ(tw_submit(peer, client_methods[ECHO], "x", 1, NULL, 0, inbox, 1, 1,
                       &id),
             0);
    CHECK_EQ(tw_inbox_close(inbox), 0);
    CHECK(falls_quiet());
    CHECK_EQ(atomic_load(&server.runs), 3);
    /* Nor does a loop that watches and never comes. */
    CHECK_EQ(tw_inbox_open(&inbox), 0);
    CHECK(tw_watch(inbox) >= 0);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    CHECK(falls_quiet());
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    CHECK_EQ(tw_inbox_close(inbox), 0);
    CHECK_EQ(call(peer, ECHO, "x", 1, SOON), 0);
    tw_peer_close(peer);
    server_end(&server);
}

static const struct test_case cases[] = {
    {"echo", case_echo},
    {"threads", case_threads},
    {"codes", case_codes},
    {"fallback", case_fallback},
    {"deadline", case_deadline},
    {"alarm", case_alarm},
    {"cancel", case_cancel},
    {"signals", case_signals},
    {"quiet", case_quiet},
    {0},
};

int
main(int argc, char **argv)
{
    seed = check_seed();
    plant_faults(seed);
    return cases_main(cases, argc, argv);
}
