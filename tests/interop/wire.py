"""An independent reader and writer of baidu_std frames, for tests only.

RpcMeta is a protobuf message built here, from spec/baidu_std.md section 2, in
a descriptor pool of its own: nothing is shared with the SDK or the C core.
"""

import gzip
import random
import socket
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cramjam
import crc32c
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = [
    "HEADER",
    "WAYS",
    "EchoRequest",
    "EchoResponse",
    "Frame",
    "RpcMeta",
    "answer",
    "echo_request",
    "masked_crc32c",
    "pack",
    "pieces",
    "raw_frame",
    "read_frame",
    "read_frames",
    "send",
    "split",
    "with_correlation_id",
]

HEADER = 12

_F = descriptor_pb2.FieldDescriptorProto
_INT32, _INT64, _BOOL = _F.TYPE_INT32, _F.TYPE_INT64, _F.TYPE_BOOL
_STRING, _BYTES, _MESSAGE = _F.TYPE_STRING, _F.TYPE_BYTES, _F.TYPE_MESSAGE
_OPTIONAL, _REQUIRED, _REPEATED = (
    _F.LABEL_OPTIONAL,
    _F.LABEL_REQUIRED,
    _F.LABEL_REPEATED,
)

# Message -> (number, name, type, label[, message type]).
_TABLE: dict[str, list[tuple[Any, ...]]] = {
    "RpcRequestMeta": [
        (1, "service_name", _STRING, _REQUIRED),
        (2, "method_name", _STRING, _REQUIRED),
        (3, "log_id", _INT64, _OPTIONAL),
        (4, "trace_id", _INT64, _OPTIONAL),
        (5, "span_id", _INT64, _OPTIONAL),
        (6, "parent_span_id", _INT64, _OPTIONAL),
        (7, "request_id", _STRING, _OPTIONAL),
        (8, "timeout_ms", _INT32, _OPTIONAL),
    ],
    "RpcResponseMeta": [
        (1, "error_code", _INT32, _OPTIONAL),
        (2, "error_text", _STRING, _OPTIONAL),
    ],
    "ChunkInfo": [
        (1, "stream_id", _INT64, _REQUIRED),
        (2, "chunk_id", _INT64, _REQUIRED),
    ],
    "StreamSettings": [
        (1, "stream_id", _INT64, _REQUIRED),
        (2, "need_feedback", _BOOL, _OPTIONAL),
        (3, "writable", _BOOL, _OPTIONAL),
        (4, "extra_stream_ids", _INT64, _REPEATED),
    ],
    "RpcMeta": [
        (1, "request", _MESSAGE, _OPTIONAL, "RpcRequestMeta"),
        (2, "response", _MESSAGE, _OPTIONAL, "RpcResponseMeta"),
        (3, "compress_type", _INT32, _OPTIONAL),
        (4, "correlation_id", _INT64, _OPTIONAL),
        (5, "attachment_size", _INT32, _OPTIONAL),
        (6, "chunk_info", _MESSAGE, _OPTIONAL, "ChunkInfo"),
        (7, "authentication_data", _BYTES, _OPTIONAL),
        (8, "stream_settings", _MESSAGE, _OPTIONAL, "StreamSettings"),
        (9, "user_fields", _MESSAGE, _REPEATED, "RpcMeta.UserFieldsEntry"),
        # An enum on paper; as int32 every value can be read and written.
        (10, "content_type", _INT32, _OPTIONAL),
        (11, "checksum_type", _INT32, _OPTIONAL),
        (12, "checksum_value", _BYTES, _OPTIONAL),
        (13, "checksum_with_attachment", _BOOL, _OPTIONAL),
    ],
    # The echo service of captures/echo.proto, again without its stubs.
    "EchoRequest": [
        (1, "message", _STRING, _REQUIRED),
        (2, "sleep_ms", _INT32, _OPTIONAL),
        (3, "fail_code", _INT32, _OPTIONAL),
    ],
    "EchoResponse": [
        (1, "message", _STRING, _REQUIRED),
        (2, "nums", _INT32, _REPEATED),
        (3, "blob", _BYTES, _OPTIONAL),
    ],
}


def _fields(message: Any, rows: Iterable[tuple[Any, ...]]) -> None:
    for number, name, kind, label, *of in rows:
        message.field.add(
            number=number,
            name=name,
            type=kind,
            label=label,
            type_name=f".wire.{of[0]}" if of else None,
        )


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="wire.proto", package="wire", syntax="proto2"
    )
    for name, rows in _TABLE.items():
        message = file.message_type.add(name=name)
        _fields(message, rows)
        if name == "RpcMeta":
            entry = message.nested_type.add(name="UserFieldsEntry")
            entry.options.map_entry = True
            _fields(
                entry,
                [(1, "key", _STRING, _OPTIONAL), (2, "value", _STRING, _OPTIONAL)],
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"wire.{name}")
        )
        for name in _TABLE
    }


