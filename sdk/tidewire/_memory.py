"""How much memory there is: the machine's, or the control group's limit."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

__all__ = ["budget", "limits"]

_PART: Final = 4


def budget(root: Path = Path("/")) -> int:
    """Bytes that messages may take in this process: a quarter of what there
    is; 0, no limit, when nobody says how much that is."""
    return min(limits(root), default=0) // _PART


def limits(root: Path = Path("/")) -> Iterator[int]:
    """Everything that bounds this process's memory, in bytes."""
    for line in _read(root / "proc/meminfo").splitlines():
        words = line.split()
        if words[:1] == ["MemTotal:"] and words[1].isdigit():
            yield int(words[1]) * 1024
    for line in _read(root / "proc/self/cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        # Version 2 has one hierarchy and names no controllers.
        if controllers == "":
            yield from _group(root / "sys/fs/cgroup", path, "memory.max")
        elif "memory" in controllers.split(","):
            where = root / "sys/fs/cgroup/memory"
            yield from _group(where, path, "memory.limit_in_bytes")


def _group(mount: Path, path: str, name: str) -> Iterator[int]:
    """The limits of a group and of those around it.  In a container the group's
    own path may not be visible; the mount's root then is the group."""
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    for depth in range(len(parts), -1, -1):
        text = _read(mount.joinpath(*parts[:depth], name)).strip()
        # "max", or nothing where the file is not there.
        if text.isdigit():
            yield int(text)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
