/* The baton: who polls, who sleeps, who is woken.  To be read beside
 * csrc/loop.c, worker.c, workq.c, wake.c, dispatcher.c, inbox.c and
 * caller.c.
 *
 * What is modelled: two workers of one server (tw_turn: answer, cork, yield,
 * pop, poll, wait), a blocking caller (wait, poll_for, sleep_for), the
 * dispatcher (tick, park, poll_once), and a third consumer: an asyncio loop that
 * watches the epoll set, or a thread in tw_inbox_wait; workq's announce, cancel,
 * sleep and wake; twi_worker_coming, twi_wake_fresh; leftovers and the eventfd.
 *
 * What is abstracted away:
 *   - memory orders: every step is sequentially consistent;
 *   - what happens under a mutex (the sleepers' list) is one step; a futex wait
 *     is a guard on its word, since whoever changes the word wakes;
 *   - all requests come on one connection; the write stack is "written" or
 *     "corked" (wstack.pml has the rest);
 *   - time: young, old and quiet are whatever hurts most.  The dispatcher ticks
 *     EARLY times whenever it likes, and then when nobody else can move.
 *
 * Two rules are modelled as they must be, whatever the code does: the dispatcher,
 * having announced to park, looks at queues and corks (park, FAULT_4); and who
 * rings an inbox writes the eventfd first and says so afterwards (ring, FAULT_3:
 * else the eventfd may stay readable with nobody to read it, and the loop spins).
 *
 * What must hold: the baton has one holder; and whenever nobody but the ticking
 * dispatcher can move, a few ticks later something moves, or all is done: every
 * request is answered and written, the call is over, the inbox is empty, the
 * leftovers are gone.  One handler may sleep until all the others are done, the
 * asyncio loop may be stuck as long.  With CLOSE all is closed at the end, and
 * everybody must have returned. */

#ifndef REQUESTS
#define REQUESTS 2
#endif
#ifndef CALLER
#define CALLER 0     /* 1: a call, answered by the network or cancelled */
#endif
#ifndef CONSUMER
#define CONSUMER 0   /* 1: an asyncio loop, 2: a thread in tw_inbox_wait */
#endif
#ifndef PUTS
#define PUTS 1       /* items that the consumer gets */
#endif
#ifndef CORK
#define CORK 0       /* 1: answers may be corked */
#endif
#ifndef LEFTOVER
#define LEFTOVER 0   /* 1: another thread leaves work, which is left once more */
#endif
#ifndef CLOSE
#define CLOSE 0      /* 1: at the end all is closed and must return */
#endif
#ifndef EARLY
#define EARLY 1
#endif
#ifndef WORKERS
#define WORKERS 2
#endif
#define PATIENCE 6   /* ticks */

/* struct twi_loop.  `dirty`: rounds has moved since the dispatcher looked. */
bit baton, watched, dirty, eventfd;
byte sleeping, leftovers;
#define PARKED 1
#define PARKED_WATCHING 2
#define PARKED_POLLING 3
bit park_fd;
/* What has come on the network and nobody has read. */
byte net_requests;
bit net_answer, net_result;
#define READABLE (net_requests || net_answer || net_result || eventfd)

/* struct twi_workq, struct twi_server, the workers */
byte queue, asleep, fresh, queued;
bit listed[WORKERS], word[WORKERS], started[WORKERS], corks[WORKERS];
bit closed, stopping;
byte corked;         /* messages on the connection's corked stack */

/* struct twi_call: the caller's */
#define WAITING 0
#define ASLEEP 1
#define DONE 2
byte call_word;
bit call_ended;

/* struct inbox */
#define AWAKE 0
#define SLEEPS 1
#define POLLS 2
byte inbox, inbox_asleep = SLEEPS;
bit inbox_rung, inbox_fd, inbox_stopped, inbox_corks;

/* What the checker knows. */
byte holders, written, taken, left_run, idle, ringing;
byte begun; /* handlers, of a lone worker */
bit long_used, returned, owed; /* owed: what the loop has corked elsewhere */
#define INBOX_DONE (!CONSUMER || taken == PUTS)
#define CALL_DONE (!CALLER || returned)
#define LEFT_DONE (!LEFTOVER || left_run == 2)
#define OTHERS_DONE (written >= REQUESTS - 1 && CALL_DONE && INBOX_DONE && \
                     LEFT_DONE)
#define ALL_DONE (written == REQUESTS && CALL_DONE && INBOX_DONE && \
                  LEFT_DONE && !owed)
#define moved idle = 0

/* ---- loop.c */

