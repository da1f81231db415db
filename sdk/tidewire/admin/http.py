"""HTTP/1.1 on the server's side, without I/O: bytes in, answers out.

Requests are answered in the order of their arrival.  After an answer that
ends the connection nothing further is parsed.  What is answered does not
depend on how the bytes were split.
"""

import time
from collections.abc import Callable, Generator
from typing import Final, NamedTuple

import httptools

from tidewire.admin import grammar
from tidewire.admin.grammar import Refused
from tidewire.admin.messages import Request, Response, plain

__all__ = ["MAX_OUTSTANDING", "Handler", "HttpConnection", "Reply"]

MAX_OUTSTANDING: Final = 64
"""Requests that one feed() answers at most."""

Handler = Callable[[Request], Response]

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Reply(NamedTuple):
    """Bytes to send; `close`: end the connection once they are written."""

    data: bytes
    close: bool


class HttpConnection:
    """One connection.  Used by one thread at a time.

    `handle` answers a request; what it raises comes out of feed(), and the
    connection is then closed.  `now` gives seconds since the epoch.
    """

    def __init__(self, handle: Handler, *, now: Callable[[], float] = time.time):
        self._handle = handle
        self._now = now
        self._buffer = bytearray()
        self._replies: list[Reply] = []
        self._answered = 0
        self._head_only = False
        self._steps = self._run()
        self._closed = False
        self._more = False

    @property
    def closed(self) -> bool:
        """Whether the last answer ended the connection."""
        return self._closed

    @property
    def more(self) -> bool:
        """Whether feed(b"") would go on with requests that are here already."""
        return self._more

    def feed(self, data: bytes) -> list[Reply]:
        """Takes received bytes and returns what to send: at most
        MAX_OUTSTANDING answers; write them, then look at `more`."""
        if self._closed:
            return []
        self._buffer += data
        self._replies = []
        self._answered = 0
        self._more = False
        try:
            next(self._steps, None)
        except BaseException:
            self._closed = True
            raise
        finally:
            if self._closed:
                self._buffer.clear()
        return self._replies

    # The steps below are generators that stop where bytes are missing, or
    # where answers should be written first.

    def _run(self) -> Generator[None]:
        while not self._closed:
            try:
                yield from self._message()
            except Refused as refused:
                headers = {"Allow": "GET, HEAD"} if refused.status == 405 else {}
                response = plain(refused.status, refused.reason, headers)
                self._answer(response, close=True)
            if self._answered == MAX_OUTSTANDING and self._buffer:
                self._more = True
                yield

    def _message(self) -> Generator[None]:
        self._head_only = False
        start = yield from self._line(grammar.MAX_REQUEST_LINE, 414)
        if not start:  # RFC 9112, 2.2: an empty line before a request is ignored
            start = yield from self._line(grammar.MAX_REQUEST_LINE, 414)
        line = grammar.request_line(start)
        self._head_only = line.method == "HEAD"
        if line.method == "CONNECT":
            raise Refused(405, "method not allowed")
        fields = _Fields()
        yield from self._fields(fields)
        parser = _Parser()
        parser.feed(b"\r\n".join([start, *fields.lines, b"\r\n"]))
        body = grammar.body_of(line.version, parser.fields)
        headers = _joined(parser.fields)
        self._expect(line.version, headers.get("expect"), body)
        if body.chunked:
            yield from self._chunks(parser, fields)
        else:
            yield from self._skip(parser, body.length)
        if not parser.complete:
            raise Refused(400, "the body's length is ambiguous")
        request = Request(
            method=line.method, path=line.path, query=line.query, headers=headers
        )
        close = not grammar.keeps_alive(line.version, headers.get("connection", ""))
        self._answer(self._handle(request), close=close, version=line.version)

    def _answer(self, response: Response, *, close: bool, version: str = "1.1") -> None:
        data = response.encode(
            now=self._now(), close=close, head=self._head_only, version=version
        )
        self._replies.append(Reply(data, close))
        self._answered += 1
        self._closed = close

    def _expect(self, version: str, expect: str | None, body: grammar.Body) -> None:
        if expect is None or version == "1.0":
            return
        if expect.lower() != "100-continue":
            raise Refused(417, "unknown expectation")
        if body.chunked or body.length:
            self._replies.append(Reply(_CONTINUE, False))

    def _line(self, limit: int, status: int) -> Generator[None, None, bytes]:
        """The next line, without its CRLF, of at most `limit` bytes."""
        searched = 0
        while True:
            end = self._buffer.find(b"\n", searched)
            searched = len(self._buffer) if end < 0 else end
            # One more than the limit: the CR.
            if searched > limit + 1:
                raise Refused(status, "too long")
            if end >= 0:
                break
            yield
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        if not line.endswith(b"\r"):
            raise Refused(400, "a line ends with CR and LF")
        return line[:-1]

    def _fields(self, fields: "_Fields") -> Generator[None]:
        """Reads header or trailer lines up to the empty one."""
        fields.lines = []
        # With CRs and LFs; the empty line is free.
        while line := (yield from self._line(max(fields.room - 2, 0), 431)):
            fields.add(line)

    def _skip(self, parser: "_Parser", length: int) -> Generator[None]:
        """Drops `length` bytes of a body."""
        while length:
            while not self._buffer:
                yield
            part = bytes(self._buffer[:length])
            del self._buffer[: len(part)]
            length -= len(part)
            parser.feed(part)

    def _chunks(self, parser: "_Parser", fields: "_Fields") -> Generator[None]:
        """Drops a chunked body and its trailers."""
        body = extensions = 0
        while True:
            line = yield from self._line(16 + grammar.MAX_CHUNK_EXTENSIONS, 431)
            size, extra = grammar.chunk_size(line)
            body += size
            extensions += extra
            if extensions > grammar.MAX_CHUNK_EXTENSIONS:
                raise Refused(431, "too many chunk extensions")
            if body > grammar.MAX_BODY:
                raise Refused(413, f"a body may have {grammar.MAX_BODY} bytes")
            parser.feed(line + b"\r\n")
            if not size:
                break
            yield from self._skip(parser, size)
            yield from self._line(0, 400)
            parser.feed(b"\r\n")
        yield from self._fields(fields)
        parser.feed(
            b"\r\n".join([*fields.lines, b"\r\n"] if fields.lines else [b"\r\n"])
        )


