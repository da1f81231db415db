"""The echo example's stubs, generated once per run: importing this does it."""

import atexit
import shutil
import sys
import tempfile
from pathlib import Path

from tidewire.cli import main

__all__ = ["ECHO", "ROOT", "WHERE", "echo_pb2", "echo_tw"]

ROOT = Path(__file__).resolve().parents[1]
ECHO = ROOT / "examples/echo"

WHERE = Path(tempfile.mkdtemp(prefix="tidewire-tests-"))
"""A directory for sys.path; `echo_stubs` is in it."""
atexit.register(shutil.rmtree, WHERE, ignore_errors=True)

_status = main(
    [
        "gen",
        str(ECHO / "echo.proto"),
        "-I",
        str(ECHO),
        "-o",
        str(WHERE / "echo_stubs"),
        "-q",
    ]
)
assert _status == 0, "tidewire gen failed"
sys.path.append(str(WHERE))

from echo_stubs import echo_pb2, echo_tw  # noqa: E402
