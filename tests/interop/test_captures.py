"""What brpc 1.17 and its client said to each other (captures/README.md), in
both directions: our client says the same, our server understands it and says
the same, our client understands the answers."""

import re
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import tidewire as tw
import wire
from bed import (
    CAPTURES,
    CLIENTS,
    LONG,
    SERVERS,
    RawServer,
    Scene,
    Tally,
    Witness,
    balanced,
    face,
    serving,
)
from generated import ECHO, WHERE, echo_pb2
from tidewire.codes import Errno
from tools.stalls import watching


@dataclass
class Case:
    """How our client makes the recorded call, and how it ends."""

    text: str
    fields: dict[str, Any] = field(default_factory=dict)
    """sleep_ms and fail_code of the request, and what goes beside it."""
    code: int = 0
    error: str = ""
    service: str = "example.EchoService"
    method: str = "Echo"

    @property
    def info(self) -> Any:
        return tw.MethodInfo(
            service=self.service,
            name=self.method,
            request=echo_pb2.EchoRequest,
            response=echo_pb2.EchoResponse,
        )


GZIP, CRC32C = tw.Compression.GZIP, tw.Checksum.CRC32C

CASES = {
    "plain": Case("hello plain"),
    "attachment": Case("hello attachment", {"attachment": b"ATTACHMENT-bytes"}),
    "log_id": Case("hello log_id", {"log_id": 123456789}),
    "request_id": Case("hello request_id", {"request_id": "req-42"}),
    "user_fields": Case("hello user_fields", {"metadata": {"k1": "v1", "k2": "v2"}}),
    "fail": Case(
        "hello fail",
        {"fail_code": 2001},
        code=2001,
        error="asked to fail with 2001",
    ),
    "big": Case("z" * (1 << 20)),
    "bad_method": Case(
        "hello bad_method",
        code=1002,
        error="Fail to find method=example.EchoService/NoSuchMethod",
        method="NoSuchMethod",
    ),
    "bad_service": Case(
        "hello bad_service",
        code=1002,
        error="Fail to find method=example.NoSuchService/Echo",
        service="example.NoSuchService",
    ),
    "gzip": Case("hello gzip", {"coding": tw.Coding(compression=GZIP)}),
    "gzip_attachment": Case(
        "hello gzip_attachment",
        {"coding": tw.Coding(compression=GZIP), "attachment": b"ATTACHMENT-bytes"},
    ),
    "zlib": Case("hello zlib", {"coding": tw.Coding(compression=tw.Compression.ZLIB)}),
    "snappy": Case(
        "hello snappy", {"coding": tw.Coding(compression=tw.Compression.SNAPPY)}
    ),
    "crc32c": Case("hello crc32c", {"coding": tw.Coding(checksum=CRC32C)}),
    "crc32c_attachment": Case(
        "hello crc32c_attachment",
        {
            # brpc leaves the attachment out unless it is told to.
            "coding": tw.Coding(checksum=CRC32C),
            "attachment": b"ATTACHMENT-bytes",
        },
    ),
    "crc32c_gzip": Case(
        "hello crc32c_gzip", {"coding": tw.Coding(compression=GZIP, checksum=CRC32C)}
    ),
    "timeout": Case("hello timeout", {"sleep_ms": 300}, code=1008),
}
ANSWERED = [name for name in CASES if name != "timeout"]
AUTH = {"auth_ok": b"secret-token", "auth_bad": b"wrong"}
LEFT_OUT = re.compile(r"stream")


def recorded(name: str, direction: str) -> bytes:
    return (CAPTURES / f"{name}.{direction}.bin").read_bytes()


def recorded_frame(name: str, direction: str) -> wire.Frame:
    [frame], rest = wire.split(recorded(name, direction))
    assert not rest
    return frame


def every(names: Any) -> list[Any]:
    return [pytest.param(n, w, id=f"{n}-{w}") for n in names for w in wire.WAYS]


def test_every_capture_is_accounted_for():
    names = {path.name.partition(".")[0] for path in CAPTURES.glob("*.c2s.bin")}
    assert {n for n in names if not LEFT_OUT.fullmatch(n)} == {*CASES, *AUTH}


