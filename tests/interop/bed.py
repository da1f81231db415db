"""What the tests with real sockets stand on: a server and its witness, clients
of every face behind one interface, and the books that must balance.

Everything is a context manager, so that tests in other folders can use it
without sharing fixtures.
"""

import asyncio
import gc
import logging
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import tidewire as tw
from generated import ROOT, echo_pb2, echo_tw
from harness import counter
from peer import Client, request, string_message
from tidewire import _completion, _core, _housekeeping, metrics

CAPTURES = ROOT / "tests" / "interop" / "captures"

CLIENTS = ("blocking", "future", "asyncio")
SERVERS = ("def", "async")

LONG = 30.0
"""Seconds after which a test has failed."""


# ---- servers


class Tally:
    """What handlers did: how often each message was run, and their contexts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.ran: Counter[str] = Counter()
        self.seen: list[SimpleNamespace] = []

    def note(self, request: Any, ctx: tw.Context) -> None:
        facts = SimpleNamespace(
            message=request.message,
            log_id=ctx.log_id,
            request_id=ctx.request_id,
            metadata=dict(ctx.metadata),
            attachment=bytes(ctx.attachment),
            coding=ctx.coding,
            remaining=ctx.remaining(),
            peer=ctx.peer,
        )
        with self._lock:
            self.ran[request.message] += 1
            self.seen.append(facts)

    @property
    def total(self) -> int:
        with self._lock:
            return sum(self.ran.values())


def echo_service(kind: str, tally: Tally) -> tw.Service:
    """The echo service of the captures, as `def` or `async def`."""

    def reply(request: Any, ctx: tw.Context) -> Any:
        if request.fail_code:
            raise tw.RpcError(
                f"asked to fail with {request.fail_code}", number=request.fail_code
            )
        if ctx.attachment:
            ctx.reply_attachment = ctx.attachment
        ctx.reply_coding = ctx.coding
        return echo_pb2.EchoResponse(message=request.message)

    class Echo(echo_tw.EchoService):
        def echo(self, request: Any, ctx: tw.Context) -> Any:
            tally.note(request, ctx)
            if request.sleep_ms > 0:
                time.sleep(request.sleep_ms / 1000)
            return reply(request, ctx)

    class AsyncEcho(echo_tw.EchoService):
        async def echo(self, request: Any, ctx: tw.Context) -> Any:
            tally.note(request, ctx)
            if request.sleep_ms > 0:
                await asyncio.sleep(request.sleep_ms / 1000)
            return reply(request, ctx)

    service: tw.Service = AsyncEcho() if kind == "async" else Echo()
    return service


class Scene:
    """A running echo server."""

    def __init__(self, server: tw.Server, tally: Tally) -> None:
        self.server = server
        self.tally = tally
        self.address = server.address
        host, _, port = server.address.rpartition(":")
        self.host_port = (host, int(port))

    def connect(self, timeout: float = LONG) -> socket.socket:
        """A raw connection to it."""
        sock = socket.create_connection(self.host_port, timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock


@contextmanager
def serving(kind: str = "def", **options: Any) -> Iterator[Scene]:
    """An echo server in this process."""
    tally = Tally()
    options.setdefault("threads", 4)
    server = tw.Server(
        [echo_service(kind, tally)],
        listen="127.0.0.1:0",
        options=tw.ServerOptions(**options),
    )
    with server:
        yield Scene(server, tally)


class Witness:
    """Somebody else's connection to a server, which must notice nothing."""

    def __init__(self, host_port: tuple[str, int]) -> None:
        self._client = Client(host_port, LONG)
        self._calls = 0
        self.slowest = 0.0

    def __enter__(self) -> "Witness":
        self.check()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.check()
        finally:
            self._client.sock.close()

    def check(self) -> None:
        """One call on the same connection as ever."""
        self._calls += 1
        said = string_message(b"witness %d" % self._calls)
        begin = time.monotonic()
        self._client.send(request(b"example.EchoService", b"Echo", self._calls, said))
        answer = self._client.take()
        self.slowest = max(self.slowest, time.monotonic() - begin)
        assert (answer.id, answer.code, answer.message) == (self._calls, 0, said)


# ---- clients


class Face:
    """A client of the echo service; every call becomes a Future."""

    kind: str

    def __init__(self, address: str, **options: Any) -> None:
        self.address = address
        options.setdefault("timeout", LONG)
        options.setdefault("connect_timeout", LONG)
        self.options = tw.ChannelOptions(**options)

    def start(self, text: str = "hello", **kw: Any) -> "Future[Any]":
        """Begins a call; its result is a Response (a message from `future`).
        sleep_ms and fail_code go into the request, the rest beside it."""
        fields = {k: kw.pop(k) for k in ("sleep_ms", "fail_code") if k in kw}
        info = kw.pop("info", None)
        return self._start(info, echo_pb2.EchoRequest(message=text, **fields), kw)

    def _start(self, info: Any, request: Any, kw: dict[str, Any]) -> "Future[Any]":
        raise NotImplementedError

    def echo(self, text: str = "hello", **kw: Any) -> str:
        """A whole call: the message that came back."""
        result = self.start(text, **kw).result(LONG)
        if isinstance(result, tw.Response):
            result = result.message
        return str(result.message)


class BlockingFace(Face):
    kind = "blocking"

    def __enter__(self) -> "BlockingFace":
        self._pool = ThreadPoolExecutor(64)
        self.channel = tw.Channel(self.address, options=self.options)
        self._client = echo_tw.EchoClient(self.channel)
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        self._pool.shutdown()
        del self._client

    def _start(self, info: Any, request: Any, kw: dict[str, Any]) -> "Future[Any]":
        method = self._client.echo if info is None else self.channel.unary(info)
        return self._pool.submit(method.call, request, **kw)


