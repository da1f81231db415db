"""Connecting, losing connections, and finding servers again."""

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
import tidewire as tw
from generated import ECHO, WHERE, echo_pb2, echo_tw
from harness import (
    SLOW,
    RawServer,
    correlation_of,
    counter,
    eventually,
    field,
    frame,
    full_listener,
    read_frame,
    within,
)
from tools.stalls import watching

REQUEST = echo_pb2.EchoRequest(message="hello")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def timed(function):
    """(what it raised, the Watch of it)"""
    with watching() as took, pytest.raises(tw.RpcError) as caught:
        function()
    return caught.value, took


def test_refused(face):
    """C5."""
    address = f"127.0.0.1:{free_port()}"
    client = face.client(echo_tw, face.channel(address))
    error, took = timed(lambda: face.call(client, "echo", REQUEST, timeout=5))
    assert isinstance(error, tw.Unavailable)
    assert isinstance(error, ConnectionError)
    assert error.number == tw.Errno.ECONNREFUSED
    assert error.phase is tw.Phase.CONNECT
    assert error.sent is tw.Sent.NONE
    assert error.peer == address
    assert took.undisturbed < 0.2 * SLOW, took


def test_many_refused(face):
    client = face.client(echo_tw, face.channel(f"127.0.0.1:{free_port()}"))
    calls = [face.start(client, "echo", REQUEST, timeout=5) for _ in range(200)]
    for call in calls:
        with pytest.raises(tw.Unavailable) as caught:
            call.result(5)
        assert caught.value.sent is tw.Sent.NONE
    for _ in range(20):
        with pytest.raises(tw.Unavailable):
            face.call(client, "echo", REQUEST)


def test_unix_path_that_is_not_there(face, tmp_path):
    client = face.client(echo_tw, face.channel(f"unix:{tmp_path}/none"))
    error, took = timed(lambda: face.call(client, "echo", REQUEST, timeout=5))
    assert isinstance(error, tw.Unavailable)
    assert error.phase is tw.Phase.CONNECT
    assert error.sent is tw.Sent.NONE
    assert took.undisturbed < 0.2 * SLOW, took


