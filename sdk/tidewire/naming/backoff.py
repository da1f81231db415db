"""What is tried again and again until it works."""

import logging
import random
from typing import Final

from tidewire.naming.naming import Stopping

__all__ = ["Backoff"]

_log: Final = logging.getLogger("tidewire.naming")

_FIRST: Final = 0.1
_MOST: Final = 10.0
"""Seconds: a pause doubles from the one to the other, and chance shortens it to
as little as its half."""


class Backoff:
    """The pauses after failures, and a line of the log for each kind of them."""

    def __init__(self, stopping: Stopping, what: str, so: str) -> None:
        """what: fails.  so: what follows from that, for the log."""
        self._stopping: Final = stopping
        self._what: Final = what
        self._so: Final = so
        self.worked()

    def worked(self) -> None:
        """The next failure is a first one."""
        self._pause = _FIRST
        self._said: set[str] = set()

    def failed(self, error: Exception) -> None:
        """Waits until it is time to try again, or to stop."""
        said = f"{type(error).__name__}: {error}"
        if said not in self._said:
            self._said.add(said)
            _log.warning("%s: %s; %s", self._what, said, self._so)
        self._stopping.wait(self._pause * (0.5 + random.random() / 2))
        self._pause = min(2 * self._pause, _MOST)
