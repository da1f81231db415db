/* C2: FIN and RST at every byte offset of a request and of a response: exactly
 * one completion for each call, nothing partial is delivered, nothing leaks,
 * and the next call or connection works. */
#include "cases.h"
#include "clients.h"

static const char body[] = "a body that is cut";

enum how { FIN, RST, HOWS };

/* Ends a raw connection; RST also throws away what the kernel has not read. */
static void
end_with(int fd, enum how how)
{
    if (how == RST)
        raw_reset(fd);
    else
        close(fd);
}

static tw_event
next_result(tw_id inbox)
{
    tw_event event = next_event(inbox, 1);
    CHECK_EQ(event.kind, TW_RESULT);
    return event;
}

/* ------------------------------------------------------ cut requests */

static int
ask(const char *address, uint8_t *frame, size_t n)
{
    int fd = raw_connect(address);
    raw_send(fd, frame, n);
    return fd;
}

/* Until the server has accepted another connection than it had and done away
 * with it. */
static void
await_end(struct bed_server *server, uint64_t accepted)
{
    EVENTUALLY(counter(TWI_ACCEPTED) > accepted);
    EVENTUALLY(tw_server_connections(server->id) == 0);
    EVENTUALLY(tw_server_in_flight(server->id) == 0);
}

/* The server reads a request that ends after `cut` bytes. */
static void
cut_requests(const char *address)
{
    struct bed_server server;
    uint8_t frame[256];
    struct twi_std_msg msg;
    server_start(&server, address, 2, NULL);
    size_t len = raw_request(frame, sizeof frame, "bed.Service", "echo", 9,
                             body, sizeof body);
    for (int how = 0; how < HOWS; how++)
        for (size_t cut = 0; cut < len; cut++) {
            uint64_t in = counter(TWI_MESSAGES_IN);
            uint64_t accepted = counter(TWI_ACCEPTED);
            int fd = ask(server.bound, frame, cut);
            if (how == FIN) {
                shutdown(fd, SHUT_WR);
                CHECK(raw_ends(fd)); /* no answer to half a question */
            }
            end_with(fd, how);
            await_end(&server, accepted);
            CHECK_EQ(counter(TWI_MESSAGES_IN), in);
        }
    CHECK_EQ(atomic_load(&server.runs), 0);
    CHECK_EQ(tw_server_in_flight(server.id), 0);
    int fd = ask(server.bound, frame, len);
    uint8_t *response = raw_response(fd, &msg);
    CHECK(response && msg.body.n == sizeof body && !msg.error_code);
    free(response);
    close(fd);
    server_end(&server);
}

/* A whole request, and then the end at every offset of the next one: the first
 * is answered once, into the half that is open or into nothing. */
static void
cut_second_requests(void)
{
    struct bed_server server;
    uint8_t frames[512];
    struct twi_std_msg msg;
    server_start(&server, "127.0.0.1:0", 2, NULL);
    size_t len = raw_request(frames, 256, "bed.Service", "echo", 1, body,
                             sizeof body);
    memcpy(frames + len, frames, len);
    for (size_t cut = 0; cut < len; cut++) {
        long runs = atomic_load(&server.runs);
        int fd = ask(server.bound, frames, len + cut);
        shutdown(fd, SHUT_WR);
        uint8_t *response = raw_response(fd, &msg);
        CHECK(response && msg.correlation_id == 1 && !msg.error_code);
        free(response);
        CHECK(raw_ends(fd));
        close(fd);
        CHECK_EQ(atomic_load(&server.runs), runs + 1);
        uint64_t accepted = counter(TWI_ACCEPTED);
        fd = ask(server.bound, frames, len + cut);
        end_with(fd, RST);
        await_end(&server, accepted);
        CHECK(atomic_load(&server.runs) <= runs + 2);
    }
    server_end(&server);
}

/* ----------------------------------------------------- cut responses */

/* The peer of a client answers with `cut` bytes of a response, then ends.  Two
 * calls are under way: the first's response is whole before, if `second`. */
