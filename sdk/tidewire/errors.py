"""Exceptions.

TidewireError (Exception)
├── RpcError                    a call failed
│   ├── Cancelled
│   ├── Unknown
│   ├── InvalidArgument         also ValueError
│   ├── DeadlineExceeded        also TimeoutError
│   ├── NotFound                also LookupError
│   ├── AlreadyExists
│   ├── PermissionDenied        also PermissionError
│   ├── ResourceExhausted
│   ├── FailedPrecondition
│   ├── Aborted
│   ├── OutOfRange              also ValueError
│   ├── Unimplemented           also NotImplementedError
│   ├── Internal
│   ├── Unavailable             also ConnectionError
│   ├── DataLoss
│   └── Unauthenticated
├── ClosedError                 a closed channel, server or call was used
├── ForkError                   an object of the parent process was used
├── OptionError                 also ValueError
│   └── AddressError
├── CodecError                  also ValueError
└── ProtocolError               bytes that are no valid message

Every RpcError carries the facts of its call.  Handlers raise the same
classes with just a message, and the number on the wire follows from the class.
"""

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tidewire._hints import hint_for
from tidewire.codes import Code, Errno, to_code, to_number

if TYPE_CHECKING:
    from tidewire._call import Response

__all__ = [
    "Aborted",
    "AddressError",
    "AlreadyExists",
    "Attempt",
    "Cancelled",
    "ClosedError",
    "CodecError",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "ForkError",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "OptionError",
    "OutOfRange",
    "Part",
    "PermissionDenied",
    "Phase",
    "ProtocolError",
    "ResourceExhausted",
    "RpcError",
    "Sent",
    "TidewireError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "from_number",
]


class Phase(enum.IntEnum):
    """Where a call ended.  The first five are the core's numbers."""

    NONE = 0
    """Nowhere yet: it failed before anything was tried."""
    CONNECT = 1
    WRITE = 2
    READ = 3
    """Waiting for the response, or reading it."""
    PEER = 4
    """The peer answered with an error."""
    HANDLER = 5
    """In the server: raised by, or while looking for, the handler."""
    RESOLVE = 6
    """Looking up the server's name."""


class Sent(enum.IntEnum):
    """How much of the last attempt's bytes the kernel took.  Only with NONE
    is it certain that the server did not run the call."""

    NONE = 0
    SOME = 1
    ALL = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try of a call that may be tried on several servers."""

    peer: str
    """Address of the server."""
    number: int
    """brpc error number, 0: success."""
    message: str
    phase: Phase
    sent: Sent
    elapsed: float
    """Seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One sub-call of a call on a ParallelChannel.  Neither response nor error: it
    was skipped."""

    channel: str
    """What the sub-channel leads to."""
    response: "Response[Any] | None" = None
    """Its answer."""
    error: "RpcError | None" = None
    """What it failed with.  ECANCELED and EPCHANFINISH: the others had decided the
    call before this one ended."""

    @property
    def skipped(self) -> bool:
        """Whether it was not made."""
        return self.response is None and self.error is None


_OUR_SIDE = (Phase.RESOLVE, Phase.CONNECT, Phase.WRITE, Phase.READ)


def attempt_of(error: "RpcError", peer: str) -> Attempt:
    """What an attempt at that server came to."""
    return Attempt(
        peer=error.peer or peer,
        number=error.number,
        message=error.message,
        phase=error.phase,
        sent=error.sent,
        elapsed=error.elapsed or 0.0,
    )


class TidewireError(Exception):
    """Root of all exceptions that Tidewire defines."""


class RpcError(TidewireError):
    """A call failed.

    `number` overrides the brpc error number that follows from the class; it
    must fit into int32 and not be 0.
    """

    code: Code = Code.UNKNOWN
    """Canonical status; fixed by the class, except in RpcError itself."""
    number: int
    """brpc error number, as on the wire."""
    message: str
    """Text of the peer, the handler or the core, unchanged."""
    method: str | None
    """Full name, `package.Service/Method`."""
    peer: str | None
    """Address of the other side."""
    phase: Phase
    sent: Sent
    elapsed: float | None
    """Seconds from the start of the call to its end."""
    limit: float | None = None
    """Seconds that the call might have taken, None: any."""
    attempts: int
    """How often the request was tried, the first time included."""
    parts: "tuple[Part, ...]" = ()
    """Of a call on a ParallelChannel: its sub-calls, in channel order."""
    _past: "tuple[Attempt, ...] | None" = None

    def __init__(
        self,
        message: str = "",
        *,
        number: int | None = None,
        method: str | None = None,
        peer: str | None = None,
        phase: Phase = Phase.NONE,
        sent: Sent = Sent.NONE,
        elapsed: float | None = None,
        attempts: int = 1,
    ) -> None:
        # Only the message is an argument: pickle and copy call the class with
        # `args` and restore the rest from __dict__.
        super().__init__(message)
        if number is None:
            number = to_number(self.code)
        elif number == 0 or not -(2**31) <= number < 2**31:
            raise ValueError(f"number is {number}; allowed: any int32 but 0 (success)")
        elif type(self) is RpcError:
            self.code = to_code(number)
        self.number = int(number)
        self.message = message
        self.method = method
        self.peer = peer
        self.phase = phase
        self.sent = sent
        self.elapsed = elapsed
        self.attempts = attempts

    @property
    def past(self) -> "tuple[Attempt, ...]":
        """Those attempts, in order; the last is what this error is about."""
        if self._past is not None:
            return self._past
        if self.peer is None or self.elapsed is None:
            return ()  # it was never a call's
        return (attempt_of(self, self.peer),)

    def __str__(self) -> str:
        facts = [f"{self.code.name} {self.number}"]
        if self.method is not None:
            facts.append(f"method {self.method}")
        if self.peer is not None:
            facts.append(f"peer {self.peer}")
        if self.phase is not Phase.NONE:
            facts.append(f"phase {self.phase.name.lower()}")
        if self.phase in _OUR_SIDE:
            facts.append(f"sent {self.sent.name.lower()}")
        if self.attempts > 1:
            facts.append(f"{self.attempts} attempts")
        if self.elapsed is not None:
            of = "" if self.limit is None else f" of {_duration(self.limit)}"
            facts.append(f"{_duration(self.elapsed)}{of}")
        text = f"[{', '.join(facts)}]"
        if self.hint:
            text = f"{text}; {self.hint}"
        return _printable(f"{self.message} {text}" if self.message else text)

    @property
    def hint(self) -> str:
        """What to look at first; may be empty."""
        if self.phase in (Phase.NONE, Phase.HANDLER):
            return ""
        return hint_for(self.number, self.phase.name.lower())


class Cancelled(RpcError):
    """The caller or the peer gave up.  Not asyncio.CancelledError: a task that
    is cancelled while it awaits a call sees asyncio's exception, as always."""

    code = Code.CANCELLED


