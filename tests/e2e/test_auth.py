"""Authentication of connections: nothing runs before the verdict, which is
given once for each connection; what a client sends for it."""

import contextlib
import logging
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import AsyncFace, BlockingFace, Serving, eventually, reset

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "interop"))

import wire
from bed import census, core_log, counter

TOKENS = tw.TokenAuthenticator({"alice": "secret", "bob": b"other"})
Face = BlockingFace | AsyncFace


def who(_request: Any, ctx: tw.Context) -> Any:
    return echo_pb2.EchoResponse(message=repr(ctx.identity))


def ask(face: Face, address: str, **options: Any) -> str:
    """What the server calls this client."""
    client = face.client(echo_tw, face.channel(address, timeout=10.0, **options))
    return str(face.call(client, "echo", echo_pb2.EchoRequest(message="")).message)


def raw(server: tw.Server, *credentials: bytes | None) -> socket.socket:
    """A connection that has sent a request for each credential."""
    host, _, port = server.address.rpartition(":")
    sock = socket.create_connection((host, int(port)), 10.0)
    for number, credential in enumerate(credentials):
        [frame], _ = wire.split(wire.echo_request(f"{number}", id=number + 1))
        if credential is not None:
            frame.meta.authentication_data = credential
        # It may have been refused by now.
        with contextlib.suppress(ConnectionError):
            wire.send(sock, wire.pack(frame.meta, frame.message))
    return sock


def refusal(sock: socket.socket, id: int = 1) -> str:
    """The text of the one answer, after which the connection ends."""
    data = wire.read_raw_frame(sock)
    assert len(data) <= 4096
    [frame], _ = wire.split(data)
    assert (frame.id, frame.meta.response.error_code) == (id, 1004)
    with contextlib.suppress(ConnectionResetError):
        assert sock.recv(1) == b""
    sock.close()
    return str(frame.meta.response.error_text)


class Asked:
    """An authenticator that waits until the test says what it answers."""

    def __init__(self) -> None:
        self.calls: list[tuple[bytes, str, str]] = []
        self.answer: Any = "somebody"
        self.go = threading.Event()

    def verify(self, credential: bytes, peer: str) -> str | None:
        self.calls.append((credential, peer, threading.current_thread().name))
        assert self.go.wait(20)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer  # type: ignore[no-any-return]


# ---- faces


def test_a_handler_learns_who_calls(face: Face, serve: Serving) -> None:
    server = serve(who, authenticator=TOKENS)
    assert ask(face, server.address, credentials=b"secret") == "'alice'"
    assert ask(face, server.address, credentials=lambda: b"other") == "'bob'"


def test_without_an_authenticator_credentials_are_ignored(
    face: Face, serve: Serving
) -> None:
    server = serve(who)
    assert ask(face, server.address, credentials=b"anything") == "None"
    assert ask(face, server.address) == "None"


def test_who_has_no_credential_or_a_wrong_one_is_refused(
    face: Face, serve: Serving
) -> None:
    server = serve(who, authenticator=TOKENS)
    for options in ({}, {"credentials": b"guess"}):
        with pytest.raises(tw.Unauthenticated, match="^Fail to authenticate") as caught:
            ask(face, server.address, **options)
        assert caught.value.number == tw.Errno.ERPCAUTH
        assert caught.value.phase is tw.Phase.PEER
    # Others notice nothing.
    assert ask(face, server.address, credentials=b"secret") == "'alice'"


def test_each_connection_is_asked_about_once(face: Face, serve: Serving) -> None:
    asked, given = Asked(), []
    asked.go.set()

    def credentials() -> bytes:
        given.append(f"number {len(given)}".encode())
        return given[-1]

    server = serve(who, authenticator=asked)
    channel = face.channel(server.address, timeout=10.0, credentials=credentials)
    client = face.client(echo_tw, channel)
    request = echo_pb2.EchoRequest(message="")
    for _ in range(2):
        calls = [face.start(client, "echo", request) for _ in range(8)]
        for call in calls:
            assert call.result(20).message == "'somebody'"
        for _ in range(3):
            face.call(client, "echo", request)
    assert given == [b"number 0"]
    assert [call[0] for call in asked.calls] == given
    assert {call[2] for call in asked.calls} == {"tidewire-auth"}
    # The connection's successor has a credential of its own.
    address = server.address
    serve.stop(server)
    server = serve(who, authenticator=asked, listen=address)
    eventually(lambda: counter("tidewire_connections_out") == 0)
    assert face.call(client, "echo", request).message == "'somebody'"
    assert given == [b"number 0", b"number 1"]
    assert [call[0] for call in asked.calls] == given


