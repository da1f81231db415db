"""What one call has tried, and what comes next.

Decides and never waits.
"""

import time
from collections.abc import Collection
from dataclasses import replace
from typing import Any, Final, Protocol

from tidewire import _core
from tidewire._budget import Budget, Calls
from tidewire._call import Response
from tidewire._counters import Counter
from tidewire.codes import Errno
from tidewire.context import outer_deadline
from tidewire.errors import (
    Attempt,
    ClosedError,
    Phase,
    RpcError,
    attempt_of,
    from_number,
)
from tidewire.node import Node
from tidewire.options import ChannelOptions
from tidewire.retry import BackupPolicy
from tidewire.service import MethodInfo

__all__ = ["BACKUP", "BUSY", "RETRY", "Attempts", "Lone", "Server", "Target", "Try"]

BUSY: Final = {Errno.ELIMIT, Errno.EOVERCROWDED}
"""Tried again only on another server: the one that says so has enough to do."""
RETRY: Final = _core.lib.TW_RETRY
BACKUP: Final = _core.lib.TW_BACKUP
"""What an attempt is that is not the call's first; as tw_extra's `again`."""
_LEAST_LEFT: Final = 0.001
"""Seconds until the deadline with which an attempt is still worth while."""


class Server(Protocol):
    """Whom an attempt goes to."""

    @property
    def node(self) -> Node: ...

    @property
    def owner(self) -> Any:
        """What its channel's calls have in common."""


class Target(Protocol):
    """What a channel leads to: one server, or several."""

    calls: Calls
    retries: Budget
    backups: Budget

    def pick(self, key: int | None, tried: Collection[Node], now_us: int) -> Any:
        """The Server for an attempt.  Raises RpcError when there is none."""

    def has_other(self, tried: Collection[Node], now_us: int) -> bool:
        """Whether a server is left that was not tried."""
        ...

    def helps(self, error: RpcError, tried: Collection[Node], now_us: int) -> bool:
        """Whether an attempt after one that failed so could go better here."""
        ...

    def ended(
        self,
        server: Any,
        error: RpcError | None,
        judged: bool,
        *,
        began_us: int,
        retried: int,
        max_retry: int,
        timeout_us: int,
    ) -> None:
        """An attempt is over.  judged: it says something of the server."""


class Lone:
    """A channel's only server."""

    def __init__(self, address: str, owner: Any, checked: bool) -> None:
        """checked: whether health checks find it again when it is lost."""
        self.node: Final = Node(address=address)
        self.owner: Final = owner
        self._checked: Final = checked
        self.calls = Calls()
        self.retries = Budget(self.calls)
        self.backups = Budget(self.calls)

    def pick(self, key: int | None, tried: Collection[Node], now_us: int) -> "Lone":
        return self

    def has_other(self, tried: Collection[Node], now_us: int) -> bool:
        return False

    def helps(self, error: RpcError, tried: Collection[Node], now_us: int) -> bool:
        # A connection that is lost stays so until a check finds the server again.
        return error.number not in BUSY and (
            error.phase is Phase.PEER or not self._checked
        )

    def ended(
        self, server: Any, error: RpcError | None, judged: bool, **_: int
    ) -> None:
        pass


class Try:
    """One attempt under way."""

    __slots__ = ("began_us", "kind", "number", "pause", "server")

    def __init__(
        self, server: Any, began_us: int, number: int, kind: int, pause: float = 0.0
    ) -> None:
        self.server = server
        self.began_us = began_us
        self.number = number
        """0: the call's first."""
        self.kind = kind
        """0, RETRY or BACKUP."""
        self.pause = pause
        """Seconds to wait before it."""


