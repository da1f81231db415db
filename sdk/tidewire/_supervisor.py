"""The supervisor of a server's worker processes: it binds, forks, restarts and
stops them, and serves nothing itself."""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tidewire import _core, _systemd
from tidewire._health import DRAINING, STARTING, Board
from tidewire._processes import WATCHED, Child, StopSignals, Wakeup, fork_refusal, why
from tidewire.address import parse_address
from tidewire.errors import OptionError
from tidewire.options import SocketOptions

if TYPE_CHECKING:
    from tidewire.server import Server

__all__ = ["Place", "Plan", "Supervisor"]

_log: Final = logging.getLogger("tidewire.server")

RESTART_DELAY: Final = 0.1
"""Seconds before the second restart of a worker that keeps dying (the first
follows at once); the delay doubles with each."""
RESTART_DELAY_MAX: Final = 10.0
STEADY: Final = 1.0
"""Seconds that a worker must have been ready for, to be no worker that keeps
dying."""
KILL_AFTER: Final = 10.0
"""Seconds beyond its drain that a stopping worker has before it is killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the supervisor must know of a server, without having made it."""

    listen: list[str]
    admin: str | None
    workers: int
    drain: float
    """Seconds, those as a lame duck included."""
    backlog: int
    unix_mode: int | None
    socket: SocketOptions | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a worker serves."""

    number: int
    """Its line on the board."""
    board: Board
    listen: list[str]
    """As given, but ports are chosen and shared sockets are descriptors."""
    admin: str | None
    workers: int


@dataclass(slots=True, kw_only=True, eq=False)
class _Worker:
    child: Child
    place: int
    ready_at: float = 0.0
    """0: it starts."""
    end_at: float = 0.0
    """When it is killed; 0: it was not told to stop."""
    failure: str = ""
    """Why it cannot start, in a line."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Seat:
    """One of the N: who serves, and who is to follow in a reload."""

    worker: _Worker | None = None
    next: _Worker | None = None
    deaths: int = 0
    """In a row."""
    start_at: float = 0.0


def restart_delay(deaths: int) -> float:
    """Seconds after so many deaths in a row, 1 or more."""
    if deaths <= 1:
        return 0.0
    return float(min(RESTART_DELAY_MAX, RESTART_DELAY * 2 ** min(deaths - 2, 16)))


@dataclass(slots=True)
class _Bound:
    """Addresses that were bound for the workers."""

    listen: list[str] = field(default_factory=list)
    admin: str | None = None
    addresses: list[str] = field(default_factory=list)
    """As people know them."""
    admin_address: str | None = None
    only_bound: list[int] = field(default_factory=list)
    shared: list[int] = field(default_factory=list)
    files: list[tuple[str, int]] = field(default_factory=list)
    """Socket files with their inodes."""


