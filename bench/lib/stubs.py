"""Python modules for the protos the rows speak, generated for this run."""

import os
import sys
from pathlib import Path

from lib import process

BENCH = Path(__file__).resolve().parents[1]
ROOT = BENCH.parent
PROTOS = (
    ROOT / "tests" / "interop" / "captures" / "echo.proto",
    BENCH / "proto" / "work.proto",
)
PACKAGE = "bench_stubs"
GENERATE_SECONDS = 60.0


def generate(into: Path) -> dict[str, str]:
    """Make `bench_stubs` under `into`; returns the environment that finds it."""
    process.run(
        [
            sys.executable,
            *("-m", "tidewire.cli", "gen", "-q", "-o", str(into / PACKAGE)),
            *(f"-I{proto.parent}" for proto in PROTOS),
            *map(str, PROTOS),
        ],
        timeout=GENERATE_SECONDS,
    )
    others = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(into), others] if others else [str(into)])
    return {"PYTHONPATH": path}