static void
cut_responses(const char *address)
{
    char bound[128];
    int listener = raw_socket(address, 1, bound, 0), more;
    tw_id inbox, id;
    MUST(tw_inbox_open(&inbox) == 0);
    size_t len = 1;
    for (int how = 0; how < HOWS; how++)
        for (int second = 0; second < 2; second++)
            for (size_t cut = 0; cut < len; cut++) {
                uint8_t out[512];
                struct twi_std_msg msg[2];
                tw_id peer = peer_open(bound);
                for (uint64_t i = 0; i < 2; i++)
                    MUST(tw_submit(peer, client_methods[ECHO], body,
                                   sizeof body, NULL, twi_now_ns() + SOON,
                                   inbox, i, 0, &id) == 0);
                int fd = accept(listener, NULL, NULL);
                MUST(fd >= 0);
                size_t n = 0;
                for (int i = 0; i < 2; i++) {
                    uint8_t *request = raw_response(fd, &msg[i]);
                    MUST(request);
                    struct twi_std_response response = {
                        .correlation_id = msg[i].correlation_id,
                        .body_len = sizeof body};
                    len = n;
                    n += twi_std_pack_response(out + n, 200, &response);
                    memcpy(out + n, body, sizeof body);
                    n += sizeof body;
                    len = n - len;
                    free(request);
                }
                /* Ids, and so frames, differ in length: never a whole one. */
                size_t part = cut < len ? cut : len - 1;
                raw_send(fd, out, second ? n - len + part : part);
                uint64_t first = 99;
                if (second) {
                    /* Whole, so delivered, before the end comes. */
                    tw_event event = next_result(inbox);
                    first = event.cookie;
                    CHECK_EQ(event.code, 0);
                    CHECK_EQ(event.body_len, sizeof body);
                    CHECK(event.body && !memcmp(event.body, body, sizeof body));
                }
                end_with(fd, how);
                for (int i = second; i < 2; i++) {
                    tw_event event = next_result(inbox);
                    CHECK(event.cookie != first && event.cookie < 2);
                    first = event.cookie;
                    CHECK(event.code == TW_EEOF || event.code == ECONNRESET ||
                          (how == RST && event.code == EPIPE));
                    CHECK_EQ(event.phase, TW_PHASE_READ);
                    CHECK_EQ(event.sent, TW_SENT_ALL);
                    CHECK_EQ(event.body_len + event.attachment_len, 0);
                }
                CHECK_EQ(tw_drain(inbox, 1, &(tw_event){0}, 1, &more), 0);
                tw_peer_close(peer);
            }
    CHECK(len > sizeof body);
    CHECK_EQ(counter(TWI_DOUBLE_COMPLETIONS), 0);
    tw_inbox_close(inbox);
    close(listener);
}

/* --------------------------------------------- requests that are not read */

/* The peer reads `cut` bytes of a request and ends the connection; with its
 * one-byte writes the client meets the end at every offset, too. */
static void
unread_requests(void)
{
    char bound[128];
    int listener = raw_socket("127.0.0.1:0", 1, bound, 0), more;
    tw_id inbox, id;
    MUST(tw_inbox_open(&inbox) == 0);
    uint8_t frame[256];
    size_t len = raw_request(frame, sizeof frame, "bed.Service", "echo", 1,
                             body, sizeof body);
    atomic_store(&fault.send_one, 1);
    for (int how = 0; how < HOWS; how++)
        for (size_t cut = 0; cut < len; cut++) {
            tw_id peer = peer_open(bound);
            MUST(tw_submit(peer, client_methods[ECHO], body, sizeof body, NULL,
                           twi_now_ns() + SOON, inbox, cut, 0, &id) == 0);
            int fd = accept(listener, NULL, NULL);
            MUST(fd >= 0);
            CHECK_EQ(raw_recv(fd, frame, cut), cut);
            end_with(fd, how);
            tw_event event = next_result(inbox);
            CHECK_EQ(event.cookie, cut);
            CHECK(event.code == TW_EEOF || event.code == ECONNRESET ||
                  event.code == EPIPE);
            CHECK(event.sent >= (cut > 0 ? TW_SENT_SOME : TW_SENT_NONE));
            CHECK_EQ(tw_drain(inbox, 1, &(tw_event){0}, 1, &more), 0);
            tw_peer_close(peer);
        }
    atomic_store(&fault.send_one, 0);
    tw_inbox_close(inbox);
    close(listener);
}

/* ------------------------------------------------- answers nobody reads */

/* The client of a server ends its connection after `cut` bytes of the answer;
 * the server writes it byte by byte. */
static void
unread_responses(void)
{
    struct bed_server server;
    uint8_t frame[256], some[256];
    server_start(&server, "127.0.0.1:0", 2, NULL);
    size_t len = raw_request(frame, sizeof frame, "bed.Service", "echo", 9,
                             body, sizeof body);
    struct twi_std_response response = {.correlation_id = 9,
                                        .body_len = sizeof body};
    size_t answer = twi_std_pack_response(some, 200, &response) + sizeof body;
    atomic_store(&fault.send_one, 1);
    for (int how = 0; how < HOWS; how++)
        for (size_t cut = 0; cut < answer; cut++) {
            long runs = atomic_load(&server.runs);
            int fd = ask(server.bound, frame, len);
            CHECK_EQ(raw_recv(fd, some, cut), cut);
            EVENTUALLY(atomic_load(&server.runs) == runs + 1);
            end_with(fd, how);
            EVENTUALLY(tw_server_connections(server.id) == 0);
            EVENTUALLY(tw_server_in_flight(server.id) == 0);
        }
    atomic_store(&fault.send_one, 0);
    server_end(&server);
}

static void
case_requests(void)
{
    cut_requests("127.0.0.1:0");
    nothing_is_left(fds_at_rest);
    cut_requests(unix_address);
}

static void
case_responses(void)
{
    cut_responses("127.0.0.1:0");
    nothing_is_left(fds_at_rest);
    cut_responses(unix_address);
    unlink(unix_address + 5);
}

static const struct test_case cases[] = {
    {"requests", case_requests},
    {"second_requests", cut_second_requests},
    {"responses", case_responses},
    {"unread_requests", unread_requests},
    {"unread_responses", unread_responses},
    {0},
};

int
main(int argc, char **argv)
{
    plant_faults(check_seed());
    return cases_main(cases, argc, argv);
}
