"""How messages travel: compressed, with checksums, in other content types."""

import gzip
import itertools
import secrets
import socket
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import cramjam
import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "interop"))

import wire
from bed import RawServer

KIB = 1 << 10
HELLO = wire.EchoRequest(message="hello").SerializeToString()
REQUEST = echo_pb2.EchoRequest(message="hello")
EVERY = [
    tw.Coding(compression=compression, content_type=kind, checksum=checksum)
    for compression, kind, checksum in itertools.product(
        tw.Compression, tw.ContentType, tw.Checksum
    )
]


def echo(request, ctx):
    """In kind: as the request came."""
    if ctx.attachment:
        ctx.reply_attachment = ctx.attachment
    ctx.reply_metadata = {"seen": repr(ctx.coding)}
    ctx.reply_coding = ctx.coding
    return echo_pb2.EchoResponse(message=request.message)


@pytest.mark.parametrize("coding", EVERY, ids=repr)
def test_both_ways_in_every_coding(face, serve, coding):
    client = face.client(echo_tw, face.channel(serve(echo).address))
    for text in ("", "hello", secrets.token_hex(40_000), "z" * 300_000):
        request = echo_pb2.EchoRequest(message=text)
        response = face.full(client, "echo", request, coding=coding, timeout=10)
        assert response.message.message == text
        assert response.coding == coding
        assert response.metadata == {"seen": repr(coding)}


def test_with_an_attachment_under_the_checksum(face, serve):
    client = face.client(echo_tw, face.channel(serve(echo).address))
    coding = tw.Coding(
        compression=tw.Compression.ZLIB,
        checksum=tw.Checksum.CRC32C,
        checksum_attachment=True,
    )
    for size in (0, 1, 4096, 300_000):
        data = secrets.token_bytes(size)
        response = face.full(
            client, "echo", REQUEST, coding=coding, attachment=data, timeout=10
        )
        assert (response.attachment, response.coding) == (data, coding)


def test_the_channels_coding_holds_unless_the_call_has_its_own(face, serve):
    snappy = tw.Coding(compression=tw.Compression.SNAPPY)
    gzipped = tw.Coding(compression=tw.Compression.GZIP)
    channel = face.channel(serve(echo).address, coding=snappy)
    client = face.client(echo_tw, channel)
    assert face.full(client, "echo", REQUEST).coding == snappy
    assert face.full(client, "echo", REQUEST, coding=gzipped).coding == gzipped
    assert face.full(client, "echo", REQUEST, coding=tw.Coding()).coding == tw.Coding()
    assert face.call(client, "echo", REQUEST).message == "hello"


def test_a_future_is_coded_as_well(serve):
    with tw.Channel(serve(echo).address) as channel:
        client = echo_tw.EchoClient(channel)
        coding = tw.Coding(compression=tw.Compression.GZIP)
        assert client.echo.future(REQUEST, coding=coding).result(10).message == "hello"


def test_the_server_answers_bare_unless_told(face, serve):
    client = face.client(echo_tw, face.channel(serve().address))
    coding = tw.Coding(compression=tw.Compression.GZIP, checksum=tw.Checksum.CRC32C)
    assert face.full(client, "echo", REQUEST, coding=coding).coding == tw.Coding()


# ---- bad input


