"""Bytes that a server should never see: the connection or the call fails
cleanly, other connections notice nothing, nothing is leaked."""

import functools
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "interop"))

import wire
from bed import (
    SERVERS,
    Scene,
    Witness,
    at_end,
    balanced,
    census,
    core_log,
    counter,
    reset,
    serving,
    wait_until,
)

MIB = 1 << 20
MAX_MESSAGE = 2 * MIB
"""The servers' limit here, so that a meta over 1 MiB fits below it."""


@contextmanager
def trial(
    kind: str, lines: int | None, max_message: int = MAX_MESSAGE, **options: Any
) -> Iterator[Scene]:
    """A server that is treated badly while a witness calls it.

    lines: how many the log gets, None: any number.
    """
    with (
        serving(kind, max_message=max_message, **options) as scene,
        Witness(scene.host_port) as witness,
        core_log() as log,
    ):
        with balanced():
            yield scene
        witness.check()
        if lines is not None:
            log.exactly(lines)


def ran(scene: Scene) -> list[str]:
    """The messages of the calls that were run, but for the witness's."""
    return [
        message
        for message in scene.tally.ran.elements()
        if not message.startswith("witness")
    ]


def still_serves(sock: socket.socket, id: int = 4711) -> None:
    """The connection goes on: a good call is answered."""
    wire.send(sock, wire.echo_request("afterwards", id=id))
    frame = wire.read_frame(sock)
    assert (frame.id, frame.meta.response.error_code) == (id, 0)
    assert wire.EchoResponse.FromString(frame.message).message == "afterwards"


# ---- what closes the connection


def meta_of(**fields: Any) -> bytes:
    """The meta of a good request, with other fields added."""
    meta = wire.RpcMeta(correlation_id=5, **fields)
    meta.request.service_name, meta.request.method_name = "example.EchoService", "Echo"
    return bytes(meta.SerializeToString())


_GOOD = meta_of()
_NAME = b"\x0a\x13example.EchoService"
_METHOD = b"\x12\x04Echo"
_HELLO = b"\x0a\x05hello"

