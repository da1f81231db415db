#include "slab.h"

#include <assert.h>
#include <stdlib.h>

#include "atomics.h"
#include "sys.h"

/* The free list is a stack of slot numbers; `next` stands before each object.
 * The head carries a tag that grows with every pop, so that a compare-exchange
 * cannot mistake a slot that was taken and given back in between (ABA). */
struct header {
    _Alignas(16) _Atomic uint32_t next; /* next free slot + 1 */
};

static size_t
stride(const struct twi_slab *slab)
{
    return (sizeof(struct header) + slab->size + 63) & ~(size_t)63;
}

/* NULL when there is no such chunk. */
static struct header *
header_of(struct twi_slab *slab, uint32_t slot)
{
    /* acquire: pairs with the release that published the chunk. */
    char *chunk = load_acquire(&slab->chunks[slot / TWI_SLAB_CHUNK]);
    if (!chunk)
        return NULL;
    return (struct header *)(chunk + (slot % TWI_SLAB_CHUNK) * stride(slab));
}

void
twi_slab_init(struct twi_slab *slab, size_t size)
{
    *slab = (struct twi_slab){.size = size};
}

void
twi_slab_fini(struct twi_slab *slab)
{
    for (int i = 0; i < TWI_SLAB_CHUNKS; i++) {
        free(load_relaxed(&slab->chunks[i]));
        store_relaxed(&slab->chunks[i], NULL);
    }
}

static int
ensure_chunk(struct twi_slab *slab, uint32_t index)
{
    /* relaxed: header_of acquires before anybody touches it. */
    if (load_relaxed(&slab->chunks[index]))
        return 1;
    void *fresh = twi_zalloc(TWI_SLAB_CHUNK * stride(slab)), *none = NULL;
    if (!fresh)
        return 0;
    /* release: pairs with the acquire in header_of and twi_slab_at. */
    if (!atomic_compare_exchange_strong_explicit(
            &slab->chunks[index], &none, fresh, memory_order_release,
            memory_order_relaxed))
        free(fresh); /* another thread was first */
    return 1;
}

uint32_t
twi_slab_take(struct twi_slab *slab)
{
    /* acquire: pairs with the release in give, for `next` and its chunk. */
    uint64_t head = load_acquire(&slab->free);
    while ((uint32_t)head) {
        uint32_t slot = (uint32_t)head - 1;
        uint32_t next = load_relaxed(&header_of(slab, slot)->next);
        uint64_t tag = (head >> 32) + 1;
        if (atomic_compare_exchange_weak_explicit(
                &slab->free, &head, tag << 32 | next, memory_order_acquire,
                memory_order_acquire)) {
            add_relaxed(&slab->live, 1);
            return slot;
        }
    }
    uint32_t slot = load_relaxed(&slab->used);
    do {
        if (slot >= TWI_SLAB_MAX || !ensure_chunk(slab, slot / TWI_SLAB_CHUNK))
            return TWI_SLAB_NONE;
        /* release: who reads `used` finds the chunk. */
    } while (!atomic_compare_exchange_weak_explicit(
        &slab->used, &slot, slot + 1, memory_order_release,
        memory_order_relaxed));
    add_relaxed(&slab->live, 1);
    return slot;
}

void
twi_slab_give(struct twi_slab *slab, uint32_t slot)
{
    assert(slot < load_relaxed(&slab->used));
    struct header *header = header_of(slab, slot);
    uint64_t head = load_relaxed(&slab->free);
    sub_relaxed(&slab->live, 1);
    do {
        store_relaxed(&header->next, (uint32_t)head);
        /* release: publishes `next` and the object's last state to take. */
    } while (!atomic_compare_exchange_weak_explicit(
        &slab->free, &head, (head & ~UINT64_C(0xffffffff)) | (slot + 1),
        memory_order_release, memory_order_relaxed));
}

void *
twi_slab_at(struct twi_slab *slab, uint32_t slot)
{
    struct header *header = slot < TWI_SLAB_MAX ? header_of(slab, slot) : NULL;
    return header ? header + 1 : NULL;
}

uint32_t
twi_slab_end(struct twi_slab *slab)
{
    return load_acquire(&slab->used);
}
