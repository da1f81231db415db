/* The timers against a plain list: what fires is what is due, earliest first;
 * what was removed does not; without memory nothing changes. */
#include "timer.h"

#include <errno.h>

#include "check.h"
#include "sys.h"

enum { TIMERS = 500, OPERATIONS = 60000 };

static struct twi_timers timers;
static struct twi_timer all[TIMERS];
static int64_t due[TIMERS]; /* the model: < 0 when not set */
static int no_memory;

static void *
flaky_malloc(size_t n)
{
    return no_memory ? NULL : malloc(n);
}

static int64_t
model_next(void)
{
    int64_t next = INT64_MAX;
    for (int i = 0; i < TIMERS; i++)
        if (due[i] >= 0 && due[i] < next)
            next = due[i];
    return next;
}

int
main(void)
{
    unsigned long long seed = check_seed();
    int64_t now = 0;
    uint32_t set = 0;
    twi_sys.malloc = flaky_malloc;
    CHECK_EQ(twi_timers_init(&timers), 0);
    for (int i = 0; i < TIMERS; i++)
        due[i] = -1;
    for (int i = 0; i < OPERATIONS && !check_failures; i++) {
        int which = (int)((check_random(&seed) >> 20) % TIMERS);
        int64_t before = model_next(), when;
        switch ((check_random(&seed) >> 20) % 4) {
        case 0:
        case 1:
            if (due[which] >= 0)
                break;
            /* Also equal times, and times that have passed. */
            when = now - 10 + (int64_t)((check_random(&seed) >> 20) % 200);
            when = when < 0 ? 0 : when;
            no_memory = check_random(&seed) % 8 == 0;
            int rc = twi_timers_add(&timers, &all[which], when, which,
                                    (uint64_t)which * 3);
            if (rc == -ENOMEM) {
                CHECK(no_memory);
                CHECK_EQ(all[which].index, 0);
            } else {
                CHECK(rc == (when < before) || (rc == 0 && when == before));
                due[which] = when;
                set++;
            }
            no_memory = 0;
            break;
        case 2:
            twi_timers_remove(&timers, &all[which]);
            set -= due[which] >= 0;
            due[which] = -1;
            CHECK_EQ(all[which].index, 0);
            break;
        case 3:
            now += (int64_t)((check_random(&seed) >> 20) % 30);
            int kind;
            uint64_t id;
            int64_t last = -1;
            while (twi_timers_pop(&timers, now, &kind, &id)) {
                CHECK_EQ(id, (uint64_t)kind * 3);
                CHECK(due[kind] >= 0);
                CHECK(due[kind] <= now);
                CHECK(due[kind] >= last);
                CHECK_EQ(due[kind], model_next());
                last = due[kind];
                due[kind] = -1;
                CHECK_EQ(all[kind].index, 0);
                set--;
            }
            CHECK(model_next() > now);
            break;
        }
        CHECK_EQ(twi_timers_next(&timers), model_next());
        CHECK_EQ(twi_timers_count(&timers), set);
    }
    for (int i = 0; i < TIMERS; i++)
        twi_timers_remove(&timers, &all[i]);
    CHECK_EQ(twi_timers_next(&timers), INT64_MAX);
    CHECK_EQ(twi_timers_count(&timers), 0);
    twi_timers_fini(&timers);
    twi_timers_fini(&(struct twi_timers){0});
    return check_done();
}
