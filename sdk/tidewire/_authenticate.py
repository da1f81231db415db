"""The thread that asks a server's authenticator about new connections.

It shares nothing with workers and loops: no handler keeps a connection
waiting, and an authenticator that hangs stops nobody who is in already.
"""

import errno
import logging
import threading
from typing import Any, Final

from tidewire import _core
from tidewire.auth import Authenticator
from tidewire.errors import Unauthenticated

__all__ = ["AuthThread"]

_log: Final = logging.getLogger("tidewire.server")
_lib: Final = _core.lib
_ffi: Final = _core.ffi

_EVENTS: Final = 16
"""Taken from the inbox at a time."""
_IDENTITY_MAX: Final = 1024


class AuthThread(threading.Thread):
    """Gives the verdicts for the connections of one server.

    Give `inbox` to tw_server_auth, then start().  close() ends the thread,
    after the verify() that runs.
    """

    def __init__(self, authenticator: Authenticator) -> None:
        super().__init__(name="tidewire-auth", daemon=True)
        self._authenticator = authenticator
        made = _ffi.new("tw_id *")
        _core.check(_lib.tw_inbox_open(made), "no inbox for authentication")
        self.inbox: Final[int] = made[0]

    def close(self, timeout: float) -> None:
        """Waits for the thread, at most `timeout` seconds."""
        _lib.tw_inbox_close(self.inbox)
        if self.is_alive() and self is not threading.current_thread():
            self.join(timeout)

    def run(self) -> None:
        events = _ffi.new("tw_event[]", _EVENTS)
        more = _ffi.new("int *")
        while True:
            code = _lib.tw_inbox_wait(self.inbox, -1, 0)
            if code == -errno.EINTR:
                continue
            if code < 0:
                return
            count = _lib.tw_drain(self.inbox, 0, events, _EVENTS, more)
            asked = [
                (
                    events[i].socket,
                    bytes(_ffi.buffer(events[i].body, events[i].body_len)),
                )
                for i in range(count)
            ]
            # The blocks go back now: verify() may take long.
            _lib.tw_drain(self.inbox, 0, events, 0, more)
            for socket, credential in asked:
                self._judge(socket, credential)

    def _judge(self, socket: int, credential: bytes) -> None:
        peer = _core.peer_of(socket)
        if peer is None:
            return  # it has gone, or its time was over
        try:
            accept, text = self._verdict(credential, peer)
        # SystemExit and the like, too: they must not end the thread.
        except BaseException:
            _log.exception("the authenticator failed; %s is refused", peer)
            accept, text = False, b""
        _lib.tw_auth_verdict(socket, accept, text, len(text))

    def _verdict(self, credential: bytes, peer: str) -> tuple[bool, bytes]:
        try:
            identity: Any = self._authenticator.verify(credential, peer)
        except Unauthenticated as error:
            return False, error.message.encode("utf-8", "replace")
        if identity is None:
            return False, b""
        if not isinstance(identity, str):
            raise TypeError(
                f"verify() gave a {type(identity).__name__}; allowed: str or None"
            )
        name = identity.encode()
        if not 1 <= len(name) <= _IDENTITY_MAX:
            raise ValueError(
                f"verify() gave an identity of {len(name)} bytes;"
                f" allowed: 1 to {_IDENTITY_MAX}"
            )
        return True, name
