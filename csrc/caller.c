#include "caller.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>

#include "atomics.h"
#include "loop.h"
#include "sys.h"

/* Callers asleep until their answer comes or the baton is theirs. */
static pthread_mutex_t callers_lock = PTHREAD_MUTEX_INITIALIZER;
static struct twi_call *callers;
static _Atomic uint32_t n_callers;

/* Wakes polling callers now and then, so that they need no timeout of their
 * own: setting a timer for every call costs more than the call's polling.
 * Whether it is set is the baton's holder's. */
static struct twi_timer slice_timer;
static int slice_set;

void
twi_callers_init(void)
{
    pthread_mutex_init(&callers_lock, NULL);
    callers = NULL;
    store_relaxed(&n_callers, 0);
    slice_timer = (struct twi_timer){0};
    slice_set = 0;
}

void
twi_callers_stop(void)
{
    twi_loop_timer_remove(TWI_MAIN, &slice_timer);
}

static void
list_add(struct twi_call *call)
{
    pthread_mutex_lock(&callers_lock);
    call->next = callers;
    call->link = &callers;
    if (callers)
        callers->link = &call->next;
    callers = call;
    add_seq_cst(&n_callers, 1);
    pthread_mutex_unlock(&callers_lock);
}

static void
list_remove_locked(struct twi_call *call)
{
    if (!call->link)
        return;
    *call->link = call->next;
    if (call->next)
        call->next->link = call->link;
    call->link = NULL;
    /* relaxed: who sees the old count takes the lock in vain. */
    sub_relaxed(&n_callers, 1);
}

static void
list_remove(struct twi_call *call)
{
    pthread_mutex_lock(&callers_lock);
    list_remove_locked(call);
    pthread_mutex_unlock(&callers_lock);
}

/* Wakes one sleeping caller, who may take the baton. */
static void
wake_poller(void)
{
    if (!load_seq_cst(&n_callers))
        return;
    pthread_mutex_lock(&callers_lock);
    struct twi_call *call = callers;
    if (call) {
        uint32_t asleep = TWI_CALL_ASLEEP;
        list_remove_locked(call);
        /* relaxed: hands nothing over. */
        if (atomic_compare_exchange_strong_explicit(
                &call->word, &asleep, TWI_CALL_WAITING, memory_order_relaxed,
                memory_order_relaxed))
            twi_futex_wake(&call->word, 1);
    }
    pthread_mutex_unlock(&callers_lock);
}

/* Sleeps until the answer, a poke or the time: 0 or -EINTR. */
static int
sleep_for(struct twi_call *call, int64_t timeout_ns)
{
    uint32_t waiting = TWI_CALL_WAITING;
    int rc = 0;
    list_add(call);
    if (atomic_compare_exchange_strong(&call->word, &waiting,
                                       TWI_CALL_ASLEEP)) {
        /* Look again: partner is the baton's drop. */
        if (twi_baton_held(TWI_MAIN) || load_seq_cst(&TWI_MAIN->watched))
            rc = twi_futex_wait(&call->word, TWI_CALL_ASLEEP, timeout_ns);
        /* relaxed: the waiter looks at the word again, for the result. */
        uint32_t asleep = TWI_CALL_ASLEEP;
        atomic_compare_exchange_strong_explicit(
            &call->word, &asleep, TWI_CALL_WAITING, memory_order_relaxed,
            memory_order_relaxed);
    }
    list_remove(call);
    return rc == -EINTR ? rc : 0;
}

void
twi_caller_slice(void)
{
    slice_set = 0;
}

/* How long to poll: for ever when the slice timer ends it early enough. */
static int
poll_ms(int64_t now_ns, int64_t left_ns)
{
    int64_t slice_ns = TWI_SLICE_MS * INT64_C(1000000);
    /* Rounded up: a wait that ends early would only be repeated. */
    if (left_ns >= 0 && left_ns < slice_ns)
        return (int)((left_ns + 999999) / 1000000);
    if (!slice_set)
        slice_set = !twi_loop_timer(TWI_MAIN, &slice_timer, now_ns + slice_ns,
                                    TWI_TIMER_SLICE, 0);
    return slice_set ? -1 : TWI_SLICE_MS;
}

static int
poll_for(struct twi_call *call, int timeout_ms)
{
    int rc = 0;
    /* Conclusive: the main loop's answers are read by us from here on, and who
     * else ends the call then looks at the baton and nudges.  seq_cst for that:
     * the baton is ours before this look. */
    if (load_seq_cst(&call->word) != TWI_CALL_DONE) {
        rc = twi_loop_poll(TWI_MAIN, timeout_ms);
        twi_loop_after_poll(TWI_MAIN);
    }
    twi_baton_drop(TWI_MAIN);
    return rc == -EINTR ? rc : 0;
}

int
twi_caller_wait(struct twi_call *call, int interruptible)
{
    int polled = 0, rc = 0;
    int64_t slice_end = 0;
    /* acquire: pairs with the exchange in twi_call_finish. */
    while (load_acquire(&call->word) != TWI_CALL_DONE && rc == 0) {
        int64_t now_ns = twi_now_ns(), left = -1;
        if (call->deadline_ns && (left = call->deadline_ns - now_ns) <= 0) {
            if (!twi_call_expire(call))
                sched_yield(); /* its answer is being filled in */
            continue;
        }
        if (!slice_end)
            slice_end = now_ns + TWI_SLICE_MS * INT64_C(1000000);
        else if (interruptible && now_ns >= slice_end) {
            rc = -EINTR; /* let the caller look at its signals */
            break;
        }
        /* relaxed: a hint; who watches wakes who polls. */
        if (!load_relaxed(&TWI_MAIN->watched) && twi_baton_take(TWI_MAIN)) {
            rc = poll_for(call, poll_ms(now_ns, left));
            polled = 1;
        } else {
            int64_t slice = slice_end - now_ns;
            if (interruptible && (left < 0 || slice < left))
                left = slice;
            rc = sleep_for(call, left);
        }
    }
    if (polled)
        wake_poller();
    return load_acquire(&call->word) == TWI_CALL_DONE ? 0 : rc;
}