def test_the_decoder_reads_every_capture_and_writes_it_again():
    """The judge judged: brpc writes fields in ascending order, as protobuf
    does, so what was read and is written again is the same bytes."""
    for name in CASES:
        for direction in ("c2s", "s2c"):
            frames, rest = wire.split(recorded(name, direction))
            assert not rest
            packed = b"".join(
                wire.raw_frame(
                    frame.meta.SerializeToString(deterministic=True),
                    frame.message + frame.attachment,
                )
                for frame in frames
            )
            assert packed == recorded(name, direction), name


def test_the_decoder_reads_the_worked_example_of_the_specification():
    data = bytes.fromhex(
        """50 52 50 43 00 00 00 38 00 00 00 2e 0a 20 0a 13 65 78 61 6d 70 6c 65
        2e 45 63 68 6f 53 65 72 76 69 63 65 12 04 45 63 68 6f 18 07 40 f4 03 18 00
        20 01 28 03 50 00 58 00 62 00 0a 05 68 65 6c 6c 6f 41 54 54"""
    )
    [frame], rest = wire.split(data)
    assert not rest
    assert (frame.id, frame.attachment) == (1, b"ATT")
    assert frame.meta.request.log_id == 7
    assert frame.meta.request.timeout_ms == 500
    assert wire.EchoRequest.FromString(frame.message).message == "hello"


# ---- (a) requests


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("name", CASES)
def test_our_client_says_what_brpc_said(name, kind):
    case, theirs = CASES[name], recorded_frame(name, "c2s")
    # brpc does not send its deadline unless told to.
    with (
        RawServer() as server,
        face(kind, server.address, send_deadline=False) as client,
    ):
        call = client.start(case.text, info=case.info, **case.fields)
        connection = server.accept()
        ours = wire.read_frame(connection)
        connection.sendall(wire.answer(ours))
        call.result(LONG)
    assert ours.meaning() == theirs.meaning()
    assert ours.meta.request.timeout_ms == theirs.meta.request.timeout_ms == 0
    assert ours.id != 0
    assert not ours.meta.HasField("response")


@pytest.mark.parametrize("kind", CLIENTS)
def test_our_client_sends_its_deadline_unless_told_not_to(kind):
    with RawServer() as server, face(kind, server.address) as client:
        call = client.start("a", timeout=5.0)
        connection = server.accept()
        first = wire.read_frame(connection)
        connection.sendall(wire.answer(first))
        call.result(LONG)
        call = client.start("b", timeout=None)
        second = wire.read_frame(connection)
        connection.sendall(wire.answer(second))
        call.result(LONG)
    assert 4000 < first.meta.request.timeout_ms <= 5000
    assert not second.meta.request.HasField("timeout_ms")
    assert first.id != second.id


# ---- (b) our server


def check_answer(name: str, ours: wire.Frame) -> None:
    theirs, sent = recorded_frame(name, "s2c"), recorded_frame(name, "c2s")
    assert ours.id == theirs.id == sent.id
    assert ours.meaning() == theirs.meaning()
    assert not ours.meta.HasField("request")


def check_seen(name: str, tally: Tally) -> None:
    """What the handler saw of the call."""
    case = CASES[name]
    if case.code in (1001, 1002):
        assert not tally.seen
        return
    [seen] = tally.seen
    assert seen.message == case.text
    assert seen.log_id == case.fields.get("log_id", 0)
    assert seen.request_id == case.fields.get("request_id", "")
    assert seen.metadata == case.fields.get("metadata", {})
    assert seen.attachment == case.fields.get("attachment", b"")
    assert seen.coding == case.fields.get("coding", tw.Coding())
    assert seen.remaining is None


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize(("name", "way"), every(ANSWERED))
def test_our_server_answers_as_brpc_did(name, way, kind):
    with balanced(), serving(kind) as scene, Witness(scene.host_port):
        scene.tally.seen.clear()
        with scene.connect() as sock:
            wire.send(sock, recorded(name, "c2s"), way)
            ours = wire.read_frame(sock)
        check_answer(name, ours)
        check_seen(name, scene.tally)


