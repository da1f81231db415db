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
        self._responsive = True
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

    async def aclose(self) -> None:
        """Cancels what still runs and lets it end; from the loop itself."""
        if self._closed or self._port is None:
            return
        self._closed = True
        tasks = self._port.cancel_all(self._slot)
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        self._port.servers.pop(self._slot, None)
        self._port.release()
        if not self._own:
            self._port = None

    def end_handlers(self) -> bool:
        """aclose() from another thread.  Does not wait for ever: False when a
        handler blocks the loop."""
        if self._closed:
            return True
        ended = threading.Event()

        def begin() -> None:
            self._closing = self.loop.create_task(self.aclose())
            self._closing.add_done_callback(lambda _: ended.set())

        inside = asyncio._get_running_loop() is self.loop
        waiting = self.loop.is_running() and not inside
        try:
            self.loop.call_soon_threadsafe(begin)
        except RuntimeError:  # the loop is closed
            return True
        self._responsive = not waiting or ended.wait(_PATIENCE)
        return self._responsive

    def close(self) -> None:
        """After end_handlers(): ends the loop if it is our own."""
        if not self._own or self.loop.is_closed():
            return

        def finish() -> None:
            if self._closing is None or self._closing.done():
                self.loop.stop()
            else:
                self._closing.add_done_callback(lambda _: self.loop.stop())

        try:
            self.loop.call_soon_threadsafe(finish)
        except RuntimeError:  # the loop is closed
            return
        inside = asyncio._get_running_loop() is self.loop
        if self._responsive and not inside and self._thread is not None:
            self._thread.join(_PATIENCE)
