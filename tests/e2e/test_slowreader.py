"""A client that sends and never reads: it costs its limit, not the machine, and
gets everything it is owed once it reads.  TW_LONG=1 makes it 30 s."""

import os
import selectors
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "interop"))

import wire
from bed import LONG, SERVERS, Witness, reset, wait_until
from served import Served, served

MIB = 1 << 20
KIB = 1 << 10
SECONDS = 30.0 if os.environ.get("TW_LONG") else 1.5


class SlowReader:
    """Sends requests without end and reads nothing until it is told to."""

    def __init__(self, address: tuple[str, int] | str, size: int) -> None:
        tcp = isinstance(address, tuple)
        self.sock = socket.socket(socket.AF_INET if tcp else socket.AF_UNIX)
        # Before the connect: the window it offers stays small.
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIB)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * KIB)
        self.sock.connect(address)
        self.sock.setblocking(False)
        self.size = size
        self.frames = 0
        """Begun so far; ids count from 1."""
        self._rest = memoryview(b"")

    def _next(self) -> memoryview:
        self.frames += 1
        overhead = len(wire.echo_request("", id=self.frames))
        text = f"{self.frames} ".ljust(max(self.size - overhead, 0), "s")
        return memoryview(wire.echo_request(text, id=self.frames))

    def push(self) -> int:
        """Sends until the kernel takes no more."""
        sent = 0
        while True:
            self._rest = self._rest or self._next()
            try:
                n = self.sock.send(self._rest)
            except BlockingIOError:
                return sent
            sent += n
            self._rest = self._rest[n:]

    def push_for(self, seconds: float) -> int:
        """Never reads.  Bytes sent in this time."""
        sent = self.push()
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.sock, selectors.EVENT_WRITE)
            while (left := end - time.monotonic()) > 0:
                if selector.select(left):
                    sent += self.push()
        return sent

    def owed(self) -> Iterator[int]:
        """Reads, finishing the frame that was begun, until all is answered:
        the ids in order of arrival."""
        unread = bytearray()
        answered = 0
        end = time.monotonic() + LONG
        with selectors.DefaultSelector() as selector:
            selector.register(self.sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
            while answered < self.frames:
                assert time.monotonic() < end, (answered, self.frames)
                for _, events in selector.select(1.0):
                    if events & selectors.EVENT_WRITE:
                        if self._rest:
                            n = self.sock.send(self._rest)
                            self._rest = self._rest[n:]
                        if not self._rest:
                            selector.modify(self.sock, selectors.EVENT_READ)
                    if events & selectors.EVENT_READ:
                        data = self.sock.recv(MIB)
                        assert data, "the server has closed"
                        unread += data
                        frames, rest = wire.split(unread)
                        if frames:
                            unread = bytearray(rest)
                        for frame in frames:
                            assert frame.meta.response.error_code == 0
                            text = wire.EchoResponse.FromString(frame.message).message
                            assert text.split(" ")[0] == str(frame.id)
                            yield frame.id
                        answered += len(frames)


class Observer:
    """Looks at the server and calls it, from its own connection, meanwhile."""

    def __init__(self, server: Served) -> None:
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.failure: BaseException | None = None
        self.block_bytes = self.rss = 0
        self.slowest = 0.0
        self.calls = 0

    def __enter__(self) -> "Observer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(LONG)
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            with Witness(self._server.host_port) as witness:
                while not self._stop.wait(0.005):
                    witness.check()
                    self.calls += 1
                    books = self._server.books()
                    self.block_bytes = max(self.block_bytes, books["block_bytes"])
                    self.rss = max(self.rss, books["rss"])
                self.slowest = witness.slowest
        except BaseException as error:
            self.failure = error


@contextmanager
def warmed(kind: str, limit: int, size: int) -> Iterator[Served]:
    """A server that has served such messages before: what is measured later is
    the slow reader's, not the interpreter's."""
    threads = 1 if kind == "def" else 2
    with served(kind=kind, threads=threads, max_unwritten=limit) as server:
        with socket.create_connection(server.host_port, LONG) as sock:
            request = wire.echo_request("w" * max(size - 60, 1), id=1)
            for _ in range(20):
                sock.sendall(request)
                wire.read_frame(sock)
        with Witness(server.host_port) as witness:
            for _ in range(200):
                witness.check()
        wait_until(lambda: server.books()["sockets"] == 3)
        yield server


@pytest.mark.parametrize("size", [100, 10 * KIB, 300 * KIB])
@pytest.mark.parametrize("limit", [MIB, 4 * MIB])
@pytest.mark.parametrize("kind", SERVERS)
def test_costs_its_limit_and_gets_what_it_is_owed(kind, limit, size):
    with warmed(kind, limit, size) as server:
        server.books(trim=True)
        before = server.books(trim=True)
        # Small answers over TCP fill this side's receive buffer before its
        # window is shut: the kernel then drops what arrives, and with it the
        # acknowledgement of the requests.  TCP comes to a halt by itself, now
        # and then before the server does.  A unix socket has neither.
        slow = SlowReader(server.path if size < KIB else server.host_port, size)
        try:
            with Observer(server) as observer:
                sent = slow.push_for(SECONDS)
            stuck = server.books(trim=True)
            blocks = observer.block_bytes - before["block_bytes"]
            memory = stuck["rss"] - before["rss"]
            most = observer.rss - before["rss"]
            print(
                f"\n{kind}, limit {limit >> 20} MiB, messages of {size} B: sent"
                f" {sent / MIB:.1f} MiB in {slow.frames} requests; held at most"
                f" {blocks / MIB:.2f} MiB in blocks"
                f" ({(stuck['block_bytes'] - before['block_bytes']) / MIB:.2f} in the"
                f" end); memory {memory / MIB:+.2f} MiB,"
                f" {most / MIB:+.2f} MiB at its height with what handlers use;"
                f" another connection's {observer.calls} calls took at most"
                f" {observer.slowest * 1e3:.1f} ms"
            )
            # It came to a halt, and not because the server was slow.
            assert stuck["tidewire_read_pauses"] > before["tidewire_read_pauses"]
            assert stuck["tidewire_unwritten_bytes"] > 0
            assert stuck["tidewire_overcrowded"] == 0
            ids = list(slow.owed())
            assert ids == list(range(1, slow.frames + 1))
            # Service resumes.
            slow.sock.setblocking(True)
            slow.sock.settimeout(LONG)
            slow.sock.sendall(wire.echo_request("and on", id=77))
            assert wire.read_frame(slow.sock).id == 77
        finally:
            slow.sock.close()
        wait_until(lambda: server.books()["blocks"] == before["blocks"])
        after = server.books()
        assert after["tidewire_unwritten_bytes"] == 0
        assert after["write_nodes"] == before["write_nodes"]
        assert observer.calls > 10
        assert observer.slowest < 1.0
        assert blocks <= limit + MIB
        assert memory <= limit + MIB
        # Handlers hold copies of the messages that they are at.
        assert most <= 2 * limit + 8 * MIB


# ---- keep-write


def settled(server: Served) -> dict[str, Any]:
    """The books once nothing has moved for a while."""
    last: dict[str, Any] = {}
    since = time.monotonic()

    def still() -> bool:
        nonlocal last, since
        now = server.books()
        moved = {k: v for k, v in now.items() if k not in ("cpu", "rss")}
        if moved != last:
            last, since = moved, time.monotonic()
        return time.monotonic() - since > 0.1

    wait_until(still)
    return server.books()


def scraped(server: Served, name: str) -> int:
    """A counter as Prometheus sees it."""
    url = f"http://{server.admin}/metrics"
    with urllib.request.urlopen(url, timeout=LONG) as page:
        for line in page.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return int(float(line.split()[1]))
    raise AssertionError(name)


@pytest.mark.parametrize("kind", SERVERS)
def test_keepwrite_and_waitepollout_agree_with_what_readers_provoked(kind):
    """Some connections whose answer does not fit into the kernel's buffers: each
    enters keep-write once, each write that came short is one wait, and while
    nobody reads there is neither a write nor a wait nor CPU time."""
    readers, answer = 5, 8 * MIB
    with served(kind=kind, threads=2) as server, Witness(server.host_port):
        before = settled(server)
        socks = []
        try:
            for i in range(readers):
                sock = socket.socket()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIB)
                sock.settimeout(LONG)
                sock.connect(server.host_port)
                socks.append(sock)
                sock.sendall(wire.echo_request("big", id=i, attachment=bytes(answer)))
            wait_until(
                lambda: (
                    server.books()["tidewire_server_calls"]
                    == before["tidewire_server_calls"] + readers
                )
            )
            stuck = settled(server)
            assert stuck["tidewire_unwritten_bytes"] > readers * answer / 2
            assert stuck["tidewire_keepwrite"] == before["tidewire_keepwrite"] + readers
            waited = stuck["tidewire_waitepollout"] - before["tidewire_waitepollout"]
            assert waited >= readers
            # Nobody reads: nothing happens, for half a second.
            time.sleep(0.5)
            idle = server.books()
            for name in ("waitepollout", "keepwrite", "writev_calls", "sent_bytes"):
                assert idle[f"tidewire_{name}"] == stuck[f"tidewire_{name}"], name
            assert idle["cpu"] - stuck["cpu"] < 0.1
            for i, sock in enumerate(socks):
                frame = wire.read_frame(sock)
                assert (frame.id, len(frame.attachment)) == (i, answer)
            done = settled(server)
        finally:
            for sock in socks:
                sock.close()
        delta = {k: done[k] - before[k] for k in done}
        print(
            f"\n{kind}: {readers} slow readers of {answer >> 20} MiB:"
            f" keepwrite +{delta['tidewire_keepwrite']},"
            f" waitepollout +{delta['tidewire_waitepollout']},"
            f" writev calls +{delta['tidewire_writev_calls']}"
        )
        assert delta["tidewire_keepwrite"] == readers
        # Every write but each message's last one came short.
        waits = delta["tidewire_waitepollout"]
        assert delta["tidewire_writev_calls"] == waits + readers
        # How many more there were is the kernel's and the scheduler's affair: a
        # reader may empty all buffers before the server's next turn.
        assert waits >= waited
        assert done["tidewire_unwritten_bytes"] == 0
        for name in ("keepwrite", "waitepollout"):
            assert scraped(server, f"tidewire_{name}_total") == done[f"tidewire_{name}"]


@pytest.mark.parametrize("kind", SERVERS)
def test_a_slow_reader_that_goes_away_costs_nothing(kind):
    """FIN and RST while the server keeps writing."""
    with served(kind=kind, threads=2) as server, Witness(server.host_port) as witness:
        before = settled(server)
        for leave in (reset, socket.socket.close):
            slow = SlowReader(server.host_port, 10 * KIB)
            slow.push_for(0.2)
            assert server.books()["tidewire_unwritten_bytes"] > 0
            leave(slow.sock)
            wait_until(lambda: server.books()["sockets"] == before["sockets"])
            witness.check()
        after = settled(server)
        for name in ("blocks", "requests", "write_nodes", "tidewire_unwritten_bytes"):
            assert after[name] == before[name], name
