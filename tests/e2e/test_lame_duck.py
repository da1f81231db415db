"""A server that is about to stop serves on and asks its clients to leave; those
that understand it lose no call, the others are served."""

import threading
import urllib.error
import urllib.request

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import (
    ECHO_META,
    SLOW,
    Gate,
    connect,
    counter,
    echo,
    eventually,
    field,
    frame,
    read_frame,
    within,
)

REQUEST = echo_pb2.EchoRequest(message="hello")
NOTICE = field(4, 0)  # correlation_id 0
UNKNOWN = field(1, field(1, b"example.EchoService") + field(2, b"No")) + field(4, 7)


@pytest.fixture
def stopping():
    """Starts stop(server) in a thread, which has ended at the end of the test."""
    threads = []

    def start(serve, server):
        thread = threading.Thread(target=serve.stop, args=(server,))
        threads.append(thread)
        thread.start()
        return thread

    yield start
    for thread in threads:
        thread.join(10 * SLOW)
        assert not thread.is_alive()


def left():
    return counter("tidewire_left_connections")


def test_p6_clients_leave_for_the_successor(face, serve, gate, stopping):
    """The call under way is answered, later ones go to the next server of the
    port, and the server ends long before its time is over."""
    old = serve(gate=gate, reuse_port=True, lame_duck=60.0)
    client = face.client(echo_tw, face.channel(old.address))
    call = face.start(client, "echo", REQUEST, timeout=30)
    gate.until_entered()
    served = []
    next_one = serve(
        lambda request, ctx: served.append(1) or echo(request, ctx),
        listen=old.address,
        reuse_port=True,
    )
    before = left()
    thread = stopping(serve, old)
    eventually(lambda: left() == before + 1, "the client leaves")
    for _ in range(5):
        assert face.call(client, "echo", REQUEST).message == "hello"
    assert len(served) == 5
    assert thread.is_alive()
    gate.open()
    assert call.result(10).message == "hello"
    with within(10 * SLOW):
        thread.join()
    assert next_one.in_flight == 0


def test_c2_a_channel_that_has_left_can_be_closed(face, serve, stopping):
    """Its last call on the old connection ends with it."""
    waits, free = Gate(), Gate()
    free.open()
    old = serve(gate=waits, reuse_port=True, lame_duck=60.0)
    channel = face.channel(old.address)
    client = face.client(echo_tw, channel)
    call = face.start(client, "echo", REQUEST, timeout=30)
    waits.until_entered()
    serve(gate=free, listen=old.address, reuse_port=True)
    before = left()
    stopping(serve, old)
    eventually(lambda: left() == before + 1, "the client leaves")
    assert face.call(client, "echo", REQUEST).message == "hello"
    face.close_channel(channel)
    with pytest.raises((tw.Cancelled, tw.ClosedError)):
        call.result(10)
    waits.open()


def test_p5_who_does_not_understand_is_served(serve, stopping):
    """And once the time is over it is told so call by call."""
    server = serve(lame_duck=60.0, admin="127.0.0.1:0")
    ask = frame(ECHO_META, field(1, b"hello"))
    with connect(server) as connection, connection.makefile("rb") as stream:
        connection.settimeout(10 * SLOW)
        connection.sendall(ask)
        assert read_frame(stream)[1] == field(1, b"hello")
        thread = stopping(serve, server)
        meta, payload = read_frame(stream)
        assert NOTICE in meta
        assert payload == b""
        for _ in range(3):
            connection.sendall(ask)
            assert read_frame(stream)[1] == field(1, b"hello")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://{server.admin_address}/health")
        with caught.value as answer:
            assert (answer.code, answer.read()) == (503, b"draining\n")
        with pytest.raises(ConnectionRefusedError):
            connect(server)
        assert thread.is_alive()
    with within(10 * SLOW):
        thread.join()  # the last has left


def test_p5_the_time_as_a_lame_duck_ends(face, serve, gate, stopping):
    """Then calls are refused, and the drain has its own time."""
    server = serve(gate=gate, lame_duck=0.2, drain=30.0)
    client = face.client(echo_tw, face.channel(server.address))
    call = face.start(client, "echo", REQUEST, timeout=30)
    gate.until_entered()
    with connect(server) as connection, connection.makefile("rb") as stream:
        connection.settimeout(10 * SLOW)
        thread = stopping(serve, server)

        def refused():
            connection.sendall(frame(UNKNOWN, b""))
            meta, _ = read_frame(stream)
            while NOTICE in meta:
                meta, _ = read_frame(stream)
            return b"Server is stopping" in meta

        eventually(refused, "calls are refused")
        assert thread.is_alive()
        gate.open()
        assert call.result(10).message == "hello"
    with within(10 * SLOW):
        thread.join()


def test_elogoff_makes_the_client_leave(face, serve, gate, stopping):
    """What a server says that is no lame duck, brpc's for instance: one call is
    refused, the next gets a new connection."""
    old = serve(gate=gate, reuse_port=True)
    client = face.client(echo_tw, face.channel(old.address, max_retry=0))
    call = face.start(client, "echo", REQUEST, timeout=30)
    gate.until_entered()
    serve(listen=old.address, reuse_port=True)
    with pytest.raises(tw.Unavailable) as caught:
        stopping(serve, old)
        while True:
            # Until the stop has begun it is held at the gate, and given up.
            try:
                face.call(client, "echo", REQUEST, timeout=0.2)
            except tw.DeadlineExceeded:
                continue
    assert caught.value.number == tw.Errno.ELOGOFF
    assert face.call(client, "echo", REQUEST).message == "hello"
    gate.open()
    assert call.result(10).message == "hello"
