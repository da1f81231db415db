"""Rows 1 and 2: a def handler against what the kernel and the wire cost.

The question: how much of the ceiling is left when Python runs the handler?
"""

from collections.abc import Iterator

from lib.bench import Bench, shape_text
from lib.figure import Figure, Line, at_least


def row1(bench: Bench) -> Iterator[Line]:
    yield _row(bench, "1", (8, 1), 0.60)


def row2(bench: Bench) -> Iterator[Line]:
    yield _row(bench, "2", (8, 16), 0.18)


def _row(bench: Bench, row: str, shape: tuple[int, int], bound: float) -> Line:
    with bench.echo() as ours, bench.echo_limit() as ceiling:
        pairs = bench.alternate(
            f"row {row}", bench.qps(ours, shape), bench.qps(ceiling, shape)
        )
    return Figure(
        row=row,
        what=f"def handler against `echo_limit`, {shape_text(shape)}",
        target=at_least(bound),
        values=pairs.ratios,
        ours=pairs.ours,
        peer=pairs.peer,
        sides_unit="calls/s",
    )
