"""Row 13: how much memory of the server an idle connection holds.

Resident memory, so what the kernel keeps per socket is not in it.  Twice:
connections that never said anything, and connections that had one call.
Every round has a fresh server, since freed memory need not be given back.
"""

import contextlib
import resource
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from lib import process, tools
from lib.bench import Bench
from lib.errors import BenchError
from lib.figure import Figure, Line, at_most

CONNECTIONS = 2000
SPARE_FILES = 128
ANSWER_SECONDS = 10.0
WARM_SECONDS = 0.3

# One request for example.EchoService/Echo: header, meta, message.
_NAMES = b"\x0a\x13example.EchoService\x12\x04Echo"
_META = b"\x0a" + bytes([len(_NAMES)]) + _NAMES + b"\x20\x01"
_MESSAGE = b"\x0a\x10" + b"x" * 16
REQUEST = (
    (b"PRPC" + struct.pack(">II", len(_META) + len(_MESSAGE), len(_META)))
    + _META
    + _MESSAGE
)


def row13(bench: Bench) -> Iterator[Line]:
    _allow_files(CONNECTIONS + SPARE_FILES)
    yield _row(bench, "never used", talk=False)
    yield _row(bench, "after one call", talk=True)


def _row(bench: Bench, what: str, *, talk: bool) -> Line:
    held = bench.repeat(f"row 13, {what}, KiB", lambda: _kib_held(bench, talk))
    return Figure(
        row="13",
        what=f"memory per idle connection, {CONNECTIONS} connections {what}",
        target=at_most(4),
        values=held,
        unit="KiB",
    )


def _kib_held(bench: Bench, talk: bool) -> float:
    with bench.echo() as server, contextlib.ExitStack() as stack:
        # What the first connections and calls allocate once is not the question.
        tools.load(bench.programs, server.port, (8, 1), WARM_SECONDS)
        witness = stack.enter_context(_connect(server))
        _call(witness)
        before = resident_kib(server.pid)
        for _ in range(CONNECTIONS):
            connection = stack.enter_context(_connect(server))
            if talk:
                _call(connection)
        # Accepted in order: once the last one is answered all are there.
        _call(stack.enter_context(_connect(server)))
        return (resident_kib(server.pid) - before) / CONNECTIONS


def _connect(server: process.Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), ANSWER_SECONDS)


def _call(connection: socket.socket) -> None:
    connection.sendall(REQUEST)
    if not connection.recv(65536).startswith(b"PRPC"):
        raise BenchError("no answer on an idle connection")


def resident_kib(pid: int) -> float:
    """Resident memory of a process; smaps_rollup is exact, statm may lag."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return float(line.split()[1])
    raise BenchError("no Rss in smaps_rollup")


def _allow_files(need: int) -> None:
    # The server inherits the limit.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < need:
        if hard != resource.RLIM_INFINITY and hard < need:
            raise BenchError(f"needs {need} open files, the limit is {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))
