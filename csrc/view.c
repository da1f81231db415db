#include "view.h"

#include <errno.h>

#include "atomics.h"
#include "call.h"
#include "credential.h"
#include "successor.h"
#include "sys.h"
#include "vref.h"

static struct twi_slab slab;

void
twi_views_init(void)
{
    twi_slab_init(&slab, sizeof(struct twi_view));
}

static void
recycle(struct twi_view *view)
{
    twi_peer_unref(view->peer);
    view->peer = NULL;
    twi_slab_give(&slab, view->slot);
}

static struct twi_view *
address(struct twi_view *view, uint32_t version)
{
    int rc = vref_address(&view->vref, version);
    if (rc < 0)
        recycle(view);
    return rc == 1 ? view : NULL;
}

struct twi_view *
twi_view_address(tw_id id)
{
    struct twi_view *view = twi_slab_at(&slab, (uint32_t)id);
    return view && id ? address(view, (uint32_t)(id >> 32)) : NULL;
}

void
twi_view_unref(struct twi_view *view)
{
    if (vref_unref(&view->vref))
        recycle(view);
}

tw_id
twi_view_id(const struct twi_view *view)
{
    return vref_id(vref_version(&view->vref) & ~1u, view->slot);
}

int
twi_view_closed(const struct twi_view *view)
{
    /* seq_cst: partner is vref_fail in close_view. */
    return (load_seq_cst(&view->vref) >> 32) % 2 != 0;
}

static void
close_view(struct twi_view *view)
{
    tw_id id = twi_view_id(view);
    if (!vref_fail(&view->vref, (uint32_t)(id >> 32)))
        return;
    if (twi_peer_part(view->peer))
        twi_peer_close(view->peer);
    else
        twi_calls_cancel(id);
    twi_view_unref(view);
}

void
twi_views_stop(void)
{
    for (uint32_t i = 0; i < twi_slab_end(&slab); i++) {
        struct twi_view *view = twi_slab_at(&slab, i);
        if (!address(view, vref_look(&view->vref)))
            continue;
        close_view(view);
        twi_view_unref(view);
    }
}

/* Of a peer of which the caller has a reference to give: 0 or -ENOMEM. */
static int
open_view(struct twi_peer *peer, int connection, tw_id *id)
{
    uint32_t slot = twi_slab_take(&slab);
    if (slot == TWI_SLAB_NONE)
        return -ENOMEM;
    struct twi_view *view = twi_slab_at(&slab, slot);
    view->slot = slot;
    view->peer = peer;
    view->connection = connection;
    *id = vref_id(vref_open(&view->vref, 1), slot);
    return 0;
}

static int
is_connection(int connection)
{
    return connection >= TW_SINGLE && connection <= TW_SHORT;
}

/* ---- api.h */

int
tw_peer_open(const char *text, const tw_peer_options *options, tw_id *id)
{
    struct twi_peer *peer;
    if (!is_connection(options->connection))
        return -EINVAL;
    int rc = twi_peer_open(text, options, &peer);
    if (!rc && (rc = open_view(peer, options->connection, id))) {
        twi_peer_close(peer);
        twi_peer_unref(peer);
    }
    return rc;
}

int
tw_peer_share(tw_id id, int connection, tw_id *another)
{
    if (!is_connection(connection))
        return -EINVAL;
    struct twi_view *view = twi_view_address(id);
    int rc = -TW_STALE;
    if (!view)
        return rc;
    struct twi_peer *peer = view->peer;
    if (twi_peer_join(peer)) {
        twi_peer_ref(peer);
        if ((rc = open_view(peer, connection, another))) {
            if (twi_peer_part(peer))
                twi_peer_close(peer);
            twi_peer_unref(peer);
        }
    }
    twi_view_unref(view);
    return rc;
}

int
tw_peer_close(tw_id id)
{
    struct twi_view *view = twi_view_address(id);
    if (!view)
        return -TW_STALE;
    close_view(view);
    twi_view_unref(view);
    return 0;
}

int
tw_peer_credential(tw_id id, const char *data, size_t len, int once)
{
    struct twi_view *view = twi_view_address(id);
    if (!view)
        return -TW_STALE;
    int rc = twi_credential_give(&view->peer->credential, data, len, once);
    if (!rc)
        twi_peer_promote(view->peer, twi_now_ns());
    twi_view_unref(view);
    return rc;
}

int
tw_peer_wants_credential(tw_id id)
{
    struct twi_view *view = twi_view_address(id);
    if (!view)
        return -TW_STALE;
    struct twi_peer *peer = view->peer;
    if (view->connection != TW_SINGLE) {
        int idle = view->connection == TW_POOLED && twi_pool_has_idle(peer);
        int asked = !idle && twi_credential_wanted(&peer->credential, NULL);
        twi_view_unref(view);
        return asked;
    }
    struct twi_socket *sock = twi_peer_socket(peer);
    int wants = twi_credential_wanted(&peer->credential, sock);
    if (!wants && twi_peer_has_successor(peer) &&
        twi_credential_lacks(&peer->credential))
        wants = 2;
    if (sock)
        twi_socket_unref(sock);
    twi_view_unref(view);
    return wants;
}
