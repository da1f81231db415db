"""Row 5: what the blocking client adds to a bare Python socket, call by call."""

from collections.abc import Iterator

from lib.bench import Bench
from lib.figure import Figure, Line, at_most


def row5(bench: Bench) -> Iterator[Line]:
    with bench.echo() as server:

        def p50(kind: str) -> float:
            address = server.address
            return bench.client("one_call.py", kind, address, f"{bench.seconds:g}")

        pairs = bench.alternate("row 5", lambda: p50("tidewire"), lambda: p50("socket"))
    yield Figure(
        row="5",
        what="blocking client against a bare Python socket, p50 of one call at a time",
        target=at_most(1.25),
        values=pairs.ratios,
        ours=pairs.ours,
        peer=pairs.peer,
        sides_unit="us",
    )