_made = _classes()
RpcMeta: Any = _made["RpcMeta"]
EchoRequest: Any = _made["EchoRequest"]
EchoResponse: Any = _made["EchoResponse"]


@dataclass
class Frame:
    """One frame taken apart."""

    meta: Any
    message: bytes
    attachment: bytes
    size: int
    """Bytes on the wire, header included."""

    @property
    def id(self) -> int:
        return int(self.meta.correlation_id)

    def meaning(self) -> dict[str, Any]:
        """All that the frame says but its correlation id and its deadline;
        absent and zero are the same."""
        meta = self.meta
        said: dict[str, Any] = {
            name: getattr(meta, name)
            for name in (
                "compress_type",
                "content_type",
                "checksum_type",
                "checksum_with_attachment",
                "authentication_data",
            )
        }
        said["checksum"] = self._checksum()
        said["attachment"] = self.attachment
        said["user_fields"] = dict(meta.user_fields)
        for name in ("chunk_info", "stream_settings"):
            said[name] = meta.HasField(name)
        if meta.HasField("request"):
            request = meta.request
            said["request"] = {
                name: getattr(request, name)
                for name in (
                    "service_name",
                    "method_name",
                    "log_id",
                    "trace_id",
                    "span_id",
                    "parent_span_id",
                    "request_id",
                )
            }
            said["message"] = EchoRequest.FromString(self.decompressed())
        else:
            code = meta.response.error_code
            said["response"] = (code, unprefixed(meta.response.error_text))
            said["message"] = (
                None if code else EchoResponse.FromString(self.decompressed())
            )
        return said

    def decompressed(self) -> bytes:
        """The message before it was compressed."""
        undo: dict[int, Callable[[bytes], bytes]] = {
            0: bytes,
            1: lambda data: bytes(cramjam.snappy.decompress_raw(data)),
            2: gzip.decompress,
            3: zlib.decompress,
        }
        return undo[self.meta.compress_type](self.message)

    def _checksum(self) -> bytes | bool:
        """The checksum, or whether it is right: compressors differ."""
        meta = self.meta
        if not meta.compress_type or not meta.checksum_type:
            return bytes(meta.checksum_value)
        behind = self.attachment if meta.checksum_with_attachment else b""
        return bool(meta.checksum_value == masked_crc32c(self.message + behind))