class Attempts:
    """One call.  next(), and for what it gives failed(), succeeded() or
    given_up()."""

    def __init__(
        self,
        target: Target,
        info: MethodInfo[Any, Any],
        options: ChannelOptions,
        timeout: float | None,
        key: int | None = None,
    ) -> None:
        self._target: Final = target
        self._info: Final = info
        self._options: Final = options
        self._key: Final = key
        self._began = time.monotonic()
        self._timeout: Final = timeout
        self._deadline = None if timeout is None else self._began + timeout
        outer = outer_deadline()
        if outer is not None and (self._deadline is None or outer < self._deadline):
            self._deadline = outer
        self._tried: list[Node] = []
        self._begun = 0
        self._next: Try | None = None
        self.past: list[Attempt] = []
        """Those that failed."""

    def left(self) -> float | None:
        """Seconds until the deadline, over 0; None: there is none."""
        if self._deadline is None:
            return None
        return max(self._deadline - time.monotonic(), 1e-6)

    def next(self) -> Try:
        """The first, or the next after failed() has said that there is one.  Raises
        RpcError when nobody can be called."""
        one, self._next = self._next, None
        if one is None:
            try:
                one = self._pick(None)
            except RpcError as error:
                self.complete(error)
                raise
            except ClosedError:
                if not self.past:
                    raise
                raise self.closed() from None
        self._begun += 1
        return one

    def _pick(self, past: RpcError | None) -> Try:
        """past: how the attempt before has failed."""
        now_us = time.monotonic_ns() // 1000
        server = self._target.pick(self._key, self._tried, now_us)
        if past is None:
            return Try(server, now_us, self._begun, RETRY if self._begun else 0)
        pause = self._options.retry.pause(past, self._tried.count(server.node))
        return Try(server, now_us, self._begun, RETRY, pause)

    def follows(self, error: RpcError) -> bool:
        """The same as failed(), of a call whose first attempt was made without
        this: it has failed so."""
        now_us = time.monotonic_ns() // 1000
        self._began -= error.elapsed or 0.0
        self._begun = 1
        first = Try(self._target.pick(None, (), now_us), now_us, 0, 0)
        return not self.failed(first, error)

    def backup(self, others: Collection[Try]) -> Try | None:
        """An attempt beside those under way; None: it may not be, or nobody is
        left for it."""
        left = self.left()
        if self._begun > self._options.max_retry or (
            left is not None and left < _LEAST_LEFT
        ):
            return None
        policy = self._options.backup
        assert isinstance(policy, BackupPolicy)
        now_us = time.monotonic_ns() // 1000
        tried = [*self._tried, *(other.server.node for other in others)]
        if not self._target.has_other(tried, now_us):
            return None
        if not self._target.backups.spend(policy.max_ratio):
            return None
        try:
            server = self._target.pick(self._key, tried, now_us)
        except RpcError:
            return None
        self._begun += 1
        return Try(server, now_us, self._begun - 1, BACKUP)

    def failed(self, one: Try, error: RpcError) -> bool:
        """Whether nothing is to follow: the error has the facts of all attempts
        then.  (Raised here it would hold itself, by this frame.)"""
        self.note(one, error)
        if self._again(error, one.server):
            self._tried.append(one.server.node)
            try:
                following = self._pick(error)
            except (RpcError, ClosedError):
                return False  # next() says why
            left = self.left()
            if left is None or following.pause < left - _LEAST_LEFT:
                self._next = following
                return False
            self._end(following, None, judged=False)
        self.complete(error)
        return True

    def note(self, one: Try, error: RpcError) -> None:
        """It has failed."""
        self._end(one, error)
        self.past.append(attempt_of(error, one.server.node.address))

    def succeeded(self, one: Try) -> None:
        self._end(one, None)
        if one.kind == BACKUP:
            self._count("won_backups", "Backups whose answer came first")

    def given_up(self, one: Try) -> None:
        """The caller has gone: the server is not to be judged by it."""
        self._end(one, None, judged=False)

    def _again(self, error: RpcError, server: Server) -> bool:
        options = self._options
        if self._begun > options.max_retry or not options.retry.retries(
            error, self._info
        ):
            return False
        left = self.left()
        if left is not None and left < _LEAST_LEFT:
            return False
        now_us = time.monotonic_ns() // 1000
        if not self._target.helps(error, [*self._tried, server.node], now_us):
            return False
        policy = options.retry
        if self._target.retries.spend(policy.budget_share, policy.budget_floor):
            return True
        self._count("refused_retries", "Retries that the budget did not allow")
        return False

    def _count(self, what: str, help: str) -> None:
        Counter(
            f"tidewire_client_{what}",
            help,
            service=self._info.service,
            method=self._info.name,
        ).add()

    def _end(self, one: Try, error: RpcError | None, judged: bool = True) -> None:
        timeout = self._timeout
        self._target.ended(
            one.server,
            error,
            judged,
            began_us=one.began_us,
            retried=one.number,
            max_retry=self._options.max_retry,
            timeout_us=0 if timeout is None else int(timeout * 1e6),
        )

    def closed(self) -> RpcError:
        """What a call comes to whose channel was closed between two attempts."""
        return self._given_up("the channel was closed")

    def cancelled(self) -> RpcError:
        """What it comes to when its caller cancels it."""
        return self._given_up("the call was cancelled")

    def _given_up(self, why: str) -> RpcError:
        error = from_number(int(Errno.ECANCELED), why)
        self.complete(error)
        return error

    def told(self, response: Response[Any]) -> Response[Any]:
        """An answer with the facts of the whole call."""
        if self._begun == 1:
            return response
        return replace(
            response,
            attempts=self._begun,
            past=tuple(self.past),
            elapsed=time.monotonic() - self._began,
        )

    def complete(self, error: RpcError) -> None:
        """The facts of the whole call."""
        error._past = tuple(self.past)
        error.attempts = max(1, self._begun)
        error.elapsed = time.monotonic() - self._began
        if self._deadline is not None:
            error.limit = self._deadline - self._began
        if error.method is None:
            error.method = self._info.full_name
