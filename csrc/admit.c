#include "admit.h"

#include <stdio.h>
#include <string.h>

#include "atomics.h"
#include "budget.h"

/* FNV-1a over the full name "service/method". */
static uint32_t
hash(uint32_t h, struct twi_str s)
{
    for (size_t i = 0; i < s.n; i++)
        h = (h ^ s.p[i]) * 16777619u;
    return h;
}

uint32_t
twi_method_hash(struct twi_str service, struct twi_str name)
{
    struct twi_str slash = {(const uint8_t *)"/", 1};
    return hash(hash(hash(2166136261u, service), slash), name);
}

static int
same(struct twi_str s, const char *text)
{
    return strlen(text) == s.n && !memcmp(s.p, text, s.n);
}

static struct twi_method *
find_method(struct twi_server *server, struct twi_str service,
            struct twi_str name, uint32_t *which)
{
    if (!server->index)
        return NULL;
    for (uint32_t i = twi_method_hash(service, name);; i++) {
        uint32_t entry = server->index[i & server->index_mask];
        if (!entry)
            return NULL;
        struct twi_method *method = server->methods[entry - 1];
        if (same(service, method->service) && same(name, method->name)) {
            *which = entry - 1;
            return method;
        }
    }
}

/* The full name of the service that a request means: one without a dot is the
 * last part of a service's. */
static struct twi_str
full_service(struct twi_server *server, struct twi_str service)
{
    if (!memchr(service.p, '.', service.n))
        for (int i = 0; i < server->n_methods; i++) {
            const char *full = server->methods[i]->service;
            const char *dot = strrchr(full, '.');
            if (same(service, dot ? dot + 1 : full)) {
                service.p = (const uint8_t *)full;
                service.n = strlen(full);
                break;
            }
        }
    return service;
}

/* brpc answers 1002 for an unknown name with a dot, 1001 for one without. */
static struct twi_method *
resolve(struct twi_server *server, const struct twi_std_msg *msg,
        uint32_t *which, int *code, char *text, size_t cap)
{
    struct twi_str service = full_service(server, msg->service);
    struct twi_method *method = find_method(server, service, msg->method, which);
    if (method)
        return method;
    if (server->fallback) {
        *which = (uint32_t)server->fallback - 1;
        return server->methods[*which];
    }
    int known = 0;
    for (int i = 0; i < server->n_methods && !known; i++)
        known = same(service, server->methods[i]->service);
    if (known || memchr(service.p, '.', service.n)) {
        *code = TW_ENOMETHOD;
        snprintf(text, cap, "Fail to find method=%.*s/%.*s", (int)service.n,
                 service.p, (int)msg->method.n, msg->method.p);
    } else {
        *code = TW_ENOSERVICE;
        snprintf(text, cap, "Fail to find service=%.*s", (int)service.n,
                 service.p);
    }
    return NULL;
}

/* What comes after the server's limiter; as twi_admit. */
static struct twi_method *
find(struct twi_server *server, const struct twi_std_msg *msg, uint32_t *which,
     int *code, char *text, size_t cap)
{
    if (twi_budget_refuses()) {
        *code = TW_ELIMIT;
        snprintf(text, cap, "Too many bytes are buffered in the server");
        twi_count(TWI_BUDGET_REFUSALS, 1);
    } else if (msg->bad_attachment) {
        *code = TW_EREQUEST;
        snprintf(text, cap, "attachment_size=%d is larger than request_size=%zu",
                 msg->attachment_size, msg->body.n);
    } else if (msg->has_stream_settings) {
        *code = TW_EREQUEST;
        snprintf(text, cap, "Streams are not supported by this server");
    } else
        return resolve(server, msg, which, code, text, cap);
    return NULL;
}

struct twi_method *
twi_admit(struct twi_server *server, const struct twi_std_msg *msg,
          uint32_t *which, int *code, char *text, size_t cap)
{
    struct twi_method *method = NULL;
    if (!msg->has_request) {
        *code = TW_ENOSERVICE;
        snprintf(text, cap, "Fail to find service=");
    } else if (load_relaxed(&server->stopping)) {
        /* relaxed: one that comes at this moment may be let in. */
        *code = TW_ELOGOFF;
        snprintf(text, cap, "Server is stopping");
    } else if (twi_limiter_enter(&server->limiter, twi_std_patience_ns(msg))) {
        *code = TW_ELIMIT;
        snprintf(text, cap, "Reached server's max_concurrency=%lld",
                 (long long)twi_limiter_limit(&server->limiter));
        twi_count(TWI_LIMIT_REFUSALS, 1);
    } else if (!(method = find(server, msg, which, code, text, cap)))
        twi_limiter_leave(&server->limiter);
    return method;
}

int
twi_admit_too_large(struct twi_server *server, const struct twi_std_msg *msg,
                    uint64_t body, const char **why)
{
    uint32_t which;
    if (body <= server->least_message || !msg->has_request)
        return 0;
    const struct twi_method *method =
        find_method(server, full_service(server, msg->service), msg->method,
                    &which);
    *why = "body over the method's limit";
    return method && body > method->max_message;
}
