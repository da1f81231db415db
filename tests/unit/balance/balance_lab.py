"""Nodes, picks, and a cluster in virtual time to try balancers on."""

import heapq
from collections import Counter
from collections.abc import Callable, Collection
from random import Random

from tidewire.balance import Balancer, make
from tidewire.node import Node

SPECS = ["rr", "random", "wrr", "wr", "la", "p2c", "c_murmurhash", "c_md5", "c_ketama"]

TIMEOUT_US = 500_000


def nodes_of(count: int, weights: Collection[int] = ()) -> list[Node]:
    tags = [str(weight) for weight in weights] or [""] * count
    return [
        Node(address=f"10.1.{i // 250}.{i % 250}:8000", tag=tags[i])
        for i in range(count)
    ]


def made(spec: str, nodes: Collection[Node], seed: int = 1) -> Balancer:
    balancer = make(spec, rng=Random(seed))
    balancer.update(list(nodes))
    return balancer


def always(node: Node) -> bool:
    return True


def pick(
    balancer: Balancer,
    *,
    key: int | None = 1,
    excluded: Collection[Node] = (),
    usable: Callable[[Node], bool] = always,
    now_us: int = 0,
) -> Node | None:
    return balancer.pick(key=key, excluded=excluded, usable=usable, now_us=now_us)


def picks(
    balancer: Balancer, count: int, usable: Callable[[Node], bool] = always
) -> list[Node]:
    """So many picks; the last ten calls are in flight."""
    rng = Random(3)
    found: list[Node] = []
    for i in range(count):
        node = pick(balancer, key=rng.getrandbits(32), usable=usable)
        assert node is not None
        found.append(node)
        if i >= 10:
            end(balancer, found[i - 10])
    for node in found[-10:]:
        end(balancer, node)
    return found


def end(
    balancer: Balancer,
    node: Node,
    *,
    began_us: int = 0,
    ended_us: int = 1000,
    failed: bool = False,
    retried: int = 0,
    max_retry: int = 3,
    timeout_us: int = TIMEOUT_US,
) -> None:
    balancer.ended(
        node,
        began_us=began_us,
        ended_us=ended_us,
        failed=failed,
        retried=retried,
        max_retry=max_retry,
        timeout_us=timeout_us,
    )


class Cluster:
    """Callers that call without a pause, and nodes with a speed of their own.

    A node serves calls at once, each in about `service[node]` microseconds, or
    one after the other when `queued`.  What is in `failing` answers with an error
    after 0.1 ms, what is in `hanging` not until the call's timeout.
    """

    def __init__(
        self,
        balancer: Balancer,
        service: dict[Node, int],
        *,
        callers: int = 20,
        queued: bool = False,
        timeout_us: int = TIMEOUT_US,
        seed: int = 1,
    ) -> None:
        self.balancer = balancer
        self.service = service
        self.failing: set[Node] = set()
        self.hanging: set[Node] = set()
        self.now_us = 1_000_000_000
        self._queued = queued
        self._timeout_us = timeout_us
        self._free_us = dict.fromkeys(service, 0)
        # Not the balancer's numbers: its dice would foretell the service.
        self._rng = Random(f"service {seed}")
        self._ends: list[tuple[int, int, Node, int, bool]] = []
        self._number = 0
        self._callers = callers
        balancer.update(list(service))

    def run(self, milliseconds: int) -> Counter[Node]:
        """Goes on for so long; how many calls each node got meanwhile."""
        counts: Counter[Node] = Counter()
        until_us = self.now_us + 1000 * milliseconds
        while len(self._ends) < self._callers:
            counts[self._call()] += 1
        while self._ends[0][0] <= until_us:
            self.now_us, _, node, began_us, failed = heapq.heappop(self._ends)
            end(
                self.balancer,
                node,
                began_us=began_us,
                ended_us=self.now_us,
                failed=failed,
                timeout_us=self._timeout_us,
            )
            counts[self._call()] += 1
        self.now_us = until_us
        return counts

    def _call(self) -> Node:
        node = pick(self.balancer, now_us=self.now_us)
        assert node is not None
        failed = node in self.failing or node in self.hanging
        if node in self.hanging:
            ends_us = self.now_us + (self._timeout_us or 5_000_000)
        elif failed:
            ends_us = self.now_us + 100
        else:
            work = self.service[node] * self._rng.uniform(0.5, 1.5)
            begins = max(self.now_us, self._free_us[node] if self._queued else 0)
            ends_us = begins + int(work)
            self._free_us[node] = ends_us
        self._number += 1
        entry = (ends_us, self._number, node, self.now_us, failed)
        heapq.heappush(self._ends, entry)
        return node


def shares(counts: Counter[Node]) -> dict[Node, float]:
    total = counts.total()
    return {node: count / total for node, count in counts.items()}
