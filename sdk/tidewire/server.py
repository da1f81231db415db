"""The server: services behind listeners, worker threads for `def` handlers, an
asyncio loop for `async def` ones."""

import logging
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from tidewire import _core, _memory, _systemd
from tidewire._dispatch import Answer, Method, handed, methods_of
from tidewire._health import DRAINING, READY, Board
from tidewire._lifespan import Lifespan, MakeLifespan
from tidewire.context import Shared, _current
from tidewire.errors import AddressError, ClosedError, OptionError
from tidewire.options import MethodOptions, Register, ServerOptions, parse_address
from tidewire.service import Service

if TYPE_CHECKING:
    import asyncio

    from tidewire._authenticate import AuthThread
    from tidewire._processes import StopSignals
    from tidewire._serving import LoopRunner
    from tidewire._supervisor import Place, Plan
    from tidewire.admin import AdminThread
    from tidewire.naming.registrar import Registrar

__all__ = ["Server"]

_log: Final = logging.getLogger("tidewire.server")
_lib: Final = _core.lib
_ffi: Final = _core.ffi
_NULL: Final = _core.NULL

_NOTHING: Final = MethodOptions()

_JOIN: Final = 5.0
"""Seconds that closing waits for handlers that have not returned; their
threads are daemons and their answers go nowhere."""


_HANDOVER: Final = 1.0
"""Seconds as a lame duck of a worker whose successor serves."""

_REVOKING: Final = 2.0
"""Seconds that a stopping server waits until it is off the list."""

_SAMPLING: Final = 5.0
"""Seconds between looks at a worker's gauges, for scrapes of the others."""

_INHERITED: Final = re.compile(r"fd:[0-9]{1,9}")
"""A descriptor that a supervisor left open for us."""

_LARGE: Final = _core.SMALL_VIEW
"""An idle worker keeps its last answer, up to so many bytes; a larger one is
handed over before the turn."""


def _work(server: int, methods: Sequence[Method]) -> None:
    """A worker thread: one crossing answers a call and fetches the next."""
    event = _ffi.new("tw_event *")
    made = _ffi.new("tw_id *")
    if _lib.tw_worker_open(server, event, made) < 0:
        return
    turn, null, me = _lib.tw_turn, _NULL, made[0]
    memory = _ffi.buffer(event)
    plain = [method.plain for method in methods]
    rich = [method.rich for method in methods]
    rich_flag, method_mask = _lib.TW_TURN_RICH, _lib.TW_TURN_METHOD
    try:
        which = turn(me, _lib.TW_NO_ANSWER, null, 0, null)
        while which >= 0:
            if which < rich_flag:
                answer = plain[which](event, memory)
            else:
                answer = rich[which & method_mask](event, memory)
            if isinstance(answer, bytes) and len(answer) <= _LARGE:
                which = turn(me, 0, answer, len(answer), null)
            else:
                _hand_over(event.id, answer)
                answer = b""
                which = turn(me, _lib.TW_NO_ANSWER, null, 0, null)
    finally:
        _lib.tw_worker_close(me)


def _hand_over(request: int, answer: bytes | Answer) -> None:
    """Answers what is no plain, small success: an error, what goes beside a
    message, and what a worker should not keep while it waits."""
    code, body, extra, _keep = handed(answer)
    _lib.tw_reply(request, code, body, len(body), extra, 0)


def _refuse_ready(services: Sequence[object], workers: int) -> None:
    for service in services:
        if isinstance(service, Service) and service.fork_safe is not True:
            raise OptionError(
                f"services holds a ready {type(service).__name__}, and"
                f" ServerOptions.workers is {workers}; allowed: functions that make"
                " one in each worker, or instances with fork_safe = True"
            )


def _addresses_of(listen: object) -> list[str]:
    texts = [listen] if isinstance(listen, str) else _texts(listen)
    if not texts:
        raise OptionError("listen is empty; allowed: one address or more")
    for text in texts:
        if text == _systemd.ACTIVATION or _INHERITED.fullmatch(text):
            continue
        if parse_address(text).kind == "name":
            raise AddressError(
                f"listen is {text!r}; allowed: a numeric address such as"
                ' "127.0.0.1:8000", "[::1]:8000" or "0.0.0.0:8000",'
                ' "unix:/path", "fd:3" for a listening descriptor, or "systemd"'
            )
    return texts


