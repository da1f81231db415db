"""Connecting to a server that has several addresses, or none that answers."""

import contextlib
import socket
import time

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import eventually, full_listener
from tidewire.address import MAX_ADDRESSES

REQUEST = echo_pb2.EchoRequest(message="hello")


@contextlib.contextmanager
def bound_port():
    """A port that nobody listens on, and nobody else can take."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{holder.getsockname()[1]}"


@pytest.fixture
def refusing():
    with bound_port() as address:
        yield address


def failed(face, client, **how):
    with pytest.raises(tw.RpcError) as caught:
        face.call(client, "echo", REQUEST, **{"timeout": 30, **how})
    assert caught.value.sent is tw.Sent.NONE
    assert caught.value.phase is tw.Phase.CONNECT
    return caught.value


def test_c5_the_first_address_refuses(face, serve, refusing, tmp_path):
    """C5: the next one is tried; the answer says which it was."""
    address = serve().address
    both = f"{refusing},unix:{tmp_path}/nobody,{address}"
    channel = face.channel(both)
    assert channel.address == both
    client = face.client(echo_tw, channel)
    for _ in range(3):
        answer = face.full(client, "echo", REQUEST, timeout=30)
        assert answer.message.message == "hello"
        assert answer.peer == address


def test_c5_the_address_that_worked_comes_first(face, serve_def, refusing):
    """C5: after a loss it is not begun from the front again."""
    first, second = serve_def(), serve_def()
    channel = face.channel(f"{refusing},{second.address},{first.address}")
    client = face.client(echo_tw, channel)
    assert face.full(client, "echo", REQUEST, timeout=30).peer == second.address
    serve_def.stop(second)

    def peer():
        with contextlib.suppress(tw.Unavailable):
            return face.full(client, "echo", REQUEST, timeout=30).peer
        return None

    assert eventually(peer) == first.address
    # The second is back, and the first still there: it stays.
    serve_def(listen=second.address)
    assert peer() == first.address


def test_c5_a_black_hole_takes_its_share(face, serve_def, black_hole):
    """C5: the connect timeout is for all addresses together."""
    address = serve_def().address
    channel = face.channel(f"{black_hole},{address}", connect_timeout=2)
    client = face.client(echo_tw, channel)
    start = time.monotonic()
    assert face.full(client, "echo", REQUEST, timeout=30).peer == address
    assert time.monotonic() - start >= 1


def test_c5_black_holes_end_with_the_connect_timeout(face, black_hole):
    """C5: not earlier, and by it: the call's own deadline is far."""
    with full_listener() as another:
        channel = face.channel(f"{black_hole},{another}", connect_timeout=0.2)
        client = face.client(echo_tw, channel)
        start = time.monotonic()
        error = failed(face, client, timeout=None)
        took = time.monotonic() - start
        assert isinstance(error, tw.Unavailable)
        assert error.number == tw.Errno.ETIMEDOUT
        assert 0.2 <= took < 20


def test_c5_all_addresses_refuse(face, refusing):
    """C5: the call says what the last one said."""
    with bound_port() as another:
        client = face.client(echo_tw, face.channel(f"{refusing},{another}"))
        for _ in range(3):
            error = failed(face, client)
            assert isinstance(error, tw.Unavailable)
            assert error.number == tw.Errno.ECONNREFUSED


def test_c5_closing_cancels_what_connects(face, black_hole):
    """C5: also between two addresses."""
    with full_listener() as another:
        channel = face.channel(f"{black_hole},{another}", connect_timeout=None)
        client = face.client(echo_tw, channel)
        calls = [face.start(client, "echo", REQUEST, timeout=None) for _ in range(5)]
        with pytest.raises(tw.DeadlineExceeded):
            face.call(client, "echo", REQUEST, timeout=0.02)
        face.close_channel(channel)
        for call in calls:
            with pytest.raises(tw.Cancelled) as caught:
                call.result(30)
            assert caught.value.sent is tw.Sent.NONE


def test_names_among_the_addresses(face, serve, refusing):
    port = serve().address.rsplit(":", 1)[1]
    client = face.client(echo_tw, face.channel(f"{refusing}, localhost:{port}"))
    assert face.call(client, "echo", REQUEST, timeout=30).message == "hello"


def test_wrong_lists_are_refused_at_once():
    many = ",".join(["127.0.0.1:1"] * (MAX_ADDRESSES + 1))
    for wrong in (many, "127.0.0.1:1,", ",127.0.0.1:1", "127.0.0.1:1,,[::1]:1"):
        with pytest.raises(tw.AddressError, match="allowed"):
            tw.Channel(wrong)
    with tw.Channel(",".join(["127.0.0.1:1"] * MAX_ADDRESSES)) as channel:
        assert channel.address.count(",") == MAX_ADDRESSES - 1
