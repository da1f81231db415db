"""Callbacks of handlers whose caller is gone.

Those of `async def` handlers are called on their loop.  For `def` handlers one
daemon thread per process waits; the first that asks starts it.
"""

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

from tidewire import _core

__all__ = ["Watch", "fire", "watch"]

_log: Final = logging.getLogger("tidewire.server")
_lib: Final = _core.lib
_BATCH: Final = 64


class Watch:
    """The callbacks of one call."""

    __slots__ = ("__weakref__", "_callbacks", "_fired", "_lock", "_over")

    def __init__(self) -> None:
        # Held while callbacks run, so that end() waits for them; reentrant, as
        # they may add further ones.
        self._lock = threading.RLock()
        self._callbacks: list[Callable[[], object]] = []
        self._fired = self._over = False

    def add(self, callback: Callable[[], object]) -> None:
        """Calls it when the watch fires, or at once if it has."""
        with self._lock:
            if self._over:
                return
            if self._fired:
                _run(callback)
            else:
                self._callbacks.append(callback)

    def fire(self) -> None:
        """Calls all, the first time, unless end() came first."""
        with self._lock:
            if self._over:
                return
            self._fired = True
            while self._callbacks:
                _run(self._callbacks.pop(0))

    def end(self) -> None:
        """The handler has returned: nothing is called any more."""
        with self._lock:
            self._over = True
            self._callbacks.clear()


def _run(callback: Callable[[], object]) -> None:
    try:
        callback()
    except BaseException:
        # It must not end the thread or the loop that others depend on.
        _log.exception("a callback of on_cancel raised: %r", callback)


# By request; the context of the call keeps its watch.
_watches: "weakref.WeakValueDictionary[int, Watch]" = weakref.WeakValueDictionary()


def watch(request: int, on_loop: bool) -> Watch | None:
    """The watch of a request that is being handled, always the same one; None
    when it was answered."""
    with _core.handles_lock:
        found = _watches.get(request)
        if found is not None:
            return found
        made = _watches[request] = Watch()
    alive = _lib.tw_request_watch(request, 0 if on_loop else _running().inbox)
    if alive < 0:
        return None
    if alive == 0:
        made.fire()
    return made


def fire(request: int) -> None:
    """The request's caller is gone."""
    with _core.handles_lock:
        found = _watches.get(request)
    if found is not None:
        found.fire()


class _Listener:
    """The thread for `def` handlers."""

    def __init__(self) -> None:
        made = _core.ffi.new("tw_id *")
        _core.check(_lib.tw_inbox_open(made), "no inbox for cancellations")
        self.generation: Final = _core.generation
        self.inbox: Final[int] = made[0]
        threading.Thread(target=self._run, name="tidewire-cancel", daemon=True).start()

    def _run(self) -> None:
        events: Any = _core.ffi.new("tw_event[]", _BATCH)
        more = _core.ffi.new("int *")
        while True:
            code = _lib.tw_inbox_wait(self.inbox, -1, 0)
            count = _lib.tw_drain(self.inbox, 0, events, _BATCH, more)
            if count <= 0 and _core.events_lost(code):
                return
            for i in range(count):
                fire(events[i].id)


_listener: _Listener | None = None


def _running() -> _Listener:
    global _listener
    with _core.handles_lock:
        if _listener is None or _listener.generation != _core.generation:
            _listener = _Listener()
        return _listener
