"""The blocking face of calls to a cluster, and their futures: each attempt is a
call on one of its servers."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any, Final, TypeVar

from tidewire import _core
from tidewire._attempts import Attempts
from tidewire._call import UNSET, Unset, seconds
from tidewire._cluster import Member
from tidewire._completion import CallFuture
from tidewire.channel import Channel, HookedMethod, UnaryMethod
from tidewire.errors import RpcError
from tidewire.service import MethodInfo

__all__ = ["method"]

Req = TypeVar("Req")
Res = TypeVar("Res")


class _ClusterFuture(CallFuture[Res]):
    """A call to a cluster under way: its attempts follow each other as futures of
    their own, in the thread that ends those."""

    def __init__(
        self,
        attempts: Attempts,
        send: Callable[[float | None, Member], Future[Res]],
        finish: Callable[..., Any] | None,
    ) -> None:
        """Sends the first.  Raises what no attempt could help."""
        super().__init__()
        self._generation = _core.generation
        self._attempts = attempts
        self._send = send
        self._finish = finish
        self._attempt: Future[Res] | None = None
        try:
            self._go_on()
        except RpcError as error:
            self._settle(None, error)

    def _go_on(self) -> None:
        """The next attempt, now or soon.  Raises when there is none."""
        member, pause = self._attempts.next()
        if not pause:
            self._send_to(member)
            return
        timer = threading.Timer(pause, self._unwaited, (self._send_to, member))
        timer.daemon = True
        timer.start()

    def _send_to(self, member: Member) -> None:
        try:
            if self.cancelled():
                self._attempts.given_up()
                return
            attempt = self._send(self._attempts.left(), member)
        except RpcError as error:
            self._failed(error)
        except BaseException:
            self._attempts.given_up()
            raise
        else:
            self._attempt = attempt
            if self.cancelled():
                attempt.cancel()
            attempt.add_done_callback(self._ended)

    def _ended(self, attempt: Future[Res]) -> None:
        self._attempt = None
        if attempt.cancelled():
            self._attempts.given_up()
            return
        error = attempt.exception()
        try:
            if error is None:
                self._attempts.succeeded()
                self._settle(attempt.result(), None)
            elif isinstance(error, RpcError):
                self._failed(error)
            else:
                self._attempts.given_up()
                self._settle(None, error)
        finally:
            del error

    def _failed(self, error: RpcError) -> None:
        if self._attempts.failed(error):
            self._settle(None, error)
        elif not self.cancelled():
            self._unwaited(self._go_on)

    def _unwaited(self, do: Callable[..., None], *arguments: Any) -> None:
        """Does that where nobody waits for what it raises."""
        try:
            do(*arguments)
        except Exception as error:
            self._settle(None, error.with_traceback(None))

    def _settle(self, value: Any, error: BaseException | None) -> None:
        try:
            if self._finish is not None:
                value, error = self._finish(value, error)
            if error is None:
                self.set_result(value)
            else:
                self.set_exception(error)
        except InvalidStateError:
            pass  # cancelled meanwhile
        finally:
            del error

    def cancel(self) -> bool:
        if not super().cancel():
            return False
        attempt = self._attempt
        if attempt is not None:
            attempt.cancel()
        return True


def _as_it_is(response: Any) -> Any:
    """What .call() takes: the Response that the attempt's own method has made."""
    return response


class ClusterMethod(UnaryMethod[Req, Res]):
    """A method of a channel to a cluster: each attempt is a call on one of its
    servers."""

    def __init__(self, channel: Channel, info: MethodInfo[Req, Res]) -> None:
        assert channel._cluster is not None
        self._bind(channel, info, _as_it_is)
        self._cluster: Final = channel._cluster

    def __call__(
        self,
        request: Req,
        *,
        timeout: "float | Unset | None" = UNSET,
        key: int | None = None,
        _take: "Callable[[Any], Any] | None" = None,
        **how: Any,
    ) -> Res:
        attempts = self._cluster.begin(self.info, self._timeout(timeout), key)
        self._cluster.wait(attempts)
        while True:
            member, pause = attempts.next()
            try:
                if pause:
                    time.sleep(pause)
                method: UnaryMethod[Req, Res] = member.method(self.info)
                call: Any = method if _take is None else method.call
                reply: Any = call(request, timeout=attempts.left(), **how)
            except RpcError as error:
                if attempts.failed(error):
                    raise
            except BaseException:
                attempts.given_up()
                raise
            else:
                attempts.succeeded()
                answer: Res = reply if _take is None else _take(reply)
                return answer

    def _timeout(self, timeout: "float | Unset | None") -> float | None:
        return self._channel.options.timeout if timeout is UNSET else seconds(timeout)

    def future(
        self,
        request: Req,
        *,
        timeout: "float | Unset | None" = UNSET,
        key: int | None = None,
        _finish: "Callable[..., Any] | None" = None,
        **how: Any,
    ) -> Future[Res]:
        self._channel._has_futures = True
        attempts = self._cluster.begin(self.info, self._timeout(timeout), key)
        self._cluster.wait(attempts)

        def send(left: float | None, member: Member) -> Future[Res]:
            method: UnaryMethod[Req, Res] = member.method(self.info)
            member.channel._has_futures = True
            return method.future(request, timeout=left, **how)

        return _ClusterFuture(attempts, send, _finish)


class HookedClusterMethod(HookedMethod[Req, Res], ClusterMethod[Req, Res]):
    """The same of a channel with hooks, around all attempts together."""


def method(channel: Channel, info: MethodInfo[Req, Res]) -> UnaryMethod[Req, Res]:
    """A method of a channel to a cluster."""
    kind = HookedClusterMethod if channel.options.hooks else ClusterMethod
    return kind(channel, info)
