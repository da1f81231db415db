"""What generated clients are made of: every rpc becomes an attribute, bound to
the channel once."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from tidewire.channel import Channel
from tidewire.service import MethodInfo

if TYPE_CHECKING:
    from tidewire.aio import AsyncChannel

__all__ = ["AsyncClient", "Client"]


class Client:
    """Base of generated blocking clients.  Methods may be called from any
    thread."""

    __tidewire_methods__: ClassVar[Mapping[str, MethodInfo[Any, Any]]]

    def __init__(self, channel: Channel) -> None:
        if not isinstance(channel, Channel):
            raise TypeError(
                f"channel is a {type(channel).__name__}; allowed: tidewire.Channel"
            )
        for name, info in self.__tidewire_methods__.items():
            setattr(self, name, channel.unary(info))


class AsyncClient:
    """Base of generated asyncio clients."""

    __tidewire_methods__: ClassVar[Mapping[str, MethodInfo[Any, Any]]]

    def __init__(self, channel: "AsyncChannel") -> None:
        from tidewire.aio import AsyncChannel

        if not isinstance(channel, AsyncChannel):
            raise TypeError(
                f"channel is a {type(channel).__name__}; allowed: tidewire.AsyncChannel"
            )
        for name, info in self.__tidewire_methods__.items():
            setattr(self, name, channel.unary(info))
