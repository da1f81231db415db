/* The write stack of csrc/wstack.{h,c}, to be read beside it.
 *
 * What is modelled: push (exchange, UNLINKED, link), the states of the
 * writer's role, park with its second look, take, fetch_newer, free_finished,
 * leave, drain, run with short writes, EAGAIN and errors, a message after which
 * the writing side is shut, twi_wstack_failed beside all of it, and
 * twi_cork_flush beside all of it (the cork is the writer's role, handed from
 * thread to thread by one compare-exchange).
 *
 * What is abstracted away:
 *   - memory orders: every step is sequentially consistent;
 *   - a step is one access to what threads share (head, next, state, error,
 *     connected, the armed watch, the list of leftovers); what only the role's
 *     holder touches (first, last, done, the bytes) joins the step before it,
 *     and that it is the holder who does is asserted;
 *   - a message has one byte; a gather takes at most IOVECS messages, a turn's
 *     budget is BUDGET (the code: 256 pieces, 256 KiB), a cork's CORK_MESSAGES;
 *   - the kernel takes all, or (AGAINS times) only a part or nothing, or breaks;
 *     an armed EPOLLOUT fires once, at any time after arming;
 *   - take's first look, which only saves its compare-exchange;
 *   - a message is its node, once: no address comes twice.  It need not: a
 *     compare-exchange on the head compares with the holder's last node only,
 *     and that this one is live is asserted.
 *
 * Everything counted is bounded and spin-waits are guards, so behaviour is
 * finite.  When nothing can move any more, init flushes the cork as its owner
 * would at the end of a turn, and judges what is left. */

#ifndef WRITERS
#define WRITERS 3
#endif
#ifndef MESSAGES
#define MESSAGES 2        /* of each writer */
#endif
#ifndef CORKED_WRITERS
#define CORKED_WRITERS 1  /* the first so many push corked */
#endif
#ifndef AGAINS
#define AGAINS 1          /* writes that are short */
#endif
#ifndef CONNECT
#define CONNECT 0         /* 1: it is not connected when it begins */
#endif
#ifndef FAIL
#define FAIL 1            /* 1: another thread fails the owner */
#endif
#ifndef BREAK
#define BREAK 0           /* 1: a write may fail */
#endif
#ifndef SHUT
#define SHUT 0            /* 1: the last writer's last message shuts the writing
                           * side behind it; reading goes on */
#endif
#ifndef TICK
#define TICK 0            /* 1: another thread flushes the cork once */
#endif
#ifndef IOVECS
#define IOVECS 2
#endif
#ifndef BUDGET
#define BUDGET 2
#endif
#define CORK_MESSAGES 2
#define NODES (WRITERS * MESSAGES)
/* Message m of writer w, and back. */
#define NODE(w, m) ((w) * MESSAGES + (m) + 1)
#define WHOSE(x) (((x) - 1) / MESSAGES)
#define WHICH(x) (((x) - 1) % MESSAGES)
#define URGENT(x) (WHOSE(x) >= CORKED_WRITERS) /* pushed uncorked */
#define UNLINKED 255

#define RUNNING 0         /* or idle: the head tells */
#define CORKED 1
#define POLLOUT 2
#define READY 3
#define CONNECTING 4
/* What a turn of run's loop comes to, besides parking as one of these. */
#define NEWER 5
#define LEAVE 6
#define DRAIN 7
#define BROKEN 8

/* struct twi_wstack */
byte head, state, corked;
byte first, last;
/* struct twi_wnode; 0 is no node */
byte next[NODES + 1];
bit done[NODES + 1];
/* the owner, its watch, the list of leftovers */
bit error, shut, connected, armed, again;
byte agains = AGAINS;
bit may_break = BREAK;

/* What the checker knows. */
byte holder;                   /* who holds the role, + 1 */
bit live[NODES + 1];           /* pushed and not yet freed */
byte over[WRITERS];            /* messages completed; the next one's number */
byte refused[WRITERS];
byte finished;                 /* writers that returned for good */
bit pushed[WRITERS];

