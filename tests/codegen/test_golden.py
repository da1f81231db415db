"""The text of generated modules, and that they work wherever they are put."""

from __future__ import annotations

import difflib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from codegen_cases import CASES, REFUSED, Outcome, expected, generate, read

_IMPORT_ALL = """
import importlib, pkgutil, sys
import tidewire as tw
from google.protobuf.message import Message

package = importlib.import_module(sys.argv[1])
methods = 0
for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    module = importlib.import_module(info.name)
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    for cls in classes if info.name.endswith("_tw") else ():
        assert issubclass(cls, tw.Service | tw.Client | tw.AsyncClient), cls
        for name, method in cls.__tidewire_methods__.items():
            assert issubclass(method.request, Message), method
            assert issubclass(method.response, Message), method
            assert not issubclass(cls, tw.Service) or callable(getattr(cls, name))
            methods += 1
found = {name for name in sys.modules if name.endswith(("_pb2", "_tw"))}
assert all(name.startswith((sys.argv[1], "google.protobuf.")) for name in found), found
print(methods)
"""


@pytest.mark.parametrize("case", CASES)
def test_output_is_the_golden_one(case: str, outcomes: dict[str, Outcome]) -> None:
    golden, texts = expected(case), outcomes[case].texts()
    diff = [
        line
        for name in sorted({*golden, *texts})
        for line in difflib.unified_diff(
            golden.get(name, "").splitlines(),
            texts.get(name, "").splitlines(),
            f"{case}/out/{name}",
            f"generated {name}",
            lineterm="",
        )
    ]
    if golden != texts:
        hint = "If it should be so: python tests/codegen/update.py"
        pytest.fail("\n".join([*diff, "", hint]), pytrace=False)


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_case_writes_nothing(case: str, outcomes: dict[str, Outcome]) -> None:
    assert outcomes[case].status == 1
    assert not outcomes[case].package.exists()


@pytest.mark.parametrize("case", sorted({*CASES} - {*REFUSED}))
def test_package_imports_under_any_name_and_depth(
    case: str, outcomes: dict[str, Outcome], runtime: Path, tmp_path: Path
) -> None:
    shutil.copytree(outcomes[case].package, tmp_path / "some" / "where" / "renamed")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _IMPORT_ALL, "some.where.renamed"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(runtime)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (int(done.stdout) > 0) == (case != "no_services")


def test_output_is_the_same_every_time(
    outcomes: dict[str, Outcome], tmp_path: Path
) -> None:
    again = generate("packages", tmp_path / "elsewhere").package
    assert read(again, "*") == read(outcomes["packages"].package, "*")


def test_output_is_as_ruff_would_format_it(outcomes: dict[str, Outcome]) -> None:
    ruff = shutil.which("ruff", path=Path(sys.executable).parent) or pytest.skip(
        "ruff is not installed"
    )
    modules = [
        path
        for outcome in outcomes.values()
        for path in outcome.package.rglob("*_tw.py")
    ]
    for arguments in (
        ["format", "--isolated", "--diff"],
        # Not E501: some names are longer than a line.
        ["check", "--isolated", "--select=F,W,I,UP,B,SIM,C4,PIE,RUF012"],
    ):
        done = subprocess.run(
            [ruff, *arguments, "--no-cache", *modules],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
