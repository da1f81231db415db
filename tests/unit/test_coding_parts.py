"""Codings without a connection: JSON's depth, the numbers of the wire."""

import pytest
import tidewire as tw
from google.protobuf import struct_pb2
from tidewire import _meta, coding

JSON = tw.ContentType.JSON


def test_json_is_at_most_100_deep() -> None:
    read = coding.reader(None, struct_pb2.Value, JSON)
    # A list is two messages: Value and ListValue.
    assert read(b"[" * 30 + b"]" * 30)
    for deep in (101, 5_000, 200_000):
        with pytest.raises(tw.CodecError, match="JSON: "):
            read(b"[" * deep + b"]" * deep)


def test_text_that_is_too_deep_is_an_error() -> None:
    read = coding.reader(None, struct_pb2.Value, tw.ContentType.PROTO_TEXT)
    deep = 20_000
    with pytest.raises(tw.CodecError, match="PROTO_TEXT: "):
        read(b"list_value{values{" * deep + b"}}" * deep)


def test_messages_of_another_codec_have_no_other_content_type() -> None:
    class Codec:
        def encoder(self, cls: type) -> object: ...
        def decoder(self, cls: type) -> object: ...

    for make in (coding.reader, coding.writer):
        with pytest.raises(tw.CodecError, match="another codec"):
            make(Codec(), struct_pb2.Value, JSON)  # type: ignore[arg-type]


def test_the_writer_takes_messages_of_its_class_only() -> None:
    write = coding.writer(None, struct_pb2.Value, JSON)
    with pytest.raises(TypeError, match="expected a Value, got a Struct"):
        write(struct_pb2.Struct())


def test_fields_are_read_whatever_stands_between() -> None:
    fields = _meta.encode_coding(2, 1, 1, b"abcd", True)
    said = _meta.decode_coding(b"\x20\x05" + fields + b"\x4a\x00")
    assert said == (2, 1, 1, b"abcd", True)
    assert _meta.decode_coding(b"") == (0, 0, 0, b"", False)
    assert _meta.encode_coding(0, 0, 0, b"", False) == b""
    # The last one counts; negative numbers have ten bytes.
    minus = b"\x18" + b"\xff" * 9 + b"\x01"
    assert _meta.decode_coding(b"\x18\x02" + minus).compress_type == -1


def test_the_checksum_of_the_specification_masked() -> None:
    # CRC-32C of "123456789" is e3069283.
    assert coding.checksum_of(b"1234", b"56789").hex() == "c78ab0e5"
    rotated = (0xE3069283 >> 15 | 0xE3069283 << 17) & 0xFFFFFFFF
    assert f"{(rotated + 0xA282EAD8) & 0xFFFFFFFF:08x}" == "c78ab0e5"
