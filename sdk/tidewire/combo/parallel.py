"""The blocking face of a ParallelChannel, and its futures: each sub-call is a
future of its sub-channel."""

import threading
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, TypeVar, Unpack

from tidewire import _core
from tidewire._call import UNSET, Response, Unset, seconds
from tidewire._completion import CallFuture
from tidewire._peer import Peer
from tidewire.channel import Channel, HookedMethod, UnaryMethod
from tidewire.combo.channels import checked, named, passed_down
from tidewire.combo.fanout import FanOut, Map, Merge, Plan
from tidewire.errors import ClosedError, RpcError
from tidewire.options import CallOptions, ChannelOptions
from tidewire.service import MethodInfo

__all__ = ["ParallelChannel"]

Req = TypeVar("Req")
Res = TypeVar("Res")


class ParallelChannel(Channel):
    """A channel whose calls go to all of its sub-channels at once, and give one
    answer made of theirs.

    It is used like any channel, and may be a sub-channel itself.
    """

    def __init__(
        self,
        channels: Sequence[Channel],
        *,
        fail_limit: int | None = None,
        success_limit: int | None = None,
        map: Map | None = None,
        merge: Merge | None = None,
        owns: bool = False,
        options: ChannelOptions | None = None,
        _address: str | None = None,
    ) -> None:
        """channels: the same one may be there more than once.  fail_limit: the call
        fails when so many sub-calls have; None: when all have.  success_limit: it is
        over when so many have succeeded, and fails when they cannot any more; not
        with a fail_limit.

        map: what each sub-channel is sent, `map(i, n, method, request)`; None: the
        request.  merge: makes the answer, `merge(replies)`, in the thread that made
        the call, or of futures in one that must not wait; None: MergeFrom, in channel
        order.  owns: whether close() closes the sub-channels.

        Of the options `timeout` and `hooks` are its own: the time is that of all
        sub-calls, whatever their channels' options say.  The others are those of
        the sub-channels."""
        self._channels: Sequence[Channel] = checked(type(self), channels, Channel)
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
        self._runs: weakref.WeakSet[_Run] = weakref.WeakSet()
        self._runs_lock = threading.Lock()
        super().__init__(address, options=options)

    def _open(self, address: str) -> None:
        self._name = address

    @property
    def address(self) -> str:
        """ "parallel(...)", with those of the sub-channels."""
        return self._name

    def with_options(self, **changes: Unpack[CallOptions]) -> "ParallelChannel":
        """As Channel.with_options(): `timeout` and `hooks` are for the whole call,
        the others for the sub-calls."""
        view = super().with_options(**changes)
        assert isinstance(view, ParallelChannel)
        inner = passed_down(changes)
        if inner:
            view._channels = [one.with_options(**inner) for one in self._channels]
        return view

    def unary(self, info: MethodInfo[Req, Res]) -> UnaryMethod[Req, Res]:
        """A method to call without a generated client."""
        kind = HookedParallelMethod if self.options.hooks else ParallelMethod
        return kind(self, info)

    def _close(self) -> list[Peer]:
        self._closed = True
        self._closing.set()
        with self._runs_lock:
            runs = list(self._runs)
        for run in runs:
            run.close()
        if not self._owns:
            return []
        return [peer for channel in self._channels for peer in channel._close()]

    def __del__(self) -> None:
        # Without sub-channels of its own there is nothing to be left open.
        if self._origin is None and getattr(self, "_owns", False) and not self._closed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, 2, source=self)
            self._close()

    def __repr__(self) -> str:
        return f"<tidewire.{type(self).__name__} to {self.address}>"


