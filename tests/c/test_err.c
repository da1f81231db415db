/* Codes: every TW_* has a name and a text, errnos have the system's, others
 * have none; no two codes share a name. */
#include "err.h"

#include <errno.h>
#include <string.h>

#include "check.h"
#include "core.h"

int
main(void)
{
    static const int ours[] = {
        TW_ENOSERVICE, TW_ENOMETHOD, TW_EREQUEST,      TW_ERPCAUTH,
        TW_ERPCTIMEDOUT, TW_EFAILEDSOCKET, TW_EOVERCROWDED, TW_EEOF,
        TW_EINTERNAL,  TW_ERESPONSE, TW_ELOGOFF,       TW_ELIMIT,
        TW_ECLOSE,     TW_ESHUTDOWNWRITE, TW_STALE,     TW_STOPPED,       TW_FORKED,
        TW_RICH};
    enum { N = sizeof ours / sizeof *ours };
    for (int i = 0; i < N; i++) {
        CHECK(twi_err_name(ours[i])[0] != 0);
        CHECK(twi_err_text(ours[i])[0] != 0);
        CHECK(ours[i] > 1000); /* no errno gets there */
        for (int j = 0; j < i; j++)
            CHECK(strcmp(twi_err_name(ours[i]), twi_err_name(ours[j])));
    }
    /* Nothing else has one of ours. */
    int named = 0;
    for (int code = 1000; code < 10000; code++)
        named += twi_err_name(code)[0] != 0;
    CHECK_EQ(named, N);
    CHECK(!strcmp(twi_err_name(ECONNREFUSED), "ECONNREFUSED"));
    CHECK(!strcmp(twi_err_text(ECONNREFUSED), "Connection refused"));
    static const int unknown[] = {0, -1, -ECONNREFUSED, 999, INT32_MAX,
                                  INT32_MIN};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
        CHECK_EQ(twi_err_name(unknown[i])[0], 0);
    CHECK_EQ(twi_err_text(-1)[0], 0);
    return check_done();
}
