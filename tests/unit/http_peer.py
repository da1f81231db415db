"""A peer of HttpConnection for tests."""

import itertools
import random
from collections.abc import Iterable, Iterator

from tidewire.admin.http import HttpConnection
from tidewire.admin.messages import Request, Response, plain

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


class Peer:
    """A connection, what its handler saw, and what was sent."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.connection = HttpConnection(self.handle, now=lambda: 784111777.0)
        self.sent = b""
        self.closes: list[bool] = []

    def handle(self, request: Request) -> Response:
        self.requests.append(request)
        return plain(200, f"{request.method} {request.path} {request.query}")

    def feed(self, data: bytes) -> "Peer":
        more = True
        while more:
            replies = self.connection.feed(data)
            data = b""
            self.sent += b"".join(reply.data for reply in replies)
            self.closes += [reply.close for reply in replies]
            more = self.connection.more
        return self

    @property
    def statuses(self) -> list[int]:
        """Of all answers, in order."""
        lines = self.sent.split(b"HTTP/1.1 ")[1:]
        return [int(line[:3]) for line in lines]

    @property
    def outcome(self) -> object:
        return self.requests, self.sent, self.closes, self.connection.closed


def splits(data: bytes) -> Iterator[Iterable[bytes]]:
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    for seed in range(5):
        rng = random.Random(seed)
        cuts = sorted(rng.choices(range(len(data) + 1), k=rng.randint(1, 12)))
        edges = [0, *cuts, len(data)]
        yield [data[a:b] for a, b in itertools.pairwise(edges)]


def ask(data: bytes) -> Peer:
    """Feeds `data` in many ways, which must all lead to the same."""
    peers = []
    for parts in splits(data):
        peer = Peer()
        for part in parts:
            peer.feed(part)
        peers.append(peer)
    assert all(peer.outcome == peers[0].outcome for peer in peers)
    return peers[0]


def head(*lines: str, start: str = "GET / HTTP/1.1", host: bool = True) -> bytes:
    every = [start, *(["Host: a"] if host else []), *lines, "", ""]
    return "\r\n".join(every).encode("latin-1")
