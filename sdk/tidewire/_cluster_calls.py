"""The blocking face of calls to a cluster, and their futures: each attempt is a
call on one of its servers."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from tidewire import _core
from tidewire._attempts import Attempts, Try
from tidewire._call import UNSET, Unset, seconds
from tidewire._completion import CallFuture
from tidewire._course import Course
from tidewire.channel import Channel, HookedMethod, UnaryMethod
from tidewire.errors import ClosedError, RpcError
from tidewire.retry import BackupPolicy
from tidewire.service import MethodInfo

__all__ = ["method"]

Req = TypeVar("Req")
Res = TypeVar("Res")


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
        self._view: Final = channel._view

    def __call__(
        self,
        request: Req,
        *,
        timeout: "float | Unset | None" = UNSET,
        metadata: Mapping[str, str] | None = None,
        key: int | None = None,
        _take: "Callable[[Any], Any] | None" = None,
        **how: Any,
    ) -> Res:
        backup = self._backup()
        if backup is not None:
            return self._with_backup(
                backup, request, timeout, metadata, key, _take, how
            )
        attempts = self._begin(timeout, key)
        while True:
            one = attempts.next()
            if one.pause:
                self._channel._closing.wait(one.pause)
            try:
                method: UnaryMethod[Req, Res] = one.server.method(self.info, self._view)
                reply: Any = method(
                    request,
                    timeout=attempts.left(),
                    metadata=metadata,
                    key=key,
                    _take=None if _take is None else method._full,
                    _again=one.kind,
                    **how,
                )
            except RpcError as error:
                if attempts.failed(one, error):
                    raise
            except ClosedError:
                attempts.given_up(one)
                if not attempts.past:
                    raise
                raise attempts.closed() from None
            except BaseException:
                attempts.given_up(one)
                raise
            else:
                attempts.succeeded(one)
                answer: Res = reply if _take is None else _take(attempts.told(reply))
                return answer

    def _begin(self, timeout: "float | Unset | None", key: int | None) -> Attempts:
        options = self._channel.options
        limit = options.timeout if timeout is UNSET else seconds(timeout)
        attempts = self._cluster.begin(self.info, options, limit, key)
        self._cluster.wait(attempts)
        return attempts

    def _backup(self) -> float | None:
        """Seconds after which a call is made on a second server too."""
        policy = self._channel.options.backup
        return policy.delay(self.info) if isinstance(policy, BackupPolicy) else None

    def _with_backup(
        self,
        backup: float,
        request: Req,
        timeout: "float | Unset | None",
        metadata: Mapping[str, str] | None,
        key: int | None,
        take: "Callable[[Any], Any] | None",
        how: dict[str, Any],
    ) -> Res:
        """Two attempts at a time are futures."""
        full = take is not None
        future = self._run(backup, request, full, timeout, metadata, key, None, how)
        try:
            answer: Res = future.result()
            return answer
        except BaseException:
            future.cancel()
            raise
        finally:
            del future  # it holds the error, whose traceback holds this frame

    def _start(
        self,
        request: Req,
        full: bool,
        timeout: "float | Unset | None",
        metadata: Mapping[str, str] | None,
        *,
        key: int | None = None,
        finish: "Callable[..., Any] | None" = None,
        **how: Any,
    ) -> CallFuture[Any]:
        backup = self._backup()
        return self._run(backup, request, full, timeout, metadata, key, finish, how)

    def _run(
        self,
        backup: float | None,
        request: Req,
        full: bool,
        timeout: "float | Unset | None",
        metadata: Mapping[str, str] | None,
        key: int | None,
        finish: "Callable[..., Any] | None",
        how: dict[str, Any],
    ) -> CallFuture[Any]:
        attempts = self._begin(timeout, key)

        def send(left: float | None, one: Try) -> Future[Any]:
            method: UnaryMethod[Req, Res] = one.server.method(self.info, self._view)
            return method._start(
                request, full, left, metadata, key=key, again=one.kind, **how
            )

        future: CallFuture[Any] = CallFuture()
        future._generation = _core.generation
        future._finish = finish
        Course(future, attempts, send).start(backup)
        return future


class HookedClusterMethod(HookedMethod[Req, Res], ClusterMethod[Req, Res]):
    """The same of a channel with hooks, around all attempts together."""


def method(channel: Channel, info: MethodInfo[Req, Res]) -> UnaryMethod[Req, Res]:
    """A method of a channel to a cluster."""
    kind = HookedClusterMethod if channel.options.hooks else ClusterMethod
    return kind(channel, info)
