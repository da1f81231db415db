"""What a handler knows of its call beside the request."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from tidewire import _cancel, _core, _meta, coding
from tidewire.coding import PLAIN, Coding
from tidewire.errors import ClosedError
from tidewire.trace import Trace

__all__ = ["Context", "current_context", "deadline", "outer_deadline"]

_EVENT: Final = _core.EVENT
_NOTHING: Final[Mapping[str, str]] = {}
_EMPTY: Final = memoryview(b"")
_IDENTITY_MAX: Final = 1024

_current: ContextVar["Context | None"] = ContextVar("tidewire_context", default=None)
_bound: ContextVar[float | None] = ContextVar("tidewire_deadline", default=None)
"""When calls must end; seconds of time.monotonic()."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Calls made inside end within so many seconds from here, all together, or
    earlier where their own timeout or an outer deadline says so.

        with tw.deadline(2.0):
            a = first.get(request)
            b = second.get(request)  # has what is left

    It bounds calls of both faces, futures included, in this thread or task and in
    tasks that are started inside.  Raises nothing by itself.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"deadline is {seconds!r}; allowed: seconds as int or float")
    if not 0 < seconds <= 1e9:
        raise ValueError(f"deadline is {seconds!r}; allowed: over 0 and up to 1e9 s")
    end, outer = time.monotonic() + seconds, _bound.get()
    token = _bound.set(end if outer is None else min(end, outer))
    try:
        yield
    finally:
        _bound.reset(token)


def outer_deadline() -> float | None:
    """When calls that are made here must end at the latest, by time.monotonic():
    the handler's call and deadline() say so."""
    bound, ctx = _bound.get(), _current.get()
    if ctx is None or ctx.deadline is None:
        return bound
    return ctx.deadline if bound is None else min(bound, ctx.deadline)


def current_context() -> "Context | None":
    """The context of the handler that runs, if its caller set a deadline."""
    return _current.get()


class Shared:
    """What the handlers of a server share."""

    def __init__(self, make_thread_state: Callable[[], Any] | None = None) -> None:
        self.state: Any = None
        self._make = make_thread_state
        # Only where it is needed: CPython 3.11 hangs when one is collected while
        # some thread is inside sys._current_frames().
        self._local = None if make_thread_state is None else threading.local()

    @property
    def thread_state(self) -> Any:
        if self._make is None or self._local is None:
            return None
        try:
            return self._local.state
        except AttributeError:
            state = self._local.state = self._make()
            return state


