"""The blocking face of a client: channels and the calls made on them."""

import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, Unpack

from tidewire import _core
from tidewire._attempts import Attempts, Lone, Try
from tidewire._call import UNSET, Attachment, Plan, Response, Unset
from tidewire._chain import Chain, Layers
from tidewire._lend import LEND_BYTES
from tidewire._peer import Peer
from tidewire.address import is_cluster, parse_addresses
from tidewire.coding import Coding
from tidewire.errors import ClosedError, Phase, RpcError
from tidewire.hooks import Call
from tidewire.options import CallOptions, ChannelOptions, check_changes
from tidewire.service import MethodInfo
from tidewire.trace import Trace

if TYPE_CHECKING:
    from concurrent.futures import Future

    from tidewire._cluster import Cluster, View
    from tidewire._completion import CallFuture

__all__ = ["Channel", "UnaryMethod"]

Req = TypeVar("Req")
Res = TypeVar("Res")

_lib: Final = _core.lib
_ffi: Final = _core.ffi
_tw_call: Final = _core.lib.tw_call

_SCRATCH: Final = 4096
"""Answers up to this many bytes are copied to the caller's own memory, which
saves the call that gives a block back."""


class _Buffers(threading.local):
    """Where this thread's calls put their results.  A stack: a signal handler
    may call while a call waits."""

    def __init__(self) -> None:
        self.free: list[tuple[Any, Any, bool]] = []

    def make(self) -> tuple[Any, Any, bool]:
        # Only the main thread runs signal handlers.
        interruptible = threading.current_thread() is threading.main_thread()
        return _ffi.new("tw_event *"), _ffi.new("char[]", _SCRATCH), interruptible


_buffers: Final = _Buffers()


def _abandon(result: Any, scratch: Any) -> None:
    """Ends a call whose wait was interrupted for good; it may be over."""
    if result.id:
        _lib.tw_cancel(result.id)
        while _lib.tw_wait(result.id, 0, scratch, _SCRATCH, result) == -4:
            pass
    _give_back(result)


def _give_back(result: Any) -> None:
    if result.block:
        _lib.tw_release(result.block)
        result.block = _core.NULL


class Channel:
    """A way to one server, or to a cluster of them, for blocking callers in any
    number of threads.

    Connects at the first call, and again after a connection failed.  Use it in
    `with`, or close() it.
    """

    _origin: "Channel | None" = None
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
        self._cluster: Cluster | None = None
        self._view: View | None = None
        self._closing: Final = threading.Event()
        self._open(address)
        self._closed = False

    def _open(self, address: str) -> None:
        if is_cluster(address):
            from tidewire._cluster import open_cluster

            self._cluster = open_cluster(address, self.options, Channel)
        else:
            self._peer = Peer(parse_addresses(address), self.options)
            checked = self.options.health_check is not None
            self._lone = Lone(self._peer.text, self._peer, checked)

    @property
    def address(self) -> str:
        """The server's addresses, as "host:port" or "unix:/path", commas between."""
        return self._peer.text if self._cluster is None else self._cluster.name

    def with_options(self, **changes: Unpack[CallOptions]) -> "Channel":
        """This channel with other options for the calls made by what it gives:

            patient = StoreClient(channel.with_options(timeout=30.0, max_retry=0))

        The connections and what is known of the servers are shared.  It costs
        little, need not be closed, and is of no use once the channel is closed.
        Raises OptionError, TypeError for what ChannelOptions does not take."""
        check_changes(changes)
        view: Channel = object.__new__(type(self))
        vars(view).update(vars(self), options=replace(self.options, **changes))
        view._layers = Layers(view.options.hooks)
        view._origin = self._origin or self
        if self._cluster is not None:
            from tidewire._cluster import view_of

            view._view = view_of(self._view, changes)
        return view

    def unary(self, info: MethodInfo[Req, Res]) -> "UnaryMethod[Req, Res]":
        """A method to call without a generated client."""
        if self._cluster is not None:
            from tidewire._cluster_calls import method

            return method(self, info)
        kind = HookedMethod if self.options.hooks else UnaryMethod
        return kind(self, info)

    def close(self) -> None:
        """Ends calls under way with Cancelled; a second call changes nothing.

        Waits for the futures' callbacks: none runs once it has returned, unless
        a callback itself closes the channel."""
        if self._origin is not None:
            return  # the channel that this is a view of closes them
        for peer in self._close():
            if peer.has_futures:
                from tidewire import _completion

                _completion.settle(peer)

    def _close(self) -> list[Peer]:
        """The servers' handles."""
        self._closed = True
        self._closing.set()
        if self._cluster is not None:
            return [channel._peer for channel in self._cluster.close()]
        self._peer.close()
        return [self._peer]

    def __enter__(self) -> "Channel":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._origin is None and not getattr(self, "_closed", True):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, 2, source=self)
            self._close()  # wherever this runs, it may not wait

    def __repr__(self) -> str:
        return f"<tidewire.Channel to {self.address}>"


