"""Limits: message sizes on both sides, calls and connections at a time."""

import socket
import threading
from types import SimpleNamespace

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import (
    ECHO_META,
    RawServer,
    connect,
    correlation_of,
    counter,
    echo,
    eventually,
    field,
    frame,
    read_frame,
)

REQUEST = echo_pb2.EchoRequest(message="hello")
INFO = tw.MethodInfo(
    service="example.EchoService", name="Echo", request=bytes, response=bytes
)


def ends(stream):
    """Whether nothing more comes; with bytes unread on the way it is a RST."""
    try:
        return stream.read(1) == b""
    except ConnectionResetError:
        return True


class RawEcho(tw.Service):
    __tidewire_service__ = "example.EchoService"
    __tidewire_methods__ = {"echo": INFO}

    def echo(self, request, ctx):
        return request[:10]


@pytest.mark.parametrize("limit", [100, 1000, 5000, 100_000])
def test_the_servers_limit_to_the_byte(serve_def, limit):
    """What is limited is the frame without its header of 12 bytes."""
    server = serve_def([RawEcho()], max_message=limit)
    exact = limit - len(ECHO_META)
    with connect(server) as connection, connection.makefile("rb") as stream:
        for _ in range(3):
            connection.sendall(frame(ECHO_META, b"x" * exact))
            assert read_frame(stream)[1] == b"x" * 10
        # Refused by its header alone.
        connection.sendall(frame(ECHO_META, b"x" * (exact + 1))[:12])
        assert read_frame(stream) == (b"", b"")
    eventually(lambda: server.connections == 0)


UPLOAD = tw.MethodInfo(
    service="example.EchoService", name="Upload", request=bytes, response=bytes
)
LESS = {"example.EchoService/Echo": tw.MethodOptions(max_message=1000)}


def two_methods(serving):
    """A service with Echo and Upload, of either kind."""

    class Two(tw.Service):
        __tidewire_service__ = "example.EchoService"
        __tidewire_methods__ = {"echo": INFO, "upload": UPLOAD}

        if serving.is_async:

            async def echo(self, request, ctx):
                return request[:10]
        else:

            def echo(self, request, ctx):
                return request[:10]

        upload = echo

    return Two()


@pytest.mark.parametrize("pieces", ["whole", "head", "bytes"])
@pytest.mark.parametrize("service", [b"example.EchoService", b"EchoService"])
def test_w4_a_methods_own_limit_to_the_byte(serve, pieces, service):
    """W4: refused as soon as the meta is there, before its body comes; other
    methods have the server's limit."""
    server = serve([two_methods(serve)], methods=LESS)
    echo_meta, upload_meta = (
        field(1, field(1, service) + field(2, name)) + field(4, 7)
        for name in (b"Echo", b"Upload")
    )
    errors = counter("tidewire_protocol_errors")
    exact = 1000 - len(echo_meta)
    with connect(server) as connection, connection.makefile("rb") as stream:
        for meta, size in (
            (echo_meta, exact),
            (upload_meta, 100_000),
            (echo_meta, exact),
        ):
            connection.sendall(frame(meta, b"x" * size))
            assert read_frame(stream)[1] == b"x" * 10
        over = frame(echo_meta, b"x" * (exact + 1))
        if pieces == "whole":
            connection.sendall(over)
        else:
            head = over[: 12 + len(echo_meta)]
            step = 1 if pieces == "bytes" else len(head)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, len(head), step):
                connection.sendall(head[at : at + step])
        assert ends(stream)
    eventually(lambda: server.connections == 0)
    assert counter("tidewire_protocol_errors") == errors + 1


def test_w4_a_call_over_its_methods_limit(face, serve):
    """W4: it fails as one over the server's limit does, and the next is served."""
    server = serve([two_methods(serve)], methods=LESS)
    channel = face.channel(server.address, timeout=10)
    client = SimpleNamespace(echo=channel.unary(INFO), upload=channel.unary(UPLOAD))
    for _ in range(3):
        with pytest.raises(tw.Unavailable) as caught:
            face.call(client, "echo", b"x" * 1001)
        assert caught.value.phase in (tw.Phase.READ, tw.Phase.WRITE)
        assert face.call(client, "upload", b"x" * 1001) == b"x" * 10
        assert face.call(client, "echo", b"x" * 900) == b"x" * 10


def test_a_method_that_is_not_served_has_no_options(serve_def):
    with pytest.raises(tw.OptionError, match=r"names 'a\.B/c'; allowed: .*/Echo"):
        serve_def([RawEcho()], methods={"a.B/c": tw.MethodOptions()})


