"""The asyncio face of a ParallelChannel: each sub-call is a task."""

import asyncio
import time
import warnings
from collections.abc import Sequence
from typing import Any, Final, TypeVar, Unpack

from tidewire._call import UNSET, Unset, seconds
from tidewire.aio import AsyncChannel, AsyncUnaryMethod, HookedMethod
from tidewire.combo.channels import BESIDE, checked, named, passed_down
from tidewire.combo.fanout import FanOut, Map, Merge, Plan
from tidewire.errors import ClosedError, RpcError
from tidewire.options import CallOptions, ChannelOptions
from tidewire.service import MethodInfo

__all__ = ["AsyncParallelChannel"]

Req = TypeVar("Req")
Res = TypeVar("Res")


class AsyncParallelChannel(AsyncChannel):
    """The same as ParallelChannel, for asyncio."""

    def __init__(
        self,
        channels: Sequence[AsyncChannel],
        *,
        fail_limit: int | None = None,
        success_limit: int | None = None,
        map: Map | None = None,
        merge: Merge | None = None,
        owns: bool = False,
        options: ChannelOptions | None = None,
        _address: str | None = None,
    ) -> None:
        """As ParallelChannel's; `merge` runs on the loop and must not wait."""
        self._channels: Sequence[AsyncChannel] = checked(
            type(self), channels, AsyncChannel
        )
        names = [channel.address for channel in self._channels]
        address = _address or named("parallel", names)
        self._plan = Plan(
            channels=names,
            fail_limit=fail_limit,
            success_limit=success_limit,
            map=map,
            merge=merge,
            name=type(self).__name__,
            address=address,
        )
        self._owns = owns
        super().__init__(address, options=options)

    def _open(self, address: str) -> None:
        self._name = address

    @property
    def address(self) -> str:
        """ "parallel(...)", with those of the sub-channels."""
        return self._name

    def with_options(self, **changes: Unpack[CallOptions]) -> "AsyncParallelChannel":
        """As ParallelChannel.with_options()."""
        view = super().with_options(**changes)
        assert isinstance(view, AsyncParallelChannel)
        inner = passed_down(changes)
        if inner:
            view._channels = [one.with_options(**inner) for one in self._channels]
        return view

    def unary(self, info: MethodInfo[Req, Res]) -> AsyncUnaryMethod[Req, Res]:
        """A method to call without a generated client."""
        kind = HookedParallelMethod if self.options.hooks else ParallelMethod
        return kind(self, info)

    def _close(self) -> None:
        self._closed = True
        self._wake()
        if self._owns:
            for channel in self._channels:
                channel._close()

    def __del__(self) -> None:
        if self._origin is None and getattr(self, "_owns", False) and not self._closed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, 2, source=self)
            self._close()

    def __repr__(self) -> str:
        return f"<tidewire.{type(self).__name__} to {self.address}>"


class ParallelMethod(AsyncUnaryMethod[Req, Res]):
    """A method of an AsyncParallelChannel."""

    def __init__(
        self, channel: AsyncParallelChannel, info: MethodInfo[Req, Res]
    ) -> None:
        self._bind(channel, info)
        self._parallel: Final = channel
        self._methods: Final = [one.unary(info) for one in channel._channels]

    async def _run(
        self,
        request: Req,
        full: bool,
        timeout: "float | Unset | None",
        beside: tuple[Any, ...],
        key: int | None,
        again: int = 0,
    ) -> Any:
        channel = self._parallel
        if (channel._origin or channel)._closed:
            raise ClosedError(f"{channel!r} is closed")
        limit = channel.options.timeout if timeout is UNSET else seconds(timeout)
        end = None if limit is None else time.monotonic() + limit
        fan = channel._plan.fan(self.info, request, limit)
        how = dict(zip(BESIDE, beside, strict=True))

        def begin(i: int, request: Any) -> "asyncio.Task[Any]":
            left = None if end is None else max(end - time.monotonic(), 1e-6)
            method = self._methods[i]
            return loop.create_task(method.call(request, timeout=left, key=key, **how))

        loop = asyncio.get_running_loop()
        tasks = {begin(i, one): i for i, one in fan.requests.items()}
        closing: asyncio.Future[None] = loop.create_future()
        channel._sleepers.add(closing)
        try:
            await _gather(fan, tasks, closing)
        finally:
            channel._sleepers.discard(closing)
            for task in tasks:
                if not task.done():
                    task.cancel()
                    task.add_done_callback(_look)
        reply = fan.reply()
        return reply if full else reply.message


async def _gather(
    fan: FanOut,
    tasks: "dict[asyncio.Task[Any], int]",
    closing: "asyncio.Future[None]",
) -> None:
    """Until the call is over."""
    running: set[asyncio.Future[Any]] = {*tasks, closing}
    while not fan.over:
        done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task in done:
                _note(fan, tasks[task], task)
        if closing in done and not fan.over:
            raise fan.closed()


def _note(fan: FanOut, i: int, task: "asyncio.Task[Any]") -> None:
    try:
        response = task.result()
    except RpcError as error:
        fan.ended(i, None, error)
    else:
        fan.ended(i, response, None)


def _look(task: "asyncio.Task[Any]") -> None:
    """At what it raised, so that nobody says that nobody did."""
    if not task.cancelled():
        task.exception()


class HookedParallelMethod(HookedMethod[Req, Res], ParallelMethod[Req, Res]):
    """The same of a channel with hooks, around the whole call."""
