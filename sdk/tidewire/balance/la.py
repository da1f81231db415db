"""Locality aware: the quicker a node answers, the more calls it gets.

A node's weight is 1 / its latency, so that each has about as many calls in
flight as every other and its share is proportional to its speed.  Calls that
take long count before they end.
"""

from collections import deque
from collections.abc import Collection, Sequence
from random import Random as Generator
from typing import Final

from tidewire._locks import fork_safe
from tidewire.balance.balancer import Balancer, Usable, untried
from tidewire.node import Node

__all__ = ["LocalityAware"]

_SAMPLES: Final = 32
"""How many of a node's last calls make its latency ..."""
_MEMORY_US: Final = 10_000_000
"""... of those that ended no longer ago; a node without any counts as average,
so that one that was slow is tried again."""
_FIRST_GUESS_US: Final = 1000.0
"""The latency while nothing was measured: with it, too, a node that answers
nothing loses its weight as its calls grow old."""
_TYPICAL: Final = 64
"""Calls over which the average of all nodes is taken."""

_PATIENCE: Final = 1.5
"""Calls in flight may be so many latencies old, on average, before they count as
the latency."""
_ERROR_RATIO: Final = 1.2
"""An error that leaves retries costs its time and some more."""
_NO_DEADLINE_US: Final = 1_000_000
"""What a failed call without a deadline counts as, at most."""

_DRAWS: Final = 16


class _Load:
    """What is known of a node."""

    __slots__ = ("begun", "index", "inflight", "node", "samples", "total")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.index = -1
        """In the tree; below 0: not in the list."""
        self.samples: deque[tuple[int, int]] = deque()
        """Latency and end of each call."""
        self.total = 0
        """The sum of their latencies."""
        self.inflight = 0
        self.begun = 0
        """The sum of the times at which the calls in flight began."""

    def add(self, latency: int, ended_us: int) -> None:
        if len(self.samples) == _SAMPLES:
            self.total -= self.samples.popleft()[0]
        self.samples.append((latency, ended_us))
        self.total += latency

    def latency(self, now_us: int, typical: float) -> float:
        samples = self.samples
        while samples and now_us - samples[0][1] > _MEMORY_US:
            self.total -= samples.popleft()[0]
        total, count = (self.total, len(samples)) if samples else (typical, 1)
        age = 0.0
        if self.inflight:
            # All the time spent for each call that came back: a node that
            # answers nothing loses its weight long before a timeout.
            waited = now_us * self.inflight - self.begun
            total += waited
            age = waited / self.inflight
        # The clock of another thread may be read a little earlier: above 0.
        return max(total / count, age / _PATIENCE, 1.0)

    def error(self, latency: int, retried: int, max_retry: int, timeout_us: int) -> int:
        """What a failed call counts as: more than the node's latency, and twice
        the last call, so that errors in a row soon weigh as much as a timeout.
        A node that fails quickly is not a quick one."""
        timeout_us = timeout_us or _NO_DEADLINE_US
        if max_retry <= 0:
            return max(latency, timeout_us)
        left = max(max_retry - retried, 0)
        cost = left * latency * _ERROR_RATIO + retried * timeout_us
        cost /= left + retried
        if not self.samples:
            return max(int(cost), timeout_us)
        worse = 2 * max(self.total / len(self.samples), self.samples[-1][0])
        return int(max(cost, min(worse, timeout_us)))


class _Tree:
    """Weights, of which one is changed or drawn in O(log n): a complete binary
    tree in which every node has its children's sum."""

    __slots__ = ("_leaves", "_sums")

    def __init__(self, weights: Sequence[float]) -> None:
        self._leaves = 1 << max(len(weights) - 1, 0).bit_length()
        sums = [0.0] * self._leaves + list(weights)
        sums += [0.0] * (2 * self._leaves - len(sums))
        for i in range(self._leaves - 1, 0, -1):
            sums[i] = sums[2 * i] + sums[2 * i + 1]
        self._sums = sums

    @property
    def total(self) -> float:
        return self._sums[1]

    def __getitem__(self, index: int) -> float:
        return self._sums[self._leaves + index]

    def __setitem__(self, index: int, weight: float) -> None:
        sums = self._sums
        i = self._leaves + index
        sums[i] = weight
        while i > 1:
            i >>= 1
            # A new sum, not a difference: errors of rounding do not pile up.
            sums[i] = sums[2 * i] + sums[2 * i + 1]

    def find(self, dice: float) -> int:
        """The leaf in whose part of the total `dice` falls, of 1."""
        sums = self._sums
        dice *= sums[1]
        i = 1
        while i < self._leaves:
            i *= 2
            # Never into the empty right end, however the sums were rounded.
            if dice >= sums[i] and sums[i + 1]:
                dice -= sums[i]
                i += 1
        return i - self._leaves


