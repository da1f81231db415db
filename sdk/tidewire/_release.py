"""Giving shares of received blocks back to the core."""

from collections.abc import Callable
from typing import Any

from tidewire._ffi import lib

__all__ = ["of"]


def of(block: Any) -> Callable[[Any], None]:
    """A destructor that gives back one share of `block`; safe in any thread,
    also in a child of a fork, whose copy of the block is its own."""

    def release(
        _pointer: Any, _release: Callable[[Any], None] = lib.tw_release
    ) -> None:
        _release(block)

    return release
