"""Looks for what finds the weakening of the sites that are open.

    tries.py               all that were not tried yet
    tries.py WORD ...      those whose file, function or text has one of the
                           words, tried or not
    tries.py --with CHECK  all that are open, with this program under TSan

All sites of a file are weakened at once (--with: all of them): what passes then
would pass with any one of them, for fewer orders permit more.  Only a group that
fails is halved, to the single site, which must fail RUNS times of RUNS.  A group
that fails while both its halves pass covers for one another: it is printed, and
stays open.

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
from dataclasses import replace
from pathlib import Path

import weaken

UNTRIED = "not tried yet"
RUNS = 2  # all must fail

# Under TSan, the quickest first; the rest of the core needs the whole of it.
CORE = ("stress_core", "stress_core TW_LOOPS=3")
PEERS_SOCKET = tuple(
    f"test_{name} TW_LOOPS=3" for name in ("lives", "health", "connect")
)
TSAN = {
    "auth.c": ("stress_publish", *CORE),
    "auth.h": ("stress_publish", *CORE),
    "client.c": ("stress_publish", *CORE),
    "connect.c": (*PEERS_SOCKET, *CORE),
    "counters.c": ("stress_counters", *CORE),
    "iobuf.c": ("stress_publish", *CORE),
    "lent.c": ("stress_publish", *CORE),
    "loop.c": ("stress_publish", *CORE),
    "peer.c": (*PEERS_SOCKET, *CORE),
    "pressure.c": ("test_writes", *CORE),
    "raw.c": ("stress_publish", *CORE),
    "slab.c": ("stress_slab", "stress_vref", *CORE),
    "socket.c": ("stress_publish", "test_writes", *CORE),
    "timeouts.c": ("test_timeouts", *CORE),
    "vref.h": ("stress_vref", *CORE),
    "workq.c": ("stress_workq", *CORE),
    "writer.c": ("test_writes", *CORE),
    "wstack.c": ("stress_wstack", *CORE),
}
LITMUS = ("litmus_pairs",)
LITMUS_FILES = {"caller.c", "inbox.c", "loop.c", "workq.c", "wstack.c"}


def fails(swaps: list[weaken.Swap], how: str, check: str, runs: int) -> bool:
    """Whether the check fails in each of so many runs with these weakened."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        csrc = work / "csrc"
        shutil.copytree(weaken.ROOT / "csrc", csrc)
        # A call that holds another first: its text is then still the listed one.
        for swap in sorted(swaps, key=lambda s: -len(s.site.text)):
            assert weaken.weaken(swap.site, csrc), swap.site
        changed = {swap.site.file for swap in swaps}
        core = weaken.archive(csrc, changed, how, work)
        program, *variables = check.split()
        weaken.build(csrc, core, program, how, work / "program")
        return all(weaken.fails(work / "program", variables, 1) for _ in range(runs))


def culprits(swaps: list[weaken.Swap], how: str, check: str) -> Iterator[weaken.Swap]:
    """Those that the check finds, each by itself."""
    middle = len(swaps) // 2
    if not middle:
        if fails(swaps, how, check, RUNS):
            yield swaps[0]
    elif fails(swaps, how, check, 1):
        found = False
        for half in (swaps[:middle], swaps[middle:]):
            for swap in culprits(half, how, check):
                found = True
                yield swap
        if not found:
            sites = "; ".join(f"{s.site.function} {s.site.text}" for s in swaps)
            print(f"    {check} fails only with several of: {sites}", flush=True)


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


def found_by(swap: weaken.Swap, how: str, check: str) -> weaken.Swap:
    print(f"    {check}: {swap.site.function} {swap.site.text}", flush=True)
    return replace(swap, how=how, check=check, why="")


def try_file(file: str, swaps: list[weaken.Swap]) -> dict[weaken.Site, weaken.Swap]:
    """What is now known of the sites of the file."""
    known = {swap.site: swap for swap in swaps}
    passed: dict[weaken.Site, list[str]] = {swap.site: [] for swap in swaps}
    checks = [("tsan", check) for check in TSAN.get(file, CORE)]
    if file in LITMUS_FILES:
        checks += [("litmus", check) for check in LITMUS]
    for how, check in checks:
        left = [swap for swap in known.values() if swap.how == "open"]
        if how == "litmus":
            left = [swap for swap in left if shows_on_the_machine(swap)]
        if not left:
            continue
        for swap in left:
            passed[swap.site].append(check)
        for swap in culprits(left, how, check):
            known[swap.site] = found_by(swap, how, check)
    return {
        site: replace(swap, why=f"passed by {', '.join(passed[site])}")
        if swap.how == "open"
        else swap
        for site, swap in known.items()
    }


def wanted(swap: weaken.Swap, words: list[str]) -> bool:
    text = f"{swap.site.file} {swap.site.function} {swap.site.text}"
    if words:
        return swap.how == "open" and any(word in text for word in words)
    return swap.how == "open" and swap.why == UNTRIED


def write(known: dict[weaken.Site, weaken.Swap]) -> None:
    listed = [known.get(swap.site, swap) for swap in weaken.swaps()]
    weaken.SWAPS.write_text(weaken.listed(listed))
    weaken.TABLE.write_text(weaken.table())


def try_with(check: str) -> int:
    if fails([], "tsan", check, 1):
        print(f"{check} fails with nothing weakened")
        return 1
    for swap in culprits([s for s in weaken.swaps() if s.how == "open"], "tsan", check):
        write({swap.site: found_by(swap, "tsan", check)})
    return 0


def main(words: list[str]) -> int:
    if words[:1] == ["--with"]:
        return try_with(" ".join(words[1:]))
    files: dict[str, list[weaken.Swap]] = {}
    for swap in weaken.swaps():
        if wanted(swap, words):
            files.setdefault(swap.site.file, []).append(swap)
    sound: set[str] = set()
    for i, (file, swaps) in enumerate(files.items(), 1):
        print(f"[{i}/{len(files)}] {file}: {len(swaps)} sites", flush=True)
        for check in set(TSAN.get(file, CORE)) - sound:
            if fails([], "tsan", check, 1):
                print(f"{check} fails with nothing weakened")
                return 1
            sound.add(check)
        write(try_file(file, swaps))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
