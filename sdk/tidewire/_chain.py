"""The hooks of one call, in their order.  Decides nothing and never waits."""

import time
from collections.abc import Sequence
from typing import Any, Final

from tidewire.codes import Errno
from tidewire.errors import RpcError
from tidewire.hooks import Call, Hook, Outcome

__all__ = ["Chain", "Layers"]


def _number_of(error: BaseException) -> int:
    if isinstance(error, RpcError) and error.number != -1:
        return error.number
    return int(Errno.EINTERNAL)


class Layers:
    """The hooks of a server or a channel, looked up once: what none of them
    overrides costs no call anything."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        def own(hook: Hook, name: str) -> bool:
            method = getattr(hook, name)
            return getattr(method, "__func__", None) is not getattr(Hook, name)

        self.starts: Final = tuple(hook.on_start for hook in hooks)
        self.requests: Final = tuple(
            hook.on_message for hook in hooks if own(hook, "on_message")
        )
        self.replies: Final = tuple(reversed(self.requests))
        self.ends: Final = tuple(
            hook.on_end if own(hook, "on_end") else None for hook in hooks
        )


class Chain:
    """Which hooks have started and must be ended."""

    __slots__ = ("_began_ns", "_layers", "_started", "call")

    def __init__(self, layers: Layers, call: Call, began_ns: int = 0) -> None:
        """began_ns: by time.monotonic_ns(); 0: what the call's context says."""
        self.call: Final = call
        self._layers = layers
        self._started = 0
        self._began_ns = began_ns

    def start(self) -> None:
        """Raises what a hook raises; then only end() may follow."""
        call = self.call
        for on_start in self._layers.starts:
            on_start(call)
            self._started += 1

    def request(self, message: Any) -> None:
        """The request passes inwards."""
        for on_message in self._layers.requests:
            on_message(self.call, message, self.call.context is None)

    def reply(self, message: Any) -> None:
        """The answer passes outwards."""
        for on_message in self._layers.replies:
            on_message(self.call, message, self.call.context is not None)

    def end(
        self, error: BaseException | None, number: int | None = None
    ) -> BaseException | None:
        """Ends the hooks that have started.  error: what the call came to, under
        `number` if that does not follow from it.  What it comes to now: the error
        of a hook replaces it for those further out."""
        if number is None:
            number = 0 if error is None else _number_of(error)
        ends = self._layers.ends
        try:
            while self._started:
                self._started -= 1
                on_end = ends[self._started]
                if on_end is None:
                    continue
                try:
                    on_end(self.call, Outcome(number, error, self._elapsed()))
                except BaseException as raised:
                    if raised is not error and raised.__context__ is None:
                        raised.__context__ = error
                    error, number = raised, _number_of(raised)
            return error
        finally:
            del error  # its traceback names this frame

    def _elapsed(self) -> float:
        if not self._began_ns and self.call.context is not None:
            self._began_ns = self.call.context._event()[15]
        return (time.monotonic_ns() - self._began_ns) / 1e9

    def close(self, error: BaseException | None) -> None:
        """end(), and raises what the call comes to if that is another error."""
        ended = self.end(error)
        try:
            if ended is not None and ended is not error:
                raise ended
        finally:
            del ended, error

    def finish(
        self, value: Any, error: BaseException | None
    ) -> tuple[Any, BaseException | None]:
        """end() of a call whose result is delivered: what to deliver."""
        try:
            if error is None:
                try:
                    self.reply(value)
                except BaseException as raised:
                    error = raised
            return value, self.end(error)
        finally:
            del error
