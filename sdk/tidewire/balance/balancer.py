"""What all balancers have in common: which server gets the next call."""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import ClassVar, Final, TypeAlias

from tidewire.errors import OptionError
from tidewire.node import Node

__all__ = ["Balancer", "Usable", "untried", "weight_of", "whole"]

Usable: TypeAlias = Callable[[Node], bool]
"""Whether a node may get a call now."""

_MAX_WEIGHT: Final = 2**32 - 1


class Balancer(ABC):
    """Chooses a node for each attempt of a call.  It decides and never waits.

    One object belongs to one channel.  `pick` and `ended` are called from any
    thread; `update` from one at a time, while others pick.
    """

    name: ClassVar[str]
    """As in specifications and error messages."""
    needs_key: ClassVar[bool] = False
    """Whether `pick` needs a key."""

    @abstractmethod
    def update(self, nodes: Sequence[Node]) -> None:
        """The whole new list, without duplicates; it may be empty."""

    @abstractmethod
    def pick(
        self,
        *,
        key: int | None,
        excluded: Collection[Node],
        usable: Usable,
        now_us: int,
    ) -> Node | None:
        """The node for an attempt that begins at `now_us`; None: none is usable.

        Nodes in `excluded` have been tried by this call: they are taken only
        when no other is usable.  `key` is 0 to 2**32 - 1 where `needs_key`, else
        it is not looked at; raises OptionError for another, TypeError for what
        is no number.  `usable` is called without a lock.
        """

    def ended(  # noqa: B027 - most need no feedback
        self,
        node: Node,
        *,
        began_us: int,
        ended_us: int,
        failed: bool,
        retried: int,
        max_retry: int,
        timeout_us: int,
    ) -> None:
        """An attempt has ended: once for each node that `pick` gave, which was
        called with `began_us` as its time.

        Times are microseconds of one monotonic clock.  `retried`: how many
        attempts the call had before this one.  `timeout_us`: what the whole call
        may take; 0: no deadline.
        """


def untried(
    nodes: Iterable[Node], excluded: Collection[Node], usable: Usable
) -> list[Node]:
    """The usable nodes that were not tried; if there is none, those that were."""
    found = [node for node in nodes if usable(node)]
    return [node for node in found if node not in excluded] or found


def weight_of(node: Node) -> int:
    """A node without a weight counts as one of the least; more than 32 bits, as
    brpc has for it, count as the most."""
    return min(node.weight or 1, _MAX_WEIGHT)


def whole(what: str, value: object, least: int, most: int, unit: str) -> int:
    """`value` if it is a whole number in the range, else an error in words."""
    text = (
        f"{what} is {value!r} ({type(value).__name__}); allowed: a whole number"
        f" from {least} to {most} ({unit})"
    )
    if isinstance(value, bool):
        raise TypeError(text)
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(text) from None
    if not least <= number <= most:
        raise OptionError(text)
    return number
