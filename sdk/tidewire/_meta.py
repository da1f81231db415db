"""The parts of an RpcMeta that Python reads and writes itself: user_fields and
request_id.  Protobuf wire format, by hand: the rest was checked in C."""

from collections.abc import Iterator, Mapping
from typing import Final

__all__ = ["decode_user_fields", "encode_user_fields", "request_id"]

_USER_FIELDS: Final = 9
_REQUEST: Final = 1
_REQUEST_ID: Final = 7


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields, in order.  Stops at what is malformed."""
    at = 0
    try:
        while at < len(data):
            tag, at = _varint(data, at)
            kind = tag & 7
            if kind == 0:
                _, at = _varint(data, at)
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
