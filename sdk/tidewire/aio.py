"""The asyncio face of a client: the same calls, awaited."""

import asyncio
import contextlib
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, Unpack

from tidewire import _core
from tidewire._attempts import Attempts, Lone
from tidewire._call import UNSET, Attachment, Plan, Response, Unset
from tidewire._chain import Chain, Layers
from tidewire._loop import LoopPort, port_of
from tidewire._peer import Peer
from tidewire.address import is_cluster, parse_addresses
from tidewire.codes import Errno
from tidewire.coding import Coding
from tidewire.errors import ClosedError, RpcError
from tidewire.hooks import Call
from tidewire.options import CallOptions, ChannelOptions, check_changes
from tidewire.service import MethodInfo
from tidewire.trace import Trace

if TYPE_CHECKING:
    from tidewire._cluster import Cluster, View

__all__ = ["AsyncChannel", "AsyncUnaryMethod"]

Req = TypeVar("Req")
Res = TypeVar("Res")

_lib: Final = _core.lib


def _wake(sleeper: "asyncio.Future[None]") -> None:
    if not sleeper.done():
        sleeper.set_result(None)


class AsyncChannel:
    """A way to one server, or to a cluster of them, for the tasks of one or more
    asyncio loops.

    Connects at the first call, and again after a connection failed.  Use it in
    `async with`, or await aclose().
    """

    _origin: "AsyncChannel | None" = None
    """The channel that this is a view of."""

    def __init__(self, address: str, *, options: ChannelOptions | None = None) -> None:
        """address: "host:port", "1.2.3.4:80", "[::1]:80" or "unix:/path"; or up to
        16 of them with commas between, under all of which the one server is
        reached.  Or a cluster: "list://10.0.0.1:80,10.0.0.2:80", "file:///path",
        "dns://name:80".  Raises AddressError for anything else."""
        if options is not None and not isinstance(options, ChannelOptions):
            raise TypeError(
                f"options is a {type(options).__name__}; allowed: ChannelOptions"
            )
        self.options: Final = options or ChannelOptions()
        self._layers = Layers(self.options.hooks)
        self._ports: Final[list[LoopPort]] = []
        self._sleepers: Final[set[asyncio.Future[None]]] = set()
        self._cluster: Cluster | None = None
        self._view: View | None = None
        self._open(address)
        self._closed = False

    def _open(self, address: str) -> None:
        if is_cluster(address):
            from tidewire._cluster import open_cluster

            self._cluster = open_cluster(address, self.options, AsyncChannel)
        else:
            self._peer = Peer(parse_addresses(address), self.options)
            checked = self.options.health_check is not None
            self._lone = Lone(self._peer.text, self._peer, checked)

    @property
    def address(self) -> str:
        """The server's addresses, as "host:port" or "unix:/path", commas between."""
        return self._peer.text if self._cluster is None else self._cluster.name

    def with_options(self, **changes: Unpack[CallOptions]) -> "AsyncChannel":
        """This channel with other options for the calls made by what it gives; as
        Channel.with_options()."""
        check_changes(changes)
        view: AsyncChannel = object.__new__(type(self))
        vars(view).update(vars(self), options=replace(self.options, **changes))
        view._layers = Layers(view.options.hooks)
        view._origin = self._origin or self
        if self._cluster is not None:
            from tidewire._cluster import view_of

            view._view = view_of(self._view, changes)
        return view

    def unary(self, info: MethodInfo[Req, Res]) -> "AsyncUnaryMethod[Req, Res]":
        """A method to call without a generated client."""
        if self._cluster is not None:
            from tidewire._cluster_acalls import method

            return method(self, info)
        kind = HookedMethod if self.options.hooks else AsyncUnaryMethod
        return kind(self, info)

    def _port(self) -> LoopPort:
        port = port_of(asyncio.get_running_loop())
        if port not in self._ports:
            for other in list(self._ports):
                if other.loop.is_closed():
                    self._ports.remove(other)
            self._ports.append(port)
            port.acquire()
        return port

    async def aclose(self) -> None:
        """Ends calls under way with Cancelled; a second call changes nothing."""
        if self._origin is not None:
            return  # the channel that this is a view of closes them
        self._close()
        # Their results come in the next turns of the loop.
        await asyncio.sleep(0)

    async def _sleep(self, seconds: float) -> None:
        """So long, or until the channel closes."""
        loop = asyncio.get_running_loop()
        sleeper: asyncio.Future[None] = loop.create_future()
        handle = loop.call_later(seconds, _wake, sleeper)
        self._sleepers.add(sleeper)
        try:
            if not (self._origin or self)._closed:
                await sleeper
        finally:
            handle.cancel()
            self._sleepers.discard(sleeper)

    def _wake(self) -> None:
        """Those who wait for the channel to close."""
        for sleeper in list(self._sleepers):
            with contextlib.suppress(RuntimeError):  # its loop is closed
                sleeper.get_loop().call_soon_threadsafe(_wake, sleeper)

    def _close(self) -> None:
        self._closed = True
        self._wake()
        if self._cluster is not None:
            self._cluster.close()
            return
        self._peer.close()
        ports = list(self._ports)
        self._ports.clear()
        for port in ports:
            if port.loop.is_closed():
                continue
            # Results of the calls just ended are still to be delivered.
            port.loop.call_soon_threadsafe(port.drain_and_release)

    async def __aenter__(self) -> "AsyncChannel":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if self._origin is None and not getattr(self, "_closed", True):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, 2, source=self)
            self._close()

    def __repr__(self) -> str:
        return f"<tidewire.AsyncChannel to {self.address}>"


