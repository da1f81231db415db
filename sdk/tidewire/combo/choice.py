"""Channels of which a call goes to one: a cluster whose servers are channels.

Decides and never waits.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

from tidewire._cluster import Cluster, Member
from tidewire._standing import Standing, State
from tidewire.balance import Balancer
from tidewire.balance.balancer import whole
from tidewire.errors import ClosedError, OptionError, RpcError
from tidewire.node import Node

__all__ = ["Choice", "Place", "place_of"]


class _Known(Standing):
    """What is known of a sub-channel: no server, so that no metric counts it."""

    def count(self) -> None:
        pass

    def _be(self, state: State) -> None:
        self._state = state


class Owned:
    """A channel that is closed when nobody calls it any more."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel

    def __del__(self) -> None:
        self.channel._close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place(Node):
    """A sub-channel, as balancers choose it.  Two may lead to the same address."""

    channel: Any
    owned: Owned | None = None
    standing: Standing = field(default_factory=_Known)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def weighing(self, weight: int) -> "Place":
        """The same with that weight."""
        return replace(self, tag=str(weight))


def place_of(channel: Any, weight: int, owned: bool) -> Place:
    return Place(
        address=channel.address,
        tag=str(weight),
        channel=channel,
        owned=Owned(channel) if owned else None,
    )


class _SubChannel(Member):
    """One of them, and what a Course wants to know of it."""

    has_futures = True

    def __init__(self, place: Place, attempt: Callable[[Any], Any]) -> None:
        super().__init__(place, place.channel, place.standing)
        self._attempt = attempt

    def _bound(self, method: Any) -> Any:
        return self._attempt(method)

    @property
    def owner(self) -> Any:
        return self

    @property
    def is_unresolved(self) -> bool:
        """Whether a call may have to wait before it is under way."""
        peer = getattr(self.channel, "_peer", None)
        return peer is None or bool(peer.is_unresolved)

    def __del__(self) -> None:
        pass  # whether the channel is closed is its Place's matter


class Choice(Cluster):
    """Safe for any number of threads."""

    noun = "sub-channel"

    def __init__(
        self,
        name: str,
        balancer: Balancer,
        attempt: Callable[[Any], Any],
        breakers: bool = False,
    ) -> None:
        """attempt: from a sub-channel's method to what attempts call."""
        super().__init__(name, balancer, _no, _no, breakers)
        self._attempt = attempt

    def _member(self, node: Node) -> Member:
        assert isinstance(node, Place)
        return _SubChannel(node, self._attempt)

    @property
    def places(self) -> list[Place]:
        """The sub-channels that calls may go to."""
        return [node for node in self._members if isinstance(node, Place)]

    def add(self, channel: Any, weight: object, owned: bool) -> None:
        """One more.  Raises OptionError if it is there."""
        number = whole("weight", weight, 1, 2**32 - 1, "of all weights' sum")
        with self._guard():
            if self._closed:
                raise ClosedError(f"the channel to {self.name} is closed")
            places = self.places
            if any(place.channel is channel for place in places):
                raise OptionError(f"{channel!r} is one of the sub-channels already")
            self.update([*places, place_of(channel, number, owned)])

    def remove(self, channel: Any) -> None:
        """One less.  Raises OptionError if it is not there."""
        with self._guard():
            places = self.places
            left = [place for place in places if place.channel is not channel]
            if len(left) == len(places):
                raise OptionError(f"{channel!r} is none of the sub-channels")
            self.update(left)

    def helps(self, error: RpcError, tried: Collection[Node], now_us: int) -> bool:
        # A sub-channel has tried it again by itself.
        return self.has_other(tried, now_us)

    def close(self) -> list[Any]:
        """No call begins any more.  Closes the sub-channels that are owned; what
        futures may wait for, and what closing has given."""
        with self._guard():
            members = list(self._all)
            self._members, self._closed = {}, True
        self._unfollow()
        closed: list[Any] = list(members)
        for member in members:
            assert isinstance(member.node, Place)
            if member.node.owned is not None:
                closed += member.channel._close() or ()
        return closed


def _no(node: Node) -> Any:
    raise AssertionError("places bring their channels")
