"""Locks that a fork leaves free in the child, whoever holds them in the parent."""

import os
import threading
import weakref
from typing import Any, Final

__all__ = ["fork_safe"]

_made: Final[weakref.WeakSet[Any]] = weakref.WeakSet()


def fork_safe() -> threading.Lock:
    """A lock for state that may be half changed in a fork's child without harm."""
    lock = threading.Lock()
    _made.add(lock)
    return lock


def _after_fork() -> None:
    for lock in list(_made):
        lock._at_fork_reinit()


os.register_at_fork(after_in_child=_after_fork)