@pytest.mark.parametrize("limit", [100, 1000, 5000, 100_000])
def test_the_clients_limit_to_the_byte(face, limit):
    def answer(stream, connection):
        while request := read_frame(stream)[0]:
            meta = field(2, b"") + correlation_of(request)
            more = int(b"too much" in request)
            connection.sendall(frame(meta, b"x" * (limit - len(meta) + more)))

    with RawServer(answer) as server:
        channel = face.channel(server.address, max_message=limit)
        client = raw_client(channel)
        for _ in range(3):
            assert set(face.call(client, "echo", b"", timeout=5)) == set(b"x")
        with pytest.raises(tw.RpcError) as caught:
            face.call(client, "echo", b"", timeout=5, request_id="too much")
        assert caught.value.phase is tw.Phase.READ
        assert caught.value.sent is tw.Sent.ALL
        assert not isinstance(caught.value, tw.DeadlineExceeded)
        # The next call makes a new connection.
        assert face.call(client, "echo", b"", timeout=5)
        face.close_channel(channel)


def raw_client(channel):
    return type("Raw", (), {"echo": staticmethod(channel.unary(INFO))})()


def test_an_attachment_counts(face, serve):
    server = serve(max_message=10_000)
    client = face.client(echo_tw, face.channel(server.address))
    face.call(client, "echo", REQUEST, attachment=bytes(9_900), timeout=5)
    with pytest.raises(tw.Unavailable) as caught:
        face.call(client, "echo", REQUEST, attachment=bytes(10_000), timeout=5)
    assert caught.value.sent is not tw.Sent.NONE
    face.call(client, "echo", REQUEST, attachment=bytes(9_900), timeout=5)


def test_other_calls_of_a_connection_over_the_limit_fail_too(face, serve, gate):
    """The stream is lost, and every call on it must say so."""
    server = serve(gate=gate, max_message=10_000)
    client = face.client(echo_tw, face.channel(server.address))
    calls = [face.start(client, "echo", REQUEST, timeout=10) for _ in range(5)]
    gate.until_entered(5)
    big = echo_pb2.EchoRequest(message="x" * 20_000)
    with pytest.raises(tw.Unavailable):
        face.call(client, "echo", big, timeout=5)
    for call in calls:
        with pytest.raises(tw.Unavailable):
            call.result(5)
    gate.open()
    eventually(lambda: server.in_flight == 0)


def test_max_concurrency(face, serve, gate):
    server = serve(gate=gate, max_concurrency=3, threads=8)
    client = face.client(echo_tw, face.channel(server.address))
    calls = [face.start(client, "echo", REQUEST, timeout=10) for _ in range(3)]
    gate.until_entered(3)
    assert server.in_flight == 3
    for _ in range(3):
        with pytest.raises(tw.ResourceExhausted) as caught:
            face.call(client, "echo", REQUEST)
        assert caught.value.number == tw.Errno.ELIMIT
        assert caught.value.phase is tw.Phase.PEER
    gate.open()
    for call in calls:
        assert call.result(10).message == "hello"
    assert face.call(client, "echo", REQUEST).message == "hello"


@pytest.mark.parametrize("end", ["answer", "error", "exception", "reset"])
def test_permits_return_however_a_call_ends(face, serve, gate, caplog, end):
    """R7."""

    def handler(request, ctx):
        if end == "error":
            raise tw.NotFound("no")
        if end == "exception":
            raise ZeroDivisionError
        return echo(request, ctx)

    server = serve(handler, gate=gate, max_concurrency=2)
    channel = face.channel(server.address)
    client = face.client(echo_tw, channel)
    calls = [face.start(client, "echo", REQUEST, timeout=10) for _ in range(2)]
    gate.until_entered(2)
    if end == "reset":
        face.close_channel(channel)
    gate.open()
    for call in calls:
        try:
            assert call.result(10).message == "hello"
        except tw.RpcError:
            assert end != "answer"
    eventually(lambda: server.in_flight == 0)
    client = face.client(echo_tw, face.channel(server.address))
    for _ in range(5):
        try:
            face.call(client, "echo", REQUEST)
        except (tw.NotFound, tw.Internal):
            assert end in ("error", "exception")
    caplog.clear()


def test_max_connections(face, serve):
    """R3."""
    server = serve(max_connections=2)
    *kept, surplus = [
        face.client(echo_tw, face.channel(server.address, connection_group=str(i)))
        for i in range(3)
    ]
    for client in kept:
        face.call(client, "echo", REQUEST)
    with pytest.raises(tw.Unavailable):
        face.call(surplus, "echo", REQUEST, timeout=2)
    for client in kept:
        assert face.call(client, "echo", REQUEST).message == "hello"
    assert server.connections == 2


