"""Which connection a call goes over: one that channels share, one of a pool, or
one of its own."""

import os
import threading

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import SLOW, AsyncFace, BlockingFace, counter, eventually, within

REQUEST = echo_pb2.EchoRequest(message="hello")


def made():
    return counter("tidewire_established_connections")


def clients(face, server, *options):
    """A channel and a client of each."""
    channels = [face.channel(server.address, **each) for each in options]
    return channels, [face.client(echo_tw, channel) for channel in channels]


def ask(face, client):
    assert face.call(client, "echo", REQUEST, timeout=10).message == "hello"


def token():
    return b"token"


SAME = [
    {},
    {"health_check": tw.HealthCheck(interval=5.0)},
    {"credentials": b"token"},
    {"credentials": token},
    {"socket": tw.SocketOptions(send_buffer=100_000), "connect_timeout": 1.0},
    {"connection_group": "mine", "max_message": 10_000, "max_unwritten": 20_000},
]


@pytest.mark.parametrize("options", SAME, ids=[",".join(o) or "none" for o in SAME])
def test_channels_that_agree_share_a_connection(face, serve_def, options):
    server = serve_def()
    # What concerns calls, and not connections, may differ.
    channels, (one, two) = clients(
        face, server, options, {**options, "timeout": 10.0, "send_deadline": False}
    )
    ask(face, one)
    ask(face, two)
    assert server.connections == 1
    face.close_channel(channels[0])
    ask(face, two)
    assert server.connections == 1
    face.close_channel(channels[1])
    eventually(lambda: server.connections == 0, "the last one closes it")


def test_channels_that_differ_do_not(face, serve_def):
    server = serve_def()
    differ = [*SAME, {"connection_group": "yours"}, {"credentials": lambda: b"token"}]
    for client in clients(face, server, *differ)[1]:
        ask(face, client)
    assert server.connections == len(differ)


def test_both_faces_share(serve_def):
    server = serve_def()
    blocking, asynchronous = BlockingFace(), AsyncFace()
    try:
        for face in (blocking, asynchronous, blocking):
            ask(face, face.client(echo_tw, face.channel(server.address)))
        assert server.connections == 1
    finally:
        blocking.close()
        asynchronous.close()


@pytest.mark.parametrize("connection", ["single", "pooled", "short"])
def test_a_channel_that_is_closed_ends_its_own_calls(face, serve_def, gate, connection):
    server = serve_def(gate=gate, threads=4)
    how = {"connection": connection}
    channels, (one, two) = clients(face, server, how, how)
    mine = [face.start(one, "echo", REQUEST, timeout=30) for _ in range(2)]
    others = [face.start(two, "echo", REQUEST, timeout=30) for _ in range(2)]
    gate.until_entered(4)
    with within(10 * SLOW):
        face.close_channel(channels[0])
        for call in mine:
            with pytest.raises((tw.Cancelled, tw.ClosedError)):
                call.result(10)
    assert not any(call.done() for call in others)
    with pytest.raises(tw.ClosedError):
        face.call(one, "echo", REQUEST)
    gate.open()
    for call in others:
        assert call.result(10).message == "hello"
    ask(face, two)


def test_pooled(face, serve_def, gate):
    """Calls at the same time have a connection each, later ones use those."""
    server = serve_def(gate=gate, threads=8)
    _, (client, other) = clients(face, server, *[{"connection": "pooled"}] * 2)
    before = made()
    calls = [face.start(client, "echo", REQUEST, timeout=30) for _ in range(5)]
    gate.until_entered(5)
    assert server.connections == 5
    gate.open()
    for call in calls:
        assert call.result(10).message == "hello"
    for each in [client, other] * 10:
        ask(face, each)
    assert server.connections == 5
    assert made() == before + 5


