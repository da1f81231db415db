"""Bytes that a client should never see: the call or all calls of the connection
fail cleanly, others notice nothing, nothing is leaked (W13)."""

import socket
import struct
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tidewire as tw

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "interop"))

import wire
from bed import (
    CLIENTS,
    LONG,
    RawServer,
    balanced,
    census,
    core_log,
    counter,
    face,
    reset,
    serving,
    wait_until,
)

MIB = 1 << 20
MAX_MESSAGE = 2 * MIB
INT_MAX, INT_MIN = wire.INT_MAX, wire.INT_MIN
OK = bytes(wire.EchoResponse(message="ok").SerializeToString())


@contextmanager
def trial(
    kind: str, lines: int | None, max_message: int = MAX_MESSAGE, **options: Any
) -> Iterator[tuple[RawServer, Any]]:
    """(a server of the test's, a client of it), while the same process calls
    another server, which must notice nothing."""
    with (
        serving() as scene,
        face(kind, scene.address) as witness,
        core_log() as log,
    ):
        assert witness.echo("before") == "before"
        with balanced():
            with (
                RawServer() as server,
                face(
                    kind, server.address, max_message=max_message, **options
                ) as client,
            ):
                yield server, client
                assert witness.echo("meanwhile") == "meanwhile"
            if lines is not None:
                log.exactly(lines)
        assert witness.echo("after") == "after"
        assert scene.server.connections == 1


def text_of(call: "Future[Any]") -> str:
    result = call.result(LONG)
    message = result.message if isinstance(result, tw.Response) else result
    return str(message.message)


def end_of(call: "Future[Any]") -> tuple[int, tw.Phase]:
    """(number, phase) of a call that failed."""
    error = call.exception(LONG)
    assert isinstance(error, tw.RpcError), error
    return error.number, error.phase


def asked(connection: socket.socket) -> wire.Frame:
    return wire.read_frame(connection)


def still_calls(client: Any, connection: socket.socket) -> None:
    """The same connection goes on."""
    call = client.start("next")
    connection.sendall(wire.answer(asked(connection), "next's"))
    assert text_of(call) == "next's"


# ---- what ends the connection

Bad = Callable[[int], bytes]
"""Bytes of a server, made for the id of a call that waits."""


def meta_of(id: int, **fields: Any) -> bytes:
    meta = wire.RpcMeta(correlation_id=id, **fields)
    meta.response.error_code = 0
    return bytes(meta.SerializeToString())


CLOSING: dict[str, Bad] = {
    "unknown magic": lambda id: b"XRPC" + bytes(8),
    "an HTTP answer": lambda id: b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a stream frame": lambda id: b"STRM" + bytes(8),
    "zeros": lambda id: bytes(100),
    "one wrong byte": lambda id: b"\n",
    "body over the limit": lambda id: wire.raw_frame(b"", body_size=MAX_MESSAGE + 1),
    "body of 2^32 - 1": lambda id: wire.raw_frame(b"", body_size=0xFFFFFFFF),
    "meta larger than the body": lambda id: wire.raw_frame(
        b"", body_size=10, meta_size=11
    ),
    "meta of 2^32 - 1": lambda id: wire.raw_frame(
        b"", body_size=10, meta_size=0xFFFFFFFF
    ),
    "meta over 1 MiB": lambda id: wire.raw_frame(
        b"", body_size=MAX_MESSAGE, meta_size=MIB + 1
    ),
    "tag 0": lambda id: wire.raw_frame(b"\0" + meta_of(id), OK),
    "an endless varint": lambda id: wire.raw_frame(
        meta_of(id) + b"\x18" + b"\xff" * 11, OK
    ),
    "a field over the end": lambda id: wire.raw_frame(meta_of(id) + b"\x62\x01", b""),
    "a field of 2^64 - 1 bytes": lambda id: wire.raw_frame(
        meta_of(id) + b"\x62" + b"\xff" * 9 + b"\x01", OK
    ),
    "a truncated response": lambda id: wire.raw_frame(
        b"\x12\x7f\x08" + meta_of(id), OK
    ),
    "a good answer to nobody, then garbage": lambda id: (
        wire.answer(0, "nobody") + b"garbage from the server"
    ),
}


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("bad", CLOSING)
def test_ends_all_calls_of_the_connection_with_22(bad, kind):
    """Not retried; the next call makes another connection."""
    # One line for the bad bytes, one for the connection that the test ends.
    with trial(kind, lines=2 * len(wire.WAYS)) as (server, client):
        for way in wire.WAYS:
            calls = [client.start(f"call {i}") for i in range(4)]
            connection = server.accept()
            ids = [asked(connection).id for _ in calls]
            try:
                wire.send(connection, CLOSING[bad](ids[0]), way)
            except OSError:
                assert way != "whole"
            for call in calls:
                assert end_of(call) == (22, tw.Phase.READ)
                assert call.exception().sent is tw.Sent.ALL
            # The client has closed, and nobody has connected again.
            assert wire_end(connection) == b""
            assert server.nobody_waits()
            call = client.start("again")
            connection = server.accept()
            connection.sendall(wire.answer(asked(connection), "yes"))
            assert text_of(call) == "yes"
            connection.shutdown(socket.SHUT_RDWR)
            assert wire_end(connection) == b""
            del call
            calls.clear()
            settle(client)


