"""A small baidu_std server of one thread, for testing the load generator.

It speaks just enough to be asked and to answer what a test wants, and shares
no code with Tidewire.
"""

import selectors
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

HEADER = 12


@dataclass
class Request:
    connection: int
    """Numbered in the order of their first request."""
    service: str
    method: str
    correlation_id: int
    payload: bytes
    fields: dict[int, int | bytes] = field(default_factory=dict)
    """The fields of the message."""
    sock: socket.socket | None = None

    def answer(self, code: int = 0, payload: bytes | None = None) -> bytes:
        """The frame that answers: the message echoed, or an error."""
        if payload is None:
            message = self.fields.get(1, b"")
            assert isinstance(message, bytes)
            payload = b"" if code else bytes_field(1, message)
        return response(self.correlation_id, code, payload)


def response(correlation_id: int, code: int, payload: bytes) -> bytes:
    meta = bytes_field(2, b"\x08" + varint(code)) + b"\x20" + varint(correlation_id)
    return (
        b"PRPC"
        + struct.pack(">II", len(meta) + len(payload), len(meta))
        + meta
        + payload
    )


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def bytes_field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def parse(data: bytes) -> dict[int, int | bytes]:
    """The fields of a message made of varints and length-delimited values."""
    found: dict[int, int | bytes] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = number()
        value = number()
        if tag & 7 == 2:
            found[tag >> 3] = data[at : at + value]
            at += value
        else:
            assert tag & 7 == 0
            found[tag >> 3] = value
    return found


Behaviour = Callable[[Request], list[tuple[Request, bytes]] | bytes | None]


class Peer:
    """Serves until closed; `behave` is asked about every request.

    It returns the bytes to send back, a list of (request, bytes) to answer
    several, or None to stay silent; a ConnectionError closes the connection.
    """

    def __init__(self, behave: Behaviour, path: str | None = None) -> None:
        self.requests: list[Request] = []
        self._behave = behave
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
            self.port = self._listener.getsockname()[1]
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self._listener.listen(128)
            self.port = 0
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Peer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.close()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        unread: dict[socket.socket, bytearray] = {}
        numbers: dict[socket.socket, int] = {}
        with selectors.DefaultSelector() as selector, self._listener, self._woken:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            stopping = False
            # Told to stop, it first reads what has arrived: a client that has
            # exited has left all it sent in the kernel.
            while (ready := selector.select(0 if stopping else None)) or not stopping:
                for key, _ in ready:
                    sock = key.fileobj
                    assert isinstance(sock, socket.socket)
                    if sock is self._woken:
                        selector.unregister(sock)
                        stopping = True
                    elif sock is self._listener:
                        connection, _ = sock.accept()
                        unread[connection] = bytearray()
                        selector.register(connection, selectors.EVENT_READ)
                    elif not self._read(sock, unread[sock], numbers):
                        selector.unregister(sock)
                        unread.pop(sock)
                        sock.close()
        for connection in unread:
            connection.close()

    def _read(
        self,
        sock: socket.socket,
        buffer: bytearray,
        numbers: dict[socket.socket, int],
    ) -> bool:
        try:
            data = sock.recv(65536)
        except ConnectionError:
            return False
        buffer += data
        while len(buffer) >= HEADER:
            body, meta = struct.unpack_from(">II", buffer, 4)
            if len(buffer) < HEADER + body:
                break
            frame = bytes(buffer[: HEADER + body])
            del buffer[: HEADER + body]
            number = numbers.setdefault(sock, len(numbers))
            request = self._request(frame, meta, number, sock)
            self.requests.append(request)
            try:
                replies = self._behave(request)
                if isinstance(replies, bytes):
                    replies = [(request, replies)]
                for to, reply in replies or []:
                    assert to.sock is not None
                    to.sock.sendall(reply)
            except ConnectionError:
                return False
        return bool(data)

    @staticmethod
    def _request(frame: bytes, meta: int, number: int, sock: socket.socket) -> Request:
        assert frame[:4] == b"PRPC"
        fields = parse(frame[HEADER : HEADER + meta])
        assert isinstance(fields[1], bytes)
        assert isinstance(fields[4], int)
        names = parse(fields[1])
        assert isinstance(names[1], bytes)
        assert isinstance(names[2], bytes)
        payload = frame[HEADER + meta :]
        return Request(
            connection=number,
            service=names[1].decode(),
            method=names[2].decode(),
            correlation_id=fields[4],
            payload=payload,
            fields=parse(payload),
            sock=sock,
        )
