"""Row 11: is the server as quick as before once other programs let go?

A load runs throughout; in its middle a foreign program keeps every core busy
for 5 s.  The figure is the time from there until the first quarter of a
second that is back within 10 % of the median before.  The ceiling goes
through the same, to show how much of it is the machine.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator

from lib import process, stubs, tools
from lib.bench import Bench, shape_text
from lib.figure import Figure, Line, at_most
from lib.recovery import recovery_seconds

STEP_SECONDS = 0.25
HOG_SECONDS = 5.0
AFTER_SECONDS = 4.0
START_SECONDS = 0.5


def row11(bench: Bench) -> Iterator[Line]:
    yield _row(bench, (8, 1))
    yield _row(bench, (8, 16))


def _row(bench: Bench, shape: tuple[int, int]) -> Line:
    with bench.echo() as ours, bench.echo_limit() as ceiling:
        pairs = bench.alternate(
            f"row 11, {shape_text(shape)}, s",
            lambda: _recovery(bench, ours, shape),
            lambda: _recovery(bench, ceiling, shape),
        )
    return Figure(
        row="11",
        what=f"back within 10 % after {HOG_SECONDS:.0f} s of a CPU hog on "
        f"every core, def handler, {shape_text(shape)}",
        target=at_most(1.0),
        values=pairs.ours,
        unit="s",
        ours=pairs.ours,
        peer=pairs.peer,
        sides_unit="s",
    )


def _recovery(bench: Bench, server: process.Server, shape: tuple[int, int]) -> float:
    before = START_SECONDS + bench.seconds
    # A short round is for trying this program out: a short hog, too.
    hog_seconds = min(HOG_SECONDS, 4 * bench.seconds)
    after = min(AFTER_SECONDS, 4 * bench.seconds)
    total = before + hog_seconds + after
    argv = tools.load_command(
        bench.programs, server.port, shape, total, interval=STEP_SECONDS
    )
    with process.child(argv) as running:
        time.sleep(before)
        hog_start, hog_end = _hog(hog_seconds)
        load = tools.parse_load(running.finish(after + tools.SPARE_SECONDS))
    return recovery_seconds(
        load.intervals, hog_start - load.start, hog_end - load.start
    )


def _hog(seconds: float) -> tuple[float, float]:
    """Keep every core busy; returns when that began and when it ended."""
    script = stubs.BENCH / "clients" / "spin.py"
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        spinners = []
        for core in sorted(os.sched_getaffinity(0)):
            argv = [sys.executable, str(script), str(core), f"{seconds:g}"]
            spinners.append(stack.enter_context(process.child(argv)))
        for spinner in spinners:
            spinner.finish(seconds + tools.SPARE_SECONDS)
    return start, time.monotonic()
