/* api.h for the C compiler: its types, a guard, and static asserts. */
#ifndef TW_CORE_H
#define TW_CORE_H

#include <stddef.h>
#include <stdint.h>

#include "api.h"

/* Python reads tw_event with one struct format: no padding may creep in. */
_Static_assert(sizeof(tw_event) == 152, "tw_event changed: adapt _core.py");
_Static_assert(offsetof(tw_event, body) == 32, "tw_event changed");

#endif