/* Writers that are alike push for the first time in the order of their numbers:
 * every other behaviour is one of these with the numbers changed. */
#define IN_TURN (me == CORKED_WRITERS || pushed[me - 1])

#define THREAD \
    byte h, node, newer, n, k, mylast, mynode, budget, act; \
    bit go, flag

inline mine(me) { assert(holder == me + 1) }

/* twi_wstack_take: `go` if the role is ours now. */
inline take(me, s)
{
#ifdef FAULT_1 /* looks and stores instead of compare-exchange */
    if
    :: state == s -> atomic { state = RUNNING; holder = me + 1; go = 1 }
    :: state != s -> go = 0
    fi
#else
    atomic {
        if
        :: state == s -> assert(!holder);
            state = RUNNING; holder = me + 1; go = 1
        :: else -> go = 0
        fi
    }
#endif
}

/* Links what was pushed after `last` behind it, oldest first.  Waits for
 * pushers that are between their two instructions. */
inline fetch_newer(me)
{
    node = h;
    do
    :: node != last ->
        assert(live[node]);
#ifndef FAULT_2 /* does not wait */
        next[node] != UNLINKED; /* cpu_relax */
#endif
        k = next[node];
        assert(k && k <= NODES);
        next[node] = newer; newer = node; node = k
    :: else -> break
    od;
    mine(me);
    next[last] = newer; last = h;
    h = 0; newer = 0; node = 0; k = 0
}

inline free_node(x)
{
    assert(live[x] && done[x]);
    live[x] = 0; done[x] = 0; next[x] = 0
}

/* Frees finished nodes but the last, which the head may still name. */
inline free_finished()
{
    do
#ifdef FAULT_3 /* the last one too */
    :: live[first] && done[first] ->
#else
    :: first != last && done[first] ->
#endif
        node = next[first]; free_node(first); first = node
    :: else -> break
    od;
    node = 0
}

/* ops->done: once, and in the order of the pusher. */
inline complete(x)
{
    assert(live[x] && !done[x]);
    assert(WHICH(x) == over[WHOSE(x)]);
    over[WHOSE(x)]++;
    done[x] = 1
}

/* All nodes known are done: leaves (act = 0), or finds newer ones. */
inline leave(me)
{
#ifdef FAULT_4 /* a look and a store instead of the compare-exchange */
    if
    :: head == last -> atomic { head = 0; act = 0; holder = 0;
                                free_node(last); first = 0; last = 0 }
    :: atomic { head != last -> h = head; fetch_newer(me); free_finished() }
    fi
#else
    atomic {
        mine(me); assert(first == last && done[last]);
        if
        :: head == last -> head = 0; act = 0; holder = 0;
            free_node(last); first = 0; last = 0
        :: else -> h = head; fetch_newer(me); free_finished()
        fi
    }
#endif
}

/* Every node that is known, with the owner's error. */
inline drain(me)
{
    mine(me); node = first;
    do
    :: true ->
        if
        :: !done[node] -> complete(node)
        :: else
        fi;
        if
        :: node == last -> break
        :: else -> node = next[node]
        fi
    od;
    free_finished()
}

/* twi_socket_fail: marks, then twi_wstack_failed: drains a parked role. */
inline fail(me)
{
    atomic { flag = !error; /* the first one's; losers do nothing */
#ifndef FAULT_5 /* looks for the parked role before it marks */
             error = 1
#endif
    };
    if
    :: atomic { flag -> flag = 0; k = state };
        if
        :: atomic { k != RUNNING -> n = k; k = 0 }; take(me, n); n = 0
        :: atomic { k == RUNNING -> k = 0 }
        fi
    :: !flag
    fi;
#ifdef FAULT_5
    error = 1;
#endif
}

