/* Authentication of connections: the state machine of csrc/auth.h through
 * api.h, and what clients send for it. */
#include "cases.h"
#include "clients.h"

/* Frames that a peer sends: a request with a credential, or NULL for none. */
static size_t
frame_with(uint8_t *out, size_t cap, const char *credential, size_t n,
           int64_t correlation_id, int method, size_t body_len)
{
    uint8_t names[256];
    struct twi_str s = {(const uint8_t *)"bed.Service", 11},
                   m = {(const uint8_t *)method_names[method],
                        strlen(method_names[method])};
    struct twi_std_request request = {
        .names = {names, twi_std_pack_names(names, sizeof names, s, m)},
        .auth = {(const uint8_t *)credential, n},
        .correlation_id = correlation_id,
        .body_len = body_len};
    size_t head = twi_std_pack_request(out, cap, &request);
    MUST(head && head + body_len <= cap);
    memset(out + head, 'b', body_len);
    return head + body_len;
}

static void
send_request(int fd, const char *credential, int64_t id, int method)
{
    uint8_t frame[512];
    size_t n = credential ? strlen(credential) : 0;
    raw_send(fd, frame,
             frame_with(frame, sizeof frame, credential, n, id, method, 3));
}

static void
expect_answer(int fd, int64_t id, int code)
{
    struct twi_std_msg msg;
    uint8_t *frame = raw_response(fd, &msg);
    CHECK(frame != NULL);
    if (!frame)
        return;
    CHECK_EQ(msg.correlation_id, id);
    CHECK_EQ(msg.error_code, code);
    free(frame);
}

/* R6: one answer of at most 4 KiB, then the end. */
static void
expect_refusal(int fd, int64_t id, const char *text)
{
    struct twi_std_msg msg;
    uint8_t *frame = raw_response(fd, &msg);
    CHECK(frame != NULL);
    if (!frame)
        return;
    size_t size = (size_t)(msg.attachment.p + msg.attachment.n - frame);
    CHECK(size <= 4096);
    CHECK_EQ(msg.correlation_id, id);
    CHECK_EQ(msg.error_code, TW_ERPCAUTH);
    CHECK(msg.error_text.n >= strlen(text) &&
          !memcmp(msg.error_text.p, text, strlen(text)));
    free(frame);
    CHECK(raw_ends(fd));
}

/* ------------------------------------------------------------- the server */

struct scene {
    struct bed_server server;
    tw_id inbox;
    /* An authenticator, if one runs: "secret" is good, "slow" gets none. */
    pthread_t thread;
    _Atomic int asked;
};

static tw_event
take_question(tw_id inbox)
{
    tw_event event = next_event(inbox, 0);
    CHECK_EQ(event.kind, TW_AUTH);
    return event;
}

static void *
authenticate(void *arg)
{
    struct scene *scene = arg;
    tw_event event;
    int more;
    while (tw_inbox_wait(scene->inbox, -1, 0) == 0)
        while (tw_drain(scene->inbox, 0, &event, 1, &more) == 1) {
            atomic_fetch_add(&scene->asked, 1);
            int good = event.body_len == 6 && !memcmp(event.body, "secret", 6);
            tw_auth_verdict(event.socket, good, good ? "alice" : "wrong", 5);
        }
    return NULL;
}

static void
scene_open(struct scene *scene, int64_t timeout_ns, int verifies)
{
    memset(scene, 0, sizeof *scene);
    MUST(server_prepare(&scene->server, NULL) == 0);
    MUST(tw_inbox_open(&scene->inbox) == 0);
    CHECK_EQ(tw_server_auth(scene->server.id, scene->inbox, 0), -EINVAL);
    MUST(tw_server_auth(scene->server.id, scene->inbox, timeout_ns) == 0);
    MUST(tw_listen(scene->server.id, "127.0.0.1:0", TW_PROTO_BAIDU_STD, 128,
                   scene->server.bound, sizeof scene->server.bound) == 0);
    CHECK_EQ(tw_server_auth(scene->server.id, scene->inbox, 1), -EBUSY);
    server_workers(&scene->server, 2);
    if (verifies)
        MUST(!pthread_create(&scene->thread, NULL, authenticate, scene));
}

static void
scene_close(struct scene *scene)
{
    server_end(&scene->server);
    tw_inbox_close(scene->inbox);
    if (scene->thread)
        pthread_join(scene->thread, NULL);
}

/* What follows a first message waits for the verdict, runs after it, and is
 * not asked for credentials again. */
