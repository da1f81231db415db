/* When a method counts as blocking: after 3 of its last 8 suspected runs
 * blocked, until 64 runs in a row did not. */
#include "worker.h"

#include "check.h"

static int
is_blocking(const struct twi_method *method)
{
    return (int)load_relaxed(&method->blocking);
}

int
main(void)
{
    static struct twi_method method;
    /* Suspicions that were nothing leave no mark. */
    for (int i = 0; i < 100; i++)
        twi_method_ran(&method, 1, 0);
    CHECK(!is_blocking(&method));
    /* Two blocked ones in eight do not suffice, however long it goes on. */
    for (int i = 0; i < 80; i++) {
        twi_method_ran(&method, 1, i % 8 < 2);
        CHECK(!is_blocking(&method));
    }
    /* Three do. */
    for (int i = 0; i < 8; i++)
        twi_method_ran(&method, 1, 0);
    twi_method_ran(&method, 1, 1);
    for (int i = 0; i < 3; i++)
        twi_method_ran(&method, 1, 0);
    twi_method_ran(&method, 1, 1);
    CHECK(!is_blocking(&method));
    twi_method_ran(&method, 1, 1);
    CHECK(is_blocking(&method));
    /* It stays while one in 64 blocks ... */
    for (int i = 1; i <= 640; i++) {
        twi_method_ran(&method, i % 64 == 0, i % 64 == 0);
        CHECK(is_blocking(&method));
    }
    /* ... and goes after 64 that do not; one more does not bring it back. */
    for (int i = 0; i < 64; i++) {
        CHECK(is_blocking(&method));
        twi_method_ran(&method, 0, 0);
    }
    CHECK(!is_blocking(&method));
    twi_method_ran(&method, 1, 1);
    CHECK(!is_blocking(&method));
    return check_done();
}
