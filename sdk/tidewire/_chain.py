"""The hooks of one call, in their order.  Decides nothing and never waits."""

import time
from collections.abc import Sequence
from typing import Any, Final

from tidewire.codes import Errno
from tidewire.errors import RpcError
from tidewire.hooks import Call, Hook, Outcome

__all__ = ["Chain"]


def _number_of(error: BaseException | None) -> int:
    if error is None:
        return 0
    if isinstance(error, RpcError) and error.number != -1:
        return error.number
    return int(Errno.EINTERNAL)


class Chain:
    """Which hooks have started and must be ended."""

    __slots__ = ("_began_ns", "_hooks", "_started", "call")

    def __init__(self, hooks: Sequence[Hook], call: Call, began_ns: int) -> None:
        self.call: Final = call
        self._hooks = hooks
        self._started = 0
        self._began_ns = began_ns

    def start(self) -> None:
        """Raises what a hook raises; then only end() may follow."""
        for hook in self._hooks:
            hook.on_start(self.call)
            self._started += 1

    def request(self, message: Any) -> None:
        """The request passes inwards."""
        sent = self.call.context is None
        for hook in self._hooks:
            hook.on_message(self.call, message, sent)

    def reply(self, message: Any) -> None:
        """The answer passes outwards."""
        sent = self.call.context is not None
        for hook in reversed(self._hooks):
            hook.on_message(self.call, message, sent)

    def end(
        self, error: BaseException | None, number: int | None = None
    ) -> BaseException | None:
        """Ends the hooks that have started.  error: what the call came to, under
        `number` if that does not follow from it.  What it comes to now: the error
        of a hook replaces it for those further out."""
        number = _number_of(error) if number is None else number
        try:
            while self._started:
                self._started -= 1
                elapsed = (time.monotonic_ns() - self._began_ns) / 1e9
                outcome = Outcome(number=number, error=error, elapsed=elapsed)
                try:
                    self._hooks[self._started].on_end(self.call, outcome)
                except BaseException as raised:
                    if raised is not error and raised.__context__ is None:
                        raised.__context__ = error
                    error, number = raised, _number_of(raised)
            return error
        finally:
            del error  # its traceback names this frame

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
