"""A connection that was lost comes back, under health checks by itself."""

import logging
import socket
import threading
import time

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import counter, eventually
from tidewire.service import MethodInfo

REQUEST = echo_pb2.EchoRequest(message="hello")
ECHO: MethodInfo = echo_tw.EchoService.__tidewire_methods__["echo"]


def attempt(face, client):
    """The error of one call, None when it was answered."""
    try:
        face.call(client, "echo", REQUEST, timeout=5)
    except tw.RpcError as error:
        return error
    return None


def fails_at_once(error):
    assert isinstance(error, tw.Unavailable)
    assert error.number == tw.Errno.EFAILEDSOCKET
    assert error.phase is tw.Phase.CONNECT
    assert error.sent is tw.Sent.NONE


@pytest.fixture(params=["unix", "tcp"])
def address(request, tmp_path):
    """Where a server can be stopped and started again."""
    if request.param == "unix":
        return f"unix:{tmp_path}/socket"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def listener_at(address):
    if address.startswith("unix:"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address.removeprefix("unix:"))
        listener.listen()
        return listener
    host, port = address.split(":")
    return socket.create_server((host, int(port)))


@pytest.mark.parametrize("probe", [None, ECHO], ids=["connect", "probe"])
def test_c9_a_restarted_server_is_found_by_itself(face, serve_def, address, probe):
    """C9: calls fail at once while the server is down, none of them connects;
    when it is back the connection comes back without a call."""
    server = serve_def(listen=address)
    # The echo's message has a required field.
    request = None if probe is None else REQUEST
    check = tw.HealthCheck(interval=0.2, probe=probe, request=request)
    client = face.client(echo_tw, face.channel(address, health_check=check))
    for _ in range(3):
        assert attempt(face, client) is None
        made = counter("tidewire_established_connections")
        errors = counter("tidewire_connect_errors")
        checks = counter("tidewire_healthcheck")
        serve_def.stop(server)
        # How the loss shows first depends on who notices it.
        eventually(
            lambda: (
                getattr(attempt(face, client), "number", 0) == tw.Errno.EFAILEDSOCKET
            )
        )
        for _ in range(50):
            fails_at_once(attempt(face, client))
        eventually(lambda checks=checks: counter("tidewire_healthcheck") >= checks + 2)
        # What failed to connect were checks, never calls.
        assert counter("tidewire_connect_errors") - errors <= (
            counter("tidewire_healthcheck") - checks
        )
        server = serve_def(listen=address)
        eventually(lambda made=made: counter("tidewire_established_connections") > made)
        eventually(lambda: attempt(face, client) is None)
        assert counter("tidewire_established_connections") == made + 1


def test_without_checks_the_next_call_connects(face, serve_def, address):
    server = serve_def(listen=address)
    client = face.client(echo_tw, face.channel(address))
    checks = counter("tidewire_healthcheck")
    for _ in range(5):
        assert attempt(face, client) is None
        serve_def.stop(server)
        error = attempt(face, client)
        assert isinstance(error, tw.Unavailable)
        assert error.number != tw.Errno.EFAILEDSOCKET
        server = serve_def(listen=address)
        assert attempt(face, client) is None
    assert counter("tidewire_healthcheck") == checks


def test_c8_a_server_that_answers_no_probe_stays_down(face, serve_def):
    """C8: that it accepts connections is not enough when there is a probe."""
    ill = threading.Event()

    def handler(request, ctx):
        if ill.is_set():
            raise tw.Unavailable("ill")
        return echo_pb2.EchoResponse(message=request.message)

    server = serve_def(handler)
    address = server.address
    check = tw.HealthCheck(interval=0.1, probe=ECHO, request=REQUEST)
    client = face.client(echo_tw, face.channel(address, health_check=check))
    assert attempt(face, client) is None
    serve_def.stop(server)
    ill.set()
    eventually(lambda: attempt(face, client) is not None)
    accepted = counter("tidewire_accepted_connections")
    server = serve_def(handler, listen=address)
    # Checks reach it, and do not revive it.
    eventually(lambda: counter("tidewire_accepted_connections") >= accepted + 3)
    fails_at_once(attempt(face, client))
    ill.clear()
    eventually(lambda: attempt(face, client) is None)


def test_a_probe_without_its_message_is_refused_at_once(face):
    """Not by every check's failing: the echo's message has a required field."""
    with pytest.raises(tw.CodecError, match="required"):
        face.channel("127.0.0.1:1", health_check=tw.HealthCheck(probe=ECHO))
    check = tw.HealthCheck(probe=ECHO, request="hello")
    with pytest.raises(TypeError, match="EchoRequest"):
        face.channel("127.0.0.1:1", health_check=check)


def test_the_first_connection_that_fails_makes_it_down(face, serve_def, address):
    check = tw.HealthCheck(interval=0.1)
    client = face.client(echo_tw, face.channel(address, health_check=check))
    first = attempt(face, client)
    assert isinstance(first, tw.Unavailable)
    assert first.number in (tw.Errno.ECONNREFUSED, tw.Errno.ENOENT)
    fails_at_once(attempt(face, client))
    serve_def(listen=address)
    eventually(lambda: attempt(face, client) is None)


def test_a_name_is_not_resolved_by_every_call_that_fails(face, monkeypatch):
    asked = []

    def getaddrinfo(host, port, **_):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with socket.socket() as holder:  # bound, and nobody listens
        holder.bind(("127.0.0.1", 0))
        name = f"some.host:{holder.getsockname()[1]}"
        check = tw.HealthCheck(interval=1000)
        client = face.client(echo_tw, face.channel(name, health_check=check))
        assert attempt(face, client).number == tw.Errno.ECONNREFUSED
        for _ in range(20):
            fails_at_once(attempt(face, client))
    # At first, after the connection was refused, and once while it is down.
    assert len(asked) == 3


def test_l7_closing_the_channel_ends_the_checks(face, address, tmp_path):
    """L7: nothing is checked for a channel that is closed."""
    channel = face.channel(address, health_check=tw.HealthCheck(interval=0.02))
    client = face.client(echo_tw, channel)
    assert attempt(face, client) is not None
    checks = counter("tidewire_healthcheck")
    eventually(lambda: counter("tidewire_healthcheck") >= checks + 3)
    face.close_channel(channel)
    with listener_at(address) as listener:
        # Another channel's checks, of another server, tell the time.
        other = face.channel(
            f"unix:{tmp_path}/other", health_check=tw.HealthCheck(interval=0.1)
        )
        assert attempt(face, face.client(echo_tw, other)) is not None
        checks = counter("tidewire_healthcheck")
        eventually(lambda: counter("tidewire_healthcheck") >= checks + 3)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_coming_back_is_logged(face, serve_def, address, caplog):
    caplog.set_level(logging.INFO, "tidewire.core")
    check = tw.HealthCheck(interval=0.05)
    client = face.client(echo_tw, face.channel(address, health_check=check))
    for _ in range(100):
        assert attempt(face, client) is not None
        server = serve_def(listen=address)
        eventually(lambda: attempt(face, client) is None)
        # One line a second: another test may have used this one's up.
        if any("up again" in record.getMessage() for record in caplog.records):
            break
        serve_def.stop(server)
    else:
        pytest.fail("never logged")


def test_a_call_fails_in_no_time_while_the_server_is_down(face, address):
    """C9: under 1 ms each; the bound here is the machine's, not the core's."""
    check = tw.HealthCheck(interval=30)
    client = face.client(echo_tw, face.channel(address, health_check=check))
    assert attempt(face, client) is not None
    best = 1.0
    for _ in range(100):
        start = time.perf_counter()
        fails_at_once(attempt(face, client))
        best = min(best, time.perf_counter() - start)
    assert best < 0.010
