"""The ids by which brpc's rpcz follows a call through servers."""

from dataclasses import dataclass

from tidewire.errors import OptionError

__all__ = ["Trace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Ids of a call, unsigned 64 bits.  A server passes `trace_id` on in the
    calls it makes, with a span of its own and the caller's as the parent."""

    trace_id: int
    span_id: int
    parent_span_id: int = 0
    """0: the call is the first of its trace."""

    def __post_init__(self) -> None:
        """Raises TypeError and OptionError for what is no such id."""
        for name, least in (("trace_id", 1), ("span_id", 0), ("parent_span_id", 0)):
            value = getattr(self, name)
            allowed = f"a whole number from {least} to 2**64 - 1"
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"Trace.{name} is {value!r}; allowed: {allowed}")
            if not least <= value < 2**64:
                raise OptionError(f"Trace.{name} is {value!r}; allowed: {allowed}")
