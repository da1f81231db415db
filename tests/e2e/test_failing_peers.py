"""Servers that stop reading, stop altogether, or are killed: every call ends by
its deadline or at once, says how far it got, and the next one after the server
is back works."""

import socket
import threading

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import SLOW, RawServer, eventually, within
from tools.echoed import EchoProcess
from tools.stalls import watching

REQUEST = echo_pb2.EchoRequest(message="hello")
LARGE = bytes(16 << 20)
"""More than the kernel's buffers take."""
LATE = 0.1 * SLOW


@pytest.fixture(params=["def", "async"])
def peer(request, tmp_path):
    with EchoProcess(tmp_path / "journal", request.param) as process:
        yield process


def ended(call):
    with pytest.raises(tw.RpcError) as caught:
        call.result(10)
    return caught.value


def test_a_peer_that_stops_reading(face):
    """L1: calls end at their deadlines, whole, begun or not sent at all; those
    that had not begun are told so."""

    def mute(stream, connection):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        done.wait(30)

    done = threading.Event()
    try:
        with RawServer(mute) as server:
            channel = face.channel(server.address, max_unwritten=1 << 30)
            client = face.client(echo_tw, channel)
            with watching() as took:
                first = face.start(client, "echo", REQUEST, timeout=0.3)
                large = face.start(
                    client, "echo", REQUEST, timeout=0.3, attachment=LARGE
                )
                behind = [
                    face.start(client, "echo", REQUEST, timeout=0.3) for _ in range(5)
                ]
                ends = [ended(call) for call in (first, large, *behind)]
            assert took.between(0.3, 0.3 + 2 * LATE), took
            for error in ends:
                assert isinstance(error, tw.DeadlineExceeded)
                assert error.elapsed < 0.3 + LATE + took.stalled
            said = [(error.phase, error.sent) for error in ends]
            assert said[0] == (tw.Phase.READ, tw.Sent.ALL)
            assert said[1] == (tw.Phase.WRITE, tw.Sent.SOME)
            assert said[2:] == [(tw.Phase.WRITE, tw.Sent.NONE)] * 5
            face.close_channel(channel)
            done.set()
    finally:
        done.set()


def test_a_stopped_peer_and_its_continuation(face, peer):
    """L1: SIGSTOP is no lost connection: each call ends at its own deadline, late
    answers are dropped, and once it goes on it serves on the same connection."""
    client = face.client(echo_tw, face.channel(peer.address))
    assert face.call(client, "echo", REQUEST, timeout=5).message == "hello"
    peer.freeze()
    for timeout in (0.05, 0.2):
        with watching() as took:
            error = ended(face.start(client, "echo", REQUEST, timeout=timeout))
        assert isinstance(error, tw.DeadlineExceeded)
        assert (error.phase, error.sent) == (tw.Phase.READ, tw.Sent.ALL)
        assert took.between(timeout, timeout + LATE), took
    waiting = face.start(client, "echo", REQUEST, timeout=30)
    assert not waiting.done()
    peer.thaw()
    assert waiting.result(10).message == "hello"
    for i in range(10):
        said = echo_pb2.EchoRequest(message=f"after {i}")
        assert face.call(client, "echo", said, timeout=5).message == f"after {i}"


def test_a_stopped_peer_does_not_hold_up_another(face, peer, tmp_path):
    """L1: calls to the one wait, calls to the other do not."""
    with EchoProcess(tmp_path / "other") as other:
        stopped = face.client(echo_tw, face.channel(peer.address))
        going = face.client(echo_tw, face.channel(other.address))
        assert face.call(stopped, "echo", REQUEST, timeout=5).message == "hello"
        assert face.call(going, "echo", REQUEST, timeout=5).message == "hello"
        peer.freeze()
        waiting = [face.start(stopped, "echo", REQUEST, timeout=20) for _ in range(8)]
        with within(2 * SLOW):
            for _ in range(50):
                assert face.call(going, "echo", REQUEST, timeout=5).message == "hello"
        assert not any(call.done() for call in waiting)
        peer.thaw()
        for call in waiting:
            assert call.result(10).message == "hello"


