#include "reader.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "atomics.h"
#include "counters.h"
#include "log.h"
#include "pressure.h"
#include "protocol.h"
#include "sys.h"
#include "writer.h"

static size_t
read_size(struct twi_socket *sock)
{
    uint64_t average = sock->reader.average;
    uint64_t size = average * TWI_READ_MESSAGES;
    /* Large messages get a block each, with little of the next one in it: what
     * is read beyond has to be moved, and room that is not filled is held. */
    if (size > TWI_READ_LARGE) {
        size = average + average / 16;
        size = size > TWI_READ_LARGE ? size : TWI_READ_LARGE;
    }
    /* Near the limit of backpressure no more is taken in than fits below. */
    if (size > TWI_READ_MIN && sock->kind == TWI_SERVER_SIDE) {
        uint64_t room = twi_socket_room(sock);
        size = size < room ? size : room;
    }
    return size < TWI_READ_MIN   ? TWI_READ_MIN
           : size > TWI_READ_MAX ? TWI_READ_MAX
                                 : (size_t)size;
}

/* Moves what is buffered into a block of `cap` bytes. */
static int
move_to(struct twi_reader *reader, size_t cap)
{
    size_t have = reader->end - reader->begin;
    struct twi_block *block = twi_block_new(cap);
    if (!block)
        return -ENOMEM;
    if (have)
        memcpy(block->data, reader->block->data + reader->begin, have);
    twi_block_unref(reader->block);
    reader->block = block;
    reader->begin = 0;
    reader->end = (uint32_t)have;
    return 0;
}

/* Room for the next read; the bytes to ask for, or -ENOMEM. */
static ssize_t
make_room(struct twi_socket *sock)
{
    struct twi_reader *reader = &sock->reader;
    size_t have = reader->end - reader->begin, want = read_size(sock);
    size_t lacking = reader->need > have ? reader->need - have : 1;
    int rc = 0;
    if (!reader->block)
        rc = move_to(reader, want > TWI_BLOCK_SIZE ? want : TWI_BLOCK_SIZE);
    else if (twi_block_exclusive(reader->block) && reader->begin > 0 &&
             (have == 0 || have < reader->begin / 4)) {
        /* Nobody else looks at the block: start over at its front. */
        memmove(reader->block->data, reader->block->data + reader->begin, have);
        reader->begin = 0;
        reader->end = (uint32_t)have;
    }
    if (rc)
        return rc;
    size_t room = reader->block->cap - reader->end;
    if (room < lacking && room < want / 2) {
        /* A frame whose size is known gets it at once, as far as the bytes
         * that have come vouch for it. */
        size_t vouched = 2 * have + TWI_READ_SLACK;
        size_t cap = have + (lacking > want ? lacking : want);
        if (reader->need > TWI_READ_LARGE)
            cap = have + lacking; /* and the next one gets its own */
        if (vouched < have + want)
            vouched = have + want;
        if (cap > vouched)
            cap = vouched;
        if (cap < TWI_BLOCK_SIZE)
            cap = TWI_BLOCK_SIZE;
        if ((rc = move_to(reader, cap)))
            return rc;
        room = reader->block->cap - reader->end;
    }
    /* Not beyond the frame that is wanted, so that the next one begins in a
     * block of its own, unless it is small. */
    size_t ask = lacking > want ? lacking : want;
    /* relaxed: others read it as a guess. */
    store_relaxed(&sock->held, reader->block->cap);
    return (ssize_t)(room < ask ? room : ask);
}

static void
note_message(struct twi_reader *reader, uint64_t size)
{
    reader->average =
        reader->average ? (reader->average * 9 + size) / 10 : size;
    reader->need = 0;
    reader->judged = 0;
    reader->partial_ns = 0;
}

