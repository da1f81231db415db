"""Row 7: do 64 threads serve 64 handlers at a time when each sleeps 10 ms?"""

from collections.abc import Iterator

from lib.bench import Bench, shape_text
from lib.figure import Figure, Line, at_least

THREADS = 64
SLEEP_MS = 10
IDEAL = THREADS * 1000 / SLEEP_MS


def row7(bench: Bench) -> Iterator[Line]:
    yield _row(bench, (64, 1))
    yield _row(bench, (1, 64))


def _row(bench: Bench, shape: tuple[int, int]) -> Line:
    with bench.echo("--threads", str(THREADS)) as server:
        ours = bench.repeat(
            f"row 7, {shape_text(shape)}",
            bench.qps(server, shape, sleep_ms=SLEEP_MS),
        )
    return Figure(
        row="7",
        what=f"handlers that sleep {SLEEP_MS} ms, threads={THREADS}, "
        f"against {IDEAL:,.0f}/s, {shape_text(shape)}",
        target=at_least(0.85),
        values=[qps / IDEAL for qps in ours],
        ours=ours,
        peer=[IDEAL],
        sides_unit="calls/s",
    )