def test_a_stopped_peer_is_killed(face, peer):
    """C2: what waits on it ends when the kernel ends the connection."""
    client = face.client(echo_tw, face.channel(peer.address))
    assert face.call(client, "echo", REQUEST, timeout=5).message == "hello"
    peer.freeze()
    waiting = [face.start(client, "echo", REQUEST, timeout=30) for _ in range(5)]
    with within(1 * SLOW):
        peer.kill()
        for call in waiting:
            error = ended(call)
            assert isinstance(error, tw.Unavailable)
            assert (error.phase, error.sent) == (tw.Phase.READ, tw.Sent.ALL)


def test_a_killed_peer_and_its_successor(face, peer):
    """C2, L1: calls that run end at once as lost, calls while nobody listens as
    not sent, and the first one after the restart works."""
    client = face.client(echo_tw, face.channel(peer.address))
    for _ in range(3):
        assert face.call(client, "echo", REQUEST, timeout=5).message == "hello"
        sleepy = echo_pb2.EchoRequest(message="sleep", sleep_ms=30_000)
        calls = [face.start(client, "echo", sleepy, timeout=30) for _ in range(3)]
        # An answer behind them says that they have arrived.
        face.call(client, "echo", REQUEST, timeout=5)
        with within(1 * SLOW):
            peer.kill()
            for call in calls:
                error = ended(call)
                assert isinstance(error, tw.Unavailable)
                assert (error.phase, error.sent) == (tw.Phase.READ, tw.Sent.ALL)
        with within(0.5 * SLOW):
            error = ended(face.start(client, "echo", REQUEST, timeout=5))
        assert isinstance(error, tw.Unavailable)
        assert (error.phase, error.sent) == (tw.Phase.CONNECT, tw.Sent.NONE)
        peer.start()
        assert face.call(client, "echo", REQUEST, timeout=5).message == "hello"


def test_a_black_hole_in_the_middle_of_a_request(face, serve_def, tidewire_faults):
    """L1: the network takes all and gives nothing back; deadlines hold, and a new
    connection through it works."""
    server = serve_def()
    proxy = tidewire_faults(server.address, "up:swallow@50")
    client = face.client(echo_tw, face.channel(proxy.address))
    with watching() as took:
        error = ended(face.start(client, "echo", REQUEST, timeout=0.1))
    assert isinstance(error, tw.DeadlineExceeded)
    assert (error.phase, error.sent) == (tw.Phase.READ, tw.Sent.ALL)
    assert took.between(0.1, 0.1 + LATE), took
    proxy.plan = "none"
    proxy.reset_all()
    # The reset may not have arrived yet.
    eventually(lambda: worked(face, client))


def worked(face, client):
    try:
        return face.call(client, "echo", REQUEST, timeout=1).message == "hello"
    except (tw.Unavailable, tw.DeadlineExceeded):
        return False


@pytest.mark.parametrize("plan", ["slice=1", "slice=1..3,latency=0..0.0002"])
def test_bytes_that_dribble_in_are_whole_messages(face, serve, tidewire_faults, plan):
    """C6, C7: one byte at a time in both directions, several calls on the
    connection; every answer is its call's."""
    proxy = tidewire_faults(serve().address, plan)
    client = face.client(echo_tw, face.channel(proxy.address))
    calls = {
        f"{i}": face.start(
            client,
            "echo",
            echo_pb2.EchoRequest(message=f"{i}"),
            timeout=30,
            **({"attachment": bytes(i * 10)} if i % 2 else {}),
        )
        for i in range(20)
    }
    for text, call in calls.items():
        assert call.result(30).message == text


@pytest.mark.parametrize("latency", ["0.02", "0..0.02"])
def test_latency_delays_and_loses_nothing(face, serve_def, tidewire_faults, latency):
    """C7: all answers come, each to its call."""
    proxy = tidewire_faults(serve_def().address, f"latency={latency}")
    client = face.client(echo_tw, face.channel(proxy.address, connect_timeout=5.0))
    calls = [
        face.start(client, "echo", echo_pb2.EchoRequest(message=f"{i}"), timeout=30)
        for i in range(50)
    ]
    assert [call.result(30).message for call in calls] == [f"{i}" for i in range(50)]