CLOSING = {
    "unknown magic": b"XRPC" + bytes(8),
    "magic in lower case": b"prpc" + bytes(8),
    "a stream frame": b"STRM" + bytes(8),
    "zeros": bytes(12),
    "an HTTP request on the RPC port": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\x00",
    "one wrong byte": b"Q",
    "wrong fourth byte": b"PRPQ",
    "body over the limit": wire.raw_frame(b"", body_size=MAX_MESSAGE + 1),
    "body of 2^31": wire.raw_frame(b"", body_size=1 << 31),
    "body of 2^32 - 1": wire.raw_frame(b"", body_size=0xFFFFFFFF),
    "both sizes at 2^32 - 1": wire.raw_frame(
        b"", body_size=0xFFFFFFFF, meta_size=0xFFFFFFFF
    ),
    "meta larger than the body": wire.raw_frame(b"", body_size=10, meta_size=11),
    "meta of an empty body": wire.raw_frame(b"", body_size=0, meta_size=1),
    "meta of 2^32 - 1": wire.raw_frame(b"", body_size=10, meta_size=0xFFFFFFFF),
    "meta over 1 MiB": wire.raw_frame(b"", body_size=MAX_MESSAGE, meta_size=MIB + 1),
    "tag 0": wire.raw_frame(b"\x00"),
    "field 0": wire.raw_frame(b"\x02\x00" + _GOOD),
    "an open group": wire.raw_frame(b"\xa3\x06" + _GOOD),
    "wire type 7": wire.raw_frame(b"\xa7\x06" + _GOOD),
    "a truncated varint": wire.raw_frame(_GOOD + b"\x20\x80"),
    "an endless varint": wire.raw_frame(_GOOD + b"\x20" + b"\xff" * 11),
    "a truncated fixed32": wire.raw_frame(_GOOD + b"\xa5\x06\x00"),
    "a truncated fixed64": wire.raw_frame(_GOOD + b"\xa1\x06\x00"),
    "a field over the end": wire.raw_frame(_GOOD + b"\x62\x01"),
    "a field of 2^31 bytes": wire.raw_frame(_GOOD + b"\x62\x80\x80\x80\x80\x08"),
    "a field of 2^32 - 1 bytes": wire.raw_frame(_GOOD + b"\x62\xff\xff\xff\xff\x0f"),
    "a field of 2^64 - 1 bytes": wire.raw_frame(
        _GOOD + b"\x62\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
    ),
    "a request that overruns its meta": wire.raw_frame(b"\x0a\x7f" + _NAME),
    "a name that overruns its request": wire.raw_frame(
        b"\x0a\x06\x0a\x13exam" + _METHOD
    ),
    "no service name": wire.raw_frame(b"\x0a\x06" + _METHOD),
    "no method name": wire.raw_frame(b"\x0a\x15" + _NAME),
    "no names": wire.raw_frame(b"\x0a\x00"),
}


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("bad", CLOSING)
def test_closes_without_an_answer(bad, kind):
    """W2, W9, B1, B5, and W4's line in the log; not a byte is answered and no
    handler runs."""
    with trial(kind, lines=len(wire.WAYS)) as scene:
        before = counter("tidewire_protocol_errors")
        for way in wire.WAYS:
            with scene.connect() as sock:
                # The server may close before all was sent.
                try:
                    wire.send(sock, CLOSING[bad], way)
                except (BrokenPipeError, ConnectionResetError):
                    assert way != "whole"
                assert at_end(sock) == b""
        assert ran(scene) == []
        assert counter("tidewire_protocol_errors") == before + len(wire.WAYS)


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("bad", ["unknown magic", "body over the limit", "no names"])
def test_bad_bytes_behind_a_good_call_close_too(bad, kind):
    """What was asked before may still be answered, wholly or not at all."""
    with trial(kind, lines=1) as scene, scene.connect() as sock:
        wire.send(sock, wire.echo_request("before", id=3) + CLOSING[bad])
        frames, rest = wire.split(at_end(sock))
        assert rest == b""
        assert [frame.id for frame in frames] in ([], [3])


def test_the_line_in_the_log_names_peer_and_bytes(tmp_path):
    """Control characters escaped, 16 bytes at most (M9)."""
    lines: list[str] = []
    with serving() as scene, core_log() as log:

        def line() -> bool:
            # A line may be held back: too many came before.
            del log.lines[:]
            before = log.count
            with scene.connect() as sock:
                host, port = sock.getsockname()
                name = f"{host}:{port}"
                sock.sendall(b"SSH-2.0-\r\n\x1b[31m evil")
                at_end(sock)
            wait_until(lambda: log.count > before)
            lines[:] = [line for line in log.lines if name in line]
            return bool(lines)

        wait_until(line, 5)
    [text] = lines
    assert r"SSH-2.0-\x0d\x0a\x1b" in text
    assert "evil" not in text
    assert text.isprintable()


# ---- truncated


@pytest.mark.parametrize("end", ["FIN", "RST"])
@pytest.mark.parametrize("kind", SERVERS)
def test_truncated_at_every_offset(kind, end):
    """C2: nothing partial is delivered, nothing stays behind."""
    frame = wire.echo_request("cut", attachment=b"ATT", timeout_ms=5000)
    with trial(kind, lines=None) as scene:
        for size in range(len(frame)):
            with scene.connect() as sock:
                sock.sendall(frame[:size])
                if end == "RST":
                    reset(sock)
                    continue
                sock.shutdown(socket.SHUT_WR)
                assert at_end(sock) == b"", size
        # The witness's stays.
        wait_until(lambda: scene.server.connections == 1, what="the end of all")
        assert ran(scene) == []


