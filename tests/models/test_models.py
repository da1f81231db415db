"""The protocols between threads, searched whole: spin's verifier goes through
every interleaving of the models beside this file, and finds every planted
fault.

A model is checked in several settings, each small enough to be searched to the
end in seconds; together they have everything that the model can do.  A failure
prints the steps that lead to it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DEPTH = 100_000
MEGABYTES = 1_500

# model, settings: nothing may be found.
HOLDS = [
    # 3 writers, 2 messages each
    ("wstack", "FAIL=0 CORKED_WRITERS=0"),
    ("wstack", "FAIL=0 AGAINS=0"),
    ("wstack", "AGAINS=0 CORKED_WRITERS=0"),
    ("wstack", "FAIL=0 AGAINS=0 CORKED_WRITERS=0 BREAK=1 SHUT=1"),
    ("wstack", "FAIL=0 AGAINS=0 CORKED_WRITERS=0 CONNECT=1 SHUT=1"),
    # 2 writers, and more at once
    ("wstack", "WRITERS=2 SHUT=1"),
    ("wstack", "WRITERS=2 FAIL=0 TICK=1 BREAK=1 AGAINS=0 CORKED_WRITERS=2"),
    ("wstack", "WRITERS=2 AGAINS=0 CONNECT=1"),
    ("id", ""),
    ("id", "EVENT USES=0"),
    ("id", "EVENT WALKER USES=0 FAILS=1"),
    ("id", "KEEP=0 WALKER FAILS=1"),
    ("call", ""),
    ("stop", ""),
    ("stop", "LOOP WORKERS=1"),
    ("stop", "DRAIN=0"),
    ("stop", "DRAIN=0 LOOP WORKERS=1"),
    ("baton", ""),
    ("baton", "CORK EARLY=0"),
    ("baton", "LEFTOVER WORKERS=1"),
    ("baton", "CALLER REQUESTS=1 EARLY=0"),
    ("baton", "CONSUMER=2 REQUESTS=1 EARLY=0"),
    ("baton", "CONSUMER=1 CORK WORKERS=1 REQUESTS=1 EARLY=0"),
    ("baton", "CONSUMER=1 CLOSE WORKERS=1 REQUESTS=1 EARLY=0"),
    ("baton", "CONSUMER=2 CLOSE WORKERS=1 REQUESTS=1 EARLY=0"),
    ("baton", "CONSUMER=1 WORKERS=1 REQUESTS=1 PUTS=2 EARLY=0"),
    ("baton", "CLOSE WORKERS=1 REQUESTS=1"),
    ("pressure", ""),
    ("pressure", "WORKERS=2 MESSAGES=2"),
    ("pressure", "HTTP"),
    ("shut", ""),
    ("pairs", ""),
    ("pairs", "BELL"),
    ("pairs", "PUBLISH"),
    ("ring", ""),
]

# model, planted fault, settings: something must be found.
FINDS = [
    ("wstack", "FAULT_1", "WRITERS=2 AGAINS=0"),
    ("wstack", "FAULT_2", "WRITERS=2 FAIL=0 CORKED_WRITERS=0"),
    ("wstack", "FAULT_3", "WRITERS=2 FAIL=0 CORKED_WRITERS=0"),
    ("wstack", "FAULT_4", "WRITERS=2 FAIL=0 CORKED_WRITERS=0"),
    ("wstack", "FAULT_5", "WRITERS=2 AGAINS=0 CORKED_WRITERS=0 CONNECT=1"),
    ("wstack", "FAULT_6", "WRITERS=2 FAIL=0 CORKED_WRITERS=0"),
    ("wstack", "FAULT_7", "WRITERS=2 FAIL=0"),
    ("wstack", "FAULT_8", "WRITERS=2 FAIL=0 CORKED_WRITERS=0 SHUT=1"),
    ("wstack", "FAULT_9", "WRITERS=2 FAIL=0 AGAINS=0 CORKED_WRITERS=0 CONNECT=1"),
    ("id", "FAULT_1", ""),
    ("id", "FAULT_2", "EVENT USES=0 FAILS=1"),
    ("id", "FAULT_3", ""),
    ("id", "FAULT_4", ""),
    ("id", "FAULT_5", ""),
    ("id", "FAULT_6", ""),
    ("id", "FAULT_7", ""),
    ("id", "FAULT_8", ""),
    ("call", "FAULT_1", ""),
    ("call", "FAULT_2", "CANCEL=0 DEADLINE=0"),
    ("call", "FAULT_3", "CANCEL=0"),
    ("call", "FAULT_4", "CANCEL=0"),
    ("call", "FAULT_5", "CANCEL=0 DEADLINE=0"),
    ("call", "FAULT_6", "CANCEL=0 DEADLINE=0"),
    ("stop", "FAULT_1", ""),
    ("stop", "FAULT_2", ""),
    ("stop", "FAULT_3", ""),
    ("stop", "FAULT_4", ""),
    ("stop", "FAULT_5", ""),
    ("stop", "FAULT_6", "LOOP WORKERS=1"),
    ("stop", "FAULT_7", ""),
    ("baton", "FAULT_1", ""),
    ("baton", "FAULT_2", "CALLER WORKERS=1 REQUESTS=1"),
    ("baton", "FAULT_3", "CONSUMER=1 WORKERS=1 REQUESTS=1"),
    ("baton", "FAULT_4", "CORK"),
    ("baton", "FAULT_5", ""),
    ("baton", "FAULT_6", "CONSUMER=1 WORKERS=1 REQUESTS=1"),
    ("baton", "FAULT_6", "CONSUMER=2 WORKERS=1 REQUESTS=1 EARLY=0"),
    ("baton", "FAULT_7", "CONSUMER=1 WORKERS=1 REQUESTS=1"),
    ("baton", "FAULT_7", "CONSUMER=2 WORKERS=1 REQUESTS=1 EARLY=0"),
    ("baton", "FAULT_7", "CONSUMER=2 CLOSE WORKERS=1 REQUESTS=1 EARLY=0"),
    ("baton", "FAULT_8", "CONSUMER=1 WORKERS=1 REQUESTS=1 PUTS=2 EARLY=0"),
    ("baton", "FAULT_9", "CALLER WORKERS=1 REQUESTS=1"),
    ("baton", "FAULT_10", "CONSUMER=2 CLOSE WORKERS=1 REQUESTS=1 EARLY=0"),
    ("baton", "FAULT_11", "CLOSE WORKERS=1 REQUESTS=1"),
    ("pressure", "FAULT_1", ""),
    ("pressure", "FAULT_2", ""),
    ("pressure", "FAULT_3", ""),
    ("pressure", "FAULT_4", ""),
    ("pressure", "FAULT_5", ""),
    ("pressure", "FAULT_6", ""),
    ("pressure", "FAULT_7", "HTTP"),
    ("shut", "FAULT_1", ""),
    ("shut", "FAULT_2", ""),
    ("shut", "FAULT_3", ""),
    ("shut", "FAULT_4", ""),
    ("shut", "FAULT_5", ""),
    ("pairs", "FAULT_1", ""),
    ("pairs", "FAULT_1", "BELL"),
    ("pairs", "FAULT_2", ""),
    ("pairs", "FAULT_2", "BELL"),
    ("pairs", "FAULT_1", "PUBLISH"),
    ("pairs", "FAULT_2", "PUBLISH"),
    ("ring", "FAULT_1", ""),
    ("ring", "FAULT_2", ""),
    ("ring", "FAULT_3", ""),
]

needs_spin = pytest.mark.skipif(
    shutil.which("spin") is None or shutil.which("cc") is None,
    reason="the models are not checked: spin is missing (Debian package spin)",
)


def search(tmp_path: Path, model: str, settings: str) -> tuple[int, str]:
    """Builds and runs the verifier: the errors it found, and what it says."""

    def run(*command: str) -> str:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
        return done.stdout

    shutil.copy(HERE / f"{model}.pml", tmp_path / "model.pml")
    defines = [f"-D{setting}" for setting in settings.split()]
    run("spin", "-a", *defines, "model.pml")
    # Not optimized: compiling would take longer than the search.
    run("cc", "-w", "-DSAFETY", f"-DMEMLIM={MEGABYTES}", "-o", "pan", "pan.c")
    # -E: threads that sleep in the end are judged by the model itself.
    said = run("./pan", "-E", f"-m{DEPTH}", "-w22")
    found = re.search(r"errors: (\d+)", said)
    assert found, said
    errors = int(found[1])
    if errors:
        trail = subprocess.run(
            ["spin", "-t", "-p", *defines, "model.pml"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        said += trail.stdout
    else:
        # Nothing found counts only if nothing was left out.
        assert "max search depth too small" not in said, said
        assert "reached -DMEMLIM bound" not in said, said
        assert "Search not completed" not in said, said
    return errors, said


@needs_spin
@pytest.mark.parametrize(("model", "settings"), HOLDS)
def test_model_holds(tmp_path: Path, model: str, settings: str) -> None:
    errors, said = search(tmp_path, model, settings)
    assert errors == 0, said


@needs_spin
@pytest.mark.parametrize(("model", "fault", "settings"), FINDS)
def test_planted_fault_is_found(
    tmp_path: Path, model: str, fault: str, settings: str
) -> None:
    errors, said = search(tmp_path, model, f"{fault} {settings}")
    assert errors > 0, said


def test_every_model_is_checked_and_every_planted_fault_is_looked_for() -> None:
    models = {path.stem for path in HERE.glob("*.pml")}
    assert {model for model, _ in HOLDS} == models
    for model in models:
        planted = set(re.findall(r"\bFAULT_\w+", (HERE / f"{model}.pml").read_text()))
        assert len(planted) >= 2, f"{model} has too few planted faults"
        assert {fault for m, fault, _ in FINDS if m == model} == planted
