"""How many retries, or backup requests, there may be for so many calls.

Decides and never waits.
"""

import time
from collections.abc import Callable
from typing import Final

__all__ = ["Budget", "Calls"]

_WINDOW: Final = 10
"""Seconds."""


class Calls:
    """How many calls there were lately.  The way of a call only adds to `begun`;
    what is looked at now and then is taken as spread evenly in between."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.begun = 0
        self.clock: Final = clock
        # When there had been how many.  Replaced as a whole: no lock is needed.
        self._marks: tuple[tuple[float, int], ...] = ((clock(), 0),)

    def lately(self) -> float:
        """Of the last 10 s."""
        now, begun, marks = self.clock(), self.begun, self._marks
        start = now - _WINDOW
        if now - marks[-1][0] >= 1:
            marks = (*marks, (now, begun))
        past = 0
        while past + 1 < len(marks) and marks[past + 1][0] <= start:
            past += 1
        self._marks = marks = marks[past:]
        since, before = marks[0]
        if since >= start:
            return begun - before
        until, then = marks[1] if len(marks) > 1 else (now, begun)
        return begun - before - (then - before) * (start - since) / (until - since)


class Budget:
    """Keeps what is spent within the last 10 s below a share of the calls, and
    something in any case."""

    def __init__(self, calls: Calls) -> None:
        self._calls: Final = calls
        self._second = 0
        # In each of the last seconds, the newest last.
        self._spent = [0] * _WINDOW

    def spend(self, share: float, floor: float = 0.0) -> bool:
        """Whether there may be one more, which is counted then.  floor: so many
        in a second in any case."""
        now = int(self._calls.clock())
        gone = min(now - self._second, _WINDOW)
        if gone > 0:
            self._spent = self._spent[gone:] + [0] * gone
            self._second = now
        if sum(self._spent) >= floor * _WINDOW + share * self._calls.lately():
            return False
        self._spent[-1] += 1
        return True
