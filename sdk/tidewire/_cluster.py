"""The servers behind a channel: which of them an attempt goes to, and what its
end says of them.

Decides and never waits.
"""

import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from tidewire import _core
from tidewire._attempts import BUSY, Attempts
from tidewire._budget import Budget, Calls
from tidewire._peer import connection_key
from tidewire._standing import Standing, standing_of
from tidewire.balance import Balancer, make
from tidewire.codes import Errno
from tidewire.errors import ClosedError, Phase, RpcError, from_number
from tidewire.naming import Watch, close_watch, watch_of
from tidewire.node import Node
from tidewire.options import ChannelOptions
from tidewire.service import MethodInfo

__all__ = ["Cluster", "Member", "View", "cluster_of", "open_cluster", "view_of"]

_MEMBERS: Final = ("codec", "coding", "send_deadline")
"""The options of a view that calls on the members have, too."""


class View:
    """How the members' calls differ for a channel made by with_options()."""

    def __init__(self, changes: Mapping[str, Any]) -> None:
        self.changes: Final = changes


class Member:
    """One server of the cluster, and the channel to it."""

    def __init__(self, node: Node, channel: Any, standing: Standing) -> None:
        self.node: Final = node
        self.channel: Final = channel
        self.standing: Final = standing
        self._methods: dict[MethodInfo[Any, Any], Any] = {}
        self._of_views: weakref.WeakKeyDictionary[
            View, dict[MethodInfo[Any, Any], Any]
        ] = weakref.WeakKeyDictionary()

    def method(self, info: MethodInfo[Any, Any], view: View | None) -> Any:
        """The method on that server, with the options of a view."""
        methods = self._methods if view is None else self._of_views.get(view)
        if methods is None:
            assert view is not None
            methods = self._of_views[view] = {}
        found = methods.get(info)
        if found is None:
            channel = self.channel
            if view is not None:
                channel = channel.with_options(**view.changes)
            found = methods[info] = self._bound(channel.unary(info))
            self.standing.count()
        return found

    def _bound(self, method: Any) -> Any:
        return method

    @property
    def owner(self) -> Any:
        return self.channel._peer

    def __del__(self) -> None:
        # Nobody calls it any more: it has left the list, and its last call is over.
        self.channel._close()


class Cluster:
    """Safe for any number of threads."""

    noun = "server"
    """What it consists of, in errors."""

    def __init__(
        self,
        name: str,
        balancer: Balancer,
        make: Callable[[Node], Any],
        standing: Callable[[Node], Standing],
        breakers: bool = False,
    ) -> None:
        """make: a channel to one server.  breakers: whether calls on this channel
        open them."""
        self.name: Final = name
        self.calls = Calls()
        self.retries = Budget(self.calls)
        self.backups = Budget(self.calls)
        self._balancer: Final = balancer
        self._make: Final = make
        self._standing: Final = standing
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
                    member = self._member(node)
                    self._all.add(member)
                members[node] = member
            self._balancer.update(list(members))
            if not self._closed:  # not meanwhile, by this thread
                self._members = members

    def _member(self, node: Node) -> Member:
        return Member(node, self._make(node), self._standing(node))

    def follow(
        self,
        watch: Watch,
        empty: bool,
        update: Callable[[Sequence[Node]], None] | None = None,
    ) -> None:
        """Takes the list from there, now and whenever it changes.  empty: also one
        that has become empty.  update: takes it instead of update()."""
        self._watch = watch
        self._unsubscribe = watch.subscribe(update or self.update, empty=empty)

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
        self,
        info: MethodInfo[Any, Any],
        options: ChannelOptions,
        timeout: float | None,
        key: int | None,
    ) -> Attempts:
        self.calls.begun += 1
        return Attempts(self, info, options, timeout, key)

    def pick(self, key: int | None, tried: Collection[Node], now_us: int) -> Member:
        """Raises RpcError when there is none."""
        members = self._members

        def usable(node: Node) -> bool:
            member = members.get(node)
            return member is not None and member.standing.down_until_us <= now_us

        for _ in range(3):
            try:
                node = self._balancer.pick(
                    key=key, excluded=tried, usable=usable, now_us=now_us
                )
            except RpcError as error:
                error.peer = self.name
                raise
            if node is None:
                break
            member = members.get(node)
            if member is not None:
                member.standing.tried(now_us)
                return member
            members = self._members  # the list has changed meanwhile
        if self._closed:
            raise ClosedError(f"the channel to {self.name} is closed")
        if not members:
            raise self._refusal(Errno.ENODATA, f"it has no {self.noun}")
        raise self._refusal(
            Errno.EHOSTDOWN, f"none of its {len(members)} {self.noun}s can be reached"
        )

    def _refusal(self, number: Errno, why: str) -> RpcError:
        return from_number(
            int(number), f"{self.name}: {why}", peer=self.name, phase=Phase.CONNECT
        )

    def has_other(self, tried: Collection[Node], now_us: int) -> bool:
        """Whether a server is left that was not tried."""
        return any(
            member.standing.down_until_us <= now_us and node not in tried
            for node, member in self._members.items()
        )

    def helps(self, error: RpcError, tried: Collection[Node], now_us: int) -> bool:
        return error.number not in BUSY or self.has_other(tried, now_us)

    def ended(
        self,
        server: Member,
        error: RpcError | None,
        judged: bool,
        *,
        began_us: int,
        retried: int,
        max_retry: int,
        timeout_us: int,
    ) -> None:
        now_us = time.monotonic_ns() // 1000
        if judged:
            server.standing.ended(error, self._breakers, began_us, now_us)
        self._balancer.ended(
            server.node,
            began_us=began_us,
            ended_us=now_us,
            failed=error is not None,
            retried=retried,
            max_retry=max_retry,
            timeout_us=timeout_us,
        )

    def close(self) -> list[Any]:
        """Ends all calls under way; the channels that were closed."""
        with self._guard():
            self._closed = True
            members, self._members = list(self._all), {}
        self._unfollow()
        channels = [member.channel for member in members]
        for channel in channels:
            channel._close()
        return channels

    def _unfollow(self) -> None:
        with self._guard():
            watch, self._watch = self._watch, None
        if watch is not None:
            if self._unsubscribe is not None:
                self._unsubscribe()
            close_watch(watch)


def view_of(outer: View | None, changes: Mapping[str, Any]) -> View | None:
    """For a view of such a view with those changes; None: the members' calls are
    the same."""
    known = {} if outer is None else outer.changes
    # Hooks, retries and deadlines are the cluster's.
    mine = {name: changes[name] for name in _MEMBERS if name in changes}
    return View({**known, **mine}) if mine else outer


def open_cluster(
    url: str, options: ChannelOptions, kind: Callable[..., Any]
) -> Cluster:
    """What `scheme://...` names.  kind: the class of the channels to its servers."""
    watch = watch_of(url)
    cluster = cluster_of(url, options, kind)
    cluster.follow(watch, options.allow_empty)
    return cluster


def cluster_of(name: str, options: ChannelOptions, kind: Callable[..., Any]) -> Cluster:
    """One whose list comes by update()."""
    # What is tried again, and when, is decided here.
    each = replace(options, hooks=(), max_retry=0, backup=None)
    key = connection_key(each)
    return Cluster(
        name,
        make(options.balancer),
        lambda node: kind(node.address, options=each),
        lambda node: standing_of((node, key)),
        options.circuit_breaker,
    )
