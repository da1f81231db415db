"""One call that is many: which sub-calls it has, when it is over, and what it
came to.

Decides and never waits.
"""

import enum
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from tidewire._call import Response
from tidewire.balance.balancer import whole
from tidewire.codes import Errno
from tidewire.coding import PLAIN
from tidewire.errors import OptionError, Part, Phase, RpcError, Sent, from_number
from tidewire.service import MethodInfo

__all__ = ["SKIP", "FanOut", "Map", "Merge", "Plan", "Skip"]


class Skip(enum.Enum):
    """The type of SKIP."""

    SKIP = enum.auto()


SKIP: Final = Skip.SKIP
"""What `map` gives for a sub-channel that is not to be called."""

Map: TypeAlias = Callable[[int, int, MethodInfo[Any, Any], Any], Any]
"""From (i, n, method, request) to the request for sub-channel i of n, or SKIP."""
Merge: TypeAlias = Callable[[list[Any]], Any]
"""From the answers in channel order, None where there is none, to the one that the
call gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a ParallelChannel calls."""

    channels: Sequence[str]
    """What they lead to."""
    fail_limit: int | None
    success_limit: int | None
    map: Map | None
    merge: Merge | None
    name: str = "ParallelChannel"
    """Of the class, for errors."""
    address: str = ""

    def __post_init__(self) -> None:
        kind = self.name
        for what in ("fail_limit", "success_limit"):
            value = getattr(self, what)
            if value is not None:
                limit = whole(f"{kind} {what}", value, 1, 2**31 - 1, "sub-calls")
                object.__setattr__(self, what, limit)
        if self.fail_limit is not None and self.success_limit is not None:
            raise OptionError(
                f"{kind} got fail_limit={self.fail_limit} and"
                f" success_limit={self.success_limit}; allowed: one of them"
            )
        for what in ("map", "merge"):
            value = getattr(self, what)
            if value is not None and not callable(value):
                raise TypeError(
                    f"{kind} {what} is {value!r}; allowed: a function, or None"
                )

    def fan(
        self, info: MethodInfo[Any, Any], request: Any, limit: float | None
    ) -> "FanOut":
        """A call that may take so many seconds.  Raises what `map` raises."""
        if self.merge is None and not hasattr(info.response, "MergeFrom"):
            raise TypeError(
                f"{info.full_name} gives {info.response.__qualname__}, which has no"
                f" MergeFrom; allowed: such a method if {self.name} has a `merge`"
            )
        n = len(self.channels)
        if self.map is None:
            return FanOut(self, info, dict.fromkeys(range(n), request), limit)
        mapped = {i: self.map(i, n, info, request) for i in range(n)}
        kept = {i: one for i, one in mapped.items() if one is not SKIP}
        for i, one in kept.items():
            if one is None:
                raise TypeError(
                    f"map gave None for sub-channel {i}; allowed: a"
                    f" {info.request.__qualname__}, or tidewire.SKIP"
                )
        return FanOut(self, info, kept, limit)


