"""Row 8: do many threads hurt handlers that compute?  They fight for the GIL."""

from collections.abc import Iterator

from lib import process
from lib.bench import Bench
from lib.figure import Figure, Line, at_least, at_most

SHAPE = (8, 1)
MANY, ONE = 64, 1
SERVICE = "bench.WorkService"
WHAT = f"handlers that compute 200 us, threads={MANY} against {ONE}, 8 x 1"


def row8(bench: Bench) -> Iterator[Line]:
    p99: dict[int, list[float]] = {MANY: [], ONE: []}
    with bench.compute(MANY) as many, bench.compute(ONE) as one:

        def qps(server: process.Server, threads: int) -> float:
            load = bench.load(server, SHAPE, service=SERVICE, method="Short")
            p99[threads].append(load.p99_us / 1000)
            return load.qps

        pairs = bench.alternate("row 8", lambda: qps(many, MANY), lambda: qps(one, ONE))
    yield Figure(
        row="8",
        what=f"{WHAT}: throughput",
        target=at_least(0.95),
        values=pairs.ratios,
        ours=pairs.ours,
        peer=pairs.peer,
        sides_unit="calls/s",
    )
    yield Figure(
        row="8",
        what=f"{WHAT}: p99",
        target=at_most(1.25),
        values=[a / b for a, b in zip(p99[MANY], p99[ONE], strict=True)],
        ours=p99[MANY],
        peer=p99[ONE],
        sides_unit="ms",
    )