def test_unix_path_that_nobody_listens_on(face, tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    client = face.client(echo_tw, face.channel(f"unix:{tmp_path}/dead"))
    with pytest.raises(tw.Unavailable):
        face.call(client, "echo", REQUEST, timeout=5)


@pytest.mark.parametrize("connect_timeout", [0.05, 0.2])
def test_connect_timeout(face, black_hole, connect_timeout):
    """C5."""
    client = face.client(
        echo_tw, face.channel(black_hole, connect_timeout=connect_timeout, max_retry=0)
    )
    error, took = timed(lambda: face.call(client, "echo", REQUEST, timeout=5))
    assert isinstance(error, tw.Unavailable)
    assert error.phase is tw.Phase.CONNECT
    assert error.sent is tw.Sent.NONE
    assert took.between(connect_timeout, connect_timeout + 0.05 * SLOW), took


def test_three_connect_timeouts_are_unreachable(face, black_hole):
    """C5."""
    channel = face.channel(black_hole, connect_timeout=0.02, max_retry=0)
    client = face.client(echo_tw, channel)
    numbers = [
        timed(lambda: face.call(client, "echo", REQUEST, timeout=5))[0].number
        for _ in range(4)
    ]
    assert numbers == [
        tw.Errno.ETIMEDOUT,
        tw.Errno.ETIMEDOUT,
        tw.Errno.ENETUNREACH,
        tw.Errno.ETIMEDOUT,
    ]


@pytest.mark.parametrize("connect_timeout", [None, 10.0])
def test_the_deadline_bounds_connecting(face, black_hole, connect_timeout):
    """C5."""
    channel = face.channel(black_hole, connect_timeout=connect_timeout)
    client = face.client(echo_tw, channel)
    error, took = timed(lambda: face.call(client, "echo", REQUEST, timeout=0.1))
    assert isinstance(error, tw.DeadlineExceeded)
    assert error.sent is tw.Sent.NONE
    assert error.phase is tw.Phase.CONNECT
    assert took.between(0.1, 0.1 + 0.1 * SLOW), took


def test_closing_while_connecting(face, black_hole):
    """C5."""
    channel = face.channel(black_hole, connect_timeout=None)
    client = face.client(echo_tw, channel)
    calls = [face.start(client, "echo", REQUEST, timeout=None) for _ in range(10)]
    # A call that has ended was begun after the others.
    timed(lambda: face.call(client, "echo", REQUEST, timeout=0.02))
    face.close_channel(channel)
    for call in calls:
        with pytest.raises(tw.Cancelled) as caught:
            call.result(5)
        assert caught.value.sent is tw.Sent.NONE


def test_full_unix_backlog(face, tmp_path):
    with full_listener(str(tmp_path / "s")) as address:
        channel = face.channel(address, connect_timeout=0.1)
        client = face.client(echo_tw, channel)
        error, took = timed(lambda: face.call(client, "echo", REQUEST, timeout=5))
        assert isinstance(error, tw.Unavailable)
        assert error.sent is tw.Sent.NONE
        assert took.undisturbed < 0.3 * SLOW, took


# ---- losing a connection


def test_reconnect_after_the_server_restarted(face, serve):
    server = serve()
    address = server.address
    client = face.client(echo_tw, face.channel(address))
    for _ in range(5):
        assert face.call(client, "echo", REQUEST, timeout=5).message == "hello"
        serve.stop(server)
        with pytest.raises(tw.Unavailable):
            face.call(client, "echo", REQUEST, timeout=5)
        server = serve(listen=address)
        # At once: nothing is remembered of the failure.
        assert face.call(client, "echo", REQUEST, timeout=5).message == "hello"


def lost(face, behaviour, **how):
    """What a call comes to whose server does that with its connection."""
    with RawServer(behaviour) as server:
        channel = face.channel(server.address)
        client = face.client(echo_tw, channel)
        error, _ = timed(lambda: face.call(client, "echo", REQUEST, timeout=5, **how))
        face.close_channel(channel)
    return error


def test_closed_before_the_answer(face):
    error = lost(face, lambda stream, connection: read_frame(stream))
    assert isinstance(error, tw.Unavailable)
    assert error.number == tw.Errno.EEOF
    assert error.phase is tw.Phase.READ
    assert error.sent is tw.Sent.ALL


def test_reset_before_the_answer(face):
    def behaviour(stream, connection):
        read_frame(stream)
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0" + bytes(4)
        )

    error = lost(face, behaviour)
    assert isinstance(error, tw.Unavailable)
    assert error.sent is tw.Sent.ALL
    assert error.phase is tw.Phase.READ


def test_reset_while_the_request_is_sent(face):
    """Some of its bytes reached the kernel, and some never will."""

    def behaviour(stream, connection):
        stream.read(12)
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0" + bytes(4)
        )

    error = lost(face, behaviour, attachment=bytes(50 << 20))
    assert isinstance(error, tw.Unavailable)
    assert error.sent is tw.Sent.SOME
    assert error.phase in (tw.Phase.WRITE, tw.Phase.READ)


@pytest.mark.parametrize("keep", [1, 11, 12, 13, 20, -1])
def test_cut_off_answer(face, keep):
    def behaviour(stream, connection):
        meta, _ = read_frame(stream)
        answer = frame(field(2, b"") + correlation_of(meta), field(1, b"hello"))
        connection.sendall(answer[:keep])

    error = lost(face, behaviour)
    assert isinstance(error, tw.Unavailable)
    assert error.number == tw.Errno.EEOF


def test_answer_and_end_at_once(face):
    """What came before the end counts."""

    def behaviour(stream, connection):
        meta, _ = read_frame(stream)
        connection.sendall(
            frame(field(2, b"") + correlation_of(meta), field(1, b"hello"))
        )

    with RawServer(behaviour) as server:
        channel = face.channel(server.address)
        client = face.client(echo_tw, channel)
        for _ in range(20):
            # The end may be noticed only when the next request is written.
            try:
                assert face.call(client, "echo", REQUEST, timeout=5).message == "hello"
            except tw.Unavailable as error:
                assert error.sent is not tw.Sent.NONE  # noqa: PT017
        face.close_channel(channel)