def wire_end(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1)
    except ConnectionResetError:
        return b""


def settle(client: Any) -> None:
    """Until the client has noticed that its connection has ended."""
    wait_until(lambda: counter("tidewire_connections_out") == 1)


# ---- what ends the call

FAILING: dict[str, Bad] = {
    "an attachment larger than the rest": lambda id: wire.raw_frame(
        meta_of(id, attachment_size=len(OK) + 1), OK
    ),
    "an attachment of 2^31 - 1": lambda id: wire.raw_frame(
        meta_of(id, attachment_size=INT_MAX), OK
    ),
    "an attachment of an empty payload": lambda id: wire.raw_frame(
        meta_of(id, attachment_size=1)
    ),
    "an undecodable message": lambda id: wire.raw_frame(meta_of(id), b"\xff\xff"),
    "a message with a truncated field": lambda id: wire.raw_frame(
        meta_of(id), b"\x0a\x05hell"
    ),
    "an empty message that lacks a required field": lambda id: wire.raw_frame(
        meta_of(id)
    ),
    **{
        f"{name} {value}": lambda id, name=name, value=value: wire.raw_frame(
            meta_of(id, **{name: value}), OK
        )
        for name, value in wire.UNKNOWN_ENUMS
    },
}


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("bad", FAILING)
def test_ends_that_call_with_2002(bad, kind):
    """W8, B1.  brpc's client says 1003 for an undecodable message; to a caller
    that would mean that its request was wrong, so ours says 2002 for all."""
    with trial(kind, lines=0) as (server, client):
        calls = [client.start("bad"), client.start("good")]
        connection = server.accept()
        ids = {
            wire.EchoRequest.FromString(f.message).message: f.id
            for f in wire.read_frames(connection, 2)
        }
        for way in wire.WAYS:
            if way != "whole":
                calls[0] = client.start("bad")
                ids["bad"] = asked(connection).id
            wire.send(connection, FAILING[bad](ids["bad"]), way)
            assert end_of(calls[0]) == (2002, tw.Phase.READ)
            assert isinstance(calls[0].exception(), tw.Internal)
        connection.sendall(wire.answer(ids["good"], "fine"))
        assert text_of(calls[1]) == "fine"
        still_calls(client, connection)
        calls.clear()


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("code", [1, 22, 1003, 1008, 2001, 4711, -1, INT_MAX, INT_MIN])
def test_any_error_code_arrives(code, kind):
    """With text, without, and with a payload and types that are then ignored."""
    odd = {"compress_type": 99, "content_type": 7, "checksum_type": 5}
    with trial(kind, lines=0) as (server, client):
        for text, message, fields in (
            ("no", b"", {}),
            ("", b"", {}),
            ("long " * 20_000, b"", {}),
            ("odd", b"\xff\xff", odd | {"attachment_size": 99}),
        ):
            call = client.start()
            if text == "no":
                connection = server.accept()
            connection.sendall(
                wire.answer(
                    asked(connection),
                    code=code,
                    error_text=text,
                    message=message,
                    **fields,
                )
            )
            assert end_of(call) == (code, tw.Phase.PEER)
            if text:
                assert call.exception().message == text
            del call
        still_calls(client, connection)