def _texts(listen: object) -> list[str]:
    if isinstance(listen, Sequence) and not isinstance(listen, bytes | bytearray):
        texts = list(listen)
        if all(isinstance(text, str) for text in texts):
            return texts
    raise TypeError(
        f'listen is {listen!r}; allowed: a str such as "0.0.0.0:8000",'
        " or a list of them"
    )


def _registering(
    said: Register | None, url: str | None, address: str | None
) -> Register | None:
    """What the options say, but for what a command line says."""
    if said is None:
        if url is not None:
            return Register(url=url, address=address)
        if address is not None:
            raise OptionError(f"{address} is to be registered, and no url says where")
        return None
    return replace(
        said,
        url=said.url if url is None else url,
        address=said.address if address is None else address,
    )


class Server:
    """Serves until stopped.

    services: instances, or functions of no arguments that make one (called at
    start).  listen: one address or several, "host:port" (port 0: any free
    one), "unix:/path", or "fd:3" for a descriptor that listens already, as
    supervisors pass them (the server uses a duplicate), or "systemd" for all
    that systemd passes.  Use `with`, `async with`, run(), or start() and stop();
    with workers, run().
    """

    def __init__(
        self,
        services: Sequence[Service | Callable[[], Service]],
        *,
        listen: str | Sequence[str],
        options: ServerOptions | None = None,
        lifespan: MakeLifespan | None = None,
        thread_state: Callable[[], Any] | None = None,
    ) -> None:
        """lifespan: gives a context manager, plain or async, that is entered before
        the first connection and left after the last call; what it yields is
        `state`, and `ctx.state` for handlers.  thread_state: makes
        `ctx.thread_state`, for each thread that asks.

        Raises OptionError and TypeError for what cannot be served."""
        if options is not None and not isinstance(options, ServerOptions):
            raise TypeError(
                f"options is a {type(options).__name__}; allowed: ServerOptions"
            )
        if isinstance(services, Service) or not isinstance(services, Sequence):
            raise TypeError(
                f"services is a {type(services).__name__}; allowed: a list of services"
            )
        if not services:
            raise OptionError("services is empty; allowed: one service or more")
        for service in services:
            if not (isinstance(service, Service) or callable(service)):
                raise TypeError(
                    f"services holds a {type(service).__name__}; allowed: instances"
                    " of generated services, or functions that make one"
                )
        self.options = options or ServerOptions()
        if self.options.workers > 1:
            _refuse_ready(services, self.options.workers)
        if thread_state is not None and not callable(thread_state):
            raise TypeError(
                f"thread_state is a {type(thread_state).__name__}; allowed: a function"
                " of no arguments, or None"
            )
        self._shared: Final = Shared(thread_state)
        self._lifespan: Final = Lifespan(lifespan, self._shared)
        self._factories: Final = list(services)
        self._listen = _addresses_of(listen)
        self._trouble = ""
        self._id = 0
        self._generation = -1
        # A worker's place; None: the only process.
        self._place: Place | None = None
        self._board = Board()
        self._methods: list[Method] = []
        self._addresses: list[str] = []
        self._admin_address: str | None = None
        self._threads: list[threading.Thread] = []
        self._admin: AdminThread | None = None
        self._auth: AuthThread | None = None
        self._runner: LoopRunner | None = None
        self._registrar: Registrar | None = None
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        # Writing to it wakes run(); -1: nobody runs.
        self._waker = -1
        self._state = "new"
        # Handlers of ours that wait in stop(), and the task of one.
        self._draining = 0
        self._astopping: asyncio.Task[None] | None = None

    # ---- facts

    @property
    def address(self) -> str:
        """The first address that was bound, with the port that was chosen."""
        return self.addresses[0]

    @property
    def addresses(self) -> list[str]:
        """All bound addresses, in the order of `listen`."""
        if not self._addresses:
            raise ClosedError("the server was not started")
        return list(self._addresses)

    @property
    def admin_address(self) -> str | None:
        """Where /metrics and /health are; None without `admin`."""
        return self._admin_address

    @property
    def state(self) -> Any:
        """What the lifespan has yielded; None without one, or before."""
        return self._shared.state

    @property
    def registered(self) -> bool:
        """Whether it has been entered where ServerOptions.register says, since it
        was started."""
        return self._registrar is not None and self._registrar.registered

    @property
    def in_flight(self) -> int:
        """Calls received and not yet answered."""
        return int(_lib.tw_server_in_flight(self._id)) if self._id else 0

    @property
    def connections(self) -> int:
        """Open connections, the admin's included."""
        return int(_lib.tw_server_connections(self._id)) if self._id else 0

    def set_health(self, trouble: str | None) -> None:
        """Makes /health say that the server should get no calls, and why, until
        it is told None.  One worker's trouble is the whole server's."""
        if not isinstance(trouble, str | None):
            raise TypeError(
                f"trouble is a {type(trouble).__name__}; allowed: a str, or None"
            )
        self._trouble = "" if trouble is None else trouble or "unwell"
        self._board.tell(self._line, self._trouble)

    def set_max_concurrency(self, most: int, method: str | None = None) -> None:
        """Changes the number that was given as `max_concurrency`, of the server or
        of a method ("package.Service/Method"), from now on; calls under way stay.
        With workers: of this one.

        Raises OptionError where no number was given, and for what is not served;
        ClosedError unless the server serves."""
        whole = MethodOptions(max_concurrency=most).max_concurrency
        if not isinstance(whole, int):
            raise TypeError(f"most is {most!r}; allowed: a whole number of calls")
        names = [one.info.full_name for one in self._methods]
        if self._state not in ("started", "stopping"):
            raise ClosedError(f"the server is {self._state}")
        if method is not None and method not in names:
            raise OptionError(
                f"method is {method!r}; allowed: None or what is served,"
                f" {', '.join(sorted(names))}"
            )
        which = -1 if method is None else names.index(method)
        code = _lib.tw_server_limit(self._id, which, whole)
        if code == -_lib.TW_STALE:
            raise ClosedError("the server is stopped")
        if code:
            raise OptionError(
                f"max_concurrency of {method or 'the server'} is not a number that"
                " could be changed: give it one when the server is made"
            )

    def _of(self, method: str) -> MethodOptions:
        """What the options say of a method."""
        methods = self.options.methods
        return methods.get(method) or methods.get("*") or _NOTHING

    @property
    def _line(self) -> int:
        return 0 if self._place is None else self._place.number

    def __repr__(self) -> str:
        return f"<tidewire.Server {self._state} on {', '.join(self._listen)}>"

    # ---- start

    def start(self) -> "Server":
        """Makes the services, binds, and serves from threads of its own.
        Raises OSError when an address cannot be bound."""
        self._start(None)
        return self

    def _start(self, loop: "asyncio.AbstractEventLoop | None") -> None:
        with self._lock:
            if self._state != "new":
                raise ClosedError(f"the server is {self._state}: make another one")
            if self.options.workers > 1 and self._place is None:
                raise OptionError(
                    f"ServerOptions.workers is {self.options.workers}; allowed with"
                    " start(), `with` and `async with`: 1; run() starts workers"
                )
            _core.open()
            if self.options.loops > 1:
                _core.set_loops(self.options.loops)
            services = [s if isinstance(s, Service) else s() for s in self._factories]
            options = self.options
            self._methods = methods_of(
                services,
                options.codec,
                lambda name: self._of(name).max_message or options.max_message,
                options.hooks,
                self._shared,
            )
            self._state = "started"
            self._generation = _core.generation
            try:
                self._open_core()
                self._start_runners(loop)
                self._lifespan.enter(self._runner.loop if self._runner else None)
                self._bind()
                self._board.set(self._line, READY)
                self._register()
            except BaseException:
                self._close(0.0)
                raise

    def _open_core(self) -> None:
        if self.options.memory_budget is not None:
            _lib.tw_memory_budget(self.options.memory_budget)
        elif self._place is not None:  # its share of the whole
            _lib.tw_memory_budget(_memory.budget() // self._place.workers)
        options = _ffi.new("tw_server_options *")
        for name in (
            "max_message",
            "max_unwritten",
            "max_pending",
            "max_pending_bytes",
            "max_connections",
        ):
            setattr(options, name, getattr(self.options, name))
        for name in (
            "first_byte_timeout",
            "stall_timeout",
            "idle_timeout",
            "max_queue_age",
        ):
            limit = _core.nanoseconds(getattr(self.options, name))
            setattr(options, f"{name}_ns", limit)
        _core.fill_limit(options.max_concurrency, self.options.max_concurrency)
        options.reuse_port = self.options.reuse_port or self._place is not None
        options.cancel_on_eof = self.options.cancel_on_eof
        options.unix_mode = self.options.unix_mode or 0
        _core.fill_socket(options.socket, self.options.socket)
        made = _ffi.new("tw_id *")
        _core.check(_lib.tw_server_open(options, made), "the server cannot be opened")
        self._id = made[0]
        served = {method.info.full_name for method in self._methods}
        for name in self.options.methods:
            if name not in served and name != "*":
                raise OptionError(
                    f"ServerOptions.methods names {name!r}; allowed: what is served,"
                    f" {', '.join(sorted(served))}"
                )
        for method in self._methods:
            run = _lib.TW_RUN_LOOP if method.is_async else _lib.TW_RUN_WORKER
            info = method.info
            own = self._of(info.full_name)
            limits = _ffi.new("tw_method_options *")
            limits.max_message = own.max_message or 0
            _core.fill_limit(limits.max_concurrency, own.max_concurrency)
            limits.max_queue_age_ns = _core.nanoseconds(own.max_queue_age)
            code = _lib.tw_server_method(
                self._id, info.service.encode(), info.name.encode(), run, limits
            )
            _core.check(code, f"{info.full_name} cannot be served")

    def _start_runners(self, loop: "asyncio.AbstractEventLoop | None") -> None:
        loop_inbox = admin_inbox = 0
        # An async lifespan needs a loop, too.
        if any(method.is_async for method in self._methods) | self._lifespan.make():
            from tidewire._serving import LoopRunner

            self._runner = LoopRunner(loop)
            loop_inbox = self._runner.serve(self._id, self._methods)
        if self._where()[1] is not None:
            from tidewire.admin import AdminThread, Pages

            pages = Pages(trouble=self._board.trouble)
            self._admin = AdminThread(pages)
            admin_inbox = self._admin.inbox
            self._admin.start()
        _core.check(_lib.tw_server_inboxes(self._id, loop_inbox, admin_inbox))
        if self.options.authenticator is not None:
            from tidewire._authenticate import AuthThread

            self._auth = AuthThread(self.options.authenticator)
            self._auth.start()
            limit_ns = max(1, int(self.options.auth_timeout * 1e9))
            _core.check(_lib.tw_server_auth(self._id, self._auth.inbox, limit_ns))
        if not all(method.is_async for method in self._methods):
            for i in range(self.options.threads):
                thread = threading.Thread(
                    target=_work,
                    args=(self._id, self._methods),
                    name=f"tidewire-worker-{i}",
                    daemon=True,
                )
                self._threads.append(thread)
                thread.start()

    def _bind(self) -> None:
        listen, admin = self._where()
        for text in listen:
            self._addresses.append(self._listen_on(text, _lib.TW_PROTO_BAIDU_STD))
        if admin is not None:
            self._admin_address = self._listen_on(admin, _lib.TW_PROTO_HTTP)

    def _register(self) -> None:
        """Begins with that; nothing waits for it."""
        register = self.options.register
        if register is None:
            return
        from tidewire.naming import registry_of
        from tidewire.naming.registrar import Registrar

        node = register.node(self._addresses[0])
        registry = registry_of(register.url)
        self._registrar = Registrar(register.url, registry, node, register.ttl)

    def _where(self) -> tuple[list[str], str | None]:
        """The addresses to listen on, and the admin's."""
        if self._place is not None:
            return self._place.listen, self._place.admin
        return _systemd.expand(self._listen), self.options.admin

    def _listen_on(self, text: str, protocols: int) -> str:
        bound = _ffi.new("char[]", 128)
        inherited = _INHERITED.fullmatch(text)
        numeric = text if inherited else parse_address(text).text
        code = _lib.tw_listen(
            self._id, numeric.encode(), protocols, self.options.backlog, bound, 128
        )
        said = bytes(_ffi.string(bound)).decode()
        _core.check(code, f"cannot listen on {text}" + (said and f": {said}"))
        return said

    # ---- stop

    def stop(self, drain: float | None = None) -> None:
        """Stops gracefully: no new connections, new requests are answered
        ELOGOFF (after the option's time as a lame duck), calls under way get
        `drain` seconds (None: the option's), then everything closes.  A second
        call changes nothing.  Blocks.  A handler that calls it waits for the other
        calls; its own gets no answer any more."""
        if self._generation >= 0 and self._foreign():
            return  # the parent's business; its lock may be held for ever here
        with self._lock:
            if self._state in ("stopped", "new"):
                self._state = "stopped"
                self._stopped.set()
                return
            self._state = "stopping"
            self._board.set(self._line, DRAINING)
        own = self._own_call()
        self._drain(self.options.drain if drain is None else drain, own)
        self._close(_JOIN, own)

    def _own_call(self) -> int | None:
        """The request whose handler runs this, 0 for a `def` one; None: no
        handler of ours does."""
        if threading.current_thread() in self._threads:
            return 0
        ctx = _current.get()
        return None if ctx is None else ctx._unanswered(self._id)

    def _drain(self, seconds: float, own: int | None) -> None:
        if self._foreign():
            return
        if self._registrar is not None:  # first, so that nobody comes any more
            self._registrar.stop(_REVOKING)
        # Several handlers may wait here, and none for another.
        with self._lock:
            self._draining += own is not None
        replaced = self._place is not None and not self._board.stops
        lame_duck = self._lame_duck(reload=replaced)
        if lame_duck:
            _lib.tw_server_lame_duck(self._id)
            self._drained(lame_duck)
        _lib.tw_server_stop(self._id)
        if not self._drained(seconds):
            left_over = self.in_flight - self._draining
            if left_over > 0:
                _log.warning(
                    "%d calls were still unanswered after %.1f s", left_over, seconds
                )

    def _lame_duck(self, *, reload: bool) -> float:
        given = self.options.lame_duck
        return (_HANDOVER if reload else 0.0) if given is None else given

    def _drained(self, seconds: float) -> bool:
        """Whether nothing is left to wait for, within that time."""
        end = time.monotonic() + seconds
        while True:
            left = max(0.0, end - time.monotonic())
            # Short waits: signal handlers of the main thread run in between.
            step_ns = int(min(left, 0.05) * 1e9)
            code = _lib.tw_server_drain(self._id, self._draining, step_ns)
            if code == 0 or _core.events_lost(code):
                return True
            if left == 0.0:
                return False

    def _close(self, join: float, own: int | None = None) -> None:
        with self._lock:
            if self._state == "stopped":
                return
            self._state = "stopped"
        try:
            if not self._foreign():
                self._close_core(join, own)
        finally:
            self._stopped.set()
            with self._lock:
                if self._waker >= 0:
                    os.write(self._waker, b"!")

    def _close_core(self, join: float, own: int | None) -> None:
        if self._registrar is not None:  # where nothing has drained
            self._registrar.stop(0.0)
        responsive = self._runner is None or self._runner.end_handlers(own or 0)
        if self._id:
            _lib.tw_server_close(self._id)
        if self._admin is not None:
            self._admin.close()
        end = time.monotonic() + join
        if self._auth is not None:
            self._auth.close(join)
        for thread in self._threads:
            # Not alive: a signal came before it had begun, and it will find the
            # server closed.
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(max(0.0, end - time.monotonic()))
        try:
            self._lifespan.leave(responsive)
        finally:
            if self._runner is not None:
                self._runner.close(own or 0, self._lifespan.aleave)

    def _foreign(self) -> bool:
        """Whether this is a fork's child: the server is the parent's."""
        return self._generation != _core.generation

    def wait(self, timeout: float | None = None) -> bool:
        """Blocks until the server was stopped: True, or False after `timeout`
        seconds."""
        if self._state == "started" and self._foreign():
            raise _core.forked("the server")
        return self._stopped.wait(timeout)

    def run(self) -> None:
        """Starts, serves until SIGINT or SIGTERM, stops gracefully.  A second
        signal ends the drain.  The main thread only.

        With workers this process becomes their supervisor: it forks them,
        restarts those that die, replaces them one by one at SIGHUP, and raises
        SystemExit when they cannot start.  systemd is told what happens."""
        if self.options.workers > 1 and self._state == "new":
            from tidewire._supervisor import Supervisor

            Supervisor(self._plan(), lambda: self).run()
            return
        from tidewire._processes import StopSignals

        with StopSignals() as signals:
            self._serve(signals, lambda: _systemd.notify("READY=1"))

    def _override(
        self,
        listen: Sequence[str],
        workers: int | None,
        admin: str | None,
        register: str | None,
        advertise: str | None,
    ) -> None:
        """What a command line says instead, where it says something."""
        if listen:
            self._listen = _addresses_of(listen)
        options = self.options
        self.options = replace(
            options,
            workers=options.workers if workers is None else workers,
            admin=options.admin if admin is None else admin,
            register=_registering(options.register, register, advertise),
        )

    def _plan(self) -> "Plan":
        from tidewire._supervisor import Plan

        options = self.options
        return Plan(
            listen=self._listen,
            admin=options.admin,
            workers=options.workers,
            drain=options.drain + self._lame_duck(reload=True),
            backlog=options.backlog,
            unix_mode=options.unix_mode,
            socket=options.socket,
        )

    def _serve_as(
        self, place: "Place", signals: "StopSignals", ready: Callable[[], object]
    ) -> None:
        """run() in a worker process."""
        self._place = place
        self._board = place.board
        self._board.tell(place.number, self._trouble)
        self._serve(signals, ready)

    def _serve(self, signals: "StopSignals", ready: Callable[[], object]) -> None:
        try:
            self._waker = signals.writer
            if self._state == "new":
                self.start()
            self._until_registered(signals)
            ready()
            while not (signals.hits or self._stopped.is_set()):
                signals.sleep(None if self._place is None else _SAMPLING)
                if self._place is not None:
                    _lib.tw_counter_cells(_NULL, 0)
            if self._place is None:
                _systemd.notify("STOPPING=1")
            self.stop()
        except KeyboardInterrupt:
            self._close(0.0)
        finally:
            with self._lock:
                self._waker = -1

    def _until_registered(self, signals: "StopSignals") -> None:
        """So that in a reload the predecessor is taken off later.  When this has
        taken the entry's time, that of the predecessor has ended, too."""
        if self._registrar is None:
            return
        end = time.monotonic() + self._registrar.ttl
        while not (self.registered or signals.hits):
            if self._stopped.is_set() or time.monotonic() >= end:
                return
            signals.sleep(0.02)

    # ---- with, async with

    def __enter__(self) -> "Server":
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> "Server":
        """Serves `async def` handlers on the running loop."""
        import asyncio

        if self._state == "new":
            await self._lifespan.aenter()
        try:
            self._start(asyncio.get_running_loop())
        except BaseException:
            if self._state != "started":
                await self._lifespan.aleave()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.astop()

    async def astop(self, drain: float | None = None) -> None:
        """stop() from a coroutine: of a server that was started with `async
        with`, and of any other that an `async def` handler of its own stops."""
        import asyncio

        with self._lock:
            if self._state != "started":
                return
            self._state = "stopping"
            self._board.set(self._line, DRAINING)
        seconds = self.options.drain if drain is None else drain
        own = self._own_call()
        if own is None:
            await self._astop(seconds, None)
            return
        # A handler is cancelled when its caller goes, and its caller does, for
        # its connection is closed: stopping goes on.
        self._astopping = asyncio.create_task(self._astop(seconds, own))
        await asyncio.shield(self._astopping)

    async def _astop(self, seconds: float, own: int | None) -> None:
        import asyncio

        # The handlers that are waited for run on this loop.
        await asyncio.to_thread(self._drain, seconds, own)
        if self._runner is not None:
            await self._runner.aclose(own or 0)
        await asyncio.to_thread(self._close, _JOIN, own)

    def __del__(self) -> None:
        if getattr(self, "_state", "new") == "started" and not self._foreign():
            warnings.warn(f"unstopped {self!r}", ResourceWarning, 2, source=self)
            if not _core.ended:
                self._close(0.0)

    def _raw(self) -> Any:
        return self._id