def server_process(*arguments):
    process = subprocess.Popen(
        [sys.executable, ECHO / "server.py", "--listen", "127.0.0.1:0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(WHERE)},
    )
    line = process.stdout.readline()
    assert line.startswith("listening on "), line
    return process, line.split()[-1]


def state_of(process):
    with open(f"/proc/{process.pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("kind", [[], ["--async"]], ids=["def", "async"])
def test_server_killed_mid_call(face, kind):
    process, address = server_process(*kind)
    try:
        client = face.client(echo_tw, face.channel(address))
        assert face.call(client, "echo", REQUEST, timeout=5).message == "hello"
        sleepy = echo_pb2.EchoRequest(message="x", sleep_ms=30_000)
        calls = [face.start(client, "echo", sleepy, timeout=30) for _ in range(5)]
        # An answer behind them says that they have arrived.
        face.call(client, "echo", REQUEST, timeout=5)
        with within(1 * SLOW):
            process.send_signal(signal.SIGKILL)
            for call in calls:
                with pytest.raises(tw.Unavailable) as caught:
                    call.result(5)
                assert caught.value.sent is tw.Sent.ALL
                assert caught.value.phase is tw.Phase.READ
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_stopped_process_meets_the_deadline(face):
    """A server that hangs is no lost connection."""
    process, address = server_process()
    try:
        client = face.client(echo_tw, face.channel(address))
        assert face.call(client, "echo", REQUEST, timeout=5).message == "hello"
        process.send_signal(signal.SIGSTOP)
        eventually(lambda: state_of(process) == "T", "it has stopped")
        error, took = timed(lambda: face.call(client, "echo", REQUEST, timeout=0.2))
        assert isinstance(error, tw.DeadlineExceeded)
        assert took.between(0.2, 0.2 + 0.1 * SLOW), took
        process.send_signal(signal.SIGCONT)
        assert face.call(client, "echo", REQUEST, timeout=5).message == "hello"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# ---- names


def test_name(face, serve):
    port = serve().address.rsplit(":", 1)[1]
    channel = face.channel(f"localhost:{port}")
    assert channel.address == f"localhost:{port}"
    client = face.client(echo_tw, channel)
    for _ in range(3):
        response = face.full(client, "echo", REQUEST, timeout=5)
        assert response.message.message == "hello"
        assert response.peer == f"127.0.0.1:{port}"


def addresses(monkeypatch, *lists):
    """getaddrinfo gives these hosts, one list after the other."""
    rest = list(lists)
    asked = []

    def getaddrinfo(host, port, *_, **__):
        asked.append(host)
        found = rest.pop(0) if len(rest) > 1 else rest[0]
        if isinstance(found, Exception):
            raise found
        return [
            (
                socket.AF_INET6 if ":" in h else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (h, port, 0, 0) if ":" in h else (h, port),
            )
            for h in found
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_name_with_several_addresses(face, serve, monkeypatch):
    """C5: localhost is ::1 first on most machines, and the server on 127.0.0.1."""
    addresses(monkeypatch, ["::1", "127.0.0.2", "127.0.0.1"])
    port = serve().address.rsplit(":", 1)[1]
    client = face.client(echo_tw, face.channel(f"localhost:{port}"))
    for _ in range(3):
        assert face.call(client, "echo", REQUEST, timeout=5).message == "hello"


def test_name_is_resolved_once(face, serve, monkeypatch):
    asked = addresses(monkeypatch, ["127.0.0.1"])
    port = serve().address.rsplit(":", 1)[1]
    client = face.client(echo_tw, face.channel(f"some.host:{port}"))
    for _ in range(5):
        face.call(client, "echo", REQUEST, timeout=5)
    assert asked == ["some.host"]


def test_name_that_moves(face, serve, monkeypatch):
    """C5: after a connection could not be made the name is resolved anew."""
    asked = addresses(monkeypatch, ["127.0.0.3"], ["127.0.0.1"])
    port = serve().address.rsplit(":", 1)[1]
    client = face.client(echo_tw, face.channel(f"some.host:{port}", max_retry=0))
    with pytest.raises(tw.Unavailable) as caught:
        face.call(client, "echo", REQUEST, timeout=5)
    assert caught.value.phase is tw.Phase.CONNECT
    assert face.call(client, "echo", REQUEST, timeout=5).message == "hello"
    assert len(asked) == 2


def test_a_retry_follows_a_name_that_moves(face, serve, monkeypatch):
    asked = addresses(monkeypatch, ["127.0.0.3"], ["127.0.0.1"])
    port = serve().address.rsplit(":", 1)[1]
    client = face.client(echo_tw, face.channel(f"some.host:{port}"))
    assert face.start(client, "echo", REQUEST, timeout=5).result(10).message == "hello"
    assert len(asked) == 2


def test_name_that_moves_under_futures(serve_def, monkeypatch):
    asked = addresses(monkeypatch, ["127.0.0.3"], ["127.0.0.1"])
    port = serve_def().address.rsplit(":", 1)[1]
    options = tw.ChannelOptions(max_retry=0)
    with tw.Channel(f"some.host:{port}", options=options) as channel:
        client = echo_tw.EchoClient(channel)
        with pytest.raises(tw.Unavailable):
            client.echo.future(REQUEST, timeout=5).result(5)
        eventually(lambda: channel._peer.id == 0)
        assert client.echo.future(REQUEST, timeout=5).result(5).message == "hello"
    assert len(asked) == 2


def test_unknown_name(face, monkeypatch):
    addresses(monkeypatch, socket.gaierror(-2, "Name or service not known"))
    client = face.client(echo_tw, face.channel("no.such.host:80"))
    failures = counter("tidewire_client_failures", phase="resolve")
    error, _ = timed(lambda: face.call(client, "echo", REQUEST, timeout=5))
    assert isinstance(error, tw.Unavailable)
    assert error.phase is tw.Phase.RESOLVE
    assert "no.such.host" in str(error)
    assert "not known" in str(error)
    assert counter("tidewire_client_failures", phase="resolve") == failures + 1


def test_resolving_keeps_the_deadline(face, monkeypatch):
    """A resolver that hangs delays no call."""
    free = threading.Event()

    def getaddrinfo(*_, **__):
        assert free.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    client = face.client(echo_tw, face.channel("slow.host:80"))
    try:
        error, took = timed(lambda: face.call(client, "echo", REQUEST, timeout=0.1))
        assert isinstance(error, tw.DeadlineExceeded)
        assert error.sent is tw.Sent.NONE
        assert took.between(0.1, 0.1 + 0.1 * SLOW), took
    finally:
        free.set()


def test_resolver_that_finds_nothing(face, monkeypatch):
    addresses(monkeypatch, [])
    client = face.client(echo_tw, face.channel("empty.host:80"))
    with pytest.raises(tw.Unavailable, match="empty.host"):
        face.call(client, "echo", REQUEST, timeout=5)


def test_many_threads_resolve_at_once(serve_def, monkeypatch):
    addresses(monkeypatch, ["127.0.0.1"])
    port = serve_def().address.rsplit(":", 1)[1]
    failed = []
    with tw.Channel(f"some.host:{port}") as channel:
        client = echo_tw.EchoClient(channel)

        def run():
            try:
                assert client.echo(REQUEST, timeout=10).message == "hello"
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=run) for _ in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert not failed


def test_wrong_addresses_are_refused_at_once():
    for wrong in ("", "nonsense", "1.2.3.4:70000", "[::1", "unix:relative", "a b:1"):
        with pytest.raises(tw.AddressError, match="allowed|expected"):
            tw.Channel(wrong)
    for wrong in (None, 80, b"127.0.0.1:80"):
        with pytest.raises(TypeError, match="allowed"):
            tw.Channel(wrong)