@pytest.mark.parametrize("kind", CLIENTS)
def test_an_error_text_that_is_no_utf8(kind):
    with trial(kind, lines=0) as (server, client):
        call = client.start()
        connection = server.accept()
        id = asked(connection).id
        response = b"\x08\x01\x12\x06a\xff\xfe\0\nb"
        meta = b"\x12" + bytes((len(response),)) + response
        meta += meta_of(id)[len(b"\x12\x02\x08\x00") :]
        connection.sendall(wire.raw_frame(meta))
        assert end_of(call) == (1, tw.Phase.PEER)
        assert call.exception().message == "a\ufffd\ufffd\0\nb"
        assert "\n" not in str(call.exception())
        del call


# ---- answers that are odd and good

GOOD: dict[str, Bad] = {
    "no response in the meta": lambda id: wire.raw_frame(
        bytes(wire.RpcMeta(correlation_id=id).SerializeToString()), OK
    ),
    "unknown fields": lambda id: wire.raw_frame(
        meta_of(id) + b"\xa0\x06\x01\xa2\x06\x03abc\xa5\x06\0\0\0\0", OK
    ),
    "a negative attachment": lambda id: wire.raw_frame(
        meta_of(id, attachment_size=-1), OK
    ),
    "everything brpc sends": lambda id: wire.answer(
        id,
        "ok",
        compress_type=0,
        content_type=0,
        checksum_type=0,
        checksum_value=b"",
        checksum_with_attachment=False,
    ),
    "a body of 64 KiB less one of the reader": lambda id: wire.raw_frame(
        meta_of(id), OK + b"\x1a\xf0\xff\x03" + bytes(65520)
    ),
}


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("odd", GOOD)
def test_odd_but_good(odd, kind):
    with trial(kind, lines=0) as (server, client):
        connection = None
        for way in wire.WAYS:
            call = client.start()
            connection = connection or server.accept()
            wire.send(connection, GOOD[odd](asked(connection).id), way)
            assert text_of(call) == "ok"
            del call


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_body_of_exactly_the_limit_arrives(kind):
    limit = 64 << 10

    def sized(id: int, body: int) -> bytes:
        frame = wire.answer(id, "ok", attachment=b"a" * (body - 100))
        return wire.answer(
            id, "ok", attachment=b"a" * (body - 100 + body + wire.HEADER - len(frame))
        )

    with trial(kind, lines=1, max_message=limit) as (server, client):
        call = client.start()
        connection = server.accept()
        data = sized(asked(connection).id, limit)
        assert len(data) == wire.HEADER + limit
        connection.sendall(data)
        assert text_of(call) == "ok"
        call = client.start()
        data = sized(asked(connection).id, limit + 1)
        connection.sendall(data[: wire.HEADER])
        assert end_of(call) == (22, tw.Phase.READ)
        del call


# ---- answers nobody waits for


def stale() -> int:
    return counter("tidewire_stale_responses")


@pytest.mark.parametrize("kind", CLIENTS)
def test_an_answer_nobody_waits_for_is_dropped(kind):
    """Unknown ids of every kind, while a call waits."""
    with trial(kind, lines=0) as (server, client):
        call = client.start()
        connection = server.accept()
        id = asked(connection).id
        before = stale()
        ids = [0, 1, -1, 2**63 - 1, -(2**63), 2**32, (1 << 32) | 0xFFFFFFFF]
        # The right slot of another version, the right version of another slot.
        ids += [id + (1 << 32), id - (1 << 32), id + (2 << 32), id - (2 << 32)]
        ids += [id + 1, id + 64, id + 1000, id ^ 0x80000000]
        ids = [(i + 2**63) % 2**64 - 2**63 for i in ids]
        assert id not in ids
        wire.send(connection, b"".join(wire.answer(i, "wrong") for i in ids), "random")
        connection.sendall(wire.answer(id, "right"))
        assert text_of(call) == "right"
        assert stale() == before + len(ids)
        del call


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_duplicate_answer_is_dropped(kind):
    """B3: once, twice and a hundred times, also as an error."""
    with trial(kind, lines=0) as (server, client):
        before = stale()
        call = client.start("a")
        connection = server.accept()
        first = asked(connection)
        connection.sendall(wire.answer(first, "one") + wire.answer(first, "two"))
        assert text_of(call) == "one"
        wait_until(lambda: stale() == before + 1)
        # The slot has a new tenant now; the old answers come again.
        for text in ("b", "c"):
            call = client.start(text)
            now = asked(connection)
            assert now.id != first.id
            connection.sendall(
                wire.answer(first, "again") * 100
                + wire.answer(first, code=2001, error_text="again") * 100
                + wire.answer(now, text)
            )
            assert text_of(call) == text
        assert stale() == before + 401
        assert counter("tidewire_double_completions") == 0
        del call


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_late_answer_is_dropped(kind):
    """B3: after the deadline, while the slot has its next tenant."""
    with trial(kind, lines=0) as (server, client):
        before = stale()
        call = client.start("late", timeout=0.02)
        connection = server.accept()
        late = asked(connection)
        assert end_of(call) == (1008, tw.Phase.READ)
        call = client.start("next")
        following = asked(connection)
        connection.sendall(wire.answer(late, "too late"))
        connection.sendall(wire.answer(late, code=2001, error_text="too late"))
        connection.sendall(wire.answer(following, "in time"))
        assert text_of(call) == "in time"
        assert stale() == before + 2
        del call


