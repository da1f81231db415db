"""The list of one cluster as it is now, for all channels of the process."""

import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final, TypeAlias

from tidewire.naming.backoff import Backoff
from tidewire.naming.lists import StaticNaming
from tidewire.naming.naming import Naming, Stopping
from tidewire.node import Node

__all__ = ["Watch"]

_log: Final = logging.getLogger("tidewire.naming")

Callback: TypeAlias = Callable[[Sequence[Node]], None]

_forks = 0
_watches: "weakref.WeakSet[Watch]" = weakref.WeakSet()


class Watch:
    """Runs a naming in a thread and keeps the last good list.  Safe for any number
    of threads; ends with the last of those who opened it."""

    def __init__(self, url: str, naming: Naming) -> None:
        self.url: Final = url
        self._naming: Final = naming
        self._users = 0
        self.nodes: tuple[Node, ...] = ()
        """The list; empty as long as there was none."""
        self._latest: tuple[Node, ...] = ()
        """The same, or empty as it was found last."""
        self._callbacks: dict[int, tuple[Callback, bool]] = {}
        self._renew()
        _watches.add(self)

    def _renew(self) -> None:
        """As new but for the list: at first, and in a fork's child."""
        # Held while callbacks run, so that they see lists in their order.
        self._lock = threading.RLock()
        self._stopping = Stopping()
        self._forks = -1
        self.first: Future[tuple[Node, ...]] = Future()
        """Done once there was a list."""
        if self.nodes:
            self.first.set_result(self.nodes)

    # ---- who uses it

    def open(self) -> None:
        """One user more."""
        with self._lock:
            self._users += 1
        self.touch()

    def close(self) -> bool:
        """One less: whether that was the last."""
        with self._lock:
            self._users -= 1
            if self._users:
                return False
            self._stopping.set()
            return True

    def touch(self) -> None:
        """Starts the thread where there is none, as in a fork's child."""
        if self._forks == _forks:
            return
        with self._lock:
            if self._forks == _forks or not self._users:
                return
            self._forks = _forks
            if isinstance(self._naming, StaticNaming):
                self._publish(self._naming.nodes)
                return
            threading.Thread(
                target=self._run,
                args=(self._stopping,),
                name="tidewire-naming",
                daemon=True,
            ).start()

    def subscribe(
        self, callback: Callback, *, empty: bool = False
    ) -> Callable[[], None]:
        """Has every new list passed to the callback, in the watch's thread, and
        the present one, if there is one, at once.  What it gives ends that.
        empty: one that has become empty, too."""
        with self._lock:
            number = max(self._callbacks, default=0) + 1
            self._callbacks[number] = (callback, empty)
            if self.first.done():
                callback(self._latest if empty else self.nodes)

        def unsubscribe() -> None:
            with self._lock:
                self._callbacks.pop(number, None)

        return unsubscribe

    def wait_first(self, timeout: float | None) -> bool:
        """Blocks until there was a list: False after so many seconds."""
        try:
            self.first.result(timeout)
        except TimeoutError:
            return False
        return True

    # ---- the thread

    def _run(self, stopping: Stopping) -> None:
        backoff = Backoff(stopping, self.url, "the list stays as it was")

        def publish(nodes: Sequence[Node]) -> None:
            backoff.worked()
            if not stopping:
                self._publish(nodes)

        while not stopping:
            try:
                self._naming.run(publish, stopping)
                return
            except Exception as error:
                if not stopping:
                    backoff.failed(error)

    def _publish(self, nodes: Sequence[Node]) -> None:
        found = tuple(dict.fromkeys(nodes))
        with self._lock:
            if found == self._latest and self.first.done():
                return
            self._latest = found
            gone = not found and bool(self.nodes)
            if gone:
                _log.warning("%s: an empty list; it stays as it was", self.url)
            else:
                self.nodes = found
            for callback, empty in list(self._callbacks.values()):
                if gone and not empty:
                    continue
                try:
                    callback(found)
                except Exception:
                    _log.exception("%s: what was to take the list failed", self.url)
            if not self.first.done():
                self.first.set_result(found)


def _after_fork() -> None:
    """In the child: the threads are the parent's, and locks may be held."""
    global _forks
    _forks += 1
    for watch in list(_watches):
        watch._renew()


os.register_at_fork(after_in_child=_after_fork)
