/* The whole core under load and TSan: blocking callers, a submitter that
 * cancels, an event loop that comes and goes, connections and peers that are
 * failed and closed at random, a server that restarts, garbage.  Every call
 * ends exactly once; in the end nothing is left.  That a socket has one reader
 * and its queue one drainer at any time is asserted in the core (L5).
 *
 * What the threads share here is relaxed: the core alone must order them. */
#include "bed.h"

#include <sys/eventfd.h>

enum {
    PEERS = 3,
    CALLERS = 3,
    CALLS = 5000,   /* of each caller */
    SUBMITS = 10000, /* of the submitter */
    CHAOS = 1500,    /* rounds */
    RESTARTS = 15
};

/* In a storm of short calls each costs hundreds of system calls: a fraction of
 * all that then, unless TW_LONG asks for the whole. */
enum { SHORT_PART = 4 };
static int part = 1;

static char addresses[2][128]; /* of the two servers */
static _Atomic tw_id peers[PEERS];
static _Atomic tw_id seen_socket;
static _Atomic int running = 1;
static _Atomic long good, bad, stale;

static int
chance(unsigned long long *dice, int percent)
{
    return (int)((check_random(dice) >> 20) % 100) < percent;
}

/* The last one is checked when it was lost, at times by a call. */
static tw_id
open_peer(int which)
{
    static _Atomic int turn;
    tw_peer_options options = default_peer;
    tw_id peer = 0;
    if (which == PEERS - 1) {
        options.health_interval_ns = 5 * MS;
        options.probe_service = "bed.Service";
        options.probe_method = add_relaxed(&turn, 1) % 2 ? "echo" : NULL;
    }
    MUST(tw_peer_open(addresses[which % 2], &options, &peer) == 0);
    return peer;
}

static int
any_method(unsigned long long *dice)
{
    static const int methods[] = {ECHO, ECHO, ECHO, ECHO,      FAIL,
                                  BIG,  ECHO, ECHO, LOOP_ECHO, ECHO};
    return chance(dice, 2) ? HANG_UP
                           : methods[(check_random(dice) >> 20) % 10];
}

struct stressor {
    pthread_t thread;
    unsigned long long dice;
    tw_id loop;
};

static void *
caller(void *arg)
{
    struct stressor *me = arg;
    static _Thread_local char scratch[2000];
    char body[4000];
    memset(body, 'q', sizeof body);
    for (int i = 0; i < CALLS / part; i++) {
        tw_id peer = load_relaxed(&peers[check_random(&me->dice) % PEERS]);
        int method = any_method(&me->dice);
        size_t n = (check_random(&me->dice) >> 20) % sizeof body;
        int64_t timeout = chance(&me->dice, 20)
                              ? (int64_t)(check_random(&me->dice) % (3 * MS))
                              : SOON;
        tw_event result = {0};
        if (method == BIG)
            n = (size_t)snprintf(body, sizeof body, "%llu",
                                 (check_random(&me->dice) >> 20) % 60000);
        int rc = call_full(peer, method, body, n, NULL, timeout, scratch,
                           sizeof scratch, &result);
        memset(body, 'q', 8);
        if (rc) {
            CHECK_EQ(rc, -TW_STALE); /* the peer was closed */
            add_relaxed(&stale, 1);
            continue;
        }
        if (result.code)
            add_relaxed(&bad, 1);
        else {
            add_relaxed(&good, 1);
            if (method == ECHO || method == LOOP_ECHO)
                CHECK_EQ(result.body_len, n);
        }
        CHECK(result.code != TW_ERPCTIMEDOUT || timeout < SOON ||
              !"lost for twenty seconds");
        store_relaxed(&seen_socket, result.socket);
        if (result.block)
            tw_release(result.block);
    }
    return NULL;
}

