"""When a call is tried again, and when on two servers at once."""

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tidewire.codes import Errno
from tidewire.errors import OptionError, Phase, RpcError, Sent

if TYPE_CHECKING:
    from tidewire.service import MethodInfo

__all__ = ["BackupPolicy", "RetryPolicy"]

_UNRUN: Final = {Errno.ELIMIT, Errno.ELOGOFF}
"""Of what a server may answer: the call was not run."""
_RETRIED: Final = {
    Errno.ELIMIT,
    Errno.EOVERCROWDED,
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


def _number(policy: object, name: str, most: float, allowed: str) -> None:
    """Checks a number from 0 on and stores it as a float."""
    value = getattr(policy, name)
    what = f"{type(policy).__name__}.{name} is {value!r}; allowed: {allowed}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(what)
    if math.isnan(value) or not 0 <= value <= most:
        raise OptionError(what)
    object.__setattr__(policy, name, float(value))


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Which failed attempts are followed by another, and how soon.

    Subclass it for rules of your own.  They are asked in the thread, or on the
    loop, of the call, and must not wait.
    """

    budget_share: float = 0.1
    """Retries for each call, on an average of 10 s: they shall not multiply an
    overload.  0 to 1000."""
    budget_floor: float = 10.0
    """Retries/s that there may be in any case.  0 to 1e6."""
    backoff: float = 0.01
    """Seconds before the same server is tried for the second time; doubles with
    each, and chance shortens it to as little as its half.  0 to 3600."""
    backoff_most: float = 0.64
    """Seconds: it grows no longer.  0 to 3600."""

    def __post_init__(self) -> None:
        _number(self, "budget_share", 1000, "a number from 0 to 1000")
        _number(self, "budget_floor", 1e6, "retries/s from 0 to 1e6")
        for name in ("backoff", "backoff_most"):
            _number(self, name, 3600, "seconds from 0 to 3600")

    def retries(self, error: RpcError, method: "MethodInfo[Any, Any]") -> bool:
        """Whether another attempt could help and do no harm.

        The first answer is by brpc's list of errors.  A call that may have run is
        tried again only if `method.idempotency` says that this is harmless."""
        if error.number not in _RETRIED:
            return False
        if error.phase is Phase.PEER:
            return error.number in _UNRUN
        return error.sent is Sent.NONE or method.idempotency.is_safe

    def pause(self, error: RpcError, tries: int) -> float:
        """Seconds before an attempt on a server that has been tried so often by
        this call, 0: it was not yet."""
        if not tries:
            return 0.0
        longest = min(self.backoff * 2.0 ** min(tries - 1, 32), self.backoff_most)
        return longest * (0.5 + random.random() / 2)


@dataclass(frozen=True, kw_only=True)
class BackupPolicy:
    """When a call that has no answer yet is made on a second server too; the
    first answer counts.  Subclass it for rules of your own, as RetryPolicy."""

    after: float
    """Seconds without an answer, 0 to 1e6."""
    max_ratio: float = 0.1
    """How many of the calls may have one, on an average of 10 s, so that servers
    that are all slow are not made slower.  Over 0 to 1."""

    def __post_init__(self) -> None:
        _number(self, "after", 1e6, "seconds from 0 to 1e6")
        _number(self, "max_ratio", 1, "a number over 0 and up to 1")
        if not self.max_ratio:
            raise OptionError("BackupPolicy.max_ratio is 0; allowed: over 0 to 1")

    def delay(self, method: "MethodInfo[Any, Any]") -> float | None:
        """Seconds, None: no backup.  Both servers may run the call, so there is
        one only if `method.idempotency` says that this is harmless."""
        return self.after if method.idempotency.is_safe else None