class _Run:
    """The sub-calls of one call."""

    def __init__(self, fan: FanOut, future: CallFuture[Response[Any]]) -> None:
        self._fan: Final = fan
        self._future = future
        self._lock = threading.Lock()
        self._running: dict[int, Future[Any]] = {}
        self._settled = False
        future._course = self

    def start(self, begin: Callable[[int, Any], Future[Any]]) -> None:
        """begin: makes the sub-call.  Raises what is no matter of one sub-call."""
        for i, request in self._fan.requests.items():
            if self._future.done():
                break
            try:
                sub = begin(i, request)
            except RpcError as error:
                self._note(i, None, error)
                continue
            except BaseException:
                self._future.cancel()
                raise
            self._running[i] = sub
            sub.add_done_callback(partial(self._ended, i))
        if not self._fan.requests:
            self._settle(None)
        if self._future.done():
            self.cancel()  # those that were begun meanwhile

    def _ended(self, i: int, sub: Future[Any]) -> None:
        if self._future.done() or sub.cancelled():
            self._running.pop(i, None)
            return
        error = sub.exception()
        try:
            if error is None:
                self._note(i, sub.result(), None)
            elif isinstance(error, RpcError):
                self._note(i, None, error)
            else:
                self._settle(error)
        finally:
            del error
        self._running.pop(i, None)

    def _note(
        self, i: int, response: Response[Any] | None, error: RpcError | None
    ) -> None:
        with self._lock:
            was = self._fan.over
            self._fan.ended(i, response, error)
            over = self._fan.over and not was
        if over:
            self._settle(None)

    def _settle(self, error: BaseException | None) -> None:
        with self._lock:
            was, self._settled = self._settled, True
        if was:
            return
        try:
            # Not what it came to: what that is, is worked out by who wants it.
            self._future.settle(self._fan, error)
        finally:
            del error
        self._future._course = None
        self.cancel()

    def cancel(self) -> None:
        """Ends what is under way, once the future has ended."""
        if self._future.cancelled():
            with self._lock:
                error = None if self._settled else self._fan.cancelled()
            if error is not None:
                self._settle(error)  # for the hooks
        for sub in list(self._running.values()):
            sub.cancel()

    def close(self) -> None:
        """The channel is."""
        with self._lock:
            if self._fan.over:
                return
            error = self._fan.closed()
        self._settle(error)


class ParallelMethod(UnaryMethod[Req, Res]):
    """A method of a ParallelChannel."""

    def __init__(self, channel: ParallelChannel, info: MethodInfo[Req, Res]) -> None:
        self._bind(channel, info, lambda response: response)
        self._parallel: Final = channel
        self._methods: Final = [one.unary(info) for one in channel._channels]

    def __call__(
        self,
        request: Req,
        *,
        timeout: "float | Unset | None" = UNSET,
        metadata: Mapping[str, str] | None = None,
        _take: "Callable[[Any], Any] | None" = None,
        _again: int = 0,
        **how: Any,
    ) -> Res:
        future = self._run(request, timeout, metadata, None, how)
        try:
            response = future.result().reply()
        except BaseException:
            future.cancel()
            raise
        finally:
            del future  # it holds the error, whose traceback holds this frame
        answer: Res = response.message if _take is None else _take(response)
        return answer

    def _start(
        self,
        request: Req,
        full: bool,
        timeout: "float | Unset | None",
        metadata: Mapping[str, str] | None,
        *,
        finish: "Callable[..., Any] | None" = None,
        again: int = 0,
        **how: Any,
    ) -> CallFuture[Any]:
        def told(fan: Any, error: BaseException | None) -> tuple[Any, Any]:
            value = None
            try:
                if error is None:
                    try:
                        response = fan.reply()
                        value = response if full else response.message
                    except BaseException as failure:
                        error = failure.with_traceback(None)
                return (value, error) if finish is None else finish(value, error)
            finally:
                del error

        return self._run(request, timeout, metadata, told, how)

    def _run(
        self,
        request: Req,
        timeout: "float | Unset | None",
        metadata: Mapping[str, str] | None,
        finish: "Callable[..., Any] | None",
        how: dict[str, Any],
    ) -> CallFuture[Any]:
        """Its result is the FanOut, unless `finish` makes another of it."""
        channel = self._parallel
        if (channel._origin or channel)._closed:
            raise ClosedError(f"{channel!r} is closed")
        limit = channel.options.timeout if timeout is UNSET else seconds(timeout)
        end = None if limit is None else time.monotonic() + limit
        fan = channel._plan.fan(self.info, request, limit)

        def begin(i: int, request: Any) -> Future[Any]:
            left = None if end is None else max(end - time.monotonic(), 1e-6)
            return self._methods[i]._start(request, True, left, metadata, **how)

        future: CallFuture[Any] = CallFuture()
        future._generation = _core.generation
        future._finish = finish
        run = _Run(fan, future)
        with channel._runs_lock:
            channel._runs.add(run)
        run.start(begin)
        return future


class HookedParallelMethod(HookedMethod[Req, Res], ParallelMethod[Req, Res]):
    """The same of a channel with hooks, around the whole call."""
