"""A TCP cable to an address that can be cut, or go mute, and be mended."""

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable
from typing import Literal

State = Literal["whole", "cut", "mute"]


class Cable:
    """whole: what comes in goes on, both ways.  cut: connections are closed, new
    ones at once.  mute: they stay open, new ones are accepted, nothing goes on."""

    def __init__(self, to: str) -> None:
        host, port = to.rsplit(":", 1)
        self._to = host, int(port)
        self._state: State = "whole"
        self.accepted = 0
        """Connections so far."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._listener.getsockname())
        self._wake, self._waker = socket.socketpair()
        self._over = False
        self._ends: dict[socket.socket, socket.socket | None] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._main, name="cable")

    def __enter__(self) -> "Cable":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._waker.send(b"!")
        self._thread.join(10)
        for sock in (self._listener, self._wake, self._waker):
            sock.close()

    def be(self, state: State) -> None:
        """Returns when it is so; what was open is closed unless it is mute now."""
        self._state = state
        self._done.clear()
        self._waker.send(b"!")
        assert self._done.wait(10)

    def _main(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ, self._accept)
            selector.register(self._wake, selectors.EVENT_READ, self._change)
            while not self._over:
                for key, _ in selector.select():
                    what: Callable[[selectors.BaseSelector, socket.socket], None]
                    what = key.data
                    what(selector, key.fileobj)  # type: ignore[arg-type]
            self._close_all(selector)

    def _change(self, selector: selectors.BaseSelector, wake: socket.socket) -> None:
        wake.recv(100)
        if self._state == "mute":
            for sock in self._ends:
                with contextlib.suppress(KeyError):
                    selector.unregister(sock)
        else:
            self._close_all(selector)
        self._done.set()

    def _accept(self, selector: selectors.BaseSelector, sock: socket.socket) -> None:
        near, _ = sock.accept()
        self.accepted += 1
        if self._state == "mute":
            self._ends[near] = None
            return
        try:
            if self._state == "cut":
                raise ConnectionError
            far = socket.create_connection(self._to, timeout=5)
        except OSError:
            near.close()
            return
        for one, other in ((near, far), (far, near)):
            self._ends[one] = other
            selector.register(one, selectors.EVENT_READ, self._pass)

    def _pass(self, selector: selectors.BaseSelector, sock: socket.socket) -> None:
        other = self._ends.get(sock)
        if other is None:
            return  # closed in this round
        try:
            data = sock.recv(1 << 16)
            if data:
                other.sendall(data)
                return
        except OSError:
            pass
        for one in (sock, other):
            selector.unregister(one)
            del self._ends[one]
            one.close()

    def _close_all(self, selector: selectors.BaseSelector) -> None:
        for sock in list(self._ends):
            with contextlib.suppress(KeyError):
                selector.unregister(sock)
            sock.close()
        self._ends.clear()
