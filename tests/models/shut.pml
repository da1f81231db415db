/* The end of a loop's descriptors: csrc/loop.c (enter_fds, leave_fds, leave,
 * shut) and inbox.c (tw_watch, tw_unwatch); to be read beside them.
 *
 * A thread uses the descriptors, one watches the set, one leaves work, while
 * the loop is shut by who has its baton for good.
 *
 * What is abstracted away: memory orders (every step is one access that threads
 * share).
 *
 * What must hold: nobody uses a descriptor that is closed, and work that was
 * left is done, by the end of the loop or by who left it. */

#ifndef USERS
#define USERS 2
#endif

/* struct twi_loop */
byte users, leftovers;
bit shut, watched;

/* What the checker knows. */
bit closed, stays;
byte left, done;

/* twi_loop_wake and all that enters */
proctype user()
{
#ifdef FAULT_1 /* looks, then says that it is there */
    bit was;
    was = shut;
    users++;
    if
    :: was
    :: !was -> assert(!closed)
    fi;
#else
    users++;
    if
    :: shut
    :: !shut -> assert(!closed)
    fi;
#endif
    users--
}

proctype watcher()
{
    bit was;
#ifdef FAULT_2 /* looks, then says that it watches */
    was = shut;
    watched = 1;
#else
    watched = 1;
    was = shut;
#endif
    if
    :: was -> watched = 0
    :: !was -> assert(!closed); assert(!closed); watched = 0
    fi
}

inline run_leftovers()
{
    atomic { done = done + leftovers; leftovers = 0 }
}

proctype leaver()
{
    bit was;
#ifdef FAULT_3 /* looks, then leaves it */
    was = shut;
    atomic { leftovers++; left++ };
#else
    atomic { leftovers++; left++ };
    was = shut;
#endif
    if
    :: was -> run_leftovers()
    :: !was
    fi
}

/* twi_loop_shut, the baton taken */
proctype shutter()
{
    bit was;
#ifdef FAULT_4 /* looks whether it is watched, then shuts */
    was = watched;
    shut = 1;
#else
    shut = 1;
    was = watched;
#endif
    if
    :: was -> shut = 0; stays = 1
    :: !was ->
        run_leftovers();
        users == 0;
        closed = 1
    fi
}

/* With FAULT_5 what stands above is right, but for its order: it looks at users
 * and leftovers, then shuts. */
proctype early()
{
    run_leftovers();
    users == 0;
    shut = 1;
    if
    :: watched -> shut = 0; stays = 1
    :: !watched -> closed = 1
    fi
}

init
{
    byte i;
    atomic {
        do
        :: i < USERS -> run user(); i++
        :: i == USERS -> break
        od;
        run watcher();
        run leaver();
#ifdef FAULT_5
        run early()
#else
        run shutter()
#endif
    };
    timeout;
    assert(_nr_pr == 1);
    assert(stays || done == left)
}