@pytest.mark.parametrize("kind", CLIENTS)
def test_an_answer_to_a_cancelled_call_is_dropped(kind):
    if kind == "blocking":
        pytest.skip("a blocking call is cancelled by Ctrl-C only")
    with trial(kind, lines=0) as (server, client):
        before = stale()
        call = client.start("cancelled")
        connection = server.accept()
        given_up = asked(connection)
        assert call.cancel()
        wait_until(lambda: counter("tidewire_client_in_flight") == 0)
        connection.sendall(wire.answer(given_up, "too late"))
        still_calls(client, connection)
        assert stale() == before + 1
        del call


@pytest.mark.parametrize("kind", CLIENTS)
def test_an_answer_from_another_connection_is_dropped(kind):
    """B2: a valid id of a call that waits, from a server that was not asked."""
    with (
        trial(kind, lines=0) as (server, client),
        RawServer() as other,
        face(kind, other.address) as stranger,
    ):
        before = stale()
        call = client.start("mine")
        theirs = stranger.start("theirs")
        connection, foreign = server.accept(), other.accept()
        id, their_id = asked(connection).id, asked(foreign).id
        foreign.sendall(wire.answer(id, "forged"))
        foreign.sendall(wire.answer(id, code=2001, error_text="forged"))
        foreign.sendall(wire.answer(their_id, "real"))
        assert text_of(theirs) == "real"
        assert not call.done()
        assert stale() == before + 2
        connection.sendall(wire.answer(id, "mine's"))
        assert text_of(call) == "mine's"
        del call, theirs


@pytest.mark.parametrize("kind", CLIENTS)
def test_an_answer_on_the_next_connection_is_dropped(kind):
    """B2: the same server, but the call was sent on the connection before."""
    with trial(kind, lines=None) as (server, client):
        before = stale()
        call = client.start("first")
        connection = server.accept()
        lost = asked(connection)
        connection.close()
        assert end_of(call)[0] in (1014, 104)
        call = client.start("second")
        connection = server.accept()
        now = asked(connection)
        connection.sendall(wire.answer(lost, "lost") + wire.answer(now, "found"))
        assert text_of(call) == "found"
        assert stale() == before + 1
        del call


# ---- truncated


@pytest.mark.parametrize("end", ["FIN", "RST"])
@pytest.mark.parametrize("kind", CLIENTS)
def test_truncated_at_every_offset(kind, end):
    """C2, W13: one completion for each call, nothing partial delivered."""
    with trial(kind, lines=None) as (server, client):
        size = len(wire.answer(2**62, "cut", attachment=b"ATT"))
        for cut in range(size):
            calls = [client.start("one"), client.start("two")]
            connection = server.accept()
            frames = wire.read_frames(connection, 2)
            data = wire.answer(frames[0], "cut", attachment=b"ATT")
            assert len(data) <= size
            connection.sendall(data[: min(cut, len(data) - 1)])
            if end == "RST":
                reset(connection)
            else:
                connection.close()
            for call in calls:
                number, phase = end_of(call)
                # With FIN the kernel may answer our next bytes with RST.
                assert number in ((1014, 104) if end == "FIN" else (104,))
                assert phase is tw.Phase.READ
                assert call.exception().sent is tw.Sent.ALL
            calls.clear()
            del call


