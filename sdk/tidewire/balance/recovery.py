"""A cluster that comes back is not knocked down again: as long as few servers are
there, calls are refused in proportion."""

from collections.abc import Collection, Sequence
from random import Random as Generator

from tidewire.balance.balancer import Balancer, Usable, whole
from tidewire.codes import Errno
from tidewire.errors import Phase, from_number
from tidewire.node import Node

__all__ = ["Recovering"]

_LOOK_US = 10_000
"""How long a count of the usable servers is good for."""


class Recovering(Balancer):
    """Another balancer, and a gate before it: shut when no server is usable, and
    open again when their number has not changed for a while.

    Through the gate comes a call with the probability of usable servers to
    `min_working_instances`; the others end with EREJECT, which is not tried again.
    """

    name = "recovering"

    def __init__(
        self,
        inner: Balancer,
        *,
        min_working_instances: int,
        hold_seconds: int,
        rng: Generator | None = None,
    ) -> None:
        self._inner = inner
        self._enough = whole(
            f"{inner.name}: min_working_instances",
            min_working_instances,
            *(1, 2**31 - 1, "servers"),
        )
        seconds = whole(
            f"{inner.name}: hold_seconds", hold_seconds, 1, 10**6, "seconds"
        )
        self._hold_us = seconds * 1_000_000
        self._rng = rng or Generator()
        self._nodes: tuple[Node, ...] = ()
        self._shut = False
        self._usable = 0
        self._looked_us = self._changed_us = 0

    def update(self, nodes: Sequence[Node]) -> None:
        self._nodes = tuple(nodes)
        self._inner.update(nodes)

    def pick(
        self,
        *,
        key: int | None,
        excluded: Collection[Node],
        usable: Usable,
        now_us: int,
    ) -> Node | None:
        if self._shut:
            self._look(usable, now_us)
            # Where none is, the caller is told that.
            if 0 < self._usable <= self._rng.randrange(self._enough):
                raise from_number(
                    int(Errno.EREJECT),
                    f"the cluster recovers: {self._usable} of the {self._enough}"
                    " servers that it needs can be reached",
                    phase=Phase.CONNECT,
                )
        node = self._inner.pick(
            key=key, excluded=excluded, usable=usable, now_us=now_us
        )
        if node is None and self._nodes and not self._shut:
            self._shut = True
            self._usable, self._looked_us, self._changed_us = 0, now_us, now_us
        return node

    def _look(self, usable: Usable, now_us: int) -> None:
        """Two threads may look at a time, and see the same."""
        if now_us - self._looked_us >= _LOOK_US:
            self._looked_us = now_us
            count = sum(map(usable, self._nodes))
            if count != self._usable:
                self._usable, self._changed_us = count, now_us
        if self._usable and now_us - self._changed_us >= self._hold_us:
            self._shut = False

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
        self._inner.ended(
            node,
            began_us=began_us,
            ended_us=ended_us,
            failed=failed,
            retried=retried,
            max_retry=max_retry,
            timeout_us=timeout_us,
        )
