"""HTTP/1.1's lines, read strictly.

llhttp forgives some things that proxies read in another way than we would
(hardening: request smuggling), and it knows no limits.  So every line is
checked here first; httptools then parses the same bytes, and what one of the
two refuses is refused.
"""

import re
from collections.abc import Iterable
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

__all__ = [
    "MAX_BODY",
    "MAX_CHUNK_EXTENSIONS",
    "MAX_FIELDS",
    "MAX_HEADERS",
    "MAX_REQUEST_LINE",
    "Body",
    "Refused",
    "RequestLine",
    "body_of",
    "check_field",
    "chunk_size",
    "keeps_alive",
    "request_line",
]

MAX_REQUEST_LINE: Final = 8 * 1024
MAX_HEADERS: Final = 64 * 1024
"""All fields of a message, trailers included, in bytes."""
MAX_FIELDS: Final = 100
MAX_BODY: Final = 64 * 1024
MAX_CHUNK_EXTENSIONS: Final = 4 * 1024
"""Of all chunks of a message, in bytes."""

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE: Final = re.compile(rb"(%s) ([\x21-\x7e]+) HTTP/1\.([01])" % _TOKEN)
# No blank before the colon; no control bytes, bare CR or NUL in the value.
_FIELD: Final = re.compile(rb"%s:[\t\x20-\x7e\x80-\xff]*" % _TOKEN)
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,16})((?:;[\t\x20-\x7e]*)?)")
_ABSOLUTE: Final = re.compile(rb"http://([^/?#@]+)([/?].*)?", re.IGNORECASE)
_HOST: Final = re.compile(rb"[A-Za-z0-9\-._~%!$&'()*+,;=:\[\]]*")
_BAD_PERCENT: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
# Split at these before decoding: what they decode to separates segments.
_ENCODED_SLASH: Final = re.compile(rb"(%(?:2[fF]|5[cC]))")


class Refused(Exception):
    """The request is refused with `status`; the connection ends."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class RequestLine(NamedTuple):
    method: str
    path: str
    """Decoded as Request.path says; empty for CONNECT and OPTIONS *."""
    query: str
    version: str
    """"1.0" or "1.1"."""


class Body(NamedTuple):
    """How a body is delimited."""

    chunked: bool
    length: int
    """0 when chunked."""


def request_line(line: bytes) -> RequestLine:
    """Parses a request line without its CRLF."""
    match = _REQUEST_LINE.fullmatch(line)
    if not match:
        raise Refused(400, "bad request line")
    method, target, minor = match.groups()
    version = f"1.{minor.decode()}"
    if method == b"CONNECT" or (method == b"OPTIONS" and target == b"*"):
        return RequestLine(method.decode(), "", "", version)
    path, query = _target(target)
    return RequestLine(method.decode(), path, query, version)


def _target(target: bytes) -> tuple[str, str]:
    if absolute := _ABSOLUTE.fullmatch(target):
        authority, target = absolute.groups()
        if not _HOST.fullmatch(authority):
            raise Refused(400, "bad authority in the request target")
        target = target or b"/"
        if target.startswith(b"?"):
            target = b"/" + target
    path, _, query = target.partition(b"?")
    if not path.startswith(b"/") or b"#" in target or _BAD_PERCENT.search(path):
        raise Refused(400, "bad request target")
    parts = _ENCODED_SLASH.split(path)
    parts[::2] = map(unquote_to_bytes, parts[::2])
    return b"".join(parts).decode("utf-8", "replace"), query.decode()


def check_field(line: bytes) -> None:
    """Checks a header or trailer line without its CRLF."""
    if not _FIELD.fullmatch(line):
        raise Refused(400, "bad header line")


def body_of(version: str, fields: Iterable[tuple[str, str]]) -> Body:
    """Decides how the body is delimited and checks what the whole head must
    fulfil, given its fields in order."""
    values: dict[str, list[str]] = {}
    for name, value in fields:
        values.setdefault(name, []).append(value)
    hosts = values.get("host", [])
    if len(hosts) > 1 or (version == "1.1" and not hosts):
        raise Refused(400, "exactly one Host is needed")
    if hosts and not _HOST.fullmatch(hosts[0].encode("latin-1")):
        raise Refused(400, "bad Host")
    lengths = values.get("content-length", [])
    codings = values.get("transfer-encoding", [])
    if codings:
        if lengths or version == "1.0" or [c.lower() for c in codings] != ["chunked"]:
            raise Refused(400, "bad Transfer-Encoding")
        return Body(chunked=True, length=0)
    if not lengths:
        return Body(chunked=False, length=0)
    if len(lengths) > 1 or not re.fullmatch(r"[0-9]+", lengths[0]):
        raise Refused(400, "bad Content-Length")
    # By its digits: int() of thousands of them is slow, then an error.
    digits = lengths[0].lstrip("0") or "0"
    if len(digits) > 9 or int(digits) > MAX_BODY:
        raise Refused(413, f"a body may have {MAX_BODY} bytes")
    return Body(chunked=False, length=int(digits))


def chunk_size(line: bytes) -> tuple[int, int]:
    """Parses a chunk's first line: (bytes of data, bytes of extensions)."""
    match = _CHUNK.fullmatch(line)
    if not match:
        raise Refused(400, "bad chunk size")
    digits, extensions = match.groups()
    return int(digits, 16), len(extensions)


def keeps_alive(version: str, connection: str) -> bool:
    """Whether another request may follow, given the Connection header."""
    options = {option.strip().lower() for option in connection.split(",")}
    if "close" in options:
        return False
    return version == "1.1" or "keep-alive" in options