/* Parks the role; `go` when it must go on instead. */
inline park(me, s)
{
#ifdef FAULT_6 /* arms, or goes on the list, first */
    if
    :: atomic { s == POLLOUT -> armed = 1 }
    :: atomic { s == READY -> again = 1 }
    :: else
    fi;
    atomic { mine(me); mylast = last; state = s; holder = 0 };
#else
    atomic { mine(me); mylast = last; state = s; holder = 0 };
    /* From here on another thread may hold the role. */
    if
    :: atomic { s == POLLOUT -> mylast = 0; armed = 1 }
    :: atomic { s == READY -> mylast = 0; again = 1 }
    :: else
    fi;
#endif
#ifndef FAULT_7 /* does not look again */
#if FAIL || BREAK
    flag = error;
#endif
    if
    :: atomic { s == CORKED && !flag -> flag = (head != mylast) }
    :: atomic { s == CONNECTING && !flag -> flag = connected }
    :: else
    fi;
#endif
    if
    :: atomic { flag -> flag = 0; mylast = 0 }; take(me, s)
    :: atomic { !flag -> go = 0; mylast = 0 }
    fi
}

/* gather, ops->write and advance: n messages are there, k of them taken. */
inline write()
{
    assert(!shut);
    node = first;
    do
    :: n == IOVECS -> break
    :: else ->
        assert(live[node]);
        n = n + 1 - done[node];
        if
#if SHUT && !defined(FAULT_8) /* gathers past the message that shuts */
        :: node == NODES -> break
#endif
        :: node == last -> break
        :: else -> node = next[node]
        fi
    od;
    assert(n);
    if
    :: k = n
    :: agains -> agains--; k = n - 1; act = POLLOUT
    :: agains && n > 1 -> agains--; act = POLLOUT
    :: may_break -> may_break = 0; act = BROKEN
    fi;
    budget = (k < budget -> budget - k : 0);
    node = first;
    do
    :: k == 0 -> break
    :: else ->
        if
        :: !done[node] ->
            assert(!shut); /* nothing is written behind it */
            complete(node); k--
#if SHUT
            ; shut = (node == NODES)
#endif
        :: else
        fi;
        if
        :: node == last -> break
        :: else -> node = next[node]
        fi
    od;
    assert(!k);
    node = 0; n = 0;
    free_finished()
}

/* What the loop of run does next, after its look at the owner. */
inline decide(me)
{
    mine(me);
    if
    :: error || shut -> act = DRAIN
    :: !error && !shut && !connected -> act = CONNECTING
    :: else ->
        if
        :: first == last && done[last] -> act = LEAVE
        :: else ->
            if
            :: !budget -> act = READY
            :: else -> act = NEWER; write()
            fi
        fi
    fi
}

/* twi_wstack_run: writes until the role is left or parked. */
inline run_stack(me)
{
    atomic { act = NEWER; budget = BUDGET };
    do
    :: atomic {
            act == NEWER -> mine(me);
            if
            :: head != last -> h = head; fetch_newer(me); free_finished()
            :: else
            fi;
            act = RUNNING;
#if !FAIL && !BREAK && !CONNECT && !SHUT /* else the owner is looked at later */
            decide(me)
#endif
        }
    :: atomic { act == RUNNING -> decide(me) }
    :: act == LEAVE -> leave(me);
        if
        :: atomic { act -> act = RUNNING }
        :: atomic { !act -> budget = 0 }; break
        fi
    :: atomic { act == DRAIN -> drain(me) }; leave(me);
        if
        :: act
        :: atomic { !act -> budget = 0 }; break
        fi
    :: act == BROKEN -> fail(me); atomic { assert(!go); act = RUNNING }
    :: act == POLLOUT || act == READY || act == CONNECTING -> park(me, act);
        if
        :: atomic { go -> act = RUNNING; go = 0 }
        :: atomic { !go -> act = 0; budget = 0 }; break
        fi
    od
}

