#include "server.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "acceptor.h"
#include "admit.h"
#include "atomics.h"
#include "listen.h"
#include "sys.h"
#include "vref.h"
#include "writer.h"

static struct twi_slab slab;

int
twi_servers_init(void)
{
    twi_slab_init(&slab, sizeof(struct twi_server));
    return 0;
}

void
twi_servers_fini(void)
{
    twi_slab_fini(&slab);
}

int64_t
twi_server_count(void)
{
    return load_relaxed(&slab.live);
}

static void
recycle(struct twi_server *server)
{
    twi_count(TWI_MAX_CONCURRENCY, -twi_limiter_limit(&server->limiter));
    for (int i = 0; i < server->n_methods; i++) {
        struct twi_method *method = server->methods[i];
        if (method->limiter.how.kind)
            twi_cell_add(method->stats.max_concurrency,
                         -twi_limiter_limit(&method->limiter));
        free(method->service);
        free(method->name);
        free(method);
    }
    free(server->methods);
    free(server->index);
    server->methods = NULL;
    server->index = NULL;
    server->n_methods = 0;
    twi_workq_fini(&server->queue);
    twi_slab_give(&slab, server->slot);
}

struct twi_server *
twi_server_address(tw_id id)
{
    struct twi_server *server = twi_slab_at(&slab, (uint32_t)id);
    if (!server || !id)
        return NULL;
    int rc = vref_address(&server->vref, (uint32_t)(id >> 32));
    if (rc < 0)
        recycle(server);
    return rc == 1 ? server : NULL;
}

void
twi_server_ref(struct twi_server *server)
{
    vref_ref(&server->vref);
}

void
twi_server_unref(struct twi_server *server)
{
    if (vref_unref(&server->vref))
        recycle(server);
}

void
twi_server_each(void (*fn)(struct twi_server *, void *), void *arg)
{
    for (uint32_t i = 0; i < twi_slab_end(&slab); i++) {
        struct twi_server *server = twi_slab_at(&slab, i);
        uint32_t version = vref_look(&server->vref);
        if (load_seq_cst(&server->closed))
            continue;
        int rc = vref_address(&server->vref, version);
        if (rc < 0)
            recycle(server);
        if (rc != 1)
            continue;
        if (!load_seq_cst(&server->closed))
            fn(server, arg);
        twi_server_unref(server);
    }
}

int
tw_server_open(const tw_server_options *options, tw_id *id)
{
    uint32_t slot = twi_slab_take(&slab);
    if (slot == TWI_SLAB_NONE)
        return -ENOMEM;
    struct twi_server *server = twi_slab_at(&slab, slot);
    server->slot = slot;
    store_relaxed(&server->closed, 1); /* not yet for twi_server_each */
    server->options = *options;
    int rc = twi_workq_init(&server->queue);
    server->methods = twi_malloc(TWI_METHODS_MAX * sizeof *server->methods);
    if (rc || !server->methods) {
        twi_workq_fini(&server->queue);
        free(server->methods);
        rc = -ENOMEM;
        twi_slab_give(&slab, slot);
        return rc;
    }
    server->n_methods = server->n_listeners = server->fallback = 0;
    server->least_message = UINT64_MAX;
    twi_limiter_init(&server->limiter, &options->max_concurrency,
                     (uint64_t)twi_now_ns());
    twi_count(TWI_MAX_CONCURRENCY, twi_limiter_limit(&server->limiter));
    server->index = NULL;
    store_relaxed(&server->loop, 0);
    store_relaxed(&server->http, 0);
    store_relaxed(&server->auth, 0);
    store_relaxed(&server->lame, 0);
    store_relaxed(&server->stopping, 0);
    store_relaxed(&server->in_flight, 0);
    store_relaxed(&server->connections, 0);
    store_relaxed(&server->workers, 0);
    store_relaxed(&server->polls, 0);
    store_relaxed(&server->draining, 0);
    store_relaxed(&server->idle_bell, 0);
    store_relaxed(&server->woken_ns, 0);
    store_relaxed(&server->farewell_ns, 0);
    memset(server->fresh, 0, sizeof server->fresh);
    *id = vref_id(vref_open(&server->vref, 1), slot);
    /* relaxed: who walks by at this moment may pass it by. */
    store_relaxed(&server->closed, 0);
    return 0;
}

int
tw_server_method(tw_id id, const char *service, const char *name, int run,
                 const tw_method_options *options)
{
    static const tw_method_options nothing = {0};
    struct twi_server *server = twi_server_address(id);
    int rc = -ENOMEM;
    if (!server)
        return -TW_STALE;
    if (server->n_methods == TWI_METHODS_MAX || server->n_listeners) {
        rc = server->n_listeners ? -EBUSY : -ENOSPC;
        goto out;
    }
    struct twi_method *method = twi_zalloc(sizeof *method);
    if (!method)
        goto out;
    method->service = twi_strdup(service);
    method->name = twi_strdup(name);
    method->run = run;
    options = options ? options : &nothing;
    method->max_message =
        options->max_message ? options->max_message : UINT64_MAX;
    int64_t age_ns = options->max_queue_age_ns;
    age_ns = age_ns ? age_ns : server->options.max_queue_age_ns;
    method->max_queue_age_ns = age_ns ? age_ns : INT64_MAX;
    if (!method->service || !method->name) {
        free(method->service);
        free(method->name);
        free(method);
        goto out;
    }
    twi_method_stats_init(&method->stats, method->service, method->name, 0);
    twi_limiter_init(&method->limiter, &options->max_concurrency,
                     (uint64_t)twi_now_ns() + (uint64_t)server->n_methods);
    int limited = method->limiter.how.kind != TW_LIMIT_NONE;
    twi_method_limits(&method->stats, limited, age_ns != 0);
    if (limited)
        twi_cell_add(method->stats.max_concurrency,
                     twi_limiter_limit(&method->limiter));
    if (method->max_message < server->least_message)
        server->least_message = method->max_message;
    rc = server->n_methods;
    server->methods[server->n_methods++] = method;
    if (!strcmp(service, "*") && !strcmp(name, "*"))
        server->fallback = server->n_methods;
out:
    twi_server_unref(server);
    return rc;
}

