"""What the processes of one server know of each other's health: a page of
memory that they share."""

import mmap
from typing import Final

__all__ = ["DRAINING", "GONE", "READY", "STARTING", "Board"]

GONE: Final = 0
STARTING: Final = 1
READY: Final = 2
DRAINING: Final = 3

_LINE: Final = 256
_TEXT: Final = _LINE - 2
"""Bytes of a trouble's text that are kept."""


class Board:
    """One line for each place that a process may have, and one in front for the
    whole server: a state, and what is wrong.

    Made before processes are forked, which then see the same lines.  Each line
    has one writer at a time; who reads it meanwhile may see a part of a new text.
    """

    def __init__(self, places: int = 1) -> None:
        self.places: Final = places
        # Anonymous and shared: no file, no descriptor.
        self._page: Final = mmap.mmap(-1, (places + 1) * _LINE)

    def set(self, place: int, state: int) -> None:
        self._page[(place + 1) * _LINE] = state

    def clear(self, place: int) -> None:
        """The process is gone, and its trouble with it."""
        self.set(place, GONE)
        self.tell(place, "")

    def tell(self, place: int, trouble: str) -> None:
        """What is wrong at that place; "": nothing."""
        text = " ".join(trouble.split()).encode("utf-8", "replace")[:_TEXT]
        line = (place + 1) * _LINE
        self._page[line + 1] = 0
        self._page[line + 2 : line + 2 + len(text)] = text
        self._page[line + 1] = len(text)

    def drain(self) -> None:
        """The whole server stops."""
        self.set(-1, DRAINING)

    @property
    def stops(self) -> bool:
        """Whether the whole server does."""
        return self._page[0] == DRAINING

    def trouble(self) -> str:
        """Why the server should not be used, for people; "": it is well."""
        states = [self._page[i * _LINE] for i in range(self.places + 1)]
        if self.stops:
            return "draining"
        ready = [i for i, state in enumerate(states) if state == READY]
        if not ready:
            return "draining" if DRAINING in states else "starting"
        for i in ready:
            size = self._page[i * _LINE + 1]
            if size:
                text = self._page[i * _LINE + 2 : i * _LINE + 2 + size]
                return text.decode("utf-8", "replace")
        return ""
