"""Requests and responses of the admin listener as plain data."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

__all__ = ["Request", "Response", "plain"]

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

# On every answer: browsers shall neither guess a type, nor load or run
# anything, nor show the page inside another, nor keep it.
_SAFETY: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": (
        "default-src 'none'; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request whose body has been received and dropped: no page takes one."""

    method: str
    path: str
    """Percent-decoded once.  An encoded slash or backslash stays encoded, so
    that it can only match a page whose path has a percent sign: none."""
    query: str = ""
    """As sent, without the question mark."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Lower-case names; values of a repeated name are joined with ", "."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer.  Raises ValueError for headers that would break the message."""

    status: int = 200
    content_type: str = "text/plain; charset=utf-8"
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Beyond those that every answer has."""

    def __post_init__(self) -> None:
        for name, value in {"Content-Type": self.content_type, **self.headers}.items():
            if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
                raise ValueError(f"header {name!r}: {value!r} is not allowed")

    def encode(
        self, *, now: float, close: bool, head: bool = False, version: str = "1.1"
    ) -> bytes:
        """The bytes to send.  `now` is seconds since the epoch, `head` leaves
        the body out, `version` is the request's."""
        fields = {
            "Date": formatdate(now, usegmt=True),
            "Content-Type": self.content_type,
            "Content-Length": str(len(self.body)),
            **_SAFETY,
            **self.headers,
        }
        if close:
            fields["Connection"] = "close"
        elif version == "1.0":
            fields["Connection"] = "keep-alive"
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        lines += (f"{name}: {value}" for name, value in fields.items())
        start = "\r\n".join([*lines, "", ""]).encode("latin-1")
        return start if head else start + self.body


def plain(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """A line of text."""
    return Response(status=status, body=f"{text}\n".encode(), headers=headers or {})
