"""What the tests are built from: both faces behind one small adapter, gates
that handlers wait at, services and servers of every kind, and the leak count.

Nothing here sleeps to let something happen: `eventually` polls a condition
with a deadline, everything else waits for an event.  A test that promises a time
measures with `within` or `watching`, which allow for the machine's own stalls.
"""

import asyncio
import functools
import gc
import inspect
import os
import socket
import struct
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any

import tidewire as tw
from tidewire import _core, _lend, _meta, metrics
from tidewire.aio import AsyncChannel
from tools.stalls import Watch, watching

SLOW = float(os.environ.get("TIDEWIRE_TEST_SLOW", "1"))
"""How much slower than usual this run is (sanitizers, valgrind)."""

PATIENCE = 5.0 * SLOW
"""Seconds to wait for what must happen."""


TRUE_ENDS = {
    ("CONNECT", "NONE"),
    ("WRITE", "NONE"),
    ("WRITE", "SOME"),
    ("WRITE", "ALL"),
    ("READ", "NONE"),
    ("READ", "SOME"),
    ("READ", "ALL"),
    ("PEER", "ALL"),
}
"""Phase and sent of a call to a server that goes away.  PEER: it was told that the
server stops (ELOGOFF), and the call was not run."""


def eventually(
    holds: Callable[[], Any], what: str = "", within: float = PATIENCE
) -> Any:
    """Polls until `holds()` is true and returns that; fails after `within` s."""
    end = time.monotonic() + within
    pause = 0.0005
    while True:
        value = holds()
        if value:
            return value
        assert time.monotonic() < end, f"not within {within} s: {what or holds}"
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


@contextmanager
def within(seconds: float, what: str = "") -> Iterator[Watch]:
    """The block takes less than that long, not counting what the machine
    stalled meanwhile."""
    with watching() as watch:
        yield watch
    assert watch.undisturbed < seconds, f"not within {seconds} s: {watch} {what}"


def counter(name: str, **labels: str) -> int:
    """The sum of a counter's or gauge's rows with these labels."""
    snapshot = metrics.read_core()
    total = 0
    for row in snapshot.rows:
        if row.name == name and labels.items() <= dict(row.labels).items():
            cell = snapshot.cells[row.cell]
            total += cell - (cell >> 63 << 64)
    return total


# ---- loops


