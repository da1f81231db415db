"""Row 9: how long does a fast method wait while other handlers are slow?

The fast calls arrive at a fixed rate, so that a stalled server cannot slow
down the one who measures it.  Beside a handler that computes in Python every
fast call waits for the GIL (5 ms by default), so their rate is lower there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from lib import process, tools
from lib.bench import Bench
from lib.errors import BenchError
from lib.figure import Figure, Line, at_most

THREADS = 8
SERVICE = "bench.WorkService"
FAST_SHAPE = (8, 64)
SLOW_SECONDS = 2.0
WARMUP_SECONDS = 0.5
"""Within it the slow handlers have begun."""


@dataclass(frozen=True, slots=True)
class Case:
    what: str
    method: str
    handlers: int
    rate: int
    bound_ms: float


CASES = (
    Case("7 of 8 workers sleep", "Sleep", 7, 1000, 5),
    Case("one handler computes in Python", "Spin", 1, 100, 25),
    Case("one handler computes without the GIL", "Native", 1, 1000, 10),
)


def row9(bench: Bench) -> Iterator[Line]:
    for case in CASES:
        yield _row(bench, case)


def _row(bench: Bench, case: Case) -> Line:
    with bench.compute(THREADS) as server:
        p99 = bench.repeat(
            f"row 9, {case.what}, ms", lambda: _p99_ms(bench, server, case)
        )
    return Figure(
        row="9",
        what=f"p99 of a fast method at {case.rate}/s while {case.what}",
        target=at_most(case.bound_ms),
        values=p99,
        unit="ms",
    )


def _p99_ms(bench: Bench, server: process.Server, case: Case) -> float:
    # Slow calls follow each other for the whole round: each takes 2 s, or as
    # long as the round where that is shorter.
    slow_ms = int(min(SLOW_SECONDS, bench.seconds) * 1000)
    slow = tools.load_command(
        bench.programs,
        server.port,
        (case.handlers, 1),
        WARMUP_SECONDS + bench.seconds,
        service=SERVICE,
        method=case.method,
        sleep_ms=slow_ms,
    )
    with process.child(slow) as slow_load:
        fast = bench.load(
            server,
            FAST_SHAPE,
            service=SERVICE,
            method="Fast",
            rate=case.rate,
            warmup=WARMUP_SECONDS,
        )
        # It ends after its last handlers: the next round begins undisturbed.
        slow_load.finish(tools.SPARE_SECONDS)
    if fast.behind:
        raise BenchError(f"{fast.behind} fast calls were never sent: overloaded")
    return fast.p99_us / 1000
