#include "err.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "core.h"

static const struct {
    int code;
    const char *name, *text;
} table[] = {
    {TW_ENOSERVICE, "ENOSERVICE", "No such service"},
    {TW_ENOMETHOD, "ENOMETHOD", "No such method"},
    {TW_EREQUEST, "EREQUEST", "Bad request"},
    {TW_ERPCAUTH, "ERPCAUTH", "Authentication failed"},
    {TW_ERPCTIMEDOUT, "ERPCTIMEDOUT", "The call's deadline has passed"},
    {TW_EFAILEDSOCKET, "EFAILEDSOCKET", "The connection has failed"},
    {TW_EOVERCROWDED, "EOVERCROWDED",
     "Too many unwritten bytes wait on the connection"},
    {TW_EEOF, "EEOF", "The peer closed the connection"},
    {TW_EINTERNAL, "EINTERNAL", "General internal error"},
    {TW_ERESPONSE, "ERESPONSE", "Bad response"},
    {TW_ELOGOFF, "ELOGOFF", "The server is stopping"},
    {TW_ELIMIT, "ELIMIT", "A concurrency limit is reached"},
    {TW_ECLOSE, "ECLOSE", "The connection was closed on purpose"},
    {TW_ESHUTDOWNWRITE, "ESHUTDOWNWRITE",
     "Nothing is written on this connection any more"},
    {TW_STALE, "STALE", "The id names nothing that lives"},
    {TW_STOPPED, "STOPPED", "It was stopped"},
    {TW_FORKED, "FORKED", "It belongs to the parent process"},
    {TW_RICH, "RICH", "There is more than a message"},
};

const char *
twi_err_name(int code)
{
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (table[i].code == code)
            return table[i].name;
    const char *name = code > 0 ? strerrorname_np(code) : NULL;
    return name ? name : "";
}

const char *
twi_err_text(int code)
{
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (table[i].code == code)
            return table[i].text;
    const char *text = code > 0 ? strerrordesc_np(code) : NULL;
    return text ? text : "";
}
