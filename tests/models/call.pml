/* One call's end: csrc/call.c (sending, sent, calls_lost, finish, fill) and
 * the start in client.c, with what it sees of the write stack; to be read beside it.
 *
 * Response, deadline, cancel and the connection's failure race; the call's one
 * message waits, is begun, written in part, wholly or not, is dropped or drained.
 * A push that the first connection refuses goes to a second one.
 *
 * What is abstracted away: memory orders (every step is one access that threads
 * share); references (id.pml has them: a call's memory stays while it is looked
 * at, `over` is its odd version); the write stack's inside (wstack.pml: exactly
 * one holds the role and completes the message, a parked role is taken by the
 * poller or by who fails the connection).  The peer answers whatever reached it
 * whole, as long as the connection lives.
 *
 * What must hold: the call ends, and once; one that says "not sent" has not been
 * and never is, and one that says "sent" was. */

#ifndef DEADLINE
#define DEADLINE 1
#endif
#ifndef CANCEL
#define CANCEL 1
#endif
#define SOCKETS 2
#define NOBODY 255

#define NONE 0
#define SOME 1
#define ALL 2

/* struct twi_call */
bit over, done;        /* its version is odd; its word says DONE */
byte socket, sent;     /* socket: which + 1 */
/* struct twi_socket */
bit error[SOCKETS];
/* Its write stack's one message: on which socket + 1, who holds the role. */
byte queued, again = 1;
bit role, started;

/* What the checker knows. */
byte written, results, on; /* bytes of 2 that the kernel took, on which socket */
bit said, said_none;

#define THREAD byte s; bit won, unwanted, bad

/* twi_call_finish of call.c: the one place where a call ends. */
inline end_call()
{
#ifdef FAULT_1 /* looks, then turns the version */
    won = !over;
    if
    :: won -> over = 1
    :: !won
    fi;
#else
    atomic { won = !over; over = 1 };
#endif
    if
    :: atomic { won -> won = 0; results++; assert(results == 1); done = 1 }
    :: !won
    fi
}

/* twi_call_sent, for a message that left the queue: an error or not. */
inline message_done(code, how_far)
{
    queued = 0;
    if
    :: over /* address finds nothing */
    :: !over ->
        sent = how_far;
#ifdef FAULT_2 /* does not look whether the connection failed meanwhile */
        bad = code;
#else
        bad = code || error[s];
#endif
        if
        :: atomic { bad -> bad = 0 }; end_call()
        :: !bad
        fi
    fi
}

/* twi_call_sending: `unwanted` if it must not be sent any more. */
inline sending()
{
    started = 1;
    if
    :: over -> unwanted = 1
    :: !over ->
        sent = SOME;
#ifndef FAULT_3 /* does not look again */
        unwanted = over
#endif
    fi
}

/* twi_socket_fail by the role's holder, who drains later, or another. */
inline take_role()
{
    atomic {
        if
        :: queued == s + 1 && !role -> role = 1; won = 1
        :: else -> won = 0
        fi
    }
}

/* twi_calls_lost */
inline calls_lost()
{
    if
    :: over
    :: !over ->
        if
        :: socket == s + 1 ->
            if
            :: sent == ALL -> end_call()
            :: sent != ALL
            fi
        :: socket != s + 1
        fi
    fi
}

/* twi_wstack_run with the one message. */
inline run_stack()
{
    do
    :: error[s] ->
        message_done(1, written);
        role = 0; break
    :: !error[s] ->
        if
        :: !started -> sending()
        :: started
        fi;
        if
        :: atomic { unwanted -> unwanted = 0 };
            message_done(1, NONE);
            role = 0; break
        :: !unwanted ->
            if
            :: atomic { written = 2; on = s + 1; assert(!said_none) };
                message_done(0, ALL);
                role = 0; break
            :: atomic { again -> again = 0;
                    if
                    :: written = 1; on = s + 1; assert(!said_none)
                    :: true
                    fi;
                    role = 0 }; /* parks, then looks again */
                if
                :: error[s] ->
                    take_role();
                    if
                    :: atomic { won -> won = 0 }
                    :: !won -> break
                    fi
                :: !error[s] -> break
                fi
            :: atomic { !error[s] -> error[s] = 1 }; /* the write fails */
                calls_lost()
            fi
        fi
    od
}

/* start, wait, fill */
proctype caller()
{
    THREAD;
    do
    :: s < SOCKETS ->
#ifndef FAULT_6 /* pushes it, then says on which connection it is */
        socket = s + 1;
#endif
        if
        :: atomic { error[s] -> s++ } /* twi_socket_push refuses it */
        :: !error[s] ->
            if
            :: atomic { queued = s + 1; role = 1 }; run_stack()
            :: queued = s + 1; /* parked, or another's: left to the poller */
                if
                :: error[s] ->
                    take_role();
                    if
                    :: atomic { won -> won = 0 }; run_stack()
                    :: !won
                    fi
                :: !error[s]
                fi
            fi;
#ifdef FAULT_6
            socket = s + 1;
#endif
            break
        fi
    :: s == SOCKETS -> end_call(); break
    od;
    done;
    s = 0;
#ifdef FAULT_4 /* what was sent is told before the call's end is awaited */
    /* see deadline */
#else
    atomic { s = sent; said = 1; said_none = (s == NONE) };
    atomic { assert(s != NONE || written == 0);
             assert(s != ALL || written == 2); s = 0 }
#endif
}

proctype poller()
{
    THREAD;
    bit answered;
end:
    do
    :: atomic { queued && !role -> role = 1; s = queued - 1 }; /* POLLOUT */
        run_stack();
        s = 0
    :: atomic { written == 2 && !answered -> answered = 1; s = on - 1 };
        if
        :: error[s] /* it is not read any more */
        :: !error[s] -> /* std_consume */
            if
            :: over
            :: !over ->
                if
                :: socket == s + 1 -> sent = ALL; end_call()
                :: socket != s + 1
                fi
            fi
        fi;
        s = 0
    od
}

/* twi_socket_fail by another thread */
proctype failer()
{
    THREAD;
    do
    :: s < SOCKETS ->
#ifdef FAULT_5 /* looks for calls before it marks the connection */
        calls_lost();
        atomic { won = !error[s]; error[s] = 1 };
        if
        :: atomic { won -> won = 0 };
            take_role();
            if
            :: atomic { won -> won = 0 }; run_stack()
            :: !won
            fi
        :: !won
        fi;
#else
        atomic { won = !error[s]; error[s] = 1 };
        if
        :: atomic { won -> won = 0 };
            take_role();
            if
            :: atomic { won -> won = 0 }; run_stack()
            :: !won
            fi;
            calls_lost()
        :: !won
        fi;
#endif
        s++
    :: true -> s = 0; break
    od
}

/* The deadline's timer, tw_cancel: at any time, or never. */
proctype ender()
{
    THREAD;
    if
    :: true
    :: !over ->
#ifdef FAULT_4
        atomic { said_none = (sent == NONE); said = 1 };
#endif
        end_call()
    fi
}

init
{
    atomic {
        run caller();
        run poller();
        run failer();
#if DEADLINE
        run ender();
#endif
#if CANCEL
        run ender()
#endif
    };
    timeout;
    assert(results == 1 && done && !role && !queued)
}
