"""Options of servers and channels, and addresses.

Times are float seconds, sizes are bytes.  A wrong value is refused when the
options are made: OptionError names the option, the value, and what is
allowed; a value of the wrong kind is a TypeError that says the same.
"""

import inspect
import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypedDict

from tidewire.address import Address, parse_address
from tidewire.auth import Authenticator
from tidewire.codec import Codec
from tidewire.coding import Coding
from tidewire.errors import AddressError, OptionError
from tidewire.hooks import Hook
from tidewire.node import Node
from tidewire.retry import BackupPolicy, RetryPolicy

if TYPE_CHECKING:
    from tidewire.balance import Balancer
    from tidewire.service import MethodInfo

__all__ = [
    "Address",
    "AutoLimit",
    "CallOptions",
    "ChannelOptions",
    "HealthCheck",
    "KeepAlive",
    "MethodOptions",
    "Register",
    "ServerOptions",
    "SocketOptions",
    "TimeoutLimit",
    "parse_address",
]

_MIB: Final = 1024 * 1024
MAX_CREDENTIAL: Final = 64 * 1024
_CONNECTIONS: Final = ("single", "pooled", "short")

# One frame's body is measured by 32 bits on the wire and protobuf takes no
# message of 2 GiB.
_MAX_MESSAGE: Final = (1, 2**31 - 1, "bytes")
_QUEUED_BYTES: Final = (1, 2**40, "bytes")