class LoopThread:
    """An asyncio loop in a thread of its own."""

    def __init__(self, name: str = "test-loop") -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def run(self, coroutine: Coroutine[Any, Any, Any], timeout: float = 30.0) -> Any:
        return self.start(coroutine).result(timeout)

    def close(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the loop's thread does not end"

    def __enter__(self) -> "LoopThread":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ---- faces


class BlockingFace:
    """Channel; concurrent calls are futures."""

    name = "blocking"

    def __init__(self) -> None:
        self._channels: list[tw.Channel] = []

    def channel(self, address: str, **options: Any) -> tw.Channel:
        """A channel, closed at the end of the test if not before."""
        channel = tw.Channel(address, options=tw.ChannelOptions(**options))
        self._channels.append(channel)
        return channel

    def client(self, stubs: Any, channel: tw.Channel) -> Any:
        """The EchoClient or so of a *_tw module."""
        return _client_of(stubs, tw.Client)(channel)

    def call(self, client: Any, method: str, request: Any, **how: Any) -> Any:
        return getattr(client, method)(request, **how)

    def full(self, client: Any, method: str, request: Any, **how: Any) -> Any:
        """The same through `.call`: a Response."""
        return getattr(client, method).call(request, **how)

    def start(self, client: Any, method: str, request: Any, **how: Any) -> Future[Any]:
        """A call under way."""
        return getattr(client, method).future(request, **how)

    def close_channel(self, channel: tw.Channel) -> None:
        channel.close()

    def close(self) -> None:
        while self._channels:
            self._channels.pop().close()


class AsyncFace:
    """AsyncChannel, on a loop in a thread of its own."""

    name = "asyncio"

    def __init__(self) -> None:
        self._thread = LoopThread("test-client-loop")
        self.loop = self._thread.loop
        self._channels: list[AsyncChannel] = []

    def channel(self, address: str, **options: Any) -> AsyncChannel:
        channel = AsyncChannel(address, options=tw.ChannelOptions(**options))
        self._channels.append(channel)
        return channel

    def client(self, stubs: Any, channel: AsyncChannel) -> Any:
        return _client_of(stubs, tw.AsyncClient)(channel)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._thread.run(coroutine)

    def call(self, client: Any, method: str, request: Any, **how: Any) -> Any:
        return self.start(client, method, request, **how).result(30)

    def full(self, client: Any, method: str, request: Any, **how: Any) -> Any:
        return self._thread.run(getattr(client, method).call(request, **how))

    def start(self, client: Any, method: str, request: Any, **how: Any) -> Future[Any]:
        return self._thread.start(getattr(client, method)(request, **how))

    def close_channel(self, channel: AsyncChannel) -> None:
        self._thread.run(channel.aclose())

    def close(self) -> None:
        while self._channels:
            self.close_channel(self._channels.pop())
        self._thread.close()


def _client_of(stubs: Any, base: type) -> Any:
    [cls] = [
        c
        for c in vars(stubs).values()
        if isinstance(c, type) and issubclass(c, base) and c is not base
    ]
    return cls


# ---- handlers


class Gate:
    """Where handlers of either kind wait until the test opens it."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._open = False
        self._parked: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self.entered = 0
        """How many have come so far."""
        self.cancelled = 0
        """How many async handlers were cancelled here."""

    def _come(self) -> None:
        self.entered += 1
        self._condition.notify_all()

    def wait(self) -> None:
        """For `def` handlers."""
        with self._condition:
            self._come()
            assert self._condition.wait_for(lambda: self._open, 60), "never opened"

    async def passed(self) -> None:
        """For `async def` handlers."""
        loop = asyncio.get_running_loop()
        with self._condition:
            self._come()
            if self._open:
                return
            future: asyncio.Future[None] = loop.create_future()
            self._parked.append((loop, future))
        try:
            await future
        except asyncio.CancelledError:
            with self._condition:
                self.cancelled += 1
                self._condition.notify_all()
            raise

    def open(self) -> None:
        def let_go(future: "asyncio.Future[None]") -> None:
            if not future.done():
                future.set_result(None)

        with self._condition:
            self._open = True
            self._condition.notify_all()
            parked, self._parked = self._parked, []
        for loop, future in parked:
            if not loop.is_closed():
                loop.call_soon_threadsafe(let_go, future)

    def until(self, holds: Callable[["Gate"], Any], what: str) -> None:
        with self._condition:
            assert self._condition.wait_for(lambda: holds(self), 10 * SLOW), (
                f"{what}: {self.entered} entered, {self.cancelled} cancelled"
            )

    def until_entered(self, count: int = 1) -> None:
        self.until(lambda g: g.entered >= count, f"{count} handlers have not come")

    def until_cancelled(self, count: int = 1) -> None:
        self.until(lambda g: g.cancelled >= count, f"{count} not cancelled")


Handler = Callable[[Any, tw.Context], Any]


def echo(request: Any, ctx: tw.Context) -> Any:
    """A handler of EchoService: message and attachment as they came."""
    from generated import echo_pb2

    if ctx.attachment:
        ctx.reply_attachment = ctx.attachment
    return echo_pb2.EchoResponse(message=request.message)


def service(kind: str, handler: Handler = echo, gate: Gate | None = None) -> Any:
    """An EchoService of that kind.  It waits at the gate, if there is one, and
    then does what `handler(request, ctx)` does; an async one may return an
    awaitable."""
    from generated import echo_tw

    class Def(echo_tw.EchoService):
        def echo(self, request: Any, ctx: tw.Context) -> Any:
            if gate is not None:
                gate.wait()
            return handler(request, ctx)

    class Async(echo_tw.EchoService):
        async def echo(self, request: Any, ctx: tw.Context) -> Any:
            if gate is not None:
                await gate.passed()
            answer = handler(request, ctx)
            return await answer if inspect.isawaitable(answer) else answer

    return Def() if kind == "def" else Async()


class Serving:
    """Starts servers of one kind and stops them at the end of the test.

    def: worker threads.  async: the server's own loop.  on-loop: `async with`
    on a loop of the test's.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._servers: list[tw.Server] = []
        self._gates: list[Gate] = []
        self._loop: LoopThread | None = None

    @property
    def is_async(self) -> bool:
        return self.kind != "def"

    @property
    def loop(self) -> LoopThread:
        """The loop of `async with` servers."""
        if self._loop is None:
            self._loop = LoopThread("test-server-loop")
        return self._loop

    def service(self, handler: Handler = echo, gate: Gate | None = None) -> Any:
        """An EchoService of this kind."""
        if gate is not None:
            self._gates.append(gate)
        return service(self.kind, handler, gate)

    def __call__(
        self,
        handler: Any = echo,
        *,
        gate: Gate | None = None,
        listen: Any = "127.0.0.1:0",
        **options: Any,
    ) -> tw.Server:
        """A started server: of an EchoService that does `handler`, or of the
        services given as a list."""
        services = (
            handler if isinstance(handler, list) else [self.service(handler, gate)]
        )
        server = tw.Server(services, listen=listen, options=tw.ServerOptions(**options))
        if self.kind == "on-loop":
            self.loop.run(server.__aenter__())
        else:
            server.start()
        self._servers.append(server)
        return server

    def stop(self, server: tw.Server, drain: float | None = None) -> None:
        if self.kind == "on-loop":
            self.loop.run(server.astop(drain))
        else:
            server.stop(drain)

    def close(self) -> None:
        # Handlers that a failed test left waiting.
        for gate in self._gates:
            gate.open()
        try:
            while self._servers:
                self.stop(self._servers.pop(), 0.0)
        finally:
            if self._loop is not None:
                self._loop.close()


# ---- by hand


def varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, value: int | bytes) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def frame(meta: bytes, payload: bytes) -> bytes:
    """A frame of baidu_std."""
    body = meta + payload
    return b"PRPC" + struct.pack(">II", len(body), len(meta)) + body


