"""Shows that every memory order in csrc is needed: weakens one site to relaxed,
builds a stress program with it, and expects that to fail.

x86 keeps most orders by itself, so a wrong one must be made visible: TSan judges
by the orders that are written, not by what the machine does (how = "tsan"); a
store that is no longer ordered before a load does show on x86 (how = "litmus");
and where the machine cannot show it, a planted fault of a model does what the
weaker order would permit (how = "model").  What nothing shows is listed with
the reason (how = "none"), what nobody has tried as how = "open".

    weaken.py            all sites of swaps.toml, one line each
    weaken.py WORD ...   those whose file, function or text has one of the words
    weaken.py --missing  entries for the sites that swaps.toml does not have
    weaken.py --table    writes docs/atomics.md

tries.py looks for what finds the weakening of sites that are open.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SWAPS = Path(__file__).with_name("swaps.toml")
TABLE = ROOT / "docs" / "atomics.md"
RUNS = 5  # of a program, until it fails
SECONDS = 60  # of a run; one that hangs has failed

ORDERED = re.compile(
    r"\b(?:(?:load|store|add|sub)_(?:acquire|release|seq_cst)"
    r"|atomic_(?:exchange|compare_exchange_\w+|fetch_\w+|load|store)(?:_explicit)?)\("
)
FUNCTION = re.compile(r"^(?!(?:if|for|while|switch|return)\b)(\w+)\(")


@dataclass(frozen=True)
class Site:
    """An ordered atomic: its file below csrc, its function, its text on one line."""

    file: str
    function: str
    text: str


@dataclass(frozen=True)
class Swap:
    site: Site
    how: str  # tsan, litmus, model, none, open
    check: str  # a program of tests/c, perhaps with variables; or "model FAULT_n"
    partner: str
    why: str


def _call(source: str, start: int) -> str:
    """The call that begins at start, to its closing parenthesis."""
    depth = 0
    for end in range(source.index("(", start), len(source)):
        depth += {"(": 1, ")": -1}.get(source[end], 0)
        if depth == 0:
            return source[start : end + 1]
    raise ValueError(source[start : start + 80])


def _blank_comments(source: str) -> str:
    """The same length, comments as blanks."""
    return re.sub(
        r"/\*.*?\*/",
        lambda m: re.sub(r"[^\n]", " ", m[0]),
        source,
        flags=re.DOTALL,
    )


def _calls(source: str) -> Iterator[tuple[str, int, str]]:
    """Function, position and text of every ordered atomic."""
    source = _blank_comments(source)
    function, at = "", 0
    for line in source.splitlines(keepends=True):
        named = FUNCTION.match(line)
        if named:
            function = named[1]
        for found in ORDERED.finditer(line):
            text = _call(source, at + found.start())
            orders = re.findall(r"memory_order_(\w+)", text)
            if not orders or set(orders) != {"relaxed"}:
                yield function, at + found.start(), text
        at += len(line)


def sources() -> list[Path]:
    found = sorted((ROOT / "csrc").rglob("*.[ch]"))
    return [path for path in found if path.name != "atomics.h"]


def sites() -> list[Site]:
    """Every ordered atomic in csrc; those that read the same in one function are
    one site."""
    found = {}
    for path in sources():
        name = str(path.relative_to(ROOT / "csrc"))
        for function, _, text in _calls(path.read_text()):
            found[Site(name, function, " ".join(text.split()))] = True
    return list(found)


def swaps() -> list[Swap]:
    return [
        Swap(
            Site(entry["file"], entry["function"], entry["text"]),
            entry["how"],
            entry.get("check", ""),
            entry.get("partner", ""),
            entry.get("why", ""),
        )
        for entry in tomllib.loads(SWAPS.read_text())["site"]
    ]


def weakened(text: str) -> str:
    """The same access, relaxed."""
    if "memory_order_" in text:
        return re.sub(r"memory_order_\w+", "memory_order_relaxed", text)
    if text.startswith("atomic_"):
        name, arguments = text.split("(", 1)
        orders = ", memory_order_relaxed" * (2 if "compare" in name else 1)
        return f"{name}_explicit({arguments[:-1]}{orders})"
    return re.sub(r"_(acquire|release|seq_cst)\(", "_relaxed(", text, count=1)


def weaken(site: Site, csrc: Path) -> int:
    """Rewrites the site in that copy of csrc; how often it stood there."""
    path = csrc / site.file
    source = path.read_text()
    hits = [
        (at, text)
        for function, at, text in _calls(source)
        if function == site.function and " ".join(text.split()) == site.text
    ]
    for at, text in reversed(hits):
        # Inner calls of the same text are left to the outer one.
        source = (
            source[:at]
            + weakened(source[at : at + len(text)])
            + source[at + len(text) :]
        )
    path.write_text(source)
    return len(hits)


@functools.cache
def objects(how: str) -> dict[str, Path]:
    """The untouched sources of csrc, compiled; they live as long as we do."""
    return compiled(ROOT / "csrc", how, Path(tempfile.mkdtemp(prefix="weaken-")), {})


def compiled(
    csrc: Path, how: str, out: Path, known: dict[str, Path]
) -> dict[str, Path]:
    """Every source of csrc as an object, those that are known taken as they are."""
    made = dict(known)
    running = []
    for path in sorted(csrc.rglob("*.c")):
        name = str(path.relative_to(csrc))
        if name in known:
            continue
        made[name] = out / (name.replace("/", "_") + ".o")
        command = [*compiler(csrc, how), "-c", str(path), "-o", str(made[name])]
        running.append(subprocess.Popen(command))
        if len(running) == 2:
            assert running.pop(0).wait() == 0
    assert all(one.wait() == 0 for one in running)
    return made


def compiler(csrc: Path, how: str) -> list[str]:
    return [
        *["cc", "-std=c11", "-D_GNU_SOURCE", "-O2", "-g", "-w", "-pthread"],
        *(["-fsanitize=thread"] if how == "tsan" else []),
        *[f"-I{csrc}", f"-I{csrc / 'proto'}", f"-I{ROOT / 'tests' / 'c'}"],
    ]


def archive(csrc: Path, changed: set[str], how: str, out: Path) -> Path:
    """csrc, of which some files were changed, as an archive below out: as the
    tests are linked, since a program may bring a symbol itself."""
    known = {}
    if all(file.endswith(".c") for file in changed):
        untouched = objects(how).items()
        known = {name: path for name, path in untouched if name not in changed}
    made = compiled(csrc, how, out, known)
    core = out / f"core-{how}.a"
    subprocess.run(["ar", "rcs", core, *made.values()], check=True)
    return core


def build(csrc: Path, core: Path, program: str, how: str, out: Path) -> None:
    """Builds a program of tests/c with that csrc."""
    source = ROOT / "tests" / "c" / f"{program}.c"
    command = [*compiler(csrc, how), str(source), str(core), "-o", str(out)]
    subprocess.run(command, check=True)


def fails(program: Path, variables: list[str], runs: int = RUNS) -> str:
    """How the program failed in one of its runs, "" if it never did."""
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    environment.update(variable.split("=") for variable in variables)
    for _ in range(runs):
        try:
            done = subprocess.run(
                [program],
                capture_output=True,
                text=True,
                timeout=SECONDS,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            return "hangs"
        if "WARNING: ThreadSanitizer" in done.stderr:
            return "race"
        if done.returncode:
            return "fails"
    return ""


def show(swap: Swap) -> tuple[bool, str]:
    """Whether the weakening is found, and how."""
    if swap.how in ("none", "open"):
        return True, f"not shown: {swap.why}"
    if swap.how == "model":
        # The planted fault is what the weaker order permits; test_models.py
        # has it found.
        return True, f"model {swap.check}"
    with tempfile.TemporaryDirectory() as work:
        csrc = Path(work) / "csrc"
        shutil.copytree(ROOT / "csrc", csrc)
        if not weaken(swap.site, csrc):
            return False, "the site is gone: update swaps.toml"
        program = Path(work) / "program"
        name, *variables = swap.check.split()
        core = archive(csrc, {swap.site.file}, swap.how, Path(work))
        build(csrc, core, name, swap.how, program)
        how = fails(program, variables)
    if not how:
        return False, f"{swap.check} passes all the same"
    return True, f"{swap.check}: {how}"


def missing() -> list[Site]:
    listed = {swap.site for swap in swaps()}
    return [site for site in sites() if site not in listed]


def quoted(text: str) -> str:
    return "'" + text + "'" if "'" not in text else '"' + text.replace('"', '\\"') + '"'


def listed(swaps: list[Swap]) -> str:
    """What stands in swaps.toml when it lists these."""
    lines = [
        "# Every ordered atomic of csrc, and what fails when it is weakened to",
        "# relaxed: see weaken.py, whose --missing prints entries for new sites.",
    ]
    for swap in swaps:
        lines += ["", "[[site]]"]
        for name in ("file", "function", "text"):
            lines.append(f"{name} = {quoted(getattr(swap.site, name))}")
        for name in ("how", "check", "partner", "why"):
            if getattr(swap, name):
                lines.append(f"{name} = {quoted(getattr(swap, name))}")
    return "\n".join(lines) + "\n"


def table() -> str:
    lines = [
        "# Atomics",
        "",
        "Every atomic access of csrc with an order, whom it is paired with, and what",
        "fails when it is weakened to relaxed.  Written by `tests/weaken/weaken.py",
        "--table` from `tests/weaken/swaps.toml`; `make weaken` runs it.",
        "",
        "*tsan*: the stress program under ThreadSanitizer; *litmus*: the program on",
        "the machine itself; *model*: the planted fault of that model is what the",
        "weaker order permits; *none*: nothing shows it, and why; *open*: not shown",
        "yet.",
        "",
    ]
    file = ""
    for swap in swaps():
        if swap.site.file != file:
            file = swap.site.file
            lines += [f"## {file}", "", "| in | access | partner | found by |"]
            lines += ["| --- | --- | --- | --- |"]
        found = f"{swap.how}: {swap.check or swap.why}"
        text = swap.site.text.replace("|", "\\|")
        lines.append(
            f"| {swap.site.function} | `{text}` | {swap.partner or '-'} | {found} |"
        )
    grouped = "\n".join(lines)
    return re.sub(r"(\|)\n(## )", r"\1\n\n\2", grouped) + "\n"


def main(words: list[str]) -> int:
    if words == ["--missing"]:
        for site in missing():
            print("[[site]]")
            for name in ("file", "function", "text"):
                print(f"{name} = {quoted(getattr(site, name))}")
            print("how = ''\n")
        return 0
    if words == ["--table"]:
        TABLE.write_text(table())
        return 0
    wanted = [
        swap
        for swap in swaps()
        if not words
        or any(
            w in f"{swap.site.file} {swap.site.function} {swap.site.text}"
            for w in words
        )
    ]
    unfound = 0
    for i, swap in enumerate(wanted, 1):
        good, said = show(swap)
        unfound += not good
        site = f"{swap.site.file} {swap.site.function}: {swap.site.text}"
        print(
            f"[{i}/{len(wanted)}] {'ok  ' if good else 'FAIL'} {site}: {said}",
            flush=True,
        )
    print(f"{unfound} of {len(wanted)} weakenings are not found")
    return unfound > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
