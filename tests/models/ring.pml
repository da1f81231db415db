/* The ring of requests: csrc/workq.c, push and pop, to be read beside it.  One
 * producer (several take turns under a lock), many consumers.
 *
 * What is abstracted away: memory orders (every step is one access that threads
 * share); sleepers (baton.pml); the numbers do not wrap.
 *
 * What must hold: every request is popped, once. */

#define SIZE 2
#ifndef ITEMS
#define ITEMS 5
#endif

byte head, tail, cell[SIZE]; /* struct twi_workq */
byte popped[ITEMS + 1], n_popped;

proctype producer()
{
    byte item = 1;
    do
    :: item > ITEMS -> break
#ifdef FAULT_1 /* fills the cell, then looks whether it was read */
    :: item <= ITEMS -> cell[tail % SIZE] = item;
        if
        :: tail - head >= SIZE
        :: tail - head < SIZE -> tail++; item++
        fi
#else
    :: item <= ITEMS && tail - head < SIZE ->
#ifdef FAULT_2 /* says so, then fills the cell */
        tail++;
        cell[(tail - 1) % SIZE] = item;
#else
        cell[tail % SIZE] = item;
        tail++;
#endif
        item++
#endif
    od
}

proctype consumer()
{
    byte h, item;
    do
    :: n_popped == ITEMS -> break
    :: atomic { head < tail -> h = head };
#ifdef FAULT_3 /* takes it, then reads the cell */
        if
        :: atomic { head == h -> head++ };
            item = cell[h % SIZE];
            atomic { popped[item]++; n_popped++; item = 0 }
        :: head != h
        fi;
#else
        item = cell[h % SIZE];
        if
        :: atomic { head == h -> head++; popped[item]++; n_popped++;
                    assert(popped[item] == 1 && item); item = 0 }
        :: atomic { head != h -> item = 0 }
        fi;
#endif
        h = 0
    od
}

init
{
    byte i = 1;
    atomic { run producer(); run consumer(); run consumer() };
    timeout;
    assert(_nr_pr == 1);
    do
    :: i <= ITEMS -> assert(popped[i] == 1); i++
    :: i > ITEMS -> break
    od
}
