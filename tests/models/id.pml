/* Ids: csrc/vref.h, and what socket.c and peer.c build on it; to be read beside
 * them.
 *
 * One slot.  Its first tenant is kept by its owner: the last unref of the failed
 * socket does not recycle it but marks it unheld, which one does; that one has
 * it reset by the poller, and then it is its owner's, who revives it under its
 * old version or retires it.  The second tenant is not kept.  Beside them:
 * users with the first one's id, stale or not, which they address and hold;
 * whoever fails it; walkers over all slots (vref_look); the owner, who closes at
 * any time; and an event that epoll_wait returned for one binding and that is
 * looked at at any time later.
 *
 * What is abstracted away: memory orders (every step is one access to the word,
 * sequentially consistent); what the owner does under its lock is one step.
 *
 * What must hold: who holds a reference sees neither reset nor recycling; each
 * life is reset by one, each tenant recycled by one; an id addresses its own
 * tenant only, while it lives; an event reaches only the binding it is of; and
 * in the end the slot is free, nobody counted. */

#ifndef FAILS
#define FAILS 2  /* how often it is failed by others, one life each or not */
#endif
#ifndef USES
#define USES 1   /* of each user */
#endif
#ifndef KEEP
#define KEEP 1   /* 0: nor is the first tenant kept */
#endif

/* The word of vref.h, with fewer bits. */
#define ONE_VERSION 128
#define FREE 64
#define KEPT 32
#define UNHELD 16
#define COUNT 15
#define VERSION(w) ((w) / ONE_VERSION)
#define ODD(w) (VERSION(w) % 2)
#define FIRST 2 /* the version of the first tenant */
short word = FIRST * ONE_VERSION + FREE;

#define HELD 0
#define RECYCLE 1
#define RESET 2

/* struct twi_socket: its generation, what epoll has for its descriptor (0: it
 * is out of epoll), the leftover that has it reset. */
byte generation, bound;
bit leftover, slot_free = 1;
/* struct twi_peer */
bit closed, down;

/* What the checker knows. */
byte tenant;           /* whose memory it is */
byte holders, recycled;
bit unheld_by_one;     /* reset is on its way, or it is its owner's */

#define THREAD short now, next; byte what, version; bit got

#define LAST(w) (!((w) & (COUNT | UNHELD)) && ODD(w))

/* vref_unref; held: the reference was one that address gave */
inline vref_unref(held)
{
    atomic {
        assert(word & COUNT && holders >= held);
        holders = holders - held;
        word--;
        now = (LAST(word) -> word : 0)
    };
    if
    :: now ->
#ifdef FAULT_1 /* who finds no references acts, without the exchange */
        atomic {
            what = (now & KEPT -> RESET : RECYCLE);
            word = (what == RESET -> word | UNHELD
                    : (VERSION(word) + 1) * ONE_VERSION + FREE);
            now = 0
        }
#else
        do
        :: atomic { now && word == now -> /* the compare-exchange */
                what = (now & KEPT -> RESET : RECYCLE);
                word = (what == RESET -> word | UNHELD
                        : (VERSION(now) + 1) * ONE_VERSION + FREE);
                now = 0 }
        :: atomic { now && word != now -> now = (LAST(word) -> word : 0) }
        :: !now -> break
        od
#endif
    :: !now
    fi
}

/* recycle of socket.c: the one who was told to.  No step in between: nobody
 * else may hold it, which is what is asserted. */
inline recycle()
{
    atomic {
        assert(!holders && tenant);
        bound = 0; tenant = 0; recycled++;
#ifndef FAULT_2 /* late events match the next tenant's binding */
        generation++;
#endif
        assert(!slot_free);
        slot_free = 1
    }
}

/* last_unref of socket.c, what vref_unref said. */
inline last_unref()
{
    if
    :: atomic { what == RECYCLE -> what = HELD }; recycle()
    :: atomic { what == RESET -> what = HELD;
            assert(!unheld_by_one && !holders);
            unheld_by_one = 1; leftover = 1 }
    :: what == HELD
    fi
}

inline unref(held)
{
    vref_unref(held);
    last_unref()
}

/* vref_address and what socket.c adds: `got` when it is held. */
inline address(v)
{
    if
    :: atomic { v % 2 == 0 -> now = word; word++;
#ifdef FAULT_3 /* the mark is not looked at */
            got = (VERSION(now) == v);
#else
            got = (VERSION(now) == v && !(now & FREE));
#endif
            now = 0;
            if
            :: got -> assert(tenant == 1 + (v != FIRST) && !unheld_by_one);
                holders++
            :: else
            fi
        };
        if
        :: got
        :: !got -> unref(0)
        fi
    :: v % 2
    fi
}

inline release()
{
    got = 0;
    unref(1)
}

/* vref_look: the version, or 1 */
inline look()
{
#ifdef FAULT_3
    version = (ODD(word) -> 1 : VERSION(word))
#else
    version = (ODD(word) || word & FREE -> 1 : VERSION(word))
#endif
}

/* twi_socket_fail by one who holds it: vref_fail, then the additional
 * reference. */