ECHO_META = field(1, field(1, b"example.EchoService") + field(2, b"Echo")) + field(4, 7)
"""The meta of a request to EchoService.Echo, with correlation_id 7."""


def read_frame(stream: Any) -> tuple[bytes, bytes]:
    """(meta, payload and attachment) of the next frame; empty at the end."""
    head = stream.read(12)
    if len(head) < 12:
        return b"", b""
    size, meta = struct.unpack(">II", head[4:])
    body = stream.read(size)
    return body[:meta], body[meta:]


def correlation_of(meta: bytes) -> bytes:
    """correlation_id as it stands in a meta: the field, tag and all."""
    at = 0
    while at < len(meta):
        begin = at
        tag, at = _meta._varint(meta, at)
        size, at = _meta._varint(meta, at)
        if tag == 4 << 3:
            return meta[begin:at]
        if tag & 7 == 2:
            at += size
    raise AssertionError("no correlation_id")


def connect(server: tw.Server) -> socket.socket:
    """A plain socket to a server."""
    if server.address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(server.address.removeprefix("unix:"))
        return connection
    host, port = server.address.rsplit(":", 1)
    return socket.create_connection((host.strip("[]"), int(port)))


def raw_request(server: tw.Server) -> socket.socket:
    """A plain socket on which one call was sent."""
    connection = connect(server)
    connection.sendall(frame(ECHO_META, field(1, b"hello")))
    return connection


