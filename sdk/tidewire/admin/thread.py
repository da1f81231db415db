"""The thread behind the admin listener.

It has an inbox of its own and shares nothing with the workers, so that
/health and /metrics answer while every worker sleeps and the asyncio loop is
blocked.
"""

import errno
import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from tidewire.admin.http import Handler, HttpConnection, Reply

if TYPE_CHECKING:
    from tidewire._ffi import _FFI, _Lib

__all__ = ["AdminThread"]

_log: Final = logging.getLogger("tidewire.admin")

_EVENTS: Final = 64
"""Taken from the inbox at a time."""


class AdminThread(threading.Thread):
    """Answers the HTTP connections whose bytes come to `inbox`.

    Give `inbox` to tw_server_inboxes, then start().  close() ends the thread;
    connections that are still open then are the core's to close.  `lib` and
    `ffi` are for tests; the default is the core, which must be open.
    """

    def __init__(
        self,
        handle: Handler,
        *,
        lib: "_Lib | None" = None,
        ffi: "_FFI | None" = None,
    ) -> None:
        super().__init__(name="tidewire-admin", daemon=True)
        if lib is None or ffi is None:
            from tidewire import _core

            lib, ffi = _core.lib, _core.ffi
        self._lib = lib
        self._ffi = ffi
        self._handler = handle
        self._connections: dict[int, HttpConnection] = {}
        # Connections with requests that are here and not yet answered.
        self._unfinished: deque[int] = deque()
        inbox = ffi.new("tw_id *")
        code = lib.tw_inbox_open(inbox)
        if code < 0:
            raise OSError(-code, "the admin inbox cannot be opened")
        self.inbox: Final[int] = inbox[0]
        """Id of the inbox."""

    def close(self, timeout: float = 5.0) -> None:
        """Ends the thread and waits for it, at most `timeout` seconds.  A
        second call changes nothing."""
        self._lib.tw_inbox_close(self.inbox)
        if self.is_alive() and self is not threading.current_thread():
            self.join(timeout)

    def run(self) -> None:
        """The loop; raises nothing."""
        try:
            self._loop()
        except Exception:
            _log.exception("the admin thread ends: its pages answer no more")

    def _loop(self) -> None:
        lib = self._lib
        events = self._ffi.new("tw_event[]", _EVENTS)
        more = self._ffi.new("int *")
        while True:
            # With work left it only looks whether there is something new.
            code = lib.tw_inbox_wait(self.inbox, 0 if self._unfinished else -1, 0)
            if code == 0:
                count = lib.tw_drain(self.inbox, 0, events, _EVENTS, more)
                for i in range(count):
                    self._take(events[i])
                code = min(count, 0)
            if self._unfinished:
                self._feed(self._unfinished.popleft(), b"")
            if code < 0 and code not in (-errno.EINTR, -errno.ETIMEDOUT):
                if code != -lib.TW_STOPPED:
                    _log.error("the admin thread ends: its inbox gave %d", code)
                return

    def _take(self, event: Any) -> None:
        socket: int = event.socket
        if event.kind == self._lib.TW_CLOSED:
            self._connections.pop(socket, None)
        elif event.kind == self._lib.TW_CHUNK:
            # A copy: the chunk ends with tw_raw_next.
            data = self._ffi.buffer(event.body, event.body_len)[:]
            self._feed(socket, data)

    def _feed(self, socket: int, data: bytes) -> None:
        """Feeds one connection.  What goes wrong ends that connection only."""
        connection = self._connections.get(socket)
        if connection is None:
            if not data:  # it ended while requests of it were unanswered
                return
            connection = self._connections[socket] = HttpConnection(self._handler)
        try:
            replies = connection.feed(data)
        except Exception:
            _log.exception("an admin connection failed")
            self._lib.tw_socket_fail(socket, self._lib.TW_EINTERNAL)
            return
        if not all(self._write(socket, reply) for reply in replies):
            return
        if connection.more:
            # The others first; reading this one goes on when it is finished.
            self._unfinished.append(socket)
        elif not connection.closed:
            self._lib.tw_raw_next(socket)

    def _write(self, socket: int, reply: Reply) -> bool:
        code = self._lib.tw_raw_write(socket, reply.data, len(reply.data), reply.close)
        if code >= 0:
            return True
        # Gone, or it sends requests and reads no answers.  TW_CLOSED follows.
        self._lib.tw_socket_fail(socket, -code)
        return False