/* The protocol of a connection's first bytes. */
static enum twi_cut
choose(struct twi_socket *sock, const uint8_t *data, size_t n)
{
    const struct twi_protocol *const *p = sock->kind == TWI_CLIENT_SIDE
                                              ? twi_client_protocols
                                              : twi_server_protocols;
    enum twi_cut verdict = TWI_CUT_OTHER;
    for (; *p; p++) {
        if (sock->kind != TWI_CLIENT_SIDE && !(sock->protocols & (*p)->bit))
            continue;
        enum twi_cut one = (*p)->sniff(data, n);
        if (one == TWI_CUT_DONE) {
            /* seq_cst: partner of twi_raw_failed, which looks at it after the
             * error is set; a chunk is delivered only if there is none. */
            store_seq_cst(&sock->reader.protocol, *p);
            return one;
        }
        if (one == TWI_CUT_MORE)
            verdict = one;
    }
    return verdict;
}

static void
refuse(struct twi_socket *sock, const char *why, const uint8_t *data, size_t n)
{
    twi_count(TWI_ERRORS_PROTOCOL, 1);
    twi_log_bytes(TW_LOG_BAD_BYTES, EINVAL, twi_socket_remote(sock), why, data,
                  n);
    twi_socket_fail(sock, EINVAL, TW_PHASE_READ);
}

/* Cuts what is buffered; 0 when reading must stop. */
static int
cut_all(struct twi_socket *sock, int64_t now_ns)
{
    struct twi_reader *reader = &sock->reader;
    while (reader->begin < reader->end) {
        const uint8_t *data = reader->block->data + reader->begin;
        size_t n = reader->end - reader->begin, used = 0, need = n + 1;
        const char *why = "unknown protocol";
        enum twi_cut cut = TWI_CUT_DONE;
        if (twi_socket_crowded(sock)) {
            twi_count(TWI_READ_PAUSES, 1);
            store_seq_cst(&sock->paused, 1);
            twi_socket_relax(sock); /* look again: the other side may be done */
            return 0;
        }
        const struct twi_protocol *protocol = load_relaxed(&reader->protocol);
        if (!protocol) {
            cut = choose(sock, data, n);
            protocol = load_relaxed(&reader->protocol);
        }
        if (protocol)
            cut = protocol->consume(sock, reader->block, data, n, now_ns, &used,
                                    &need, &why);
        if (twi_socket_error(sock))
            return 0;
        switch (cut) {
        case TWI_CUT_DONE:
            if (!used)
                return 0; /* the protocol waits; it resumes the reader */
            /* Memory hangs on it, so it is no assert, which a release would
             * not have: a parser that is wrong ends its connection. */
            if (used > n) {
                twi_count(TWI_INTERNAL_ERRORS, 1);
                twi_socket_fail(sock, TW_EINTERNAL, TW_PHASE_READ);
                return 0;
            }
            reader->begin += (uint32_t)used;
            note_message(reader, used);
            twi_count(TWI_MESSAGES_IN, 1);
            break;
        case TWI_CUT_MORE:
            reader->need = need;
            return 1;
        default:
            refuse(sock, why, data, n);
            return 0;
        }
    }
    return 1;
}

static void
end_of_stream(struct twi_socket *sock)
{
    if (sock->kind == TWI_CLIENT_SIDE) {
        twi_socket_fail(sock, TW_EEOF, TW_PHASE_READ);
        return;
    }
    /* Half closed: what was asked for is still answered.  seq_cst: partners
     * are the places where the last answer leaves (twi_socket_settle). */
    store_seq_cst(&sock->eof, 1);
    twi_socket_settle(sock);
}

/* The connection ends: nothing that still comes is looked at. */
static void
drop_input(struct twi_socket *sock)
{
    struct twi_reader *reader = &sock->reader;
    int fd = load_relaxed(&sock->fd);
    uint8_t bytes[16384];
    reader->begin = reader->end;
    for (size_t budget = TWI_READ_BUDGET;;) {
        twi_count(TWI_READ_CALLS, 1);
        ssize_t got = twi_sys_recv(fd, bytes, sizeof bytes);
        if (got == TWI_AGAIN)
            return;
        if (got > 0) {
            twi_count(TWI_BYTES_IN, got);
            reader->dropped += (uint64_t)got;
        }
        if (got <= 0 || reader->dropped >= TWI_LINGER_BYTES) {
            twi_socket_fail(sock, TW_ECLOSE, TW_PHASE_NONE);
            return;
        }
        budget -= (size_t)got < budget ? (size_t)got : budget;
        if (!budget) {
            twi_socket_again(sock, TWI_AGAIN_READ);
            return;
        }
    }
}