class FutureFace(BlockingFace):
    kind = "future"

    def _start(self, info: Any, request: Any, kw: dict[str, Any]) -> "Future[Any]":
        method = self._client.echo if info is None else self.channel.unary(info)
        future: Future[Any] = method.future(request, **kw)
        return future


class AsyncioFace(Face):
    kind = "asyncio"

    def __enter__(self) -> "AsyncioFace":
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.channel = tw.AsyncChannel(self.address, options=self.options)
        self._client = echo_tw.AsyncEchoClient(self.channel)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self.channel.aclose(), self.loop).result(LONG)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(LONG)
        assert not self._thread.is_alive()
        self.loop.close()
        del self._client, self.loop

    def _start(self, info: Any, request: Any, kw: dict[str, Any]) -> "Future[Any]":
        method = self._client.echo if info is None else self.channel.unary(info)
        return asyncio.run_coroutine_threadsafe(method.call(request, **kw), self.loop)


def face(kind: str, address: str, **options: Any) -> Any:
    """A client of this kind, for `with`."""
    made = {"blocking": BlockingFace, "future": FutureFace, "asyncio": AsyncioFace}
    return made[kind](address, **options)


class RawServer:
    """A listener whose connections the test itself answers."""

    def __enter__(self) -> "RawServer":
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.settimeout(LONG)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        return self

    def __exit__(self, *_: object) -> None:
        for sock in [self._listener, *self._open]:
            sock.close()

    def accept(self) -> socket.socket:
        """The next connection; closed with the server."""
        sock, _ = self._listener.accept()
        sock.settimeout(LONG)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open.append(sock)
        return sock

    def nobody_waits(self) -> bool:
        """Whether no further connection was made."""
        self._listener.settimeout(0)
        try:
            self._open.append(self._listener.accept()[0])
        except BlockingIOError:
            return True
        finally:
            self._listener.settimeout(LONG)
        return False


def reset(sock: socket.socket) -> None:
    """Closes with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def at_end(sock: socket.socket) -> bytes:
    """What still comes until the other side closes, RST or FIN."""
    data = bytearray()
    try:
        while more := sock.recv(1 << 16):
            data += more
    except ConnectionResetError:
        pass
    return bytes(data)


# ---- the books


def wait_until(
    true: Callable[[], object], seconds: float = LONG, what: object = "it"
) -> None:
    """Looks until it holds; AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise AssertionError(what() if callable(what) else f"{what} never came")
        time.sleep(0.0005)


def census() -> dict[str, int]:
    """What the core holds at this moment."""
    counts = _core.ffi.new("tw_census *")
    _core.lib.tw_census_take(counts)
    return {
        name: getattr(counts, name) for name, _ in _core.ffi.typeof("tw_census").fields
    }


def descriptors() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
    return {fd: name for fd, name in found.items() if not name.startswith("/proc")}


def counted(name: str, what: str, **labels: str) -> int:
    """How many observations a histogram's rows hold."""
    snapshot = metrics.read_core()
    return sum(
        sum(snapshot.cells[row.cell : row.cell + len(snapshot.bounds)])
        for row in snapshot.rows
        if row.name == f"{name}_{what}" and labels.items() <= dict(row.labels).items()
    )


_GAUGES = (
    "tidewire_sockets",
    "tidewire_connections_in",
    "tidewire_connections_out",
    "tidewire_unwritten_bytes",
    "tidewire_server_in_flight",
    "tidewire_client_in_flight",
)


def books() -> dict[str, int]:
    """Everything that must be again what it was."""
    gauges = {name: counter(name) for name in _GAUGES}
    return census() | gauges | {"descriptors": len(descriptors())}


@contextmanager
def balanced(seconds: float = 10.0) -> Iterator[dict[str, int]]:
    """What is made inside is gone afterwards: blocks, sockets, calls, requests,
    nodes, descriptors, gauges.  No call was completed twice."""
    _completion._running()  # lives as long as the process
    gc.collect()
    before, had = books(), descriptors()
    doubles = counter("tidewire_double_completions")
    yield before

    def more() -> dict[str, tuple[int, int]]:
        after = books()
        return {k: (before[k], after[k]) for k in before if after[k] > before[k]}

    def settled() -> bool:
        if more():
            gc.collect()
        return not more()

    def difference() -> str:
        changed, now = more(), descriptors()
        extra = {fd: name for fd, name in now.items() if had.get(fd) != name}
        return f"(before, after): {changed}; descriptors: {extra}"

    wait_until(settled, seconds, difference)
    assert counter("tidewire_double_completions") == doubles == 0


class Lines:
    """Entries of the core's log: the lines of the logger tidewire.core, and
    those that the core itself held back because there were too many."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._dropped = counter("tidewire_dropped_log_entries")

    @property
    def count(self) -> int:
        return len(self.lines) + counter("tidewire_dropped_log_entries") - self._dropped

    def exactly(self, count: int) -> None:
        """There were so many, and no more come."""
        wait_until(lambda: self.count >= count, 5.0, lambda: f"lines: {self.lines}")
        # Entries are written before what they tell of can be seen.
        time.sleep(0.01)
        assert self.count == count, self.lines


@contextmanager
def core_log() -> Iterator[Lines]:
    """Collects the core's lines.  The limit of one per second and kind is
    lifted meanwhile: tests follow each other faster."""
    _core.open()
    lines = Lines()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.lines.append(record.getMessage())

    logger, handler = logging.getLogger("tidewire.core"), Handler()
    admit = _housekeeping._Limiter.admit
    _housekeeping._Limiter.admit = lambda *_: 0  # type: ignore[method-assign, assignment]
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        _housekeeping._Limiter.admit = admit  # type: ignore[method-assign]
