"""What must hold of the C core's text: its system calls and its clocks."""

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SOURCES = sorted(path for path in CSRC.rglob("*.[ch]") if path.stem != "sys")

# What a table has no entry for since nobody should call it at all.
BESIDE_THE_TABLE = set(
    re.findall(
        r"\w+",
        """
        accept aligned_alloc calloc clock_nanosleep creat dup dup2 dup3 epoll_create
        epoll_pwait fopen fork getaddrinfo gettimeofday memfd_create mkdir
        mprotect mremap munmap nanosleep pipe pipe2 posix_memalign ppoll pread pselect
        pwrite readv realloc recvfrom recvmmsg recvmsg rename select send sendfile
        sendmmsg sendto sleep socketpair splice strdup strndup time usleep valloc
        vmsplice writev
        """,
    )
)


def code(path: Path) -> str:
    """A source without comments, strings and preprocessor lines."""
    text = path.read_text()
    return re.sub(
        r"/\*.*?\*/|\"(?:\\.|[^\"\\])*\"|^[ \t]*#.*?$", " ", text, flags=re.S | re.M
    )


def table() -> set[str]:
    struct = re.search(
        r"struct twi_sys \{(.*?)\n\};", (CSRC / "sys.h").read_text(), re.S
    )
    assert struct
    return set(re.findall(r"\(\*(\w+)\)", struct[1]))


def test_the_table_has_what_the_core_calls() -> None:
    assert {"recv", "sendmsg", "socket", "futex", "malloc", "mmap"} <= table()
    assert table().isdisjoint(BESIDE_THE_TABLE)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(CSRC)))
def test_system_calls_go_through_the_table(path: Path) -> None:
    """Faults can be planted in every call that may fail: no file but sys.c
    names one."""
    names = "|".join(sorted(table() | BESIDE_THE_TABLE))
    # A member, `ops->write(` or `twi_sys.write(`, is no call of that name.
    calls = re.findall(rf"(?<![\w.>])({names})\s*\(", code(path))
    assert not calls, f"through twi_sys, please: {calls}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(CSRC)))
def test_the_core_calls_no_python(path: Path) -> None:
    """L9: nothing of the interpreter's, and no pointer to a callback comes in
    through api.h; so no lock can be held around one."""
    text = path.read_text()
    assert not re.findall(r"\bPy[A-Z_]\w*|<Python\.h>|extern \"Python", text)
    if path.name == "api.h":
        assert "tw_submit" in text
        assert not re.findall(r"\(\s*\*", code(path))


def test_only_clocks_that_nobody_sets() -> None:
    """C11: deadlines are made of the monotonic clock, and the core knows no
    other but the threads' own CPU clocks."""
    clocks = {
        name
        for path in [*SOURCES, CSRC / "sys.c"]
        for name in re.findall(r"\bCLOCK_[A-Z_]+\b", code(path))
    }
    assert clocks == {"CLOCK_MONOTONIC", "CLOCK_THREAD_CPUTIME_ID"}