def asked(address: str, message: bytes, **meta: object) -> wire.Frame:
    """One request of our own making, and its answer; the connection goes on."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as sock:
        made = wire.RpcMeta(correlation_id=7, **meta)
        made.request.service_name = "example.EchoService"
        made.request.method_name = "Echo"
        attachment = b"ATT" if meta.get("checksum_with_attachment") else b""
        sock.sendall(wire.pack(made, message, attachment))
        frame = wire.read_frame(sock)
        assert frame.id == 7
        sock.sendall(wire.echo_request("next", id=8))
        following = wire.read_frame(sock)
        assert wire.EchoResponse.FromString(following.message).message == "next"
        return frame


def inflating(size: int) -> bytes:
    """An encoded request of exactly so many bytes."""
    return wire.EchoRequest(message="x" * (size - 4)).SerializeToString()


PACK = {
    1: lambda data: bytes(cramjam.snappy.compress_raw(data)),
    2: gzip.compress,
    3: zlib.compress,
}


OWN = tw.MethodOptions(max_message=64 * KIB)


@pytest.mark.parametrize(
    "limit",
    [{"max_message": 64 * KIB}, {"methods": {"example.EchoService/Echo": OWN}}],
    ids=["of the server", "of the method"],
)
@pytest.mark.parametrize("kind", PACK)
def test_w5_what_is_decompressed_obeys_the_limit_of_messages(serve, kind, limit):
    """W5: of exactly the limit it is served, one byte more is refused."""
    address = serve(echo, **limit).address
    # Three bytes of length and a byte of tag lead in.
    message = inflating(64 * KIB)
    assert len(message) == 64 * KIB
    served = asked(address, PACK[kind](message), compress_type=kind)
    assert served.meta.response.error_code == 0
    refused = asked(address, PACK[kind](inflating(64 * KIB + 1)), compress_type=kind)
    assert refused.meta.response.error_code == 1003
    assert "more than 65536 bytes" in refused.meta.response.error_text
    # A bomb: a thousand times what came.
    bomb = asked(address, PACK[kind](bytes(16 << 20))[: 60 * KIB], compress_type=kind)
    assert bomb.meta.response.error_code == 1003


GZ, ZL, SN = gzip.compress(HELLO), zlib.compress(HELLO), PACK[1](HELLO)


@pytest.mark.parametrize(
    ("data", "kind", "why"),
    [
        (b"", 2, "the end is missing"),
        (GZ[:-1], 2, "the end is missing"),
        (GZ + b"x", 2, "follows the end"),
        (ZL, 2, "gzip:"),
        (GZ[:-8] + b"\0" * 8, 2, "gzip:"),
        (b"", 3, "the end is missing"),
        (ZL[:-1], 3, "the end is missing"),
        (ZL + b"x", 3, "follows the end"),
        (GZ, 3, "zlib:"),
        (b"", 1, "the length is missing"),
        (b"\x80", 1, "the length is missing"),
        (b"\x80" * 200, 1, "the length is missing"),
        (b"\xff\xff\xff\xff\x7f" + SN[1:], 1, "more than"),
        (b"\x80\x80\x80\x01" + SN[1:], 1, "the length is wrong"),
        (SN[:-1], 1, "snappy:"),
        (SN + b"x", 1, "snappy:"),
        (HELLO, 4, "CompressType=4"),
    ],
)
def test_what_cannot_be_decompressed_fails_that_call(serve, data, kind, why):
    frame = asked(serve(echo).address, data, compress_type=kind)
    assert frame.meta.response.error_code == 1003
    text = frame.meta.response.error_text
    assert text.startswith("Fail to parse request=EchoRequest, ContentType=0, Comp")
    assert why in text


RIGHT = wire.masked_crc32c(HELLO)


@pytest.mark.parametrize("value", [b"", b"abc", b"\0\0\0\0", RIGHT[:3], RIGHT + b"\0"])
@pytest.mark.parametrize("behind", [False, True])
def test_b4_a_wrong_checksum_fails_the_call(face, serve, value, behind):
    """B4: of whatever length, with the attachment and without; at the server
    and at the client."""
    fields = {
        "checksum_type": 1,
        "checksum_value": value,
        "checksum_with_attachment": behind,
    }
    frame = asked(serve(echo).address, HELLO, **fields)
    assert frame.meta.response.error_code == 1003
    assert "the checksum is wrong" in frame.meta.response.error_text
    with RawServer() as server:
        client = face.client(echo_tw, face.channel(server.address, timeout=10))
        call = face.start(client, "echo", REQUEST)
        connection = server.accept()
        ours = wire.read_frame(connection)
        connection.sendall(wire.answer(ours, message=HELLO, **fields))
        with pytest.raises(tw.Internal, match="the checksum is wrong") as caught:
            call.result(10)
        assert caught.value.number == tw.Errno.ERESPONSE
        assert caught.value.phase is tw.Phase.READ


def test_b4_the_right_checksum_covers_message_and_attachment(serve):
    """B4: as it travels, compressed, and the attachment behind it."""
    value = wire.masked_crc32c(GZ + b"ATT")
    fields = {"compress_type": 2, "checksum_type": 1, "checksum_with_attachment": True}
    frame = asked(serve(echo).address, GZ, checksum_value=value, **fields)
    assert frame.meta.response.error_code == 0
    assert frame.attachment == b"ATT"
    wrong = wire.masked_crc32c(HELLO + b"ATT")
    frame = asked(serve(echo).address, GZ, checksum_value=wrong, **fields)
    assert frame.meta.response.error_code == 1003


@pytest.mark.parametrize("number", [2, 99, -1, 2**31 - 1, -(2**31)])
def test_checksums_of_unknown_types_are_not_looked_at(serve, number):
    """As brpc does."""
    frame = asked(serve().address, HELLO, checksum_type=number, checksum_value=b"x")
    assert frame.meta.response.error_code == 0


@pytest.mark.parametrize(
    ("data", "kind", "why"),
    [
        (b"\xff", 1, "JSON: "),
        (b"{", 1, "JSON: "),
        (b"[1]", 1, "JSON: "),
        (b"{}", 1, "lacks required fields"),
        (b'{"message": 5}', 2, "PROTO_JSON: "),
        (b'message: "hello', 3, "PROTO_TEXT: "),
        (HELLO, 4, "ContentType=4 is unknown"),
        (HELLO, -1, "ContentType=-1 is unknown"),
    ],
)
def test_what_cannot_be_read_fails_that_call(serve, data, kind, why):
    frame = asked(serve(echo).address, data, content_type=kind)
    assert frame.meta.response.error_code == 1003
    assert why in frame.meta.response.error_text


@pytest.mark.parametrize("kind", PACK)
def test_w5_a_channels_limit_bounds_what_is_decompressed(face, kind):
    """W5: at the client, too."""
    with RawServer() as server:
        channel = face.channel(server.address, timeout=10, max_message=64 * KIB)
        client = face.client(echo_tw, channel)

        def begun(size):
            return face.start(client, "echo", REQUEST), PACK[kind](inflating(size))

        call, packed = begun(64 * KIB)
        connection = server.accept()
        ours = wire.read_frame(connection)
        connection.sendall(wire.answer(ours, message=packed, compress_type=kind))
        assert len(call.result(10).message) == 64 * KIB - 4
        call, packed = begun(64 * KIB + 1)
        ours = wire.read_frame(connection)
        connection.sendall(wire.answer(ours, message=packed, compress_type=kind))
        with pytest.raises(tw.Internal, match="more than 65536") as caught:
            call.result(10)
        assert caught.value.number == tw.Errno.ERESPONSE


@pytest.mark.parametrize("number", [2, 99, -1])
def test_a_client_does_not_look_at_checksums_of_unknown_types(face, number):
    with RawServer() as server:
        client = face.client(echo_tw, face.channel(server.address, timeout=10))
        call = face.start(client, "echo", REQUEST)
        connection = server.accept()
        ours = wire.read_frame(connection)
        connection.sendall(wire.answer(ours, message=HELLO, checksum_type=number))
        assert call.result(10).message == "hello"


def test_unknown_names_in_json_are_ignored(serve):
    data = b'{"message": "hello", "nobody": {"knows": [1]}}'
    frame = asked(serve().address, data, content_type=1)
    assert wire.EchoResponse.FromString(frame.message).message == "hello"


def test_bytes_have_no_other_content_type(face, serve):
    info = tw.MethodInfo(
        service="example.EchoService", name="Echo", request=bytes, response=bytes
    )
    channel = face.channel(serve().address)
    client = SimpleNamespace(raw=channel.unary(info))
    coding = tw.Coding(content_type=tw.ContentType.JSON)
    with pytest.raises(tw.CodecError, match="not for bytes"):
        face.call(client, "raw", HELLO, coding=coding)
    packed = tw.Coding(compression=tw.Compression.GZIP)
    assert face.call(client, "raw", HELLO, coding=packed)


# ---- without the extra


def test_a_missing_extra_is_named(serve, monkeypatch):
    monkeypatch.setitem(sys.modules, "cramjam", None)
    monkeypatch.setitem(sys.modules, "crc32c", None)
    with pytest.raises(ImportError, match=r"snappy.*tidewire\[compress\]"):
        tw.Coding(compression=tw.Compression.SNAPPY)
    with pytest.raises(ImportError, match=r"crc32c.*tidewire\[compress\]"):
        tw.Coding(checksum=tw.Checksum.CRC32C)
    tw.Coding(compression=tw.Compression.GZIP)
    frame = asked(serve().address, SN, compress_type=1)
    assert frame.meta.response.error_code == 1003
    assert "tidewire[compress]" in frame.meta.response.error_text


# ---- options


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"compression": 4}, tw.OptionError, "Coding.compression is 4; allowed:"),
        ({"compression": "gzip"}, tw.OptionError, "Coding.compression is 'gzip'"),
        ({"content_type": -1}, tw.OptionError, "Coding.content_type is -1"),
        ({"checksum": None}, tw.OptionError, "Coding.checksum is None"),
        ({"checksum_attachment": 1}, TypeError, "Coding.checksum_attachment is 1"),
        ({"checksum_attachment": True}, tw.OptionError, "without a checksum"),
    ],
)
def test_a_wrong_coding_is_refused(fields, error, said):
    with pytest.raises(error, match=said.replace(".", r"\.")):
        tw.Coding(**fields)


def test_only_a_coding_is_one(face, serve):
    with pytest.raises(TypeError, match=r"ChannelOptions\.coding is 2"):
        tw.ChannelOptions(coding=2)  # type: ignore[arg-type]
    client = face.client(echo_tw, face.channel(serve().address))
    with pytest.raises(TypeError, match="coding is a int; allowed: a tidewire.Coding"):
        face.call(client, "echo", REQUEST, coding=2)


def test_the_reply_takes_only_a_coding(face, serve):
    said = []

    def handler(request, ctx):
        try:
            ctx.reply_coding = "gzip"
        except TypeError as error:
            said.append(str(error))
        return echo_pb2.EchoResponse(message=request.message)

    client = face.client(echo_tw, face.channel(serve(handler).address))
    assert face.call(client, "echo", REQUEST).message == "hello"
    assert said == ["reply_coding is a str; allowed: a tidewire.Coding"]
