"""One server's address as the core knows it: numeric, made when first used."""

import contextlib
import socket
import threading
from typing import Any, Final

from tidewire import _core
from tidewire.codes import Errno
from tidewire.errors import ClosedError, Phase, RpcError, from_number
from tidewire.options import Address, ChannelOptions, check_credential

__all__ = ["Peer"]

_lib: Final = _core.lib
_ffi: Final = _core.ffi


def _numeric(info: "tuple[Any, ...]") -> str:
    host, port = info[4][:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _accepts(info: "tuple[Any, ...]", timeout: float) -> bool:
    family, kind, protocol, _, address = info
    with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
        probe.settimeout(timeout)
        probe.connect(address)
        return True
    return False


class Peer:
    """The core's handle for one address, behind a channel of either face.

    Names are resolved off every loop, at first use, and again after a failed
    connection.  After a fork the child makes a handle of its own.
    """

    def __init__(self, address: Address, options: ChannelOptions) -> None:
        self.address: Final = address
        self._options = options
        self._id = 0
        # By numeric address: what a name led to so far.
        self._handles: dict[str, int] = {}
        self._generation = -1
        self._closed = False
        given = options.credentials
        # For each connection another credential, if it is a function.
        self._ask: Final = None if isinstance(given, bytes) else given
        self._ask_lock = threading.RLock()

    @property
    def id(self) -> int:
        """The handle, 0 when the address has to be resolved first.  Raises
        ClosedError."""
        if self._generation == _core.generation and self._id:
            if self._ask is not None:
                self._supply(self._id)
            return self._id
        if self._closed:
            raise ClosedError(f"the channel to {self.address.text} is closed")
        if self.address.kind == "name":
            return 0
        return self.open(self.address.text)

    def open(self, numeric: str) -> int:
        """Makes the handle for a numeric address, if there is none."""
        handle = self._opened(numeric)
        if self._ask is not None:
            self._supply(handle)
        return handle

    def _supply(self, handle: int) -> None:
        """Gives the core a credential if the next call makes a connection."""
        if self._ask is None or _lib.tw_peer_wants_credential(handle) <= 0:
            return
        with self._ask_lock:
            if _lib.tw_peer_wants_credential(handle) > 0:
                self._tell(handle, check_credential(self._ask(), "credentials()"), True)

    @staticmethod
    def _tell(handle: int, credential: bytes, once: bool) -> None:
        code = _lib.tw_peer_credential(handle, credential, len(credential), once)
        _core.check(code, "the channel is closed")

    def _opened(self, numeric: str) -> int:
        _core.open()
        with _core.handles_lock:
            if self._closed:
                raise ClosedError(f"the channel to {self.address.text} is closed")
            if self._generation != _core.generation:
                self._handles.clear()
                self._id = 0
                self._ask_lock = threading.RLock()
            if self._id:
                return self._id
            known = self._handles.get(numeric)
            if known:
                self._id = known
                return known
            limit = self._options.connect_timeout
            options = _ffi.new("tw_peer_options *")
            options.max_message = self._options.max_message
            options.max_unwritten = self._options.max_unwritten
            options.connect_timeout_ns = 0 if limit is None else int(limit * 1e9)
            made = _ffi.new("tw_id *")
            code = _lib.tw_peer_open(numeric.encode(), options, made)
            _core.check(code, f"a channel to {numeric} cannot be opened")
            if isinstance(self._options.credentials, bytes):
                self._tell(made[0], self._options.credentials, False)
            self._generation = _core.generation
            self._id = self._handles[numeric] = made[0]
            return self._id

    def resolve(self, timeout: float | None) -> int:
        """Resolves the name and makes the handle; blocks up to `timeout` s."""
        found: list[str] = []
        problem: list[OSError] = []

        def look() -> None:
            try:
                found.append(_numeric(self.lookup()))
            except OSError as error:
                problem.append(error)

        # getaddrinfo knows no deadline: a thread does the waiting.
        thread = threading.Thread(target=look, name="tidewire-resolve", daemon=True)
        thread.start()
        thread.join(timeout)
        if found:
            return self.open(found[0])
        raise self.unresolved(problem[0] if problem else None)

    def lookup(self) -> "tuple[Any, ...]":
        """An address of the name: the first that accepts connections, if there
        are several, such as localhost's.  Blocks; raises OSError."""
        infos = socket.getaddrinfo(
            self.address.host, self.address.port, type=socket.SOCK_STREAM
        )
        if not infos:
            raise OSError("the name has no address")
        limit = self._options.connect_timeout or 1.0
        if len(infos) > 1:
            for info in infos:
                if _accepts(info, limit):
                    return info
        return infos[0]

    numeric = staticmethod(_numeric)

    def unresolved(self, error: OSError | None) -> RpcError:
        if error is None:
            number, why = Errno.ERPCTIMEDOUT, "the deadline passed meanwhile"
        else:
            number, why = Errno.EHOSTDOWN, str(error)
        return from_number(
            int(number),
            f"{self.address.text} cannot be resolved: {why}",
            peer=self.address.text,
            phase=Phase.CONNECT,
        )

    def failed(self, handle: int, error: BaseException | None) -> None:
        """A call on `handle` ended so: a name that led nowhere is resolved
        again by the next one."""
        if (
            self.address.kind == "name"
            and isinstance(error, RpcError)
            and error.phase is Phase.CONNECT
        ):
            with _core.handles_lock:
                # Others may have moved on already.
                if self._id == handle:
                    self._id = 0

    def close(self) -> None:
        """Ends calls under way; a second call changes nothing."""
        with _core.handles_lock:
            self._closed = True
            mine = self._generation == _core.generation
            handles = list(self._handles.values())
            self._handles.clear()
            self._id = 0
        if mine:
            for handle in handles:
                _lib.tw_peer_close(handle)
