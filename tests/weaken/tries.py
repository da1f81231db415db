"""Looks for what finds the weakening of the sites that are open.

    tries.py             all that were not tried yet
    tries.py WORD ...    those whose file, function or text has one of the words,
                         tried or not

All sites of a file are weakened at once: what passes then would pass with any
one of them, for fewer orders permit more.  Only a group that fails is halved, to
the single site, which must fail RUNS times of RUNS.  A group that fails while
both its halves pass covers for one another: it is printed, and stays open.

What was found is written to swaps.toml after each file, so this can be stopped
and started again.  A program that fails untouched would find everything: it is
run once before.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import weaken

UNTRIED = "not tried yet"
RUNS = 2  # all must fail

# Under TSan, the quickest first; the rest of the core needs the whole of it.
CORE = ("stress_core", "stress_core TW_LOOPS=3", "test_core", "test_core TW_LOOPS=3")
TSAN = {
    "slab.c": ("stress_slab", "stress_vref", *CORE),
    "vref.h": ("stress_vref", *CORE),
    "workq.c": ("stress_workq", *CORE),
    "wstack.c": ("stress_wstack", *CORE),
    "connect.c": ("test_connect TW_LOOPS=3", *CORE),
    "peer.c": ("test_connect TW_LOOPS=3", *CORE),
    "timeouts.c": ("test_timeouts", *CORE),
    "socket.c": ("test_writes", *CORE),
}
LITMUS = ("litmus_pairs",)
LITMUS_FILES = {"caller.c", "inbox.c", "loop.c", "workq.c", "wstack.c"}


@dataclass(frozen=True)
class Trial:
    """A file with some of its sites weakened."""

    file: str
    swaps: tuple[weaken.Swap, ...]

    def fails(self, how: str, check: str, runs: int) -> bool:
        """Whether the check fails in each of so many runs."""
        with tempfile.TemporaryDirectory() as name:
            work = Path(name)
            csrc = work / "csrc"
            shutil.copytree(weaken.ROOT / "csrc", csrc)
            # A call that holds another first: its text is then still the listed one.
            for swap in sorted(self.swaps, key=lambda s: -len(s.site.text)):
                assert weaken.weaken(swap.site, csrc), swap.site
            core = weaken.archive(csrc, self.file, how, work)
            program, *variables = check.split()
            weaken.build(csrc, core, program, how, work / "program")
            return all(
                weaken.fails(work / "program", variables, 1) for _ in range(runs)
            )

    def halves(self) -> tuple[Trial, Trial]:
        middle = len(self.swaps) // 2
        return (
            Trial(self.file, self.swaps[:middle]),
            Trial(self.file, self.swaps[middle:]),
        )


def culprits(trial: Trial, how: str, check: str) -> Iterator[weaken.Swap]:
    """The sites of the trial that the check finds, each by itself."""
    if len(trial.swaps) == 1:
        if trial.fails(how, check, RUNS):
            yield trial.swaps[0]
        return
    if not trial.fails(how, check, 1):
        return
    found = [swap for half in trial.halves() for swap in culprits(half, how, check)]
    if not found:
        sites = "; ".join(f"{s.site.function} {s.site.text}" for s in trial.swaps)
        print(f"    {check} fails only with several of: {sites}", flush=True)
    yield from found


def shows_on_the_machine(swap: weaken.Swap) -> bool:
    """Whether the weaker order compiles to anything else here."""
    with tempfile.TemporaryDirectory() as name:
        csrc = Path(name) / "csrc"
        shutil.copytree(weaken.ROOT / "csrc", csrc)
        source = csrc / swap.site.file

        def code() -> str:
            command = [*weaken.compiler(csrc, "litmus"), "-g0", "-S", "-o-", source]
            said = subprocess.run(command, check=True, capture_output=True, text=True)
            return re.sub(r"\.L\w+", ".L", said.stdout)

        before = code()
        weaken.weaken(swap.site, csrc)
        return code() != before


def try_file(file: str, swaps: list[weaken.Swap]) -> dict[weaken.Site, weaken.Swap]:
    """What is now known of the sites of the file."""
    known = {swap.site: swap for swap in swaps}
    checks = [("tsan", check) for check in TSAN.get(file, CORE)]
    if file in LITMUS_FILES:
        checks += [("litmus", check) for check in LITMUS]
    for how, check in checks:
        left = [swap for swap in known.values() if swap.how == "open"]
        if how == "litmus":
            left = [swap for swap in left if shows_on_the_machine(swap)]
        if not left:
            continue
        for swap in culprits(Trial(file, tuple(left)), how, check):
            known[swap.site] = replace(swap, how=how, check=check, why="")
            print(f"    {check}: {swap.site.function} {swap.site.text}", flush=True)
    passed = ", ".join(check for _, check in checks)
    return {
        site: replace(swap, why=f"passed by {passed}")
        if swap.how == "open" and swap.why == UNTRIED
        else swap
        for site, swap in known.items()
    }


def wanted(swap: weaken.Swap, words: list[str]) -> bool:
    text = f"{swap.site.file} {swap.site.function} {swap.site.text}"
    if words:
        return swap.how == "open" and any(word in text for word in words)
    return swap.how == "open" and swap.why == UNTRIED


def main(words: list[str]) -> int:
    files: dict[str, list[weaken.Swap]] = {}
    for swap in weaken.swaps():
        if wanted(swap, words):
            files.setdefault(swap.site.file, []).append(swap)
    sound: set[tuple[str, str]] = set()
    for i, (file, swaps) in enumerate(files.items(), 1):
        print(f"[{i}/{len(files)}] {file}: {len(swaps)} sites", flush=True)
        for check in TSAN.get(file, CORE):
            if ("tsan", check) not in sound and Trial("err.c", ()).fails(
                "tsan", check, RUNS
            ):
                print(f"{check} fails with nothing weakened")
                return 1
            sound.add(("tsan", check))
        known = try_file(file, swaps)
        listed = [known.get(swap.site, swap) for swap in weaken.swaps()]
        weaken.SWAPS.write_text(weaken.listed(listed))
        weaken.TABLE.write_text(weaken.table())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
