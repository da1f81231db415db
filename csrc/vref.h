/* A version and a reference count in one word: how ids stay safe.
 *
 * word = version (32) | references (32).  Even versions live (or are free),
 * odd ones have failed.  The opener's reference, the additional one, is given
 * up by whoever fails the object; the last unref of a failed object moves to
 * the next even version with no references, marks it free, and must recycle
 * it.
 *
 *            open                 fail               last unref
 *   free v -------> v, references ----> v+1, refs -------------> free v+2
 *                     ^                   |                         ^
 *                     | revive            | last unref,             | retire
 *                     |                   v if kept                 |
 *                     +-------------- v+1, UNHELD ------------------+
 *
 * A kept object is not recycled by its last unref, which marks it as unheld
 * instead: from then on it is its owner's alone, who revives it under the same
 * version, and so the same ids, or retires it.  Its ids name nothing as long
 * as it has failed, and nothing else ever.
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
/* Marks, where no count gets. */
#define VREF_FREE (UINT64_C(1) << 31)
#define VREF_KEPT (UINT64_C(1) << 30)
#define VREF_UNHELD (UINT64_C(1) << 29)
#define VREF_COUNT (VREF_UNHELD - 1)

/* What the last unref leaves to its caller. */
enum {
    VREF_HELD,    /* nothing: others hold it, or it is looked after */
    VREF_RECYCLE, /* recycle the object and free the slot */
    VREF_RESET    /* it is unheld: revive or retire it, now or later */
};

/* What versions of fresh slots start from; grows with every fork, so that a
 * parent's ids name nothing in its child.  Even. */
extern uint32_t twi_first_version;

/* Makes a free slot live with so many references, the additional one among
 * them, and VREF_KEPT if it is to be kept; the version.  All at once: a walker
 * may find and fail the object as soon as it lives.  release: publishes what
 * the opener wrote to address. */
static inline uint32_t
vref_open(_Atomic uint64_t *word, uint64_t references)
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
    /* relaxed: nothing is read on the strength of it but by who holds the
     * object or addresses it. */
    return (uint32_t)(load_relaxed(word) >> 32);
}

/* For walkers over all slots: the version to address, or one that nothing has
 * (1) when the slot is free or its object has failed. */
static inline uint32_t
vref_look(const _Atomic uint64_t *word)
{
    uint64_t now = load_relaxed(word); /* address compares, and acquires */
    uint32_t version = (uint32_t)(now >> 32);
    return version % 2 || !version || now & VREF_FREE ? 1 : version;
}

static inline void
vref_ref(_Atomic uint64_t *word)
{
    /* relaxed: the caller has a reference already. */
    add_relaxed(word, 1);
}

static inline uint64_t
vref_next_version(uint64_t version)
{
    return version == UINT32_MAX ? 2 : version + 1; /* around, past 0 */
}

/* One reference less; VREF_HELD, VREF_RECYCLE or VREF_RESET. */
static inline int
vref_unref(_Atomic uint64_t *word)
{
    /* release: what was done under the reference happens before the recycle;
     * pairs with the acquire of the compare-exchange below. */
    uint64_t now = atomic_fetch_sub_explicit(word, 1, memory_order_release) - 1;
    while (!(now & (VREF_COUNT | VREF_UNHELD)) && (now >> 32) % 2) {
        uint64_t next = now & VREF_KEPT
                            ? now | VREF_UNHELD
                            : vref_next_version(now >> 32) << 32 | VREF_FREE;
        int what = now & VREF_KEPT ? VREF_RESET : VREF_RECYCLE;
        if (atomic_compare_exchange_weak_explicit(word, &now, next,
                                                  memory_order_acq_rel,
                                                  memory_order_acquire))
            return what;
    }
    return VREF_HELD;
}

/* Whether there are just so many references.  Who has one and has taken away
 * whatever others find the object by can rely on a yes, and sees what all the
 * others did under theirs, if they look, once they have addressed it, whether
 * they would still find it. */
static inline int
vref_held_by(_Atomic uint64_t *word, uint64_t references)
{
    /* An exchange and no load: one who addresses it later reads from this, and
     * so sees what we took away.  release: for the acquire in vref_address;
     * acquire: pairs with the release in vref_unref. */
    uint64_t now = atomic_fetch_add_explicit(word, 0, memory_order_acq_rel);
    return (now & VREF_COUNT) == references;
}

/* One more reference if the object of that version lives: 1, else 0, or what
 * is left to the caller, who looked too late, of the object that it looked at:
 * -VREF_RECYCLE or -VREF_RESET. */
static inline int
vref_address(_Atomic uint64_t *word, uint32_t version)
{
    /* No id has an odd version, and none 0, which is a fresh slot's. */
    if (version % 2 || !version)
        return 0;
    /* acquire: pairs with the publication of the id by who opened the object,
     * or revived it. */
    uint64_t old = atomic_fetch_add_explicit(word, 1, memory_order_acquire);
    if (old >> 32 == version && !(old & VREF_FREE))
        return 1;
    return -vref_unref(word);
}

/* Turns the version odd: 1 for the one who did.  The winner gives up the
 * additional reference when it has cleaned up.  `version` is even. */
static inline int
vref_fail(_Atomic uint64_t *word, uint32_t version)
{
    uint64_t old = load_relaxed(word);
    while (old >> 32 == version)
        if (atomic_compare_exchange_weak_explicit(
                word, &old, old + VREF_ONE_VERSION, memory_order_seq_cst,
                memory_order_relaxed))
            return 1;
    return 0;
}

/* Kept no longer: the last unref, if it has not come yet, recycles. */
static inline void
vref_forsake(_Atomic uint64_t *word)
{
    /* relaxed: orders nothing; the unref's compare-exchange sees it or not,
     * and who finds the object unheld looks at what the owner wrote. */
    atomic_fetch_and_explicit(word, ~VREF_KEPT, memory_order_relaxed);
}

/* An unheld object lives again under its old version, with so many references,
 * the additional one among them.  Added, as at the opening: late readers may
 * be counting. */
static inline void
vref_revive(_Atomic uint64_t *word, uint32_t references)
{
    /* release: publishes the object as it is now to address. */
    uint64_t old = atomic_fetch_add_explicit(
        word, references - VREF_ONE_VERSION - VREF_UNHELD,
        memory_order_release);
    assert(old & VREF_UNHELD);
    assert((old >> 32) % 2);
    (void)old;
}

/* An unheld object is over: the caller recycles it and frees the slot. */
static inline void
vref_retire(_Atomic uint64_t *word)
{
    /* relaxed: the unref that left it unheld has acquired it, and the slab
     * hands the slot on; only the count is anybody else's. */
    uint64_t now = load_relaxed(word), next;
    assert(now & VREF_UNHELD);
    do
        next = vref_next_version(now >> 32) << 32 | VREF_FREE |
               (now & VREF_COUNT);
    while (!atomic_compare_exchange_weak_explicit(
        word, &now, next, memory_order_relaxed, memory_order_relaxed));
}

static inline uint64_t
vref_id(uint32_t version, uint32_t slot)
{
    return (uint64_t)version << 32 | slot;
}

#endif