@pytest.mark.parametrize("kind", SERVERS)
def test_a_whole_request_and_then_fin_is_answered(kind):
    """C3."""
    with trial(kind, lines=0) as scene, scene.connect() as sock:
        sock.sendall(wire.echo_request("last words", id=6, sleep_ms=30))
        sock.shutdown(socket.SHUT_WR)
        [frame], rest = wire.split(at_end(sock))
        assert (frame.id, rest) == (6, b"")


# ---- the limit


@pytest.mark.parametrize("kind", SERVERS)
def test_a_body_of_exactly_the_limit_is_served(kind):
    """W4, W7, B1."""
    limit = 64 << 10
    small = wire.echo_request("max", attachment=b"a" * 50_000)
    fill = 50_000 + limit - (len(small) - wire.HEADER)
    frame = wire.echo_request("max", attachment=b"a" * fill)
    assert len(frame) == wire.HEADER + limit
    with trial(kind, lines=1, max_message=limit) as scene:
        with scene.connect() as sock:
            wire.send(sock, frame)
            answer = wire.read_frame(sock)
            assert answer.attachment == b"a" * fill
            still_serves(sock)
        with scene.connect() as sock:
            more = wire.echo_request("max", attachment=b"a" * (fill + 1))
            assert len(more) == len(frame) + 1
            wire.send(sock, more[: wire.HEADER])
            # Closed as soon as the length is known.
            assert at_end(sock) == b""
    assert ran(scene) == ["max", "afterwards"]


def test_the_default_limit_is_64_mib():
    limit = 64 << 20
    head = wire.echo_request("big", attachment=b"a" * (1 << 27))
    over = len(head) - wire.HEADER - limit
    frame = wire.echo_request("big", attachment=b"a" * ((1 << 27) - over))
    del head
    assert len(frame) == wire.HEADER + limit
    with trial("def", lines=1, max_message=limit, max_unwritten=limit * 2) as scene:
        with scene.connect() as sock:
            wire.send(sock, frame)
            assert len(wire.read_raw_frame(sock)) > limit - 100
        with scene.connect() as sock:
            sock.sendall(wire.raw_frame(b"", body_size=limit + 1))
            assert at_end(sock) == b""
    scene.tally.seen.clear()


@pytest.mark.parametrize("kind", SERVERS)
def test_a_meta_of_exactly_1_mib_is_served(kind):
    """B1, and section 14.5: unknown fields are ignored, however large."""
    padding = MIB - len(_GOOD) - 2 - len(varint(MIB))
    meta = _GOOD + b"\xa2\x06" + varint(padding) + b"p" * padding
    assert len(meta) == MIB
    with trial(kind, lines=0) as scene, scene.connect() as sock:
        wire.send(sock, wire.raw_frame(meta, _HELLO))
        assert wire.read_frame(sock).id == 5
        still_serves(sock)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def arrived(bytes_in: int) -> bool:
    return counter("tidewire_received_bytes") >= bytes_in


@pytest.mark.parametrize("before", [b"", bytes(300_000)], ids=["first", "later"])
def test_a_declared_length_allocates_nothing(before):
    """W3: at most twice what has come plus 64 KiB, on each of 16 connections.
    On those that have carried large messages a read may be as large as one."""
    connections = 16
    header = wire.raw_frame(b"", body_size=64 * MIB, meta_size=40)
    with serving("def") as scene, Witness(scene.host_port), balanced():
        socks = [scene.connect() for _ in range(connections)]
        try:
            for sock in socks * 20 if before else ():
                wire.send(sock, wire.echo_request("usual", attachment=before))
                wire.read_frame(sock)
            wait_until(lambda: census()["requests"] == 0)
            empty = census()["block_bytes"]
            received, was = 0, counter("tidewire_received_bytes")
            for data in (header, b"m", bytes(1000), bytes(200_000), b"m"):
                for sock in socks:
                    sock.sendall(data)
                received += len(data)
                due = was + connections * received
                wait_until(functools.partial(arrived, due))
                held = (census()["block_bytes"] - empty) / connections
                print(f"{received} bytes came, {held:.0f} are held")
                assert held <= 2 * received + 65536 + 2 * len(before)
        finally:
            for sock in socks:
                sock.close()


