"""The parts of an RpcMeta that Python reads and writes, against protobuf's own
encoding."""

import random

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tidewire._meta import decode_user_fields, encode_user_fields, request_id

_Field = descriptor_pb2.FieldDescriptorProto


def _messages():
    """RpcMeta as far as it matters here, by its numbers in the spec."""
    file = descriptor_pb2.FileDescriptorProto(
        name="tests/meta.proto", package="tests.meta", syntax="proto2"
    )
    request = file.message_type.add(name="RpcRequestMeta")
    for name, number, kind in (
        ("service_name", 1, _Field.TYPE_STRING),
        ("method_name", 2, _Field.TYPE_STRING),
        ("log_id", 3, _Field.TYPE_INT64),
        ("request_id", 7, _Field.TYPE_STRING),
        ("timeout_ms", 8, _Field.TYPE_INT32),
        ("fixed", 20, _Field.TYPE_FIXED32),
        ("double", 21, _Field.TYPE_DOUBLE),
    ):
        request.field.add(
            name=name, number=number, type=kind, label=_Field.LABEL_OPTIONAL
        )
    meta = file.message_type.add(name="RpcMeta")
    meta.field.add(
        name="request",
        number=1,
        type=_Field.TYPE_MESSAGE,
        type_name=".tests.meta.RpcRequestMeta",
        label=_Field.LABEL_OPTIONAL,
    )
    for name, number, kind in (
        ("compress_type", 3, _Field.TYPE_INT32),
        ("correlation_id", 4, _Field.TYPE_INT64),
        ("attachment_size", 5, _Field.TYPE_INT32),
        ("authentication_data", 7, _Field.TYPE_BYTES),
        ("fixed", 30, _Field.TYPE_FIXED64),
    ):
        meta.field.add(name=name, number=number, type=kind, label=_Field.LABEL_OPTIONAL)
    entry = meta.nested_type.add(name="UserFieldsEntry")
    entry.options.map_entry = True
    for name, number in (("key", 1), ("value", 2)):
        entry.field.add(
            name=name,
            number=number,
            type=_Field.TYPE_STRING,
            label=_Field.LABEL_OPTIONAL,
        )
    meta.field.add(
        name="user_fields",
        number=9,
        type=_Field.TYPE_MESSAGE,
        type_name=".tests.meta.RpcMeta.UserFieldsEntry",
        label=_Field.LABEL_REPEATED,
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("tests.meta.RpcMeta")
    )


RpcMeta = _messages()

TEXTS = ["", "a", "key", "x" * 127, "x" * 128, "y" * 20_000, "ü", "\N{SNOWMAN}", "\0"]


@pytest.mark.parametrize("value", TEXTS)
@pytest.mark.parametrize("key", TEXTS)
def test_one_field_as_protobuf_has_it(key: str, value: str) -> None:
    encoded = encode_user_fields({key: value})
    assert dict(RpcMeta.FromString(encoded).user_fields) == {key: value}
    theirs = RpcMeta()
    theirs.user_fields[key] = value
    assert decode_user_fields(theirs.SerializeToString()) == {key: value}


def _random_meta(rng: random.Random):
    meta = RpcMeta()
    for name in ("compress_type", "correlation_id", "attachment_size", "fixed"):
        if rng.random() < 0.5:
            setattr(meta, name, rng.choice([0, 1, 127, 128, 2**31 - 1]))
    if rng.random() < 0.5:
        meta.correlation_id = -rng.getrandbits(60)
    if rng.random() < 0.5:
        meta.authentication_data = rng.randbytes(rng.choice([0, 5, 300]))
    if rng.random() < 0.7:
        meta.request.service_name = rng.choice(TEXTS)
        meta.request.fixed = rng.getrandbits(32)
        meta.request.double = rng.random()
        if rng.random() < 0.7:
            meta.request.request_id = rng.choice(TEXTS)
        if rng.random() < 0.5:
            meta.request.log_id = -1
    for _ in range(rng.choice([0, 1, 5, 50])):
        meta.user_fields[rng.choice(TEXTS) + str(rng.randrange(9))] = rng.choice(TEXTS)
    return meta


