"""How a message's bytes travel: as which content type, compressed, under a
checksum.  The attachment is never compressed."""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tidewire import _meta
from tidewire.codec import Codec, ProtobufCodec, functions_for
from tidewire.errors import CodecError, OptionError

__all__ = ["Checksum", "Coding", "Compression", "ContentType"]

MAX_DEPTH: Final = 100
"""Messages inside messages of JSON, as protobuf has it for its own format."""

_SNAPPY_RATIO: Final = 64
"""No element of a snappy block makes more bytes of one: a header that
promises more lies."""

_CRC_DELTA: Final = 0xA282EAD8


class Compression(enum.IntEnum):
    """What a message is compressed with; the numbers of the wire."""

    NONE = 0
    SNAPPY = 1
    """Needs the extra `compress`."""
    GZIP = 2
    ZLIB = 3


class ContentType(enum.IntEnum):
    """What a message is written in; the numbers of the wire."""

    PROTOBUF = 0
    JSON = 1
    """Names as in the .proto."""
    PROTO_JSON = 2
    """protobuf's own mapping to JSON."""
    PROTO_TEXT = 3


class Checksum(enum.IntEnum):
    """What a message is checked with; the numbers of the wire."""

    NONE = 0
    CRC32C = 1
    """Needs the extra `compress`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """How a message travels.  What is left out is not done."""

    compression: Compression = Compression.NONE
    content_type: ContentType = ContentType.PROTOBUF
    checksum: Checksum = Checksum.NONE
    """Over the message as it travels."""
    checksum_attachment: bool = False
    """The checksum goes on over the attachment."""

    def __post_init__(self) -> None:
        """Raises OptionError and TypeError for what does not exist, and
        ImportError for what is not installed."""
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, kind(value))
            except ValueError:
                allowed = ", ".join(str(member) for member in kind)
                raise OptionError(
                    f"Coding.{name} is {value!r}; allowed: {allowed}"
                ) from None
        if not isinstance(self.checksum_attachment, bool):
            raise TypeError(
                f"Coding.checksum_attachment is {self.checksum_attachment!r};"
                " allowed: True or False"
            )
        if self.checksum_attachment and not self.checksum:
            raise OptionError(
                "Coding.checksum_attachment is True without a checksum; allowed:"
                " True with Checksum.CRC32C"
            )
        if self.compression is Compression.SNAPPY:
            _snappy()
        if self.checksum is Checksum.CRC32C:
            _crc32c()


_KINDS: Final[dict[str, type[enum.IntEnum]]] = {
    "compression": Compression,
    "content_type": ContentType,
    "checksum": Checksum,
}

PLAIN: Final = Coding()
"""Bare protobuf."""


def encoded(
    coding: Coding, message: bytes, attachment: Any = None
) -> tuple[bytes, bytes]:
    """The message as it travels, and fields to append to its RpcMeta."""
    if coding.compression:
        message = _COMPRESS[coding.compression](message)
    checksum = b""
    if coding.checksum:
        parts = [message]
        if coding.checksum_attachment and attachment is not None:
            parts.append(attachment)
        checksum = checksum_of(*parts)
    return message, _meta.encode_coding(
        coding.compression,
        coding.content_type,
        coding.checksum,
        checksum,
        coding.checksum_attachment,
    )


def decoded(
    meta: bytes, message: bytes, attachment: Any, limit: int
) -> tuple[bytes, ContentType]:
    """The message before it was compressed, and what it is written in, once
    its checksum was found right.  Raises CodecError, also when it would have
    more than `limit` bytes."""
    said = _meta.decode_coding(meta)
    # Checksums of unknown types are not looked at, as brpc does.
    if said.checksum_type == Checksum.CRC32C:
        parts = [message]
        if said.with_attachment:
            parts.append(attachment)
        if said.checksum != checksum_of(*parts):
            raise CodecError("the checksum is wrong")
    decompress = _DECOMPRESS.get(said.compress_type)
    if decompress is None:
        raise CodecError(f"CompressType={said.compress_type} is unknown")
    if said.content_type not in ContentType.__members__.values():
        raise CodecError(f"ContentType={said.content_type} is unknown")
    return decompress(message, limit), ContentType(said.content_type)


def coding_of(meta: bytes) -> Coding:
    """How a message with this RpcMeta came; what is unknown is left out."""
    said = _meta.decode_coding(meta)
    checked = said.checksum_type == Checksum.CRC32C
    return Coding(
        compression=_known(Compression, said.compress_type),
        content_type=_known(ContentType, said.content_type),
        checksum=Checksum.CRC32C if checked else Checksum.NONE,
        checksum_attachment=checked and said.with_attachment,
    )


def _known(kind: Any, number: int) -> Any:
    return kind(number) if number in list(kind) else kind(0)


# ---- checksums


def checksum_of(*parts: Any) -> bytes:
    """The masked CRC-32C of all parts together, as in checksum_value."""
    crc32c = _crc32c()
    crc = 0
    for part in parts:
        crc = crc32c(part, crc)
    rotated = crc >> 15 | crc << 17
    return (rotated + _CRC_DELTA & 0xFFFF_FFFF).to_bytes(4, "big")


def _crc32c() -> Callable[..., int]:
    try:
        from crc32c import crc32c
    except ImportError:
        raise _missing("crc32c checksums") from None
    made: Callable[..., int] = crc32c
    return made


# ---- compression


def _snappy() -> Any:
    try:
        from cramjam import snappy
    except ImportError:
        raise _missing("snappy") from None
    return snappy


def _missing(what: str) -> ImportError:
    return ImportError(f'{what} needs an extra: pip install "tidewire[compress]"')


def _snappy_compress(message: bytes) -> bytes:
    return bytes(_snappy().compress_raw(message))


def _snappy_decompress(data: bytes, limit: int) -> bytes:
    snappy = _snappy()
    try:
        size = _meta.varint(data)
    except IndexError:
        raise CodecError("snappy: the length is missing") from None
    if size > limit:
        raise _too_large("snappy", limit)
    if size > _SNAPPY_RATIO * len(data):
        raise CodecError("snappy: the length is wrong")
    try:
        return bytes(snappy.decompress_raw(data))
    except Exception as error:
        raise CodecError(f"snappy: {error}") from None


def _deflate(wbits: int) -> Callable[[bytes], bytes]:
    def compress(message: bytes) -> bytes:
        import zlib

        return zlib.compress(message, wbits=wbits)

    return compress


def _inflate(wbits: int, name: str) -> Callable[[bytes, int], bytes]:
    def decompress(data: bytes, limit: int) -> bytes:
        import zlib

        inflater = zlib.decompressobj(wbits)
        try:
            # One byte more than is allowed, so that the limit shows.
            message = inflater.decompress(data, limit + 1)
        except zlib.error as error:
            raise CodecError(f"{name}: {error}") from None
        if len(message) > limit:
            raise _too_large(name, limit)
        if not inflater.eof:
            raise CodecError(f"{name}: the end is missing")
        if inflater.unused_data:
            raise CodecError(f"{name}: something follows the end")
        return message

    return decompress


def _too_large(name: str, limit: int) -> CodecError:
    return CodecError(f"{name}: more than {limit} bytes when decompressed")


_GZIP, _ZLIB = 31, 15  # zlib's wbits

_COMPRESS: Final[dict[int, Callable[[bytes], bytes]]] = {
    Compression.SNAPPY: _snappy_compress,
    Compression.GZIP: _deflate(_GZIP),
    Compression.ZLIB: _deflate(_ZLIB),
}
_DECOMPRESS: Final[dict[int, Callable[[bytes, int], bytes]]] = {
    Compression.NONE: lambda data, limit: data,
    Compression.SNAPPY: _snappy_decompress,
    Compression.GZIP: _inflate(_GZIP, "gzip"),
    Compression.ZLIB: _inflate(_ZLIB, "zlib"),
}


# ---- content types


def writer(
    codec: Codec | None, cls: type, content_type: ContentType
) -> Callable[[Any], bytes]:
    """A function from a message of `cls` to the text that the type means.
    Raises CodecError where there is none.  `bytes` are such a text already."""
    if cls is bytes:
        return functions_for(codec, cls)[0]
    _check_text(codec, content_type)

    def write(message: Any) -> bytes:
        kind: type = type(message)
        if kind is not cls:
            raise TypeError(f"expected a {cls.__qualname__}, got a {kind.__qualname__}")
        if content_type is ContentType.PROTO_TEXT:
            from google.protobuf import text_format

            return text_format.MessageToString(message).encode()
        from google.protobuf import json_format

        names = content_type is ContentType.JSON
        text = json_format.MessageToJson(
            message, preserving_proto_field_name=names, indent=None
        )
        return text.encode()

    return write


def reader(
    codec: Codec | None, cls: type, content_type: ContentType
) -> Callable[[bytes], Any]:
    """A function from such a text to a message of `cls`.  Raises CodecError
    where there is none.  `bytes` stay what they are."""
    if cls is bytes:
        return bytes
    _check_text(codec, content_type)
    made: Any = cls

    def read(data: bytes) -> Any:
        message = made()
        try:
            text = data.decode()
            if content_type is ContentType.PROTO_TEXT:
                from google.protobuf import text_format

                text_format.Parse(text, message)
            else:
                from google.protobuf import json_format

                json_format.Parse(
                    text,
                    message,
                    ignore_unknown_fields=True,
                    max_recursion_depth=MAX_DEPTH,
                )
        except Exception as error:
            raise CodecError(f"{content_type.name}: {error}") from error
        if not message.IsInitialized():
            missing = ", ".join(message.FindInitializationErrors())
            raise CodecError(f"{cls.__qualname__} lacks required fields: {missing}")
        return message

    return read


def _check_text(codec: Codec | None, content_type: ContentType) -> None:
    if not (codec is None or isinstance(codec, ProtobufCodec)):
        raise CodecError(
            f"ContentType={content_type.name} is for protobuf messages, not for those"
            " of another codec"
        )
