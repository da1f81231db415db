"""Options of servers and channels, and addresses.

Times are float seconds, sizes are bytes.  A wrong value is refused when the
options are made: OptionError names the option, the value, and what is
allowed; a value of the wrong kind is a TypeError that says the same.
"""

import math
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tidewire.address import Address, parse_address
from tidewire.codec import Codec
from tidewire.errors import AddressError, OptionError

if TYPE_CHECKING:
    from tidewire.service import MethodInfo

__all__ = [
    "Address",
    "ChannelOptions",
    "HealthCheck",
    "ServerOptions",
    "parse_address",
]

_MIB: Final = 1024 * 1024

# One frame's body is measured by 32 bits on the wire and protobuf takes no
# message of 2 GiB.
_MAX_MESSAGE: Final = (1, 2**31 - 1, "bytes")
_QUEUED_BYTES: Final = (1, 2**40, "bytes")

# name: (least, most, unit)
_SERVER_NUMBERS: Final = {
    "threads": (1, 1024, "threads"),
    "loops": (1, 16, "loops"),
    "max_message": _MAX_MESSAGE,
    "max_unwritten": _QUEUED_BYTES,
    "max_pending": (1, 2**20, "requests"),
    "max_pending_bytes": _QUEUED_BYTES,
    "max_concurrency": (0, 2**20, "calls, 0: no limit"),
    "max_connections": (0, 2**20, "connections, 0: no limit"),
    "backlog": (1, 65535, "connections"),
}
_CHANNEL_NUMBERS: Final = {
    "max_message": _MAX_MESSAGE,
    "max_unwritten": _QUEUED_BYTES,
}
# Nanoseconds of it fit into 64 bits many times over.
_MAX_SECONDS: Final = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What a server may use, and when it refuses."""

    threads: int = 8
    """Worker threads for `def` handlers."""
    loops: int = 1
    """Event loops that read and write the connections of the whole process,
    those of its channels and other servers, too.  It stays what the first
    server asked for that came before any listener or connection; 1 takes what
    there is.  More than one pays off where Python runs threads in parallel."""
    admin: str | None = None
    """Address of the HTTP listener with /metrics and /health; None: none.
    Only loopback and unix addresses are allowed."""
    max_message: int = 64 * _MIB
    """Bytes of one request's frame; a longer one closes the connection."""
    max_unwritten: int = 64 * _MIB
    """Bytes waiting to be written to one connection; over it answers are
    dropped with EOVERCROWDED and the connection is no longer read."""
    max_pending: int = 1024
    """Requests of one connection received and not yet answered; at the limit
    the connection is no longer read."""
    max_pending_bytes: int = 64 * _MIB
    """The same, in bytes."""
    max_concurrency: int = 0
    """Calls unanswered in the whole server; over it new ones are answered
    with ELIMIT.  0: no limit."""
    max_connections: int = 10_000
    """Connections at a time; over it new ones are closed, as they are over
    10 000 (or this, if it is more) in the process, or over 80 % of its
    descriptors less 64.  0: the descriptors' limit alone."""
    drain: float = 10.0
    """Seconds that a stopping server gives the calls under way."""
    backlog: int = 1024
    """Connections that the kernel keeps until they are accepted."""
    codec: Codec | None = None
    """How messages are encoded; None: protobuf."""

    def __post_init__(self) -> None:
        for name, limits in _SERVER_NUMBERS.items():
            _whole(self, name, *limits)
        _seconds(self, "drain", zero=True)
        _codec(self)
        if self.admin is not None:
            object.__setattr__(self, "admin", _admin(self.admin))


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """How a channel finds out that its server is back.

    From a failure of the connection until a check has succeeded calls fail at
    once, without connecting.  The first check comes a tenth of a second after
    the failure; the delay doubles up to the interval, and chance shortens each
    to as little as its half.  The connection that a check has made is the one
    that calls use then.
    """

    interval: float = 3.0
    """Seconds, the longest time between two checks."""
    probe: "MethodInfo[Any, Any] | None" = None
    """A method that a check calls, with an empty message: the server is back
    when it answers without an error within half a second.  None: when it
    accepts a connection."""

    def __post_init__(self) -> None:
        _seconds(self, "interval", zero=False)
        if self.probe is not None:
            from tidewire.service import MethodInfo  # a layer above

            if not isinstance(self.probe, MethodInfo):
                allowed = "a MethodInfo, such as client.method.info, or None"
                raise TypeError(_refusal(self, "probe", allowed))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelOptions:
    """How a channel calls, unless the call says otherwise."""

    timeout: float | None = 0.5
    """Seconds that a call may take; None: no deadline."""
    connect_timeout: float | None = 0.2
    """Seconds that connecting may take, over all addresses and within the
    call's deadline; None: only the deadline bounds it."""
    health_check: HealthCheck | None = None
    """How a server that was lost is found again; None: the next call tries."""
    max_message: int = 64 * _MIB
    """Bytes of one response's frame; a longer one closes the connection."""
    max_unwritten: int = 64 * _MIB
    """Bytes waiting to be written; over it a call fails with EOVERCROWDED."""
    codec: Codec | None = None
    """How messages are encoded; None: protobuf."""
    send_deadline: bool = True
    """Tell the server how long it has.  A server of ours then drops calls
    that nobody waits for."""

    def __post_init__(self) -> None:
        for name, limits in _CHANNEL_NUMBERS.items():
            _whole(self, name, *limits)
        for name in ("timeout", "connect_timeout"):
            if getattr(self, name) is not None:
                _seconds(self, name, zero=False, none=True)
        _codec(self)
        if not isinstance(self.health_check, HealthCheck | None):
            allowed = "a HealthCheck, or None: the next call connects"
            raise TypeError(_refusal(self, "health_check", allowed))
        if not isinstance(self.send_deadline, bool):
            raise TypeError(_refusal(self, "send_deadline", "True or False"))


