"""Power of two choices: of a few nodes drawn by chance the one that promises the
quickest answer."""

import math
from collections.abc import Collection, Sequence
from random import Random as Generator
from typing import Final

from tidewire._locks import fork_safe
from tidewire.balance.balancer import Balancer, Usable, untried, weight_of, whole
from tidewire.node import Node

__all__ = ["P2C"]

_MAX_ERROR_US: Final = 30_000_000
"""The most that a failed call counts as: it bounds the way back."""
_NO_DEADLINE_US: Final = 1_000_000
"""The least that one without a deadline counts as."""
_SAMPLES: Final = 4
"""How many samples without a usable node are drawn before the whole list is
looked at."""
_LEAST_US: Final = 1.0
"""Latencies decay to this, so that calls in flight still count."""


class _Load:
    """What is known of a node."""

    __slots__ = ("inflight", "latency", "measured_us", "node", "weight")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.weight = weight_of(node)
        self.latency = 0.0
        """A moving average that rises at once and falls with time; 0: unknown."""
        self.measured_us = 0
        self.inflight = 0

    def expected(self, now_us: int, tau_us: float) -> float:
        """The latency as it counts now; 0: unknown."""
        if not self.latency:
            return 0.0
        age = max(now_us - self.measured_us, 0)
        return max(self.latency * math.exp(-age / tau_us), _LEAST_US)

    def add(self, latency: float, now_us: int, tau_us: float) -> None:
        if latency < self.latency:
            old = math.exp(-max(now_us - self.measured_us, 0) / tau_us)
            latency = self.latency * old + latency * (1 - old)
        self.latency = latency
        self.measured_us = now_us


class P2C(Balancer):
    """`choices` nodes are drawn; the call goes to the one with the lowest
    latency x (calls in flight + 1) / weight.  `tau_ms`: in so many milliseconds
    a latency is forgotten to a third.

    A node not measured yet counts as quick as the quickest beside it, not
    as infinitely quick: it gets its part of the calls, not all of them.
    """

    name = "p2c"

    def __init__(
        self,
        *,
        choices: int = 2,
        tau_ms: int = 10_000,
        rng: Generator | None = None,
    ) -> None:
        self._choices = whole("p2c: choices", choices, 2, 64, "nodes")
        self._tau_us = 1000.0 * whole("p2c: tau_ms", tau_ms, 1, 10**9, "ms")
        self._rng = rng or Generator()
        self._dice = self._rng.random
        # Over what calls change; choosing only reads.
        self._lock = fork_safe()
        self._loads: dict[Node, _Load] = {}
        self._listed: tuple[_Load, ...] = ()

    def update(self, nodes: Sequence[Node]) -> None:
        with self._lock:
            old = self._loads
            loads = {node: old.get(node) or _Load(node) for node in nodes}
            self._listed = tuple(loads.values())
            for load in old.values():
                # Its calls will end; until then its count must not begin anew.
                if load.inflight:
                    loads.setdefault(load.node, load)
            self._loads = loads

    def pick(
        self,
        *,
        key: int | None,
        excluded: Collection[Node],
        usable: Usable,
        now_us: int,
    ) -> Node | None:
        listed = self._listed
        some: list[_Load] = []
        for _ in range(_SAMPLES):
            some = [
                load
                for load in self._sample(listed)
                if not (excluded and load.node in excluded) and usable(load.node)
            ]
            if some:
                break
        else:
            loads = {load.node: load for load in listed}
            some = [loads[node] for node in untried(loads, excluded, usable)]
            if not some:
                return None
        load = self._best(some, now_us)
        with self._lock:
            # Updates may have taken it away since it was chosen, and brought the
            # node back anew.
            load = self._loads.setdefault(load.node, load)
            load.inflight += 1
        return load.node

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
        latency: float = max(ended_us - began_us, 1)
        with self._lock:
            load = self._loads.get(node)
            if load is None or not load.inflight:
                return
            load.inflight -= 1
            if failed:
                # Quick failures are no quick answers.
                timeout_us = timeout_us or _NO_DEADLINE_US
                latency = max(latency, timeout_us, 2 * load.latency)
                latency = min(latency, _MAX_ERROR_US)
            load.add(latency, ended_us, self._tau_us)

    def _sample(self, listed: tuple[_Load, ...]) -> Sequence[_Load]:
        n, choices = len(listed), self._choices
        if n <= 2 * choices:
            return self._rng.sample(listed, min(n, choices))
        drawn: list[int] = []
        while len(drawn) < choices:
            index = int(self._dice() * n)
            if index not in drawn:
                drawn.append(index)
        return [listed[index] for index in drawn]

    def _best(self, loads: Sequence[_Load], now_us: int) -> _Load:
        if len(loads) == 1:
            return loads[0]
        latencies = [load.expected(now_us, self._tau_us) for load in loads]
        quickest = min(filter(None, latencies), default=_LEAST_US)
        best, lowest = loads[0], math.inf
        for load, latency in zip(loads, latencies, strict=True):
            score = (latency or quickest) * (load.inflight + 1) / load.weight
            if score < lowest:
                best, lowest = load, score
        return best
