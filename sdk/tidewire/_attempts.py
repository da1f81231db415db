"""What one call to a cluster has tried, and what comes next.

Decides and never waits.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tidewire.codes import Errno
from tidewire.context import outer_deadline
from tidewire.errors import Attempt, Phase, RpcError, Sent
from tidewire.node import Node
from tidewire.service import Idempotency, MethodInfo

if TYPE_CHECKING:
    from tidewire._cluster import Cluster, Member

__all__ = ["Attempts", "Budget", "may_retry"]

_ELSEWHERE: Final = {Errno.ELIMIT, Errno.EOVERCROWDED}
"""Tried again only on another server: the one that says so has enough to do."""
_RETRIED: Final = {
    *_ELSEWHERE,
    Errno.EFAILEDSOCKET,
    Errno.EEOF,
    Errno.EHOSTDOWN,
    Errno.ELOGOFF,
    Errno.ETIMEDOUT,
    Errno.ENOENT,
    Errno.EPIPE,
    Errno.ENODATA,
    Errno.ECONNREFUSED,
    Errno.ECONNRESET,
    # Not brpc's: of several servers another may be reached.
    Errno.ENETUNREACH,
    Errno.EHOSTUNREACH,
}
_UNRUN: Final = {Errno.ELIMIT, Errno.ELOGOFF}
"""Of what a server may answer: the call was not run."""
_SAFE: Final = {Idempotency.IDEMPOTENT, Idempotency.NO_SIDE_EFFECTS}
_PAUSE: Final = 0.01
"""Seconds before the same server is tried again; doubles, and chance shortens it
to as little as its half."""


def may_retry(error: RpcError, info: MethodInfo[Any, Any]) -> bool:
    """Whether another attempt could help and do no harm."""
    if error.number not in _RETRIED:
        return False
    if error.phase is Phase.PEER:
        return error.number in _UNRUN
    return error.sent is Sent.NONE or info.idempotency in _SAFE


class Budget:
    """Keeps retries from multiplying an overload: within the last `window`
    seconds as many as a share of the calls, and some in any case."""

    SHARE: Final = 0.1
    FLOOR: Final = 10.0
    """Retries/s."""
    WINDOW: Final = 10
    """Seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._second = 0
        # Of each of the last seconds, the newest last: calls, retries.
        self._calls = [0] * self.WINDOW
        self._retries = [0] * self.WINDOW

    def _turn(self) -> None:
        now = int(self._clock())
        gone = min(now - self._second, self.WINDOW)
        if gone > 0:
            self._calls = self._calls[gone:] + [0] * gone
            self._retries = self._retries[gone:] + [0] * gone
            self._second = now

    def call(self) -> None:
        """A call begins."""
        self._turn()
        self._calls[-1] += 1

    def retry(self) -> bool:
        """Whether there may be one retry more, which is counted then."""
        self._turn()
        allowed = self.FLOOR * self.WINDOW + self.SHARE * sum(self._calls)
        if sum(self._retries) >= allowed:
            return False
        self._retries[-1] += 1
        return True


@dataclass(slots=True)
class _Try:
    member: "Member"
    began_us: int


class Attempts:
    """One call.  next() and then failed() or succeeded(), in turn."""

    def __init__(
        self,
        cluster: "Cluster",
        info: MethodInfo[Any, Any],
        timeout: float | None,
        key: int | None,
    ) -> None:
        self._cluster: Final = cluster
        self._info: Final = info
        self._key: Final = key
        self._began = time.monotonic()
        self._timeout: Final = timeout
        self._deadline = None if timeout is None else self._began + timeout
        outer = outer_deadline()
        if outer is not None and (self._deadline is None or outer < self._deadline):
            self._deadline = outer
        self._tried: list[Node] = []
        self._past: list[Attempt] = []
        self._now: _Try | None = None
        cluster.budget.call()

    def left(self) -> float | None:
        """Seconds until the deadline, over 0; None: there is none."""
        if self._deadline is None:
            return None
        return max(self._deadline - time.monotonic(), 1e-6)

    def next(self) -> "tuple[Member, float]":
        """Whom to call, and how many seconds to wait before.  Raises RpcError when
        nobody can be called."""
        now_us = time.monotonic_ns() // 1000
        try:
            member = self._cluster.pick(self._key, self._tried, now_us)
        except RpcError as error:
            self._complete(error)
            raise
        pause = 0.0
        if member.node in self._tried:
            pause = _PAUSE * 2 ** min(self._tried.count(member.node) - 1, 6)
            pause *= 0.5 + random.random() / 2
        self._now = _Try(member, now_us)
        return member, pause

    def failed(self, error: RpcError) -> bool:
        """Whether it is the last, and to be raised: it has the facts of all attempts
        then.  (Raised here it would hold itself, by this frame.)"""
        member = self._end(error)
        self._past.append(
            Attempt(
                peer=error.peer or member.node.address,
                number=error.number,
                message=error.message,
                phase=error.phase,
                sent=error.sent,
                elapsed=error.elapsed or 0.0,
            )
        )
        if not self._again(error, member):
            self._complete(error)
            return True
        self._tried.append(member.node)
        return False

    def succeeded(self) -> None:
        self._end(None)

    def given_up(self) -> None:
        """The caller has gone: the server is not to be judged by it."""
        self._end(None, judged=False)

    def _again(self, error: RpcError, member: "Member") -> bool:
        if len(self._past) > self._cluster.max_retry or not may_retry(
            error, self._info
        ):
            return False
        left = self.left()
        if left is not None and left < 0.001:
            return False
        now_us = time.monotonic_ns() // 1000
        others = self._cluster.has_other([*self._tried, member.node], now_us)
        if error.number in _ELSEWHERE and not others:
            return False
        return self._cluster.budget.retry()

    def _end(self, error: RpcError | None, judged: bool = True) -> "Member":
        assert self._now is not None
        now, self._now = self._now, None
        self._cluster.ended(
            now.member,
            error,
            judged,
            began_us=now.began_us,
            retried=len(self._past),
            timeout_us=0 if self._timeout is None else int(self._timeout * 1e6),
        )
        return now.member

    def _complete(self, error: RpcError) -> None:
        """The facts of the whole call."""
        error.past = tuple(self._past)
        error.attempts = max(1, len(self._past))
        error.elapsed = time.monotonic() - self._began
        if error.method is None:
            error.method = self._info.full_name