def test_what_gives_the_credentials_may_fail(face: Face, serve: Serving) -> None:
    server = serve(who, authenticator=TOKENS)
    answers: list[Any] = [RuntimeError("no token today"), b"", "text", b"secret"]

    def credentials() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    channel = face.channel(server.address, timeout=10.0, credentials=credentials)
    client = face.client(echo_tw, channel)
    for error in (RuntimeError, tw.OptionError, TypeError):
        with pytest.raises(error):
            face.call(client, "echo", echo_pb2.EchoRequest(message=""))
    reply = face.call(client, "echo", echo_pb2.EchoRequest(message=""))
    assert reply.message == "'alice'"


# ---- bytes


def test_nothing_runs_before_the_verdict(serve: Serving) -> None:
    """A1, A2: one credential, one verdict, and nothing else until then."""
    asked, runs = Asked(), []

    def note(request: Any, ctx: tw.Context) -> Any:
        runs.append((request.message, ctx.identity))
        return echo_pb2.EchoResponse(message=request.message)

    server = serve(note, authenticator=asked)
    # Credentials later in a connection mean nothing.
    with raw(server, b"first", b"second", None) as sock:
        eventually(lambda: asked.calls)
        assert (runs, server.in_flight) == ([], 0)
        [(credential, peer, _)] = asked.calls
        host, port = sock.getsockname()
        assert (credential, peer) == (b"first", f"{host}:{port}")
        asked.go.set()
        assert {f.id for f in wire.read_frames(sock, 3)} == {1, 2, 3}
    assert sorted(runs) == [(str(i), "somebody") for i in range(3)]
    assert len(asked.calls) == 1


@pytest.mark.parametrize(
    ("credential", "text"),
    [
        (None, "Fail to authenticate: no credential"),
        (b"", "Fail to authenticate: no credential"),
        (b"wrong", "Fail to authenticate"),
        (b"w" * 65537, "Fail to authenticate: too large a credential"),
        (b"w" * (1000 << 10), "Fail to authenticate: too large a credential"),
    ],
    ids=["none", "empty", "wrong", "large", "huge"],
)
def test_refusals(serve_def: Serving, credential: bytes | None, text: str) -> None:
    """A2, R6: one answer of at most 4 KiB."""
    server = serve_def(who, authenticator=TOKENS)
    refused = counter("tidewire_authentication_failures")
    assert refusal(raw(server, credential)) == text
    # What follows is not looked at.
    assert refusal(raw(server, credential, b"secret", b"secret")) == text
    assert counter("tidewire_authentication_failures") == refused + 2
    assert server.in_flight == 0


def test_a_credential_that_fits_no_meta_is_unacceptable(serve_def: Serving) -> None:
    server = serve_def(who, authenticator=TOKENS)
    with (
        raw(server, b"w" * (1 << 20)) as sock,
        contextlib.suppress(ConnectionResetError),
    ):
        assert sock.recv(1) == b""


@pytest.mark.parametrize(
    ("answer", "text", "logged"),
    [
        (None, "Fail to authenticate", False),
        (tw.Unauthenticated("expired"), "Fail to authenticate: expired", False),
        (tw.Unauthenticated("x" * 9000), "Fail to authenticate: xxx", False),
        (RuntimeError("do not tell"), "Fail to authenticate", True),
        (SystemExit(3), "Fail to authenticate", True),
        ("", "Fail to authenticate", True),
        ("n" * 1025, "Fail to authenticate", True),
        (True, "Fail to authenticate", True),
    ],
    ids=["none", "unauthenticated", "long", "error", "exit", "empty", "big", "bool"],
)
def test_every_answer_but_an_identity_refuses(
    serve_def: Serving,
    caplog: pytest.LogCaptureFixture,
    answer: Any,
    text: str,
    logged: bool,
) -> None:
    """A1, R6: however long the reason is, the answer has at most 4 KiB."""
    asked = Asked()
    asked.answer = answer
    asked.go.set()
    server = serve_def(who, authenticator=asked)
    with caplog.at_level(logging.ERROR, "tidewire.server"):
        said = refusal(raw(server, b"secret"))
    assert said.startswith(text)
    assert "do not tell" not in said
    errors = [r for r in caplog.records if r.name == "tidewire.server"]
    assert len(errors) == logged
    assert "secret" not in caplog.text
    # The thread goes on.
    asked.answer = "somebody"
    with raw(server, b"secret") as sock:
        assert wire.read_frame(sock).meta.response.error_code == 0