/* `go` if the baton is ours. */
inline baton_take()
{
    atomic {
        if
        :: !baton -> baton = 1; holders++; assert(holders == 1); go = 1
        :: else -> go = 0
        fi
    }
}

/* twi_loop_unpark; from inside a round PARKED_POLLING is the poller itself. */
inline unpark(inside)
{
    atomic {
        if
        :: sleeping == PARKED_WATCHING -> park_fd = 1
        :: sleeping == PARKED_POLLING && !inside -> eventfd = 1
        :: else
        fi;
        sleeping = 0
    }
}

inline baton_drop()
{
    atomic { baton = 0; holders--; any = 0 };
#ifndef FAULT_1 /* the dispatcher is not told */
    unpark(0)
#endif
}

/* twi_loop_nudge */
inline nudge(polling)
{
    if
    :: atomic { !polling && baton -> eventfd = 1 }
    :: else
    fi
}

/* twi_loop_leave */
inline leave(polling)
{
    atomic { tmp = leftovers; leftovers = 1 };
    if
    :: atomic { !tmp && !polling -> eventfd = 1 }
    :: atomic { tmp || polling -> tmp = 0 }
    fi
}

/* twi_workq_wake: n sleepers, any of them. */
inline workq_wake(n)
{
    do
    :: atomic { n > 0 && asleep > 0 ->
            if
            :: listed[0] -> listed[0] = 0; word[0] = 1
#if WORKERS == 2
            :: listed[1] -> listed[1] = 0; word[1] = 1
#endif
            fi;
            asleep--; n--; moved
        }
    :: atomic { n == 0 || asleep == 0 -> n = 0 }; break
    od
}

#define NOBODY 9

/* twi_worker_coming(but): `flag`. */
inline coming(but, others)
{
    atomic { flag = (asleep < others); w = (but == 0) };
    do
    :: atomic { !flag || w == WORKERS -> flag = 0; w = 0 }; break
    :: atomic { flag && w < WORKERS && listed[w] -> w = w + 1 + (w + 1 == but) }
    :: atomic { flag && w < WORKERS && !listed[w] };
        /* Young or not is whatever hurts; outside of a handler it comes, but
         * not for another that comes itself. */
        if
        :: atomic { started[w] || but == NOBODY -> w = 0 }; break
        :: atomic { started[w] || but != NOBODY -> w = w + 1 + (w + 1 == but) }
        fi
    od
}

/* twi_wake_fresh; own: the poller is a worker of the server, and takes one. */
inline wake_fresh(own)
{
    if
    :: atomic { fresh -> fresh = 0 };
        if
        :: own
        :: !own -> coming(NOBODY, WORKERS);
            atomic { tmp = !flag; flag = 0 };
            workq_wake(tmp)
        fi
    :: else
    fi
}

/* twi_call_finish of call.c, for the blocking caller. */
inline end_call(polling)
{
    if
    :: atomic { !call_ended -> call_ended = 1 };
        atomic { tmp = call_word; call_word = DONE; moved };
#ifndef FAULT_2 /* who polls is not told */
        if
        :: tmp == WAITING -> nudge(polling)
        :: else
        fi;
#endif
        tmp = 0
    :: else
    fi
}

/* twi_inbox_put and ring */
inline inbox_put(polling)
{
#ifdef FAULT_7 /* looks who sleeps, then puts */
    atomic { tmp = inbox_asleep; inbox_asleep = AWAKE };
    atomic { inbox++; moved };
#else
    atomic { inbox++; moved };
    atomic { tmp = inbox_asleep; inbox_asleep = AWAKE };
#endif
    if
    :: tmp == POLLS -> nudge(polling)
    :: tmp == SLEEPS ->
#if CONSUMER == 1
#ifdef FAULT_3 /* says so before it has rung */
        atomic { inbox_rung = 1; ringing++ };
        atomic { inbox_fd = 1; ringing-- }
#else
        atomic { inbox_fd = 1; ringing++ };
        atomic { inbox_rung = 1; ringing-- }
#endif
#else
        skip
#endif
    :: tmp == AWAKE
    fi;
    tmp = 0
}

