"""Children of the benchmark: started, waited for, always ended."""

import contextlib
import os
import re
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeVar, cast

from lib.errors import BenchError

START_SECONDS = 30.0
STOP_SECONDS = 5.0
FIRST_WORDS_BYTES = 4096
COMPLAINT_BYTES = 2000

# echo_limit says `port=N`, Python servers say `listening on HOST:N`.
_PORT = re.compile(rb"^(?:port=|listening on \S*:)(\d+)\s*$", re.MULTILINE)


class Child:
    """A running program; what it complains about is kept for error texts.

    Standard error goes to a file, so that a child can never block on it.
    """

    def __init__(self, popen: subprocess.Popen[bytes], complaints: IO[bytes]) -> None:
        self.popen = popen
        self._complaints = complaints

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def name(self) -> str:
        """The program, and the script where that is an interpreter."""
        argv = cast(list[str], self.popen.args)
        return " ".join(os.path.basename(a) for a in argv[:2] if a[:1] != "-")

    def finish(self, timeout: float) -> str:
        """Wait until it ends by itself; what it printed."""
        try:
            out, _ = self.popen.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{self.name} did not end in {timeout:g} s") from None
        text = out.decode(errors="replace")
        if self.popen.returncode:
            raise self.failure(text.strip())
        return text

    def failure(self, said: str = "") -> BenchError:
        """The error for a child that has ended though it should not have."""
        size = self._complaints.seek(0, os.SEEK_END)
        self._complaints.seek(max(0, size - COMPLAINT_BYTES))
        complaint = self._complaints.read().decode(errors="replace").strip()
        status = self.popen.returncode
        return BenchError(f"{self.name} ended with {status}: {said} {complaint}")


class Server(Child):
    """A server that has printed its port."""

    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


Kind = TypeVar("Kind", bound=Child)


@contextlib.contextmanager
def server(
    argv: Sequence[str], env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Start a server, wait until it prints its port, end it on leaving."""
    with _start(Server, argv, env, None) as started:
        started.port = _port_of(started)
        yield started


@contextlib.contextmanager
def child(
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[Child]:
    """A program that does not outlive the block."""
    with _start(Child, argv, env, cwd) as started:
        yield started


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a program that ends by itself; what it printed."""
    with child(argv, env, cwd) as started:
        return started.finish(timeout)


@contextlib.contextmanager
def _start(
    kind: type[Kind],
    argv: Sequence[str],
    env: Mapping[str, str] | None,
    cwd: Path | None,
) -> Iterator[Kind]:
    with tempfile.TemporaryFile() as complaints:
        popen = subprocess.Popen(
            list(argv),
            env=None if env is None else {**os.environ, **env},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            start_new_session=True,
        )
        try:
            yield kind(popen, complaints)
        finally:
            _end(popen)


def _port_of(started: Server) -> int:
    pipe = started.popen.stdout
    assert pipe is not None
    said = b""
    deadline = time.monotonic() + START_SECONDS
    with selectors.DefaultSelector() as ready:
        ready.register(pipe, selectors.EVENT_READ)
        while len(said) < FIRST_WORDS_BYTES:
            if not ready.select(deadline - time.monotonic()):
                break
            more = os.read(pipe.fileno(), FIRST_WORDS_BYTES)
            said += more
            if found := _PORT.search(said):
                return int(found[1])
            if not more:
                started.popen.wait(STOP_SECONDS)
                raise started.failure(said.decode(errors="replace"))
    raise BenchError(f"{started.name} told no port within {START_SECONDS:g} s")


def _end(popen: subprocess.Popen[bytes]) -> None:
    # The group is the child's own (start_new_session), so what it started goes
    # too. Signalled only before the child is reaped: afterwards the number may
    # be somebody else's.
    try:
        if popen.poll() is None:
            os.killpg(popen.pid, signal.SIGTERM)
            popen.wait(STOP_SECONDS)
    except BaseException as error:
        os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
    finally:
        if popen.stdout is not None:
            popen.stdout.close()
