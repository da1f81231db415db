"""The only importer of the extension: opening, forking and closing the core,
handles, events, codes to exceptions."""

import atexit
import errno
import os
import struct
import threading
from collections.abc import Mapping
from typing import Any, Final

from tidewire import _lend, _meta, _release
from tidewire._ffi import ffi, lib
from tidewire.errors import ClosedError, ForkError, OptionError
from tidewire.options import AutoLimit, Concurrency, SocketOptions, TimeoutLimit
from tidewire.trace import Trace

__all__ = [
    "EVENT",
    "NULL",
    "check",
    "events_lost",
    "extra",
    "ffi",
    "generation",
    "let_go",
    "lib",
    "open",
    "view",
]

NULL: Final = ffi.NULL

# tw_event's fields in order; a static assert in core.h guards the size.
EVENT: Final = struct.Struct("@QQiiiiQQQQQQQQQqqqqQq")

SMALL_VIEW: Final = 4096
"""Attachments up to this many bytes are copied: a view of one would keep a
whole block of the connection alive."""

_PATIENCE: Final = 1.0
"""Seconds at exit for threads that are inside a write, which does not wait."""

_lock = threading.Lock()
_opened = False

ended = False
"""The interpreter ends: everything was closed, and stays so."""

handles_lock = threading.RLock()
"""Held while handles are made and given up, which is rare.  One for all, here,
so that a fork's child gets a free one; reentrant, since the garbage collector may
close a forgotten channel anywhere."""

_budgeted = False

generation = 0
"""Grows with every fork: handles of the parent carry another."""

_parent = os.getpid()


def open() -> None:
    """Opens the process's core on first use and starts its log thread."""
    global _opened, _budgeted
    if _opened:
        return
    if ended:
        raise ClosedError("the interpreter is ending")
    with _lock:
        if not _opened:
            check(lib.tw_open(), "the core cannot be opened")
            _opened = True
            from tidewire import _housekeeping, _memory

            if not _budgeted:  # a fork's child goes on with its parent's
                _budgeted = True
                lib.tw_memory_budget(_memory.budget())
            _housekeeping.start()


def is_open() -> bool:
    return _opened


def set_loops(count: int) -> None:
    """How many loops the process has, before its first connection."""
    code = lib.tw_loops(count)
    if code == -errno.EBUSY:
        raise OptionError(
            f"ServerOptions.loops is {count}; it is for the whole process:"
            " allowed before its first listener or connection, or what it has"
        )
    check(code, "the loops cannot be started")


def _close() -> None:
    # C threads end before Python frees what they might look at.
    global _opened, ended
    ended = True
    if _opened:
        _opened = False
        lib.tw_close()
        _lend.settle(_PATIENCE)


def _forked() -> None:
    global _opened, _lock, handles_lock, ended, generation, _parent
    # Only close(2): everything else would act on the parent's connections.
    lib.tw_forked()
    _lend.forget()
    _lock = threading.Lock()
    handles_lock = threading.RLock()
    _opened = ended = False
    generation += 1
    _parent = os.getppid()


os.register_at_fork(after_in_child=_forked)
# Before threads are joined where Python has a hook for it, else at exit.
getattr(threading, "_register_atexit", atexit.register)(_close)


def forked(what: str) -> ForkError:
    return ForkError.of(what, parent=_parent, child=os.getpid())


def check(code: int, doing: str = "") -> int:
    """The code if it is none of an error, else the exception it stands for."""
    if code >= 0:
        return code
    if code in (-lib.TW_STALE, -lib.TW_STOPPED):
        raise ClosedError(doing or "it is closed")
    name = os.strerror(-code)
    raise OSError(-code, f"{doing}: {name}" if doing else name)


def events_lost(code: int) -> bool:
    """Whether a wait ended for good (its queue or the core was closed)."""
    return code < 0 and code not in (-errno.EINTR, -errno.ETIMEDOUT)


def nanoseconds(seconds: float | None) -> int:
    """At least 1, so that no limit becomes the 0 that None stands for."""
    return 0 if seconds is None else max(1, int(seconds * 1e9))


def fill_socket(target: Any, options: SocketOptions | None) -> None:
    """The tw_socket_options of the options; zeroed memory stands for None."""
    if options is None:
        return
    if options.keepalive is not None:
        target.keepalive = 1
        target.keepalive_idle = options.keepalive.idle
        target.keepalive_interval = options.keepalive.interval
        target.keepalive_count = options.keepalive.count
    if options.user_timeout is not None:
        target.user_timeout_ms = max(1, int(options.user_timeout * 1000))
    target.tos = options.tos or 0
    target.send_buffer = options.send_buffer or 0
    target.receive_buffer = options.receive_buffer or 0
    target.bind = (options.bind or "").encode()


def fill_limit(target: Any, limit: Concurrency | None) -> None:
    """The tw_limit of an option; zeroed memory stands for no limit."""
    if limit is None or isinstance(limit, str):
        assert limit is None  # the options make "auto" an AutoLimit
    elif isinstance(limit, AutoLimit):
        target.kind = lib.TW_LIMIT_AUTO
        target.least, target.first, target.most = (
            limit.least,
            limit.initial,
            limit.most,
        )
        target.window_ns = nanoseconds(limit.window)
        target.remeasure_ns = nanoseconds(limit.remeasure)
    elif isinstance(limit, TimeoutLimit):
        target.kind = lib.TW_LIMIT_TIMEOUT
        target.most = limit.max_concurrency
        target.window_ns = nanoseconds(limit.window)
        target.timeout_ns = nanoseconds(limit.timeout)
    elif limit:
        target.kind, target.most = lib.TW_LIMIT_NUMBER, limit