/* twi_loop_poll: for ever, or without waiting. */
inline loop_poll(forever)
{
    atomic {
        dirty = 1;
        wait_ = forever && !leftovers;
        (READABLE || !wait_); /* epoll_wait */
        got = net_requests; net_requests = 0;
        got_answer = net_answer; net_answer = 0;
        got_result = net_result; net_result = 0;
        got_wake = eventfd;
        any = got || got_answer || got_result || got_wake;
        wait_ = 0;
        unpark(1)
    };
    do
    :: atomic { got -> got--; queued++; queue++; fresh++; moved }
    :: !got -> break
    od;
#if CALLER
    if
    :: atomic { got_answer -> got_answer = 0 }; end_call(1)
    :: !got_answer
    fi;
#endif
#if CONSUMER
    if
    :: atomic { got_result -> got_result = 0 }; inbox_put(1)
    :: !got_result
    fi;
#endif
    if
    :: atomic { got_wake -> got_wake = 0; eventfd = 0 }
    :: !got_wake
    fi;
#if LEFTOVER
    if
    :: atomic { leftovers -> leftovers = 0; left_run++; moved;
            tmp = left_run };
        if
        :: tmp == 1 -> leave(1) /* goes on the list again */
        :: tmp != 1
        fi;
        tmp = 0
    :: else
    fi;
    if
    :: atomic { leftovers -> eventfd = 1 }
    :: else
    fi
#endif
}

#define POLLER \
    byte tmp, w, got; \
    bit go, flag, wait_, got_answer, got_result, got_wake, any

/* ---- worker.c */

inline cork_flush(me)
{
#if CORK
    if
    :: corks[me] ->
        atomic { written = written + corked; corked = 0; moved };
        corks[me] = 0
    :: else
    fi
#else
    skip
#endif
}

inline announce(me)
{
    atomic { word[me] = 0; listed[me] = 1; asleep++ }
}

inline cancel(me)
{
    atomic {
        if
        :: listed[me] -> listed[me] = 0; asleep--
        :: else
        fi
    }
}

inline answer(me)
{
#if CORK
    started[me] = 0; /* note_run */
    if
    :: atomic { queued -> corks[me] = 1 }; /* twi_cork_add, then the push */
        atomic { corked++; moved }
    :: atomic { written = written + corked + 1; corked = 0; moved }
    fi
#else
    atomic { started[me] = 0; written++; moved }
#endif
}

inline yield(me)
{
    coming(me, (WORKERS - 1));
    if
    :: atomic { flag && queue -> flag = 0 };
        cork_flush(me);
        announce(me);
#if CLOSE
        if
        :: closed -> cancel(me)
        :: else -> word[me] /* twi_workq_sleep */
        fi
#else
        word[me] /* twi_workq_sleep */
#endif
    :: atomic { !flag || !queue -> flag = 0 }
    fi
}

proctype worker(byte me)
{
    POLLER;
    do
    :: atomic { queue -> queue--; moved };
        atomic { /* begin; the handler */
            queued--; started[me] = 1; begun = begun + (WORKERS == 1);
            if
            :: true
            :: !long_used && (WORKERS > 1 || begun == REQUESTS) ->
                long_used = 1; OTHERS_DONE
            fi
        };
        answer(me);
        yield(me)
    :: !queue -> /* nothing to pop */
        cork_flush(me);
#if CLOSE
        if
        :: closed -> break
        :: else
        fi;
#endif
        /* poll */
#if CONSUMER == 1
        if
        :: watched
        :: else -> baton_take()
        fi;
#else
        baton_take();
#endif
        if
        :: atomic { go -> go = 0 };
            if
#ifdef FAULT_10 /* looked whether it is closed before it had the baton */
            :: queue
#else
            :: queue || closed
#endif
            :: else -> loop_poll(1); wake_fresh(1)
            fi;
            baton_drop()
        :: !go -> /* wait */
            announce(me);
            if
#ifdef FAULT_10 /* looked whether it is closed before it announced sleep */
            :: queue -> cancel(me)
#else
            :: queue || closed -> cancel(me)
#endif
            :: else ->
                if
                :: baton -> word[me]
#if CONSUMER == 1
                :: else ->
                    if
                    :: watched -> word[me]
                    :: else -> cancel(me)
                    fi
#else
                :: else -> cancel(me)
#endif
                fi
            fi
        fi
    od
}

/* ---- caller.c: wait */

proctype caller()
{
    POLLER;
    do
    :: atomic { call_word == DONE -> returned = 1; moved }; break
    :: else ->
#if CONSUMER == 1
        if
        :: watched
        :: else -> baton_take()
        fi;
#else
        baton_take();
#endif
        if
        :: atomic { go -> go = 0 }; /* poll_for */
#ifndef FAULT_9 /* looked before it took the baton, and not again */
            if
            :: call_word == DONE
            :: else -> loop_poll(1); wake_fresh(0)
            fi;
#else
            loop_poll(1); wake_fresh(0);
#endif
            baton_drop()
        :: !go -> /* sleep_for */
            if
            :: atomic { call_word == WAITING -> call_word = ASLEEP };
                if
                :: baton -> call_word != ASLEEP
#if CONSUMER == 1
                :: else ->
                    if
                    :: watched -> call_word != ASLEEP
                    :: else
                    fi
#else
                :: else
#endif
                fi;
                atomic {
                    if
                    :: call_word == ASLEEP -> call_word = WAITING
                    :: else
                    fi
                }
            :: call_word != WAITING
            fi
        fi
    od
}

