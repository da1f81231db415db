"""By chance: every node as likely as any other."""

from collections.abc import Collection, Sequence
from random import Random as Generator
from typing import Final, Protocol

from tidewire.balance.balancer import Balancer, Usable, untried
from tidewire.node import Node

__all__ = ["Random", "Urn"]

_DRAWS: Final = 16
"""How often chance is asked before the whole list is looked at."""


class Urn(Protocol):
    """What nodes are drawn from.  Never changes."""

    nodes: tuple[Node, ...]

    def at(self, dice: float) -> Node:
        """The node for a number from 0 up to, not including, 1."""
        ...


class _Plain:
    __slots__ = ("nodes",)

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = tuple(nodes)

    def at(self, dice: float) -> Node:
        return self.nodes[int(dice * len(self.nodes))]


class Random(Balancer):
    """Draws until a node can be used: all that can are equally likely."""

    name = "random"

    def __init__(self, *, rng: Generator | None = None) -> None:
        self._dice = (rng or Generator()).random
        self._urn = self._make_urn(())

    def update(self, nodes: Sequence[Node]) -> None:
        self._urn = self._make_urn(nodes)

    def pick(
        self,
        *,
        key: int | None,
        excluded: Collection[Node],
        usable: Usable,
        now_us: int,
    ) -> Node | None:
        urn = self._urn
        if not urn.nodes:
            return None
        for _ in range(_DRAWS):
            node = urn.at(self._dice())
            if not (excluded and node in excluded) and usable(node):
                return node
        rest = untried(urn.nodes, excluded, usable)
        return self._make_urn(rest).at(self._dice()) if rest else None

    def _make_urn(self, nodes: Sequence[Node]) -> Urn:
        return _Plain(nodes)
