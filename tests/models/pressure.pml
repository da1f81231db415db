/* Backpressure and the half-closed stream: csrc/reader.c (cut_all,
 * end_of_stream), pressure.c, socket.c (again, leftover), request.c
 * (queue_request, answer, end), writer.c (ws_done) and, with HTTP, raw.c; to be
 * read beside them.
 *
 * The peer sends messages and then closes its half.  The poller reads them, as
 * epoll's edge or the list of leftovers tells; workers answer, another thread
 * writes the answers.  Above a limit reading pauses; who lowers a count resumes
 * it.  When all is answered and written the connection ends.
 *
 * What is abstracted away: memory orders (every step is one access that threads
 * share); bytes: a message is one; the write stack (wstack.pml); the list of
 * leftovers is a mark.
 *
 * What must hold: the connection ends, and not before all is answered and
 * written. */

#ifndef MESSAGES
#define MESSAGES 3
#endif
#ifndef WORKERS
#define WORKERS 1
#endif
#ifndef HTTP
#define HTTP 0     /* 1: one chunk at a time is with the consumer */
#endif
#define LIMIT 2

/* What has come on the connection: messages, then its end; epoll's edge. */
byte unread;
bit end_unread, edge;
/* struct twi_socket */
byte pending, unwritten;
bit paused, eof, again, listed, failed, chunk_out;
/* What the workers and the writer may take. */
byte queue, outgoing, chunks;

/* What the checker knows. */
byte written;

#define THREAD byte n; bit was

/* twi_socket_again(TWI_AGAIN_READ) */
inline again_read()
{
    atomic { was = again; again = 1 };
    if
    :: atomic { !was -> listed = 1 }
    :: was
    fi;
    was = 0
}

/* twi_socket_relax */
inline relax()
{
    if
    :: !paused
    :: paused ->
        n = unwritten;
        n = n + pending;
        if
        :: atomic { 2 * n >= LIMIT -> n = 0 }
        :: atomic { 2 * n < LIMIT -> n = 0; was = paused; paused = 0 };
            if
            :: was -> again_read()
            :: !was
            fi
        fi
    fi
}

/* twi_socket_settle */
inline settle()
{
    if
    :: eof ->
        if
        :: !pending ->
            if
            :: !unwritten ->
                if
                :: atomic { !chunk_out -> failed = 1;
                            assert(written == MESSAGES) }
                :: chunk_out -> relax()
                fi
            :: unwritten -> relax()
            fi
        :: pending -> relax()
        fi
    :: !eof -> relax()
    fi
}

/* twi_reader_run; `was`: it saw that reading is paused. */
inline read_on()
{
    if
    :: atomic { was -> was = 0 }
    :: !was ->
        do
        :: failed -> break
        :: atomic { !failed -> n = unwritten };
            n = n + pending;
            if
            :: atomic { n >= LIMIT -> n = 0 };
#ifdef FAULT_1 /* looks again, then pauses */
                relax();
                paused = 1;
#else
                paused = 1;
                relax();
#endif
                break
            :: atomic { n < LIMIT -> n = 0 };
#if HTTP
                if
                :: chunk_out -> break
                :: !chunk_out
                fi;
#endif
                if
                :: atomic { unread -> unread-- };
#if HTTP
                    chunk_out = 1;
                    chunks++
#else
                    pending++;
                    queue++
#endif
                :: atomic { !unread && end_unread -> end_unread = 0 };
#ifdef FAULT_2 /* looks at the counts, then says that it is the end */
                    settle();
                    eof = 1;
#else
                    eof = 1;
                    settle();
#endif
                    break
                :: !unread && !end_unread -> break
                fi
            fi
        od
    fi
}

proctype peer()
{
    byte sent;
    do
    :: atomic { sent < MESSAGES -> sent++; unread++; edge = 1 }
    :: atomic { sent == MESSAGES -> sent = 0; end_unread = 1; edge = 1 }; break
    od
}

proctype poller()
{
    THREAD;
    do
    :: failed -> break
    :: atomic { edge -> edge = 0 };
        was = paused;
        read_on()
    :: atomic { listed -> listed = 0 };
#ifdef FAULT_3 /* looks whether it is paused, then takes the mark */
        was = paused;
        again = 0;
#else
        again = 0;
        was = paused;
#endif
        read_on()
    od
}

/* twi_request_answer and end */
proctype worker()
{
    THREAD;
    do
    :: failed -> break
    :: atomic { queue -> queue-- };
#ifdef FAULT_4 /* the request ends before its answer is counted */
        pending--;
        unwritten++;
        outgoing++;
        settle()
#else
        unwritten++;
        outgoing++;
#ifdef FAULT_5 /* looks, then lowers the count */
        settle();
        pending--
#else
        pending--;
        settle()
#endif
#endif
    od
}

/* ws_done */
proctype writer()
{
    THREAD;
    do
    :: failed -> break
    :: atomic { outgoing -> outgoing--; written++ };
#ifdef FAULT_6 /* looks, then lowers the count */
        settle();
        unwritten--
#else
        unwritten--;
        settle()
#endif
    od
}

#if HTTP
/* The consumer of chunks: answers, and then asks for the next. */
proctype consumer()
{
    THREAD;
    do
    :: failed -> break
    :: atomic { chunks -> chunks-- };
        unwritten++;
        outgoing++;
#ifdef FAULT_7 /* marks the reader's turn, then says that it is done */
        again_read();
        chunk_out = 0;
#else
        chunk_out = 0;
        again_read();
#endif
        settle()
    od
}
#endif

init
{
    atomic {
        run peer();
        run poller();
#if HTTP
        run consumer();
#else
        run worker();
#if WORKERS == 2
        run worker();
#endif
#endif
        run writer()
    };
    timeout;
    assert(failed && _nr_pr == 1)
}