/* ---- inbox.c: the two kinds of consumers */

inline drain(poll)
{
    inbox_asleep = AWAKE;
#if CONSUMER == 1
    if
#ifdef FAULT_8 /* silences it, then says so */
    :: inbox_rung -> inbox_fd = 0; inbox_rung = 0
#else
    :: inbox_rung -> inbox_rung = 0; inbox_fd = 0
#endif
    :: else
    fi;
    if
    :: poll -> baton_take()
    :: !poll
    fi;
    if
    :: atomic { go -> go = 0 }; loop_poll(0); wake_fresh(0); baton_drop()
    :: !go
    fi;
#endif
    atomic { taken = taken + inbox; inbox = 0; moved };
#ifdef FAULT_6 /* looks for items, then announces sleep */
    flag = (inbox > 0);
    inbox_asleep = SLEEPS;
    if
    :: flag -> inbox_asleep = AWAKE
    :: else
    fi
#else
    inbox_asleep = SLEEPS;
    if
    :: inbox -> inbox_asleep = AWAKE; flag = 1 /* more */
    :: else
    fi
#endif
}

proctype asyncio()
{
    POLLER;
    bit watching, stuck;
    /* tw_watch */
    watched = 1; eventfd = 1; watching = 1;
    do
    :: atomic { (watching && READABLE) || inbox_fd || flag ->
            assert(!inbox_fd || inbox_rung || ringing) };
        flag = 0;
        drain(watching);
        if
        :: true
        :: atomic { !stuck -> stuck = 1 };
#if CORK
            /* Something is corked for the end of the turn that does not come:
             * its cork, the dispatcher, the push. */
            inbox_corks = 1; unpark(0);
            owed = 1;
#endif
            (written >= REQUESTS - 1 && CALL_DONE && LEFT_DONE && !owed &&
             (written == REQUESTS || long_used));
            inbox_corks = 0
        fi
    :: atomic { watching -> watching = 0; watched = 0 }; eventfd = 1
    :: inbox_stopped -> break
    od;
    if
    :: watching -> watched = 0; eventfd = 1
    :: else
    fi
}

/* tw_inbox_wait(poll = 1), then tw_drain(poll = 0), for ever. */
proctype completion()
{
    POLLER;
    do
    :: inbox_stopped -> break
    :: else ->
        if
        :: inbox -> drain(0); flag = 0
        :: else ->
            baton_take();
            if
            :: atomic { go -> go = 0 };
#ifdef FAULT_6
                flag = (inbox || inbox_stopped);
                inbox_asleep = POLLS;
#else
                inbox_asleep = POLLS;
                flag = (inbox || inbox_stopped);
#endif
                if
                :: atomic { flag -> flag = 0 }
                :: !flag -> loop_poll(1)
                fi;
                inbox_asleep = AWAKE;
                wake_fresh(0);
                baton_drop()
            :: !go ->
#ifdef FAULT_6
                flag = (inbox || inbox_stopped);
                inbox_asleep = SLEEPS;
#else
                inbox_asleep = SLEEPS;
                flag = (inbox || inbox_stopped);
#endif
                if
                :: atomic { flag -> flag = 0 }
                :: !flag -> inbox_asleep != SLEEPS
                fi
            fi
        fi
    od
}

/* ---- wake.c and dispatcher.c */

/* twi_wake_tick: `busy`. */
inline tick()
{
#if CORK
    w = 0;
    do
    :: atomic { w == WORKERS -> w = 0 }; break
    :: atomic { w < WORKERS && !corks[w] -> w++ }
    :: atomic { w < WORKERS && corks[w] -> busy = 1; w++ };
        if
        :: atomic { written = written + corked; corked = 0; young = 0 }
        :: atomic { !young -> young = 1 } /* not yet old */
        fi
    od;
    if
    :: inbox_corks -> busy = 1; owed = 0
    :: else
    fi;
#endif
#ifndef FAULT_5 /* does not look at the queue */
    if
    :: queue && asleep ->
        if
        :: atomic { true -> tmp = 1 }; workq_wake(tmp)
        :: atomic { !waited -> waited = 1 } /* not yet old */
        fi
    :: else
    fi;
#endif
    if
    :: queue -> busy = 1
    :: else -> waited = 0
    fi
}

