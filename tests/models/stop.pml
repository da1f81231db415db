/* Stopping: csrc/drain.c and server.c (stop, drain, close), request.c (admit, queue_request,
 * answer, end), the worker's part of worker.c and, for `async def` methods, the
 * inbox's put and close; to be read beside them.
 *
 * Requests are cut by the holder of the baton while the server is stopped,
 * drained and closed, and a worker, or the loop's consumer, takes and answers
 * them.
 *
 * What is abstracted away: memory orders (every step is one access that threads
 * share); sleeping workers (baton.pml); connections, whose failure lets answers
 * vanish but no request's end.
 *
 * What must hold: every request that was cut is answered or refused once, in_flight
 * comes back to 0, drain does not sleep when nothing is in flight, and all
 * threads return. */

#ifndef REQUESTS
#define REQUESTS 3
#endif
#ifndef LOOP
#define LOOP 0     /* 1: they run on the loop, through its inbox */
#endif
#ifndef DRAIN
#define DRAIN 1    /* 0: closed without stop and drain */
#endif
#ifndef WORKERS
#define WORKERS 2
#endif

/* struct twi_server */
bit stopping, closed;
byte in_flight, draining, bell;
/* The queue or the inbox: how many wait.  The inbox's references: it lives, and
 * who is in twi_inbox_put; whether it was recycled. */
byte queue, inbox_refs = 1;
bit inbox_over, inbox_gone;

/* What the checker knows. */
byte cut, answered, refused;
bit drained;

/* twi_request_answer, of one that this thread has taken, and end. */
inline answer()
{
    atomic { answered++; assert(answered <= cut) };
#ifdef FAULT_7 /* rings before it lowers the count */
    atomic { ring = draining && in_flight == 1 };
    if
    :: atomic { ring -> ring = 0; bell++ }
    :: !ring
    fi;
    in_flight--;
#elif defined(FAULT_3) /* looks for who drains before it lowers the count */
    ring = draining > 0;
    atomic { in_flight--; ring = ring && in_flight == 0 };
#else
    atomic { in_flight--; last = in_flight == 0 };
    if
    :: atomic { last -> last = 0; ring = draining > 0 }
    :: !last
    fi;
#endif
    if
    :: atomic { ring -> ring = 0; bell++ }
    :: !ring
    fi
}

/* twi_server_flush */
inline flush()
{
    do
    :: atomic { queue -> queue-- }; answer()
    :: !queue -> break
    od
}

/* The last unref of the inbox: recycle discards what nobody took. */
inline inbox_unref()
{
    atomic { inbox_refs--; last = !inbox_refs };
    if
    :: atomic { last -> last = 0; inbox_gone = 1 }; flush()
    :: !last
    fi
}

/* std_consume: admit, then queue_request. */
proctype poller()
{
    bit last, ring;
    byte n;
    do
    :: atomic { n < REQUESTS -> n++; cut++ };
        if
        :: stopping -> refused++
        :: !stopping ->
            in_flight++;
#if LOOP
            atomic { last = !inbox_over; inbox_refs = inbox_refs + last };
            if
            :: atomic { last -> last = 0 };
                atomic { queue++; assert(!inbox_gone) }; /* put */
                inbox_unref()
            :: !last -> answer() /* closed: refused, in the server's name */
            fi
#else
            queue++;
#ifndef FAULT_2 /* does not look whether it was closed meanwhile */
            if
            :: closed -> flush()
            :: !closed
            fi
#endif
#endif
        fi
    :: atomic { n == REQUESTS -> n = 0; break }
    od
}

/* tw_turn, or tw_drain's consumer */
proctype worker()
{
    bit last, ring;
    do
    :: atomic { queue && !inbox_gone -> queue-- };
        answer()
    :: !queue ->
        if
        :: (LOOP -> inbox_over : closed) -> break
        :: queue
        fi
    od
}

/* tw_server_stop, tw_server_drain, tw_server_close, the loop's end. */
proctype stopper()
{
    bit last, ring;
    byte seen;
#if DRAIN
    stopping = 1;
#ifndef FAULT_5 /* does not announce itself */
    draining++;
#endif
    do
#ifdef FAULT_1 /* looks at the bell after the count */
    :: in_flight == 0 -> break
    :: in_flight != 0 -> seen = bell; bell != seen
#else
    :: seen = bell;
        if
        :: in_flight == 0 -> break
        :: in_flight != 0 -> bell != seen
        fi
#endif
    od;
    seen = 0;
    drained = 1;
    draining = 0;
#endif
    stopping = 1;
#ifdef FAULT_4 /* empties the queue before it says so */
    flush();
    closed = 1;
#else
    closed = 1;
#if !LOOP
    flush();
#endif
#endif
#if LOOP
    /* tw_inbox_close */
    inbox_over = 1;
#ifdef FAULT_6 /* discards at once, who puts or not */
    inbox_refs--;
    flush();
    inbox_gone = 1
#else
    inbox_unref()
#endif
#endif
}

init
{
    atomic {
        run poller();
        run worker();
#if WORKERS == 2
        run worker();
#endif
        run stopper()
    };
    timeout;
    assert(_nr_pr == 1);
    assert(answered + refused == REQUESTS && !queue && !in_flight);
    assert(drained == DRAIN)
}
