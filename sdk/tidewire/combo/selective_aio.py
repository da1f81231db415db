"""The asyncio face of a SelectiveChannel."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from tidewire._cluster_acalls import method
from tidewire.aio import AsyncChannel, AsyncUnaryMethod
from tidewire.balance import make
from tidewire.combo.channels import BESIDE, check_one, iterable
from tidewire.combo.choice import Choice
from tidewire.options import ChannelOptions
from tidewire.service import MethodInfo

__all__ = ["AsyncSelectiveChannel", "SubMethod"]

Req = TypeVar("Req")
Res = TypeVar("Res")


class AsyncSelectiveChannel(AsyncChannel):
    """The same as SelectiveChannel, for asyncio."""

    def __init__(
        self,
        channels: Iterable[AsyncChannel] = (),
        *,
        owns: bool = False,
        options: ChannelOptions | None = None,
    ) -> None:
        """As SelectiveChannel's."""
        self._owns = owns
        super().__init__("selective", options=options)
        for channel in iterable(type(self), channels, AsyncChannel):
            self.add(channel)

    def _open(self, address: str) -> None:
        options = self.options
        self._cluster = self._choice = Choice(
            address, make(options.balancer), SubMethod, options.circuit_breaker
        )

    def add(self, channel: AsyncChannel, *, weight: int = 1) -> None:
        """As SelectiveChannel.add()."""
        check_one("channel", channel, AsyncChannel)
        self._choice.add(channel, weight, self._owns)

    def remove(self, channel: AsyncChannel) -> None:
        """As SelectiveChannel.remove()."""
        self._choice.remove(channel)

    @property
    def channels(self) -> tuple[AsyncChannel, ...]:
        """The sub-channels as they are now."""
        return tuple(place.channel for place in self._choice.places)

    def unary(self, info: MethodInfo[Req, Res]) -> AsyncUnaryMethod[Req, Res]:
        """A method to call without a generated client."""
        return method(self, info)

    def __del__(self) -> None:
        if getattr(self, "_owns", False):
            super().__del__()

    def __repr__(self) -> str:
        return f"<tidewire.{type(self).__name__} of {len(self.channels)}>"


class SubMethod:
    """A sub-channel's method as an attempt calls it: hooks and retries of the
    sub-channel are around it, so that it is a call like any other."""

    def __init__(self, method: AsyncUnaryMethod[Any, Any]) -> None:
        self._method = method

    async def _run(
        self,
        request: Any,
        full: bool,
        timeout: Any,
        beside: tuple[Any, ...],
        key: int | None,
        again: int = 0,
    ) -> Any:
        do: Callable[..., Any] = self._method.call if full else self._method
        how = dict(zip(BESIDE, beside, strict=True))
        return await do(request, timeout=timeout, key=key, **how)