@pytest.mark.parametrize("seed", range(5))
def test_random_metas_read_as_protobuf_reads_them(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(100):
        meta = _random_meta(rng)
        data = meta.SerializeToString()
        assert decode_user_fields(data) == dict(meta.user_fields)
        assert request_id(data) == meta.request.request_id


@pytest.mark.parametrize("seed", range(3))
def test_random_fields_round_trip(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(100):
        fields = {
            rng.choice(TEXTS) + str(i): rng.choice(TEXTS)
            for i in range(rng.choice([0, 1, 3, 20]))
        }
        encoded = encode_user_fields(fields)
        assert decode_user_fields(encoded) == fields
        assert dict(RpcMeta.FromString(encoded).user_fields) == fields


def test_encoded_fields_may_be_appended() -> None:
    """The core puts them behind the meta that it wrote."""
    meta = RpcMeta(correlation_id=7)
    data = meta.SerializeToString() + encode_user_fields({"a": "b"})
    assert RpcMeta.FromString(data).correlation_id == 7
    assert dict(RpcMeta.FromString(data).user_fields) == {"a": "b"}


def test_the_last_of_equal_keys_wins() -> None:
    data = encode_user_fields({"k": "1"}) + encode_user_fields({"k": "2"})
    assert (
        decode_user_fields(data)
        == {"k": "2"}
        == dict(RpcMeta.FromString(data).user_fields)
    )


def test_missing_key_or_value_is_empty() -> None:
    assert decode_user_fields(b"\x4a\x00") == {"": ""}
    assert decode_user_fields(b"\x4a\x03\x0a\x01k") == {"k": ""}
    assert decode_user_fields(b"\x4a\x03\x12\x01v") == {"": "v"}


def test_bytes_that_are_no_utf8_are_replaced() -> None:
    assert decode_user_fields(b"\x4a\x05\x0a\x01\xff\x12\x00") == {"\ufffd": ""}
    assert request_id(b"\x0a\x03\x3a\x01\xff") == "\ufffd"


def test_no_request_no_request_id() -> None:
    assert request_id(b"") == ""
    assert request_id(RpcMeta(correlation_id=1).SerializeToString()) == ""


@pytest.mark.parametrize("seed", range(10))
def test_damaged_bytes_raise_nothing(seed: int) -> None:
    """The core has checked a meta before; this must not be a second trap."""
    rng = random.Random(seed)
    for _ in range(200):
        data = bytearray(_random_meta(rng).SerializeToString())
        for _ in range(rng.choice([1, 3, 10])):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        cut = bytes(data[: rng.randrange(len(data) + 1)])
        assert isinstance(decode_user_fields(cut), dict)
        assert isinstance(request_id(cut), str)


def test_endless_varints_end() -> None:
    assert decode_user_fields(b"\xff" * 10_000) == {}
    assert request_id(b"\x0a" + b"\xff" * 10_000) == ""


@pytest.mark.parametrize(
    "wrong", [{"a": 1}, {1: "a"}, {"a": None}, {b"a": "b"}, {"a": b"b"}]
)
def test_what_is_no_text_is_named(wrong) -> None:
    with pytest.raises(TypeError, match=r"metadata is .*; allowed: str keys"):
        encode_user_fields(wrong)


@pytest.mark.parametrize("wrong", ["x", 7, [("a", "b")], {"a"}])
def test_what_is_no_mapping_is_named(wrong) -> None:
    with pytest.raises(TypeError, match="metadata is a .*; allowed: a mapping"):
        encode_user_fields(wrong)


def test_unpaired_surrogates_cannot_travel() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        encode_user_fields({"a": "\udcff"})
