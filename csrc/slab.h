/* Slots of one size that are handed out and taken back by number, from any
 * thread, without a lock.  Their memory is type-stable: never unmapped while
 * the slab lives, and a slot's content survives give and take, so that a
 * version kept in it can tell its tenants apart.
 *
 * Freed slots are not filled with a pattern, in no build: walkers and late
 * readers look legally at fields of free slots, which each owner would have to
 * spare: every vref, a socket's generation, fd and error, a call's and a
 * request's socket, a call's view, a server's `closed`, an inbox's fd and corks, a worker's
 * sleeper and started_ns.  What remains is reset by the next tenant's opening,
 * and ids prove that nobody else comes by. */
#ifndef TWI_SLAB_H
#define TWI_SLAB_H

#include <stddef.h>
#include <stdint.h>

enum {
    TWI_SLAB_CHUNK = 256,
    TWI_SLAB_CHUNKS = 4096,
    TWI_SLAB_MAX = TWI_SLAB_CHUNK * TWI_SLAB_CHUNKS /* slots in one slab */
};
#define TWI_SLAB_NONE UINT32_MAX

struct twi_slab {
    size_t size;
    _Atomic uint64_t free; /* tag (32) | first free slot + 1 (32) */
    _Atomic uint32_t used; /* slots ever handed out */
    _Atomic int64_t live;
    void *_Atomic chunks[TWI_SLAB_CHUNKS];
};

/* `size` is that of one object.  Objects start zeroed. */
void twi_slab_init(struct twi_slab *slab, size_t size);
/* Frees the memory; nobody may hold a slot's address. */
void twi_slab_fini(struct twi_slab *slab);
/* A slot's number, TWI_SLAB_NONE when the slab is full or memory is short.
 * Lock-free. */
uint32_t twi_slab_take(struct twi_slab *slab);
/* Lock-free. */
void twi_slab_give(struct twi_slab *slab, uint32_t slot);
/* The object of a slot that was ever taken, else NULL.  Wait-free. */
void *twi_slab_at(struct twi_slab *slab, uint32_t slot);
/* One past the highest slot ever taken: for walks over all slots. */
uint32_t twi_slab_end(struct twi_slab *slab);

#endif
