"""What bounds a process's memory, by the files that say so."""

from pathlib import Path

import pytest
from tidewire import _memory

GIB = 1 << 30


def files(root: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc__meminfo": f"MemFree: 1 kB\nMemTotal:  {8 * GIB // 1024} kB\n"}


def test_this_machine_has_memory() -> None:
    assert _memory.budget() > 1 << 20


def test_a_quarter_of_the_machines(tmp_path: Path) -> None:
    assert _memory.budget(files(tmp_path, **MEMINFO)) == 2 * GIB


@pytest.mark.parametrize("own", ["max", str(3 * GIB)])
def test_a_control_group_and_those_around_it(tmp_path: Path, own: str) -> None:
    files(tmp_path, proc__self__cgroup="0::/a/b\n", **MEMINFO)
    group = tmp_path / "sys/fs/cgroup/a/b"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(own + "\n")
    (group.parent / "memory.max").write_text(f"{4 * GIB}\n")
    assert _memory.budget(tmp_path) == (GIB if own == "max" else 3 * GIB // 4)


def test_a_group_of_version_1(tmp_path: Path) -> None:
    files(tmp_path, proc__self__cgroup="5:cpu,memory:/a\n3:pids:/a\n", **MEMINFO)
    group = tmp_path / "sys/fs/cgroup/memory/a"
    group.mkdir(parents=True)
    # No limit there is a number larger than any memory.
    (group / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert _memory.budget(tmp_path) == 2 * GIB
    (group / "memory.limit_in_bytes").write_text(f"{GIB}\n")
    assert _memory.budget(tmp_path) == GIB // 4


def test_a_container_that_sees_only_its_own_group(tmp_path: Path) -> None:
    files(tmp_path, proc__self__cgroup="0::/../host/path\n", **MEMINFO)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{2 * GIB}\n")
    assert _memory.budget(tmp_path) == GIB // 2


@pytest.mark.parametrize("text", ["", "MemTotal: much kB\n", "nonsense\n"])
def test_when_nobody_says_there_is_no_limit(tmp_path: Path, text: str) -> None:
    assert _memory.budget(files(tmp_path, proc__meminfo=text)) == 0
