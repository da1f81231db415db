"""The machine in a few lines: nothing that names it or its files."""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path


def describe() -> list[str]:
    """Markdown list items for the head of the report."""
    return [
        f"- date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        f"- CPU: {cpu_model()}, {len(os.sched_getaffinity(0))} cores usable",
        f"- kernel: {platform.system()} {platform.release()} {platform.machine()}",
        f"- Python: {platform.python_implementation()} {platform.python_version()}",
        *(f"- {name}: {version(name)}" for name in ("tidewire", "protobuf", "grpcio")),
    ]


def cpu_model() -> str:
    """What /proc/cpuinfo calls the first core."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    return platform.machine()


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
