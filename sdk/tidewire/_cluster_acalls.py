"""The asyncio face of calls to a cluster: each attempt is a call on one of its
servers."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeAlias, TypeVar

from tidewire._attempts import Attempts, Try
from tidewire._call import UNSET, Unset, seconds
from tidewire.aio import AsyncChannel, AsyncUnaryMethod, HookedMethod
from tidewire.errors import ClosedError, RpcError
from tidewire.retry import BackupPolicy
from tidewire.service import MethodInfo

__all__ = ["method"]

Req = TypeVar("Req")
Res = TypeVar("Res")

Send: TypeAlias = Callable[[Try], Coroutine[Any, Any, Any]]
"""Makes an attempt."""


class ClusterMethod(AsyncUnaryMethod[Req, Res]):
    """A method of a channel to a cluster: each attempt is a call on one of its
    servers."""

    def __init__(self, channel: AsyncChannel, info: MethodInfo[Req, Res]) -> None:
        assert channel._cluster is not None
        self._bind(channel, info)
        self._cluster: Final = channel._cluster
        self._view: Final = channel._view

    async def _run(
        self,
        request: Req,
        full: bool,
        timeout: float | Unset | None,
        beside: tuple[Any, ...],
        key: int | None,
        again: int = 0,
    ) -> Any:
        options = self._channel.options
        limit = options.timeout if timeout is UNSET else seconds(timeout)
        attempts = self._cluster.begin(self.info, options, limit, key)
        await self._cluster.await_(attempts)

        async def send(one: Try) -> Any:
            if one.pause:
                await self._channel._sleep(one.pause)
            method: AsyncUnaryMethod[Req, Res] = one.server.method(
                self.info, self._view
            )
            left = attempts.left()
            return await method._run(request, full, left, beside, key, one.kind)

        policy = options.backup
        delay = policy.delay(self.info) if isinstance(policy, BackupPolicy) else None
        try:
            if delay is None:
                reply = await _in_turn(attempts, send)
            else:
                reply = await _race(attempts, send, delay)
        except ClosedError:
            if not attempts.past:
                raise
            raise attempts.closed() from None
        return attempts.told(reply) if full else reply


async def _in_turn(attempts: Attempts, send: Send) -> Any:
    while True:
        one = attempts.next()
        try:
            reply = await send(one)
        except RpcError as error:
            if attempts.failed(one, error):
                raise
        except BaseException:
            attempts.given_up(one)
            raise
        else:
            attempts.succeeded(one)
            return reply


async def _race(attempts: Attempts, send: Send, delay: float) -> Any:
    """The same with one beside the first that has no answer after `delay`
    seconds."""
    loop = asyncio.get_running_loop()
    running: dict[asyncio.Task[Any], Try] = {}

    def begin(one: Try) -> None:
        running[loop.create_task(send(one))] = one

    due: float | None = loop.time() + delay
    try:
        begin(attempts.next())
        while True:
            limit = None if due is None else max(due - loop.time(), 0)
            done, _ = await asyncio.wait(
                running, timeout=limit, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                due = None
                backup = attempts.backup(running.values())
                if backup is not None:
                    begin(backup)
            for task in done:
                one = running.pop(task)
                try:
                    reply = task.result()
                except RpcError as error:
                    if running:
                        attempts.note(one, error)  # the other may do better
                    elif attempts.failed(one, error):
                        raise
                    else:
                        begin(attempts.next())
                except BaseException:
                    attempts.given_up(one)
                    raise
                else:
                    attempts.succeeded(one)
                    return reply
    finally:
        for task, one in running.items():
            attempts.given_up(one)
            task.cancel()
            task.add_done_callback(_look)


def _look(task: asyncio.Task[Any]) -> None:
    """At what it raised, so that nobody says that nobody did."""
    if not task.cancelled():
        task.exception()


class HookedClusterMethod(HookedMethod[Req, Res], ClusterMethod[Req, Res]):
    """The same of a channel with hooks, around all attempts together."""


def method(
    channel: AsyncChannel, info: MethodInfo[Req, Res]
) -> AsyncUnaryMethod[Req, Res]:
    """A method of a channel to a cluster."""
    kind = HookedClusterMethod if channel.options.hooks else ClusterMethod
    return kind(channel, info)
