"""Which of the core's peers there are: channels that go to the same addresses in
the same way share one."""

import threading
from collections.abc import Callable
from typing import Final

from tidewire import _core

__all__ = ["Endpoint", "join", "leave"]

_lib: Final = _core.lib


class Endpoint:
    """One of the core's peers, and the channels' handles on it."""

    def __init__(self, key: object) -> None:
        self.key: Final = key
        self.handles: Final[set[int]] = set()
        self.ask_lock: Final = threading.RLock()
        """Held while a function is asked for a credential."""


# By what they have in common; of this process.  Guarded by _core.handles_lock.
_endpoints: Final[dict[object, Endpoint]] = {}
_generation = -1


def join(key: object, connection: int, make: Callable[[], int]) -> tuple[Endpoint, int]:
    """The endpoint of the key, and a handle on it of the caller's own, for calls
    over that kind of connection.  make: opens its first.  _core.handles_lock held."""
    global _generation
    if _generation != _core.generation:
        _endpoints.clear()  # those of the process that this one was forked from
        _generation = _core.generation
    made = _core.ffi.new("tw_id *")
    endpoint = _endpoints.get(key)
    for known in tuple(endpoint.handles) if endpoint else ():
        code = _lib.tw_peer_share(known, connection, made)
        if code == -_lib.TW_STALE:
            continue  # the collector has closed a channel, in the midst of this
        _core.check(code, "the channel cannot be opened")
        handle: int = made[0]
        break
    else:
        handle = make()
        endpoint = _endpoints[key] = Endpoint(key)
    assert endpoint is not None
    endpoint.handles.add(handle)
    return endpoint, handle


def leave(endpoint: Endpoint, handle: int) -> None:
    """The handle is about to be closed.  _core.handles_lock held."""
    endpoint.handles.discard(handle)
    if not endpoint.handles and _endpoints.get(endpoint.key) is endpoint:
        del _endpoints[endpoint.key]
