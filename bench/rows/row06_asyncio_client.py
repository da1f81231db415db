"""Row 6: the asyncio client against grpc.aio's, each to its own sync server."""

from collections.abc import Iterator

from lib import process
from lib.bench import Bench, need_grpcio
from lib.figure import Figure, Line, at_least

DEPTH = 64


def row6(bench: Bench) -> Iterator[Line]:
    need_grpcio()
    with bench.echo() as ours, bench.grpc("sync") as theirs:

        def qps(kind: str, server: process.Server) -> float:
            seconds = f"{bench.seconds:g}"
            return bench.client(
                "async_calls.py", kind, server.address, seconds, str(DEPTH)
            )

        pairs = bench.alternate(
            "row 6", lambda: qps("tidewire", ours), lambda: qps("grpc", theirs)
        )
    yield Figure(
        row="6",
        what=f"asyncio client to a def server against grpc.aio, {DEPTH} in flight",
        target=at_least(10),
        values=pairs.ratios,
        ours=pairs.ours,
        peer=pairs.peer,
        sides_unit="calls/s",
    )
