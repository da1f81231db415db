#include "iobuf.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "atomics.h"
#include "lent.h"
#include "sys.h"

/* struct iovec is what the kernel reads; prove that ours converts by value. */
_Static_assert(sizeof(((struct iovec *)0)->iov_len) == sizeof(size_t),
               "iovec length");

static _Atomic int64_t live, live_bytes;

/* Ordinary blocks circulate between the thread that reads and the one that is
 * done with a message, on a busy server the same one; malloc would take a
 * lock for their size. */
static _Thread_local struct twi_block *cache;
static _Thread_local int cached;
static _Thread_local int cache_registered;
static pthread_key_t cache_key;
static pthread_once_t cache_once = PTHREAD_ONCE_INIT;

static void
cache_empty(void *unused)
{
    (void)unused;
    while (cache) {
        struct twi_block *block = cache;
        cache = block->next;
        free(block);
    }
    /* Blocks freed by later destructors of this thread go straight back. */
    cached = TWI_BLOCK_CACHE;
}

static void
cache_key_make(void)
{
    pthread_key_create(&cache_key, cache_empty);
}

static int
cache_put(struct twi_block *block)
{
    if (cached >= TWI_BLOCK_CACHE)
        return 0;
    if (!cache_registered) {
        pthread_once(&cache_once, cache_key_make);
        pthread_setspecific(cache_key, &cache_registered);
        cache_registered = 1;
    }
    block->next = cache;
    cache = block;
    cached++;
    return 1;
}

struct twi_block *
twi_block_new(size_t cap)
{
    struct twi_block *block = NULL;
    /* Near an ordinary block's size, be one: those are kept. */
    if (cap > TWI_BLOCK_SIZE / 2 && cap < TWI_BLOCK_SIZE)
        cap = TWI_BLOCK_SIZE;
    if (cap > UINT32_MAX - TWI_BLOCK_HEADER)
        return NULL;
    if (cap == TWI_BLOCK_SIZE && cache) {
        block = cache;
        cache = block->next;
        cached--;
    } else if (!(block = twi_malloc(sizeof *block + cap)))
        return NULL;
    store_relaxed(&block->refs, 1);
    block->cap = (uint32_t)cap;
    block->size = 0;
    block->is_lent = 0;
    block->next = NULL;
    block->data = (uint8_t *)(block + 1);
    add_relaxed(&live, 1);
    add_relaxed(&live_bytes, (int64_t)cap);
    return block;
}

struct twi_block *
twi_block_lend(const void *data, size_t n, uint64_t token)
{
    if (n > UINT32_MAX)
        return NULL;
    struct twi_block *block = twi_malloc(sizeof *block);
    struct twi_lent *lent = block ? twi_lent_new(token) : NULL;
    if (!lent) {
        free(block);
        return NULL;
    }
    store_relaxed(&block->refs, 1);
    block->cap = 0; /* nothing of it is ours to fill or to count */
    block->size = (uint32_t)n;
    block->is_lent = 1;
    block->lent = lent;
    block->data = (uint8_t *)data;
    add_relaxed(&live, 1);
    return block;
}

void
twi_block_ref(struct twi_block *block)
{
    /* relaxed: the caller has a reference, nothing is ordered by another. */
    uint32_t before = add_relaxed(&block->refs, 1);
    assert(before > 0);
    (void)before;
}

/* call: whether the lender of a lent block has to be told. */
static inline void
unref(struct twi_block *block, int call)
{
    if (!block)
        return;
    /* acq_rel: the release of every earlier unref pairs with the acquire of
     * the last one, which frees. */
    uint32_t before =
        atomic_fetch_sub_explicit(&block->refs, 1, memory_order_acq_rel);
    assert(before > 0);
    if (before != 1)
        return;
    sub_relaxed(&live, 1);
    sub_relaxed(&live_bytes, (int64_t)block->cap);
    if (block->is_lent)
        twi_lent_back(block->lent, call);
    if (block->cap != TWI_BLOCK_SIZE || !cache_put(block))
        free(block);
}

void
twi_block_unref(struct twi_block *block)
{
    unref(block, 1);
}

void
twi_block_unref_lender(struct twi_block *block)
{
    unref(block, 0);
}

int
twi_block_exclusive(struct twi_block *block)
{
    /* acquire: pairs with unref's release; others' reads are over. */
    return load_acquire(&block->refs) == 1;
}

int64_t
twi_block_live(void)
{
    return load_relaxed(&live);
}

int64_t
twi_block_live_bytes(void)
{
    return load_relaxed(&live_bytes);
}

void
twi_iobuf_init(struct twi_iobuf *buf)
{
    *buf = (struct twi_iobuf){.cap = TWI_IOBUF_INLINE};
}

/* `slices` points into the struct itself while inline, which a struct copy
 * would break; so it is NULL then and this is asked. */