class LocalityAware(Balancer):
    """Shares in proportion to measured speed."""

    name = "la"

    def __init__(self, *, rng: Generator | None = None) -> None:
        self._rng = rng or Generator()
        # Over everything below; nothing is called under it.
        self._lock = fork_safe()
        self._typical = _FIRST_GUESS_US
        self._measured = False
        self._loads: dict[Node, _Load] = {}
        self._listed: tuple[_Load, ...] = ()
        self._tree = _Tree(())
        self._swept = 0

    def update(self, nodes: Sequence[Node]) -> None:
        with self._lock:
            old, tree = self._loads, self._tree
            kept = [tree[load.index] for load in old.values() if load.index >= 0]
            average = sum(kept) / len(kept) if kept else 1 / self._typical
            loads = {node: old.get(node) or _Load(node) for node in nodes}
            listed = tuple(loads.values())
            weights = [
                tree[load.index] if load.index >= 0 else average for load in listed
            ]
            for load in old.values():
                load.index = -1
                # Its calls will end; until then its count must not begin anew.
                if load.inflight:
                    loads.setdefault(load.node, load)
            for index, load in enumerate(listed):
                load.index = index
            self._loads, self._listed, self._tree = loads, listed, _Tree(weights)

    def pick(
        self,
        *,
        key: int | None,
        excluded: Collection[Node],
        usable: Usable,
        now_us: int,
    ) -> Node | None:
        for _ in range(_DRAWS):
            load = self._draw(now_us)
            if load is None:
                return None
            if excluded and load.node in excluded:
                continue
            if usable(load.node):
                return self._begin(load, now_us)
            self._lower(load)
        listed = {load.node: load for load in self._listed}
        rest = untried(listed, excluded, usable)
        if not rest:
            return None
        with self._lock:
            weights = [1 / listed[n].latency(now_us, self._typical) for n in rest]
        node = self._rng.choices(rest, weights)[0]
        return self._begin(listed[node], now_us)

    def ended(
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
        latency = max(ended_us - began_us, 1)
        with self._lock:
            load = self._loads.get(node)
            if load is None or not load.inflight:
                return
            load.inflight -= 1
            load.begun -= began_us
            if failed:
                latency = load.error(latency, retried, max_retry, timeout_us)
            elif self._measured:
                self._typical += (latency - self._typical) / _TYPICAL
            else:
                self._typical, self._measured = float(latency), True
            load.add(latency, ended_us)
            self._weigh(load, ended_us)

    def _draw(self, now_us: int) -> _Load | None:
        """By the weights; None: the list is empty."""
        with self._lock:
            if not self._listed:
                return None
            # The drawn one's weight, and one of the others' each time, are made
            # new: calls in flight and memories age.
            self._swept = (self._swept + 1) % len(self._listed)
            self._weigh(self._listed[self._swept], now_us)
            load = self._listed[self._tree.find(self._rng.random())]
            self._weigh(load, now_us)
            return load

    def _begin(self, load: _Load, now_us: int) -> Node:
        with self._lock:
            # Updates may have taken it away since it was chosen, and brought the
            # node back anew.
            load = self._loads.setdefault(load.node, load)
            load.inflight += 1
            load.begun += now_us
        return load.node

    def _lower(self, load: _Load) -> None:
        """To the average at most, so that a quick node that cannot be used is
        drawn less in vain and gets no flood when it is back."""
        with self._lock:
            if load.index >= 0:
                tree = self._tree
                average = tree.total / len(self._listed)
                tree[load.index] = min(tree[load.index], average)

    def _weigh(self, load: _Load, now_us: int) -> None:
        if load.index >= 0:
            self._tree[load.index] = 1 / load.latency(now_us, self._typical)