def _refusal(options: object, name: str, allowed: str) -> str:
    value = getattr(options, name)
    given = repr(value)
    if len(given) > 100:
        given = given[:97] + "..."
    return (
        f"{type(options).__name__}.{name} is {given} ({type(value).__name__});"
        f" allowed: {allowed}"
    )


def _whole(options: object, name: str, least: int, most: int, unit: str) -> None:
    """Checks a whole number and stores it as an int.  True and False are not
    numbers here: `threads=True` is a slip."""
    value = getattr(options, name)
    allowed = f"a whole number from {least} to {most} ({unit})"
    if isinstance(value, bool):
        raise TypeError(_refusal(options, name, allowed))
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(_refusal(options, name, allowed)) from None
    if not least <= number <= most:
        raise OptionError(_refusal(options, name, allowed))
    object.__setattr__(options, name, number)


def _seconds(options: object, name: str, *, zero: bool, none: bool = False) -> None:
    """Checks a time and stores it as a float."""
    value = getattr(options, name)
    least = "from 0" if zero else "above 0"
    allowed = f"seconds {least} to {_MAX_SECONDS:.0f}"
    if none:
        allowed += ", or None: no limit"
    if isinstance(value, bool | str | bytes | bytearray):
        raise TypeError(_refusal(options, name, allowed))
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        raise TypeError(_refusal(options, name, allowed)) from None
    # NaN compares with nothing, so ask what is allowed, not what is refused.
    enough = number >= 0 if zero else number > 0
    if not (enough and number <= _MAX_SECONDS):
        raise OptionError(_refusal(options, name, allowed))
    object.__setattr__(options, name, number)


def _codec(options: ServerOptions | ChannelOptions) -> None:
    codec = options.codec
    if codec is None:
        return
    if isinstance(codec, type) or not isinstance(codec, Codec):
        allowed = "an object with encoder(cls) and decoder(cls), or None: protobuf"
        raise TypeError(_refusal(options, "codec", allowed))


def _admin(text: object) -> str:
    """The admin pages need no password yet, so that only this machine may
    reach them."""
    try:
        address = parse_address(text)
    except AddressError as error:
        raise AddressError(f"ServerOptions.admin: {error}") from None
    except TypeError as error:
        raise TypeError(f"ServerOptions.admin: {error}") from None
    if not address.is_local:
        raise AddressError(
            f"ServerOptions.admin is {address.text!r}; allowed: a loopback address"
            " such as 127.0.0.1:8001 or [::1]:8001, or unix:/path; the admin pages"
            " have no authentication yet, so other machines must not reach them"
        )
    return address.text
