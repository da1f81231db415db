"""The C tools: compiled for this run, driven, their output read."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import process
from lib.errors import BenchError

SOURCES = Path(__file__).resolve().parents[1] / "tools"
WARMUP_SECONDS = 0.2
COMPILE_SECONDS = 60.0
# What a load needs beside its seconds: connecting, and the longest drain.
SPARE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Load:
    """What prpc_load reports; times in microseconds."""

    qps: float
    p50_us: float
    p99_us: float
    start: float
    """CLOCK_MONOTONIC when it began, comparable with time.monotonic()."""
    intervals: list[tuple[float, int]]
    """End since `start`, right answers."""
    behind: int


@dataclass(frozen=True, slots=True)
class Tools:
    """Where the compiled programs are."""

    prpc_load: Path
    echo_limit: Path


def build(into: Path) -> Tools:
    """Compile both programs with the system's C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise BenchError("no C compiler: install gcc or clang")
    for name in ("prpc_load", "echo_limit"):
        process.run(
            [compiler, "-std=c11", "-O2", "-o", str(into / name), f"{name}.c"],
            timeout=COMPILE_SECONDS,
            cwd=SOURCES,
        )
    return Tools(into / "prpc_load", into / "echo_limit")


def load_command(
    tools: Tools, port: int, shape: tuple[int, int], seconds: float, **options: Any
) -> list[str]:
    """prpc_load with CONNECTIONS x DEPTH; options are its long options."""
    connections, depth = shape
    size = options.pop("message_bytes", 16)
    numbers = [port, connections, depth, f"{seconds:g}", size]
    return [
        str(tools.prpc_load),
        "--json",
        *(f"--{k.replace('_', '-')}={v}" for k, v in options.items()),
        *map(str, numbers),
    ]


def load(
    tools: Tools, port: int, shape: tuple[int, int], seconds: float, **options: Any
) -> Load:
    """Run prpc_load; a wrong or missing answer is a BenchError."""
    options.setdefault("warmup", WARMUP_SECONDS)
    argv = load_command(tools, port, shape, seconds, **options)
    timeout = seconds + float(options["warmup"]) + SPARE_SECONDS
    return parse_load(process.run(argv, timeout=timeout))


def parse_load(text: str) -> Load:
    """Read the JSON object of prpc_load --json."""
    said: Mapping[str, Any] = json.loads(text)
    return Load(
        qps=said["qps"],
        p50_us=said["p50_us"],
        p99_us=said["p99_us"],
        start=said["start"],
        intervals=[(end, count) for end, count in said["intervals"]],
        behind=said["behind"],
    )