class Context:
    """One call as its handler sees it.

    Made by the server; valid until the handler has returned, but `peer`,
    `deadline`, `log_id` and views of attachments stay good after that.
    """

    # Class attributes until set: most calls set none of them.
    _has_attachment = False
    _is_coded = False
    _facts: "tuple[Any, ...] | None" = None
    _attachment: memoryview | None = None
    _meta: bytes | None = None
    _peer: str | None = None
    _identity: str | None = None
    _identified = False
    _reply_attachment: bytes | bytearray | memoryview | None = None
    _reply_metadata: Mapping[str, str] | None = None
    _reply_coding: Coding | None = None
    _watch: _cancel.Watch | None = None
    # The end of the call is more than its message.
    _has_extra = False

    _raw: bytes
    """The event's memory, copied: it is read when a property is asked for."""

    def _event(self) -> "tuple[Any, ...]":
        facts = self._facts
        if facts is None:
            facts = self._facts = _EVENT.unpack(self._raw)
        return facts

    def __repr__(self) -> str:
        return f"<Context {self.method} from {self.peer}>"

    _method = ""
    """"": a generic service's, the request says it."""
    _on_loop = False
    _shared = Shared()

    @property
    def method(self) -> str:
        """Full name, `package.Service/Method`."""
        if not self._method:
            self._method = "/".join(_meta.method_of(self._request_meta()))
        return self._method

    def _hold(self) -> Any:
        block = _core.lib.tw_request_hold(self._event()[0])
        if not block:
            raise self._answered("attachment, metadata, coding, trace and request_id")
        return block

    @staticmethod
    def _answered(what: str, do: str = "read") -> ClosedError:
        return ClosedError(
            f"the call was answered: {do} {what} before the handler returns"
        )

    def _unanswered(self, server: int) -> int | None:
        """The request's id, if it is that server's and not answered yet."""
        request, cookie = self._event()[:2]
        if cookie >> 32 != server & 0xFFFF_FFFF:
            return None
        return request if _core.lib.tw_request_alive(request) else None

    @property
    def attachment(self) -> memoryview:
        """The request's attachment, read-only; empty when there is none.  The
        view may be kept."""
        if not self._has_attachment:
            return _EMPTY
        if self._attachment is None:
            address, size = self._event()[8:10]
            self._attachment = _core.view(address, size, self._hold())
        return self._attachment

    def _request_meta(self) -> bytes:
        if self._meta is None:
            address, size = self._event()[10:12]
            block = self._hold()
            self._meta = bytes(_core.view(address, size, block))
        return self._meta

    @property
    def metadata(self) -> Mapping[str, str]:
        """The caller's metadata (user_fields on the wire)."""
        return _meta.decode_user_fields(self._request_meta())

    @property
    def request_id(self) -> str:
        """The caller's request_id; "" when it sent none."""
        return _meta.request_id(self._request_meta())

    @property
    def coding(self) -> Coding:
        """How the request travelled: compression, content type, checksum."""
        if not self._is_coded:
            return PLAIN
        return coding.coding_of(self._request_meta())

    @property
    def trace(self) -> Trace | None:
        """The caller's trace ids; None when it sent none."""
        trace_id, span_id, parent = _meta.trace_ids(self._request_meta())
        if not trace_id:
            return None
        return Trace(trace_id=trace_id, span_id=span_id, parent_span_id=parent)

    @property
    def log_id(self) -> int:
        """The caller's log_id, 0 when it sent none; unsigned 64 bits."""
        log_id: int = self._event()[17]
        return log_id & 0xFFFF_FFFF_FFFF_FFFF

    @property
    def peer(self) -> str:
        """The caller's address, "" when it was gone before this was asked."""
        if self._peer is None:
            self._peer = _core.peer_of(self._event()[19]) or ""
        return self._peer

    @property
    def identity(self) -> str | None:
        """Who calls, as the server's authenticator said of the connection;
        None when there is no authenticator."""
        if not self._identified:
            text = _core.ffi.new("char[]", _IDENTITY_MAX)
            request = self._event()[0]
            size = _core.lib.tw_request_identity(request, text, _IDENTITY_MAX)
            if size == -_core.lib.TW_STALE:
                raise self._answered("identity")
            if size >= 0:
                self._identity = _core.ffi.unpack(text, size).decode()
            self._identified = True
        return self._identity

    @property
    def deadline(self) -> float | None:
        """When the caller gives up, in seconds of time.monotonic(); None when
        it sent no deadline."""
        deadline_ns: int = self._event()[16]
        return deadline_ns / 1e9 if deadline_ns else None

    def remaining(self) -> float | None:
        """Seconds until the deadline, not below 0; None without one."""
        deadline = self.deadline
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def cancelled(self) -> bool:
        """Whether the caller's connection is gone: nobody reads the answer."""
        return not _core.lib.tw_request_alive(self._event()[0])

    @property
    def state(self) -> Any:
        """What the server's lifespan has yielded; None without one."""
        return self._shared.state

    @property
    def thread_state(self) -> Any:
        """What the server's `thread_state` function gave for this thread, made when
        first asked for and kept as long as the thread; None without one."""
        return self._shared.thread_state

    @property
    def peer_closed(self) -> bool:
        """Whether the caller has ended its sending, or is gone.  It may still
        read the answer: `cancelled()` is another matter."""
        return bool(_core.lib.tw_request_alive(self._event()[0]) != 1)

    def on_cancel(self, callback: Callable[[], object]) -> None:
        """Calls `callback()` once when the caller's connection is gone, at once
        if it is already, and never after the handler has returned.

        A `def` handler's are called by a thread of the server's while the handler
        runs on, and the handler's end waits for one that has begun; an `async
        def` handler's by its loop, just before its task is cancelled.  They
        must not block; what they raise is logged."""
        if not callable(callback):
            raise TypeError(
                f"callback is a {type(callback).__name__}; allowed: a function of no"
                " arguments"
            )
        if self._watch is None:
            watch = _cancel.watch(self._event()[0], self._on_loop)
            if watch is None:
                raise self._answered("on_cancel", "call")
            self._watch = watch
            self._has_extra = True
        self._watch.add(callback)

    def _returned(self) -> None:
        """The handler has: no callback is called any more."""
        if self._watch is not None:
            self._watch.end()

    @property
    def reply_attachment(self) -> bytes | bytearray | memoryview | None:
        """Bytes to send behind the answer; not sent with an error."""
        return self._reply_attachment

    @reply_attachment.setter
    def reply_attachment(self, data: bytes | bytearray | memoryview | None) -> None:
        if data is not None and not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(
                f"reply_attachment is a {type(data).__name__}; allowed: bytes,"
                " bytearray, memoryview or None"
            )
        self._reply_attachment = data
        self._has_extra = True

    @property
    def reply_metadata(self) -> Mapping[str, str]:
        """Metadata to send with the answer, str keys and values."""
        return self._reply_metadata or _NOTHING

    @reply_metadata.setter
    def reply_metadata(self, fields: Mapping[str, str]) -> None:
        self._reply_metadata = dict(fields)
        self._has_extra = True

    @property
    def reply_coding(self) -> Coding:
        """How the answer is to travel, whatever the request did: to answer in
        kind, set it to `coding`."""
        return self._reply_coding or PLAIN

    @reply_coding.setter
    def reply_coding(self, how: Coding) -> None:
        if not isinstance(how, Coding):
            raise TypeError(
                f"reply_coding is a {type(how).__name__}; allowed: a tidewire.Coding"
            )
        self._reply_coding = how
        if how is not PLAIN:
            self._has_extra = True

    def _extra(self, body: bytes = b"", coding: bytes = b"") -> "tuple[Any, Any]":
        """What goes beside the answer's message, for the core."""
        return _core.extra(
            self._reply_attachment, self._reply_metadata, body=body, coding=coding
        )


def context_class(method: str, on_loop: bool, shared: Shared) -> type[Context]:
    """The class of one method's contexts; its user sets `_raw`.  Nothing is
    passed to a constructor: a call's cost counts."""
    facts = {"_method": method, "_on_loop": on_loop, "_shared": shared}
    return type("Context", (Context,), {**facts, "__module__": __name__})