static struct twi_slice *
slices_of(const struct twi_iobuf *buf)
{
    return buf->slices ? buf->slices : (struct twi_slice *)buf->inline_;
}

void
twi_iobuf_clear(struct twi_iobuf *buf)
{
    struct twi_slice *slices = slices_of(buf);
    for (uint32_t i = 0; i < buf->n; i++)
        twi_block_unref(slices[buf->first + i].block);
    free(buf->slices);
    twi_iobuf_init(buf);
}

/* Room for one more slice behind the last; 0 or -ENOMEM. */
static int
make_room(struct twi_iobuf *buf)
{
    if (buf->first + buf->n < buf->cap)
        return 0;
    struct twi_slice *slices = slices_of(buf);
    if (buf->first >= buf->cap / 2 && buf->first > 0) {
        memmove(slices, slices + buf->first, buf->n * sizeof *slices);
        buf->first = 0;
        return 0;
    }
    struct twi_slice *grown = twi_malloc(2 * buf->cap * sizeof *grown);
    if (!grown)
        return -ENOMEM;
    memcpy(grown, slices + buf->first, buf->n * sizeof *grown);
    free(buf->slices);
    buf->slices = grown;
    buf->first = 0;
    buf->cap *= 2;
    return 0;
}

/* The last block if this buf alone holds it and the last slice is its end. */
static struct twi_block *
open_tail(const struct twi_iobuf *buf)
{
    if (!buf->n)
        return NULL;
    struct twi_slice *last = &slices_of(buf)[buf->first + buf->n - 1];
    if (last->block->is_lent || !twi_block_exclusive(last->block) ||
        last->off + last->len != last->block->size)
        return NULL;
    return last->block;
}

uint8_t *
twi_iobuf_reserve(struct twi_iobuf *buf, size_t n)
{
    struct twi_block *tail = open_tail(buf);
    if (tail && tail->cap - tail->size >= n)
        return tail->data + tail->size;
    if (make_room(buf) || !(tail = twi_block_new(n)))
        return NULL;
    slices_of(buf)[buf->first + buf->n++] = (struct twi_slice){tail, 0, 0};
    return tail->data;
}

void
twi_iobuf_commit(struct twi_iobuf *buf, size_t used)
{
    struct twi_slice *last = &slices_of(buf)[buf->first + buf->n - 1];
    assert(used <= last->block->cap - last->block->size);
    last->block->size += (uint32_t)used;
    last->len += (uint32_t)used;
    buf->len += used;
    if (!last->len) { /* nothing was needed after all */
        twi_block_unref(last->block);
        buf->n--;
    }
}

int
twi_iobuf_append(struct twi_iobuf *buf, const void *data, size_t n)
{
    if (!n)
        return 0;
    uint8_t *room = twi_iobuf_reserve(buf, n);
    if (!room)
        return -ENOMEM;
    memcpy(room, data, n);
    twi_iobuf_commit(buf, n);
    return 0;
}

int
twi_iobuf_append_slice(struct twi_iobuf *buf, struct twi_slice slice)
{
    if (!slice.len)
        return 0;
    if (make_room(buf))
        return -ENOMEM;
    twi_block_ref(slice.block);
    slices_of(buf)[buf->first + buf->n++] = slice;
    buf->len += slice.len;
    return 0;
}

int
twi_iobuf_move(struct twi_iobuf *buf, struct twi_iobuf *from)
{
    struct twi_slice *slices = slices_of(from);
    uint32_t before = buf->n;
    for (uint32_t i = 0; i < from->n; i++) {
        if (make_room(buf)) {
            buf->n = before;
            return -ENOMEM;
        }
        slices_of(buf)[buf->first + buf->n++] = slices[from->first + i];
    }
    buf->len += from->len;
    free(from->slices);
    twi_iobuf_init(from);
    return 0;
}

int
twi_iobuf_gather(const struct twi_iobuf *buf, struct iovec *iov, int max,
                 size_t *bytes)
{
    const struct twi_slice *slice = slices_of(buf) + buf->first;
    int n = 0;
    for (; n < max && (uint32_t)n < buf->n; n++, slice++) {
        iov[n] = (struct iovec){slice->block->data + slice->off, slice->len};
        *bytes += slice->len;
    }
    return n;
}

void
twi_iobuf_drop(struct twi_iobuf *buf, size_t n)
{
    struct twi_slice *slices = slices_of(buf);
    assert(n <= buf->len);
    buf->len -= n;
    while (n > 0) {
        struct twi_slice *slice = &slices[buf->first];
        if (n < slice->len) {
            slice->off += (uint32_t)n;
            slice->len -= (uint32_t)n;
            return;
        }
        n -= slice->len;
        twi_block_unref(slice->block);
        buf->first++;
        buf->n--;
    }
    if (!buf->n)
        buf->first = 0;
}