static void
case_accepted(void)
{
    struct scene scene;
    scene_open(&scene, SOON, 0);
    int fd = raw_connect(scene.server.bound);
    uint64_t accepted = counter(TWI_AUTHENTICATIONS);
    send_request(fd, "secret", 1, ECHO);
    send_request(fd, "other", 2, ECHO);
    send_request(fd, NULL, 3, LATER);
    tw_event event = take_question(scene.inbox);
    CHECK_EQ(event.id, event.socket);
    CHECK(event.body_len == 6 && !memcmp(event.body, "secret", 6));
    struct pollfd quiet = {fd, POLLIN, 0};
    CHECK_EQ(poll(&quiet, 1, 20), 0);
    CHECK_EQ(atomic_load(&scene.server.runs), 0);
    CHECK_EQ(tw_server_in_flight(scene.server.id), 0);

    char text[TW_HISTOGRAM_CELLS * 8] = "";
    CHECK_EQ(tw_auth_verdict(event.id, 1, "", 0), -EINVAL);
    CHECK_EQ(tw_auth_verdict(event.id, 1, text, 1025), -EINVAL);
    CHECK_EQ(tw_auth_verdict(event.id, 1, "alice", 5), 0);
    CHECK_EQ(tw_auth_verdict(event.id, 0, "", 0), -EALREADY);
    CHECK_EQ(tw_auth_verdict(event.id, 1, "mallory", 7), -EALREADY);
    for (int seen = 0, i = 0; i < 2; i++) {
        struct twi_std_msg msg;
        uint8_t *frame = raw_response(fd, &msg);
        MUST(frame);
        CHECK_EQ(msg.error_code, 0);
        seen |= 1 << msg.correlation_id;
        CHECK(i == 0 || seen == 6);
        free(frame);
    }
    /* The identity is the connection's, and stays while it is asked for. */
    pthread_mutex_lock(&scene.server.lock);
    while (!scene.server.n_later)
        pthread_cond_wait(&scene.server.changed, &scene.server.lock);
    tw_id request = scene.server.later[0];
    pthread_mutex_unlock(&scene.server.lock);
    CHECK_EQ(tw_request_identity(request, text, 4), -ENOSPC);
    CHECK_EQ(tw_request_identity(request, text, sizeof text), 5);
    CHECK(!memcmp(text, "alice", 5));
    raw_reset(fd);
    EVENTUALLY(!tw_request_alive(request));
    CHECK_EQ(tw_request_identity(request, text, sizeof text), 5);
    CHECK_EQ(tw_reply(request, 0, "", 0, NULL, 0), 0);
    CHECK_EQ(tw_request_identity(request, text, sizeof text), -TW_STALE);
    CHECK_EQ(counter(TWI_AUTHENTICATIONS) - accepted, 1);
    int more;
    CHECK_EQ(tw_drain(scene.inbox, 0, &event, 1, &more), 0);
    scene_close(&scene);
}

static void
case_refused(void)
{
    static uint8_t frame[(1 << 20) + 200];
    static char large[1 << 20], text[5000];
    struct scene scene;
    scene_open(&scene, SOON, 0);
    memset(large, 'c', sizeof large);
    memset(text, 't', sizeof text);
    uint64_t before = counter(TWI_AUTH_FAILURES);

    int fd = raw_connect(scene.server.bound);
    send_request(fd, NULL, 7, ECHO);
    send_request(fd, "secret", 8, ECHO); /* too late */
    expect_refusal(fd, 7, "Fail to authenticate: no credential");
    close(fd);

    fd = raw_connect(scene.server.bound);
    send_request(fd, "wrong", 9, ECHO);
    send_request(fd, "secret", 10, ECHO);
    tw_event event = take_question(scene.inbox);
    CHECK_EQ(tw_auth_verdict(event.id, 0, text, sizeof text), 0);
    expect_refusal(fd, 9, "Fail to authenticate: ttt");
    close(fd);
    EVENTUALLY(tw_auth_verdict(event.id, 1, "alice", 5) == -TW_STALE);

    fd = raw_connect(scene.server.bound);
    send_request(fd, "wrong", 11, ECHO);
    event = take_question(scene.inbox);
    CHECK_EQ(tw_auth_verdict(event.id, 0, NULL, 0), 0);
    expect_refusal(fd, 11, "Fail to authenticate");
    close(fd);

    /* The largest that is asked about, one more, and what fits no meta. */
    fd = raw_connect(scene.server.bound);
    raw_send(fd, frame, frame_with(frame, sizeof frame, large, 65536, 12, ECHO, 0));
    event = take_question(scene.inbox);
    CHECK_EQ(event.body_len, 65536);
    CHECK_EQ(tw_auth_verdict(event.id, 1, large, 1024), 0);
    expect_answer(fd, 12, 0);
    close(fd);
    fd = raw_connect(scene.server.bound);
    raw_send(fd, frame, frame_with(frame, sizeof frame, large, 65537, 13, ECHO, 0));
    expect_refusal(fd, 13, "Fail to authenticate: too large");
    close(fd);

    CHECK_EQ(atomic_load(&scene.server.runs), 1);
    CHECK_EQ(counter(TWI_AUTH_FAILURES) - before, 4);
    scene_close(&scene);
}

