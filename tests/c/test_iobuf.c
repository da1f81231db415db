/* The buffers against plain arrays, with random operations and allocations
 * that fail; the accounting of blocks, and what a thread keeps. */
#include "iobuf.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "check.h"
#include "sys.h"

enum { BUFS = 3, CAP = 200000, OPERATIONS = 60000, IOVECS = 7 };

static unsigned long long seed;
static struct twi_iobuf bufs[BUFS];
static uint8_t model[BUFS][CAP];
static size_t model_len[BUFS];

static int fail_percent, failed;

static void *
flaky_malloc(size_t n)
{
    if ((int)((check_random(&seed) >> 20) % 100) < fail_percent) {
        failed = 1;
        return NULL;
    }
    return malloc(n);
}

static size_t
below(size_t bound)
{
    return (size_t)(check_random(&seed) >> 11) % bound;
}

/* Mostly small, sometimes around a block's size, sometimes large. */
static size_t
any_size(void)
{
    switch (below(8)) {
    case 0:
        return TWI_BLOCK_SIZE - 2 + below(5);
    case 1:
        return TWI_BLOCK_SIZE / 2 - 2 + below(5);
    case 2:
        return below(40000);
    case 3:
        return 0;
    default:
        return below(200);
    }
}

static void
compare(int b)
{
    CHECK_EQ(bufs[b].len, model_len[b]);
    /* All of it, by gather; piece by piece it agrees. */
    struct iovec iov[IOVECS];
    size_t bytes = 0, at = 0;
    int n = twi_iobuf_gather(&bufs[b], iov, IOVECS, &bytes);
    CHECK(n <= IOVECS);
    for (int i = 0; i < n; i++) {
        CHECK(at + iov[i].iov_len <= model_len[b]);
        if (at + iov[i].iov_len > model_len[b])
            return;
        CHECK(!memcmp(iov[i].iov_base, model[b] + at, iov[i].iov_len));
        at += iov[i].iov_len;
    }
    CHECK_EQ(at, bytes);
    CHECK(n == IOVECS || bytes == model_len[b]);
}

static void
drop(int b, size_t n)
{
    twi_iobuf_drop(&bufs[b], n);
    memmove(model[b], model[b] + n, model_len[b] - n);
    model_len[b] -= n;
}

static void
one_operation(void)
{
    int b = (int)below(BUFS), other = (int)below(BUFS);
    size_t n = any_size();
    uint8_t data[40000];
    if (model_len[b] + n > CAP)
        n = 0;
    for (size_t i = 0; i < n; i++)
        data[i] = (uint8_t)check_random(&seed);
    failed = 0;
    switch (below(9)) {
    case 0:
    case 1: {
        int rc = twi_iobuf_append(&bufs[b], data, n);
        CHECK_EQ(rc, failed ? -ENOMEM : 0);
        if (rc == 0) {
            memcpy(model[b] + model_len[b], data, n);
            model_len[b] += n;
        }
        break;
    }
    case 2: { /* reserve more than is used */
        uint8_t *room = twi_iobuf_reserve(&bufs[b], n + below(100) + 1);
        CHECK_EQ(room == NULL, failed);
        if (room) {
            if (n)
                memcpy(room, data, n);
            twi_iobuf_commit(&bufs[b], n);
            memcpy(model[b] + model_len[b], data, n);
            model_len[b] += n;
        }
        break;
    }
    case 3: { /* a shared slice */
        struct twi_block *block = twi_block_new(n ? n : 1);
        if (!block)
            break;
        failed = 0;
        memcpy(block->data, data, n);
        block->size = (uint32_t)n;
        uint32_t off = (uint32_t)below(n + 1);
        uint32_t len = (uint32_t)below(n - off + 1);
        int rc = twi_iobuf_append_slice(&bufs[b],
                                        (struct twi_slice){block, off, len});
        CHECK_EQ(rc, failed ? -ENOMEM : 0);
        CHECK_EQ(twi_block_exclusive(block), rc || !len);
        if (rc == 0) {
            memcpy(model[b] + model_len[b], data + off, len);
            model_len[b] += len;
        }
        twi_block_unref(block);
        break;
    }
    case 4: { /* one buf's content shared by another */
        const struct twi_iobuf *from = &bufs[other];
        if (b == other || !from->n || model_len[b] + model_len[other] > CAP)
            break;
        const struct twi_slice *slices =
            from->slices ? from->slices : from->inline_;
        struct twi_slice first = slices[from->first];
        if (twi_iobuf_append_slice(&bufs[b], first) == 0) {
            memcpy(model[b] + model_len[b], model[other], first.len);
            model_len[b] += first.len;
        }
        break;
    }
    case 5: {
        if (b == other || model_len[b] + model_len[other] > CAP)
            break;
        int rc = twi_iobuf_move(&bufs[b], &bufs[other]);
        CHECK_EQ(rc, failed ? -ENOMEM : 0);
        if (rc == 0) {
            memcpy(model[b] + model_len[b], model[other], model_len[other]);
            model_len[b] += model_len[other];
            model_len[other] = 0;
        }
        compare(other);
        break;
    }
    case 6:
        drop(b, below(model_len[b] + 1));
        break;
    case 7:
        drop(b, below(100) < model_len[b] ? below(100) % (model_len[b] + 1) : 0);
        break;
    case 8:
        if (below(10) == 0) {
            twi_iobuf_clear(&bufs[b]);
            model_len[b] = 0;
        } else
            drop(b, model_len[b]);
        break;
    }
    compare(b);
}

