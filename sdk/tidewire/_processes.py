"""Processes and their signals: how a worker is forked, says that it is ready,
and is told to stop."""

import contextlib
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Final, NoReturn, Self

from tidewire import _core

__all__ = ["WATCHED", "Child", "StopSignals", "Wakeup", "ask", "fork_refusal", "why"]

_REPORT_MAX: Final = 64 * 1024
"""Bytes of a child's report that are read."""


class Wakeup:
    """Signals as something to read: while entered, each of them does nothing
    but write its number to a pipe.  (The kernel may give a signal to any
    thread; the descriptor wakes this one.  An Event would not do: its lock is no
    place for signal handlers.)  The main thread only."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers: Final = tuple(numbers)
        self._before: dict[int, Any] = {}
        self.reader = self.writer = -1

    def __enter__(self) -> Self:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self.writer, False)
        self._fd = signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        for number in self._numbers:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd)
        os.close(self.reader)
        os.close(self.writer)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """That there is one suffices."""

    def wait(self, also: Iterable[int] = (), timeout: float | None = None) -> list[int]:
        """Until a signal comes, the pipe is written to, one of the descriptors
        can be read or has ended, or the time is over: those descriptors."""
        poller = select.poll()
        poller.register(self.reader, select.POLLIN)
        for fd in also:
            poller.register(fd, select.POLLIN)
        found = poller.poll(None if timeout is None else max(0.0, timeout) * 1000)
        return [fd for fd, _ in found if fd != self.reader]

    def take(self) -> bytes:
        """The numbers of the signals that came."""
        try:
            return os.read(self.reader, 4096)
        except BlockingIOError:
            return b""


class StopSignals(Wakeup):
    """SIGINT and SIGTERM: the first asks for the end, the second raises
    KeyboardInterrupt.  life: a pipe whose end asks for it, too."""

    def __init__(self, life: int | None = None, ignore: Iterable[int] = ()) -> None:
        super().__init__({signal.SIGINT, signal.SIGTERM} - set(ignore))
        self._life = () if life is None else (life,)
        self.hits = 0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.hits += 1
        if self.hits == 2:
            raise KeyboardInterrupt

    def sleep(self, timeout: float | None = None) -> None:
        """Until something happens or the time is over."""
        if self.wait(self._life, timeout) and not self.hits:
            self.hits = 1
        self.take()


WATCHED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
"""Signals of a supervisor."""


def fork_refusal() -> str:
    """Why this process must not fork workers; "": it may."""
    if _core.is_open():
        return (
            "something of tidewire is open in this process: run() with workers"
            " comes before the first channel or server"
        )
    others = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
    if others:
        return (
            "workers are forked before any thread exists, and there are"
            f" {', '.join(others)}: start threads in the services' factories"
        )
    return ""


class Child:
    """A process that was forked to run `main(child)`, and what it reports."""

    def __init__(self, main: Callable[["Child"], None], close: Iterable[int]) -> None:
        """close: descriptors of the parent's that it must not keep."""
        self.report, self._out = os.pipe()
        os.set_blocking(self.report, False)
        self._heard = b""
        # Text in buffers would be written twice.
        sys.stdout.flush()
        sys.stderr.flush()
        # None of them may reach the parent's handlers in the child.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        try:
            try:
                self.pid = os.fork()
            except OSError:
                os.close(self.report)
                os.close(self._out)
                raise
            if self.pid == 0:
                self._run(main, [self.report, *close], mask)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(self._out)

    def _run(
        self,
        main: Callable[["Child"], None],
        close: Iterable[int],
        mask: Iterable[int],
    ) -> NoReturn:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            # A terminal sends these to everybody; the supervisor decides.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for fd in close:
                os.close(fd)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            main(self)
            status = 0
        except KeyboardInterrupt:
            pass  # the second signal, before it served
        except SystemExit as error:
            # As the interpreter would: a text is a message and means 1.
            status = error.code if isinstance(error.code, int) else 1
            self.tell(b"E" + str(error.code).encode())
        except BaseException:
            self.tell(b"E" + traceback.format_exc().encode("utf-8", "replace"))
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            # Not through the parent's frames and exit handlers.
            os._exit(status)

    def tell(self, report: bytes) -> None:
        """In the child: its first report goes to the parent, later ones
        nowhere."""
        out, self._out = self._out, -1
        if out < 0:
            return
        with contextlib.suppress(OSError):
            # Beyond the pipe's size the parent's reading sets the pace.
            os.set_blocking(out, True)
            while report:
                report = report[os.write(out, report[:4096]) :]
        os.close(out)

    def hear(self) -> bytes | None:
        """In the parent: the report once it is complete, None before; b"": the
        child ended without any."""
        try:
            data = os.read(self.report, _REPORT_MAX)
        except BlockingIOError:
            return None
        self._heard += data
        if data:
            return None
        os.close(self.report)
        self.report = -1
        return self._heard

    def signal(self, number: int) -> None:
        """It exists until it was waited for, so that the number is its own."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def forget(self) -> None:
        """It was waited for."""
        if self.report >= 0:
            os.close(self.report)
            self.report = -1


def ask(main: Callable[[Child], None]) -> bytes:
    """What a child of its own reports, which then ends."""
    child = Child(main, ())
    try:
        os.set_blocking(child.report, True)
        while (report := child.hear()) is None:
            pass
    except BaseException:
        child.signal(signal.SIGKILL)
        raise
    finally:
        os.waitpid(child.pid, 0)
        child.forget()
    return report


def why(status: int) -> str:
    """How a process ended, from what waitpid said."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"with status {code}"
    return f"by {signal.Signals(-code).name}"