@pytest.mark.parametrize("kind", SERVERS)
def test_our_server_runs_the_request_whose_client_gave_up(kind):
    """The recorded client waited 100 ms without saying so; the handler slept
    300 ms and brpc's answer came too late to be recorded."""
    with balanced(), serving(kind) as scene:
        with scene.connect() as sock:
            begin = time.monotonic()
            wire.send(sock, recorded("timeout", "c2s"))
            ours = wire.read_frame(sock)
            took = time.monotonic() - begin
        check_seen("timeout", scene.tally)
    assert took >= 0.3
    assert ours.id == recorded_frame("timeout", "c2s").id
    assert wire.EchoResponse.FromString(ours.message).message == "hello timeout"


@pytest.mark.parametrize("kind", SERVERS)
def test_all_captures_on_one_connection(kind):
    """Everything brpc's client sent, one behind the other in random pieces:
    every request is answered, under its own id."""
    frames = []
    for number, name in enumerate(ANSWERED):
        data = recorded(name, "c2s")
        frames.append(wire.with_correlation_id(data, number + 1))
    with balanced(), serving(kind) as scene, scene.connect() as sock:
        wire.send(sock, b"".join(frames), "random", seed=7)
        answers = {f.id: f for f in wire.read_frames(sock, len(ANSWERED))}
    assert sorted(answers) == list(range(1, len(ANSWERED) + 1))
    for number, name in enumerate(ANSWERED):
        theirs = recorded_frame(name, "s2c").meaning()
        assert answers[number + 1].meaning() == theirs, name


