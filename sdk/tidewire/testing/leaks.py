"""Which channels and servers a block of code leaves open."""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tidewire.aio import AsyncChannel
from tidewire.channel import Channel
from tidewire.server import Server

__all__ = ["unclosed"]

_PACKAGE: Final = str(Path(__file__).resolve().parents[1])


@contextmanager
def unclosed() -> Iterator[None]:
    """Raises AssertionError at the end of the block if a Channel, AsyncChannel or
    Server that was made in it was not closed or stopped, and says where each was
    made.  An error of the block goes first.

    What is made meanwhile is kept until the end.  One block at a time, whatever the
    thread.
    """
    made: list[tuple[Channel | AsyncChannel | Server, str]] = []
    kinds: tuple[Any, ...] = (Channel, AsyncChannel, Server)
    before = [kind.__init__ for kind in kinds]
    for kind in kinds:
        kind.__init__ = _noting(kind.__init__, made)
    try:
        yield
    finally:
        for kind, init in zip(kinds, before, strict=True):
            kind.__init__ = init
    left = [f"{handle!r}, made at {where}" for handle, where in made if _open(handle)]
    made.clear()
    if left:
        raise AssertionError("left open:\n  " + "\n  ".join(left))


def _noting(init: Callable[..., None], made: list[Any]) -> Callable[..., None]:
    @functools.wraps(init)
    def noted(self: Any, *args: Any, **how: Any) -> None:
        init(self, *args, **how)
        # A cluster's channels to its servers are closed with it.
        maker = str(sys._getframe(1).f_globals.get("__name__", ""))
        if not maker.startswith("tidewire._cluster"):
            made.append((self, _caller()))

    return noted


def _open(handle: Channel | AsyncChannel | Server) -> bool:
    if isinstance(handle, Server):
        return handle._state in ("started", "stopping")
    # A channel made of channels that are not its own need not be closed.
    return not handle._closed and getattr(handle, "_owns", True)


def _caller() -> str:
    """The nearest line outside of the package."""
    frame = sys._getframe()
    while frame.f_back and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
