"""What the channels that are made of channels have in common."""

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeVar

from tidewire.errors import OptionError
from tidewire.options import CallOptions

__all__ = ["BESIDE", "check_one", "checked", "iterable", "named", "passed_down"]

One = TypeVar("One")

_MINE: Final = ("timeout", "hooks")
"""Options that are those of the whole call."""
_NAMED: Final = 8
BESIDE: Final = (
    "attachment",
    "metadata",
    "request_id",
    "log_id",
    "ignore_eovercrowded",
    "coding",
    "trace",
)
"""What an asyncio method's `_run` gets in a tuple."""


def iterable(kind: type, channels: Any, face: type[One]) -> tuple[One, ...]:
    """The sub-channels, if they are such of one face."""
    what = f"{kind.__name__} channels"
    if isinstance(channels, str) or not isinstance(channels, Iterable):
        raise TypeError(
            f"{what} is a {type(channels).__name__}; allowed: several tidewire."
            f"{face.__name__}"
        )
    found = tuple(channels)
    for i, one in enumerate(found):
        check_one(f"{what}[{i}]", one, face)
    return found


def checked(kind: type, channels: Any, face: type[One]) -> tuple[One, ...]:
    """The same if there are any."""
    found = iterable(kind, channels, face)
    if not found:
        raise OptionError(
            f"{kind.__name__} channels is empty; allowed: one or more tidewire."
            f"{face.__name__}"
        )
    return found


def check_one(what: str, channel: object, face: type) -> None:
    """Raises TypeError for what is no channel of that face."""
    if not isinstance(channel, face):
        raise TypeError(
            f"{what} is a {type(channel).__name__}; allowed: tidewire.{face.__name__},"
            " a combo of such included"
        )


def named(kind: str, names: Sequence[str]) -> str:
    """An address for people."""
    shown = list(names[:_NAMED])
    if len(names) > _NAMED:
        shown.append(f"and {len(names) - _NAMED} more")
    return f"{kind}({', '.join(shown)})"


def passed_down(changes: CallOptions) -> CallOptions:
    """Of a view's changes those that are the sub-channels' matter."""
    inner = changes.copy()
    for name in _MINE:
        inner.pop(name, None)  # type: ignore[misc]
    return inner
