"""A proxy that does to connections what bad networks and bad peers do, the same
for the same seed and connection number.  plan.py says what a plan may be;
`tidewire faults` is the proxy as a command."""

import asyncio
import itertools
import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final

from tidewire.address import parse_address
from tidewire.errors import ClosedError
from tidewire.testing import sockets
from tidewire.testing.plan import PIECE, Way, drawn, fresh_seed

__all__ = ["Connection", "Proxy", "faults"]


_BACKLOG: Final = 512


@dataclass(eq=False, kw_only=True)
class Connection:
    """One connection of a client and what became of it."""

    number: int
    up: Way
    down: Way
    passed: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    """Bytes so far, of each way."""
    happened: str | None = None
    """The end of the plan that was reached: "up:reset" and so on."""
    _sockets: list[socket.socket] = field(default_factory=list)
    """The client's, the server's."""
    _task: "asyncio.Task[None] | None" = None


class Proxy:
    """What faults() gives: the proxy in a thread of its own, while it is entered."""

    def __init__(
        self,
        to: str,
        plan: str = "none",
        *,
        listen: str = "127.0.0.1:0",
        seed: int = 0,
        log: Callable[[str], object] = print,
    ) -> None:
        self.seed = seed or fresh_seed()
        self.plan = plan
        self.to = to
        self.seen = 0
        """Connections so far; the first has number 0."""
        self.last: Connection | None = None
        """The youngest connection."""
        self.live: set[Connection] = set()
        """Those that are open."""
        self._log = log
        self._listen = parse_address(listen).text
        self._address = ""
        self._numbers = itertools.count()

    @property
    def plan(self) -> str:
        """Of the connections to come; may be changed at any time."""
        return self._plan

    @plan.setter
    def plan(self, plan: str) -> None:
        drawn(plan, self.seed, 0)  # which refuses what is none
        self._plan = plan

    @property
    def to(self) -> str:
        """Where the connections to come go; may be changed at any time."""
        return self._to

    @to.setter
    def to(self, address: str) -> None:
        self._to = parse_address(address).text

    @property
    def address(self) -> str:
        """What a channel is made for instead of the server's address."""
        if not self._address:
            raise ClosedError("the proxy was not entered")
        return self._address

    def __enter__(self) -> "Proxy":
        self._listener = sockets.bound(self._listen)
        self._listener.listen(_BACKLOG)
        self._address = sockets.name_of(self._listener)
        self._log(f"faults on {self.address}: seed {self.seed}, plan {self.plan!r}")
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        # Before the thread, so that it is the loop's first task.
        self._serving = self._loop.create_task(self._serve())
        self._thread = threading.Thread(
            target=self._main, name="tidewire-faults", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()

    def reset_all(self) -> int:
        """Resets every connection there is; how many there were."""
        live = list(self.live)
        for connection in live:
            with suppress(RuntimeError):  # the proxy was left
                self._loop.call_soon_threadsafe(self._reset, connection)
        return len(live)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Meanwhile whoever connects is refused, as by a machine on which nobody
        listens; connections that are there stay."""
        self._run(self._refuse())
        try:
            yield
        finally:
            self._run(self._accept_again())

    def _run(self, step: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(step, self._loop).result()

    async def _refuse(self) -> None:
        self._accepting.cancel()
        await asyncio.wait({self._accepting})
        self._close_listener()
        # Bound, so that nobody else gets the address, but not listening.
        self._listener = sockets.bound(self._address)

    async def _accept_again(self) -> None:
        self._listener.listen(_BACKLOG)
        self._accepting = self._loop.create_task(self._accept())

    def _main(self) -> None:
        try:
            self._loop.run_until_complete(self._serving)
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._accepting = self._loop.create_task(self._accept())
        await self._ending.wait()
        self._accepting.cancel()
        tasks = [c._task for c in self.live if c._task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(self._accepting, *tasks, return_exceptions=True)
        self._close_listener()

    def _close_listener(self) -> None:
        self._listener.close()
        if self._listener.family == socket.AF_UNIX:
            with suppress(FileNotFoundError):
                os.unlink(sockets.address_of(self._address))

    async def _accept(self) -> None:
        while True:
            try:
                near, _ = await self._loop.sock_accept(self._listener)
            except OSError:
                # Out of descriptors, which tests are about: later.
                await asyncio.sleep(0.01)
                continue
            number = next(self._numbers)
            up, down = drawn(self._plan, self.seed, number)
            connection = Connection(number=number, up=up, down=down)
            connection._sockets.append(near)
            self.live.add(connection)
            self.last = connection
            self.seen += 1
            connection._task = self._loop.create_task(self._carry(connection))

    async def _carry(self, connection: Connection) -> None:
        near = connection._sockets[0]
        try:
            far = sockets.socket_for(self._to)
            connection._sockets.append(far)
            await self._loop.sock_connect(far, sockets.address_of(self._to))
            for sock in (near, far):
                sockets.prepare(sock)
            pumps = [
                self._loop.create_task(self._pump(connection, "up", near, far)),
                self._loop.create_task(self._pump(connection, "down", far, near)),
            ]
            try:
                await asyncio.gather(*pumps)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            # What one side did to us the other side gets: a reset.
            self._reset(connection)
        finally:
            for sock in connection._sockets:
                sock.close()
            self.live.discard(connection)

    async def _pump(
        self, connection: Connection, name: str, src: socket.socket, dst: socket.socket
    ) -> None:
        way: Way = getattr(connection, name)
        rng = random.Random(f"{self.seed}/{connection.number}/{name}")
        while True:
            want = way.slice
            due = False
            if way.end is not None:
                left = way.at - connection.passed[name]
                due = left == 0
                want = 1 if due else min(want, left)
            data = await self._loop.sock_recv(src, want)
            if not data:
                with suppress(OSError):
                    dst.shutdown(socket.SHUT_WR)
                return
            if any(way.latency):
                await asyncio.sleep(rng.uniform(*way.latency))
            if due:
                connection.happened = f"{name}:{way.end}"
                await self._end(connection, str(way.end), src, dst)
                return
            await self._loop.sock_sendall(dst, data)
            connection.passed[name] += len(data)

    async def _end(
        self, connection: Connection, end: str, src: socket.socket, dst: socket.socket
    ) -> None:
        if end == "reset":
            self._reset(connection)
        elif end == "fin":
            for sock in connection._sockets:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_WR)
            # What is unread at close would turn it into a reset.
            await self._swallow(src)
        elif end == "half":
            dst.shutdown(socket.SHUT_WR)
            await self._swallow(src)
        elif end == "swallow":
            await self._swallow(src)
        else:
            await asyncio.Event().wait()

    async def _swallow(self, src: socket.socket) -> None:
        with suppress(OSError):
            while await self._loop.sock_recv(src, PIECE):
                pass

    def _reset(self, connection: Connection) -> None:
        for sock in connection._sockets:
            with suppress(OSError):
                linger = struct.pack("ii", 1, 0)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if connection._task is not None:
            connection._task.cancel()


def faults(
    to: str,
    plan: str = "none",
    *,
    listen: str = "127.0.0.1:0",
    seed: int = 0,
    log: Callable[[str], object] = print,
) -> Proxy:
    """A proxy to the server at `to`, while it is entered:

        with tw.testing.faults(served.address, "down:reset@100") as proxy:
            channel = tw.Channel(proxy.address)

    plan: see tidewire/testing/plan.py.  seed: of what is drawn by chance, 0: a fresh
    one; log() is told which, so that a failure can be had again.  Raises ValueError
    for what is no plan, AddressError for what is no address.
    """
    return Proxy(to, plan, listen=listen, seed=seed, log=log)