class AsyncUnaryMethod(Generic[Req, Res]):
    """A method of an asyncio client: await it, or use .call."""

    def __init__(self, channel: AsyncChannel, info: MethodInfo[Req, Res]) -> None:
        _core.open()
        self._peer: Final = channel._peer
        self._plan: Final = Plan(info, channel.options, channel.address, channel._peer)
        self._calls: Final = channel._lone.calls
        self._bind(channel, info)

    def _bind(self, channel: AsyncChannel, info: MethodInfo[Req, Res]) -> None:
        self._channel = channel  # keeps it open
        self.info = info

    async def _resolved(self, deadline_ns: int) -> int:
        peer = self._peer
        left = (deadline_ns - time.monotonic_ns()) / 1e9 if deadline_ns else None
        loop = asyncio.get_running_loop()
        try:
            found = await asyncio.wait_for(
                loop.run_in_executor(None, peer.lookup), left
            )
        except TimeoutError:
            raise peer.unresolved(None) from None
        except OSError as error:
            raise peer.unresolved(error) from error
        return peer.open(found)

    async def _run(
        self,
        request: Req,
        full: bool,
        timeout: "float | Unset | None",
        beside: tuple[Any, ...],
        key: int | None,
        again: int = 0,
    ) -> Any:
        plan = self._plan
        if not again:
            self._calls.begun += 1
        deadline_ns = plan.deadline_ns(timeout)
        peer = self._peer.id or await self._resolved(deadline_ns)
        port = self._channel._port()
        future: asyncio.Future[Any] = port.loop.create_future()
        call, cookie = port.pending.submit(
            peer,
            plan,
            plan.packed(request, *beside, again=again),
            future,
            deadline_ns=deadline_ns,
            full=full,
            cork=True,
        )
        port.flush_soon()
        try:
            return await future
        except asyncio.CancelledError:
            port.pending.calls.pop(cookie, None)
            _lib.tw_cancel(call)
            raise
        except RpcError as error:
            self._peer.failed(peer, error)
            if again or not self._channel.options.max_retry:
                raise
            attempts = self._after(error, deadline_ns)
            if attempts is None:
                raise
        finally:
            del future  # it holds the error, whose traceback holds this frame
        return await self._go_on(attempts, request, full, beside)

    def _after(self, error: RpcError, deadline_ns: int) -> Attempts | None:
        """The attempts of a call whose first has failed so; None: it was the
        last."""
        channel = self._channel
        if not channel.options.retry.retries(error, self.info):
            return None
        timeout = None
        if deadline_ns:
            timeout = (deadline_ns - time.monotonic_ns()) / 1e9
        attempts = Attempts(channel._lone, self.info, channel.options, timeout)
        return attempts if attempts.follows(error) else None

    async def _go_on(
        self, attempts: Attempts, request: Req, full: bool, beside: tuple[Any, ...]
    ) -> Any:
        """The attempts after the first."""
        while True:
            one = attempts.next()
            if one.pause:
                await self._channel._sleep(one.pause)
            try:
                reply = await self._run(
                    request, full, attempts.left(), beside, None, one.kind
                )
            except RpcError as error:
                if attempts.failed(one, error):
                    raise
            except ClosedError:
                raise attempts.closed() from None
            else:
                return attempts.told(reply) if full else reply

    async def __call__(
        self,
        request: Req,
        *,
        timeout: "float | Unset | None" = UNSET,
        attachment: Attachment | None = None,
        metadata: Mapping[str, str] | None = None,
        request_id: str | None = None,
        log_id: int | None = None,
        ignore_eovercrowded: bool = False,
        coding: Coding | None = None,
        trace: Trace | None = None,
        key: int | None = None,
    ) -> Res:
        """Calls and awaits the answer's message.

        timeout: seconds, None for ever; left out, the channel's.
        ignore_eovercrowded: send it although max_unwritten is reached.
        coding: how the request travels; None: the channel's.  trace: the ids
        that brpc's rpcz follows.  key: for balancers that hash, 0 to 2**32 - 1.
        Raises RpcError (DeadlineExceeded, Unavailable, ...).  Cancelling the task
        ends the call.
        """
        reply: Res = await self._run(
            request,
            False,
            timeout,
            (
                attachment,
                metadata,
                request_id,
                log_id,
                ignore_eovercrowded,
                coding,
                trace,
            ),
            key,
        )
        return reply

    async def call(
        self,
        request: Req,
        *,
        timeout: "float | Unset | None" = UNSET,
        attachment: Attachment | None = None,
        metadata: Mapping[str, str] | None = None,
        request_id: str | None = None,
        log_id: int | None = None,
        ignore_eovercrowded: bool = False,
        coding: Coding | None = None,
        trace: Trace | None = None,
        key: int | None = None,
    ) -> Response[Res]:
        """The same, with the answer's attachment, metadata, peer and time."""
        reply: Response[Res] = await self._run(
            request,
            True,
            timeout,
            (
                attachment,
                metadata,
                request_id,
                log_id,
                ignore_eovercrowded,
                coding,
                trace,
            ),
            key,
        )
        return reply


