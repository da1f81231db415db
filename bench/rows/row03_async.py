"""Row 3: an async def handler against what the kernel and the wire cost.

The targets are lower on Python 3.11, which cannot start a task eagerly.
"""

import sys
from collections.abc import Iterator

from lib.bench import Bench, shape_text
from lib.figure import Figure, Line, at_least

EAGER_TASKS = sys.version_info >= (3, 12)


def row3(bench: Bench) -> Iterator[Line]:
    yield _row(bench, (8, 1), 0.40 if EAGER_TASKS else 0.32)
    yield _row(bench, (8, 16), 0.08 if EAGER_TASKS else 0.06)


def _row(bench: Bench, shape: tuple[int, int], bound: float) -> Line:
    with bench.echo("--async") as ours, bench.echo_limit() as ceiling:
        pairs = bench.alternate(
            f"row 3, {shape_text(shape)}",
            bench.qps(ours, shape),
            bench.qps(ceiling, shape),
        )
    return Figure(
        row="3",
        what=f"async def handler against `echo_limit`, {shape_text(shape)}",
        target=at_least(bound),
        values=pairs.ratios,
        ours=pairs.ours,
        peer=pairs.peer,
        sides_unit="calls/s",
    )
