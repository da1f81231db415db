"""One client call as plain state: encode, deadline, what its end means.

Decides and never waits.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from tidewire import _core, _meta
from tidewire._lend import LEND_BYTES
from tidewire.codec import Codec, functions_for
from tidewire.codes import Errno
from tidewire.context import _current
from tidewire.errors import Phase, RpcError, Sent, from_number
from tidewire.service import MethodInfo

__all__ = ["Attachment", "Plan", "Response"]

Req = TypeVar("Req")
Res = TypeVar("Res")

Attachment = bytes | bytearray | memoryview

_NULL: Final = _core.NULL
_unpack: Final = _core.ffi.unpack
_monotonic_ns: Final = time.monotonic_ns
_current_get: Final = _current.get


class Unset:
    """The type of UNSET: the channel's setting holds."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Response(Generic[Res]):
    """An answer with what came beside it."""

    message: Res
    attachment: memoryview
    """Read-only; may be kept.  Empty when there is none."""
    metadata: Mapping[str, str]
    """The server's metadata (user_fields on the wire)."""
    peer: str | None
    """Address of the server that answered."""
    elapsed: float
    """Seconds from the call to its answer."""


def _seconds(timeout: object) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(
            f"timeout is {timeout!r}; allowed: seconds as int or float, or None"
        )
    if not 0 < timeout <= 1e9:
        raise ValueError(f"timeout is {timeout!r}; allowed: over 0 and up to 1e9 s")
    return timeout


class Plan(Generic[Req, Res]):
    """A method as one channel calls it."""

    def __init__(
        self,
        info: MethodInfo[Req, Res],
        codec: Codec | None,
        timeout: float | None,
        deadline_on_wire: bool,
        address: str,
        owner: object,
    ) -> None:
        self.info = info
        self.owner: Final = owner
        """What the channel's calls have in common."""
        self.name: Final = info.full_name
        self.encode: Final = functions_for(codec, info.request)[0]
        self.decode: Final = functions_for(codec, info.response)[1]
        self.index: Final = _core.check(
            _core.lib.tw_client_method(info.service.encode(), info.name.encode()),
            f"the method {info.full_name} cannot be called",
        )
        self._address = address
        self._timeout = timeout
        self._timeout_ns = 0 if timeout is None else int(timeout * 1e9)
        self._deadline_on_wire = deadline_on_wire
        self.bare_extra: Final = self.extra(None, None, None, None)
        """Of calls with nothing beside a small message."""

    def deadline_ns(self, timeout: object) -> int:
        """When the call ends at the latest, 0: never.  A handler's calls end
        no later than the call it serves."""
        if timeout is UNSET:
            limit_ns = self._timeout_ns
        else:
            limit_ns = 0 if timeout is None else int(_seconds(timeout) * 1e9)
        deadline = _monotonic_ns() + limit_ns if limit_ns else 0
        ctx = _current_get()
        if ctx is not None and ctx.deadline is not None:
            outer = int(ctx.deadline * 1e9)
            if outer <= _monotonic_ns():
                # Nobody would wait for the answer: the server is spared it.
                text = "The deadline of the call that is served has passed"
                number = int(Errno.ERPCTIMEDOUT)
                raise self.local_error(number, text, Phase.NONE)
            if not deadline or outer < deadline:
                deadline = max(outer, 1)
        return deadline

    def extra(
        self,
        attachment: Attachment | None,
        metadata: Mapping[str, str] | None,
        request_id: str | None,
        log_id: int | None,
        ignore_eovercrowded: bool = False,
        body: bytes = b"",
    ) -> tuple[Any, Any]:
        """(tw_extra or NULL, what must live until it was submitted)."""
        if (
            attachment is None
            and metadata is None
            and request_id is None
            and log_id is None
            and not ignore_eovercrowded
            and len(body) < LEND_BYTES
            and self._deadline_on_wire
        ):
            return _NULL, None
        return _core.extra(
            attachment,
            metadata,
            request_id,
            log_id,
            self._deadline_on_wire,
            ignore_eovercrowded,
            body,
        )

    def decoded(self, data: Any, size: int, event: Any) -> Res:
        """The message in the first `size` bytes of data."""
        try:
            # No pointer comes with an empty message.
            return self.decode(_unpack(data, size) if size else b"")
        except Exception as error:
            raise self._undecodable(event, error) from error

    def message(self, event: Any) -> Res:
        """The answer's message, or raises what the call ended with."""
        if event.code:
            raise self.error(event)
        return self.decoded(event.body, event.body_len, event)

    def response(self, event: Any) -> Response[Res]:
        """The answer with all that came beside it, or raises."""
        message = self.message(event)
        attachment = memoryview(b"")
        size = event.attachment_len
        block = event.block
        if size and block:
            _core.lib.tw_hold(block)
            address = int(_core.ffi.cast("uintptr_t", event.attachment))
            attachment = _core.view(address, size, block)
        elif size:
            attachment = memoryview(_unpack(event.attachment, size))
        meta = event.meta_len
        return Response(
            message=message,
            attachment=attachment,
            metadata=_meta.decode_user_fields(_unpack(event.meta, meta))
            if meta
            else {},
            peer=_core.peer_of(event.socket),
            elapsed=(event.received_ns - event.started_ns) / 1e9,
        )

    def error(self, event: Any) -> RpcError:
        """What the call ended with."""
        number: int = event.code
        size = event.text_len
        if size:
            text = _unpack(event.text, size).decode("utf-8", "replace")
        else:
            text = _core.text_of(number)
        return from_number(
            number,
            text,
            method=self.name,
            peer=self._peer(event),
            phase=Phase(event.phase),
            sent=Sent(event.sent),
            elapsed=(event.received_ns - event.started_ns) / 1e9,
        )

    def local_error(self, number: int, text: str, phase: Phase) -> RpcError:
        """A call that ended before the core had it."""
        return from_number(
            number, text, method=self.name, peer=self._address, phase=phase
        )

    def _peer(self, event: Any) -> str:
        # A connection that failed has no peer to ask for any more.
        return _core.peer_of(event.socket) or self._address

    def _undecodable(self, event: Any, error: Exception) -> RpcError:
        name = self.info.response.__qualname__
        return from_number(
            int(Errno.ERESPONSE),
            f"Fail to parse response={name}, response_size={event.body_len}: {error}",
            method=self.name,
            peer=self._peer(event),
            phase=Phase.READ,
            sent=Sent.ALL,
            elapsed=(event.received_ns - event.started_ns) / 1e9,
        )
