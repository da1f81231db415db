/* The receiving side: how much a read asks for, who gets a turn beside a
 * connection that floods, and what a peer that closes its half still gets. */
#include "cases.h"

#include "atomics.h"
#include "iobuf.h"
#include "reader.h"

/* What the reads of each descriptor asked for and got, in order. */
enum { LOG = 4096 };
static struct {
    _Atomic int n;
    int fd[LOG];
    size_t asked[LOG];
    ssize_t got[LOG];
    _Atomic int flooding; /* this descriptor always has more; 0: none */
} reads;

static uint8_t flood_frame[4096];
static size_t flood_size, flood_at;

static ssize_t
noting_recv(int fd, void *buf, size_t cap, int flags)
{
    ssize_t got;
    if (fd == atomic_load(&reads.flooding)) {
        /* Frame after frame; never a short read. */
        for (got = 0; (size_t)got < cap; got++)
            ((uint8_t *)buf)[got] = flood_frame[flood_at++ % flood_size];
    } else
        got = faulty_recv(fd, buf, cap, flags);
    int at = atomic_fetch_add(&reads.n, 1) % LOG;
    reads.fd[at] = fd;
    reads.asked[at] = cap;
    reads.got[at] = got;
    return got;
}


/* The sole socket of a kind, not counting references. */
static struct twi_socket *found;
static int found_n;

static void
note_accepted(struct twi_socket *sock, void *arg)
{
    (void)arg;
    if (sock->kind != TWI_SERVER_SIDE)
        return;
    found = sock;
    found_n++;
}

static struct twi_socket *
sole_accepted(void)
{
    found_n = 0;
    twi_socket_each(note_accepted, NULL);
    CHECK_EQ(found_n, 1);
    MUST(found_n);
    return found;
}

/* After n messages of a size, what the next read asks for: 16 messages, but
 * no more than TWI_READ_LARGE, or one message if that is larger, so that a
 * large one lies in a block of its own.  4096 for a new descriptor. */
static void
case_read_sizes(void)
{
    static const struct {
        size_t size, asked;
    } rows[] = {
        {200, 4096},
        {1000, 16000},
        {4000, 64000},
        {64 << 10, TWI_READ_LARGE},
        {200000, 200000 + 200000 / 16},
        {1 << 20, TWI_READ_MAX},
    };
    struct bed_server server;
    char *body = calloc(1, 1 << 20);
    uint8_t *frame = malloc((1 << 20) + 256);
    server_start(&server, "127.0.0.1:0", 1, NULL);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct twi_std_msg msg;
        int fd = raw_connect(server.bound);
        size_t size = rows[i].size, head = 0;
        size_t overhead =
            raw_request(frame, 256, "bed.Service", "fail", 1, "", 0);
        int first = atomic_load(&reads.n);
        for (int sent = 0; sent < 30; sent++) {
            head = raw_request(frame, size + 256, "bed.Service", "fail", 1, body,
                               size - overhead);
            raw_send(fd, frame, head);
            uint8_t *response = raw_response(fd, &msg);
            CHECK(response);
            free(response);
        }
        take_baton(); /* whoever read is done */
        CHECK_EQ(reads.asked[first % LOG], TWI_READ_MIN);
        struct twi_socket *sock = sole_accepted();
        CHECK(!sock->reader.block); /* idle, it holds none */
        drop_baton();
        /* The next, from nothing: one byte is enough to see it. */
        int next = atomic_load(&reads.n);
        raw_send(fd, frame, 1);
        EVENTUALLY(atomic_load(&reads.n) > next);
        take_baton();
        size_t asked = reads.asked[next % LOG];
        drop_baton();
        /* A header's few bytes make the message a little larger. */
        if (asked < rows[i].asked || asked > rows[i].asked + 16 * 16)
            CHECK_EQ(asked, rows[i].asked);
        close(fd);
        EVENTUALLY(tw_server_connections(server.id) == 0);
    }
    server_end(&server);
    free(body);
    free(frame);
}

/* One connection that never runs dry takes its budget and no more: in the same
 * round the small request of another is read, too. */