/* A server's own idea of how much is buffered in this process. */
static int64_t
buffered(void)
{
    tw_census census;
    tw_census_take(&census);
    return census.block_bytes;
}

/* As much as the peer takes at once; how much that was. */
static size_t
flood(int fd)
{
    static char bytes[65536];
    size_t sent = 0;
    int64_t until = twi_now_ns() + SOON;
    for (int idle = 0; idle < 20 && sent < 64 << 20 && twi_now_ns() < until;) {
        ssize_t n = send(fd, bytes, sizeof bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n > 0)
            sent += (size_t)n;
        else if (errno != EAGAIN)
            break;
        else if (++idle < 20)
            poll(NULL, 0, 1);
    }
    return sent;
}

/* Before the verdict a flood is left to the kernel: of the large message that
 * carries the credential no more than its meta, and nothing behind it. */
static void
case_flood(void)
{
    static uint8_t frame[(32 << 20) + 512];
    struct scene scene;
    scene_open(&scene, SOON, 0);
    int64_t before = buffered();
    int fd = raw_connect(scene.server.bound);
    size_t n = frame_with(frame, sizeof frame, "secret", 6, 1, ECHO, 32 << 20);
    /* Its body has hardly begun when the question comes. */
    raw_send(fd, frame, 200);
    tw_event event = take_question(scene.inbox);
    CHECK(flood(fd) < 64 << 20);
    CHECK(buffered() - before <= 64 << 10);
    CHECK_EQ(tw_server_in_flight(scene.server.id), 0);
    CHECK_EQ(tw_auth_verdict(event.id, 0, NULL, 0), 0);
    expect_refusal(fd, 1, "Fail to authenticate");
    close(fd);
    /* Accepted, the large message goes on where it stopped. */
    fd = raw_connect(scene.server.bound);
    raw_send(fd, frame, 200);
    event = take_question(scene.inbox);
    CHECK_EQ(tw_auth_verdict(event.id, 1, "alice", 5), 0);
    raw_send(fd, frame + 200, n - 200);
    expect_answer(fd, 1, 0);
    close(fd);
    scene_close(&scene);
}

static void
case_deadline(void)
{
    struct scene scene;
    scene_open(&scene, 30 * MS, 0);
    int fd = raw_connect(scene.server.bound);
    send_request(fd, "secret", 1, ECHO);
    tw_event event = take_question(scene.inbox);
    expect_refusal(fd, 1, "Fail to authenticate: no verdict in time");
    int rc = tw_auth_verdict(event.id, 1, "alice", 5);
    CHECK(rc == -EALREADY || rc == -TW_STALE);
    /* Late before anybody asked: nobody is asked any more. */
    int other = raw_connect(scene.server.bound), more;
    send_request(other, "secret", 2, ECHO);
    expect_refusal(other, 2, "Fail to authenticate: no verdict in time");
    CHECK_EQ(tw_drain(scene.inbox, 0, &event, 1, &more), 0);
    CHECK_EQ(atomic_load(&scene.server.runs), 0);
    close(fd);
    close(other);
    scene_close(&scene);
}

/* Connections that end while somebody thinks about them. */
static void
case_lost(void)
{
    struct scene scene;
    tw_event event;
    int more;
    scene_open(&scene, SOON, 0);
    int fd = raw_connect(scene.server.bound);
    send_request(fd, "secret", 1, ECHO);
    event = take_question(scene.inbox);
    raw_reset(fd);
    /* At once: not only when reading goes on. */
    EVENTUALLY(!tw_socket_alive(event.socket));
    CHECK_EQ(tw_auth_verdict(event.id, 1, "alice", 5), -TW_STALE);
    /* Before the event was taken. */
    fd = raw_connect(scene.server.bound);
    send_request(fd, "secret", 1, ECHO);
    MUST(tw_inbox_wait(scene.inbox, SOON, 0) == 0);
    raw_reset(fd);
    if (tw_drain(scene.inbox, 0, &event, 1, &more) == 1)
        EVENTUALLY(!tw_socket_alive(event.socket));
    EVENTUALLY(tw_server_connections(scene.server.id) == 0);
    /* Half closed: it is still answered. */
    fd = raw_connect(scene.server.bound);
    send_request(fd, "secret", 5, ECHO);
    shutdown(fd, SHUT_WR);
    event = take_question(scene.inbox);
    CHECK_EQ(tw_auth_verdict(event.id, 1, "alice", 5), 0);
    expect_answer(fd, 5, 0);
    CHECK(raw_ends(fd));
    close(fd);
    /* Closed by us, with the question open; and nobody to ask. */
    fd = raw_connect(scene.server.bound);
    send_request(fd, "secret", 1, ECHO);
    event = take_question(scene.inbox);
    CHECK_EQ(tw_socket_fail(event.socket, TW_ECLOSE), 0);
    CHECK(raw_ends(fd));
    close(fd);
    tw_inbox_close(scene.inbox);
    fd = raw_connect(scene.server.bound);
    send_request(fd, "secret", 1, ECHO);
    CHECK(raw_ends(fd));
    close(fd);
    scene_close(&scene);
}

