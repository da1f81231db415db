"""One client call as plain state: encode, deadline, what its end means.

Decides and never waits.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Generic, NamedTuple, TypeVar

from tidewire import _core, _meta, coding
from tidewire._lend import LEND_BYTES
from tidewire.codec import functions_for
from tidewire.codes import Errno
from tidewire.coding import PLAIN, Coding, ContentType
from tidewire.context import outer_deadline
from tidewire.errors import Attempt, Part, Phase, RpcError, Sent, from_number
from tidewire.options import ChannelOptions
from tidewire.service import MethodInfo
from tidewire.trace import Trace

__all__ = ["Attachment", "Packed", "Plan", "Response", "seconds"]

Req = TypeVar("Req")
Res = TypeVar("Res")

Attachment = bytes | bytearray | memoryview

_NULL: Final = _core.NULL
_unpack: Final = _core.ffi.unpack
_monotonic_ns: Final = time.monotonic_ns
_outer: Final = outer_deadline


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
    coding: Coding
    """How it travelled: compression, content type, checksum."""
    elapsed: float
    """Seconds from the call to its answer, over all attempts."""
    attempts: int = 1
    """How often the request was tried."""
    past: tuple[Attempt, ...] = ()
    """The attempts that failed before, in order."""
    parts: tuple[Part, ...] = ()
    """Of a call on a ParallelChannel: its sub-calls, in channel order."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Views cannot be pickled; errors are, and have answers in their parts.
        facts = {one.name: getattr(self, one.name) for one in fields(self)}
        return _revived, ({**facts, "attachment": bytes(self.attachment)},)


def _revived(facts: dict[str, Any]) -> Response[Any]:
    return Response(**{**facts, "attachment": memoryview(facts["attachment"])})


def seconds(timeout: object) -> float | None:
    """The timeout that a call was given, checked."""
    return None if timeout is None else _seconds(timeout)


def _seconds(timeout: object) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(
            f"timeout is {timeout!r}; allowed: seconds as int or float, or None"
        )
    if not 0 < timeout <= 1e9:
        raise ValueError(f"timeout is {timeout!r}; allowed: over 0 and up to 1e9 s")
    return timeout


class Packed(NamedTuple):
    """A request as the core takes it."""

    body: bytes
    extra: Any
    """tw_extra or NULL."""
    keep: Any
    """What must live until it was submitted."""


class Plan(Generic[Req, Res]):
    """A method as one channel calls it."""

    def __init__(
        self,
        info: MethodInfo[Req, Res],
        options: ChannelOptions,
        address: str,
        owner: object,
    ) -> None:
        codec, timeout = options.codec, options.timeout
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
        self._codec = codec
        self._limit: Final = options.max_message
        self._coding: Final = options.coding or PLAIN
        self._timeout_ns = 0 if timeout is None else int(timeout * 1e9)
        self._deadline_on_wire = options.send_deadline
        self.bare: Final = self._coding == PLAIN
        """Whether small messages with nothing beside them go as they are, with
        `bare_extra`."""
        bare = not self._deadline_on_wire
        self.bare_extra: Final = (
            _core.extra(None, None, deadline_on_wire=False) if bare else (_NULL, None)
        )

    def deadline_ns(self, timeout: object) -> int:
        """When the call ends at the latest, 0: never.  A handler's calls end
        no later than the call it serves, and all no later than deadline() says."""
        if timeout is UNSET:
            limit_ns = self._timeout_ns
        else:
            limit_ns = 0 if timeout is None else int(_seconds(timeout) * 1e9)
        deadline = _monotonic_ns() + limit_ns if limit_ns else 0
        bound = _outer()
        if bound is not None:
            outer = int(bound * 1e9)
            if outer <= _monotonic_ns():
                # Nobody would wait for the answer: the server is spared it.
                text = "The deadline around this call has passed"
                number = int(Errno.ERPCTIMEDOUT)
                raise self.local_error(number, text, Phase.NONE)
            if not deadline or outer < deadline:
                deadline = max(outer, 1)
        return deadline

    def lent_extra(self, body: bytes) -> tuple[Any, Any]:
        """The same for a large message."""
        return _core.extra(
            None, None, deadline_on_wire=self._deadline_on_wire, body=body
        )

    def packed(
        self,
        request: Req,
        attachment: Attachment | None,
        metadata: Mapping[str, str] | None,
        request_id: str | None,
        log_id: int | None,
        ignore_eovercrowded: bool,
        how: Coding | None,
        trace: Trace | None,
        *,
        again: int = 0,
    ) -> Packed:
        """The request and all that goes beside it.  how: None: the channel's.
        again: no first attempt, but a RETRY or BACKUP."""
        fields = b""
        if how is None and self.bare:
            body = self.encode(request)
            if (
                attachment is None
                and metadata is None
                and request_id is None
                and log_id is None
                and trace is None
                and not ignore_eovercrowded
                and not again
            ):
                if len(body) < LEND_BYTES:
                    return Packed(body, *self.bare_extra)
                return Packed(body, *self.lent_extra(body))
        else:
            how = self._coding if how is None else how
            if not isinstance(how, Coding):
                raise TypeError(
                    f"coding is a {type(how).__name__}; allowed: a tidewire.Coding"
                )
            encode: Callable[[Req], bytes] = self.encode
            if how.content_type is not ContentType.PROTOBUF:
                encode = coding.writer(self._codec, self.info.request, how.content_type)
            body, fields = coding.encoded(how, encode(request), attachment)
        extra, keep = _core.extra(
            attachment,
            metadata,
            request_id,
            log_id,
            self._deadline_on_wire,
            ignore_eovercrowded,
            body,
            fields,
            trace,
            again,
        )
        return Packed(body, extra, keep)

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
        if event.coded:
            return self._decode_coded(event)
        return self.decoded(event.body, event.body_len, event)

    def _decode_coded(self, event: Any) -> Res:
        size = event.attachment_len
        try:
            data, content_type = coding.decoded(
                _unpack(event.meta, event.meta_len),
                _unpack(event.body, event.body_len) if event.body_len else b"",
                _core.ffi.buffer(event.attachment, size) if size else b"",
                self._limit,
            )
            if content_type is ContentType.PROTOBUF:
                return self.decode(data)
            read: Callable[[bytes], Res] = coding.reader(
                self._codec, self.info.response, content_type
            )
            return read(data)
        except Exception as error:
            raise self._undecodable(event, error) from error

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
        meta = _unpack(event.meta, event.meta_len) if event.meta_len else b""
        return Response(
            message=message,
            attachment=attachment,
            metadata=_meta.decode_user_fields(meta) if meta else {},
            coding=coding.coding_of(meta) if event.coded else PLAIN,
            peer=self._peer(event),
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
        error = from_number(
            number,
            text,
            method=self.name,
            peer=self._peer(event),
            phase=Phase(event.phase),
            sent=Sent(event.sent),
            elapsed=(event.received_ns - event.started_ns) / 1e9,
        )
        if event.deadline_ns:
            error.limit = (event.deadline_ns - event.started_ns) / 1e9
        return error

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
