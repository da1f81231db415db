"""Talks with etcd: its JSON gateway, over HTTP, at one of several endpoints."""

import base64
import contextlib
import json
import os
import socket
import ssl
import weakref
from collections.abc import Generator, Iterator, Sequence
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, Final

from tidewire.address import Address
from tidewire.naming.naming import Stopping

__all__ = ["EtcdClient", "decoded", "encoded", "number_of", "parsed"]

_TIMEOUT: Final = 3.0
"""Seconds that an endpoint may be silent that owes an answer, or takes to be
connected."""
_QUIET: Final = 60.0
"""Seconds after which a stream that says nothing is left: its endpoint may have
stopped, and nothing would tell."""
_MOST: Final = 64 * 1024 * 1024
"""Bytes of an answer, or of a message of a stream."""

_HEADERS: Final = {
    "Content-Type": "application/json",
    # A member that has lost the others says so instead of staying silent.
    "Grpc-Metadata-hasleader": "true",
}

_open: "weakref.WeakSet[HTTPConnection]" = weakref.WeakSet()


def encoded(text: str) -> str:
    """A key or a value as the gateway takes it."""
    return base64.b64encode(text.encode()).decode()


def decoded(text: object) -> str:
    """The same from the gateway; ValueError: it is none.  Bytes that are no text
    are shown as such."""
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is neither key nor value")
    return base64.b64decode(text, validate=True).decode(errors="backslashreplace")


def parsed(data: str | bytes) -> dict[str, Any]:
    """A JSON object.  Raises ValueError for all else."""
    try:
        found = json.loads(data)
    except RecursionError:
        raise ValueError("JSON that is nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError(f"{data[:200]!r} is no JSON object")
    return found


def number_of(message: dict[str, Any], name: str) -> int:
    """A whole number, which travels as text; 0 where it is left out."""
    try:
        return int(message.get(name, 0))
    except TypeError:
        raise ValueError(f"{name} is {message[name]!r}") from None


class EtcdClient:
    """For one thread.  What goes wrong is an OSError that names the endpoint; an
    answer that is none of etcd's is one, too."""

    def __init__(
        self,
        endpoints: Sequence[Address],
        tls: ssl.SSLContext | None,
        stopping: Stopping | None = None,
    ) -> None:
        """stopping: ends what waits for an endpoint."""
        self._endpoints: Final = endpoints
        self._tls: Final = tls
        # (One that is not set is false.)
        self._stopping: Final = Stopping() if stopping is None else stopping
        self._at = 0

    def turn(self) -> None:
        """The next endpoint from now on."""
        self._at = (self._at + 1) % len(self._endpoints)

    def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What the first endpoint says that answers; each is asked once."""
        left = len(self._endpoints)
        while True:
            left -= 1
            try:
                with self._asked(path, body) as (_, response):
                    return parsed(_whole(response))
            except OSError:
                self.turn()
                if not left or self._stopping:
                    raise

    def stream(
        self, path: str, body: dict[str, Any]
    ) -> Generator[dict[str, Any], None, None]:
        """Messages of this endpoint.  Ends when it was quiet for long; what was
        lost is an error.  Close it (contextlib.closing)."""
        with self._asked(path, body) as (sock, response):
            heard = False
            while True:
                try:
                    line = response.readline(_MOST)
                except TimeoutError:
                    if heard:
                        return
                    raise
                if not line.endswith(b"\n"):
                    raise ConnectionError("the stream has ended")
                message = parsed(line)
                if "result" not in message:
                    raise ConnectionError(f"the stream has ended: {_reason(line)}")
                heard = True
                sock.settimeout(_QUIET)
                yield _part(message, "result")

    @contextlib.contextmanager
    def _asked(
        self, path: str, body: dict[str, Any]
    ) -> Iterator[tuple[socket.socket, HTTPResponse]]:
        endpoint = self._endpoints[self._at]
        connection = self._connection(endpoint)
        _open.add(connection)
        try:
            connection.connect()
            sock = connection.sock
            with self._stopping.cutting(sock):
                connection.request("POST", path, json.dumps(body), _HEADERS)
                with connection.getresponse() as response:
                    if response.status != 200:
                        text = _reason(_whole(response))
                        raise ConnectionError(f"{response.status}, {text}")
                    yield sock, response
        except (OSError, ValueError, HTTPException) as error:
            what = str(error) or type(error).__name__
            raise ConnectionError(f"{endpoint.text}: {what}") from error
        finally:
            connection.close()

    def _connection(self, endpoint: Address) -> HTTPConnection:
        if self._tls is None:
            return HTTPConnection(endpoint.host, endpoint.port, timeout=_TIMEOUT)
        return HTTPSConnection(
            endpoint.host, endpoint.port, timeout=_TIMEOUT, context=self._tls
        )


def _whole(response: HTTPResponse) -> bytes:
    data = response.read(_MOST + 1)
    if len(data) > _MOST:
        raise ValueError(f"the answer has more than {_MOST} bytes")
    return data


def _part(message: dict[str, Any], name: str) -> dict[str, Any]:
    found = message.get(name)
    if not isinstance(found, dict):
        raise ValueError(f"{name} is {found!r}")
    return found


def _reason(data: bytes) -> str:
    """What an error says, as far as it can be read."""
    try:
        error = parsed(data).get("error")
    except ValueError:
        error = None
    if isinstance(error, dict):
        error = error.get("message")
    return str(error or data[:200].decode("utf-8", "replace").strip())


def _after_fork() -> None:
    """In the child: the connections are the parent's."""
    for connection in list(_open):
        fd = connection.sock.detach() if connection.sock is not None else -1
        if fd >= 0:
            os.close(fd)


os.register_at_fork(after_in_child=_after_fork)
