"""How long the machine kept threads waiting, so that a test of a time can tell
a slow product from a slow machine.

A thread on every processor sleeps 5 ms over and over and notes how much later
it woke.  As threads of this process they also notice the interpreter lock; as
a process of their own (`outside=True`) only the machine.

    python tests/tools/stalls.py [SECONDS]     prints what it notices
"""

import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

PERIOD_NS = 5_000_000
NOTED_NS = 500_000
"""Waking later than this is noted; less is a timer's way."""
KEPT = 1 << 15
"""Stalls remembered; a minute and a half of a machine that stalls all the time."""


class Stall(NamedTuple):
    """A thread that should have run from `begin_ns` on ran at `end_ns`."""

    cpu: int
    begin_ns: int
    end_ns: int


def _watch(cpu: int, stop: threading.Event, note: Callable[[Stall], Any]) -> None:
    """Until told to stop, or the process loses its parent."""
    # This thread's only.  In a sandbox without it, it notices what it can.
    with suppress(OSError):
        os.sched_setaffinity(0, {cpu})
    while not stop.is_set():
        due = time.monotonic_ns() + PERIOD_NS
        time.sleep(PERIOD_NS / 1e9)
        now = time.monotonic_ns()
        if now - due > NOTED_NS:
            note(Stall(cpu, due, now))


class StallMonitor:
    """Notes stalls while it is entered; what it noted stays."""

    def __init__(self, *, outside: bool = False) -> None:
        self.stalls: deque[Stall] = deque(maxlen=KEPT)
        self._lock = threading.Lock()
        self._outside = outside
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "StallMonitor":
        if self._outside:
            self._process = subprocess.Popen(
                [sys.executable, "-S", __file__, "inf"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert self._process.stdout is not None
            self._process.stdout.readline()  # it watches
            work: list[tuple[Any, ...]] = [(self._read,)]
        else:
            work = [
                (_watch, cpu, self._stop, self._note)
                for cpu in sorted(os.sched_getaffinity(0))
            ]
        for function, *arguments in work:
            thread = threading.Thread(
                target=function, args=arguments, name="stall-monitor", daemon=True
            )
            thread.start()
            self._threads.append(thread)
        return self

    def _note(self, stall: Stall) -> None:
        with self._lock:
            self.stalls.append(stall)

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._note(Stall(*map(int, line.split())))

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
        for thread in self._threads:
            thread.join()
        if self._process is not None:
            assert self._process.stdout is not None
            self._process.stdout.close()

    def longest(self, begin_ns: int = 0, end_ns: int = 1 << 63) -> float:
        """Seconds of the longest stall that touches that time."""
        return max(self._within(begin_ns, end_ns), default=0) / 1e9

    def total(self, begin_ns: int = 0, end_ns: int = 1 << 63) -> float:
        """Seconds of all stalls, one after the other: what a chain of threads
        on all processors may have lost."""
        return sum(self._within(begin_ns, end_ns)) / 1e9

    def _within(self, begin_ns: int, end_ns: int) -> Iterator[int]:
        with self._lock:
            stalls = list(self.stalls)
        for stall in stalls:
            if stall.end_ns >= begin_ns and stall.begin_ns <= end_ns:
                yield stall.end_ns - stall.begin_ns


class Watch:
    """A stretch of time and what the machine took of it; filled at the end."""

    seconds = 0.0
    stalled = 0.0

    @property
    def undisturbed(self) -> float:
        """What is left of it without the machine's stalls: for upper bounds.
        Lower bounds take `seconds`."""
        return max(self.seconds - self.stalled, 0.0)

    def between(self, least: float, most: float) -> bool:
        """Whether it took that long and, but for the machine, no longer."""
        return least <= self.seconds and self.undisturbed < most

    def __repr__(self) -> str:
        return f"<{self.seconds:.3f} s, {self.stalled:.3f} of them stalls>"


@contextmanager
def watching() -> Iterator[Watch]:
    """Measures the block."""
    watch = Watch()
    with StallMonitor() as monitor:
        begin = time.monotonic_ns()
        try:
            yield watch
        finally:
            end = time.monotonic_ns()
            # A stall that is not over yet counts when its thread is back.
            watch.seconds = (end - begin) / 1e9
    watch.stalled = monitor.total(begin, end)


def _main(seconds: float) -> None:
    """Prints stalls until the time is over or standard input ends."""
    stop = threading.Event()

    def note(stall: Stall) -> None:
        # One write, so that the lines of several threads stay whole.
        os.write(1, f"{stall.cpu} {stall.begin_ns} {stall.end_ns}\n".encode())

    print("cpu begin_ns end_ns", flush=True)
    for cpu in sorted(os.sched_getaffinity(0)):
        threading.Thread(target=_watch, args=(cpu, stop, note), daemon=True).start()
    if seconds == float("inf"):
        sys.stdin.read()
    else:
        time.sleep(seconds)
    stop.set()


if __name__ == "__main__":
    _main(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0)