static void *
use_and_leave(void *arg)
{
    struct twi_block *blocks[3 * TWI_BLOCK_CACHE];
    (void)arg;
    /* More than the thread may keep, all given back: the rest is freed, what
     * it keeps when it ends (LeakSanitizer looks). */
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 3 * TWI_BLOCK_CACHE; i++)
            blocks[i] = twi_block_new(TWI_BLOCK_SIZE);
        for (int i = 0; i < 3 * TWI_BLOCK_CACHE; i++)
            twi_block_unref(blocks[i]);
    }
    return NULL;
}

static int mallocs;

static void *
counted_malloc(size_t n)
{
    mallocs++;
    return malloc(n);
}

/* R8: what a thread keeps of freed blocks is bounded. */
static void
test_blocks(void)
{
    struct twi_block *blocks[2 * TWI_BLOCK_CACHE];
    twi_sys.malloc = counted_malloc;
    /* Accounting; sizes near an ordinary block's become one. */
    struct twi_block *block = twi_block_new(10);
    CHECK_EQ(block->cap, 10);
    CHECK_EQ(twi_block_live(), 1);
    CHECK_EQ(twi_block_live_bytes(), 10);
    CHECK(twi_block_exclusive(block));
    twi_block_ref(block);
    CHECK(!twi_block_exclusive(block));
    twi_block_unref(block);
    twi_block_unref(block);
    twi_block_unref(NULL);
    CHECK_EQ(twi_block_live(), 0);
    CHECK_EQ(twi_block_live_bytes(), 0);
    block = twi_block_new(TWI_BLOCK_SIZE / 2 + 1);
    CHECK_EQ(block->cap, TWI_BLOCK_SIZE);
    twi_block_unref(block);
    /* A thread keeps so many ordinary blocks and no more. */
    for (int i = 0; i < 2 * TWI_BLOCK_CACHE; i++)
        blocks[i] = twi_block_new(TWI_BLOCK_SIZE);
    for (int i = 0; i < 2 * TWI_BLOCK_CACHE; i++)
        twi_block_unref(blocks[i]);
    CHECK_EQ(twi_block_live_bytes(), 0);
    mallocs = 0;
    for (int i = 0; i < 2 * TWI_BLOCK_CACHE; i++)
        blocks[i] = twi_block_new(TWI_BLOCK_SIZE);
    CHECK_EQ(mallocs, TWI_BLOCK_CACHE);
    for (int i = 0; i < 2 * TWI_BLOCK_CACHE; i++)
        twi_block_unref(blocks[i]);
    /* Sizes no block has. */
    mallocs = 0;
    CHECK(!twi_block_new(SIZE_MAX));
    CHECK(!twi_block_new((size_t)UINT32_MAX - TWI_BLOCK_HEADER + 1));
    CHECK_EQ(mallocs, 0);
    pthread_t thread;
    if (pthread_create(&thread, NULL, use_and_leave, NULL) == 0)
        pthread_join(thread, NULL);
    CHECK_EQ(twi_block_live(), 0);
}

int
main(void)
{
    seed = check_seed();
    test_blocks();
    twi_sys.malloc = flaky_malloc;
    for (int i = 0; i < BUFS; i++)
        twi_iobuf_init(&bufs[i]);
    for (int i = 0; i < OPERATIONS && !check_failures; i++) {
        /* One stretch in four has no luck with memory. */
        fail_percent = i / 5000 % 4 == 3 ? 30 : 0;
        one_operation();
    }
    for (int i = 0; i < BUFS; i++) {
        twi_iobuf_clear(&bufs[i]);
        CHECK_EQ(bufs[i].len, 0);
        CHECK_EQ(bufs[i].n, 0);
        CHECK(!bufs[i].slices);
    }
    CHECK_EQ(twi_block_live(), 0);
    CHECK_EQ(twi_block_live_bytes(), 0);
    return check_done();
}
