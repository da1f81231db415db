"""Strict checkers accept generated modules and the code that people write on them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from codegen_cases import Outcome

_USAGE = """
import tidewire as tw
from golden.echo import echo_pb2, echo_tw


class Blocking(echo_tw.EchoService):
    def echo(
        self, request: echo_pb2.EchoRequest, ctx: tw.Context
    ) -> echo_pb2.EchoResponse:
        return echo_pb2.EchoResponse(message=request.message)


class Async(echo_tw.EchoService):
    async def echo(
        self, request: echo_pb2.EchoRequest, ctx: tw.Context
    ) -> echo_pb2.EchoResponse:
        return echo_pb2.EchoResponse(message=request.message)


class Wrong(echo_tw.EchoService):
    def echo(self, request: echo_pb2.EchoRequest, ctx: tw.Context) -> str:  # WRONG
        return request.message


def call(client: echo_tw.EchoClient) -> echo_pb2.EchoResponse:
    return client.echo(echo_pb2.EchoRequest(message="hello"), timeout=0.5)


async def acall(client: echo_tw.AsyncEchoClient) -> echo_pb2.EchoResponse:
    return await client.echo(echo_pb2.EchoRequest(message="hello"), timeout=0.5)


def misuse(client: echo_tw.EchoClient) -> None:
    client.echo("hello")  # WRONG
"""


@pytest.fixture(scope="module")
def project(outcomes: dict[str, Outcome]) -> Path:
    golden = outcomes["echo"].package.parent
    (golden / "__init__.py").touch()
    (golden / "usage.py").write_text(_USAGE)
    return golden.parent


def _wrong_lines() -> list[int]:
    lines = _USAGE.splitlines()
    return [number for number, line in enumerate(lines, 1) if "# WRONG" in line]


def _run(
    arguments: list[str], cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    if importlib.util.find_spec(arguments[0]) is None:
        pytest.skip(f"{arguments[0]} is not installed")
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_mypy_strict_accepts_generated_modules(project: Path, runtime: Path) -> None:
    done = _run(
        [
            "mypy",
            "--strict",
            "--follow-imports=silent",
            "--config-file=",
            "--no-error-summary",
            "--hide-error-codes",
            f"--cache-dir={project / 'cache'}",
            "-p",
            "golden",
        ],
        cwd=project,
        MYPYPATH=str(runtime),
    )
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    expected = [f"golden/usage.py:{number}: " for number in _wrong_lines()]
    assert len(errors) == len(expected), done.stdout + done.stderr
    assert all(map(str.startswith, errors, expected)), done.stdout


def test_pyright_accepts_generated_modules(project: Path, runtime: Path) -> None:
    configuration = {
        "include": ["golden"],
        # Checkers read the .pyi beside each of them, as importers do.
        "exclude": ["**/*_pb2.py"],
        "extraPaths": [str(runtime)],
        "typeCheckingMode": "standard",
        "pythonVersion": "3.11",
    }
    (project / "pyrightconfig.json").write_text(json.dumps(configuration))
    done = _run(
        ["pyright", "--outputjson", "--pythonpath", sys.executable], cwd=project
    )
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] > len(list(project.rglob("*_tw.py")))
    errors = [
        (Path(found["file"]).name, found["range"]["start"]["line"] + 1)
        for found in report["generalDiagnostics"]
        if found["severity"] == "error"
    ]
    assert errors == [("usage.py", number) for number in _wrong_lines()], done.stdout