class Unknown(RpcError):
    """A number that only the application knows; look at `number`."""

    code = Code.UNKNOWN


class InvalidArgument(RpcError, ValueError):
    """The request is wrong whatever the state of the server."""

    code = Code.INVALID_ARGUMENT


class DeadlineExceeded(RpcError, TimeoutError):
    """The call's deadline passed.  The server may still have run it."""

    code = Code.DEADLINE_EXCEEDED


class NotFound(RpcError, LookupError):
    """What was asked for does not exist."""

    code = Code.NOT_FOUND


class AlreadyExists(RpcError):
    """What was to be made exists."""

    code = Code.ALREADY_EXISTS


class PermissionDenied(RpcError, PermissionError):
    """The caller is known and may not do this."""

    code = Code.PERMISSION_DENIED


class ResourceExhausted(RpcError):
    """A limit was reached: calls at a time, unwritten bytes, a quota."""

    code = Code.RESOURCE_EXHAUSTED


class FailedPrecondition(RpcError):
    """The state must change before a retry can help."""

    code = Code.FAILED_PRECONDITION


class Aborted(RpcError):
    """A conflict with another operation; redo the whole transaction."""

    code = Code.ABORTED


class OutOfRange(RpcError, ValueError):
    """Past the end, where InvalidArgument is wrong everywhere."""

    code = Code.OUT_OF_RANGE


class Unimplemented(RpcError, NotImplementedError):
    """The server has no such service or method."""

    code = Code.UNIMPLEMENTED


class Internal(RpcError):
    """Broken on one of the two sides."""

    code = Code.INTERNAL


class Unavailable(RpcError, ConnectionError):
    """The server could not be reached, went away, or is stopping."""

    code = Code.UNAVAILABLE


class DataLoss(RpcError):
    """Data is lost or damaged for good."""

    code = Code.DATA_LOSS


class Unauthenticated(RpcError):
    """The caller did not prove who it is."""

    code = Code.UNAUTHENTICATED


class ClosedError(TidewireError):
    """A closed channel, server or call was used."""


class ForkError(TidewireError):
    """An object that was made before a fork was used in the child."""

    parent: int | None = None
    """Process id of the process that made it."""

    @classmethod
    def of(cls, what: str, *, parent: int, child: int) -> "ForkError":
        """Names the fork: `what` was made by process `parent`."""
        error = cls(
            f"{what} was made in process {parent}; process {child} is a fork of it"
            " and cannot use it: make a new one in the child"
        )
        error.parent = parent
        return error


class OptionError(TidewireError, ValueError):
    """An option's value is not allowed."""


class AddressError(OptionError):
    """Text that is no address."""


class CodecError(TidewireError, ValueError):
    """A message cannot be encoded, or bytes are not that message."""


class ProtocolError(TidewireError):
    """Bytes that are no valid message of their protocol."""


_BY_CODE: dict[Code, type[RpcError]] = {
    cls.code: cls for cls in RpcError.__subclasses__()
}

# The same errno means something else when it is about our own socket: a unix
# path that is not there is no missing record, a firewall's EPERM no verdict on
# the caller, and EINVAL says that the peer's bytes made no sense.
_ON_OUR_SIDE: dict[int, type[RpcError]] = {
    Errno.EPERM: Unavailable,
    Errno.ENOENT: Unavailable,
    Errno.EACCES: Unavailable,
    Errno.EINVAL: Internal,
}


def from_number(
    number: int,
    message: str,
    *,
    method: str | None = None,
    peer: str | None = None,
    phase: Phase = Phase.NONE,
    sent: Sent = Sent.NONE,
    elapsed: float | None = None,
    attempts: int = 1,
) -> RpcError:
    """The exception for a call that ended with brpc's `number` (not 0).

    The class follows from the number.  Some errno values are judged by phase
    too: answered by the peer they are its verdict, on our own socket they are
    a failed connection.
    """
    cls = _ON_OUR_SIDE.get(number) if phase in _OUR_SIDE else None
    if cls is None:
        cls = _BY_CODE.get(to_code(number), Unknown)
    return cls(
        message,
        number=number,
        method=method,
        peer=peer,
        phase=phase,
        sent=sent,
        elapsed=elapsed,
        attempts=attempts,
    )


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.1f} s"


def _printable(text: str) -> str:
    """Peers choose messages, and messages end up in logs: no control
    characters, no lone surrogates."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )
