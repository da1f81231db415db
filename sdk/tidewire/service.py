"""What generated services are made of."""

import enum
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeAlias, TypeVar

from tidewire.errors import Unimplemented

if TYPE_CHECKING:
    from tidewire.context import Context

__all__ = [
    "GenericService",
    "Idempotency",
    "MethodInfo",
    "Reply",
    "Service",
    "require_runtime",
]

Req = TypeVar("Req")
Res = TypeVar("Res")

Reply: TypeAlias = Res | Awaitable[Res]
"""What a handler returns: a message from `def`, an awaitable of one from
`async def`."""

VERSION: Final = "0.1.0"


class Idempotency(enum.Enum):
    """The proto's idempotency_level: whether a call may be sent twice."""

    UNKNOWN = 0
    NO_SIDE_EFFECTS = 1
    IDEMPOTENT = 2

    @property
    def is_safe(self) -> bool:
        """Whether it may."""
        return self is not Idempotency.UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodInfo(Generic[Req, Res]):
    """One rpc of a .proto."""

    service: str
    """Full name of the service, `package.Service`."""
    name: str
    """Name of the method, as in the .proto."""
    request: type[Req]
    response: type[Res]
    idempotency: Idempotency = Idempotency.UNKNOWN

    @property
    def full_name(self) -> str:
        """`package.Service/Method`."""
        return f"{self.service}/{self.name}"


class Service:
    """Base of generated services: subclass those and override, `def` or
    `async def` for each method."""

    __tidewire_service__: ClassVar[str]
    __tidewire_methods__: ClassVar[Mapping[str, MethodInfo[Any, Any]]]

    fork_safe: ClassVar[bool] = False
    """Whether an instance that was made before workers are forked may serve in
    each of them: it holds no connection, file, lock or thread."""


GENERIC: Final = MethodInfo(service="*", name="*", request=bytes, response=bytes)


class GenericService(Service):
    """Answers every method that no other service of its server has: for gateways
    and proxies.  Subclass and override `handle`, `def` or `async def`."""

    __tidewire_service__ = "*"
    __tidewire_methods__: ClassVar[Mapping[str, MethodInfo[Any, Any]]] = {
        "handle": GENERIC
    }

    def handle(self, request: bytes, ctx: "Context") -> Reply[bytes]:
        """request: the message, decompressed, not decoded.  Beside it `ctx` has
        the `method` that was asked for, as `package.Service/Method`, metadata,
        attachment, coding and the rest.  What is returned is sent as it is."""
        raise Unimplemented(f"{ctx.method} is not implemented")


def require_runtime(version: str) -> None:
    """Raises ImportError when this runtime is older than generated code needs;
    `version` is "major.minor"."""
    needed = tuple(int(part) for part in version.split("."))
    have = tuple(int(part) for part in VERSION.split(".")[:2])
    if have[0] != needed[0] or have < needed:
        raise ImportError(
            f"the generated code needs tidewire {version}, this is {VERSION}:"
            " install that version or generate the code again"
        )