def reset(connection: socket.socket) -> None:
    """Closes a plain socket with a RST."""
    linger = struct.pack("ii", 1, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.close()


@contextmanager
def full_listener(path: str = "") -> Iterator[str]:
    """The address of a listener whose queue is full, in IPv4 or at a path:
    connecting there takes for ever."""
    family = socket.AF_UNIX if path else socket.AF_INET
    with socket.socket(family) as listener, ExitStack() as stack:
        listener.bind(path or ("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(50):
            filler = stack.enter_context(socket.socket(family))
            filler.settimeout(0.05)
            try:
                filler.connect(address)
            except (TimeoutError, BlockingIOError):
                break
        else:
            raise AssertionError("the queue does not fill")
        yield f"unix:{path}" if path else f"127.0.0.1:{address[1]}"


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


class RawServer:
    """A server of plain sockets, one connection at a time, in a thread:
    `serve(stream, connection)` has each of them."""

    def __init__(self, serve: Callable[[Any, socket.socket], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._serve = serve
        self._thread = threading.Thread(target=self._main, name="raw-server")
        self._thread.start()

    def _main(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                self._serve(stream, connection)

    def __enter__(self) -> "RawServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(PATIENCE)


# ---- leaks

_CENSUS = (
    "blocks",
    "sockets",
    "calls",
    "requests",
    "inboxes",
    "peers",
    "servers",
    "timers",
    "write_nodes",
    "lent",
)
_handles: "weakref.WeakSet[Any]" = weakref.WeakSet()


def track_handles() -> None:
    """From now on every server and channel is counted while it lives."""

    def tracked(init: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(init)
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            _handles.add(self)

        return wrapper

    for cls in (tw.Server, tw.Channel, AsyncChannel):
        cls.__init__ = tracked(cls.__init__)


PROCESS_WIDE = frozenset({"tidewire-log", "tidewire-futures"})


class Snapshot:
    """What the process holds, as far as a test must give it back."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.names: dict[str, list[str]] = {}
        census = _core.ffi.new("tw_census *")
        _core.lib.tw_census_take(census)
        for name in _CENSUS:
            self.counts[f"tw_census.{name}"] = getattr(census, name)
        self.counts["lent bytes objects"] = _lend.outstanding()
        # A copy: listing opens a descriptor itself.
        for fd in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{fd}")
            except OSError:
                continue
            self._note("descriptors", f"{fd} -> {target}")
        for thread in threading.enumerate():
            if thread.name not in PROCESS_WIDE:
                self._note("threads", thread.name)
        self.counts["OS threads"] = len(os.listdir("/proc/self/task"))
        for handle in list(_handles):
            self._note("Python objects", repr(handle))

    def _note(self, kind: str, name: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.names.setdefault(kind, []).append(name)

    def leaked_since(self, before: "Snapshot") -> list[str]:
        """One line per kind of thing of which there are more than before."""
        lines = []
        for kind, count in self.counts.items():
            had = before.counts.get(kind, 0)
            if count <= had:
                continue
            line = f"{kind}: {had} before, {count} after"
            new = _without(self.names.get(kind, []), before.names.get(kind, []))
            lines.append(f"{line}; new: {', '.join(new)}" if new else line)
        return lines


def _without(names: list[str], known: list[str]) -> list[str]:
    rest = list(known)
    new = []
    for name in names:
        if name in rest:
            rest.remove(name)
        else:
            new.append(name)
    return new


def leaks_since(before: Snapshot, within: float = PATIENCE) -> list[str]:
    """What has not been given back within that time."""
    end = time.monotonic() + within
    pause = 0.001
    while True:
        leaks = Snapshot().leaked_since(before)
        if not leaks or time.monotonic() >= end:
            return leaks
        gc.collect()
        time.sleep(pause)
        pause = min(pause * 2, 0.1)


@contextmanager
def no_leaks() -> Iterator[None]:
    """For a part of a test."""
    before = Snapshot()
    yield
    leaks = leaks_since(before)
    assert not leaks, "leaked:\n" + "\n".join(leaks)


def awaitable(value: Any) -> Awaitable[Any]:
    """`value` as something to await."""

    async def give() -> Any:
        return value

    return give()