static void *
submitter(void *arg)
{
    struct stressor *me = arg;
    static char ended[SUBMITS];
    char body[3000] = {0};
    tw_id inbox, id, last = 0;
    int submitted = 0, results = 0, more;
    MUST(tw_inbox_open(&inbox) == 0);
    for (int i = 0; results < submitted || i < SUBMITS / part;) {
        if (i < SUBMITS / part && submitted - results < 200 && !chance(&me->dice, 10)) {
            tw_id peer = load_relaxed(&peers[check_random(&me->dice) % PEERS]);
            int64_t timeout = chance(&me->dice, 20) ? MS : SOON;
            int rc = tw_submit(
                peer, client_methods[any_method(&me->dice)], body,
                (check_random(&me->dice) >> 20) % sizeof body, NULL,
                twi_now_ns() + timeout, inbox, (uint64_t)i, chance(&me->dice, 50),
                &id);
            CHECK(rc == 0 || rc == -TW_STALE);
            if (rc == 0)
                submitted++;
            i++;
            if (rc == 0 && chance(&me->dice, 10))
                tw_cancel(chance(&me->dice, 50) && last ? last : id);
            last = id;
            continue;
        }
        tw_flush(inbox);
        if (results < submitted)
            CHECK_EQ(tw_inbox_wait(inbox, SOON, chance(&me->dice, 50)), 0);
        tw_event events[32];
        int n = tw_drain(inbox, chance(&me->dice, 30), events, 32, &more);
        for (int j = 0; j < n; j++) {
            CHECK_EQ(events[j].kind, TW_RESULT);
            CHECK_EQ(ended[events[j].cookie]++, 0);
            if (events[j].socket)
                store_relaxed(&seen_socket, events[j].socket);
        }
        results += n;
        if (check_failures)
            break;
    }
    CHECK_EQ(results, submitted);
    tw_inbox_close(inbox);
    return NULL;
}

/* An asyncio-like loop that watches, stops watching, and begins again. */
static void *
event_loop(void *arg)
{
    struct stressor *me = arg;
    int fd = tw_inbox_fd(me->loop), more = 0;
    MUST(fd >= 0);
    while (load_relaxed(&running)) {
        int ep = tw_watch(me->loop);
        CHECK(ep >= 0);
        for (int i = 0; i < 300 && load_relaxed(&running); i++) {
            struct pollfd set[] = {{fd, POLLIN, 0}, {ep, POLLIN, 0}};
            tw_event events[16];
            poll(set, 2, more ? 0 : 20);
            int n = tw_drain(me->loop, 1, events, 16, &more);
            for (int j = 0; j < n; j++)
                if (events[j].kind == TW_REQUEST)
                    tw_reply(events[j].id, 0, events[j].body,
                             events[j].body_len, NULL,
                             chance(&me->dice, 50) ? me->loop : 0);
                else {
                    CHECK_EQ(events[j].kind, TW_CANCELLED);
                    tw_reply(events[j].id, TW_EEOF, "", 0, NULL, 0);
                }
        }
        tw_flush(me->loop);
        tw_unwatch(me->loop);
        for (int i = 0; i < 100 && load_relaxed(&running); i++) {
            struct pollfd set = {fd, POLLIN, 0};
            tw_event events[16];
            poll(&set, 1, more ? 0 : 20);
            int n = tw_drain(me->loop, 0, events, 16, &more);
            for (int j = 0; j < n; j++)
                tw_reply(events[j].id, 0, events[j].body, events[j].body_len,
                         NULL, 0);
        }
    }
    return NULL;
}

static void
send_garbage(unsigned long long *dice)
{
    struct twi_addr addr;
    uint8_t frame[256];
    MUST(twi_addr_parse(addresses[1], &addr) == 0);
    int fd = socket(addr.any.ss_family, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&addr.any, addr.len) == 0) {
        size_t n = raw_request(frame, sizeof frame, "bed.Service", "echo", 1,
                               "x", 1);
        if (chance(dice, 30))
            frame[check_random(dice) % n] ^= 0x55;
        raw_send(fd, frame, chance(dice, 50) ? n : check_random(dice) % n);
        if (chance(dice, 30)) {
            struct linger now = {1, 0};
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
        }
    }
    close(fd);
}

