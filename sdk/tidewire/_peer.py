"""One server's addresses as the core knows them: numeric, made when first used."""

import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from tidewire import _core, _endpoint
from tidewire._counters import Counter
from tidewire.address import MAX_ADDRESSES
from tidewire.codec import functions_for
from tidewire.codes import Errno
from tidewire.errors import ClosedError, Phase, RpcError, from_number
from tidewire.options import (
    Address,
    ChannelOptions,
    HealthCheck,
    check_credential,
)

__all__ = ["Peer", "connection_key"]

_log: Final = logging.getLogger("tidewire.client")
_lib: Final = _core.lib
_ffi: Final = _core.ffi
_CONNECTIONS: Final = {
    "single": _lib.TW_SINGLE,
    "pooled": _lib.TW_POOLED,
    "short": _lib.TW_SHORT,
}


def _numeric(info: "tuple[Any, ...]") -> str:
    host, port = info[4][:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _probe_body(options: ChannelOptions) -> bytes:
    """The message that health checks send, encoded."""
    check = options.health_check
    if check is None or check.probe is None:
        return b""
    info = check.probe
    encode, _ = functions_for(options.codec, info.request)
    return encode(info.request() if check.request is None else check.request)


def _health(options: Any, check: HealthCheck | None, body: bytes) -> list[Any]:
    """Fills in the options of health checks; what must live until the call."""
    if check is None:
        return []
    options.health_interval_ns = int(check.interval * 1e9)
    if check.probe is None:
        return []
    options.probe_service = service = _ffi.new("char[]", check.probe.service.encode())
    options.probe_method = method = _ffi.new("char[]", check.probe.name.encode())
    options.probe_body = message = _ffi.new("char[]", body)
    options.probe_body_len = len(body)
    return [service, method, message]


def connection_key(options: ChannelOptions) -> object:
    """What two channels must agree in to share a connection, beside the addresses."""
    check = options.health_check
    probe = None if check is None or check.probe is None else check.probe.full_name
    given = options.credentials
    return (
        options.connection_group,
        options.max_message,
        options.max_unwritten,
        options.connect_timeout,
        options.socket,
        check and check.interval,
        probe,
        _probe_body(options),
        # A function of its own each, however equal: who compares does not know.
        given if given is None or isinstance(given, bytes) else id(given),
    )


class Peer:
    """The core's handle for one server, behind a channel of either face.

    Channels whose options agree in all that concerns connections share what is
    behind the handle (_endpoint.py).  Names are resolved off every loop, at first
    use, and again after a failed connection.  After a fork the child makes a
    handle of its own.
    """

    def __init__(self, addresses: tuple[Address, ...], options: ChannelOptions) -> None:
        self.addresses: Final = addresses
        self.text: Final = ",".join(address.text for address in addresses)
        self.has_names: Final = any(a.kind == "name" for a in addresses)
        self._options = options
        self._probe_body: Final = _probe_body(options)
        self._id = 0
        # By numeric addresses: what a name led to so far.
        self._handles: dict[str, tuple[_endpoint.Endpoint, int]] = {}
        self._generation = -1
        self._closed = False
        self._resolve_after = 0.0
        self.has_futures = False
        """Whether calls on it were futures."""
        if not self.has_names:
            _core.check_socket(self.text, options.socket)
        given = options.credentials
        # For each connection another credential, if it is a function.
        self._ask: Final = None if isinstance(given, bytes) else given
        self._ask_lock = threading.RLock()
        self._connection: Final = _CONNECTIONS[options.connection]
        self._key: Final = connection_key(options)
        self._problem = ""
        """What it raised last, while there was another connection."""

    @property
    def is_unresolved(self) -> bool:
        """Whether a name has to be resolved first, which blocks."""
        return self.has_names and not self._id

    @property
    def id(self) -> int:
        """The handle, 0 when a name has to be resolved first.  Raises
        ClosedError."""
        if self._generation == _core.generation and self._id:
            if self._ask is not None:
                self._supply(self._id)
            return self._id
        if self._closed:
            raise ClosedError(f"the channel to {self.text} is closed")
        if self.has_names:
            return 0
        return self.open(self.text)

    def open(self, numeric: str) -> int:
        """Makes the handle for numeric addresses, if there is none."""
        handle = self._opened(numeric)
        if self._ask is not None:
            self._supply(handle)
        return handle

    def _supply(self, handle: int) -> None:
        """Gives the core a credential if the next call makes a connection."""
        wants = _lib.tw_peer_wants_credential(handle)
        if self._ask is None or wants <= 0:
            return
        if wants == 2:
            self._supply_successor(handle, self._ask)
            return
        with self._ask_lock:
            if _lib.tw_peer_wants_credential(handle) > 0:
                self._tell(handle, check_credential(self._ask(), "credentials()"), True)

    def _supply_successor(self, handle: int, ask: Callable[[], bytes]) -> None:
        """The same while the connection at hand works: one thread asks, and if it
        gets none the calls go on as they are."""
        if not self._ask_lock.acquire(blocking=False):
            return
        try:
            if _lib.tw_peer_wants_credential(handle) <= 0:
                return
            credential = check_credential(ask(), "credentials()")
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            if problem != self._problem:
                self._problem = problem
                _log.warning(
                    "%s: no credential for the next connection, the one at hand is "
                    "used on: %s",
                    self.text,
                    problem,
                )
            return
        finally:
            self._ask_lock.release()
        self._problem = ""
        self._tell(handle, credential, True)

    @staticmethod
    def _tell(handle: int, credential: bytes, once: bool) -> None:
        code = _lib.tw_peer_credential(handle, credential, len(credential), once)
        _core.check(code, "the channel is closed")

    def _opened(self, numeric: str) -> int:
        _core.open()
        with _core.handles_lock:
            if self._closed:
                raise ClosedError(f"the channel to {self.text} is closed")
            if self._generation != _core.generation:
                self._handles.clear()
                self._id = 0
            if self._id:
                return self._id
            known = self._handles.get(numeric)
            if known is None:
                key = (numeric, self._key)
                known = _endpoint.join(
                    key, self._connection, lambda: self._make(numeric)
                )
                self._handles[numeric] = known
            endpoint, self._id = known
            self._ask_lock = endpoint.ask_lock
            self._generation = _core.generation
            return self._id

    def _make(self, numeric: str) -> int:
        """The first handle on an endpoint."""
        limit = self._options.connect_timeout
        options = _ffi.new("tw_peer_options *")
        options.connection = self._connection
        options.max_message = self._options.max_message
        options.max_unwritten = self._options.max_unwritten
        options.connect_timeout_ns = 0 if limit is None else int(limit * 1e9)
        if self.has_names:
            _core.check_socket(numeric, self._options.socket)
        _core.fill_socket(options.socket, self._options.socket)
        keep = _health(options, self._options.health_check, self._probe_body)
        made = _ffi.new("tw_id *")
        code = _lib.tw_peer_open(numeric.encode(), options, made)
        del keep
        _core.check(code, f"a channel to {numeric} cannot be opened")
        handle: int = made[0]
        if isinstance(self._options.credentials, bytes):
            self._tell(handle, self._options.credentials, False)
        return handle

    def resolve(self, timeout: float | None) -> int:
        """Resolves the name and makes the handle; blocks up to `timeout` s."""
        found: list[str] = []
        problem: list[OSError] = []

        def look() -> None:
            try:
                found.append(self.lookup())
            except OSError as error:
                problem.append(error)

        # getaddrinfo knows no deadline: a thread does the waiting.
        thread = threading.Thread(target=look, name="tidewire-resolve", daemon=True)
        thread.start()
        thread.join(timeout)
        if found:
            return self.open(found[0])
        raise self.unresolved(problem[0] if problem else None)

    def lookup(self) -> str:
        """All addresses as numbers; of a name, those it has, in the resolver's
        order.  Blocks; raises OSError."""
        found: list[str] = []
        for address in self.addresses:
            if address.kind != "name":
                found.append(address.text)
                continue
            infos = socket.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM
            )
            if not infos:
                raise OSError("the name has no address")
            found.extend(_numeric(info) for info in infos)
        return ",".join(list(dict.fromkeys(found))[:MAX_ADDRESSES])

    def unresolved(self, error: OSError | None) -> RpcError:
        if error is None:
            number, why = Errno.ERPCTIMEDOUT, "the deadline passed meanwhile"
        else:
            number, why = Errno.EHOSTDOWN, str(error)
        Counter(
            "tidewire_client_failures",
            "Attempts that failed, by how far they had come",
            phase="resolve",
        ).add()
        return from_number(
            int(number),
            f"{self.text} cannot be resolved: {why}",
            peer=self.text,
            phase=Phase.RESOLVE,
        )

    def failed(self, handle: int, error: BaseException | None) -> None:
        """A call on `handle` ended so: a name that led nowhere is resolved
        again by the next one."""
        if (
            self.has_names
            and isinstance(error, RpcError)
            and error.phase is Phase.CONNECT
        ):
            with _core.handles_lock:
                # Others may have moved on already.
                if self._id == handle and self._may_have_moved(error):
                    self._id = 0

    def _may_have_moved(self, error: RpcError) -> bool:
        """While the server is down calls fail at once, and must: then the name
        is resolved again once for the time between two checks."""
        check = self._options.health_check
        if check is None or error.number != Errno.EFAILEDSOCKET:
            return True
        now = time.monotonic()
        if now < self._resolve_after:
            return False
        self._resolve_after = now + check.interval
        return True

    def close(self) -> None:
        """Ends calls under way; a second call changes nothing."""
        with _core.handles_lock:
            self._closed = True
            mine = self._generation == _core.generation
            handles = list(self._handles.values()) if mine else []
            self._handles.clear()
            self._id = 0
            for known in handles:
                _endpoint.leave(*known)
        for _, handle in handles:
            _lib.tw_peer_close(handle)
