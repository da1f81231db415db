"""The asyncio face of calls to a cluster: each attempt is a call on one of its
servers."""

import asyncio
from typing import Any, Final, TypeVar

from tidewire._call import UNSET, Unset, seconds
from tidewire.aio import AsyncChannel, AsyncUnaryMethod, HookedMethod
from tidewire.errors import RpcError
from tidewire.service import MethodInfo

__all__ = ["method"]

Req = TypeVar("Req")
Res = TypeVar("Res")


class ClusterMethod(AsyncUnaryMethod[Req, Res]):
    """A method of a channel to a cluster: each attempt is a call on one of its
    servers."""

    def __init__(self, channel: AsyncChannel, info: MethodInfo[Req, Res]) -> None:
        assert channel._cluster is not None
        self._bind(channel, info)
        self._cluster: Final = channel._cluster

    async def _run(
        self,
        request: Req,
        full: bool,
        timeout: float | Unset | None,
        beside: tuple[Any, ...],
        key: int | None,
    ) -> Any:
        options = self._channel.options
        limit = options.timeout if timeout is UNSET else seconds(timeout)
        attempts = self._cluster.begin(self.info, limit, key)
        await self._cluster.await_(attempts)
        while True:
            member, pause = attempts.next()
            try:
                if pause:
                    await asyncio.sleep(pause)
                method: AsyncUnaryMethod[Req, Res] = member.method(self.info)
                reply = await method._run(request, full, attempts.left(), beside, None)
            except RpcError as error:
                if attempts.failed(error):
                    raise
            except BaseException:
                attempts.given_up()
                raise
            else:
                attempts.succeeded()
                return reply


class HookedClusterMethod(HookedMethod[Req, Res], ClusterMethod[Req, Res]):
    """The same of a channel with hooks, around all attempts together."""


def method(
    channel: AsyncChannel, info: MethodInfo[Req, Res]
) -> AsyncUnaryMethod[Req, Res]:
    """A method of a channel to a cluster."""
    kind = HookedClusterMethod if channel.options.hooks else ClusterMethod
    return kind(channel, info)
