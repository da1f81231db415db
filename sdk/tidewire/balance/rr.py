"""One after the other: every node in its turn."""

import itertools
from collections.abc import Collection, Sequence
from random import Random as Generator
from typing import Final, Protocol

from tidewire.balance.balancer import Balancer, Usable, untried
from tidewire.node import Node

__all__ = ["Cycle", "RoundRobin"]

_TURNS: Final = 16
"""How many turns in a row are looked at before the whole list is."""


class Cycle(Protocol):
    """An order of nodes that comes again and again.  Never changes."""

    nodes: tuple[Node, ...]
    length: int
    """Turns until it begins anew."""

    def at(self, turn: int) -> Node:
        """Whose turn it is."""
        ...


class _Plain:
    __slots__ = ("length", "nodes")

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = tuple(nodes)
        self.length = len(self.nodes)

    def at(self, turn: int) -> Node:
        return self.nodes[turn % self.length]


class RoundRobin(Balancer):
    """a, b, c, a, b, c, over all threads, from a random start.

    Turns are numbered, and each number is used once.  The turn of a node that
    cannot be used is passed over by taking the next number, not the next node:
    that one's own turn is gone with it, so nobody gets two for one, and the
    others' shares stay equal.
    """

    name = "rr"

    def __init__(self, *, rng: Generator | None = None) -> None:
        rng = rng or Generator()
        # next() of a count is atomic, so that no lock is needed.
        self._turns = itertools.count(rng.getrandbits(32))
        # Of the picks for which too many turns in a row were no use: with
        # numbers of their own these are shared out as evenly.
        self._rest = itertools.count(rng.getrandbits(32))
        self._cycle = self._make_cycle(())

    def update(self, nodes: Sequence[Node]) -> None:
        self._cycle = self._make_cycle(nodes)

    def pick(
        self,
        *,
        key: int | None,
        excluded: Collection[Node],
        usable: Usable,
        now_us: int,
    ) -> Node | None:
        cycle = self._cycle
        for _ in range(min(cycle.length, _TURNS)):
            node = cycle.at(next(self._turns))
            if not (excluded and node in excluded) and usable(node):
                return node
        rest = untried(cycle.nodes, excluded, usable)
        return self._make_cycle(rest).at(next(self._rest)) if rest else None

    def _make_cycle(self, nodes: Sequence[Node]) -> Cycle:
        return _Plain(nodes)
