"""A proxy that does to connections what bad networks and bad peers do, the same
for the same seed and connection number.

    python tests/tools/chaos.py --listen 127.0.0.1:0 --to 127.0.0.1:8000 \\
        --plan 'none | slice=1..9,latency=0.001 | down:reset@0..4096' --seed 7

A plan is a list of alternatives between `|`, of which every connection draws
one.  An alternative is `none` or faults between commas, each for both ways or,
after `up:` (client to server) or `down:`, for one:

    slice=N     pieces of N bytes           latency=S   S seconds before each
    reset@K     RST to both sides           fin@K       FIN to both sides
    half@K      FIN forward, the way back stays open
    swallow@K   a black hole: all further bytes are taken and dropped
    freeze@K    a reader that stopped: no further byte is taken

`@K`: bytes 0 to K-1 pass; when byte K arrives it happens instead.  A number may
be a range `A..B`, which is drawn from for each connection (latency: for each
piece).
"""

import argparse
import asyncio
import itertools
import random
import socket
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["Chaos", "Way", "drawn"]

PIECE = 1 << 16
ENDS = ("reset", "fin", "half", "swallow", "freeze")


def fresh_seed() -> int:
    return random.SystemRandom().randrange(1, 2**32)


# ---- plans


@dataclass(frozen=True)
class Way:
    """What happens to one direction of a connection."""

    slice: int = PIECE
    latency: tuple[float, float] = (0.0, 0.0)
    end: str | None = None
    at: int = 0


def drawn(plan: str, seed: int, number: int) -> tuple[Way, Way]:
    """The ways (up, down) of that connection.  Raises ValueError for a plan that
    is none."""
    rng = random.Random(f"{seed}/{number}")
    # Every alternative is drawn, so that a plan with a slip in it never works.
    drawn = [_alternative(text.strip(), rng) for text in plan.split("|")]
    return rng.choice(drawn)


def _alternative(text: str, rng: random.Random) -> tuple[Way, Way]:
    ways = {"up": Way(), "down": Way()}
    if text == "none":
        return ways["up"], ways["down"]
    for part in text.split(","):
        to, colon, fault = part.strip().rpartition(":")
        if colon and to not in ways:
            raise ValueError(f"{to!r} is no way; there are up and down")
        change = _fault(fault, rng)
        for name in [to] if colon else list(ways):
            ways[name] = replace(ways[name], **change)
    return ways["up"], ways["down"]


def _fault(text: str, rng: random.Random) -> dict[str, Any]:
    name, _, value = text.partition("=")
    if name == "slice" and (low := _range(value, int)):
        if low[0] < 1:
            raise ValueError("a slice has at least one byte")
        return {"slice": rng.randint(*low)}
    if name == "latency" and (span := _range(value, float)):
        return {"latency": span}
    name, _, value = text.partition("@")
    if name in ENDS and (low := _range(value, int)):
        return {"end": name, "at": rng.randint(*low)}
    raise ValueError(f"{text!r} is no fault; see the head of chaos.py")


def _range(text: str, number: Callable[[str], Any]) -> tuple[Any, Any] | None:
    low, dots, high = text.partition("..")
    try:
        span = number(low), number(high if dots else low)
    except ValueError:
        return None
    return span if 0 <= span[0] <= span[1] else None


# ---- the proxy


@dataclass(eq=False)
class Connection:
    """One connection of a client and what became of it."""

    number: int
    up: Way
    down: Way
    sockets: list[socket.socket]
    """The client's, the server's."""
    passed: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    happened: str | None = None
    """The end that was reached: "up:reset" and so on."""
    task: "asyncio.Task[None] | None" = None


class Chaos:
    """The proxy in a thread of its own, while it is entered."""

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
        drawn(plan, self.seed, 0)
        self.plan = plan
        """Of the connections to come; may be changed at any time."""
        self.to = to
        """Where the connections to come go; may be changed at any time."""
        self.live: set[Connection] = set()
        self.seen = 0
        """Connections so far; the first has number 0."""
        self.last: Connection | None = None
        self._log = log
        self._listener = _listening(listen)
        self.address = _name_of(self._listener)
        self._numbers = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._main, name="chaos", daemon=True)

    def __enter__(self) -> "Chaos":
        self._log(f"chaos on {self.address}: seed {self.seed}, plan {self.plan!r}")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._accepting.cancel)
        self._thread.join()

    def reset_all(self) -> int:
        """Resets every connection there is; how many there were."""
        live = list(self.live)
        for connection in live:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._reset, connection)
        return len(live)

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._accepting = self._loop.create_task(self._accept())
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._accepting)
        tasks = [c.task for c in self.live if c.task is not None]
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._listener.close()
        self._loop.close()

    async def _accept(self) -> None:
        while True:
            try:
                near, _ = await self._loop.sock_accept(self._listener)
            except OSError:
                # Out of descriptors, which tests are about: later.
                await asyncio.sleep(0.01)
                continue
            number = next(self._numbers)
            up, down = drawn(self.plan, self.seed, number)
            connection = Connection(number, up, down, [near])
            self.live.add(connection)
            self.last = connection
            self.seen += 1
            connection.task = self._loop.create_task(self._carry(connection))

    async def _carry(self, connection: Connection) -> None:
        near = connection.sockets[0]
        try:
            far = _socket_for(self.to)
            connection.sockets.append(far)
            await self._loop.sock_connect(far, _address_of(self.to))
            for sock in (near, far):
                _prepare(sock)
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
            for sock in connection.sockets:
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
            for sock in connection.sockets:
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
        for sock in connection.sockets:
            with suppress(OSError):
                linger = struct.pack("ii", 1, 0)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if connection.task is not None:
            connection.task.cancel()


# ---- addresses


def _address_of(text: str) -> Any:
    if text.startswith("unix:"):
        return text.removeprefix("unix:")
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _socket_for(text: str) -> socket.socket:
    family = socket.AF_INET
    if text.startswith("unix:"):
        family = socket.AF_UNIX
    elif text.startswith("["):
        family = socket.AF_INET6
    sock = socket.socket(family)
    sock.setblocking(False)
    return sock


def _listening(text: str) -> socket.socket:
    sock = _socket_for(text)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(_address_of(text))
    sock.listen(512)
    return sock


def _name_of(listener: socket.socket) -> str:
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{host}:{name[1]}"


def _prepare(sock: socket.socket) -> None:
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="ADDRESS")
    parser.add_argument("--to", required=True, metavar="ADDRESS")
    parser.add_argument("--plan", default="none")
    parser.add_argument("--seed", type=int, default=0, help="0: a fresh one")
    how = parser.parse_args(arguments)

    def say(text: str) -> None:
        print(text, flush=True)

    with (
        suppress(KeyboardInterrupt),
        Chaos(how.to, how.plan, listen=how.listen, seed=how.seed, log=say),
    ):
        # Ends with its standard input, or by Ctrl-C.
        sys.stdin.read()


if __name__ == "__main__":
    main()
