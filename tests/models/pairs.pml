/* Pairs of threads that no other model has, each by itself.
 *
 * Announce, then look: both store before they load.  If both missed what the
 * other stored, something would wait with nobody responsible.
 *
 *   the one                            the other
 *   inbox.c: tw_inbox_fd tells of a    put leaves an item, and looks for a
 *   descriptor, and looks for items    descriptor to ring
 *   request.c: deliver says that the   who fails the connection marks it, and
 *   handler runs, which looks whether  looks whom to tell
 *   its peer is there
 *   reader.c: choose notes whose       raw.c: who fails the connection marks
 *   protocol it is; a chunk goes up    it, and looks whom to tell
 *   if there is no error
 *   worker.c: poll_once says that it   wake.c: a side loop queues a request,
 *   polls, and looks for requests      and looks who polls
 *   acceptor.c: adopt publishes a      server.c: a stop fails the listener,
 *   connection, and looks at its       and looks for connections
 *   listener
 *
 * With BELL the one waits (log.c: tw_log_take reads the bell, and looks for what
 * it waits for), and the other says what, and rings.
 *
 * With PUBLISH the other makes something and says so, and the one looks whether
 * it is said before it uses it; what is made is atomic, so ThreadSanitizer does
 * not judge it:
 *
 *   slab.c: a slot below `used`, or    take and give: the chunk's pointer
 *   on the free list, has its chunk
 *   socket.c: holds says that the      clean has freed the bytes, and counted
 *   bytes are freed                    that
 *   counters.c: take_lane counts on    sweep has set the gauges to 0
 *   in a lane that is free
 *
 * What is abstracted away: memory orders (every step is one access that threads
 * share), and all around the pairs. */

#ifndef BELL
#define BELL 0
#endif
#ifndef PUBLISH
#define PUBLISH 0
#endif

bit announced, marked; /* by the one, by the other */
bit saw_mark, saw_announced, made;
byte bell;

proctype one()
{
#if PUBLISH
    bit there;
#ifdef FAULT_1 /* uses it, then looks */
    there = made;
    marked;
#else
    marked;
    there = made;
#endif
    assert(there);
    saw_mark = 1
#elif BELL
    byte seen;
    do
#ifdef FAULT_1 /* looks, then reads the bell */
    :: marked -> saw_mark = 1; break
    :: !marked -> seen = bell; bell != seen /* the futex compares */
#else
    :: seen = bell;
        if
        :: marked -> saw_mark = 1; break
        :: !marked -> bell != seen
        fi
#endif
    od
#else
#ifdef FAULT_1 /* looks, then announces */
    saw_mark = marked;
    announced = 1
#else
    announced = 1;
    saw_mark = marked
#endif
#endif
}

proctype other()
{
#if PUBLISH
#ifdef FAULT_2 /* says so, then makes it */
    marked = 1;
    made = 1
#else
    made = 1;
    marked = 1
#endif
#elif BELL
#ifdef FAULT_2 /* rings, then says why */
    bell++;
    marked = 1
#else
    marked = 1;
    bell++
#endif
#else
#ifdef FAULT_2 /* looks, then marks */
    saw_announced = announced;
    marked = 1
#else
    marked = 1;
    saw_announced = announced
#endif
#endif
}

init
{
    atomic { run one(); run other() };
    timeout;
    assert(_nr_pr == 1);
    assert(saw_announced || saw_mark)
}
