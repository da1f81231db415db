"""The performance targets, measured: prints the table as Markdown.

    python bench/run.py [--rows 1,2] [--rounds 9] [--seconds 2] [--quick] [--out FILE]
                        [--servers plain,dressed]

Contender and ceiling (or peer) alternate; a figure is the median of the ratios
of the pairs, with quartiles.  Progress goes to standard error.  The exit
status is 0 when every figure asked for was measured and reached its target,
1 otherwise; --quick only tells whether everything could be measured.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from lib import machine, table
from lib.bench import Bench
from lib.errors import BenchError, SkipRow
from lib.figure import Line, Missing
from rows import ROWS

ROUNDS = 9
SECONDS = 2.0
QUICK_ROUNDS = 1
QUICK_SECONDS = 0.3
PLAIN, DRESSED = "plain", "dressed"
DRESSED_ROWS = (1, 2, 3, 4, 7, 8, 9, 10, 11)
"""Those with a server of ours that the load is meant for."""
ADDED = ", with a hook and limits"


def main() -> int:
    arguments = _parse()
    # Ended by a signal, leave through the same blocks that Ctrl-C leaves through.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    rounds = QUICK_ROUNDS if arguments.quick else arguments.rounds
    seconds = QUICK_SECONDS if arguments.quick else arguments.seconds
    with tempfile.TemporaryDirectory(prefix="tidewire-bench-") as work:
        bench = Bench(rounds=rounds, seconds=seconds, work=Path(work))
        try:
            lines: list[Line] = []
            if PLAIN in arguments.servers:
                lines += measure(bench, arguments.rows)
            if DRESSED in arguments.servers:
                lines += measure(replace(bench, dressed=True), arguments.rows)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
    text = report(lines, rounds, seconds)
    sys.stdout.write(text)
    if arguments.out:
        arguments.out.write_text(text)
    return 0 if all(_fine(line, arguments.quick) for line in lines) else 1


def measure(bench: Bench, rows: Iterable[int]) -> Iterator[Line]:
    """Every line of every row; a row that breaks does not stop the others."""

    def named(line: Line) -> Line:
        return replace(line, what=line.what + ADDED) if bench.dressed else line

    for row in rows:
        if bench.dressed and row not in DRESSED_ROWS:
            continue
        try:
            for line in ROWS[row](bench):
                yield named(line)
        except SkipRow as skip:
            yield named(_missing(row, "skipped", skip))
        except (BenchError, OSError) as error:
            yield named(_missing(row, "failed", error))


def report(lines: Iterable[Line], rounds: int, seconds: float) -> str:
    """The head that describes machine and method, and the table."""
    head = [
        *machine.describe(),
        f"- method: {rounds} x {seconds:g} s per side, contender and peer in turn;"
        " load and server share the cores; median of the pairs [quartiles]",
    ]
    if rounds < ROUNDS or seconds < SECONDS:
        head.append("- **too few or too short rounds: these figures mean nothing**")
    return "\n".join(head) + "\n\n" + table.render(lines)


def parse_rows(text: str) -> list[int]:
    """`1,2` or `1,3-5`, in the order of the table."""
    chosen: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        try:
            chosen.update(range(int(first), int(last or first) + 1))
        except ValueError:
            raise argparse.ArgumentTypeError(f"not a row: {part!r}") from None
    if unknown := sorted(chosen - ROWS.keys()):
        raise argparse.ArgumentTypeError(f"no such row: {unknown[0]}")
    return sorted(chosen)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the performance targets.")
    parser.add_argument("--rows", type=parse_rows, default=sorted(ROWS))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="pairs per figure")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="per round")
    parser.add_argument(
        "--quick", action="store_true", help="one short pair: try the tools only"
    )
    parser.add_argument(
        "--servers",
        type=_servers,
        default=(PLAIN, DRESSED),
        help="ours as they are, and with a hook, limits and metrics on",
    )
    parser.add_argument("--out", type=Path, help="write the report here, too")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or not 0.1 <= arguments.seconds <= 60:
        parser.error("--rounds from 1, --seconds from 0.1 to 60")
    return arguments


def _servers(text: str) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    if unknown := set(chosen) - {PLAIN, DRESSED}:
        raise argparse.ArgumentTypeError(f"no such servers: {unknown.pop()!r}")
    return chosen


def _missing(row: int, verdict: str, why: Exception) -> Missing:
    print(f"row {row} {verdict}: {why}", file=sys.stderr, flush=True)
    # What went wrong may name files of this machine, which no report does.
    reason = str(why) if isinstance(why, SkipRow) else "see standard error"
    return Missing(row=str(row), what=_question(row), verdict=verdict, reason=reason)


def _question(row: int) -> str:
    """The first line of the row's module, without its number."""
    text = sys.modules[ROWS[row].__module__].__doc__ or ""
    return text.partition("\n")[0].partition(": ")[2].rstrip(".")


def _fine(line: Line, quick: bool) -> bool:
    if isinstance(line, Missing):
        return line.verdict == "skipped"
    return quick or line.reached


if __name__ == "__main__":
    sys.exit(main())
