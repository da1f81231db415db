"""What is open as long as a server runs: a context manager of the user's,
entered before the first connection and left after the last call."""

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tidewire.context import Shared

if TYPE_CHECKING:
    import asyncio

__all__ = ["Lifespan", "MakeLifespan"]

_log: Final = logging.getLogger("tidewire.server")

MakeLifespan: TypeAlias = Callable[
    [], AbstractContextManager[Any] | AbstractAsyncContextManager[Any]
]


class Lifespan:
    """One server's.  Without a function that makes one, nothing happens."""

    def __init__(self, make: MakeLifespan | None, shared: Shared) -> None:
        if make is not None and not callable(make):
            raise TypeError(
                f"lifespan is a {type(make).__name__}; allowed: a function that gives"
                " a context manager, plain or async, or None"
            )
        self._make = make
        self._shared = shared
        # The open one, while it is plain.
        self._plain: AbstractContextManager[Any] | None = None
        # An async one lives in a task: what it begins may end in the same.
        self._task: asyncio.Task[None] | None = None
        self._over: asyncio.Event | None = None
        self._open = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._made: Any = None

    def make(self) -> bool:
        """Calls the function, once; whether a loop is needed.  Raises TypeError
        for what is no context manager."""
        if self._make is None:
            return False
        if self._made is None:
            self._made = self._make()
        if hasattr(self._made, "__aenter__"):
            return True
        if hasattr(self._made, "__enter__"):
            return False
        raise TypeError(
            f"lifespan gave a {type(self._made).__name__}; allowed: a context manager,"
            " plain or async, such as functions under contextlib.contextmanager give"
        )

    @property
    def _entered(self) -> bool:
        return self._plain is not None or self._task is not None

    def enter(self, loop: "asyncio.AbstractEventLoop | None") -> None:
        """Unless it was entered.  loop: of another thread, for an async one."""
        if self._make is None or self._entered:
            return
        if not self.make():
            self._enter_plain()
            return
        import asyncio

        assert loop is not None
        self._loop = loop
        asyncio.run_coroutine_threadsafe(self._begin(), loop).result()

    async def aenter(self) -> None:
        """The same on the running loop."""
        if self._make is None or self._entered:
            return
        import asyncio

        self._loop = asyncio.get_running_loop()
        if self.make():
            await self._begin()
        else:
            self._enter_plain()

    def _enter_plain(self) -> None:
        try:
            self._shared.state = self._made.__enter__()
        except BaseException as error:
            _note(error, "entered")
            raise
        self._plain = self._made

    async def _begin(self) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        begun: asyncio.Future[None] = loop.create_future()
        self._over = asyncio.Event()
        task = self._task = loop.create_task(self._live(begun, self._over))
        task.set_name("tidewire-lifespan")
        try:
            await asyncio.wait({task, begun}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not begun.done():
            self._task = None
            try:
                await task
            except BaseException as error:
                _note(error, "entered")
                raise

    async def _live(self, begun: "asyncio.Future[None]", over: "asyncio.Event") -> None:
        async with self._made as state:
            self._shared.state = state
            self._open = True
            begun.set_result(None)
            await over.wait()

    def leave(self, wait: bool) -> None:
        """Unless it was left or never entered.  From another thread than that of
        its loop it waits, if it may; raises what leaving raises."""
        if not self._entered:
            return
        if self._loop is None:
            self._leave_plain()
            return
        import asyncio

        if self._loop.is_closed():
            # It has cancelled its tasks, and with them an async one.
            if self._plain is not None:
                self._leave_plain()
            self._task = None
            return
        if asyncio._get_running_loop() is self._loop:
            if self._over is not None:
                self._over.set()
            else:
                self._leave_plain()
            return
        left = asyncio.run_coroutine_threadsafe(self.aleave(), self._loop)
        if wait:
            left.result()
        else:
            _log.error("the loop is blocked: the server's lifespan is not left")

    async def aleave(self) -> None:
        """The same on the loop, and waits."""
        import asyncio

        if self._plain is not None:
            self._leave_plain()
        task, self._task = self._task, None
        if task is None:
            return
        if self._open and self._over is not None:
            self._over.set()
        else:  # whoever waited for its beginning was interrupted
            task.cancel()
        await asyncio.wait({task})
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _note(error, "left")
            raise error

    def _leave_plain(self) -> None:
        plain, self._plain = self._plain, None
        if plain is None:
            return
        try:
            plain.__exit__(None, None, None)
        except BaseException as error:
            _note(error, "left")
            raise


def _note(error: BaseException, what: str) -> None:
    error.add_note(f"(raised while the server's lifespan was {what})")
