"""The thread that carries the core's events to the logger `tidewire.core`,
one line per kind and second, and lets go of bytes whose writing has ended when
no other thread of Python does."""

import logging
import threading
from typing import Any, Final

from tidewire import _lend
from tidewire._ffi import ffi, lib

__all__ = ["start"]

_log: Final = logging.getLogger("tidewire.core")
_BATCH: Final = 64
_SECOND: Final = 1_000_000_000

_KINDS: Final = {
    lib.TW_LOG_ACCEPT_PAUSED: (logging.ERROR, "accepting paused"),
    lib.TW_LOG_ACCEPT_FAILED: (logging.ERROR, "accepting failed"),
    lib.TW_LOG_CONNECT_FAILED: (logging.WARNING, "connecting failed"),
    lib.TW_LOG_CONNECTION_FAILED: (logging.WARNING, "connection failed"),
    lib.TW_LOG_BAD_BYTES: (logging.WARNING, "unacceptable bytes, closed"),
    lib.TW_LOG_TOO_BIG: (logging.WARNING, "message too big, closed"),
    lib.TW_LOG_OVERCROWDED: (logging.WARNING, "too many unwritten bytes"),
    lib.TW_LOG_PEER_UP: (logging.INFO, "server is up again"),
}


class _Limiter:
    """One line per kind and second; the next line says how many it stands
    for."""

    def __init__(self) -> None:
        self._last: dict[int, int] = {}
        self._held: dict[int, int] = {}

    def admit(self, kind: int, when_ns: int, dropped: int) -> int | None:
        """How many were held back or dropped by the core before this one;
        None: hold it back."""
        held = self._held.pop(kind, 0) + dropped
        last = self._last.get(kind)
        if last is not None and when_ns - last < _SECOND:
            self._held[kind] = held + 1
            return None
        self._last[kind] = when_ns
        return held


def _text(field: Any) -> str:
    return bytes(ffi.string(field)).decode("utf-8", "replace")


def _carry(entry: Any, limiter: _Limiter) -> None:
    held = limiter.admit(entry.kind, entry.when_ns, entry.dropped)
    if held is None:
        return
    level, what = _KINDS.get(entry.kind, (logging.WARNING, f"event {entry.kind}"))
    more = f" ({held} more like it)" if held else ""
    peer = _text(entry.peer)
    _log.log(
        level,
        "%s%s: %s [%s]%s",
        what,
        f", peer {peer}" if peer else "",
        _text(entry.detail),
        _text(lib.tw_error_name(entry.code)) or entry.code,
        more,
    )


def _run() -> None:
    entries = ffi.new("tw_log_entry[]", _BATCH)
    limiter = _Limiter()
    while True:
        count = lib.tw_log_take(entries, _BATCH, -1)
        if count == -lib.TW_STOPPED:
            return
        for i in range(max(count, 0)):
            _carry(entries[i], limiter)
        if _lend.outstanding():
            _lend.collect()


def start() -> None:
    """Starts the thread; it ends when the core is closed."""
    threading.Thread(target=_run, name="tidewire-log", daemon=True).start()
