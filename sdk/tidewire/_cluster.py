"""The servers behind a channel: which of them an attempt goes to, and what its
end says of them.

Decides and never waits.
"""

import random
import threading
import time
import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, Final

from tidewire import _core
from tidewire._attempts import Attempts, Budget
from tidewire._breaker import Breaker
from tidewire.balance import Balancer, make
from tidewire.codes import Code, Errno
from tidewire.errors import ClosedError, Phase, RpcError, from_number
from tidewire.naming import Watch, close_watch, watch_of
from tidewire.node import Node
from tidewire.options import ChannelOptions
from tidewire.service import MethodInfo

__all__ = ["Cluster", "Member", "open_cluster"]

_DOWN_FIRST_US: Final = 100_000
_DOWN_MOST_US: Final = 3_000_000
"""How long a server that cannot be reached is passed by: doubles from the first to
the other, and chance shortens it to as little as its half."""
_UNREACHABLE: Final = {
    Errno.ECONNREFUSED,
    Errno.EHOSTDOWN,
    Errno.EHOSTUNREACH,
    Errno.ENETUNREACH,
    Errno.ENOENT,
    Errno.EFAILEDSOCKET,
    Errno.ETIMEDOUT,
    Errno.ELOGOFF,
}
_BUSY: Final = {Errno.ELIMIT, Errno.EOVERCROWDED}
_FAILURES: Final = {
    Code.UNAVAILABLE,
    Code.DEADLINE_EXCEEDED,
    Code.INTERNAL,
    Code.DATA_LOSS,
}
"""Of a server.  Other errors are answers that a handler means."""


class Member:
    """One server of the cluster, and the channel to it."""

    def __init__(self, node: Node, channel: Any, breaker: Breaker | None) -> None:
        self.node: Final = node
        self.channel: Final = channel
        self.breaker: Final = breaker
        self._methods: dict[MethodInfo[Any, Any], Any] = {}
        self.down_until_us = 0
        self._down_us = 0

    def method(self, info: MethodInfo[Any, Any]) -> Any:
        """The method on that server."""
        found = self._methods.get(info)
        if found is None:
            found = self._methods[info] = self.channel.unary(info)
        return found

    def reached(self) -> None:
        self._down_us = self.down_until_us = 0

    def judge(self, error: RpcError | None, latency_us: int, now_us: int) -> None:
        """It has answered, or has not in time."""
        if error is None and self.down_until_us:
            self.reached()
        # Who says that it has enough to do is well.
        if self.breaker is None or (error and error.number in _BUSY):
            return
        failed = error is not None and error.code in _FAILURES
        isolation = self.breaker.isolation(failed, latency_us, now_us)
        if isolation:
            self.down_until_us = max(self.down_until_us, now_us + isolation)

    def missed(self, now_us: int) -> None:
        """It cannot be reached, or stops."""
        if now_us < self.down_until_us:
            return  # a call that began before has found the same
        self._down_us = min(max(2 * self._down_us, _DOWN_FIRST_US), _DOWN_MOST_US)
        pause = int(self._down_us * (0.5 + random.random() / 2))
        self.down_until_us = now_us + pause

    def __del__(self) -> None:
        # Nobody calls it any more: it has left the list, and its last call is over.
        self.channel._close()


