"""Row 10: messages of 1 MiB, where copying is what costs."""

from collections.abc import Iterator

from lib.bench import Bench
from lib.figure import Figure, Line, at_least

SHAPE = (8, 4)
MESSAGE_BYTES = 1 << 20


def row10(bench: Bench) -> Iterator[Line]:
    with bench.echo() as ours, bench.echo_limit() as ceiling:
        pairs = bench.alternate(
            "row 10",
            bench.qps(ours, SHAPE, message_bytes=MESSAGE_BYTES),
            bench.qps(ceiling, SHAPE, message_bytes=MESSAGE_BYTES),
        )
    yield Figure(
        row="10",
        what="1 MiB echo against `echo_limit`, 8 x 4",
        target=at_least(0.50),
        values=pairs.ratios,
        ours=pairs.ours,
        peer=pairs.peer,
        sides_unit="calls/s",
    )