@pytest.mark.parametrize("failing", [False, True], ids=["answered", "refused"])
def test_short(face, serve_def, failing):
    def handler(request, ctx):
        if failing:
            raise tw.NotFound("no")
        return echo_pb2.EchoResponse(message=ctx.peer)

    server = serve_def(handler)
    _, [client] = clients(face, server, {"connection": "short"})
    before = made()
    peers = set()
    for _ in range(10):
        if failing:
            with pytest.raises(tw.NotFound):
                face.call(client, "echo", REQUEST, timeout=10)
        else:
            reply = face.full(client, "echo", REQUEST, timeout=10)
            assert reply.peer == server.address
            peers.add(reply.message.message)
    assert made() == before + 10
    assert failing or len(peers) == 10
    eventually(lambda: server.connections == 0, "none is left")


@pytest.mark.parametrize("connection", ["pooled", "short"])
def test_a_call_without_an_answer_takes_its_connection_with_it(
    face, serve_def, gate, connection
):
    server = serve_def(gate=gate)
    _, [client] = clients(face, server, {"connection": connection})
    with pytest.raises(tw.DeadlineExceeded):
        face.call(client, "echo", REQUEST, timeout=0.1 * SLOW)
    gate.open()
    eventually(lambda: server.connections == 0, "it is closed")
    ask(face, client)


@pytest.mark.parametrize("connection", ["pooled", "short"])
def test_a_credential_for_each_connection(face, serve_def, connection):
    given = []

    def credentials():
        given.append(1)
        return f"number {len(given)}".encode()

    server = serve_def()
    how = {"connection": connection, "credentials": credentials}
    _, [client] = clients(face, server, how)
    for _ in range(5):
        ask(face, client)
    assert len(given) == (1 if connection == "pooled" else 5)
    calls = [face.start(client, "echo", REQUEST, timeout=30) for _ in range(20)]
    for call in calls:
        assert call.result(10).message == "hello"


@pytest.mark.parametrize("connection", ["pooled", "short"])
def test_health_is_shared(face, serve_def, tmp_path, connection):
    """A connection that cannot be made takes the server down for all that share
    it, and a check brings it back."""
    address = f"unix:{tmp_path}/socket"
    server = serve_def(listen=address)
    check = tw.HealthCheck(interval=0.2)
    _, (own, shared) = clients(
        face,
        server,
        {"health_check": check, "connection": connection},
        {"health_check": check},
    )
    ask(face, own)
    serve_def.stop(server)

    def down(client):
        try:
            face.call(client, "echo", REQUEST, timeout=5)
        except tw.Unavailable as error:
            return error.number == tw.Errno.EFAILEDSOCKET
        return False

    eventually(lambda: down(own), "it is down")
    assert down(shared)
    serve_def(listen=address)
    eventually(lambda: not down(own), "it is back")
    ask(face, own)
    ask(face, shared)


@pytest.mark.parametrize("connection", ["single", "pooled", "short"])
def test_clusters(face, serve_def, connection):
    servers = [serve_def(), serve_def()]
    address = "list://" + ",".join(server.address for server in servers)
    channels = [face.channel(address, connection=connection) for _ in range(2)]
    for client in [face.client(echo_tw, channel) for channel in channels] * 6:
        ask(face, client)
    expected = 0 if connection == "short" else 1
    for server in servers:
        eventually(lambda server=server: server.connections == expected)
    face.close_channel(channels[0])
    ask(face, face.client(echo_tw, channels[1]))


@pytest.mark.parametrize("connection", ["single", "pooled"])
def test_a_fork_makes_its_own(serve_def, connection):
    server = serve_def()
    options = tw.ChannelOptions(connection=connection)
    channels = [tw.Channel(server.address, options=options) for _ in range(2)]
    first, second = [echo_tw.EchoClient(channel) for channel in channels]
    first.echo(REQUEST)
    second.echo(REQUEST)
    assert server.connections == 1
    gone, alive = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            first.echo(REQUEST, timeout=10)
            channels[0].close()
            second.echo(REQUEST, timeout=10)
            channels[1].close()
            os.write(alive, b"1")
        finally:
            os._exit(0)
    os.close(alive)
    waited = threading.Thread(target=os.waitpid, args=(pid, 0))
    waited.start()
    with open(gone, "rb") as stream:
        assert stream.read() == b"1"
    waited.join()
    second.echo(REQUEST)
    eventually(lambda: server.connections == 1)
    for channel in channels:
        channel.close()