/* Two verdicts, the deadline and the connection's end at the same time: one
 * verdict at most counts, and what the peer sees is what that one said. */
struct judge {
    pthread_t thread;
    tw_id socket;
    int accept, rc;
    _Atomic int *go;
};

static void *
judge(void *arg)
{
    struct judge *me = arg;
    while (!atomic_load(me->go))
        ;
    me->rc = tw_auth_verdict(me->socket, me->accept, "alice", 5);
    return NULL;
}

static void
case_race(void)
{
    enum { ROUNDS = 150 };
    struct scene scene;
    /* Near enough to meet the judges now and then. */
    scene_open(&scene, 2 * MS, 0);
    for (int i = 0; i < ROUNDS; i++) {
        _Atomic int go = 0;
        struct judge judges[2] = {{.accept = 1, .go = &go},
                                  {.accept = 0, .go = &go}};
        int fd = raw_connect(scene.server.bound), more, n;
        tw_event event;
        send_request(fd, "secret", i, ECHO);
        MUST(tw_inbox_wait(scene.inbox, SOON, 0) == 0);
        n = tw_drain(scene.inbox, 0, &event, 1, &more);
        int cut = check_random(&seed) % 3 == 0;
        for (int j = 0; j < 2 && n; j++) {
            judges[j].socket = event.socket;
            MUST(!pthread_create(&judges[j].thread, NULL, judge, &judges[j]));
        }
        if (check_random(&seed) % 2)
            poll(NULL, 0, 1);
        atomic_store(&go, 1);
        if (cut)
            raw_reset(fd);
        for (int j = 0; j < 2 && n; j++)
            pthread_join(judges[j].thread, NULL);
        CHECK(!n || judges[0].rc || judges[1].rc);
        if (cut)
            continue;
        if (n && !judges[0].rc)
            expect_answer(fd, i, 0);
        else
            expect_refusal(fd, i, "Fail to authenticate");
        close(fd);
    }
    scene_close(&scene);
}

/* --------------------------------------------------------------- the client */

/* Whatever the order in which callers' first messages leave, each connection
 * is asked about once, and the calls succeed. */
static void
case_client(void)
{
    struct scene scene;
    scene_open(&scene, SOON, 1);
    tw_id peer = peer_open(scene.server.bound);
    CHECK_EQ(tw_peer_credential(peer, "", 0, 0), -EINVAL);
    CHECK_EQ(tw_peer_credential(peer, "secret", 6, 0), 0);
    call_in_parallel(peer, 4, 50, ECHO, 100);
    CHECK_EQ(atomic_load(&scene.asked), 1);
    CHECK_EQ(tw_peer_wants_credential(peer), 0);
    CHECK_EQ(call(peer, HANG_UP, "", 0, SOON), TW_EEOF);
    CHECK_EQ(call(peer, ECHO, "again", 5, SOON), 0);
    CHECK_EQ(atomic_load(&scene.asked), 2);
    tw_peer_close(peer);
    CHECK_EQ(tw_peer_credential(peer, "secret", 6, 0), -TW_STALE);
    CHECK_EQ(tw_peer_wants_credential(peer), -TW_STALE);

    /* None, and a wrong one. */
    peer = peer_open(scene.server.bound);
    CHECK_EQ(call(peer, ECHO, "hello", 5, SOON), TW_ERPCAUTH);
    EVENTUALLY(counter(TWI_CONNECTIONS_OUT) == 0);
    CHECK_EQ(tw_peer_credential(peer, "guess", 5, 0), 0);
    /* The connection is of no use afterwards: the next call makes another. */
    CHECK_EQ(call(peer, ECHO, "hello", 5, SOON), TW_ERPCAUTH);
    CHECK_EQ(call(peer, ECHO, "hello", 5, SOON), TW_ERPCAUTH);
    tw_peer_close(peer);
    CHECK_EQ(atomic_load(&scene.asked), 4);
    scene_close(&scene);
}