inline fail()
{
    atomic {
        if
        :: !ODD(word) -> word = word + ONE_VERSION; what = 1
        :: else -> what = 0
        fi
    };
    if
    :: atomic { what == 1 -> what = HELD }; unref(0)
    :: what == 0
    fi
}

/* twi_socket_attach */
inline attach()
{
    generation++;
    bound = generation
}

/* vref_open, with references and marks. */
inline open(add, who)
{
    atomic { slot_free -> slot_free = 0 };
    atomic {
        tenant = who;
        assert(word & FREE);
#ifdef FAULT_4 /* the count is set, not added to */
        word = VERSION(word) * ONE_VERSION + (add)
#else
        word = word - FREE + (add)
#endif
        ; holders++ /* the opener's own */
    }
}

/* vref_retire, then recycle. */
inline retire()
{
    now = word;
    assert(now & UNHELD);
    do
    :: atomic { next == 0 && word == now ->
            next = (VERSION(now) + 1) * ONE_VERSION + FREE + (now & COUNT);
            word = next; unheld_by_one = 0 }
    :: atomic { next == 0 && word != now -> now = word }
    :: atomic { next -> next = 0; now = 0; break }
    od;
    recycle()
}

/* vref_revive, the owner's lock held; a reference for the caller. */
inline vref_revive()
{
    assert(word & UNHELD && ODD(word) && unheld_by_one);
    unheld_by_one = 0; holders++;
#ifdef FAULT_5 /* late readers' counts are lost */
    word = (VERSION(word) - 1) * ONE_VERSION + (word & KEPT) + 2
#else
    word = word + 2 - ONE_VERSION - UNHELD
#endif
}

/* The owner of the first tenant: twi_socket_open, then close_peer. */
proctype owner()
{
    THREAD;
    open((KEEP -> KEPT + 2 : 2), 1);
    attach();
    release();
#ifdef FAULT_6 /* retires what is unheld, its reset on the way or not */
    atomic { closed = 1; next = (word & UNHELD) != 0; down = 0 };
#else
    atomic { closed = 1; next = down; down = 0 };
#endif
    if
    :: atomic { next -> next = 0 }; retire()
    :: atomic { !next -> word = word & (~KEPT) } /* vref_forsake */
    fi;
    address(FIRST);
    if
    :: got -> fail(); release()
    :: !got
    fi
}

/* With the baton: the reset, peer_unheld, the health check. */
proctype poller()
{
    THREAD;
end:
    do
    :: atomic { leftover -> leftover = 0;
            assert(!holders && unheld_by_one && tenant == 1) };
        atomic { bound = 0; generation++ }; /* reset */
        /* peer_unheld: under the owner's lock is one step */
        if
#ifndef FAULT_7 /* does not look whether the owner has closed */
        :: atomic { closed -> skip }; retire()
#endif
        :: atomic { !closed -> down = 1 }
#ifdef FAULT_7
        :: true ->
#else
        :: atomic { !closed ->
#endif
            vref_revive()
#ifndef FAULT_7
        }
#endif
            ; attach(); release()
        fi
    :: atomic { down -> down = 0; /* the check went well, or was given up */
#ifdef FAULT_8 /* revives it when the lock is free again */
        };
        atomic {
#endif
            vref_revive() };
        attach();
        release()
    od
}

/* Whoever has the first tenant's id. */
proctype user()
{
    THREAD;
    byte n;
    do
    :: atomic { n < USES -> n++ };
        address(FIRST);
        if
        :: got -> release()
        :: !got
        fi
    :: atomic { n == USES -> n = 0; break }
    od
}

proctype failer()
{
    THREAD;
    byte n;
    do
    :: atomic { n < FAILS -> n++ };
        address(FIRST);
        if
        :: got -> fail(); release()
        :: !got
        fi
    :: atomic { n == FAILS -> n = 0; break }
    od
}

/* twi_socket_each */
proctype walker()
{
    THREAD;
    look();
    address(version);
    if
    :: got -> version = 0; release()
    :: !got -> version = 0
    fi
}

/* twi_socket_event, of an event that epoll_wait returned before. */
proctype event()
{
    THREAD;
    byte data;
end:
    atomic { bound -> data = bound };
    look();
    address(version);
    if
    :: got ->
        version = 0;
        if
        :: atomic { generation == data -> assert(bound == data) }
        :: generation != data
        fi;
        release()
    :: !got -> version = 0
    fi;
    data = 0
}

/* The next tenant: not kept. */
proctype tenant_two()
{
    THREAD;
    recycled == 1;
    open(2, 2);
    attach();
    fail();
    release()
}

init
{
    atomic {
        run owner();
        run poller();
#if USES
        run user();
#endif
#if FAILS
        run failer();
#endif
#ifdef WALKER
        run walker();
#endif
#ifdef EVENT
        run event();
#endif
        run tenant_two()
    };
    timeout;
    assert(recycled == 2 && slot_free);
    assert(word & FREE && !(word & (COUNT | KEPT | UNHELD)))
}
