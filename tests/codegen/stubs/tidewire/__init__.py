"""What generated modules use of tidewire, for as long as sdk/ has no such names."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_RequestIn = TypeVar("_RequestIn", contravariant=True)
_ResponseOut = TypeVar("_ResponseOut", covariant=True)

Reply: TypeAlias = _Response | Awaitable[_Response]


class Idempotency(Enum):
    UNKNOWN = 0
    NO_SIDE_EFFECTS = 1
    IDEMPOTENT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodInfo(Generic[_Request, _Response]):
    service: str
    name: str
    request: type[_Request]
    response: type[_Response]
    idempotency: Idempotency


class Context: ...


class Unimplemented(Exception): ...


class Service:
    __tidewire_service__: ClassVar[str]
    __tidewire_methods__: ClassVar[Mapping[str, MethodInfo[Any, Any]]]


class Client:
    __tidewire_methods__: ClassVar[Mapping[str, MethodInfo[Any, Any]]]


class AsyncClient:
    __tidewire_methods__: ClassVar[Mapping[str, MethodInfo[Any, Any]]]


class UnaryMethod(Protocol[_RequestIn, _ResponseOut]):
    def __call__(
        self, request: _RequestIn, *, timeout: float | None = None
    ) -> _ResponseOut: ...


class AsyncUnaryMethod(Protocol[_RequestIn, _ResponseOut]):
    async def __call__(
        self, request: _RequestIn, *, timeout: float | None = None
    ) -> _ResponseOut: ...


def require_runtime(version: str) -> None: ...
