"""Codecs: two plain functions per message class."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, struct_pb2, wrappers_pb2
from tidewire.codec import Codec, ProtobufCodec, functions_for
from tidewire.errors import CodecError

File = descriptor_pb2.FileDescriptorProto
# The only message with required fields that protobuf ships, and one around it.
Part = descriptor_pb2.UninterpretedOption.NamePart
Around = descriptor_pb2.UninterpretedOption


class TestProtobuf:
    def test_round_trip(self) -> None:
        encode, decode = functions_for(None, File)
        message = File(name="a.proto", package="p")
        assert encode(message) == message.SerializeToString()
        assert decode(encode(message)) == message

    def test_the_default_decoder_is_protobufs_own(self) -> None:
        # Nothing of Python runs per call.
        cls = wrappers_pb2.StringValue
        assert ProtobufCodec().decoder(cls) == cls.FromString

    def test_another_message_is_refused_with_both_names(self) -> None:
        encode, _ = functions_for(None, File)
        wrong: Any
        for wrong in (wrappers_pb2.StringValue(value="x"), None, b"x", File):
            with pytest.raises(TypeError) as caught:
                encode(wrong)
            assert "google.protobuf.descriptor_pb2.FileDescriptorProto" in str(
                caught.value
            )
            assert type(wrong).__name__ in str(caught.value)

    @pytest.mark.parametrize("message", [Part(name_part="x"), Around(name=[Part()])])
    def test_missing_required_fields_are_named(self, message: Any) -> None:
        encode, decode = functions_for(None, type(message))
        with pytest.raises(CodecError, match="is_extension") as caught:
            encode(message)
        assert type(message).__name__ in str(caught.value)
        with pytest.raises(CodecError, match="is_extension"):
            decode(message.SerializePartialToString())

    def test_complete_required_fields_pass(self) -> None:
        encode, decode = functions_for(None, Part)
        part = Part(name_part="x", is_extension=True)
        assert decode(encode(part)) == part

    def test_messages_inside_themselves_are_searched_once(self) -> None:
        _, decode = functions_for(None, struct_pb2.Struct)
        assert decode(b"") == struct_pb2.Struct()

    def test_bytes_that_are_no_message_raise(self) -> None:
        _, decode = functions_for(None, File)
        with pytest.raises(Exception, match="FileDescriptorProto"):
            decode(b"\xff\xff")

    @pytest.mark.parametrize("wrong", [str, dict, 7, None, File()])
    def test_what_is_no_message_class_is_refused_early(self, wrong: Any) -> None:
        with pytest.raises(TypeError, match="not a generated protobuf message class"):
            functions_for(None, wrong)


class Json:
    def encoder(self, cls: type, /) -> Callable[[Any], bytes]:
        return lambda message: json.dumps(message).encode()

    def decoder(self, cls: type, /) -> Callable[[bytes], Any]:
        return json.loads


def test_a_codec_is_any_object_with_two_methods() -> None:
    assert isinstance(Json(), Codec)
    assert isinstance(ProtobufCodec(), Codec)
    encode, decode = functions_for(Json(), dict)
    assert decode(encode({"a": 1})) == {"a": 1}


@pytest.mark.parametrize("codec", [None, Json()])
def test_bytes_are_raw_with_every_codec(codec: Codec | None) -> None:
    encode, decode = functions_for(codec, bytes)
    body = b"\0\xff"
    assert encode(body) is body
    assert decode(body) is body
    other: Any
    for other in (bytearray(body), memoryview(body)):
        assert type(encode(other)) is bytes
        assert encode(other) == body
    for other in ("text", None, 5):
        with pytest.raises(TypeError, match="expected a bytes, got a"):
            encode(other)


def test_protobuf_is_not_imported_for_raw_bytes() -> None:
    script = (
        "import sys; from tidewire.codec import functions_for\n"
        "functions_for(None, bytes)\n"
        "sys.exit('google.protobuf' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
