"""The benchmark's tools, compiled once; its modules, importable."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))


@pytest.fixture(scope="session")
def bench_tools(tmp_path_factory):
    """The directory with prpc_load and echo_limit, built with warnings as errors."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to build bench/tools with")
    into = tmp_path_factory.mktemp("bench_tools")
    for name in ("prpc_load", "echo_limit"):
        source = str(BENCH / "tools" / f"{name}.c")
        flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([compiler, *flags, "-o", str(into / name), source], check=True)
    return into