# name: (least, most, unit)
_SERVER_NUMBERS: Final = {
    # A process has a lane of the counters, of which there are 64; in a reload
    # there are more processes for a while.
    "workers": (1, 48, "processes"),
    "threads": (1, 1024, "threads"),
    "loops": (1, 16, "loops"),
    "max_message": _MAX_MESSAGE,
    "max_unwritten": _QUEUED_BYTES,
    "max_pending": (1, 2**20, "requests"),
    "max_pending_bytes": _QUEUED_BYTES,
    "max_connections": (0, 2**20, "connections, 0: no limit"),
    "backlog": (1, 65535, "connections"),
}
_CHANNEL_NUMBERS: Final = {
    "max_message": _MAX_MESSAGE,
    "max_unwritten": _QUEUED_BYTES,
    "max_retry": (0, 1000, "attempts after the first"),
}
_MOST_CALLS: Final = 2**20
_LIMIT_CALLS: Final = (1, _MOST_CALLS, "calls")
# What the kernel takes.
_KEEPALIVE_NUMBERS: Final = {
    "idle": (1, 32767, "seconds"),
    "interval": (1, 32767, "seconds"),
    "count": (1, 127, "probes"),
}
_SOCKET_NUMBERS: Final = {
    "tos": (0, 255, "the header's byte"),
    "send_buffer": (1, 2**30, "bytes"),
    "receive_buffer": (1, 2**30, "bytes"),
}
_MAX_USER_TIMEOUT: Final = 2_000_000.0  # milliseconds of it fit into 31 bits
# Nanoseconds of it fit into 64 bits many times over.
_MAX_SECONDS: Final = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepAlive:
    """Probes on a silent TCP connection: a dead peer is found after `idle` +
    `count` x `interval` seconds."""

    idle: int = 30
    """Whole seconds of silence before the first probe."""
    interval: int = 5
    """Whole seconds between probes."""
    count: int = 3
    """Probes without an answer after which the connection fails."""

    def __post_init__(self) -> None:
        for name, limits in _KEEPALIVE_NUMBERS.items():
            _whole(self, name, *limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketOptions:
    """What the kernel is asked for, of each connection; None leaves what the
    system has.  Unix sockets know buffers only and ignore the rest."""

    keepalive: KeepAlive | None = None
    """Probes on silent connections; None: none."""
    user_timeout: float | None = None
    """Seconds that sent bytes may stay unacknowledged (TCP_USER_TIMEOUT); then
    the connection fails."""
    tos: int | None = None
    """The type-of-service byte (IPv6: traffic class) of every packet."""
    send_buffer: int | None = None
    """Bytes of the kernel's send buffer; the kernel doubles and bounds it."""
    receive_buffer: int | None = None
    """The same for received bytes."""
    bind: str | None = None
    """The local IP address that a channel connects from; not for servers."""

    def __post_init__(self) -> None:
        if self.keepalive is not None and not isinstance(self.keepalive, KeepAlive):
            raise TypeError(_refusal(self, "keepalive", "a KeepAlive, or None"))
        for name, limits in _SOCKET_NUMBERS.items():
            if getattr(self, name) is not None:
                _whole(self, name, *limits)
        if self.user_timeout is not None:
            _seconds(
                self, "user_timeout", zero=False, none=True, most=_MAX_USER_TIMEOUT
            )
        if self.bind is not None:
            object.__setattr__(self, "bind", _ip_address(self, "bind"))


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoLimit:
    """Learns how many calls can be served at a time: with the shortest time that
    a call takes and the highest rate of answers, as many as are under way when
    none waits for another, and 6 % to 30 % more.  Meant for clients that go to
    another server when one refuses."""

    least: int = 1
    """Calls, the limit never falls below."""
    initial: int = 40
    """Calls, the limit before anything was learnt; between `least` and `most`."""
    most: int = 10_000
    """Calls, the limit never rises above."""
    window: float = 1.0
    """Seconds of answers after which the limit is set anew: earlier when 200 were
    looked at, one in 0.1 ms, and not at all from fewer than 100, or from fewer
    than 10 where calls were refused."""
    remeasure: float = 50.0
    """Seconds, the shortest time is forgotten at this age, or at down to half of
    it, and looked for again under somewhat less load: a method may have become
    slower for good."""

    def __post_init__(self) -> None:
        for name in ("least", "initial", "most"):
            _whole(self, name, *_LIMIT_CALLS)
        for name in ("window", "remeasure"):
            _seconds(self, name, zero=False)
        if not self.least <= self.initial <= self.most:
            raise OptionError(
                f"AutoLimit.initial is {self.initial}; allowed: from least,"
                f" {self.least}, to most, {self.most} (calls)"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutLimit:
    """Refuses calls that would not be answered in time: when an answer takes as
    long, on average, as the call's caller waits.  One call at a time may always
    try."""

    max_concurrency: int = 100
    """Calls at a time, however quick they are."""
    timeout: float = 0.5
    """Seconds that a caller waits who does not say how long."""
    window: float = 1.0
    """As AutoLimit's: seconds of answers over which the average is taken."""

    def __post_init__(self) -> None:
        _whole(self, "max_concurrency", *_LIMIT_CALLS)
        for name in ("timeout", "window"):
            _seconds(self, name, zero=False)


Concurrency: TypeAlias = int | Literal["auto"] | AutoLimit | TimeoutLimit
"""How many calls may be unanswered at a time: a number, or what learns one;
"auto" is AutoLimit()."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodOptions:
    """What one method of a server may use; None leaves what the server has."""

    max_message: int | None = None
    """Bytes of one request's frame, and of it decompressed, at most the server's
    `max_message`; a longer
    one closes the connection as soon as its metadata is there."""
    max_concurrency: Concurrency | None = None
    """Calls of the method that are unanswered; over it new ones are answered
    with ELIMIT.  They count in the server's `max_concurrency`, too."""
    max_queue_age: float | None = None
    """Seconds, as the server's."""

    def __post_init__(self) -> None:
        if self.max_message is not None:
            _whole(self, "max_message", *_MAX_MESSAGE)
        if self.max_concurrency is not None:
            _concurrency(self, 1)
        if self.max_queue_age is not None:
            _seconds(self, "max_queue_age", zero=False, none=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """Where a server enters itself while it serves, so that channels to the same
    url find it.  Once it listens it is entered, when it stops it is first taken
    off, and when it dies the entry ends by itself."""

    url: str
    """Of the service: etcd://host:2379/prefix, or a plug-in's."""
    address: str | None = None
    """What clients connect to, "host:port"; port 0 stands for the port that the
    server has bound.  None: the first address that the server listens on, which
    0.0.0.0 and [::] cannot be."""
    tag: str = ""
    """What the list says beside it, such as a weight (Node.tag)."""
    ttl: int = 10
    """Whole seconds after which the entry of a server ends that does not say any
    more that it lives."""

    def __post_init__(self) -> None:
        from tidewire.naming import registry_of  # when it is needed

        for name in ("url", "tag"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(_refusal(self, name, "a str"))
        _whole(self, "ttl", 1, 86400, "seconds")
        registry_of(self.url)
        if self.address is not None:
            self._callable(parse_address(self.address))

    def node(self, bound: str) -> Node:
        """The entry of a server that listens on the address `bound`.  Raises
        AddressError where clients cannot know how to reach it."""
        if self.address is None:
            return Node(address=self._callable(parse_address(bound)), tag=self.tag)
        given = parse_address(self.address)
        if given.kind == "unix" or given.port:
            return Node(address=given.text, tag=self.tag)
        port = parse_address(bound).port
        if not port:
            raise AddressError(
                f"{given.text} cannot be registered: port 0 is the port of the server,"
                f" and {bound} has none; allowed: a port"
            )
        return Node(address=f"{given.text.removesuffix(':0')}:{port}", tag=self.tag)

    def _callable(self, address: Address) -> str:
        if address.host in ("0.0.0.0", "::"):
            raise AddressError(
                f"a server at {address.text} cannot be registered, for that is every"
                " address of the machine and none of them; allowed:"
                ' Register(address="host:port") with what clients connect to; port 0'
                " stands for the server's own"
            )
        return address.text


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What a server may use, and when it refuses."""

    workers: int = 1
    """Processes that serve, each with its own threads, loops and limits.  More
    than one: run() forks and supervises them, and services are functions that
    make them in each."""
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
    methods: Mapping[str, MethodOptions] = field(default_factory=dict, hash=False)
    """By full name, such as "package.Service/Method"; "*" stands for all that are
    not named, each of which gets that for itself (what a GenericService serves is
    one method).  The server does not start with a
    name that it does not serve."""
    max_unwritten: int = 64 * _MIB
    """Bytes waiting to be written to one connection; over it answers are
    dropped with EOVERCROWDED and the connection is no longer read."""
    max_pending: int = 1024
    """Requests of one connection received and not yet answered; at the limit
    the connection is no longer read."""
    max_pending_bytes: int = 64 * _MIB
    """The same, in bytes."""
    max_concurrency: Concurrency = 0
    """Calls unanswered in the whole server; over it new ones are answered
    with ELIMIT.  0: no limit; "auto" and AutoLimit fit where methods take
    about the same time, else give them to each method.  A number can be changed
    later (Server.set_max_concurrency)."""
    max_queue_age: float | None = None
    """Seconds that a request may wait until its handler starts; when its turn
    comes later, it is answered with ELIMIT instead.  None: no limit."""
    max_connections: int = 10_000
    """Connections at a time; over it new ones are closed, as they are over
    10 000 (or this, if it is more) in the process, or over 80 % of its
    descriptors less 64.  0: the descriptors' limit alone."""
    first_byte_timeout: float | None = 10.0
    """Seconds after which a connection that never sent anything is closed;
    None: never."""
    stall_timeout: float | None = 60.0
    """Seconds after which a connection is closed that has begun a message and
    sent less than 1 KiB/s of it; None: never."""
    idle_timeout: float | None = 3600.0
    """Seconds after which a connection is closed on which nothing was sent,
    received, or is under way; None: never."""
    memory_budget: int | None = None
    """Bytes of messages, received or to be sent, that the whole process may
    hold, channels included: the last server started with a number sets it for
    all.  Near it new requests are answered with ELIMIT, at it the largest idle
    connections are closed.  None: as it is, at first a quarter of the memory
    that the machine or the control group has.  0: no limit."""
    cancel_on_eof: bool = False
    """Whether a caller that ends its sending (a half close) while its calls are
    under way counts as gone, so that they are cancelled; else they are answered
    and `ctx.peer_closed` says so."""
    drain: float = 10.0
    """Seconds that a stopping server gives the calls under way."""
    lame_duck: float | None = None
    """Seconds before the drain in which a stopping server is unready and takes no
    new connections, serves all calls still, and asks clients to leave; they end
    when the last has left.  Tidewire's clients leave as soon as they are connected
    to a successor at the same address, brpc's do not.  None: 0, but 1 for a worker
    that ends by itself, as in a reload."""
    backlog: int = 1024
    """Connections that the kernel keeps until they are accepted."""
    reuse_port: bool = False
    """Share TCP addresses with other processes that say the same
    (SO_REUSEPORT); the kernel spreads connections over them."""
    unix_mode: int | None = 0o600
    """Permissions of socket files, whatever the umask; None: as it says."""
    socket: SocketOptions | None = None
    """Of the connections; None: as the system has it."""
    codec: Codec | None = None
    """How messages are encoded; None: protobuf."""
    authenticator: Authenticator | None = None
    """Who may call: asked once for each connection, with the credential of its
    first message; nothing of the connection runs before its verdict.  None:
    everybody.  The admin pages are not concerned."""
    auth_timeout: float = 5.0
    """Seconds after which a connection without a verdict is refused."""
    hooks: Sequence[Hook] = ()
    """What runs around every call, the first outermost."""
    register: Register | None = None
    """Where clients find the server; None: it tells nobody."""

    def __post_init__(self) -> None:
        for name, limits in _SERVER_NUMBERS.items():
            _whole(self, name, *limits)
        _concurrency(self, 0)
        _methods(self)
        if self.memory_budget is not None:
            _whole(self, "memory_budget", 0, 2**50, "bytes, 0: no limit")
        _seconds(self, "drain", zero=True)
        if self.lame_duck is not None:
            _seconds(self, "lame_duck", zero=True, none=True)
        for name in (
            "first_byte_timeout",
            "stall_timeout",
            "idle_timeout",
            "max_queue_age",
        ):
            if getattr(self, name) is not None:
                _seconds(self, name, zero=False, none=True)
        _seconds(self, "auth_timeout", zero=False)
        _codec(self)
        _hooks(self)
        _authenticator(self)
        for name in ("cancel_on_eof", "reuse_port"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(_refusal(self, name, "True or False"))
        if self.unix_mode is not None:
            _whole(self, "unix_mode", 1, 0o777, "permission bits; None: the umask's")
        if not isinstance(self.register, Register | None):
            allowed = "a tidewire.Register, or None: nowhere"
            raise TypeError(_refusal(self, "register", allowed))
        _socket(self)
        if self.socket is not None and self.socket.bind is not None:
            raise OptionError(
                f"ServerOptions.socket.bind is {self.socket.bind!r}; allowed: None;"
                " a server is bound by `listen`"
            )
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
    """A method that a check calls: the server is back when it answers without
    an error within half a second.  None: when it accepts a connection."""
    request: Any = None
    """What the probe is called with, encoded when the channel is made; None:
    a message of the method's class with nothing in it."""

    def __post_init__(self) -> None:
        _seconds(self, "interval", zero=False)
        if self.probe is not None:
            from tidewire.service import MethodInfo  # a layer above

            if not isinstance(self.probe, MethodInfo):
                allowed = "a MethodInfo, such as client.method.info, or None"
                raise TypeError(_refusal(self, "probe", allowed))
        elif self.request is not None:
            raise TypeError(_refusal(self, "request", "None without a probe"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelOptions:
    """How a channel calls, unless the call says otherwise."""

    timeout: float | None = 0.5
    """Seconds that a call may take; None: no deadline."""
    balancer: "str | Balancer" = "rr"
    """Which server of a cluster gets a call: "rr", "wrr", "random", "wr", "la",
    "p2c", "c_murmurhash", "c_md5", "c_ketama", some with parameters
    ("p2c:choices=3"), or an object of your own for this channel alone."""
    allow_empty: bool = False
    """Whether a cluster's list that becomes empty leaves it without servers; else
    the last list that was not stays."""
    max_retry: int = 3
    """How often a call is tried again, on another server if there is one.  A call
    that may have run is, only if its method is idempotent."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    """After which errors it is tried again, and when."""
    backup: "float | BackupPolicy | None" = None
    """Seconds without an answer after which a call to a cluster is made on a second
    server too, for idempotent methods; or a policy that says more.  None: never."""
    circuit_breaker: bool = False
    """Whether a server of a cluster gets no calls for a while, 0.1 s to 30 s, when
    too many of its answers are failures or come too late."""
    connect_timeout: float | None = 0.2
    """Seconds that connecting may take, over all addresses and within the
    call's deadline; None: only the deadline bounds it."""
    connection: Literal["single", "pooled", "short"] = "single"
    """Which connection a call goes over.  "single": one that all calls share.
    "pooled": one that no other call uses meanwhile; it is kept for later ones, up
    to 100 idle ones for 30 s.  "short": one of its own, closed after it."""
    connection_group: str = ""
    """Channels of the process to the same addresses share a connection if they
    agree in this and in `connect_timeout`, `health_check`, `max_message`,
    `max_unwritten`, `credentials` and `socket`; a group of its own separates."""
    health_check: HealthCheck | None = None
    """How a server that was lost is found again; None: the next call tries."""
    max_message: int = 64 * _MIB
    """Bytes of one response's frame; a longer one closes the connection."""
    max_unwritten: int = 64 * _MIB
    """Bytes waiting to be written; over it a call fails with EOVERCROWDED."""
    codec: Codec | None = None
    """How messages are encoded; None: protobuf."""
    coding: Coding | None = None
    """How requests travel: compressed, under a checksum; None: as they are.
    Answers come as the server sends them."""
    credentials: bytes | Callable[[], bytes] | None = field(default=None, repr=False)
    """What tells the server who calls: bytes, or a function that gives them,
    called once for each new connection, in the thread or on the loop of the
    call that makes it, so it must not take long.  1 to 65536 bytes, sent as
    they are, so that everybody on the way can read them.  None: nothing."""
    hooks: Sequence[Hook] = ()
    """What runs around every call, the first outermost."""
    send_deadline: bool = True
    """Tell the server how long it has.  A server of ours then drops calls
    that nobody waits for."""
    socket: SocketOptions | None = None
    """Of the connections; None: as the system has it."""

    def __post_init__(self) -> None:
        for name, limits in _CHANNEL_NUMBERS.items():
            _whole(self, name, *limits)
        if self.balancer != "rr":
            from tidewire.balance import make  # when it is needed

            make(self.balancer)
        for name in ("timeout", "connect_timeout"):
            if getattr(self, name) is not None:
                _seconds(self, name, zero=False, none=True)
        _codec(self)
        _hooks(self)
        if not isinstance(self.retry, RetryPolicy):
            raise TypeError(_refusal(self, "retry", "a RetryPolicy"))
        _backup(self)
        if self.connection not in _CONNECTIONS:
            allowed = ", ".join(repr(name) for name in _CONNECTIONS)
            kind = OptionError if isinstance(self.connection, str) else TypeError
            raise kind(_refusal(self, "connection", allowed))
        if not isinstance(self.connection_group, str):
            raise TypeError(_refusal(self, "connection_group", "any text"))
        if not isinstance(self.health_check, HealthCheck | None):
            allowed = "a HealthCheck, or None: the next call connects"
            raise TypeError(_refusal(self, "health_check", allowed))
        if self.credentials is not None and not callable(self.credentials):
            check_credential(self.credentials, "ChannelOptions.credentials")
        if not isinstance(self.coding, Coding | None):
            raise TypeError(_refusal(self, "coding", "a Coding, or None: none"))
        for name in ("allow_empty", "circuit_breaker", "send_deadline"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(_refusal(self, name, "True or False"))
        _socket(self)


class CallOptions(TypedDict, total=False):
    """The options that a channel's views may have otherwise: those of its calls,
    not of its connections."""

    timeout: float | None
    max_retry: int
    retry: RetryPolicy
    backup: float | BackupPolicy | None
    codec: Codec | None
    coding: Coding | None
    hooks: Sequence[Hook]
    send_deadline: bool


def check_changes(changes: Collection[str]) -> None:
    """Raises TypeError for what is no name of CallOptions."""
    allowed = CallOptions.__annotations__
    for name in changes:
        if name not in allowed:
            raise TypeError(f"with_options() got {name}; allowed: {', '.join(allowed)}")


def _refusal(options: object, name: str, allowed: str) -> str:
    value = getattr(options, name)
    given = repr(value)
    if len(given) > 100:
        given = given[:97] + "..."
    return (
        f"{type(options).__name__}.{name} is {given} ({type(value).__name__});"
        f" allowed: {allowed}"
    )


def _backup(options: ChannelOptions) -> None:
    given = options.backup
    if given is None or isinstance(given, BackupPolicy):
        return
    if isinstance(given, bool) or not isinstance(given, int | float):
        allowed = "seconds from 0 to 1e6, a BackupPolicy, or None: never"
        raise TypeError(_refusal(options, "backup", allowed))
    object.__setattr__(options, "backup", BackupPolicy(after=given))


def _whole(
    options: object, name: str, least: int, most: int, unit: str, allowed: str = ""
) -> None:
    """Checks a whole number and stores it as an int.  True and False are not
    numbers here: `threads=True` is a slip."""
    value = getattr(options, name)
    allowed = allowed or f"a whole number from {least} to {most} ({unit})"
    if isinstance(value, bool):
        raise TypeError(_refusal(options, name, allowed))
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(_refusal(options, name, allowed)) from None
    if not least <= number <= most:
        raise OptionError(_refusal(options, name, allowed))
    object.__setattr__(options, name, number)


def _seconds(
    options: object,
    name: str,
    *,
    zero: bool,
    none: bool = False,
    most: float = _MAX_SECONDS,
) -> None:
    """Checks a time and stores it as a float."""
    value = getattr(options, name)
    least = "from 0" if zero else "above 0"
    allowed = f"seconds {least} to {most:.0f}"
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
    if not (enough and number <= most):
        raise OptionError(_refusal(options, name, allowed))
    object.__setattr__(options, name, number)


def _concurrency(options: ServerOptions | MethodOptions, least: int) -> None:
    limit = options.max_concurrency
    if isinstance(limit, AutoLimit | TimeoutLimit):
        return
    allowed = f'"auto", an AutoLimit, a TimeoutLimit, or a whole number from {least}'
    allowed += f" to {_MOST_CALLS} (calls{', 0: no limit' if not least else ''})"
    if isinstance(limit, str):
        if limit != "auto":
            raise OptionError(_refusal(options, "max_concurrency", allowed))
        object.__setattr__(options, "max_concurrency", AutoLimit())
        return
    _whole(options, "max_concurrency", least, _MOST_CALLS, "calls", allowed)


def _methods(options: ServerOptions) -> None:
    """Checks them and stores a copy that nobody else changes."""
    allowed = "a mapping of full names such as package.Service/Method to MethodOptions"
    if not isinstance(options.methods, Mapping):
        raise TypeError(_refusal(options, "methods", allowed))
    methods = dict(options.methods)
    for name, of_one in methods.items():
        if not isinstance(name, str) or not isinstance(of_one, MethodOptions):
            raise TypeError(_refusal(options, "methods", allowed))
        limit = of_one.max_message
        if limit is not None and limit > options.max_message:
            raise OptionError(
                f"ServerOptions.methods[{name!r}].max_message is {limit}; allowed:"
                f" at most the server's max_message, {options.max_message} bytes"
            )
    object.__setattr__(options, "methods", methods)


def _codec(options: ServerOptions | ChannelOptions) -> None:
    codec = options.codec
    if codec is None:
        return
    if isinstance(codec, type) or not isinstance(codec, Codec):
        allowed = "an object with encoder(cls) and decoder(cls), or None: protobuf"
        raise TypeError(_refusal(options, "codec", allowed))


def _hooks(options: ServerOptions | ChannelOptions) -> None:
    allowed = "a list of tidewire.Hook objects with `def` methods"
    hooks: object = options.hooks
    if not isinstance(hooks, Sequence):
        raise TypeError(_refusal(options, "hooks", allowed))
    for hook in hooks:
        if not isinstance(hook, Hook) or any(
            inspect.iscoroutinefunction(method)
            for method in (hook.on_start, hook.on_message, hook.on_end)
        ):
            raise TypeError(_refusal(options, "hooks", allowed))
    object.__setattr__(options, "hooks", tuple(hooks))


def _socket(options: ServerOptions | ChannelOptions) -> None:
    if options.socket is not None and not isinstance(options.socket, SocketOptions):
        raise TypeError(_refusal(options, "socket", "SocketOptions, or None"))


def _ip_address(options: object, name: str) -> str:
    import ipaddress  # here, because most programs never need it

    value = getattr(options, name)
    allowed = "an IP address such as 10.0.0.1 or 2001:db8::1, or None"
    if not isinstance(value, str):
        raise TypeError(_refusal(options, name, allowed))
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        raise OptionError(_refusal(options, name, allowed)) from None
    if getattr(address, "scope_id", None):
        raise OptionError(_refusal(options, name, f"{allowed}; without a zone"))
    return address.compressed


def _authenticator(options: ServerOptions) -> None:
    it = options.authenticator
    if it is None:
        return
    if (
        isinstance(it, type)
        or not isinstance(it, Authenticator)
        or inspect.iscoroutinefunction(it.verify)
    ):
        allowed = "an object with def verify(credential, peer), or None: everybody"
        raise TypeError(_refusal(options, "authenticator", allowed))


def check_credential(data: object, name: str) -> bytes:
    """The credential; refuses what cannot be one, without saying what it is."""
    if not isinstance(data, bytes):
        raise TypeError(
            f"{name} is a {type(data).__name__}; allowed: bytes, a function that"
            " gives bytes, or None: nothing"
        )
    if not 1 <= len(data) <= MAX_CREDENTIAL:
        raise OptionError(
            f"{name} has {len(data)} bytes; allowed: 1 to {MAX_CREDENTIAL} bytes"
        )
    return data


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
