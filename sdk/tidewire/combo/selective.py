"""The blocking face of a SelectiveChannel: calls to a cluster whose servers are
channels."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from tidewire._cluster_calls import method
from tidewire._peer import Peer
from tidewire.balance import make
from tidewire.channel import Channel, UnaryMethod
from tidewire.combo.channels import check_one, iterable
from tidewire.combo.choice import Choice
from tidewire.options import ChannelOptions
from tidewire.service import MethodInfo

__all__ = ["SelectiveChannel", "SubMethod"]

Req = TypeVar("Req")
Res = TypeVar("Res")


class SelectiveChannel(Channel):
    """A channel whose calls go to one of its sub-channels, and after a failure to
    another.

    It is used like any channel, and may be a sub-channel itself.  Sub-channels come
    and go at any time.
    """

    def __init__(
        self,
        channels: Iterable[Channel] = (),
        *,
        owns: bool = False,
        options: ChannelOptions | None = None,
    ) -> None:
        """channels: as if add() had been called with each.  owns: whether close()
        closes the sub-channels, and remove() one, once its calls are over.

        Of the options those of sub-channels have no effect: connections, `codec`,
        `coding`.  The balancer chooses among them; `max_retry`, `retry` and `backup`
        count calls on sub-channels, which have retries of their own; `timeout` is
        that of all together, whatever the sub-channels' options say."""
        self._owns = owns
        super().__init__("selective", options=options)
        for channel in iterable(type(self), channels, Channel):
            self.add(channel)

    def _open(self, address: str) -> None:
        options = self.options
        self._cluster = self._choice = Choice(
            address, make(options.balancer), SubMethod, options.circuit_breaker
        )

    def add(self, channel: Channel, *, weight: int = 1) -> None:
        """One more sub-channel.  weight: for the balancers that know weights, 1 to
        2**32 - 1.  Raises OptionError if it is one already."""
        check_one("channel", channel, Channel)
        self._choice.add(channel, weight, self._owns)

    def remove(self, channel: Channel) -> None:
        """One less; its calls under way go on.  Raises OptionError if it is none.
        Remove one before you close it."""
        self._choice.remove(channel)

    @property
    def channels(self) -> tuple[Channel, ...]:
        """The sub-channels as they are now."""
        return tuple(place.channel for place in self._choice.places)

    def unary(self, info: MethodInfo[Req, Res]) -> UnaryMethod[Req, Res]:
        """A method to call without a generated client."""
        return method(self, info)

    def _close(self) -> list[Peer]:
        """What futures may wait for."""
        self._closed = True
        self._closing.set()
        return self._choice.close()

    def __del__(self) -> None:
        if getattr(self, "_owns", False):
            super().__del__()

    def __repr__(self) -> str:
        return f"<tidewire.{type(self).__name__} of {len(self.channels)}>"


class SubMethod:
    """A sub-channel's method as an attempt calls it: hooks and retries of the
    sub-channel are around it, so that it is a call like any other."""

    _full: Final = True

    def __init__(self, method: UnaryMethod[Any, Any]) -> None:
        self._method = method

    def __call__(
        self, request: Any, *, _take: Any = None, _again: int = 0, **how: Any
    ) -> Any:
        do: Callable[..., Any] = self._method if _take is None else self._method.call
        return do(request, **how)

    def _start(
        self,
        request: Any,
        full: bool,
        timeout: Any,
        metadata: Any,
        *,
        again: int = 0,
        **how: Any,
    ) -> Future[Any]:
        return self._method._start(request, full, timeout, metadata, **how)