/* One credential for one connection. */
static void
case_once(void)
{
    struct scene scene;
    char scratch[256];
    tw_event result;
    scene_open(&scene, SOON, 1);
    tw_id peer = peer_open(scene.server.bound);
    CHECK_EQ(tw_peer_wants_credential(peer), 1);
    CHECK_EQ(tw_peer_credential(peer, "secret", 6, 1), 0);
    CHECK_EQ(tw_peer_wants_credential(peer), 0);
    CHECK_EQ(call(peer, ECHO, "hello", 5, SOON), 0);
    CHECK_EQ(call(peer, ECHO, "hello", 5, SOON), 0);
    CHECK_EQ(tw_peer_wants_credential(peer), 0);
    CHECK_EQ(call(peer, HANG_UP, "", 0, SOON), TW_EEOF);
    EVENTUALLY(counter(TWI_CONNECTIONS_OUT) == 0);
    CHECK_EQ(tw_peer_wants_credential(peer), 1);
    /* Nothing is sent that the last connection's would go with. */
    CHECK_EQ(call_full(peer, ECHO, "hello", 5, NULL, SOON, scratch,
                       sizeof scratch, &result),
             0);
    CHECK_EQ(result.code, TW_EFAILEDSOCKET);
    CHECK_EQ(result.sent, TW_SENT_NONE);
    CHECK_EQ(tw_peer_credential(peer, "secret", 6, 1), 0);
    CHECK_EQ(call(peer, ECHO, "hello", 5, SOON), 0);
    CHECK_EQ(atomic_load(&scene.asked), 2);
    tw_peer_close(peer);
    scene_close(&scene);
}

/* Until the first answer, and no longer; on a new connection again. */
static uint8_t *
read_request(int fd, struct twi_std_msg *msg)
{
    uint8_t *frame = raw_response(fd, msg);
    MUST(frame);
    return frame;
}

static void
case_until_answered(void)
{
    char bound[128], answer[128];
    int listener = raw_socket("127.0.0.1:0", 1, bound, 0), more;
    tw_id peer = peer_open(bound), inbox;
    tw_event event;
    MUST(tw_inbox_open(&inbox) == 0);
    CHECK_EQ(tw_peer_credential(peer, "secret", 6, 0), 0);
    for (int round = 0; round < 2; round++) {
        int fd = -1;
        for (int i = 0; i < 4; i++) {
            struct twi_std_msg msg;
            submit(peer, ECHO, "", inbox, 1);
            if (fd < 0)
                fd = accept(listener, NULL, NULL);
            uint8_t *frame = read_request(fd, &msg);
            CHECK_EQ(msg.auth.n, i < 2 ? 6 : 0);
            CHECK(!msg.auth.n || !memcmp(msg.auth.p, "secret", 6));
            struct twi_std_response response = {
                .correlation_id = msg.correlation_id,
                .code = i == 1 ? 42 : 0};
            size_t n = twi_std_pack_response((uint8_t *)answer, sizeof answer,
                                             &response);
            free(frame);
            if (i == 0)
                continue; /* unanswered: so the next carries it, too */
            raw_send(fd, answer, n);
            MUST(tw_inbox_wait(inbox, SOON, 1) == 0);
            MUST(tw_drain(inbox, 1, &event, 1, &more) == 1);
            CHECK_EQ(event.code, response.code);
        }
        close(fd);
        MUST(tw_inbox_wait(inbox, SOON, 1) == 0);
        CHECK_EQ(tw_drain(inbox, 1, &event, 1, &more), 1);
        CHECK(event.code != 0);
    }
    tw_peer_close(peer);
    tw_inbox_close(inbox);
    close(listener);
}

static void
case_byte_by_byte(void)
{
    atomic_store(&fault.recv_one, 1);
    atomic_store(&fault.send_one, 1);
    case_accepted();
    case_client();
}

static const struct test_case cases[] = {
    {"accepted", case_accepted},
    {"refused", case_refused},
    {"flood", case_flood},
    {"deadline", case_deadline},
    {"lost", case_lost},
    {"race", case_race},
    {"client", case_client},
    {"once", case_once},
    {"until_answered", case_until_answered},
    {"byte_by_byte", case_byte_by_byte},
    {0},
};

int
main(int argc, char **argv)
{
    seed = check_seed();
    plant_faults(seed);
    return cases_main(cases, argc, argv);
}
