"""What is known of a server: whether calls to it are worth while now.

One for each server, whatever channels lead to it.  Decides and never waits.
"""

import random
import weakref
from typing import Any, Final, Literal, TypeAlias

from tidewire import _core
from tidewire._attempts import BUSY
from tidewire._breaker import Breaker
from tidewire._counters import Counter, Gauge
from tidewire.codes import Code, Errno
from tidewire.errors import Phase, RpcError

__all__ = ["Standing", "standing_of"]

State: TypeAlias = Literal["up", "down", "isolated"]

_DOWN_FIRST_US: Final = 100_000
_DOWN_MOST_US: Final = 3_000_000
"""How long a server that cannot be reached is passed by: doubles from the first to
the other, and chance shortens it to as little as its half."""
_TRIAL_US: Final = 1_000_000
"""How long a trial may take until there is another one."""
_UNREACHABLE: Final = {
    Errno.ECONNREFUSED,
    Errno.EHOSTDOWN,
    Errno.EHOSTUNREACH,
    Errno.ENETUNREACH,
    Errno.ENODATA,  # a channel's to a cluster
    Errno.ENOENT,
    Errno.EFAILEDSOCKET,
    Errno.ETIMEDOUT,
}
_FAILURES: Final = {
    Code.UNAVAILABLE,
    Code.DEADLINE_EXCEEDED,
    Code.INTERNAL,
    Code.DATA_LOSS,
}
"""Of a server.  Other errors are answers that a handler means."""

_all: Final[weakref.WeakValueDictionary[Any, "Standing"]] = (
    weakref.WeakValueDictionary()
)


class Standing:
    """Safe for any number of threads."""

    def __init__(self) -> None:
        self.down_until_us = 0
        """By time.monotonic_ns() / 1000: until then it gets no calls."""
        self._down_us = 0
        self._breaker: Final = Breaker()
        self._on_trial = False
        self._state: State = "up"
        self._counted = -1
        """Where its state was counted: a number of _core.generation."""

    def tried(self, now_us: int) -> None:
        """A call goes to it.  If it was not up before this is a trial: the others
        go elsewhere until that has its answer, or takes too long."""
        if self._state != "up":
            self._on_trial = True
            self.down_until_us = now_us + _TRIAL_US

    def missed(self, now_us: int) -> None:
        """It cannot be reached."""
        if now_us < self.down_until_us and not self._on_trial:
            return  # a call that began before has found the same
        self._on_trial = False
        self._down_us = min(max(2 * self._down_us, _DOWN_FIRST_US), _DOWN_MOST_US)
        pause = int(self._down_us * (0.5 + random.random() / 2))
        self.down_until_us = now_us + pause
        self._be("down")

    def ended(
        self, error: RpcError | None, breaks: bool, began_us: int, now_us: int
    ) -> None:
        """An attempt is over.  breaks: it may open the breaker."""
        if error is None or error.phase is Phase.PEER:
            # It answers.  An isolated one is let in by a trial alone: calls that
            # were under way say what was known before.
            if self._on_trial or self._state == "down":
                self._down_us = self.down_until_us = 0
                self._on_trial = False
                self._be("up")
        elif (
            error.phase in (Phase.RESOLVE, Phase.CONNECT)
            and error.number in _UNREACHABLE
        ):
            self.missed(now_us)
            return
        # Who says that it has enough to do is well.
        if not breaks or (error is not None and error.number in BUSY):
            return
        failed = error is not None and error.code in _FAILURES
        isolation = self._breaker.isolation(failed, now_us - began_us, now_us)
        if isolation:
            self.down_until_us = max(self.down_until_us, now_us + isolation)
            self._be("isolated")
            Counter(
                "tidewire_client_isolations", "Times a circuit breaker opened"
            ).add()

    # ---- metrics

    def count(self) -> None:
        """It is called: it is one of `tidewire_client_servers`."""
        if self._counted != _core.generation:
            _gauge(self._state).add(1)
            self._counted = _core.generation

    def _be(self, state: State) -> None:
        if state == self._state:
            return
        self.count()
        _gauge(self._state).add(-1)
        _gauge(state).add(1)
        self._state = state

    def __del__(self) -> None:
        if self._counted == _core.generation and not _core.ended:
            _gauge(self._state).add(-1)


def _gauge(state: State) -> Gauge:
    return Gauge(
        "tidewire_client_servers", "Servers of clusters, by what is known", state=state
    )


def standing_of(key: Any) -> Standing:
    """The one of a server; key: what makes it that one."""
    found = _all.get(key)
    if found is None:
        found = _all.setdefault(key, Standing())
    return found