def test_a_verdict_that_does_not_come_is_a_refusal(serve_def: Serving) -> None:
    """A3: an authenticator has its time, and a thread of its own."""
    asked = Asked()
    server = serve_def(who, authenticator=asked, auth_timeout=0.05)
    first, second = raw(server, b"a"), raw(server, b"b")
    assert (
        refusal(first) == refusal(second) == "Fail to authenticate: no verdict in time"
    )
    asked.go.set()  # too late
    # The second had gone before its turn came.
    with raw(server, b"c") as sock:
        wire.read_frame(sock)
    assert b"c" in [call[0] for call in asked.calls]


def test_a_connection_that_ends_while_it_is_asked_about(serve_def: Serving) -> None:
    asked = Asked()
    server = serve_def(who, authenticator=asked)
    lost = [raw(server, b"a") for _ in range(4)]
    eventually(lambda: asked.calls)
    for sock in lost:
        reset(sock)
    asked.go.set()
    eventually(lambda: server.connections == 0)
    with raw(server, b"b") as sock:
        assert wire.read_frame(sock).meta.response.error_code == 0


def test_a_flood_before_the_verdict_costs_bounded_memory(serve_def: Serving) -> None:
    asked = Asked()
    server = serve_def(who, authenticator=asked)
    before = census()["block_bytes"]
    with raw(server, b"a") as sock:
        eventually(lambda: asked.calls)
        sock.settimeout(0.1)
        sent, part = 0, wire.echo_request("x" * 60_000, id=7)
        with contextlib.suppress(TimeoutError):
            while sent < 64 << 20:
                sent += sock.send(part)
        assert sent < 64 << 20
        assert census()["block_bytes"] - before < 256 << 10
        assert server.in_flight == 0
        reset(sock)
    asked.go.set()


def test_stopping_does_not_wait_for_a_verdict(serve: Serving) -> None:
    asked = Asked()
    server = serve(who, authenticator=asked)
    with raw(server, b"a") as sock:
        eventually(lambda: asked.calls)
        # Its thread is joined; so it may end now.
        threading.Timer(0.01, asked.go.set).start()
        serve.stop(server)
        with contextlib.suppress(ConnectionResetError):
            assert len(sock.recv(4096)) >= 0


def test_the_log_names_who_was_refused_and_no_credential(serve_def: Serving) -> None:
    """A4: the log, too, is no place for secrets."""
    server = serve_def(who, authenticator=TOKENS)
    with core_log() as log:
        refusal(raw(server, b"guessed"))
        log.exactly(1)
    assert "guessed" not in str(vars(log))


def test_the_admin_pages_are_not_concerned(serve_def: Serving) -> None:
    server = serve_def(who, authenticator=TOKENS, admin="127.0.0.1:0")
    host, _, port = str(server.admin_address).rpartition(":")
    with socket.create_connection((host, int(port)), 10.0) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 200")


def test_the_identity_is_known_as_long_as_the_handler_runs(serve_def: Serving) -> None:
    kept: list[tw.Context] = []
    gone = threading.Event()

    def look(_request: Any, ctx: tw.Context) -> Any:
        kept.append(ctx)
        assert gone.wait(20)
        return echo_pb2.EchoResponse(message=str(ctx.identity))

    server = serve_def(look, authenticator=TOKENS)
    sock = raw(server, b"secret")
    eventually(lambda: kept)
    reset(sock)
    eventually(kept[0].cancelled)
    gone.set()
    eventually(lambda: server.in_flight == 0)
    assert kept[0].identity == "alice"
    # What nobody asked for in time is not known afterwards.
    fresh: list[tw.Context] = []

    def keep(_request: Any, ctx: tw.Context) -> Any:
        fresh.append(ctx)
        return echo_pb2.EchoResponse(message="")

    server = serve_def(keep, authenticator=TOKENS)
    with raw(server, b"secret") as sock:
        wire.read_frame(sock)
    eventually(lambda: server.in_flight == 0)
    with pytest.raises(tw.ClosedError, match="identity"):
        fresh[0].identity  # noqa: B018
    kept.clear()
    fresh.clear()
