"""The asyncio face of a client: the same calls, awaited."""

import asyncio
import time
import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from tidewire import _core
from tidewire._call import UNSET, Attachment, Plan, Response, Unset
from tidewire._chain import Chain, Layers
from tidewire._loop import LoopPort, port_of
from tidewire._peer import Peer
from tidewire.address import is_cluster, parse_addresses
from tidewire.codes import Errno
from tidewire.coding import Coding
from tidewire.errors import RpcError
from tidewire.hooks import Call
from tidewire.options import ChannelOptions
from tidewire.service import MethodInfo
from tidewire.trace import Trace

if TYPE_CHECKING:
    from tidewire._cluster import Cluster

__all__ = ["AsyncChannel", "AsyncUnaryMethod"]

Req = TypeVar("Req")
Res = TypeVar("Res")

_lib: Final = _core.lib


class AsyncChannel:
    """A way to one server, or to a cluster of them, for the tasks of one or more
    asyncio loops.

    Connects at the first call, and again after a connection failed.  Use it in
    `async with`, or await aclose().
    """

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
        self._layers: Final = Layers(self.options.hooks)
        self._ports: Final[list[LoopPort]] = []
        self._cluster: Cluster | None = None
        if is_cluster(address):
            from tidewire._cluster import open_cluster

            self._cluster = open_cluster(address, self.options, AsyncChannel)
        else:
            self._peer: Final = Peer(parse_addresses(address), self.options)
        self._closed = False

    @property
    def address(self) -> str:
        """The server's addresses, as "host:port" or "unix:/path", commas between."""
        return self._peer.text if self._cluster is None else self._cluster.name

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
        self._close()
        # Their results come in the next turns of the loop.
        await asyncio.sleep(0)

    def _close(self) -> None:
        self._closed = True
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
        if not getattr(self, "_closed", True):
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
    ) -> Any:
        plan = self._plan
        deadline_ns = plan.deadline_ns(timeout)
        peer = self._peer.id or await self._resolved(deadline_ns)
        port = self._channel._port()
        future: asyncio.Future[Any] = port.loop.create_future()
        call, cookie = port.pending.submit(
            peer,
            plan,
            plan.packed(request, *beside),
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
            raise
        finally:
            del future  # it holds the error, whose traceback holds this frame

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