/* is_pending of dispatcher.c: queues first, a worker corks before it pops. */
inline is_pending()
{
#ifdef FAULT_4 /* does not look at queues and corks */
    flag = 0;
#else
    flag = (queue > 0);
#if CORK
    if
    :: corks[0] -> flag = 1
    :: else
    fi;
#if WORKERS == 2
    if
    :: corks[1] -> flag = 1
    :: else
    fi;
#endif
    if
    :: inbox_corks -> flag = 1
    :: else
    fi
#endif
#endif
}

inline park(how)
{
    sleeping = how;
    is_pending();
    if
#ifdef FAULT_11 /* looked whether it is to stop before it announced to park */
    :: flag
#else
    :: stopping || flag
#endif
    :: else ->
        if
        :: how == PARKED ->
            if
            :: baton -> sleeping == 0
            :: else
            fi
        :: how == PARKED_WATCHING ->
            READABLE || park_fd;
            park_fd = 0
        :: how == PARKED_POLLING ->
            loop_poll(1); wake_fresh(0)
        fi
    fi;
    atomic { flag = 0; sleeping = 0 }
}

/* The baton is ours and was free for a whole tick. */
inline poll_once()
{
    loop_poll(0);
    wake_fresh(0);
    if
    :: any || !quiet -> baton_drop()
    :: !any && quiet ->
        if
#if CONSUMER == 1
        :: watched -> baton_drop(); park(PARKED_WATCHING)
#endif
        :: !watched ->
            baton_drop();
            /* A worker with nothing to do polls better. */
            if
            :: atomic { asleep -> tmp = 1 }; workq_wake(tmp)
            :: !asleep ->
                baton_take();
                if
                :: atomic { go -> go = 0 }; park(PARKED_POLLING); baton_drop()
                :: !go
                fi
            fi
        fi
    fi
}

proctype dispatcher()
{
    POLLER;
    bit busy, quiet, waited, young;
    byte early = EARLY;
    do
    :: stopping -> break
    :: else ->
        if
        :: atomic { early -> early-- }
        :: timeout -> idle++; assert(ALL_DONE || idle < PATIENCE)
        :: stopping -> break
        fi;
        tick();
        atomic {
            if
            :: !busy -> quiet = 1
            :: true
            fi;
            busy = 0
        };
        if
        :: !dirty -> baton_take()
        :: else
        fi;
        if
        :: atomic { go -> go = 0 }; poll_once()
        :: !go ->
            if
            :: quiet && baton -> park(PARKED)
            :: else
            fi
        fi;
        atomic { quiet = 0; dirty = 0; any = 0 }
    od
}

/* ---- what comes, in any order; then the end */

proctype world()
{
    byte tmp, requests = REQUESTS, puts = (CONSUMER -> PUTS : 0);
    bit call_over = !CALLER, left = !LEFTOVER;
    do
    :: atomic { requests -> requests--; net_requests++ }
    :: atomic { !call_over -> call_over = 1; net_answer = 1 }
    :: atomic { !call_over -> call_over = 1 }; end_call(0) /* tw_cancel */
    :: atomic { puts && !net_result -> puts--; net_result = 1 }
    :: atomic { puts -> puts-- }; inbox_put(0)
    :: atomic { !left -> left = 1 }; leave(0)
    :: atomic { !requests && call_over && !puts && left && ALL_DONE -> break }
    od;
#if CLOSE
    /* tw_server_close */
    closed = 1;
    tmp = WORKERS;
    workq_wake(tmp);
    eventfd = 1;
    /* twi_inboxes_stop */
#ifdef FAULT_7
    atomic { tmp = inbox_asleep; inbox_asleep = AWAKE };
    inbox_stopped = 1;
#else
    inbox_stopped = 1;
    atomic { tmp = inbox_asleep; inbox_asleep = AWAKE };
#endif
    if
    :: tmp == POLLS -> nudge(0)
    :: else
    fi;
    tmp = 0;
    /* twi_dispatcher_stop */
    stopping = 1;
    unpark(0)
#endif
}

init
{
    atomic {
        run worker(0);
#if WORKERS == 2
        run worker(1);
#endif
#if CALLER
        run caller();
#endif
#if CONSUMER == 1
        run asyncio();
#elif CONSUMER == 2
        run completion();
#endif
        run dispatcher();
        run world()
    };
    /* The dispatcher sleeps or has ended, and nobody can move. */
    atomic { (timeout && (stopping || sleeping));
             assert(ALL_DONE);
             assert(!CLOSE || (stopping && _nr_pr == 1)) }
}
