/* Worker threads: the turn that answers one request and fetches the next, and
 * whom to wake when. */
#ifndef TWI_WORKER_H
#define TWI_WORKER_H

#include "cork.h"
#include "server.h"
#include "workq.h"

enum {
    TWI_SAMPLED_WORKERS = 16 /* CPU clocks read per tick and server */
};
/* A worker's clock counts as running when it moved by this part of the time
 * between two looks (1/n). */
enum { TWI_COMPUTING_PART = 4 };
#define TWI_BLOCKED_NS INT64_C(1000000) /* wall minus CPU of a blocking run */
/* A handler that started less than this ago is taken to end soon. */
#define TWI_YOUNG_NS INT64_C(1000000)
#define TWI_OLD_REQUEST_NS INT64_C(5000000) /* then computing is no reason */
enum {
    TWI_EVIDENCE_RUNS = 8,   /* suspected runs remembered */
    TWI_EVIDENCE_NEEDED = 3, /* of these that blocked, for the mark */
    TWI_UNMARK_RUNS = 64     /* without evidence, the mark goes */
};

struct twi_worker {
    _Atomic uint64_t vref;
    uint32_t slot;
    struct twi_server *server; /* shares */
    struct twi_sleeper sleeper;
    struct twi_corks corks;
    int tid;
    int cpu_clock; /* clockid_t */
    tw_event *next;            /* the thread's */
    struct twi_method *method; /* of the request being handled */
    _Atomic int64_t started_ns; /* of the handler; 0: in none */
    /* The dispatcher's samples of the current run. */
    _Atomic int64_t seen_run;   /* started_ns of the run sampled */
    _Atomic int64_t seen_ns, seen_cpu_ns;
    _Atomic uint32_t suspected; /* it stood still in this run */
};

void twi_workers_init(void);
void twi_workers_fini(void);
int64_t twi_worker_count(void);
/* Where workers live: wake.c looks at all. */
struct twi_slab *twi_worker_slab(void);

/* For walks over all workers: a reference if this one lives, else 0. */
int twi_worker_look(struct twi_worker *worker);
void twi_worker_unref(struct twi_worker *worker);

/* 1 when a worker of the server other than `but` is awake and will soon come
 * for the next request: it is inside tw_turn, or its handler is young.  (One that
 * polls counts as well: ask only when none does.) */
int twi_worker_coming(struct twi_server *server, struct twi_worker *but,
                      int64_t now_ns);

/* After a poll round of the loop: wakes workers for what it queued.  own: the
 * queue whose worker polled and will take one itself (NULL: the poller runs
 * none). */
void twi_wake_fresh(struct twi_loop *loop, struct twi_workq *own);
/* One tick of the rules for all servers; 1 when something may need another
 * tick soon (requests queued, or sockets corked). */
int twi_wake_tick(int64_t now_ns);
/* 1 while that is so: a look without the tick's work. */
int twi_wake_pending(void);
/* Wakes one sleeping worker to poll; 1 when there was one. */
int twi_wake_poller(void);

/* Pure, for tests: a run of `method` ended; suspected and blocked say what the
 * ticks and the clocks showed. */
void twi_method_ran(struct twi_method *method, int suspected, int blocked);

#endif
