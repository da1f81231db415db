/* A version and a reference count in one word: how ids stay safe.
 *
 * word = version (32) | references (32).  Even versions live (or are free),
 * odd ones have failed.  The opener's reference, the additional one, is given
 * up by whoever fails the object; the last unref of a failed object moves to
 * the next even version with no references, marks it free, and must recycle
 * it.
 *
 * A reader with a stale id may raise the count of any slot for a moment, the
 * free ones included; so counts are added to, never set, and a count does not
 * tell a free slot from an object that lives (two readers would take each
 * other's reference for its life): the mark does. */
#ifndef TWI_VREF_H
#define TWI_VREF_H

#include <assert.h>
#include <stdint.h>

#include "atomics.h"

#define VREF_ONE_VERSION (UINT64_C(1) << 32)
#define VREF_FREE (UINT64_C(1) << 31) /* no count gets there */

/* What versions of fresh slots start from; grows with every fork, so that a
 * parent's ids name nothing in its child.  Even. */
extern uint32_t twi_first_version;

/* Makes a free slot live with so many references, the additional one among
 * them; the version.  All at once: a walker may find and fail the object as
 * soon as it lives.  release: publishes what the opener wrote to address. */
static inline uint32_t
vref_open(_Atomic uint64_t *word, uint32_t references)
{
    uint64_t add = references;
    /* A fresh slot has version 0, which no id has, and no mark.  relaxed: only
     * the opener changes the version of a free slot. */
    if (load_relaxed(word) >> 32)
        add -= VREF_FREE;
    else
        add += VREF_ONE_VERSION * twi_first_version;
    uint64_t now =
        atomic_fetch_add_explicit(word, add, memory_order_release) + add;
    assert((now >> 32) % 2 == 0);
    assert(!(now & VREF_FREE));
    return (uint32_t)(now >> 32);
}

static inline uint32_t
vref_version(const _Atomic uint64_t *word)
{
    return (uint32_t)(load_acquire(word) >> 32);
}

/* For walkers over all slots: the version to address, or one that nothing has
 * (1) when the slot is free or its object has failed. */
static inline uint32_t
vref_look(const _Atomic uint64_t *word)
{
    uint64_t now = load_acquire(word);
    uint32_t version = (uint32_t)(now >> 32);
    return version % 2 || !version || now & VREF_FREE ? 1 : version;
}

static inline void
vref_ref(_Atomic uint64_t *word)
{
    /* relaxed: the caller has a reference already. */
    add_relaxed(word, 1);
}

/* 1: the caller must recycle the object and free the slot. */
static inline int
vref_unref(_Atomic uint64_t *word)
{
    /* release: what was done under the reference happens before the recycle;
     * pairs with the acquire of the compare-exchange below. */
    uint64_t now = atomic_fetch_sub_explicit(word, 1, memory_order_release) - 1;
    while ((uint32_t)now == 0 && (now >> 32) % 2) {
        uint64_t next = (now >> 32) + 1;
        if (!(uint32_t)next)
            next = 2; /* versions wrap around past 0 */
        if (atomic_compare_exchange_weak_explicit(
                word, &now, next << 32 | VREF_FREE, memory_order_acq_rel,
                memory_order_acquire))
            return 1;
    }
    return 0;
}

/* One more reference if the object of that version lives: 1, else 0, or -1 when
 * the caller must recycle the object that it looked at too late. */
static inline int
vref_address(_Atomic uint64_t *word, uint32_t version)
{
    /* No id has an odd version, and none 0, which is a fresh slot's. */
    if (version % 2 || !version)
        return 0;
    /* acquire: pairs with the opener's publication of the id. */
    uint64_t old = atomic_fetch_add_explicit(word, 1, memory_order_acquire);
    if (old >> 32 == version && !(old & VREF_FREE))
        return 1;
    return vref_unref(word) ? -1 : 0;
}

/* Turns the version odd: 1 for the one who did.  The winner gives up the
 * additional reference when it has cleaned up.  `version` is even. */
static inline int
vref_fail(_Atomic uint64_t *word, uint32_t version)
{
    uint64_t old = load_acquire(word);
    while (old >> 32 == version)
        if (atomic_compare_exchange_weak_explicit(
                word, &old, old + VREF_ONE_VERSION, memory_order_seq_cst,
                memory_order_acquire))
            return 1;
    return 0;
}

static inline uint64_t
vref_id(uint32_t version, uint32_t slot)
{
    return (uint64_t)version << 32 | slot;
}

#endif
