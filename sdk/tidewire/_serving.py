"""Where a server's `async def` handlers run: the caller's loop, or one of the
server's own in a thread."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Final

from tidewire._dispatch import Method
from tidewire._loop import LoopPort, port_of

__all__ = ["LoopRunner"]


class LoopRunner:
    """A loop for one server's handlers."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """loop: the running loop of the caller; None: one of our own."""
        self._own = loop is None
        self._slot = 0
        self._closed = False
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
        tasks = self._port.running
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        self._port.servers.pop(self._slot, None)
        self._port.release()
        if not self._own:
            self._port = None

    def close(self) -> None:
        """The same from another thread; ends the loop if it is our own."""
        if not self._own or self._closed:
            return
        thread = self._thread
        if thread is None or not thread.is_alive():
            return
        done = asyncio.run_coroutine_threadsafe(self.aclose(), self.loop)
        if thread is not threading.current_thread():
            try:
                done.result(2.0)
            except TimeoutError:
                # A handler blocks the loop; its thread is a daemon.
                self._closed = True
                return
        self.loop.call_soon_threadsafe(self.loop.stop)
        if thread is not threading.current_thread():
            thread.join(2.0)