class Supervisor:
    """run() is all there is to do.  load: called in each worker, gives its
    server, which was not started."""

    def __init__(
        self,
        plan: Plan,
        load: "Callable[[], Server]",
    ) -> None:
        refusal = fork_refusal()
        if refusal:
            raise OptionError(f"workers is {plan.workers}; {refusal}")
        self._plan: Final = plan
        self._load: Final = load
        # In a reload two workers of one seat live for a while.
        self._board: Final = Board(2 * plan.workers + 1)
        self._free: Final = list(range(self._board.places - 1, -1, -1))
        self._seats: Final = [_Seat() for _ in range(plan.workers)]
        self._leaving: list[_Worker] = []
        self._bound = _Bound()
        self._to_reload: list[_Seat] = []
        self._reloading = False
        self._stops = 0
        self._started = False
        self._failure = ""
        self._life = (-1, -1)

    # ---- the loop

    def run(self) -> None:
        """Until SIGTERM or SIGINT and every worker is gone.  Raises SystemExit,
        with a text, when a worker cannot start at the beginning."""
        _core.check(_core.lib.tw_share_counters(), "the counters cannot be shared")
        with contextlib.ExitStack() as stack:
            stack.callback(self._close)
            self._bind()
            # Its end tells workers that the supervisor was killed.
            self._life = os.pipe()
            wakeup = stack.enter_context(Wakeup(WATCHED))
            stack.callback(self._kill_all)
            while self._step():
                self._wait(wakeup)
        if self._failure:
            raise SystemExit(self._failure)
        _log.info("supervisor %d: all workers are gone", os.getpid())

    def _step(self) -> bool:
        """Starts, replaces and kills what is due; False at the end."""
        now = time.monotonic()
        for worker in self._leaving:
            if worker.end_at and now >= worker.end_at:
                _log.error("worker %d does not stop: killed", worker.child.pid)
                worker.child.signal(signal.SIGKILL)
                worker.end_at = now + KILL_AFTER
        if self._stops:
            return bool(self._leaving)
        for seat in self._seats:
            if seat.worker is None and now >= seat.start_at:
                self._fill(seat, now)
        seated = [seat.worker for seat in self._seats]
        if not self._started and all(w and w.ready_at for w in seated):
            self._has_started()
        self._reload_next()
        return True

    def _wait(self, wakeup: Wakeup) -> None:
        times = [w.end_at for w in self._leaving if w.end_at]
        if not self._stops:
            times += [s.start_at for s in self._seats if s.worker is None]
        timeout = max(0.0, min(times) - time.monotonic()) if times else None
        starting = {w.child.report: w for w in self._all() if w.child.report >= 0}
        for fd in wakeup.wait(starting, timeout):
            self._hear(starting[fd])
        numbers = wakeup.take()
        self._reap()
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stop(signal.Signals(number).name)
            elif number == signal.SIGHUP:
                self._reload()

    def _all(self) -> list[_Worker]:
        seated = [w for s in self._seats for w in (s.worker, s.next) if w is not None]
        return seated + self._leaving

    # ---- addresses

    def _bind(self) -> None:
        for text in _systemd.expand(self._plan.listen):
            worker_text, address = self._bind_one(text)
            self._bound.listen.append(worker_text)
            self._bound.addresses.append(address)
        if self._plan.admin is not None:
            both = self._bind_one(self._plan.admin)
            self._bound.admin, self._bound.admin_address = both

    def _bind_one(self, text: str) -> tuple[str, str]:
        """(what a worker listens on, the address)."""
        ffi = _core.ffi
        options = ffi.new("tw_server_options *")
        options.reuse_port = 1
        options.unix_mode = self._plan.unix_mode or 0
        _core.fill_socket(options.socket, self._plan.socket)
        inherited = text.startswith("fd:")
        parsed = None if inherited else parse_address(text)
        numeric = text if parsed is None else parsed.text
        bound = ffi.new("char[]", 128)
        fd = _core.lib.tw_bind(
            numeric.encode(), self._plan.backlog, options, bound, len(bound)
        )
        said = bytes(ffi.string(bound)).decode()
        _core.check(fd, f"cannot listen on {text}" + (said and f": {said}"))
        if parsed is not None and parsed.kind != "unix":
            # It keeps the port and takes no connections: it does not listen.
            self._bound.only_bound.append(fd)
            return said, said
        self._bound.shared.append(fd)
        if parsed is not None:
            self._bound.files.append((parsed.host, os.lstat(parsed.host).st_ino))
        return f"fd:{fd}", said

    def _close(self) -> None:
        for fd in (*self._life, *self._bound.only_bound, *self._bound.shared):
            if fd >= 0:
                os.close(fd)
        for path, inode in self._bound.files:
            with contextlib.suppress(OSError):
                if os.lstat(path).st_ino == inode:
                    os.unlink(path)

    # ---- a worker's life

    def _fill(self, seat: _Seat, now: float) -> None:
        try:
            seat.worker = self._fork()
        except OSError as error:
            if not self._started:
                raise
            # No memory or no more processes: the others go on meanwhile.
            seat.deaths += 1
            delay = restart_delay(seat.deaths + 1)
            seat.start_at = now + delay
            _log.error(
                "no worker can be forked (%s), again in %.1f s", error.strerror, delay
            )

    def _fork(self) -> _Worker:
        place = Place(
            number=self._free.pop(),
            board=self._board,
            listen=self._bound.listen,
            admin=self._bound.admin,
            workers=self._plan.workers,
        )
        self._board.set(place.number, STARTING)
        life, held = self._life

        def main(child: Child) -> None:
            with StopSignals(life, ignore=[signal.SIGINT]) as signals:
                self._load()._serve_as(place, signals, lambda: child.tell(b"R"))

        others = [w.child.report for w in self._all() if w.child.report >= 0]
        try:
            child = Child(main, [held, *self._bound.only_bound, *others])
        except OSError:
            self._board.clear(place.number)
            self._free.append(place.number)
            raise
        _log.info("worker %d starts", child.pid)
        return _Worker(child=child, place=place.number)

    def _hear(self, worker: _Worker) -> None:
        report = worker.child.hear()
        if report is None or not report:
            return  # nothing yet, or an end that _reap will see
        if report[:1] == b"R":
            worker.ready_at = time.monotonic()
            _log.info("worker %d is ready", worker.child.pid)
            self._seat_ready(worker)
            return
        text = report[1:].decode("utf-8", "replace").rstrip()
        _log.error("worker %d cannot start\n%s", worker.child.pid, text)
        worker.failure = text.rpartition("\n")[2]

    def _seat_ready(self, worker: _Worker) -> None:
        for seat in self._seats:
            if seat.next is worker:
                old, seat.worker, seat.next = seat.worker, worker, None
                if old is not None:
                    self._retire(old)

    def _retire(self, worker: _Worker) -> None:
        """Lets a worker drain; it belongs to no seat any more."""
        _log.info("worker %d drains", worker.child.pid)
        if worker.ready_at:
            self._board.set(worker.place, DRAINING)
        worker.child.signal(signal.SIGTERM)
        worker.end_at = time.monotonic() + self._plan.drain + KILL_AFTER
        self._leaving.append(worker)

    def _reap(self) -> None:
        for worker in self._all():
            pid, status = os.waitpid(worker.child.pid, os.WNOHANG)
            if pid:
                # What it said may be read only now.
                while worker.child.report >= 0:
                    self._hear(worker)
                self._is_gone(worker, status)

    def _is_gone(self, worker: _Worker, status: int) -> None:
        worker.child.forget()
        self._board.clear(worker.place)
        self._free.append(worker.place)
        if worker in self._leaving:
            self._leaving.remove(worker)
            _log.info("worker %d ended %s", worker.child.pid, why(status))
            return
        if not worker.failure:
            _log.error("worker %d died %s", worker.child.pid, why(status))
        for seat in self._seats:
            if seat.next is worker:
                seat.next = None
                self._give_up("a worker cannot start")
            elif seat.worker is worker:
                self._restart(seat, worker, status)

    def _restart(self, seat: _Seat, worker: _Worker, status: int) -> None:
        seat.worker = None
        if not self._started and not worker.ready_at:
            reason = worker.failure or f"it ended {why(status)}"
            self._failure = f"tidewire: a worker cannot start: {reason}"
            self._stop("a worker cannot start")
            return
        now = time.monotonic()
        lived = now - worker.ready_at if worker.ready_at else 0.0
        seat.deaths = 1 if lived >= STEADY else seat.deaths + 1
        delay = restart_delay(seat.deaths)
        seat.start_at = now + delay
        if delay:
            _log.warning("next start in %.1f s", delay)

    def _has_started(self) -> None:
        self._started = True
        admin = self._bound.admin_address
        _log.info(
            "serving on %s%s",
            ", ".join(self._bound.addresses),
            f"; admin on {admin}" if admin else "",
        )
        _systemd.notify("READY=1")

    # ---- what signals ask for

    def _stop(self, reason: str) -> None:
        self._stops += 1
        if self._stops == 1:
            _log.info("%s: %d workers drain", reason, len(self._all()))
            _systemd.notify("STOPPING=1")
            self._board.drain()
            for seat in self._seats:
                for worker in (seat.worker, seat.next):
                    if worker is not None:
                        self._retire(worker)
                seat.worker = seat.next = None
            return
        _log.warning("%s: the drain ends", reason)
        for worker in self._leaving:
            worker.child.signal(signal.SIGTERM)
            worker.end_at = min(worker.end_at, time.monotonic() + KILL_AFTER)

    def _reload(self) -> None:
        if self._stops or not self._started:
            return
        _log.info("SIGHUP: reload")
        _systemd.reloading()
        self._to_reload = list(self._seats)
        self._reloading = True

    def _give_up(self, reason: str) -> None:
        self._to_reload.clear()
        _log.error("reload given up, the workers stay as they are: %s", reason)

    def _reload_next(self) -> None:
        """One at a time, and the next when the last one's predecessor is gone."""
        if self._leaving or any(seat.next for seat in self._seats):
            return
        if self._to_reload:
            seat = self._to_reload.pop(0)
            if seat.worker is not None:  # else it starts with the new code
                try:
                    seat.next = self._fork()
                except OSError as error:
                    self._give_up(str(error))
        elif self._reloading:
            self._reloading = False
            _log.info("reload done")
            _systemd.notify("READY=1")

    def _kill_all(self) -> None:
        """Nobody is left behind, whatever happened here."""
        for worker in self._all():
            worker.child.signal(signal.SIGKILL)
            os.waitpid(worker.child.pid, 0)
