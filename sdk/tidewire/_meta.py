"""The parts of an RpcMeta that Python reads and writes itself: user_fields,
request_id, and how the message is coded.  Protobuf wire format, by hand: the rest
was checked in C."""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

__all__ = [
    "decode_coding",
    "decode_user_fields",
    "encode_coding",
    "encode_user_fields",
    "method_of",
    "request_id",
    "trace_ids",
    "varint",
]

_USER_FIELDS: Final = 9
_REQUEST: Final = 1
_REQUEST_ID: Final = 7
_TRACE_IDS: Final = (4, 5, 6)
_COMPRESS_TYPE: Final = 3
_CONTENT_TYPE: Final = 10
_CHECKSUM_TYPE: Final = 11
_CHECKSUM_VALUE: Final = 12
_WITH_ATTACHMENT: Final = 13


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def varint(data: bytes) -> int:
    """The number at the front.  Raises IndexError when it does not end."""
    return _varint(data, 0)[0]


def _all_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and length-delimited fields, in order.  Stops at what is
    malformed."""
    at = 0
    try:
        while at < len(data):
            tag, at = _varint(data, at)
            kind = tag & 7
            if kind == 0:
                value, at = _varint(data, at)
                yield tag >> 3, value
            elif kind == 1:
                at += 8
            elif kind == 5:
                at += 4
            elif kind == 2:
                size, at = _varint(data, at)
                yield tag >> 3, data[at : at + size]
                at += size
            else:
                return
    except IndexError:
        return


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields alone."""
    for number, value in _all_fields(data):
        if isinstance(value, bytes):
            yield number, value


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def decode_user_fields(meta: bytes) -> dict[str, str]:
    """The user_fields of an RpcMeta; bytes that are no UTF-8 are replaced."""
    fields: dict[str, str] = {}
    for number, entry in _fields(meta):
        if number == _USER_FIELDS:
            pair = dict(_fields(entry))
            fields[_text(pair.get(1, b""))] = _text(pair.get(2, b""))
    return fields


def request_id(meta: bytes) -> str:
    """The request_id of a request's RpcMeta, "" when it has none."""
    for number, request in _fields(meta):
        if number == _REQUEST:
            return _text(dict(_fields(request)).get(_REQUEST_ID, b""))
    return ""


def method_of(meta: bytes) -> tuple[str, str]:
    """service_name and method_name of a request's RpcMeta."""
    for number, request in _fields(meta):
        if number == _REQUEST:
            fields = dict(_fields(request))
            return _text(fields.get(1, b"")), _text(fields.get(2, b""))
    return "", ""


def trace_ids(meta: bytes) -> tuple[int, int, int]:
    """trace_id, span_id and parent_span_id of a request's RpcMeta, unsigned; 0
    for what is absent."""
    found: dict[int, int | bytes] = {}
    for number, request in _fields(meta):
        if number == _REQUEST:
            found.update(_all_fields(request))
    trace, span, parent = (
        value if isinstance(value := found.get(number), int) else 0
        for number in _TRACE_IDS
    )
    return trace, span, parent


def _prefixed(tag: int, data: bytes) -> bytes:
    size, head = len(data), bytearray((tag,))
    while size >= 0x80:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + data


def encode_user_fields(fields: Mapping[str, str]) -> bytes:
    """Fields to append to an RpcMeta.  Raises TypeError for what is no str."""
    if not isinstance(fields, Mapping):
        raise TypeError(
            f"metadata is a {type(fields).__name__}; allowed: a mapping of str to str"
        )
    out = bytearray()
    for key, value in fields.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(
                f"metadata is {key!r}: {value!r}; allowed: str keys and values"
            )
        entry = _prefixed(0x0A, key.encode()) + _prefixed(0x12, value.encode())
        out += _prefixed(_USER_FIELDS << 3 | 2, entry)
    return bytes(out)


class CodingFields(NamedTuple):
    """What an RpcMeta says of its message."""

    compress_type: int
    content_type: int
    checksum_type: int
    checksum: bytes
    with_attachment: bool


def decode_coding(meta: bytes) -> CodingFields:
    """How the message of an RpcMeta is coded; what is absent is 0 or empty."""
    fields = dict(_all_fields(meta))

    def number(field: int) -> int:
        value = fields.get(field, 0)
        # int32, sign-extended to 64 bits.
        low = value & 0xFFFF_FFFF if isinstance(value, int) else 0
        return low - 2**32 if low >= 2**31 else low

    checksum = fields.get(_CHECKSUM_VALUE, b"")
    return CodingFields(
        number(_COMPRESS_TYPE),
        number(_CONTENT_TYPE),
        number(_CHECKSUM_TYPE),
        checksum if isinstance(checksum, bytes) else b"",
        number(_WITH_ATTACHMENT) != 0,
    )


def encode_coding(
    compress_type: int,
    content_type: int,
    checksum_type: int,
    checksum: bytes,
    with_attachment: bool,
) -> bytes:
    """Fields to append to an RpcMeta; numbers are below 128, zeros left out."""
    out = bytearray()
    for field, value in (
        (_COMPRESS_TYPE, compress_type),
        (_CONTENT_TYPE, content_type),
        (_CHECKSUM_TYPE, checksum_type),
    ):
        if value:
            out += bytes((field << 3, value))
    if checksum:
        out += _prefixed(_CHECKSUM_VALUE << 3 | 2, checksum)
    if with_attachment:
        out += bytes((_WITH_ATTACHMENT << 3, 1))
    return bytes(out)