class FanOut:
    """One call.  ended() for each sub-call, by one thread at a time, until it is
    `over`; then reply(), which raises what it failed with."""

    def __init__(
        self,
        plan: Plan,
        info: MethodInfo[Any, Any],
        requests: dict[int, Any],
        limit: float | None,
    ) -> None:
        self._limit: Final = limit
        self._plan: Final = plan
        self._info: Final = info
        self._began: Final = time.monotonic()
        self.requests: Final = requests
        """Those of the sub-calls to be made, by the number of the sub-channel."""
        n = len(requests)
        fail, success = plan.fail_limit, plan.success_limit
        if fail is None:
            # With a success limit: as soon as it is out of reach.
            fail = n if success is None else n - min(success, n) + 1
        self.fail_limit: Final = max(1, min(fail, n))
        self._success_limit: Final = n if success is None else min(success, n)
        self._responses: dict[int, Response[Any]] = {}
        self._errors: dict[int, RpcError] = {}
        self._failed = 0
        self.over = not n
        """Whether what is under way is of no use any more."""

    def ended(
        self, i: int, response: Response[Any] | None, error: RpcError | None
    ) -> None:
        """A sub-call has; one of the two is None."""
        if self.over:
            return
        if error is None:
            assert response is not None
            self._responses[i] = response
        else:
            # Its frames hold what will hold it.
            self._errors[i] = error.with_traceback(None)
            self._failed += 1
        self._decide()

    def _decide(self) -> None:
        done = len(self._responses) + self._failed
        if self._failed >= self.fail_limit:
            self._end(Errno.ECANCELED, "enough others had failed")
        elif done == len(self.requests) or len(self._responses) >= self._success_limit:
            self._end(Errno.EPCHANFINISH, "enough others had answered")

    def _end(self, number: Errno, why: str) -> None:
        self.over = True
        for i in self.requests:
            if i not in self._responses and i not in self._errors:
                # Whether it has run is not known.
                self._errors[i] = from_number(
                    int(number),
                    f"the sub-call was cancelled: {why}",
                    method=self._info.full_name,
                    peer=self._plan.channels[i],
                    phase=Phase.READ,
                    sent=Sent.ALL,
                    elapsed=time.monotonic() - self._began,
                )

    def parts(self) -> tuple[Part, ...]:
        """What the sub-calls came to."""
        return tuple(
            Part(
                channel=name,
                response=self._responses.get(i),
                error=self._errors.get(i),
            )
            for i, name in enumerate(self._plan.channels)
        )

    def reply(self) -> Response[Any]:
        """The answer, once it is over.  Raises RpcError."""
        if not self.requests:
            raise self._told(Errno.ECANCELED, "map has skipped all sub-channels")
        if self._failed >= self.fail_limit:
            raise self._failure()
        replies = [
            self._responses[i].message if i in self._responses else None
            for i in range(len(self._plan.channels))
        ]
        try:
            message = (self._plan.merge or self._merged)(replies)
        except RpcError as error:
            error.parts = error.parts or self.parts()
            raise
        except Exception as error:
            text = f"merge has failed: {type(error).__name__}: {error}"
            raise self._told(Errno.ERESPONSE, text) from error
        return Response(
            message=message,
            attachment=memoryview(b""),
            metadata={},
            peer=None,
            coding=PLAIN,
            elapsed=time.monotonic() - self._began,
            parts=self.parts(),
        )

    def _merged(self, replies: list[Any]) -> Any:
        whole = self._info.response()
        for reply in replies:
            if reply is not None:
                whole.MergeFrom(reply)
        return whole

    def closed(self) -> RpcError:
        """What it comes to when its channel is closed meanwhile."""
        return self._given_up("the channel was closed")

    def cancelled(self) -> RpcError:
        """What it comes to when its caller cancels it."""
        return self._given_up("the call was cancelled")

    def _given_up(self, why: str) -> RpcError:
        self._end(Errno.ECANCELED, why)
        return self._told(Errno.ECANCELED, why)

    def _failure(self) -> RpcError:
        numbers = {error.number for error in self._errors.values()}
        # Those that were cancelled say nothing of what is wrong.
        numbers = numbers - {Errno.ECANCELED} or {int(Errno.ECANCELED)}
        number = min(numbers) if len(numbers) == 1 else int(Errno.ETOOMANYFAILS)
        texts = [
            f"[C{i}][E{error.number}]{error.message}"
            for i, error in sorted(self._errors.items())
        ]
        return self._told(
            number,
            f"{self._failed}/{len(self.requests)} channels failed,"
            f" fail_limit={self.fail_limit} {' '.join(texts)}",
        )

    def _told(self, number: int, text: str) -> RpcError:
        phase, sent = self._reached()
        error = from_number(
            int(number),
            text,
            method=self._info.full_name,
            peer=self._plan.address,
            phase=phase,
            sent=sent,
            elapsed=time.monotonic() - self._began,
        )
        error.limit = self._limit
        error.parts = self.parts()
        return error

    def _reached(self) -> tuple[Phase, Sent]:
        """How far it came: so that one who may call again knows whether a part of
        it may have run."""
        errors = self._errors.values()
        sent = max((error.sent for error in errors), default=Sent.NONE)
        if self._responses:
            return Phase.READ, Sent.ALL
        phases = {error.phase for error in errors}
        if len(phases) == 1:
            return phases.pop(), sent
        if not errors:
            return Phase.NONE, Sent.NONE
        return (Phase.READ if sent else Phase.CONNECT), sent
