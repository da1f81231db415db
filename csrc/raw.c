/* HTTP connections: sniffed here, parsed in Python.  Their bytes go up as
 * chunks to the server's http inbox, one at a time for a connection: the next
 * follows when the consumer is done with the last.  What arrives meanwhile
 * waits in the reader, bounded; then reading stops. */
#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "atomics.h"
#include "log.h"
#include "pressure.h"
#include "server.h"
#include "sys.h"
#include "writer.h"

enum {
    CHUNK_MAX = 64 << 10,
    METHOD_MAX = 16 /* letters of a request line's first word */
};

static struct twi_socket *
socket_of(struct twi_inbox_item *item, size_t offset)
{
    return (struct twi_socket *)((char *)item - offset);
}

static int
fill_chunk(struct twi_inbox_item *item, tw_event *event, void **block)
{
    struct twi_socket *sock =
        socket_of(item, offsetof(struct twi_socket, chunk));
    int filled = 0;
    /* The reader keeps the block and does not touch the chunk's bytes until
     * tw_raw_next; a failed socket's block lives as long as our reference. */
    if (event && !twi_socket_error(sock)) {
        twi_block_ref(sock->chunk_block);
        *block = sock->chunk_block;
        *event = (tw_event){
            .id = twi_socket_id(sock),
            .socket = twi_socket_id(sock),
            .kind = TW_CHUNK,
            .body = (const char *)sock->chunk_data,
            .body_len = sock->chunk_len,
        };
        filled = 1;
    }
    twi_socket_unref(sock);
    return filled;
}

static int
fill_closed(struct twi_inbox_item *item, tw_event *event, void **block)
{
    struct twi_socket *sock =
        socket_of(item, offsetof(struct twi_socket, closed));
    (void)block;
    if (event)
        *event = (tw_event){.id = twi_socket_id(sock),
                            .socket = twi_socket_id(sock),
                            .kind = TW_CLOSED,
                            .code = twi_socket_error(sock)};
    twi_socket_unref(sock);
    return event != NULL;
}

void
twi_raw_init(void)
{
    twi_inbox_filler(TW_CHUNK, fill_chunk);
    twi_inbox_filler(TW_CLOSED, fill_closed);
}

void
twi_raw_failed(struct twi_socket *sock)
{
    if (load_seq_cst(&sock->reader.protocol) != &twi_http_server)
        return;
    sock->closed.kind = TW_CLOSED;
    twi_socket_ref(sock);
    if (twi_inbox_put(load_relaxed(&sock->server->http), &sock->closed))
        twi_socket_unref(sock);
}

/* A token and a blank, as a request line begins. */
static enum twi_cut
http_sniff(const uint8_t *data, size_t n)
{
    for (size_t i = 0; i < n && i <= METHOD_MAX; i++) {
        if (data[i] == ' ')
            return i ? TWI_CUT_DONE : TWI_CUT_OTHER;
        if (data[i] < 'A' || data[i] > 'Z')
            return TWI_CUT_OTHER;
    }
    return n > METHOD_MAX ? TWI_CUT_OTHER : TWI_CUT_MORE;
}

static enum twi_cut
http_consume(struct twi_socket *sock, struct twi_block *block,
             const uint8_t *data, size_t n, int64_t now_ns, size_t *used,
             size_t *need, const char **why)
{
    (void)need;
    (void)why;
    (void)now_ns;
    *used = 0;
    /* acquire: pairs with tw_raw_next, for the chunk that the consumer has
     * read; it marks leftover work afterwards. */
    if (load_acquire(&sock->chunk_out))
        return TWI_CUT_DONE;
    twi_block_unref(sock->chunk_block);
    twi_block_ref(block);
    sock->chunk_block = block;
    sock->chunk_data = data;
    sock->chunk_len = (uint32_t)(n < CHUNK_MAX ? n : CHUNK_MAX);
    sock->chunk.kind = TW_CHUNK;
    /* relaxed: the inbox publishes it, and `eof` to who settles. */
    store_relaxed(&sock->chunk_out, 1);
    twi_socket_ref(sock);
    if (twi_inbox_put(load_relaxed(&sock->server->http), &sock->chunk)) {
        twi_socket_unref(sock);
        twi_socket_fail(sock, TW_ELOGOFF, TW_PHASE_NONE);
        return TWI_CUT_DONE;
    }
    *used = sock->chunk_len;
    return TWI_CUT_DONE;
}

const struct twi_protocol twi_http_server = {
    .name = "http",
    .bit = TW_PROTO_HTTP,
    .sniff = http_sniff,
    .consume = http_consume,
};

const struct twi_protocol *const twi_server_protocols[] = {
    &twi_std_server,
    &twi_http_server,
    NULL,
};

/* ---- api.h */

int
tw_raw_next(tw_id id)
{
    struct twi_socket *sock = twi_socket_address(id);
    if (!sock)
        return -TW_STALE;
    /* release: pairs with http_consume; seq_cst: before settle's look. */
    store_seq_cst(&sock->chunk_out, 0);
    twi_socket_again(sock, TWI_AGAIN_READ);
    twi_socket_settle(sock);
    twi_socket_unref(sock);
    return 0;
}

int
tw_raw_write(tw_id id, const char *data, size_t len, int close)
{
    struct twi_socket *sock = twi_socket_address(id);
    if (!sock)
        return -TW_STALE;
    struct twi_wnode *node = twi_wnode_new();
    int code = ENOMEM;
    if (node && !twi_iobuf_append(&node->buf, data, len)) {
        node->close_after = close != 0;
        code = twi_socket_push(sock, node, 0, 0, twi_now_ns());
    }
    if (code && node)
        twi_wnode_free(node);
    twi_socket_unref(sock);
    return -code;
}
