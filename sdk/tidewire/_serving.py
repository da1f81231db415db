"""Where a server's `async def` handlers run: the caller's loop, or one of the
server's own in a thread."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Final

from tidewire._dispatch import Method
from tidewire._loop import LoopPort, port_of

__all__ = ["LoopRunner"]

_PATIENCE: Final = 2.0
"""Seconds to wait for a loop that should end."""


class LoopRunner:
    """A loop for one server's handlers."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """loop: the running loop of the caller; None: one of our own."""
        self._own = loop is None
        self._slot = 0
        self._closed = False
        self._closing: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        if loop is None:
            loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._run, name="tidewire-asyncio", daemon=True
            )
        self.loop: Final = loop
        self._port: LoopPort | None = None

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            if self._port is not None:
                self._port.close()
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    def _attach(self, server: int, methods: Sequence[Method]) -> int:
        port = self._port = port_of(self.loop)
        # Events name a server by its slot, the low half of its id.
        self._slot = server & 0xFFFFFFFF
        port.servers[self._slot] = methods
        port.acquire()
        return port.inbox

    def serve(self, server: int, methods: Sequence[Method]) -> int:
        """Takes the server's methods; the inbox for its requests."""
        if self._thread is None:
            return self._attach(server, methods)
        self._thread.start()

        async def attach() -> int:
            return self._attach(server, methods)

        return asyncio.run_coroutine_threadsafe(attach(), self.loop).result()

    async def aclose(self, own: int = 0) -> None:
        """Cancels what still runs, but for the request `own`, and lets it end;
        from the loop itself."""
        if self._closed or self._port is None:
            return
        self._closed = True
        tasks = self._port.cancel_all(self._slot, own)
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        self._port.servers.pop(self._slot, None)
        self._port.release()
        if not self._own:
            self._port = None

    async def _end(self, own: int) -> None:
        await self.aclose(own)
        # The handler that stops its server returns from that now.
        if self._port is not None and (left := self._port.handlers(self._slot)):
            await asyncio.wait(left, timeout=_PATIENCE)

    def close(self, own: int = 0) -> None:
        """The same from another thread; ends the loop if it is our own.  Does
        not wait for ever: a handler may block the loop.  Nor for the handler of
        the request `own`, which waits for us."""
        if self._closed and not self._own:
            return
        ended = threading.Event()

        def begin() -> None:
            self._closing = self.loop.create_task(self._end(own))
            self._closing.add_done_callback(end)

        def end(_: object) -> None:
            if self._own:
                self.loop.stop()
            ended.set()

        inside = asyncio._get_running_loop() is self.loop
        waiting = self.loop.is_running() and not inside and not own
        try:
            self.loop.call_soon_threadsafe(begin)
        except RuntimeError:  # the loop is closed
            return
        if waiting and ended.wait(_PATIENCE) and self._thread is not None:
            self._thread.join(_PATIENCE)
