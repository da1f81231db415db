"""Counters of what Python decides, in the core's table with all others."""

from typing import Final

from tidewire import _core

__all__ = ["Counter", "Gauge"]


class Counter:
    """One series.  Safe for any number of threads."""

    kind: Final = 0

    def __init__(self, name: str, help: str, **labels: str) -> None:
        """name: without "_total".  Opens the core."""
        _core.open()
        # Their values come from outside; one of at most 80 bytes leaves room.
        parts = [part for pair in labels.items() for part in pair]
        text = b"".join(
            part.encode("utf-8", "replace").replace(b"\0", b"")[:80] + b"\0"
            for part in parts
        )
        self._cell = _core.lib.tw_counter_row(
            name.encode(), help.encode(), self.kind, text, len(text)
        )

    def add(self, n: int = 1) -> None:
        _core.lib.tw_counter_add(self._cell, n)


class Gauge(Counter):
    """The same for what may fall, too."""

    kind = 1  # type: ignore[misc]
