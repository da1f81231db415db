/* Bytes in reference-counted blocks.  A block is written by its one owner
 * while it fills; bytes that were handed on as a slice never change.  A lent
 * block only refers to memory of somebody else's and is never written.  An
 * iobuf is a list of slices, appended at one end and dropped at the other;
 * it belongs to one thread at a time, blocks may be shared by many. */
#ifndef TWI_IOBUF_H
#define TWI_IOBUF_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct twi_lent;

enum {
    TWI_BLOCK_HEADER = 32,
    TWI_BLOCK_SIZE = 8192 - TWI_BLOCK_HEADER, /* of an ordinary block */
    TWI_BLOCK_CACHE = 8, /* ordinary blocks that a thread keeps */
    TWI_IOBUF_INLINE = 2 /* slices without a separate array */
};

struct twi_block {
    _Atomic uint32_t refs;
    uint32_t cap;
    uint32_t size; /* bytes filled, by the owner */
    uint32_t is_lent;
    union {
        struct twi_block *next; /* in a thread's cache */
        struct twi_lent *lent;  /* the receipt of a lent one */
    };
    uint8_t *data; /* behind the header, or the lender's */
};
_Static_assert(sizeof(struct twi_block) == TWI_BLOCK_HEADER, "header size");

/* A block of at least `cap` bytes with one reference, NULL without memory. */
struct twi_block *twi_block_new(size_t cap);
/* A block that refers to n bytes of the caller's, with one reference; NULL
 * without memory or over 4 GiB.  The bytes must stay as they are until
 * tw_released has named the token. */
struct twi_block *twi_block_lend(const void *data, size_t n, uint64_t token);
/* Wait-free; any thread. */
void twi_block_ref(struct twi_block *block);
/* Frees it with the last reference; NULL is nothing.  Any thread. */
void twi_block_unref(struct twi_block *block);
/* The same for a share of the lender's own, who then collects by itself: its
 * housekeeper is not woken. */
void twi_block_unref_lender(struct twi_block *block);
/* 1 when the caller's reference is the only one. */
int twi_block_exclusive(struct twi_block *block);
/* Blocks and bytes handed out by twi_block_new and not yet freed. */
int64_t twi_block_live(void);
int64_t twi_block_live_bytes(void);

struct twi_slice {
    struct twi_block *block;
    uint32_t off, len;
};

struct twi_iobuf {
    struct twi_slice *slices; /* inline_ or on the heap */
    uint32_t first, n, cap;
    size_t len; /* bytes */
    struct twi_slice inline_[TWI_IOBUF_INLINE];
};

void twi_iobuf_init(struct twi_iobuf *buf);
/* Drops everything; the buf is empty and usable again. */
void twi_iobuf_clear(struct twi_iobuf *buf);
/* Room for n contiguous bytes behind the last; NULL without memory.  Valid
 * until the next call; twi_iobuf_commit makes `used` of them content. */
uint8_t *twi_iobuf_reserve(struct twi_iobuf *buf, size_t n);
void twi_iobuf_commit(struct twi_iobuf *buf, size_t used);
/* Copies; 0 or -ENOMEM (the buf is then as before). */
int twi_iobuf_append(struct twi_iobuf *buf, const void *data, size_t n);
/* Shares the slice's block; 0 or -ENOMEM. */
int twi_iobuf_append_slice(struct twi_iobuf *buf, struct twi_slice slice);
/* Takes all of `from`'s content behind `buf`'s; 0 or -ENOMEM (no change). */
int twi_iobuf_move(struct twi_iobuf *buf, struct twi_iobuf *from);
/* Up to max iovecs from the front; their number, bytes added to *bytes. */
int twi_iobuf_gather(const struct twi_iobuf *buf, struct iovec *iov, int max,
                     size_t *bytes);
/* Drops n bytes (at most len) from the front. */
void twi_iobuf_drop(struct twi_iobuf *buf, size_t n);

#endif