int
tw_server_limit(tw_id id, int which, uint32_t most)
{
    struct twi_server *server = twi_server_address(id);
    int rc = -EINVAL;
    if (!server)
        return -TW_STALE;
    struct twi_method *method = NULL;
    if (!most || which >= server->n_methods)
        goto out;
    if (which >= 0)
        method = server->methods[which];
    struct twi_limiter *limiter = method ? &method->limiter : &server->limiter;
    if (limiter->how.kind != TW_LIMIT_NUMBER)
        goto out;
    int64_t change = twi_limiter_change(limiter, most);
    if (method)
        twi_cell_add(method->stats.max_concurrency, change);
    else
        twi_count(TWI_MAX_CONCURRENCY, change);
    rc = 0;
out:
    twi_server_unref(server);
    return rc;
}

int
tw_server_inboxes(tw_id id, tw_id loop, tw_id http)
{
    struct twi_server *server = twi_server_address(id);
    if (!server)
        return -TW_STALE;
    /* relaxed: ids, which are addressed. */
    store_relaxed(&server->loop, loop);
    store_relaxed(&server->http, http);
    twi_server_unref(server);
    return 0;
}

/* The method index, at most half full. */
static int
build_index(struct twi_server *server)
{
    uint32_t size = 16;
    while (size < 2 * (uint32_t)server->n_methods + 1)
        size *= 2;
    uint32_t *index = twi_zalloc(size * sizeof *index);
    if (!index)
        return -ENOMEM;
    for (int i = 0; i < server->n_methods; i++) {
        struct twi_method *method = server->methods[i];
        struct twi_str service = {(const uint8_t *)method->service,
                                  strlen(method->service)},
                       name = {(const uint8_t *)method->name,
                               strlen(method->name)};
        uint32_t at = twi_method_hash(service, name);
        while (index[at & (size - 1)])
            at++;
        index[at & (size - 1)] = (uint32_t)i + 1;
    }
    server->index_mask = size - 1;
    server->index = index;
    return 0;
}

int
tw_listen(tw_id id, const char *address, int protocols, int backlog,
          char *bound, size_t cap)
{
    struct twi_server *server = twi_server_address(id);
    int rc = 0;
    if (!server)
        return -TW_STALE;
    if (server->n_listeners == TWI_LISTENERS_MAX)
        rc = -ENOSPC;
    if (!rc && !server->index)
        rc = build_index(server);
    if (!rc)
        rc = twi_acceptor_open(server, address, protocols, backlog, bound, cap,
                               &server->listeners[server->n_listeners]);
    if (!rc)
        server->n_listeners++;
    twi_server_unref(server);
    return rc;
}

int
tw_bind(const char *address, int backlog, const tw_server_options *options,
        char *bound, size_t cap)
{
    struct twi_listening made;
    char why[TWI_LISTEN_WHY];
    int rc = twi_listen_bind(address, backlog, options, &made, why);
    snprintf(bound, cap, "%s", why);
    if (rc)
        return rc;
    twi_addr_format(&made.addr, bound, cap);
    return made.fd;
}

static void
close_listeners(struct twi_server *server)
{
    for (int i = 0; i < server->n_listeners; i++)
        tw_socket_fail(server->listeners[i], TW_ELOGOFF);
}

static void
fail_connection(struct twi_socket *sock, void *arg)
{
    if (sock->server == arg)
        twi_socket_fail(sock, TW_ELOGOFF, TW_PHASE_NONE);
}

void
twi_server_flush(struct twi_server *server)
{
    for (tw_id id; (id = twi_workq_pop(&server->queue));) {
        struct twi_request *request = twi_request_address(id);
        if (!request) /* cannot be: the queue holds a reference */
            continue;
        twi_request_answer(request, TW_ELOGOFF, "", 0, NULL, 0, twi_now_ns());
        twi_request_unref(request); /* ours */
        twi_request_unref(request); /* the queue's */
    }
}

int
tw_server_close(tw_id id)
{
    struct twi_server *server = twi_server_address(id);
    if (!server)
        return -TW_STALE;
    if (vref_fail(&server->vref, (uint32_t)(id >> 32))) {
        store_relaxed(&server->stopping, 1);
        store_seq_cst(&server->closed, 1);
        close_listeners(server);
        twi_socket_each(fail_connection, server);
        twi_server_flush(server);
        twi_workq_wake(&server->queue, INT32_MAX);
        twi_loop_wake(TWI_MAIN); /* a worker of ours may be polling */
        twi_server_unref(server); /* the additional reference */
    }
    twi_server_unref(server);
    return 0;
}

int64_t
tw_server_in_flight(tw_id id)
{
    struct twi_server *server = twi_server_address(id);
    if (!server)
        return 0;
    int64_t n = load_relaxed(&server->in_flight);
    twi_server_unref(server);
    return n;
}

int64_t
tw_server_connections(tw_id id)
{
    struct twi_server *server = twi_server_address(id);
    if (!server)
        return 0;
    int64_t n = load_relaxed(&server->connections);
    twi_server_unref(server);
    return n;
}