def check_socket(numeric: str, options: SocketOptions | None) -> None:
    """Raises OSError, which names the option that the system refuses for
    connections to every one of those addresses."""
    if options is None:
        return
    target, refused = ffi.new("tw_socket_options *"), ffi.new("char[]", 32)
    fill_socket(target, options)
    code = 0
    for address in numeric.split(","):
        code = lib.tw_socket_check(address.encode(), target, refused, 32)
        if code == 0:
            return
    name = bytes(ffi.string(refused)).decode()
    check(code, f"ChannelOptions.socket.{name} is refused for {numeric}")


def text_of(number: int) -> str:
    return bytes(ffi.string(lib.tw_error_text(number))).decode()


def peer_of(socket: int) -> str | None:
    """Address of a connection's other side; None when it is gone."""
    text = ffi.new("char[]", 128)
    if lib.tw_socket_peer(socket, text, 128) < 0:
        return None
    return bytes(ffi.string(text)).decode("utf-8", "replace")


def view(address: int, size: int, block: Any) -> memoryview:
    """A read-only view of received bytes that owns one share of their block.

    Takes the share: it is given back when the last view is gone, from
    whatever thread, also after everything was closed.
    """
    pointer = ffi.cast("char *", address)
    if size <= SMALL_VIEW:
        data = bytes(ffi.buffer(pointer, size))
        lib.tw_release(block)
        return memoryview(data)
    owner = ffi.gc(pointer, _release.of(block), size)
    return memoryview(ffi.buffer(owner, size)).toreadonly()


def _wrong(name: str, value: object, allowed: str) -> TypeError:
    shown = repr(value)[:100]
    return TypeError(f"{name} is {shown} ({type(value).__name__}); allowed: {allowed}")


def _signed(number: int) -> int:
    """An unsigned number of 64 bits as the wire's int64."""
    return number - 2**64 if number >= 2**63 else number


def extra(
    attachment: bytes | bytearray | memoryview | None,
    metadata: Mapping[str, str] | None,
    request_id: str | None = None,
    log_id: int | None = None,
    deadline_on_wire: bool = True,
    ignore_eovercrowded: bool = False,
    body: bytes = b"",
    coding: bytes = b"",
    trace: Trace | None = None,
    again: int = 0,
) -> tuple[Any, Any]:
    """(tw_extra pointer, what must live until the call returns).  A large body
    or attachment is lent, so that it need not be copied.  coding: fields of the
    RpcMeta that say how the body travels."""
    keep: list[Any] = []
    x = ffi.new("tw_extra *")
    if metadata or coding:
        fields = _meta.encode_user_fields(metadata) if metadata else b""
        data = ffi.from_buffer(fields + coding)
        keep.append(data)
        x.meta = data
        x.meta_len = len(data)
    if request_id is not None:
        if not isinstance(request_id, str):
            raise _wrong("request_id", request_id, "a str")
        data = ffi.from_buffer(request_id.encode())
        keep.append(data)
        x.request_id = data
        x.request_id_len = len(data)
    if log_id is not None:
        if not isinstance(log_id, int) or isinstance(log_id, bool):
            raise _wrong("log_id", log_id, "an int")
        if not 0 <= log_id < 2**64:
            raise ValueError(f"log_id is {log_id}; allowed: 0 to 2**64 - 1")
        x.log_id = _signed(log_id)
        x.has_log_id = 1
    if trace is not None:
        if not isinstance(trace, Trace):
            raise _wrong("trace", trace, "a tidewire.Trace")
        x.trace_id = _signed(trace.trace_id)
        x.span_id = _signed(trace.span_id)
        x.parent_span_id = _signed(trace.parent_span_id)
    x.no_timeout_on_wire = not deadline_on_wire
    x.again = again
    x.ignore_eovercrowded = bool(ignore_eovercrowded)
    # Last, so that no exception of the above holds a buffer.
    if attachment is not None:
        if not isinstance(attachment, bytes | bytearray | memoryview):
            raise _wrong("attachment", attachment, "bytes, bytearray or memoryview")
        data = ffi.from_buffer(attachment)
        keep.append(data)
        x.attachment = data
        x.attachment_len = len(data)
        block = _lend.lend(attachment)
        if block is not None:
            keep.append(block)
            x.attachment_block = block
    block = _lend.lend(body)
    if block is not None:
        keep.append(block)
        x.body_block = block
    return x, keep


def let_go(keep: list[Any] | None) -> None:
    """What the core has taken need not live any more.

    At once, not with the frame that names it: an error's traceback may keep that,
    and the garbage collector of CPython before 3.11.8 crashes on a cycle with a
    memoryview in it, such as an attachment, whose buffer is in use (issue 77894).
    """
    if keep:
        for data in keep:
            ffi.release(data)