def test_max_pending_pauses_reading(face, serve, gate):
    """R1: over the limit nothing is lost: the rest waits in the sockets."""
    server = serve(gate=gate, max_pending=4, threads=16)
    client = face.client(echo_tw, face.channel(server.address))
    calls = [face.start(client, "echo", REQUEST, timeout=20) for _ in range(100)]
    gate.until_entered(4)
    assert server.in_flight == 4
    gate.open()
    for call in calls:
        assert call.result(20).message == "hello"
    assert gate.entered == 100


def timers_over(before):
    """How many more timers are set than then, and what is allowed beside those
    of calls: two for each socket, one for callers that wait."""
    allowed = 2 * counter("tidewire_sockets") + 1
    return counter("tidewire_timers") - before, allowed


def test_r8_timers_are_those_of_calls_under_way(face, serve, gate):
    """R8: a call that is over leaves no timer behind, however it ended; its
    deadline would be far away."""
    before = counter("tidewire_timers")
    held_server, server = serve(gate=gate, threads=20), serve()
    held = face.client(echo_tw, face.channel(held_server.address))
    channel = face.channel(server.address, timeout=3600)
    client = face.client(echo_tw, channel)
    under_way = [face.start(held, "echo", REQUEST, timeout=3600) for _ in range(20)]
    gate.until_entered(20)
    timers, allowed = timers_over(before)
    assert 20 <= timers <= 20 + allowed
    for _ in range(10):
        calls = [face.start(client, "echo", REQUEST) for _ in range(100)]
        for call in calls:
            assert call.result(30).message == "hello"
        timers, allowed = timers_over(before)
        assert timers <= 20 + allowed
    # Over, too: what was cancelled, what was too late, what could not be sent.
    for call in under_way[:10]:
        call.cancel()
    eventually(lambda: timers_over(before)[0] <= 10 + timers_over(before)[1])
    for _ in range(10):
        with pytest.raises(tw.DeadlineExceeded):
            face.call(held, "echo", REQUEST, timeout=0.001)
    timers, allowed = timers_over(before)
    assert timers <= 10 + allowed
    gate.open()
    for call in under_way[10:]:
        assert call.result(30).message == "hello"
    timers, allowed = timers_over(before)
    assert timers <= allowed


def test_a_paused_connection_delays_no_other(face, serve, gate):
    server = serve(gate=gate, max_pending=2, threads=16)
    crowd = face.client(echo_tw, face.channel(server.address))
    other = face.client(
        echo_tw, face.channel(server.address, connection_group="another")
    )
    calls = [face.start(crowd, "echo", REQUEST, timeout=20) for _ in range(50)]
    gate.until_entered(2)
    alone = face.start(other, "echo", REQUEST, timeout=20)
    gate.until_entered(3)
    gate.open()
    for call in [*calls, alone]:
        call.result(20)


def test_unwritten_bytes_are_limited():
    """R1: a server that does not read: calls are refused at once, not queued."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    options = tw.ChannelOptions(timeout=None, max_unwritten=1 << 20)
    with listener, tw.Channel(address, options=options) as channel:
        echoes = channel.unary(INFO)
        calls = []
        while len(calls) < 10_000 and not any(call.done() for call in calls[-5:]):
            calls.append(echoes.future(bytes(100_000)))
        channel.close()
        refused = []
        for call in calls:
            with pytest.raises((tw.Cancelled, tw.ResourceExhausted)) as caught:
                call.result(5)
            if isinstance(caught.value, tw.ResourceExhausted):
                refused.append(caught.value)
        assert refused
        for error in refused:
            assert error.number == tw.Errno.EOVERCROWDED
            assert error.sent is tw.Sent.NONE


def test_a_server_serves_many_connections(serve_def):
    server = serve_def()
    channels = [
        tw.Channel(server.address, options=tw.ChannelOptions(connection_group=str(i)))
        for i in range(100)
    ]
    clients = [echo_tw.EchoClient(c) for c in channels]
    for client in clients:
        assert client.echo(REQUEST, timeout=5).message == "hello"
    assert server.connections == 100
    done = []
    threads = [
        threading.Thread(target=lambda c=c: done.append(c.echo(REQUEST, timeout=10)))
        for c in clients
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(done) == 100
    for channel in channels:
        channel.close()
    eventually(lambda: server.connections == 0)