class Cluster:
    """Safe for any number of threads."""

    def __init__(
        self,
        name: str,
        balancer: Balancer,
        max_retry: int,
        make: Callable[[Node], Any],
        breakers: bool = False,
    ) -> None:
        """make: a channel to one server.  breakers: whether each has one."""
        self.name: Final = name
        self.max_retry: Final = max_retry
        self.budget: Final = Budget()
        self._balancer: Final = balancer
        self._make: Final = make
        self._breakers: Final = breakers
        self._members: dict[Node, Member] = {}
        self._all: weakref.WeakSet[Member] = weakref.WeakSet()
        # The collector may close a channel wherever it runs, in update() too.
        self._lock = threading.RLock()
        self._generation = _core.generation
        self._closed = False
        self._watch: Watch | None = None
        self._unsubscribe: Callable[[], None] | None = None

    def _guard(self) -> threading.RLock:
        """The lock; in a fork's child another one, for this may be held for ever."""
        if self._generation != _core.generation:
            self._generation = _core.generation
            self._lock = threading.RLock()
        return self._lock

    def update(self, nodes: Sequence[Node]) -> None:
        """The whole new list.  Calls on servers that left it go on."""
        with self._guard():
            if self._closed:
                return
            known = self._members
            members = {}
            for node in nodes:
                member = known.get(node)
                if member is None:
                    breaker = Breaker() if self._breakers else None
                    member = Member(node, self._make(node), breaker)
                    self._all.add(member)
                members[node] = member
            self._balancer.update(list(members))
            if not self._closed:  # not meanwhile, by this thread
                self._members = members

    def follow(self, watch: Watch) -> None:
        """Takes the list from there, now and whenever it changes."""
        self._watch = watch
        self._unsubscribe = watch.subscribe(self.update)

    def wait(self, attempts: Attempts) -> None:
        """Until there was a list; then next() says what is wrong if it is empty."""
        watch = self._watch
        if watch is not None:
            watch.touch()
            if not watch.first.done():
                watch.wait_first(attempts.left())

    async def await_(self, attempts: Attempts) -> None:
        """The same on a loop."""
        watch = self._watch
        if watch is None:
            return
        watch.touch()
        if watch.first.done():
            return
        import asyncio

        # wait() cancels nothing when its own task is.
        first = asyncio.wrap_future(watch.first)
        await asyncio.wait({first}, timeout=attempts.left())

    def begin(
        self, info: MethodInfo[Any, Any], timeout: float | None, key: int | None
    ) -> Attempts:
        return Attempts(self, info, timeout, key)

    def pick(self, key: int | None, tried: Collection[Node], now_us: int) -> Member:
        """Raises RpcError when there is none."""
        members = self._members

        def usable(node: Node) -> bool:
            member = members.get(node)
            return member is not None and member.down_until_us <= now_us

        for _ in range(3):
            node = self._balancer.pick(
                key=key, excluded=tried, usable=usable, now_us=now_us
            )
            if node is None:
                break
            member = members.get(node)
            if member is not None:
                return member
            members = self._members  # the list has changed meanwhile
        if self._closed:
            raise ClosedError(f"the channel to {self.name} is closed")
        if not members:
            raise self._refusal(Errno.ENODATA, "it has no server")
        raise self._refusal(
            Errno.EHOSTDOWN, f"none of its {len(members)} servers can be reached"
        )

    def _refusal(self, number: Errno, why: str) -> RpcError:
        return from_number(
            int(number), f"{self.name}: {why}", peer=self.name, phase=Phase.CONNECT
        )

    def has_other(self, tried: Collection[Node], now_us: int) -> bool:
        """Whether a server is left that was not tried."""
        return any(
            member.down_until_us <= now_us and node not in tried
            for node, member in self._members.items()
        )

    def ended(
        self,
        member: Member,
        error: RpcError | None,
        judged: bool,
        *,
        began_us: int,
        retried: int,
        timeout_us: int,
    ) -> None:
        """An attempt is over.  judged: it says something of the server."""
        now_us = time.monotonic_ns() // 1000
        unreachable = error is not None and (
            error.number == Errno.ELOGOFF
            or (error.phase is Phase.CONNECT and error.number in _UNREACHABLE)
        )
        if unreachable:
            member.missed(now_us)
        elif judged:
            member.judge(error, now_us - began_us, now_us)
        self._balancer.ended(
            member.node,
            began_us=began_us,
            ended_us=now_us,
            failed=error is not None,
            retried=retried,
            max_retry=self.max_retry,
            timeout_us=timeout_us,
        )

    def close(self) -> list[Any]:
        """Ends all calls under way; the channels that were closed."""
        with self._guard():
            self._closed = True
            members, self._members = list(self._all), {}
            watch, self._watch = self._watch, None
        if watch is not None:
            if self._unsubscribe is not None:
                self._unsubscribe()
            close_watch(watch)
        channels = [member.channel for member in members]
        for channel in channels:
            channel._close()
        return channels


def open_cluster(
    url: str, options: ChannelOptions, kind: Callable[..., Any]
) -> Cluster:
    """What `scheme://...` names.  kind: the class of the channels to its servers."""
    each = replace(options, hooks=())
    watch = watch_of(url)
    cluster = Cluster(
        url,
        make(options.balancer),
        options.max_retry,
        lambda node: kind(node.address, options=each),
        options.circuit_breaker,
    )
    cluster.follow(watch)
    return cluster
