"""A hook that fails a share of the calls."""

import random
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Final

from tidewire.errors import OptionError, from_number
from tidewire.hooks import Call, Hook
from tidewire.testing.plan import fresh_seed

__all__ = ["Failing"]


class Failing(Hook):
    """Fails calls by chance, each kind of failure for a share of them:

        hook = tw.testing.Failing({tw.Errno.ELIMIT: 0.1, tw.Errno.ELOGOFF: 0.05})
        options = tw.ServerOptions(hooks=[hook])

    The handler of a call that fails is not run.  On a server the number is
    answered; on a channel (ChannelOptions(hooks=[...])) the error is raised and
    nothing is sent.
    """

    def __init__(
        self,
        shares: Mapping[int, float],
        *,
        methods: Collection[str] | None = None,
        seed: int = 0,
        log: Callable[[str], object] = print,
    ) -> None:
        """shares: by brpc's error number, 0 to 1; 1 in all at most.  methods: full
        names, package.Service/Method; None: every method.  seed: 0: a fresh one;
        log() is told which.  Raises OptionError for numbers that cannot be."""
        if any(number == 0 or not 0 <= share <= 1 for number, share in shares.items()):
            raise OptionError(
                f"shares is {dict(shares)}; allowed: shares from 0 to 1 by error"
                " number, which is not 0"
            )
        if sum(shares.values()) > 1 + 1e-9:
            raise OptionError(
                f"shares is {dict(shares)}, {sum(shares.values())} in all; allowed: 1"
                " in all"
            )
        if isinstance(methods, str):
            raise TypeError(
                f"methods is {methods!r}; allowed: a list of full names, or None"
            )
        self._shares: Final = dict(shares)
        self._methods: Final = None if methods is None else frozenset(methods)
        self.seed: Final = seed or fresh_seed()
        self._rng: Final = random.Random(self.seed)
        self._lock: Final = threading.Lock()
        self.seen = 0
        """Calls that could have failed."""
        self.failed = 0
        """Calls that were made to fail."""
        log(f"failing {self._shares}: seed {self.seed}")

    def on_start(self, call: Call) -> None:
        if self._methods is not None and call.method not in self._methods:
            return
        with self._lock:
            self.seen += 1
            number = self._drawn()
            self.failed += number is not None
        if number is not None:
            raise from_number(int(number), f"made to fail, seed {self.seed}")

    def _drawn(self) -> int | None:
        left = self._rng.random()
        for number, share in self._shares.items():
            left -= share
            if left < 0:
                return number
        return None
