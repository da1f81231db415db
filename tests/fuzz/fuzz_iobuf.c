/* Fuzzes two iobufs against plain arrays.  The input is a sequence of
 * operations; memory may run out at any of them.
 *
 * Oracles: after each operation length and bytes are the model's, gathered in
 * any number of pieces; what failed changed nothing; blocks are counted back
 * to zero. */
#include "iobuf.h"

#include <errno.h>

#include "fuzz.h"
#include "sys.h"

enum { BUFS = 2, MOST = 1 << 17, OPS = 400, PIECES = 64 };

static struct {
    uint8_t *bytes;
    size_t n;
} model[BUFS];
static struct twi_iobuf bufs[BUFS];
static int fail_in; /* allocations until one fails; 0: none does */

static void *
flaky_malloc(size_t n)
{
    if (fail_in && !--fail_in)
        return NULL;
    return malloc(n);
}

static void
check(int i)
{
    struct iovec iov[PIECES];
    size_t bytes = 0, at = 0;
    MUST(bufs[i].len == model[i].n);
    int n = twi_iobuf_gather(&bufs[i], iov, PIECES, &bytes);
    MUST(n >= 0 && n <= PIECES);
    MUST(bytes <= model[i].n && (n == PIECES || bytes == model[i].n));
    for (int j = 0; j < n; j++) {
        MUST(iov[j].iov_len > 0);
        MUST(at + iov[j].iov_len <= model[i].n);
        MUST(!memcmp(iov[j].iov_base, model[i].bytes + at, iov[j].iov_len));
        at += iov[j].iov_len;
    }
    MUST(at == bytes);
    size_t again = 0;
    MUST(twi_iobuf_gather(&bufs[i], iov, 1, &again) == (n > 0));
    MUST(n == 0 || again == iov[0].iov_len);
}

static void
fill(uint8_t *p, size_t n, uint8_t seed)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)(seed + i * 7 + (i >> 8));
}

static void
extend(int i, const uint8_t *p, size_t n)
{
    memcpy(model[i].bytes + model[i].n, p, n);
    model[i].n += n;
}

static void
append_slice(int i, struct script *script, size_t room)
{
    struct twi_block *block = twi_block_new(next_size(script, 20000) + 1);
    if (!block)
        return;
    block->size = block->cap;
    fill(block->data, block->cap, next_byte(script));
    struct twi_slice slice = {block, 0, 0};
    slice.off = (uint32_t)next_size(script, block->cap);
    slice.len = (uint32_t)next_size(script, block->cap - slice.off);
    if (slice.len <= room) {
        int rc = twi_iobuf_append_slice(&bufs[i], slice);
        MUST(rc == 0 || rc == -ENOMEM);
        if (!rc)
            extend(i, block->data + slice.off, slice.len);
    }
    twi_block_unref(block);
}

static void
reserve(int i, struct script *script, size_t room)
{
    size_t asked = next_size(script, room), used = next_size(script, asked);
    uint8_t *p = twi_iobuf_reserve(&bufs[i], asked);
    if (!p)
        return;
    fill(p, asked, 0xa0); /* all of it is ours */
    fill(p, used, (uint8_t)used);
    extend(i, p, used);
    twi_iobuf_commit(&bufs[i], used);
}

static void
step(struct script *script)
{
    static uint8_t bytes[MOST];
    uint8_t op = next_byte(script);
    int i = op >> 7, other = !i, rc;
    size_t room = MOST - model[i].n, n;
    switch (op % 8) {
    case 0:
    case 1:
        n = next_size(script, room);
        fill(bytes, n, op);
        rc = twi_iobuf_append(&bufs[i], bytes, n);
        MUST(rc == 0 || rc == -ENOMEM);
        if (!rc)
            extend(i, bytes, n);
        break;
    case 2:
        reserve(i, script, room);
        break;
    case 3:
        append_slice(i, script, room);
        break;
    case 4:
        if (model[other].n > room)
            break;
        rc = twi_iobuf_move(&bufs[i], &bufs[other]);
        MUST(rc == 0 || rc == -ENOMEM);
        if (!rc) {
            extend(i, model[other].bytes, model[other].n);
            model[other].n = 0;
        }
        break;
    case 5:
    case 6:
        n = next_size(script, model[i].n);
        twi_iobuf_drop(&bufs[i], n);
        model[i].n -= n;
        memmove(model[i].bytes, model[i].bytes + n, model[i].n);
        break;
    case 7:
        if (op & 8) {
            twi_iobuf_clear(&bufs[i]);
            model[i].n = 0;
        } else
            fail_in = next_byte(script) % 8;
        break;
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct script script = {data, size};
    int64_t blocks = twi_block_live(), bytes = twi_block_live_bytes();
    twi_sys.malloc = flaky_malloc;
    fail_in = 0;
    for (int i = 0; i < BUFS; i++) {
        model[i].bytes = model[i].bytes ? model[i].bytes : malloc(MOST);
        model[i].n = 0;
        twi_iobuf_init(&bufs[i]);
    }
    for (int i = 0; i < OPS && script.n; i++) {
        step(&script);
        check(0);
        check(1);
    }
    fail_in = 0;
    for (int i = 0; i < BUFS; i++)
        twi_iobuf_clear(&bufs[i]);
    MUST(twi_block_live() == blocks && twi_block_live_bytes() == bytes);
    return 0;
}
