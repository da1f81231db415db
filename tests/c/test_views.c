/* Channels that share a peer: one connection, and each ends its own calls. */
#include "cases.h"
#include "clients.h"
#include "ports.h"

static tw_id
share(tw_id peer)
{
    tw_id another = 0;
    MUST(tw_peer_share(peer, TW_SINGLE, &another) == 0);
    return another;
}

static void
case_one_connection(void)
{
    struct bed_server server;
    server_start(&server, "127.0.0.1:0", 1, NULL);
    tw_id one = peer_open(server.bound), two = share(one), three;
    tw_id socket = result_of(one, ECHO).socket;
    CHECK(one != two);
    CHECK_EQ(result_of(two, ECHO).socket, socket);
    CHECK_EQ(tw_server_connections(server.id), 1);
    /* The first may go first. */
    CHECK_EQ(tw_peer_close(one), 0);
    CHECK_EQ(tw_peer_close(one), -TW_STALE);
    CHECK_EQ(tw_peer_share(one, TW_SINGLE, &three), -TW_STALE);
    CHECK_EQ(call(one, ECHO, "x", 1, SOON), -TW_STALE);
    CHECK_EQ(result_of(two, ECHO).socket, socket);
    /* A credential is for all. */
    three = share(two);
    CHECK_EQ(tw_peer_credential(two, "secret", 6, 1), 0);
    CHECK_EQ(tw_peer_wants_credential(three), 0);
    CHECK_EQ(tw_peer_close(two), 0);
    CHECK_EQ(tw_peer_close(three), 0);
    EVENTUALLY(tw_server_connections(server.id) == 0);
    server_end(&server);
}

/* A view's calls end with it, wherever they are, and no others. */
static void
case_ends_its_own(void)
{
    struct ports ports;
    tw_id inbox;
    MUST(tw_inbox_open(&inbox) == 0);
    for (int connecting = 0; connecting < 2; connecting++) {
        script_clear();
        ports_open(&ports, 2);
        if (connecting)
            script_set(0, ports.address[0], HANGS);
        tw_id one = open_with(ports.all, 400 * MS, 0, NULL), two = share(one);
        submit(one, GATE, "1", inbox, 1);
        submit(two, GATE, "2", inbox, 2);
        if (!connecting)
            await_gate(&ports.server, 1);
        CHECK_EQ(tw_peer_close(one), 0);
        tw_event event = take_event(inbox);
        CHECK_EQ(event.cookie, 1);
        CHECK_EQ(event.code, ECANCELED);
        /* The server may have it before the writer has noted so. */
        CHECK_EQ(event.sent == TW_SENT_NONE, connecting);
        open_gate(&ports.server);
        event = take_event(inbox);
        CHECK_EQ(event.cookie, 2);
        CHECK_EQ(event.code, 0);
        /* What was not sent never is. */
        CHECK_EQ(atomic_load(&ports.server.runs), connecting ? 1 : 2);
        submit(two, GATE, "3", inbox, 3);
        CHECK_EQ(take_event(inbox).code, 0);
        close_gate(&ports.server);
        submit(two, GATE, "4", inbox, 4);
        await_gate(&ports.server, 1);
        CHECK_EQ(tw_peer_close(two), 0);
        CHECK_EQ(take_event(inbox).code, ECANCELED);
        server_end(&ports.server);
    }
    script_clear();
    tw_inbox_close(inbox);
}

static _Atomic tw_id steady;
static _Atomic int over;

/* Views that come and go, each with calls of two threads under way. */
static void *
come_and_go(void *arg)
{
    struct caller *me = arg;
    tw_id inbox;
    MUST(tw_inbox_open(&inbox) == 0);
    for (int i = 0; i < me->calls; i++) {
        tw_id view = share(load_relaxed(&steady));
        int n = 1 + (int)(check_random(&me->seed) % 4);
        for (int k = 0; k < n; k++)
            submit(view, ECHO, "x", inbox, k);
        if (check_random(&me->seed) % 2)
            CHECK_EQ(call(view, ECHO, "x", 1, SOON), 0);
        CHECK_EQ(tw_peer_close(view), 0);
        while (n--) {
            int code = take_event(inbox).code;
            CHECK(code == 0 || code == ECANCELED);
        }
        me->good++;
    }
    tw_inbox_close(inbox);
    return NULL;
}

static void *
call_steadily(void *arg)
{
    struct caller *me = arg;
    while (!load_relaxed(&over)) {
        CHECK_EQ(call(me->peer, ECHO, "x", 1, SOON), 0);
        me->good++;
    }
    return NULL;
}

/* A view that another thread closes while calls are made through it. */
static void *
call_until_closed(void *arg)
{
    struct caller *me = arg;
    int code;
    while (!(code = call(me->peer, ECHO, "x", 1, 0)))
        me->good++;
    CHECK(code == ECANCELED || code == -TW_STALE);
    return NULL;
}

static void
case_under_load(void)
{
    enum { STEADY = 2, COMING = 2, CLOSED = 40 };
    struct bed_server server;
    struct caller callers[STEADY + COMING];
    server_start(&server, "127.0.0.1:0", 2, NULL);
    tw_id first = peer_open(server.bound);
    store_relaxed(&steady, first);
    store_relaxed(&over, 0);
    for (int i = 0; i < STEADY + COMING; i++) {
        callers[i] = (struct caller){.peer = i ? share(first) : first,
                                     .calls = 100,
                                     .seed = check_random(&seed) | 1};
        MUST(!pthread_create(&callers[i].thread, NULL,
                             i < STEADY ? call_steadily : come_and_go,
                             &callers[i]));
    }
    for (int i = 0; i < CLOSED; i++) {
        struct caller one = {.peer = share(first)};
        MUST(!pthread_create(&one.thread, NULL, call_until_closed, &one));
        struct timespec pause = {0, (long)(check_random(&seed) % (2 * MS))};
        nanosleep(&pause, NULL);
        CHECK_EQ(tw_peer_close(one.peer), 0);
        pthread_join(one.thread, NULL);
    }
    for (int i = STEADY; i < STEADY + COMING; i++)
        pthread_join(callers[i].thread, NULL);
    CHECK_EQ(tw_server_connections(server.id), 1);
    store_relaxed(&over, 1);
    for (int i = 0; i < STEADY; i++) {
        pthread_join(callers[i].thread, NULL);
        CHECK(callers[i].good > 0);
    }
    for (int i = 0; i < STEADY + COMING; i++)
        CHECK_EQ(tw_peer_close(callers[i].peer), 0);
    server_end(&server);
}

static const struct test_case cases[] = {
    {"one_connection", case_one_connection},
    {"ends_its_own", case_ends_its_own},
    {"under_load", case_under_load},
    {0},
};

int
main(int argc, char **argv)
{
    seed = check_seed();
    twi_sys.connect = scripted_connect;
    return cases_main(cases, argc, argv);
}
