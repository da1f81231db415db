"""Hooks: what runs around every call of a server or a channel."""

import inspect
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from tidewire.codes import Code, to_code

if TYPE_CHECKING:
    from tidewire.context import Context

__all__ = ["Call", "Hook", "Outcome", "around"]

Onion: TypeAlias = Callable[["Call"], Generator[None, "Outcome", None]]


class Call:
    """One call as its hooks see it; all hooks of the call get the same object."""

    # Class attributes until set: most calls set none of them.
    _data: dict[Any, Any] | None = None
    _metadata: dict[str, str] | None = None
    _peer = ""

    def __init__(
        self,
        method: str,
        context: "Context | None" = None,
        *,
        peer: str = "",
        metadata: dict[str, str] | None = None,
    ) -> None:
        self.method = method
        """Full name, `package.Service/Method`."""
        self.context = context
        """What the handler gets, on a server; None on a channel."""
        if context is None:
            self._peer = peer
            self._metadata = metadata

    @property
    def peer(self) -> str:
        """A server: the caller's address.  A channel: the one it was made for."""
        return self._peer if self.context is None else self.context.peer

    @property
    def metadata(self) -> dict[str, str]:
        """A channel: what is sent beside the request, to be read and changed in
        on_start and on_message.  A server: what came with it."""
        if self._metadata is None:
            came = {} if self.context is None else self.context.metadata
            self._metadata = dict(came)
        return self._metadata

    @property
    def data(self) -> dict[Any, Any]:
        """For the hooks to keep what belongs to this call, such as a span."""
        if self._data is None:
            self._data = {}
        return self._data

    def __repr__(self) -> str:
        return f"<Call of {self.method}>"


class Outcome(NamedTuple):
    """How a call ended."""

    number: int
    """brpc's error number, as the caller sees it; 0: success."""
    error: BaseException | None
    """What the handler, the call or a hook raised; None: success."""
    elapsed: float
    """Seconds since the request was received (server) or the call was made
    (channel)."""

    @property
    def code(self) -> Code:
        """The canonical status."""
        return to_code(self.number)


class Hook:
    """Base of hooks: override what you need, `def` only.

    One object serves all calls, from several threads.  Of several hooks the first
    is the outermost: on_start runs in their order, on_end in reverse; requests
    pass them in their order, answers in reverse.  What a hook raises fails the
    call as if the handler had raised it (server), or reaches the caller
    (channel); hooks whose on_start has succeeded get their on_end in any case.
    """

    def on_start(self, call: Call) -> None:
        """Before anything else.  Server: in the handler's thread or task, so
        that context variables set here are the handler's."""

    def on_message(self, call: Call, message: Any, sent: bool) -> None:
        """The request, then the answer if there is one.  sent: it goes out,
        else it came in."""

    def on_end(self, call: Call, outcome: Outcome) -> None:
        """After everything else, once."""


class _Around(Hook):
    def __init__(self, function: Onion) -> None:
        self._function: Final = function

    def on_start(self, call: Call) -> None:
        layer = self._function(call)
        try:
            next(layer)
        except StopIteration:
            raise RuntimeError(f"{self!r} has ended without a yield") from None
        call.data[self] = layer

    def on_end(self, call: Call, outcome: Outcome) -> None:
        layer = call.data.pop(self)
        try:
            layer.send(outcome)
        except StopIteration:
            return
        layer.close()
        raise RuntimeError(f"{self!r} yields a second time")

    def __repr__(self) -> str:
        return f"<around {getattr(self._function, '__qualname__', self._function)}>"


def around(function: Onion) -> Hook:
    """A hook as one layer of an onion, a function with a yield in its middle:

        @tw.around
        def timed(call):
            with tracer.span(call.method) as span:
                outcome = yield  # the layers further in, and the handler
                span.set(outcome.code.name)

    What stands before the yield is on_start, what comes after it is on_end, which
    runs whether the call went well or not; the yield itself never raises.
    """
    if not inspect.isgeneratorfunction(function):
        raise TypeError(
            f"around was given {function!r}; allowed: a function with a yield, `def`"
            " also for `async def` handlers"
        )
    return _Around(function)
