"""A second peer: a baidu_std client and a server written by hand from
spec/baidu_std.md, without protobuf and without any code of the SDK.

Messages are opaque bytes here.  The server answers in whatever order its
`shuffle` says; the client keeps any number of calls in flight.
"""

import random
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Answer", "Call", "Client", "Server", "string_message"]

# ---- protobuf wire format, as much of it as a meta needs


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = []
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def number(tag: int, value: int) -> bytes:
    return varint(tag * 8) + varint(value)


def text(tag: int, value: bytes) -> bytes:
    return varint(tag * 8 + 2) + varint(len(value)) + value


def string_message(value: bytes, tag: int = 1) -> bytes:
    """A message whose one field is a string."""
    return text(tag, value)


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def varint(self) -> int:
        value, place = 0, 1
        while True:
            byte = self.data[self.at]
            self.at += 1
            value += byte % 128 * place
            if byte < 128:
                return value
            place *= 128

    def bytes(self) -> bytes:
        size = self.varint()
        start = self.at
        self.at += size
        assert self.at <= len(self.data), "truncated field"
        return self.data[start : self.at]


def parse(data: bytes) -> dict[int, list[int | bytes]]:
    """Every field's values in order."""
    found: dict[int, list[int | bytes]] = {}
    cursor = _Cursor(data)
    while cursor.at < len(data):
        tag = cursor.varint()
        assert tag % 8 in (0, 2), f"wire type {tag % 8}"
        value = cursor.bytes() if tag % 8 else cursor.varint()
        found.setdefault(tag // 8, []).append(value)
    return found


def _int(fields: dict[int, list[int | bytes]], tag: int, bits: int = 64) -> int:
    value = fields.get(tag, [0])[-1]
    assert isinstance(value, int)
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _bytes(fields: dict[int, list[int | bytes]], tag: int) -> bytes:
    value = fields.get(tag, [b""])[-1]
    assert isinstance(value, bytes)
    return value


def frame(meta: bytes, payload: bytes) -> bytes:
    return (
        b"PRPC"
        + struct.pack(">II", len(meta) + len(payload), len(meta))
        + meta
        + payload
    )


@dataclass
class Frames:
    """Bytes as they come, frames as they are complete."""

    unread: bytearray = field(default_factory=bytearray)

    def feed(
        self, data: bytes
    ) -> list[tuple[dict[int, list[int | bytes]], bytes, bytes]]:
        """(meta's fields, message, attachment) of each frame now whole."""
        self.unread += data
        found = []
        while len(self.unread) >= 12:
            assert self.unread[:4] == b"PRPC", bytes(self.unread[:12])
            body, meta = struct.unpack_from(">II", self.unread, 4)
            if len(self.unread) < 12 + body:
                break
            fields = parse(bytes(self.unread[12 : 12 + meta]))
            payload = bytes(self.unread[12 + meta : 12 + body])
            del self.unread[: 12 + body]
            behind = len(payload) - _int(fields, 5, 32)
            found.append((fields, payload[:behind], payload[behind:]))
        return found


# ---- the client


@dataclass
class Answer:
    id: int
    code: int
    text: bytes
    message: bytes
    attachment: bytes


def request(
    service: bytes, method: bytes, id: int, message: bytes, attachment: bytes = b""
) -> bytes:
    meta = text(1, text(1, service) + text(2, method)) + number(4, id)
    if attachment:
        meta += number(5, len(attachment))
    return frame(meta, message + attachment)


class Client:
    """One connection.  send() queues and writes, take() reads; both may be
    called in any order, and by two threads."""

    def __init__(self, address: tuple[str, int], timeout: float = 30.0) -> None:
        self.sock = socket.create_connection(address, timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._frames = Frames()
        self._ready: list[Answer] = []

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def take(self) -> Answer:
        """The next answer, whichever call it belongs to."""
        while not self._ready:
            data = self.sock.recv(1 << 18)
            if not data:
                raise EOFError("the server has closed")
            for fields, message, attachment in self._frames.feed(data):
                response = parse(_bytes(fields, 2))
                self._ready.append(
                    Answer(
                        _int(fields, 4),
                        _int(response, 1, 32),
                        _bytes(response, 2),
                        message,
                        attachment,
                    )
                )
        return self._ready.pop(0)


# ---- the server


@dataclass
class Call:
    """A request as the server got it."""

    connection: socket.socket
    id: int
    service: str
    method: str
    log_id: int
    request_id: str
    timeout_ms: int
    user_fields: dict[str, str]
    message: bytes
    attachment: bytes

    def answer(
        self,
        message: bytes = b"",
        attachment: bytes = b"",
        code: int = 0,
        why: bytes = b"",
    ) -> bytes:
        response = number(1, code) + (text(2, why) if why else b"")
        meta = text(2, response) + number(4, self.id)
        if attachment:
            meta += number(5, len(attachment))
        return frame(meta, b"" if code else message + attachment)


class Server:
    """Serves in a thread of its own until closed.

    `answer` makes the bytes for a call.  Up to `hold` answers are held back
    and leave in random order, so that answers overtake each other; what is
    held leaves as soon as nothing else comes.
    """

    def __init__(
        self, answer: Callable[[Call], bytes], *, hold: int = 0, seed: int = 0
    ) -> None:
        self._answer = answer
        self._hold = hold
        self._rng = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._wake, self._woken = socket.socketpair()
        self.connections = 0
        self.calls = 0
        self.overtaken = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._failure: BaseException | None = None

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.close()
        self._thread.join(10)
        assert not self._thread.is_alive()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            self._failure = error

    def _serve(self) -> None:
        unread: dict[socket.socket, Frames] = {}
        held: list[tuple[int, Call, bytes]] = []
        with selectors.DefaultSelector() as selector, self._listener, self._woken:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                ready = selector.select(0 if held else None)
                if not ready:
                    self._release(held, 0)
                for key, _ in ready:
                    sock = key.fileobj
                    assert isinstance(sock, socket.socket)
                    if sock is self._woken:
                        for connection in unread:
                            connection.close()
                        return
                    if sock is self._listener:
                        connection, _ = sock.accept()
                        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        unread[connection] = Frames()
                        self.connections += 1
                        selector.register(connection, selectors.EVENT_READ)
                        continue
                    try:
                        data = sock.recv(1 << 18)
                    except ConnectionError:
                        data = b""
                    if not data:
                        selector.unregister(sock)
                        del unread[sock]
                        sock.close()
                        held[:] = [h for h in held if h[1].connection is not sock]
                        continue
                    for fields, message, attachment in unread[sock].feed(data):
                        call = self._call(sock, fields, message, attachment)
                        self.calls += 1
                        held.append((self.calls, call, self._answer(call)))
                self._release(held, self._hold)

    def _release(self, held: list[tuple[int, Call, bytes]], keep: int) -> None:
        while len(held) > keep:
            which = self._rng.randrange(len(held))
            order, call, data = held.pop(which)
            if any(o < order and c.connection is call.connection for o, c, _ in held):
                self.overtaken += 1
            try:
                call.connection.sendall(data)
            except OSError:
                continue

    @staticmethod
    def _call(
        sock: socket.socket,
        fields: dict[int, list[int | bytes]],
        message: bytes,
        attachment: bytes,
    ) -> Call:
        names = parse(_bytes(fields, 1))
        users = {}
        for entry in fields.get(9, []):
            assert isinstance(entry, bytes)
            pair = parse(entry)
            users[_bytes(pair, 1).decode()] = _bytes(pair, 2).decode()
        return Call(
            connection=sock,
            id=_int(fields, 4),
            service=_bytes(names, 1).decode(),
            method=_bytes(names, 2).decode(),
            log_id=_int(names, 3),
            request_id=_bytes(names, 7).decode(),
            timeout_ms=_int(names, 8, 32),
            user_fields=users,
            message=message,
            attachment=attachment,
        )
