"""Round robin and chance with weights: a node of weight 3 gets three times as
many calls as one of weight 1."""

import itertools
import math
from bisect import bisect
from collections.abc import Sequence
from typing import Final

from tidewire.balance.balancer import weight_of
from tidewire.balance.rr import Cycle, RoundRobin
from tidewire.balance.uniform import Random, Urn
from tidewire.node import Node

__all__ = ["WeightedRandom", "WeightedRoundRobin"]

_GOLDEN: Final = (math.sqrt(5) - 1) / 2


class _Line:
    """The nodes side by side on a line, each as long as its weight."""

    __slots__ = ("_ends", "_stride", "length", "nodes")

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = tuple(nodes)
        self._ends = list(itertools.accumulate(map(weight_of, self.nodes)))
        self.length = self._ends[-1] if self._ends else 0
        self._stride = _stride(self.length)

    def at(self, turn: int) -> Node:
        # The stride has no divisor in common with the length, so that each
        # place on the line comes once in `length` turns.
        return self.nodes[bisect(self._ends, turn * self._stride % self.length)]


class _Urn:
    """The same line, on which chance points."""

    __slots__ = ("_ends", "_length", "nodes")

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = tuple(nodes)
        self._ends = list(itertools.accumulate(map(weight_of, self.nodes)))
        self._length = self._ends[-1] if self._ends else 0

    def at(self, dice: float) -> Node:
        return self.nodes[bisect(self._ends, int(dice * self._length))]


def _stride(length: int) -> int:
    """About the golden section of the length: of all strides it spreads the
    visits to each part of the line most evenly."""
    middle = int(length * _GOLDEN)
    return next(
        stride
        for distance in itertools.count()
        for stride in (middle + distance, middle - distance)
        if math.gcd(stride, length) == 1
    )


class WeightedRoundRobin(RoundRobin):
    """Turns by weight: in as many turns in a row as the weights' sum, each node
    has exactly its weight of them, well mixed.  Nodes that cannot be used are
    passed over as RoundRobin does, so the others keep their proportions."""

    name = "wrr"

    def _make_cycle(self, nodes: Sequence[Node]) -> Cycle:
        return _Line(nodes)


class WeightedRandom(Random):
    """Chance by weight."""

    name = "wr"

    def _make_urn(self, nodes: Sequence[Node]) -> Urn:
        return _Urn(nodes)
