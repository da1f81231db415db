"""Row 12: what `import tidewire` costs a program that only imports it."""

import sys
from collections.abc import Iterator

from lib import process, stubs
from lib.bench import Bench
from lib.figure import Figure, Line, at_most

UNWANTED = ("asyncio", "concurrent.futures", "prometheus_client")
IMPORT_SECONDS = 30.0


def row12(bench: Bench) -> Iterator[Line]:
    brought: set[str] = set()

    def import_ms() -> float:
        script = stubs.BENCH / "clients" / "import_time.py"
        argv = [sys.executable, str(script), *UNWANTED]
        milliseconds, names = process.run(argv, timeout=IMPORT_SECONDS).splitlines()
        brought.update(names.split())
        return float(milliseconds)

    times = bench.repeat("row 12, ms", import_ms)
    yield Figure(
        row="12",
        what="`import tidewire` in a fresh interpreter, without " + ", ".join(UNWANTED),
        target=at_most(60),
        values=times,
        unit="ms",
        faults=[f"imports {name}" for name in sorted(brought)],
    )
