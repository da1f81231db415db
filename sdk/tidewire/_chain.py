"""The hooks of one call, in their order.  Decides nothing and never waits."""

import time
from collections.abc import Sequence
from typing import Any, Final

from tidewire.codes import Errno
from tidewire.errors import RpcError
from tidewire.hooks import Call, Hook, Outcome

__all__ = ["Chain", "Layers"]

_monotonic_ns: Final = time.monotonic_ns
# What Outcome(...) does, without a call in Python.
_tuple: Final = tuple.__new__


def _number_of(error: BaseException) -> int:
    if isinstance(error, RpcError) and error.number != -1:
        return error.number
    return int(Errno.EINTERNAL)


class Layers:
    """The hooks of a server or a channel, looked up once: what none of them
    overrides costs no call anything."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        def own(hook: Hook, name: str) -> Any:
            method = getattr(hook, name)
            own = getattr(method, "__func__", None) is not getattr(Hook, name)
            return method if own else None

        self.starts: Final = tuple(own(hook, "on_start") for hook in hooks)
        messages = [own(hook, "on_message") for hook in hooks]
        self.requests: Final = tuple(method for method in messages if method)
        self.replies: Final = tuple(reversed(self.requests))
        self.ends: Final = tuple(own(hook, "on_end") for hook in hooks)
        self.any_ends: Final = any(self.ends)

    def end(
        self,
        call: Call,
        started: int,
        error: BaseException | None,
        number: int | None,
        began_ns: int,
    ) -> BaseException | None:
        """Ends the first `started` hooks.  error: what the call came to, under
        `number` if that does not follow from it.  What it comes to now: the error
        of a hook replaces it for those further out."""
        if number is None:
            number = 0 if error is None else _number_of(error)
        try:
            for on_end in self.ends[started - 1 :: -1] if started else ():
                if on_end is None:
                    continue
                elapsed = (_monotonic_ns() - began_ns) / 1e9
                try:
                    on_end(call, _tuple(Outcome, (number, error, elapsed)))
                except BaseException as raised:
                    if raised is not error and raised.__context__ is None:
                        raised.__context__ = error
                    error, number = raised, _number_of(raised)
            return error
        finally:
            del error  # its traceback names this frame


class Chain:
    """The hooks of one call of a channel: which have started and must be ended."""

    __slots__ = ("_began_ns", "_layers", "_started", "call")

    def __init__(self, layers: Layers, call: Call, began_ns: int) -> None:
        """began_ns: by time.monotonic_ns()."""
        self.call: Final = call
        self._layers = layers
        self._started = 0
        self._began_ns = began_ns

    def start(self) -> None:
        """Raises what a hook raises; then only end() may follow."""
        for on_start in self._layers.starts:
            if on_start is not None:
                on_start(self.call)
            self._started += 1

    def request(self, message: Any) -> None:
        """The request passes inwards."""
        for on_message in self._layers.requests:
            on_message(self.call, message, True)

    def reply(self, message: Any) -> None:
        """The answer passes outwards."""
        for on_message in self._layers.replies:
            on_message(self.call, message, False)

    def end(
        self, error: BaseException | None, number: int | None = None
    ) -> BaseException | None:
        """As Layers.end, of those that have started and were not ended."""
        started, self._started = self._started, 0
        try:
            return self._layers.end(self.call, started, error, number, self._began_ns)
        finally:
            del error

    def close(self, error: BaseException | None) -> None:
        """end(), and raises what the call comes to if that is another error."""
        ended = self.end(error)
        try:
            if ended is not None and ended is not error:
                raise ended
        finally:
            del ended, error

    def finish(
        self, value: Any, error: BaseException | None, *, full: bool
    ) -> tuple[Any, BaseException | None]:
        """end() of a call whose result is delivered: what to deliver.  full: the
        value is a Response."""
        try:
            if error is None:
                try:
                    self.reply(value.message if full else value)
                except BaseException as raised:
                    error = raised
            return value, self.end(error)
        finally:
            del error