@contextmanager
def example_server(*arguments: str) -> Any:
    """examples/echo/server.py in a process of its own: its address."""
    stubs = "import sys, echo_stubs; sys.modules['gen'] = echo_stubs; "
    main = "sys.argv = ['server.py', *sys.argv[1:]]; import server; server.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", stubs + main, "--listen", "127.0.0.1:0", *arguments],
        env={"PYTHONPATH": f"{WHERE}:{ECHO}", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on "), process.communicate()
        yield line.split()[-1]
    finally:
        process.terminate()
        out, err = process.communicate(timeout=LONG)
    assert process.returncode == 0, (out, err)
    assert "Traceback" not in err, err


@pytest.mark.parametrize("arguments", [(), ("--async",)], ids=["def", "async"])
def test_the_echo_example_answers_as_brpc_did(arguments):
    with example_server(*arguments) as address:
        scene = Scene(_Address(address), Tally())  # type: ignore[arg-type]
        for name in ANSWERED:
            with scene.connect() as sock:
                wire.send(sock, recorded(name, "c2s"))
                check_answer(name, wire.read_frame(sock))


@dataclass
class _Address:
    address: str


# ---- (c) our client


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize(("name", "way"), every(ANSWERED))
def test_our_client_ends_as_brpcs_did(name, way, kind):
    case = CASES[name]
    with balanced(), RawServer() as server, face(kind, server.address) as client:
        call = client.start(case.text, info=case.info, **case.fields)
        connection = server.accept()
        ours = wire.read_frame(connection)
        said = wire.with_correlation_id(recorded(name, "s2c"), ours.id)
        wire.send(connection, said, way, seed=ours.id)
        if case.code:
            error = call.exception(LONG)
            assert isinstance(error, tw.RpcError), error
            assert error.number == case.code
            assert wire.unprefixed(error.message) == case.error
            # Unchanged, with the server's own prefix.
            assert error.message.startswith("[127.0.0.1:8110][E")
            assert error.phase is tw.Phase.PEER
            assert error.peer == server.address
            kinds = {1002: tw.Unimplemented, 2001: tw.Internal}
            assert type(error) is kinds[case.code]
            del error
        else:
            result = call.result(LONG)
            if kind != "future":
                expected = case.fields.get("attachment", b"")
                assert bytes(result.attachment) == expected
                assert result.metadata == {}
                assert result.coding == case.fields.get("coding", tw.Coding())
                assert result.peer == server.address
                result = result.message
            assert result.message == case.text
            del result
        del call


@pytest.mark.parametrize("kind", CLIENTS)
def test_our_client_gives_up_after_its_deadline(kind):
    """`timeout`: nothing was answered within the client's 100 ms."""
    case = CASES["timeout"]
    with balanced(), RawServer() as server, face(kind, server.address) as client:
        with watching() as took:
            call = client.start(case.text, timeout=0.1, **case.fields)
            connection = server.accept()
            theirs, ours = recorded_frame("timeout", "c2s"), wire.read_frame(connection)
            error = call.exception(LONG)
        assert isinstance(error, tw.DeadlineExceeded)
        assert error.number == Errno.ERPCTIMEDOUT == case.code
        assert error.sent is tw.Sent.ALL
        assert took.between(0.1, 0.1 + 0.1), took
        assert ours.meaning() == theirs.meaning()
        assert 0 < ours.meta.request.timeout_ms <= 100
        # The answer that comes after all harms nobody.
        connection.sendall(wire.answer(ours, case.text))
        call = client.start("next")
        wire_next = wire.read_frame(connection)
        connection.sendall(wire.answer(wire_next, "next"))
        call.result(LONG)
        del call, error


@pytest.mark.parametrize("kind", CLIENTS)
def test_recorded_answers_out_of_order(kind):
    """All answered captures in flight on one connection, answered in reverse."""
    names = [n for n in ANSWERED if n not in ("bad_method", "bad_service")]
    with balanced(), RawServer() as server, face(kind, server.address) as client:
        calls = {n: client.start(CASES[n].text, **CASES[n].fields) for n in names}
        connection = server.accept()
        frames = wire.read_frames(connection, len(names))
        by_text = {
            wire.EchoRequest.FromString(f.decompressed()).message: f.id for f in frames
        }
        assert len({f.id for f in frames}) == len(names)
        said = [
            wire.with_correlation_id(recorded(n, "s2c"), by_text[CASES[n].text])
            for n in reversed(names)
        ]
        wire.send(connection, b"".join(said), "random", seed=3)
        for name, call in calls.items():
            case = CASES[name]
            if case.code:
                error = call.exception(LONG)
                assert error.number == case.code
                del error
            else:
                result = call.result(LONG)
                message = result if kind == "future" else result.message
                assert message.message == case.text
                del result, message
        calls.clear()
        del call


# ---- (d) authentication


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize(("name", "way"), every(AUTH))
def test_our_server_authenticates_as_brpc_did(name, way, kind):
    tokens = tw.TokenAuthenticator({"brpc": "secret-token"})
    with balanced(), serving(kind, authenticator=tokens) as scene:
        with scene.connect() as sock:
            # Refused as soon as the meta is there, perhaps before the rest is sent.
            with suppress(ConnectionError):
                wire.send(sock, recorded(name, "c2s"), way)
            first, theirs = wire.split(recorded(name, "s2c"))[0], []
            for frame in first:
                ours = wire.read_frame(sock)
                theirs.append(frame)
                assert ours.id == frame.id
                assert ours.meta.response.error_code == (frame.meta.response.error_code)
                text = wire.unprefixed(ours.meta.response.error_text)
                assert text == wire.unprefixed(frame.meta.response.error_text)
            assert theirs
            if name == "auth_bad":
                with suppress(ConnectionError):
                    assert sock.recv(1) == b""
        assert len(scene.tally.seen) == (name == "auth_ok") * len(theirs)


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("name", AUTH)
def test_our_client_authenticates_as_brpcs_did(name, kind):
    [asked, *_], _ = wire.split(recorded(name, "c2s"))
    [said, *_], _ = wire.split(recorded(name, "s2c"))
    text = wire.EchoRequest.FromString(asked.message).message
    with (
        balanced(),
        RawServer() as server,
        face(kind, server.address, credentials=AUTH[name]) as client,
    ):
        call = client.start(text)
        connection = server.accept()
        ours = wire.read_frame(connection)
        assert ours.meta.authentication_data == asked.meta.authentication_data
        assert ours.meta.authentication_data == AUTH[name]
        answer = wire.pack(said.meta, said.message)
        connection.sendall(wire.with_correlation_id(answer, ours.id))
        if name == "auth_bad":
            error = call.exception(LONG)
            assert isinstance(error, tw.Unauthenticated)
            assert error.number == Errno.ERPCAUTH
            del error
        else:
            call.result(LONG)
        del call
