"""The books of a run: every call that was issued is completed exactly once, and
ends in the core by its deadline plus a grace.

Needs memory for the open calls only, however long the run is.
"""

import os
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import tidewire as tw
from tools.stalls import StallMonitor

SLOW = float(os.environ.get("TIDEWIRE_TEST_SLOW", "1"))
GRACE = 0.02 if SLOW <= 1 else 0.1
"""Seconds after its deadline by which the core has ended a call."""

OK = "ok"
CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class _Suspect:
    """A call that ended late, by the machine's fault or ours."""

    nonce: int
    late: float
    begin_ns: int
    end_ns: int


class Audit:
    """issue() before each call, complete() at its end; both from any thread.

    What ended late is held against the stalls that `monitor` noticed during the
    call.
    """

    def __init__(self, monitor: StallMonitor) -> None:
        self._monitor = monitor
        self._lock = threading.Lock()
        self._open: dict[int, tuple[int, float | None]] = {}
        self.issued = 0
        self.completed = 0
        self.doubled = 0
        """Completions of calls that were not open."""
        self.excused = 0
        """Calls that ended late while the machine stalled."""
        self.late: list[str] = []
        """The first of the calls that ended late by themselves."""
        self.late_calls = 0
        self.ends: Counter[tuple[str, str, str]] = Counter()
        """By (what, phase, sent)."""
        self.returned_late = 0
        """Calls that returned to Python after the grace, and the worst of them."""
        self.returned_worst = 0.0
        self._suspects: list[_Suspect] = []

    def issue(self, timeout: float | None) -> int:
        """A call that is about to begin: its nonce."""
        with self._lock:
            nonce = self.issued
            self.issued += 1
            self._open[nonce] = time.monotonic_ns(), timeout
        return nonce

    def complete(
        self, nonce: int, error: BaseException | None, elapsed: float | None = None
    ) -> None:
        """It has ended.  elapsed: what the core says that it took, if known (the
        RpcError of a call to one server knows it itself)."""
        now = time.monotonic_ns()
        if isinstance(error, tw.RpcError):
            how = f"{error.number}", error.phase.name, error.sent.name
            elapsed = error.elapsed if elapsed is None else elapsed
        elif error is None:
            how = OK, "", ""
        else:
            how = CANCELLED, "", ""
        with self._lock:
            begun = self._open.pop(nonce, None)
            if begun is None:
                self.doubled += 1
                return
            self.completed += 1
            self.ends[how] += 1
            begin, timeout = begun
            if timeout is None:
                return
            late = (now - begin) / 1e9 - timeout
            if late > GRACE:
                self.returned_late += 1
                self.returned_worst = max(self.returned_worst, late)
            if elapsed is not None and elapsed - timeout > GRACE:
                suspect = _Suspect(nonce, elapsed - timeout, begin, now)
                self._suspects.append(suspect)

    @property
    def open(self) -> int:
        """Calls under way."""
        with self._lock:
            return len(self._open)

    def settle(self) -> None:
        """Judges the suspects; now and then in a long run, since the monitor
        forgets, and at the end."""
        with self._lock:
            suspects, self._suspects = self._suspects, []
        for one in suspects:
            stall = self._monitor.longest(one.begin_ns, one.end_ns)
            if one.late <= GRACE + stall:
                self.excused += 1
                continue
            self.late_calls += 1
            if len(self.late) < 20:
                self.late.append(
                    f"call {one.nonce} ended {one.late * 1e3:.1f} ms after its deadline"
                    f" (longest stall of the machine {stall * 1e3:.1f} ms)"
                )

    def violations(self) -> list[str]:
        """Everything that does not add up, once no call is under way any more;
        empty when all is well."""
        self.settle()
        found = []
        if lost := self.open:
            some = ", ".join(map(str, list(self._open)[:10]))
            found.append(f"{lost} calls were lost: {some}")
        if self.doubled:
            found.append(f"{self.doubled} completions of calls that were not open")
        if self.issued != self.completed + lost:
            found.append(f"{self.issued} issued, {self.completed} completed")
        if self.late_calls:
            found.append(f"{self.late_calls} calls ended late")
        return found + self.late

    def report(self) -> str:
        """The audit, for people."""
        lines = [
            f"issued {self.issued}, completed {self.completed}, lost {self.open},"
            f" doubled {self.doubled}, late {self.late_calls}"
            f" ({self.excused} more while the machine stalled, at most"
            f" {self._monitor.longest() * 1e3:.1f} ms)",
            f"returned to Python over {GRACE * 1e3:.0f} ms late: {self.returned_late},"
            f" at most {self.returned_worst * 1e3:.1f} ms",
        ]
        for (what, phase, sent), count in self.ends.most_common():
            lines.append(f"  {count:>9} {_named(what)} {phase} {sent}".rstrip())
        return "\n".join(lines)

    def errors(self) -> Counter[str]:
        """How often calls ended with what."""
        with self._lock:
            ends: Counter[str] = Counter()
            for (what, _, _), count in self.ends.items():
                ends[_named(what)] += count
        return ends


def _named(what: Any) -> str:
    try:
        return tw.Errno(int(what)).name
    except ValueError:
        return str(what)