@pytest.mark.parametrize("kind", CLIENTS)
def test_answers_before_the_end_arrive(kind):
    """Whole answers and then FIN in one segment: only what lacks fails."""
    with trial(kind, lines=1) as (server, client):
        calls = [client.start(f"{i}") for i in range(3)]
        connection = server.accept()
        frames = {
            wire.EchoRequest.FromString(f.message).message: f
            for f in wire.read_frames(connection, 3)
        }
        said = wire.answer(frames["0"], "0") + wire.answer(frames["1"], "1")
        connection.sendall(said + wire.answer(frames["2"], "2")[:-1])
        connection.close()
        assert [text_of(c) for c in calls[:2]] == ["0", "1"]
        assert end_of(calls[2]) == (1014, tw.Phase.READ)
        calls.clear()


# ---- any bytes at all


def outcome(call: "Future[Any]") -> str | int:
    error = call.exception(LONG)
    if error is None:
        return text_of(call)
    assert isinstance(error, tw.RpcError), error
    return error.number


@pytest.mark.parametrize("kind", CLIENTS)
def test_every_byte_of_an_answer_changed(kind):
    """W9: the call ends in some way, once; the next one works."""
    with trial(kind, lines=None) as (server, client):
        ends: set[str | int] = set()
        connection = None
        for at in range(len(wire.answer(2**62, "flip", attachment=b"ATT"))):
            for change in (
                lambda b: 0,
                lambda b: 255,
                lambda b: b ^ 1,
                lambda b: b ^ 128,
            ):
                call = client.start("flip")
                if connection is None:
                    connection = server.accept()
                good = bytearray(
                    wire.answer(asked(connection), "flip", attachment=b"ATT")
                )
                at = min(at, len(good) - 1)
                good[at] = change(good[at])
                # The end of the stream ends what waits for more.
                connection.sendall(good)
                connection.shutdown(socket.SHUT_WR)
                ends.add(outcome(call))
                wire_end(connection)
                settle(client)
                connection = None
                del call
        assert {22, 1014} <= ends
        print(sorted(map(str, ends)))


@pytest.mark.parametrize("kind", CLIENTS)
def test_lengths_at_their_bounds(kind):
    """W7: both sizes of the header, and the lengths in the meta."""
    with trial(kind, lines=None) as (server, client):
        bounds = [0, 1, 2**31 - 1, 2**31, 2**32 - 1]
        sizes: list[dict[str, int]] = [{"body_size": v} for v in bounds]
        sizes += [{"meta_size": v} for v in bounds]
        sizes += [{"body_size": v, "meta_size": v} for v in bounds]
        for size in sizes:
            call = client.start()
            connection = server.accept()
            meta = meta_of(asked(connection).id)
            connection.sendall(wire.raw_frame(meta, OK, **size))
            connection.shutdown(socket.SHUT_WR)
            assert outcome(call) in (22, 1014, 2002)
            wire_end(connection)
            settle(client)
            del call


@pytest.mark.parametrize("before", [b"", bytes(300_000)], ids=["first", "later"])
def test_a_declared_length_allocates_nothing(before):
    """W3, on the client's side."""
    with balanced(), RawServer() as server, face("future", server.address) as client:
        connection = None
        for _ in range(20 if before else 0):
            call = client.start("usual")
            connection = connection or server.accept()
            connection.sendall(wire.answer(asked(connection), attachment=before))
            call.result(LONG)
        call = client.start()
        connection = connection or server.accept()
        asked(connection)
        wait_until(lambda: census()["blocks"] == 0)
        received = 0
        header = struct.pack(">4sII", b"PRPC", 64 * MIB, 40)
        for data in (header, b"m", bytes(200_000), b"m"):
            was = counter("tidewire_received_bytes")
            connection.sendall(data)
            due = was + len(data)
            wait_until(lambda due=due: counter("tidewire_received_bytes") >= due)
            received += len(data)
            held = census()["block_bytes"]
            print(f"{received} bytes came, {held} are held")
            assert held <= 2 * received + 65536 + 2 * len(before)
        connection.close()
        assert end_of(call)[0] == 1014
        del call
