"""Row 4: our servers against grpcio's, each driven at the same shape.

Ours by prpc_load, grpcio's by h2load: both are C programs of one thread.
"""

from collections.abc import Iterator

from lib import h2load
from lib.bench import Bench, need_grpcio, shape_text
from lib.figure import Figure, Line, at_least


def row4(bench: Bench) -> Iterator[Line]:
    h2load.find()
    need_grpcio()
    yield _row(bench, "sync", (8, 1), 20)
    yield _row(bench, "sync", (8, 16), 20)
    yield _row(bench, "async", (8, 1), 12)
    yield _row(bench, "async", (8, 16), 20)


def _row(bench: Bench, kind: str, shape: tuple[int, int], bound: float) -> Line:
    handler, options = ("def", ()) if kind == "sync" else ("async def", ("--async",))
    what = f"{handler} handler against grpcio {kind}, {shape_text(shape)}"
    with bench.echo(*options) as ours, bench.grpc(kind) as theirs:
        pairs = bench.alternate(
            f"row 4, {what}",
            bench.qps(ours, shape),
            lambda: h2load.load(theirs.port, shape, bench.seconds, bench.work),
        )
    return Figure(
        row="4",
        what=what,
        target=at_least(bound),
        values=pairs.ratios,
        ours=pairs.ours,
        peer=pairs.peer,
        sides_unit="calls/s",
    )
