"""How messages become bytes and back.

A codec is asked twice per method, when the method is registered; the two
plain functions that it gives are all that a call costs.  protobuf is not
imported here: whoever has a message class has imported it already.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from tidewire.errors import CodecError

__all__ = ["Codec", "ProtobufCodec", "functions_for"]

T = TypeVar("T")


@runtime_checkable
class Codec(Protocol):
    """Makes the functions for a message class.

    Both functions are called from any thread, several at a time.  What they
    raise is taken as a fault of the message: the peer of a server sees
    EREQUEST with the exception's text when decoding fails, and ERESPONSE
    with an id of the log's traceback when encoding does.
    """

    def encoder(self, cls: type[T], /) -> Callable[[T], bytes]:
        """A function from a message of exactly `cls` to bytes."""
        ...

    def decoder(self, cls: type[T], /) -> Callable[[bytes], T]:
        """A function from bytes to a message of `cls`."""
        ...


class ProtobufCodec:
    """google.protobuf messages: the default."""

    def encoder(self, cls: type[T], /) -> Callable[[T], bytes]:
        """Raises TypeError when `cls` is no generated message class.

        The function raises TypeError for a message of another class and
        CodecError when required fields are missing.
        """
        _check_message_class(cls)
        serialize: Callable[[T], bytes] = cast(Any, cls).SerializeToString

        def encode(message: T) -> bytes:
            # SerializeToString would take any message, so that a handler
            # which returns the wrong one would answer with nonsense.
            if type(message) is not cls:
                raise _wrong_type(cls, message)
            try:
                return serialize(message)
            except Exception as error:
                raise CodecError(f"cannot encode {_name(cls)}: {error}") from error

        return encode

    def decoder(self, cls: type[T], /) -> Callable[[bytes], T]:
        """Raises TypeError when `cls` is no generated message class.

        The function raises protobuf's DecodeError for bytes that are no such
        message and CodecError when required fields are missing.
        """
        _check_message_class(cls)
        parse: Callable[[bytes], T] = cast(Any, cls).FromString
        if not _has_required(cast(Any, cls).DESCRIPTOR, set()):
            return parse

        # Parsing does not look at required fields.  The unbound method: a
        # message looks for a field of an attribute's name first.
        is_initialized = cast(Any, cls).IsInitialized

        def decode(data: bytes) -> T:
            message: Any = parse(data)
            if not is_initialized(message):
                missing = ", ".join(message.FindInitializationErrors())
                raise CodecError(f"{_name(cls)} lacks required fields: {missing}")
            return cast(T, message)

        return decode


def functions_for(
    codec: Codec | None, cls: type[T]
) -> tuple[Callable[[T], bytes], Callable[[bytes], T]]:
    """(encode, decode) of `cls` by `codec`, None meaning protobuf.

    `bytes` as the class means raw bytes, whatever the codec.
    """
    if cls is bytes:
        raw: Any = (_raw_bytes, bytes)
        return cast("tuple[Callable[[T], bytes], Callable[[bytes], T]]", raw)
    if codec is None:
        codec = ProtobufCodec()
    return codec.encoder(cls), codec.decoder(cls)


def _raw_bytes(message: bytes) -> bytes:
    if type(message) is bytes:
        return message
    if isinstance(message, bytes | bytearray | memoryview):
        return bytes(message)
    raise _wrong_type(bytes, message)


def _check_message_class(cls: object) -> None:
    for name in ("DESCRIPTOR", "SerializeToString", "FromString"):
        if not isinstance(cls, type) or not hasattr(cls, name):
            raise TypeError(
                f"{cls!r} is not a generated protobuf message class; for other"
                " messages give a codec, for raw bytes name `bytes`"
            )


def _has_required(descriptor: Any, seen: set[str]) -> bool:
    """Whether a message of this type, or one inside it, has required fields."""
    if descriptor.full_name in seen:
        return False
    seen.add(descriptor.full_name)
    return any(
        _is_required(field)
        or (field.message_type is not None and _has_required(field.message_type, seen))
        for field in descriptor.fields
    )


def _is_required(field: Any) -> bool:
    required = getattr(field, "is_required", None)
    if required is None:  # protobuf before 6.30
        required = field.label == field.LABEL_REQUIRED
    return bool(required)


def _wrong_type(cls: type, message: object) -> TypeError:
    return TypeError(f"expected a {_name(cls)}, got a {_name(type(message))}")


def _name(cls: type) -> str:
    if cls.__module__ == "builtins":
        return cls.__qualname__
    return f"{cls.__module__}.{cls.__qualname__}"