# ---- what fails the call only


def with_meta(message: bytes = _HELLO, attachment: bytes = b"", **fields: Any) -> bytes:
    """A good request but for some fields of its meta."""
    return wire.raw_frame(meta_of(**fields), message + attachment)


INT_MAX, INT_MIN = wire.INT_MAX, wire.INT_MIN

ANSWERED: dict[str, tuple[bytes, int, str]] = {
    "a meta without request": (wire.raw_frame(b"\x20\x05"), 1001, "find service"),
    "a meta with a response only": (
        wire.raw_frame(b"\x12\x02\x08\x00\x20\x05"),
        1001,
        "find service",
    ),
    "an unknown service with a dot": (
        wire.echo_request(id=5, service="no.Such"),
        1002,
        "Fail to find method=no.Such/Echo",
    ),
    "an unknown service without": (
        wire.echo_request(id=5, service="NoSuch"),
        1001,
        "Fail to find service=NoSuch",
    ),
    "an empty service name": (wire.echo_request(id=5, service=""), 1001, "service="),
    "an unknown method": (
        wire.echo_request(id=5, method="Nope"),
        1002,
        "Fail to find method=example.EchoService/Nope",
    ),
    "an unknown method of a short service name": (
        wire.echo_request(id=5, service="EchoService", method="Nope"),
        1002,
        "Fail to find method=example.EchoService/Nope",
    ),
    "an empty method name": (
        wire.echo_request(id=5, method=""),
        1002,
        "Fail to find method=example.EchoService/",
    ),
    "a method name of 100 KiB": (
        wire.echo_request(id=5, method="m" * 100_000),
        1002,
        "Fail to find method=example.EchoService/mmm",
    ),
    "a method name with NUL and line feed": (
        wire.echo_request(id=5, method="Echo\0\n"),
        1002,
        "Fail to find method=example.EchoService/Echo",
    ),
    "a method name that is no UTF-8": (
        wire.raw_frame(b"\x0a\x1b" + _NAME + b"\x12\x04\xff\xfe\xc3(" + b"\x20\x05"),
        1002,
        "Fail to find method=example.EchoService/",
    ),
    "an undecodable request": (with_meta(b"\xff\xff\xff"), 1003, "Fail to parse"),
    "a request with a truncated field": (with_meta(b"\x0a\x05hell"), 1003, "Fail to"),
    "a missing required field": (with_meta(b""), 1003, "Fail to parse"),
    "another required field missing": (with_meta(b"\x10\x01"), 1003, "message"),
    "an attachment one larger than the rest": (
        with_meta(attachment_size=len(_HELLO) + 1),
        1003,
        "attachment_size=8 is larger than request_size=7",
    ),
    "an attachment of 2^31 - 1": (
        with_meta(attachment_size=INT_MAX),
        1003,
        "attachment_size=2147483647 is larger than",
    ),
    "an attachment of an empty payload": (
        with_meta(b"", attachment_size=1),
        1003,
        "attachment_size=1 is larger than request_size=0",
    ),
    **{
        f"{name} {value}": (with_meta(**{name: value}), 1003, "Fail to parse request")
        for name, value in wire.UNKNOWN_ENUMS
    },
}


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("bad", ANSWERED)
def test_fails_that_call_only(bad, kind):
    """W8, B1, B5: the defined code under the call's own id, no handler, and the
    connection goes on."""
    data, code, text = ANSWERED[bad]
    with trial(kind, lines=0) as scene, scene.connect() as sock:
        for way in wire.WAYS:
            wire.send(sock, data, way)
            frame = wire.read_frame(sock)
            assert (frame.id, frame.meta.response.error_code) == (5, code)
            said = frame.meta.response.error_text
            if isinstance(said, bytes):  # no UTF-8, as the name in it
                said = said.decode("utf-8", "replace")
            assert text in said
            # Error texts are bounded, whatever the peer's names are.
            assert len(said) < 1000
            assert (frame.message, frame.attachment) == (b"", b"")
        assert ran(scene) == []
        still_serves(sock)


