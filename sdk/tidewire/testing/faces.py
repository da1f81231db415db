"""One thing to enter with `with` or with `async with`."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Final, Generic, TypeVar

__all__ = ["Faces"]

Plain = TypeVar("Plain")
Async = TypeVar("Async")


class Faces(Generic[Plain, Async]):
    """What serve() and fake() give: `with` gives the blocking face of it, `async
    with` the asyncio face.  One at a time."""

    def __init__(
        self,
        plain: Callable[[], AbstractContextManager[Plain, bool | None]],
        asynchronous: Callable[[], AbstractAsyncContextManager[Async, bool | None]],
    ) -> None:
        self._plain: Final = plain
        self._async: Final = asynchronous

    def __enter__(self) -> Plain:
        self._entered = self._plain()
        return self._entered.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._entered.__exit__(kind, error, trace)

    async def __aenter__(self) -> Async:
        self._aentered = self._async()
        return await self._aentered.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._aentered.__aexit__(kind, error, trace)