/* twi_socket_push and twi_wstack_push; `go`: we hold the role. */
inline push(me, m, cork)
{
#if FAIL || BREAK || SHUT
    flag = error || shut;
#endif
    if
    :: atomic { flag && (me == 0 || IN_TURN) -> /* the caller keeps the node */
            pushed[me] = 1; flag = 0; refused[me]++ }
    :: atomic {
            !flag && (me == 0 || IN_TURN) ->
            pushed[me] = 1;
            mynode = NODE(me, m);
            live[mynode] = 1; next[mynode] = UNLINKED;
            h = head; head = mynode; /* the exchange */
            if
            :: !h -> assert(!holder && state == RUNNING);
                holder = me + 1; next[mynode] = 0;
                first = mynode; last = mynode; mynode = 0
            :: else
            fi
        };
        if
        :: atomic { h -> assert(live[mynode]); next[mynode] = h; /* link */
                    h = 0; mynode = 0 };
#if CORKED_WRITERS
            if
            :: !cork -> take(me, CORKED)
            :: cork && state != CORKED
            :: else ->
                atomic { corked++; flag = corked < CORK_MESSAGES };
                if
                :: atomic { flag -> flag = 0 }
                :: else -> take(me, CORKED)
                fi
            fi
#endif
        :: atomic { !h && cork -> corked = 1 }; park(me, CORKED)
        :: atomic { !h && !cork -> go = 1 }
        fi
    fi
}

inline run_if_taken(me)
{
    if
    :: atomic { go -> go = 0 }; run_stack(me)
    :: else
    fi
}

proctype writer(byte me)
{
    THREAD;
    byte m;
    do
    :: m < MESSAGES ->
        push(me, m, (me < CORKED_WRITERS));
        run_if_taken(me);
        m++
    :: atomic { m == MESSAGES -> m = 0; finished++ }; break
    od
}

/* The holder of the baton: connected, EPOLLOUT, leftovers. */
proctype poller()
{
    THREAD;
end:
    do
    :: if
       :: armed -> armed = 0; take(WRITERS, POLLOUT)
       :: again -> again = 0; take(WRITERS, READY)
#ifdef FAULT_9 /* looks for the parked role, then says that it is connected */
       :: !connected && !error -> take(WRITERS, CONNECTING); connected = 1
#else
       :: !connected && !error -> connected = 1; take(WRITERS, CONNECTING)
#endif
       fi;
       run_if_taken(WRITERS)
    od
}

/* Another thread: fails the owner, or flushes the cork, once or never. */
proctype other()
{
    THREAD;
    if
#if FAIL
    :: fail(WRITERS + 1)
#endif
#if TICK
    :: take(WRITERS + 1, CORKED)
#endif
    :: true
    fi;
    run_if_taken(WRITERS + 1)
}

init
{
    THREAD;
    byte i;
    atomic {
        connected = !CONNECT;
        do
        :: i < WRITERS -> run writer(i); i++
        :: else -> break
        od;
        run poller();
#if FAIL || TICK
        run other();
#endif
    };
    /* All pushes have returned and nobody writes: in a role that is still
     * corked there is nothing that was pushed uncorked. */
    timeout;
    atomic {
        assert(finished == WRITERS);
        i = 1;
        do
        :: i <= NODES ->
            assert(!live[i] || (state == CORKED && !error && !URGENT(i)));
            i++
        :: else -> break
        od;
        i = 0
    };
    take(WRITERS + 2, CORKED);
    run_if_taken(WRITERS + 2);
    timeout;
    atomic {
        assert(!head && state == RUNNING && !holder);
        do
        :: i < WRITERS -> assert(over[i] + refused[i] == MESSAGES); i++
        :: else -> break
        od;
        i = 1;
        do
        :: i <= NODES -> assert(!live[i]); i++
        :: else -> break
        od
    }
}