@pytest.mark.parametrize("kind", SERVERS)
def test_a_bad_call_between_good_ones(kind):
    """All in one segment: each gets its own answer."""
    good = [wire.echo_request(f"good {i}", id=100 + i) for i in range(3)]
    bad = [data for data, _, _ in ANSWERED.values()]
    parts = []
    for i, data in enumerate(bad):
        parts += [good[i % 3], wire.with_correlation_id(data, 200 + i)]
    with trial(kind, lines=0) as scene, scene.connect() as sock:
        wire.send(sock, b"".join(parts), "random", seed=2)
        frames = wire.read_frames(sock, len(parts))
    codes = {f.id: f.meta.response.error_code for f in frames if f.id >= 200}
    assert codes == {200 + i: code for i, (_, code, _) in enumerate(ANSWERED.values())}
    assert sum(f.meta.response.error_code == 0 for f in frames) == len(bad)


# ---- what is odd and good


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize(
    ("odd", "data"),
    {
        "a short service name": wire.echo_request(id=5, service="EchoService"),
        "a negative attachment": with_meta(attachment_size=-1),
        "the least attachment": with_meta(attachment_size=INT_MIN),
        "a negative deadline": wire.echo_request(id=5, timeout_ms=-1),
        "unknown fields": wire.raw_frame(
            _GOOD + b"\xa0\x06\x01\xa2\x06\x03abc\xa5\x06\0\0\0\0\xa1\x06" + bytes(8),
            _HELLO,
        ),
        "a credential nobody asked for": with_meta(authentication_data=b"secret"),
        "a checksum nobody asked for": with_meta(checksum_value=b"xyz"),
        "a request and a response": wire.raw_frame(_GOOD + b"\x12\x02\x08\x05", _HELLO),
        "a request in two parts": wire.raw_frame(
            b"\x0a\x15" + _NAME + b"\x0a\x06" + _METHOD + b"\x20\x05", _HELLO
        ),
        "fields in descending order": wire.raw_frame(
            b"\x62\x00\x58\x00\x50\x00\x20\x05\x18\x00\x0a\x1b" + _METHOD + _NAME,
            _HELLO,
        ),
        "the same field twice": wire.raw_frame(b"\x20\x09" + _GOOD, _HELLO),
        "a varint longer than needed": wire.raw_frame(
            b"\x20\x85\x80\x80\x80\x00" + _GOOD[: _GOOD.index(b"\x20\x05")], _HELLO
        ),
    }.items(),
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_odd_but_good(odd, data, kind):
    """Section 14.5, and what a protobuf reader accepts."""
    with trial(kind, lines=0) as scene, scene.connect() as sock:
        for way in wire.WAYS:
            wire.send(sock, data, way)
            frame = wire.read_frame(sock)
            assert (frame.id, frame.meta.response.error_code) == (5, 0)
        assert len(ran(scene)) == len(wire.WAYS)
        still_serves(sock)


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("id", [None, 0, 1, -1, 2**63 - 1, -(2**63)])
def test_any_correlation_id_is_echoed(id, kind):
    with trial(kind, lines=0) as scene, scene.connect() as sock:
        data = wire.echo_request("id", id=id or 0)
        if id is None:
            meta = _GOOD[: _GOOD.index(b"\x20\x05")]
            data = wire.raw_frame(meta, _HELLO)
        wire.send(sock, data)
        assert wire.read_frame(sock).id == (id or 0)


# ---- any bytes at all


def lengths_in(meta: bytes) -> list[tuple[int, int]]:
    """(offset, size) of every length varint of a meta, nested ones included."""
    found = []

    def walk(start: int, end: int, nested: tuple[int, ...]) -> None:
        at = start
        while at < end:
            tag = meta[at]
            size = at + 1
            value, at = wire.read_varint(meta, size)
            if tag & 7 == 2:
                found.append((size, at - size))
                if tag >> 3 in nested:
                    walk(at, at + value, ())
                at += value

    walk(0, len(meta), (1, 2, 9))
    return found


def sane_end(sock: socket.socket, data: bytes, id: int = 4242) -> None:
    """Sends anything and a good call behind it: either the server closes or it
    answers; it never stays silent once the sender has finished."""
    try:
        sock.sendall(data)
        sock.sendall(wire.echo_request("behind", id=id))
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass
    _, rest = wire.split(at_end(sock))
    assert rest == b""


@pytest.mark.parametrize("kind", SERVERS)
def test_every_length_field_at_its_bounds(kind):
    """W7: 0, 1 and the maximum in both sizes of the header and in every length
    of the meta."""
    good = wire.echo_request(
        "bounds",
        id=9,
        attachment=b"ATT",
        user_fields={"k": "v"},
        checksum_value=b"abcd",
        authentication_data=b"a",
    )
    body, meta_size = struct.unpack_from(">II", good, 4)
    meta, payload = good[12 : 12 + meta_size], good[12 + meta_size :]
    values = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1]
    frames = []
    for value in (0, 1, 2**31 - 1, 2**31, 2**32 - 1):
        frames.append(wire.raw_frame(meta, payload, body_size=value))
        frames.append(wire.raw_frame(meta, payload, meta_size=value))
        frames.append(wire.raw_frame(meta, payload, body_size=value, meta_size=value))
    for value in (body - 1, body + 1, meta_size - 1, meta_size + 1, meta_size):
        frames.append(wire.raw_frame(meta, payload, body_size=value))
        frames.append(wire.raw_frame(meta, payload, meta_size=value))
    for at, size in lengths_in(meta):
        for value in values:
            changed = meta[:at] + varint(value) + meta[at + size :]
            frames.append(wire.raw_frame(changed, payload))
    for value in [*values, 2**64 - 2**31]:
        at = meta.index(b"\x28\x03")
        changed = meta[: at + 1] + varint(value) + meta[at + 2 :]
        frames.append(wire.raw_frame(changed, payload))
    with trial(kind, lines=None) as scene:
        for frame in frames:
            with scene.connect() as sock:
                sane_end(sock, frame)
        wait_until(lambda: scene.server.connections == 1, what="the end of all")


@pytest.mark.parametrize("kind", SERVERS)
def test_every_byte_of_a_request_changed(kind):
    """W9: each byte in turn as 0, 255, and with each end bit flipped."""
    good = wire.echo_request("flip", id=9, attachment=b"ATT", user_fields={"k": "v"})
    with trial(kind, lines=None, max_message=64 << 10) as scene:
        for at in range(len(good)):
            for byte in {0, 255, good[at] ^ 1, good[at] ^ 128} - {good[at]}:
                with scene.connect() as sock:
                    sane_end(sock, good[:at] + bytes((byte,)) + good[at + 1 :])
        wait_until(lambda: scene.server.connections == 1, what="the end of all")


def test_bad_connections_beside_each_other(request):
    """100 connections at once, each bad in its own way and left open."""
    with trial("def", lines=None) as scene:
        socks = []
        for data in [*CLOSING.values(), *(d for d, _, _ in ANSWERED.values())] * 2:
            sock = scene.connect()
            socks.append(sock)
            sock.sendall(data)
        with Witness(scene.host_port) as other:
            for _ in range(100):
                other.check()
        for sock in socks:
            sock.close()
