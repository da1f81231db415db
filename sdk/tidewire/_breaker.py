"""When a server's answers are so bad that it should get no calls for a while.

Decides and never waits.
"""

from typing import Final

from tidewire._locks import fork_safe

__all__ = ["Breaker"]

_EPSILON: Final = 0.02
"""What is left of a value after as many others as the window has."""
_LEAST_COST: Final = 500.0
"""Microseconds of failures that are forgotten at the next success."""
_MOST_TIMES: Final = 2.0
"""A failure costs its time, but no more than so many usual ones."""
_ISOLATION_FIRST: Final = 100_000
_ISOLATION_MOST: Final = 30_000_000
"""Microseconds: doubles from the one to the other."""
_FORGET: Final = 30_000_000
"""Microseconds of good behaviour after which it starts at the first again."""


class _Window:
    """The time that failures take, against that of all calls."""

    def __init__(self, size: int, percent: float) -> None:
        """size: calls.  percent: what failures may cost."""
        self._keep = _EPSILON ** (1 / size)
        self._size = size
        self._allowed = size * percent / 100
        self._usual = 0.0
        self._cost = 0.0
        # The first calls are counted instead: there is nothing to compare with.
        self._seen = self._failed = 0

    def reset(self) -> None:
        self._cost = 0.0
        if self._seen < self._size:
            self._seen = self._failed = 0
            self._usual = 0.0

    def healthy(self, failed: bool, latency_us: float) -> bool:
        """After one call more."""
        first = self._seen < self._size
        self._seen += first
        if not failed:
            if self._usual:
                self._usual = self._usual * self._keep + latency_us * (1 - self._keep)
            else:
                self._usual = latency_us
            self._cost = 0.0 if self._cost < _LEAST_COST else self._cost * self._keep
            return True
        most = _MOST_TIMES * self._usual
        self._cost += min(latency_us, most) if most else latency_us
        if first:
            self._failed += 1
            return self._failed <= self._allowed
        return self._cost <= self._usual * self._allowed * (1 + _EPSILON)


class Breaker:
    """Of one server.  Safe for any number of threads."""

    def __init__(self) -> None:
        self._lock = fork_safe()
        # A long look that sees 5 % of failures, and a short one for 10 %.
        self._windows = (_Window(3000, 5), _Window(1500, 10))
        self._isolation_us = 0
        self._reset_us = 0

    def isolation(self, failed: bool, latency_us: int, now_us: int) -> int:
        """For how many microseconds it gets no calls, after this one; mostly 0."""
        with self._lock:
            if all(window.healthy(failed, latency_us) for window in self._windows):
                return 0
            soon = self._isolation_us and now_us - self._reset_us < _FORGET
            self._isolation_us = (
                min(2 * self._isolation_us, _ISOLATION_MOST)
                if soon
                else _ISOLATION_FIRST
            )
            # It starts anew when it gets calls again.
            self._reset_us = now_us + self._isolation_us
            for window in self._windows:
                window.reset()
            return self._isolation_us
