"""Large bytes go to the core without a copy: it is lent them.

Who lends keeps the object until the core has returned its token, which may be
long after the call: a deadline that expires ends the call and not the write.
"""

import itertools
import time
from typing import Any, Final

from tidewire._ffi import ffi, lib

__all__ = ["LEND_BYTES", "collect", "forget", "lend", "outstanding", "settle"]

LEND_BYTES: Final = 128 * 1024
"""From so many bytes on lending costs less than copying (docs/performance.md
has the measurement)."""

_BATCH: Final = 64

_lent: Final[dict[int, bytes]] = {}
_tokens: Final = itertools.count(1)


def lend(data: object) -> Any:
    """A block of the core's that refers to `data`, or None: copy it.

    Only of bytes themselves nobody can change a byte meanwhile.  The block is
    given back when the object is gone that this returns.
    """
    if type(data) is not bytes or len(data) < LEND_BYTES:
        return None
    token = next(_tokens)
    _lent[token] = data
    block = lib.tw_lend(data, len(data), token)
    if not block:
        del _lent[token]
        return None
    return ffi.gc(block, _give_back)


def collect(
    _released: Any = lib.tw_released, _new: Any = ffi.new, _lent: Any = _lent
) -> None:
    """Lets go of what the core has returned.  From any thread."""
    tokens = _new("uint64_t[]", _BATCH)
    while True:
        count = _released(tokens, _BATCH)
        for i in range(count):
            _lent.pop(tokens[i], None)
        if count < _BATCH:
            return


def _give_back(
    block: Any, _release: Any = lib.tw_release, _collect: Any = collect
) -> None:
    # Defaults: this may run when the interpreter has cleared the module.
    _release(block)
    _collect()


def outstanding() -> int:
    """How many objects the core may still read."""
    return len(_lent)


def settle(within: float) -> None:
    """After the core was closed: waits until no thread of it reads anything
    that Python is about to free."""
    end = time.monotonic() + within
    while True:
        collect()
        if not _lent or time.monotonic() >= end:
            return
        time.sleep(0.001)


def forget() -> None:
    """In a fork's child, where nobody reads what the parent lent."""
    _lent.clear()