class HookedMethod(AsyncUnaryMethod[Req, Res]):
    """A method of a channel with hooks."""

    async def __call__(
        self, request: Req, *, metadata: Mapping[str, str] | None = None, **how: Any
    ) -> Res:
        reply: Res = await self._within(
            super().__call__, request, metadata, how, lambda reply: reply
        )
        return reply

    async def call(
        self, request: Req, *, metadata: Mapping[str, str] | None = None, **how: Any
    ) -> Response[Res]:
        reply: Response[Res] = await self._within(
            super().call, request, metadata, how, lambda reply: reply.message
        )
        return reply

    async def _within(
        self,
        do: Callable[..., Any],
        request: Req,
        metadata: Mapping[str, str] | None,
        how: Mapping[str, Any],
        message_of: Callable[[Any], Any],
    ) -> Any:
        call = Call(
            self.info.full_name,
            peer=self._channel.address,
            metadata=dict(metadata or {}),
        )
        chain = Chain(self._channel._layers, call, time.monotonic_ns())
        try:
            chain.start()
            chain.request(request)
            reply = await do(request, metadata=call.metadata or None, **how)
            chain.reply(message_of(reply))
        except asyncio.CancelledError as error:
            chain.end(error, int(Errno.ECANCELED))
            raise  # whatever a hook raised: the task was told to end
        except BaseException as error:
            chain.close(error)
            raise
        chain.close(None)
        return reply