static void
case_fair_turns(void)
{
    static const char filler[2000];
    struct bed_server server;
    uint8_t small[256];
    /* An unknown method: refused at once, no worker runs it. */
    tw_server_options options = default_options;
    options.max_unwritten = (uint64_t)1 << 40;
    server_start(&server, "127.0.0.1:0", 1, &options);
    flood_size = raw_request(flood_frame, sizeof flood_frame, "bed.Service",
                             "none", 1, filler, sizeof filler);
    /* Both are there before the round; which comes first is epoll's choice,
     * so each is tried in the other's place. */
    for (int way = 0; way < 2; way++) {
        int one = raw_connect(server.bound);
        EVENTUALLY(tw_server_connections(server.id) == 1);
        take_baton();
        int flooding = load_relaxed(&sole_accepted()->fd);
        drop_baton();
        int two = raw_connect(server.bound);
        EVENTUALLY(tw_server_connections(server.id) == 2);
        take_baton();
        int from = atomic_load(&reads.n);
        flood_at = 0;
        atomic_store(&reads.flooding, flooding);
        size_t n = raw_request(small, sizeof small, "bed.Service", "echo", 2,
                               "x", 1);
        raw_send(way ? two : one, small, n);
        raw_send(way ? one : two, small, n);
        twi_loop_poll(TWI_MAIN, 0);
        int to = atomic_load(&reads.n), others = 0;
        size_t flood = 0;
        CHECK(to - from < LOG);
        for (int i = from; i < to; i++)
            if (reads.fd[i % LOG] == flooding)
                flood += (size_t)reads.got[i % LOG];
            else
                others++;
        CHECK(others > 0);
        /* Once by its event, once more as a leftover of the same round. */
        CHECK(flood >= TWI_READ_BUDGET);
        CHECK(flood <= 2 * (TWI_READ_BUDGET + TWI_READ_MAX));
        /* The next round goes on with it, without a new event. */
        from = atomic_load(&reads.n);
        twi_loop_poll(TWI_MAIN, 0);
        CHECK(atomic_load(&reads.n) > from);
        CHECK_EQ(reads.fd[from % LOG], flooding);
        atomic_store(&reads.flooding, 0);
        drop_baton();
        close(one);
        close(two);
        EVENTUALLY(tw_server_connections(server.id) == 0);
    }
    server_end(&server);
}

/* C3: a peer that closes its half after several requests gets all their
 * answers, and then the end; what it began and did not finish is dropped. */
static void
case_half_close(void)
{
    enum { REQUESTS = 20 };
    static const struct {
        int whole;   /* requests */
        size_t part; /* bytes of one more */
        const char *method;
    } rows[] = {
        {REQUESTS, 0, "gate"}, {REQUESTS, 5, "gate"}, {REQUESTS, 40, "gate"},
        {1, 3, "gate"},        {REQUESTS, 40, "echo"}, {0, 7, "gate"},
        {0, 40, "gate"},       {0, 0, "gate"},
    };
    for (size_t row = 0; row < sizeof rows / sizeof *rows; row++)
        for (int way = 0; way < 2; way++) {
            struct bed_server server;
            uint8_t frame[256], batch[REQUESTS * 256 + 256];
            char seen[REQUESTS] = {0};
            size_t at = 0, n = 0;
            server_start(&server, "127.0.0.1:0", 2, NULL);
            int fd = raw_connect(server.bound);
            for (int i = 0; i < rows[row].whole; i++) {
                n = raw_request(frame, sizeof frame, "bed.Service",
                                rows[row].method, i, "hello", 5);
                memcpy(batch + at, frame, n);
                at += n;
            }
            n = raw_request(frame, sizeof frame, "bed.Service", "echo", 99,
                            "never finished", 14);
            CHECK(rows[row].part < n);
            memcpy(batch + at, frame, rows[row].part);
            at += rows[row].part;
            if (way == 0)
                raw_send(fd, batch, at);
            else /* in two pieces, the second with the end behind it */
                for (size_t half = 0; half < 2; half++)
                    raw_send(fd, batch + half * (at / 2),
                             half ? at - at / 2 : at / 2);
            shutdown(fd, SHUT_WR);
            if (rows[row].whole > 1 && rows[row].method[0] == 'g')
                await_gate(&server, 2);
            open_gate(&server);
            for (int i = 0; i < rows[row].whole; i++) {
                struct twi_std_msg msg;
                uint8_t *response = raw_response(fd, &msg);
                CHECK(response);
                if (!response)
                    break;
                CHECK_EQ(msg.error_code, 0);
                CHECK(msg.correlation_id < REQUESTS);
                CHECK_EQ(seen[msg.correlation_id % REQUESTS]++, 0);
                CHECK(msg.body.n == 5 && !memcmp(msg.body.p, "hello", 5));
                free(response);
            }
            CHECK(raw_ends(fd));
            EVENTUALLY(tw_server_connections(server.id) == 0);
            close(fd);
            server_end(&server);
        }
}

static const struct test_case cases[] = {
    {"read_sizes", case_read_sizes},
    {"fair_turns", case_fair_turns},
    {"half_close", case_half_close},
    {0},
};

int
main(int argc, char **argv)
{
    plant_faults(check_seed());
    twi_sys.recv = noting_recv;
    return cases_main(cases, argc, argv);
}