def masked_crc32c(data: bytes) -> bytes:
    """checksum_value of these bytes."""
    crc = crc32c.crc32c(data)
    rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
    return ((rotated + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "big")


def unprefixed(text: str) -> str:
    """An error text without brpc's "[ip:port][E..]" prefixes."""
    while text.startswith("[") and "]" in text:
        text = text.partition("]")[2]
    return text


def take(data: bytes | bytearray | memoryview) -> Frame | None:
    """The first frame of `data`, None when it is not whole.  Raises what is
    wrong with it."""
    if len(data) < HEADER:
        return None
    magic, body, meta_size = struct.unpack_from(">4sII", data)
    assert magic == b"PRPC", magic
    assert meta_size <= body, (meta_size, body)
    if len(data) < HEADER + body:
        return None
    meta = RpcMeta.FromString(bytes(data[HEADER : HEADER + meta_size]))
    payload = bytes(data[HEADER + meta_size : HEADER + body])
    cut = len(payload) - meta.attachment_size
    assert 0 <= cut <= len(payload), (meta.attachment_size, len(payload))
    return Frame(meta, payload[:cut], payload[cut:], HEADER + body)


def split(data: bytes | bytearray) -> tuple[list[Frame], bytes]:
    """The frames of `data`, and what is left behind the last."""
    frames, view = [], memoryview(data)
    while (frame := take(view)) is not None:
        frames.append(frame)
        view = view[frame.size :]
    return frames, bytes(view)


def raw_frame(
    meta: bytes,
    payload: bytes = b"",
    *,
    magic: bytes = b"PRPC",
    body_size: int | None = None,
    meta_size: int | None = None,
) -> bytes:
    """A frame of any bytes; the sizes are right unless they are given."""
    body = len(meta) + len(payload) if body_size is None else body_size
    size = len(meta) if meta_size is None else meta_size
    return magic + struct.pack(">II", body, size) + meta + payload


def pack(meta: Any, message: bytes = b"", attachment: bytes = b"") -> bytes:
    """A frame of `meta`, whose attachment_size is set."""
    if attachment:
        meta.attachment_size = len(attachment)
    return raw_frame(meta.SerializePartialToString(), message + attachment)


def echo_request(
    text: str = "hello",
    *,
    id: int = 1,
    service: str = "example.EchoService",
    method: str = "Echo",
    attachment: bytes = b"",
    sleep_ms: int = 0,
    fail_code: int = 0,
    timeout_ms: int = 0,
    **meta_fields: Any,
) -> bytes:
    """The frame of one call of the echo service."""
    meta = RpcMeta(correlation_id=id, **meta_fields)
    meta.request.service_name = service
    meta.request.method_name = method
    if timeout_ms:
        meta.request.timeout_ms = timeout_ms
    request = EchoRequest(message=text)
    if sleep_ms:
        request.sleep_ms = sleep_ms
    if fail_code:
        request.fail_code = fail_code
    return pack(meta, request.SerializeToString(), attachment)


def answer(
    request: Frame | int,
    text: str | None = "hello",
    *,
    code: int = 0,
    error_text: str = "",
    message: bytes | None = None,
    attachment: bytes = b"",
    **meta_fields: Any,
) -> bytes:
    """The frame that answers `request` (or a correlation id)."""
    id = request if isinstance(request, int) else request.id
    meta = RpcMeta(correlation_id=id, **meta_fields)
    meta.response.error_code = code
    if error_text:
        meta.response.error_text = error_text
    if message is None:
        message = b"" if code else EchoResponse(message=text).SerializeToString()
    return pack(meta, message, attachment)


INT_MAX, INT_MIN = 2**31 - 1, -(2**31)

UNKNOWN_ENUMS = [
    (name, value)
    for name, values in {
        "compress_type": (4, 5, 99, -1, INT_MAX, INT_MIN),
        "content_type": (4, 99, -1, INT_MAX, INT_MIN),
    }.items()
    for value in values
]
"""Fields of a meta with values that mean nothing."""


# ---- byte surgery: what was recorded stays as it is but for one field


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """(the number at that place, the place behind it)."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _to_varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def with_correlation_id(frame: bytes, id: int) -> bytes:
    """One whole frame with another correlation id, every other byte as it was
    (but for the two sizes in its header)."""
    body, meta_size = struct.unpack_from(">II", frame, 4)
    assert len(frame) == HEADER + body
    meta, at = frame[HEADER : HEADER + meta_size], 0
    while at < len(meta):
        tag, after = read_varint(meta, at)
        if tag & 7 == 0:
            _, end = read_varint(meta, after)
        else:
            assert tag & 7 == 2, tag
            size, end = read_varint(meta, after)
            end += size
        if tag == 4 << 3:
            meta = meta[:after] + _to_varint(id) + meta[end:]
            return raw_frame(meta, frame[HEADER + meta_size :])
        at = end
    raise AssertionError("no correlation id in the frame")


# ---- sockets

WAYS = ("whole", "bytewise", "random")
"""How bytes may arrive."""


def pieces(data: bytes, way: str, seed: int = 0) -> Iterator[bytes]:
    """`data` cut for sending; large data is never cut into single bytes
    everywhere, only at its beginning and its end."""
    if way == "whole":
        yield data
        return
    rng = random.Random(seed)
    many = 4096
    at = 0
    while at < len(data):
        if many <= at < len(data) - many:
            size = min(len(data) - many - at, rng.randint(1, 1 << 17))
        elif way == "bytewise":
            size = 1
        else:
            size = rng.randint(1, 64)
        yield data[at : at + size]
        at += size


def send(sock: socket.socket, data: bytes, way: str = "whole", seed: int = 0) -> None:
    """Sends `data`, each piece in a segment of its own."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for piece in pieces(data, way, seed):
        sock.sendall(piece)


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """`size` bytes; EOFError when fewer come."""
    data = bytearray()
    while len(data) < size:
        more = sock.recv(min(size - len(data), 1 << 20))
        if not more:
            raise EOFError(f"{len(data)} of {size} bytes, then the end")
        data += more
    return bytes(data)


def read_raw_frame(sock: socket.socket) -> bytes:
    """The bytes of one whole frame; EOFError when there is none."""
    header = read_exactly(sock, HEADER)
    return header + read_exactly(sock, struct.unpack_from(">I", header, 4)[0])


def read_frame(sock: socket.socket) -> Frame:
    """One whole frame; EOFError when there is none."""
    frame = take(read_raw_frame(sock))
    assert frame is not None
    return frame


def read_frames(sock: socket.socket, count: int) -> list[Frame]:
    return [read_frame(sock) for _ in range(count)]