static void *
chaos(void *arg)
{
    struct stressor *me = arg;
    uint64_t *cells = calloc(TWI_CELLS_MAX, sizeof *cells);
    for (int i = 0; i < CHAOS / part; i++) {
        tw_census census;
        char text[128];
        int which = (int)(check_random(&me->dice) % PEERS);
        tw_id old;
        switch ((check_random(&me->dice) >> 20) % 5) {
        case 0:
            tw_socket_fail(load_relaxed(&seen_socket), TW_ECLOSE);
            break;
        case 1:
            old = atomic_exchange_explicit(&peers[which], open_peer(which),
                                           memory_order_relaxed);
            CHECK_EQ(tw_peer_close(old), 0);
            break;
        case 2:
            send_garbage(&me->dice);
            break;
        case 3:
            tw_census_take(&census);
            tw_counter_cells(cells, TWI_CELLS_MAX);
            break;
        case 4:
            tw_socket_peer(load_relaxed(&seen_socket), text, sizeof text);
            tw_socket_alive(load_relaxed(&seen_socket));
            break;
        }
        poll(NULL, 0, 1); /* a pace, no more */
    }
    free(cells);
    return NULL;
}

static void *
log_reader(void *arg)
{
    tw_log_entry entries[16];
    (void)arg;
    while (load_relaxed(&running))
        CHECK(tw_log_take(entries, 16, 10 * MS) >= 0);
    return NULL;
}

static void
unix_server(struct bed_server *server, tw_id loop)
{
    MUST(server_prepare(server, NULL) == 0);
    tw_server_inboxes(server->id, loop, 0);
    MUST(tw_listen(server->id, addresses[0], TW_PROTO_BAIDU_STD, 64,
                   server->bound, sizeof server->bound) == 0);
    server_workers(server, 3);
}

int
main(void)
{
    unsigned long long seed = check_seed();
    struct bed_server restarted, steady;
    struct stressor threads[CALLERS + 4];
    tw_id loop;
    int n = 0;
    plant_faults(seed);
    if (fault.storm == STORM_SHORT && !getenv("TW_LONG"))
        part = SHORT_PART;
    char dir[] = "/tmp/tidewire-XXXXXX";
    MUST(mkdtemp(dir));
    snprintf(addresses[0], sizeof addresses[0], "unix:%s/socket", dir);
    atomic_store(&fault.again_percent, 5);
    atomic_store(&fault.intr_percent, 5);
    int no_core = count_fds();
    core_open();
    client_methods_open();
    int fds = count_fds();

    MUST(tw_inbox_open(&loop) == 0);
    MUST(server_prepare(&steady, NULL) == 0);
    tw_server_inboxes(steady.id, loop, 0);
    MUST(tw_listen(steady.id, "127.0.0.1:0", TW_PROTO_BAIDU_STD, 64,
                   addresses[1], sizeof addresses[1]) == 0);
    server_workers(&steady, 3);
    unix_server(&restarted, loop);
    for (int i = 0; i < PEERS; i++)
        store_relaxed(&peers[i], open_peer(i));

    void *(*const bodies[])(void *) = {submitter, event_loop, chaos, log_reader};
    for (; n < CALLERS + 4; n++) {
        threads[n].dice = check_random(&seed) | 1;
        threads[n].loop = loop;
        MUST(!pthread_create(&threads[n].thread, NULL,
                             n < CALLERS ? caller : bodies[n - CALLERS],
                             &threads[n]));
    }
    for (int i = 0; i < RESTARTS / part; i++) {
        poll(NULL, 0, 300); /* let it be used for a while */
        server_end(&restarted);
        unix_server(&restarted, loop);
    }
    for (int i = 0; i <= CALLERS; i++) /* and the submitter */
        pthread_join(threads[i].thread, NULL);
    pthread_join(threads[CALLERS + 2].thread, NULL);
    atomic_store(&running, 0);
    pthread_join(threads[CALLERS + 1].thread, NULL);
    pthread_join(threads[CALLERS + 3].thread, NULL);
    for (int i = 0; i < PEERS; i++)
        CHECK_EQ(tw_peer_close(load_relaxed(&peers[i])), 0);
    server_end(&restarted);
    server_end(&steady);
    tw_inbox_close(loop);
    nothing_is_left(fds);
    fprintf(stderr, "%ld calls good, %ld bad, %ld on a closed peer\n",
            atomic_load(&good), atomic_load(&bad), atomic_load(&stale));
    CHECK(atomic_load(&good) > 0);
    CHECK(counter(TWI_HEALTHCHECKS) > 0);
    tw_close();
    CHECK_EQ(count_fds(), no_core);
    rmdir(dir);
    CHECK((fault.storm != NO_STORM) == (atomic_load(&fault.gusts) > 0));
    return check_done();
}
