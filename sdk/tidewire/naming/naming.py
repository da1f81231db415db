"""What finds the servers of a cluster."""

import contextlib
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

from tidewire.node import Node

__all__ = ["Naming", "PeriodicNaming", "Publish", "Stopping"]

Publish: TypeAlias = Callable[[Sequence[Node]], None]
"""Takes the whole list."""


class Stopping:
    """Tells a naming when to end; true once it should."""

    def __init__(self) -> None:
        self._event: Final = threading.Event()
        # The collector may close a channel, and so come to set(), anywhere.
        self._lock: Final = threading.RLock()
        self._sockets: Final[list[socket.socket]] = []

    def set(self) -> None:
        self._event.set()
        with self._lock:
            for sock in list(self._sockets):
                _cut(sock)

    @contextlib.contextmanager
    def cutting(self, sock: socket.socket) -> Iterator[None]:
        """While entered: when it should end, whatever waits for the socket ends,
        as if the peer had closed it.  Leave it before the socket is closed."""
        with self._lock:
            self._sockets.append(sock)
        try:
            if self:
                _cut(sock)
            yield
        finally:
            with self._lock:
                self._sockets.remove(sock)

    def wait(self, seconds: float) -> bool:
        """Waits so long, or until it should end: whether it should."""
        return self._event.wait(seconds)

    def __bool__(self) -> bool:
        return self._event.is_set()


def _cut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # Not its own method: that of a TLS socket takes away what is in use.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


class Naming(ABC):
    """Where the list of a cluster's servers comes from.

    Subclass it for a naming service of your own, and register it for a scheme."""

    @abstractmethod
    def run(self, publish: Publish, stopping: Stopping) -> None:
        """Publishes the list whenever it changes, until `stopping`.

        Runs in a thread of its own and may block.  What it raises is logged, and
        it is run again after a while; the list stays meanwhile."""


class PeriodicNaming(Naming):
    """One that is asked for the list again and again."""

    interval: float = 5.0
    """Seconds between two lookups."""

    @abstractmethod
    def lookup(self) -> Sequence[Node]:
        """The whole list.  May block, and raise what is wrong."""

    def run(self, publish: Publish, stopping: Stopping) -> None:
        while not stopping:
            publish(self.lookup())
            stopping.wait(self.interval)