class UnaryMethod(Generic[Req, Res]):
    """A method of a blocking client: call it, or use .call and .future."""

    def __init__(self, channel: Channel, info: MethodInfo[Req, Res]) -> None:
        _core.open()
        self._peer: Final = channel._peer
        self._plan: Final = Plan(info, channel.options, channel.address, channel._peer)
        self._calls: Final = channel._lone.calls
        self._bind(channel, info, self._plan.response)

    def _bind(
        self,
        channel: Channel,
        info: MethodInfo[Req, Res],
        full: Callable[[Any], Any],
    ) -> None:
        self._channel = channel  # keeps it open
        self.info = info
        self._full = full

    def __call__(
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
        _take: "Callable[[Any], Any] | None" = None,
        _again: int = 0,
    ) -> Res:
        """Calls and waits for the answer's message.

        timeout: seconds, None for ever; left out, the channel's.
        ignore_eovercrowded: send it although max_unwritten is reached.
        coding: how the request travels; None: the channel's.  trace: the ids
        that brpc's rpcz follows.  key: for balancers that hash, 0 to 2**32 - 1.
        Raises RpcError (DeadlineExceeded, Unavailable, ...).  Ctrl-C interrupts
        it and ends the call.
        """
        plan = self._plan
        if not _again:
            self._calls.begun += 1
        if (
            plan.bare
            and coding is None
            and attachment is None
            and metadata is None
            and request_id is None
            and log_id is None
            and trace is None
            and not ignore_eovercrowded
            and not _again
        ):
            body = plan.encode(request)
            extra, keep = plan.bare_extra
            if len(body) >= LEND_BYTES:
                extra, keep = plan.lent_extra(body)
        else:
            body, extra, keep = plan.packed(
                request,
                attachment,
                metadata,
                request_id,
                log_id,
                ignore_eovercrowded,
                coding,
                trace,
                again=_again,
            )
        deadline_ns = plan.deadline_ns(timeout)
        peer = self._peer.id or self._resolved(deadline_ns)
        free = _buffers.free
        buffers = free.pop() if free else _buffers.make()
        result, scratch, interruptible = buffers
        result.id = 0
        try:
            code = _tw_call(
                peer,
                plan.index,
                body,
                len(body),
                extra,
                deadline_ns,
                interruptible,
                scratch,
                _SCRATCH,
                result,
            )
            while code == -4:  # EINTR: signal handlers have run by now
                code = _lib.tw_wait(result.id, interruptible, scratch, _SCRATCH, result)
                if code == -_lib.TW_STALE:
                    # A signal's handler forked, and this is the child.
                    result.id = 0
                    raise _core.forked("the call")
        except BaseException:
            _abandon(result, scratch)
            raise
        finally:
            if keep:
                _core.let_go(keep)
        try:
            if code >= 0 and _take is None:
                return plan.decoded(scratch, code, result)
            reply: Res = self._outcome(peer, code, result, _take or plan.message)
            return reply
        except RpcError as error:
            if _again or not self._channel.options.max_retry:
                raise
            attempts = self._after(error, deadline_ns)
            if attempts is None:
                raise
        finally:
            if code < 0:
                _give_back(result)
            free.append(buffers)
        return self._go_on(
            attempts,
            request,
            attachment=attachment,
            metadata=metadata,
            request_id=request_id,
            log_id=log_id,
            ignore_eovercrowded=ignore_eovercrowded,
            coding=coding,
            trace=trace,
            _take=_take,
        )

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

    def _go_on(self, attempts: Attempts, request: Req, **how: Any) -> Res:
        """The attempts after the first."""
        take = how["_take"]
        while True:
            one = attempts.next()
            if one.pause:
                self._channel._closing.wait(one.pause)
            try:
                # Not a subclass's, which has its hooks around all of them.
                reply: Any = UnaryMethod.__call__(
                    self, request, timeout=attempts.left(), _again=one.kind, **how
                )
            except RpcError as error:
                if attempts.failed(one, error):
                    raise
            except ClosedError:
                raise attempts.closed() from None
            else:
                answer: Any = reply if take is None else attempts.told(reply)
                return answer  # type: ignore[no-any-return]

    def _outcome(
        self, peer: int, code: int, result: Any, take: Callable[[Any], Any]
    ) -> Any:
        """What a call came to that brought more, or less, than a message."""
        if code < 0 and code != -_lib.TW_RICH:
            if code == -_lib.TW_STALE:
                raise ClosedError(f"{self._channel!r} is closed")
            text = _core.text_of(-code)
            raise self._plan.local_error(-code, text, Phase.NONE)
        try:
            return take(result)
        except RpcError as error:
            self._peer.failed(peer, error)
            raise

    def _resolved(self, deadline_ns: int) -> int:
        left = (deadline_ns - time.monotonic_ns()) / 1e9 if deadline_ns else None
        return self._peer.resolve(left if left is None else max(left, 0))

    def call(
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
        reply: Any = self(
            request,
            timeout=timeout,
            attachment=attachment,
            metadata=metadata,
            request_id=request_id,
            log_id=log_id,
            ignore_eovercrowded=ignore_eovercrowded,
            coding=coding,
            trace=trace,
            key=key,
            _take=self._full,
        )
        response: Response[Res] = reply
        return response

    def future(
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
    ) -> "Future[Res]":
        """Sends the call and returns at once; the future's result is the
        answer's message.  cancel() ends the call.  Costs no thread per call."""
        return self._start(
            request,
            False,
            timeout,
            metadata,
            attachment=attachment,
            request_id=request_id,
            log_id=log_id,
            ignore_eovercrowded=ignore_eovercrowded,
            coding=coding,
            trace=trace,
            key=key,
        )

    def call_future(
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
    ) -> "Future[Response[Res]]":
        """The same, and the result has the answer's attachment, metadata, peer,
        time and attempts too."""
        return self._start(
            request,
            True,
            timeout,
            metadata,
            attachment=attachment,
            request_id=request_id,
            log_id=log_id,
            ignore_eovercrowded=ignore_eovercrowded,
            coding=coding,
            trace=trace,
            key=key,
        )

    def _start(
        self,
        request: Req,
        full: bool,
        timeout: "float | Unset | None",
        metadata: Mapping[str, str] | None,
        *,
        attachment: Attachment | None = None,
        request_id: str | None = None,
        log_id: int | None = None,
        ignore_eovercrowded: bool = False,
        coding: Coding | None = None,
        trace: Trace | None = None,
        key: int | None = None,
        finish: "Callable[..., Any] | None" = None,
        again: int = 0,
    ) -> "CallFuture[Any]":
        from tidewire import _completion

        self._peer.has_futures = True
        if not again:
            self._calls.begun += 1
        plan = self._plan
        deadline_ns = plan.deadline_ns(timeout)
        peer = self._peer.id or self._resolved(deadline_ns)
        beside = (
            attachment,
            metadata,
            request_id,
            log_id,
            ignore_eovercrowded,
            coding,
            trace,
        )
        retry = None
        if not again and self._channel.options.max_retry:
            retry = (self._goes_on, peer, deadline_ns, request, full, beside)
        future = _completion.submit(
            peer,
            plan,
            plan.packed(request, *beside, again=again),
            deadline_ns,
            full,
            finish,
            retry,
        )
        if self._peer.has_names:

            def look(ended: "Future[Res]") -> None:
                if not ended.cancelled():
                    self._peer.failed(peer, ended.exception())

            future.add_done_callback(look)
        return future

    def _goes_on(
        self,
        future: "CallFuture[Any]",
        error: RpcError,
        peer: int,
        deadline_ns: int,
        request: Req,
        full: bool,
        beside: tuple[Any, ...],
    ) -> bool:
        """Whether a future's call is tried again, and so has not ended."""
        from tidewire import _completion
        from tidewire._course import Course

        self._peer.failed(peer, error)
        attempts = self._after(error, deadline_ns)
        if attempts is None:
            return False
        plan = self._plan

        def send(left: float | None, one: Try) -> "Future[Any]":
            ends_ns = plan.deadline_ns(left)
            peer = self._peer.id or self._resolved(ends_ns)
            packed = plan.packed(request, *beside, again=one.kind)
            return _completion.submit(peer, plan, packed, ends_ns, full, None, None)

        Course(future, attempts, send).go_on()
        return True


class HookedMethod(UnaryMethod[Req, Res]):
    """A method of a channel with hooks."""

    def _chain(self, metadata: Mapping[str, str] | None) -> Chain:
        call = Call(
            self.info.full_name,
            peer=self._channel.address,
            metadata=dict(metadata or {}),
        )
        return Chain(self._channel._layers, call, time.monotonic_ns())

    def __call__(
        self,
        request: Req,
        *,
        metadata: Mapping[str, str] | None = None,
        _take: "Callable[[Any], Any] | None" = None,
        **how: Any,
    ) -> Res:
        chain = self._chain(metadata)
        reply: Any
        try:
            chain.start()
            chain.request(request)
            fields = chain.call.metadata or None
            reply = super().__call__(request, metadata=fields, _take=_take, **how)
            chain.reply(reply if _take is None else reply.message)
        except BaseException as error:
            chain.close(error)
            raise
        chain.close(None)
        answer: Res = reply
        return answer

    def _start(
        self,
        request: Req,
        full: bool,
        timeout: "float | Unset | None",
        metadata: Mapping[str, str] | None,
        **how: Any,
    ) -> "CallFuture[Any]":
        chain = self._chain(metadata)
        try:
            chain.start()
            chain.request(request)
            fields = chain.call.metadata or None
            finish = partial(chain.finish, full=full)
            return super()._start(request, full, timeout, fields, finish=finish, **how)
        except BaseException as error:
            chain.close(error)
            raise