/* L5: one reader at a time. */
static inline void
hold(struct twi_reader *reader)
{
#ifndef NDEBUG
    assert(!load_relaxed(&reader->held));
    store_relaxed(&reader->held, 1);
#else
    (void)reader;
#endif
}

static inline void
let_go(struct twi_reader *reader)
{
#ifndef NDEBUG
    store_relaxed(&reader->held, 0);
#else
    (void)reader;
#endif
}

void
twi_reader_run(struct twi_socket *sock, uint32_t events, int64_t now_ns)
{
    struct twi_reader *reader = &sock->reader;
    size_t budget = TWI_READ_BUDGET;
    /* Without an event (leftovers, resumed reading) an edge may have passed
     * unseen, the end of the stream's too: then until EAGAIN. */
    int to_the_end =
        !events || (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
    int stopped = 0;
    hold(reader);
    /* relaxed: who sets it leaves this another turn. */
    if (load_relaxed(&sock->lingering)) {
        drop_input(sock);
        goto out;
    }
    /* relaxed: ours; who resumes it leaves us another turn. */
    if (load_relaxed(&sock->paused)) {
        if (events & (EPOLLHUP | EPOLLERR))
            twi_socket_fail(sock, TW_EEOF, TW_PHASE_READ);
        let_go(reader);
        return;
    }
    /* Bytes that backpressure left uncut come first. */
    if ((stopped = !cut_all(sock, now_ns)))
        goto out;
    for (;;) {
        ssize_t ask = make_room(sock);
        if (ask < 0) {
            twi_socket_fail(sock, ENOMEM, TW_PHASE_READ);
            break;
        }
        twi_count(TWI_READ_CALLS, 1);
        ssize_t got = sock->transport->read(
            sock, reader->block->data + reader->end, (size_t)ask);
        if (got == TWI_AGAIN)
            break;
        if (got <= 0) {
            if (got < 0)
                twi_socket_fail(sock, (int)-got, TW_PHASE_READ);
            else if (events & EPOLLHUP) /* both ways: nobody reads answers */
                twi_socket_fail(sock, TW_EEOF, TW_PHASE_READ);
            else
                end_of_stream(sock);
            break;
        }
        twi_count(TWI_BYTES_IN, got);
        store_relaxed(&sock->moved_ns, now_ns);
        reader->end += (uint32_t)got;
        reader->received_ns = now_ns;
        reader->partial_bytes += (uint64_t)got;
        reader->block->size = reader->end;
        if ((stopped = !cut_all(sock, now_ns)))
            break;
        /* A short read has emptied the socket: the next bytes make a new edge
         * (epoll(7)).  Not so when the end of the stream came with them. */
        if (got < ask && !to_the_end)
            break;
        budget -= (size_t)got < budget ? (size_t)got : budget;
        if (!budget) {
            twi_socket_again(sock, TWI_AGAIN_READ);
            break;
        }
    }
out:
    /* Whoever resumes it may take long: a dead connection ends at once. */
    if (stopped && events & (EPOLLHUP | EPOLLERR))
        twi_socket_fail(sock, TW_EEOF, TW_PHASE_READ);
    if (reader->begin == reader->end && reader->block) {
        twi_block_unref(reader->block);
        reader->block = NULL;
        store_relaxed(&sock->held, 0);
        reader->begin = reader->end = 0;
    } else if (reader->block && !reader->partial_ns) {
        reader->partial_ns = now_ns;
        reader->partial_bytes = 0;
    }
    let_go(reader);
}