class _Fields:
    """Header lines and, after them, trailer lines, within one limit."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.room = grammar.MAX_HEADERS
        self._count = 0

    def add(self, line: bytes) -> None:
        self.lines.append(line)
        self.room -= len(line) + 2
        self._count += 1
        if self._count > grammar.MAX_FIELDS:
            raise Refused(431, "too many header fields")
        grammar.check_field(line)


class _Parser:
    """httptools on one message."""

    def __init__(self) -> None:
        self.fields: list[tuple[str, str]] = []
        """Header fields in order, names in lower case."""
        self.complete = False
        self._in_head = True
        self._upgrade = False
        self._parser = httptools.HttpRequestParser(self)

    def feed(self, data: bytes) -> None:
        if self._upgrade:
            return
        if self.complete:
            raise Refused(400, "the body's length is ambiguous")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # No upgrade is offered, so it is ignored (RFC 9110, 7.8); llhttp
            # reads no further, and grammar.py has said where the body ends.
            self._upgrade = self.complete = True
        except httptools.HttpParserInvalidMethodError:
            raise Refused(405, "method not allowed") from None
        except httptools.HttpParserError as error:
            raise Refused(400, f"bad request: {error}") from None

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            text = value.strip(b" \t").decode("latin-1")
            self.fields.append((name.decode("latin-1").lower(), text))

    def on_headers_complete(self) -> None:
        self._in_head = False

    def on_message_complete(self) -> None:
        self.complete = True


def _joined(fields: list[tuple[str, str]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in fields:
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
