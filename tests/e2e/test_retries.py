"""Calls to one server that are tried again: which, when, and what is told of it.

test_cluster.py has those to several.
"""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import RawServer, counter, eventually, read_frame

REQUEST = echo_pb2.EchoRequest(message="hello")
IDEMPOTENT = tw.MethodInfo(
    service="example.EchoService",
    name="Echo",
    request=echo_pb2.EchoRequest,
    response=echo_pb2.EchoResponse,
    idempotency=tw.Idempotency.IDEMPOTENT,
)
PATIENT = tw.RetryPolicy(backoff=0.02, backoff_most=0.02)
ways = pytest.mark.parametrize("way", ["call", "full", "start"])


def free_port():
    """An address at which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return "{}:{}".format(*listener.getsockname())


def ask(face, way, client, **how):
    if way == "full":
        return face.full(client, "echo", REQUEST, **how).message
    if way == "start":
        return face.start(client, "echo", REQUEST, **how).result(30)
    return face.call(client, "echo", REQUEST, **how)


def swallow(stream, connection):
    """Reads a request and ends the connection."""
    read_frame(stream)


@ways
def test_a_server_that_is_not_there_yet(face, serve, way):
    """A call waits for it as long as it has time and attempts."""
    address = free_port()
    refused = counter("tidewire_client_errors", code="ECONNREFUSED")
    channel = face.channel(address, timeout=30.0, max_retry=1000, retry=PATIENT)
    client = face.client(echo_tw, channel)
    call = threading.Thread(target=lambda: replies.append(ask(face, way, client)))
    replies = []
    call.start()
    eventually(
        lambda: counter("tidewire_client_errors", code="ECONNREFUSED") > refused + 1
    )
    serve(listen=address)
    call.join(30)
    assert [reply.message for reply in replies] == ["hello"]


def test_the_answer_tells_of_the_attempts_before(face, serve):
    address = free_port()
    channel = face.channel(address, timeout=30.0, max_retry=1000, retry=PATIENT)
    client = face.client(echo_tw, channel)
    # The first call makes what counts there.
    with pytest.raises(tw.Unavailable):
        face.call(client, "echo", REQUEST, timeout=0.1)
    before = counter("tidewire_client_retries")
    replies = []
    call = threading.Thread(
        target=lambda: replies.append(face.full(client, "echo", REQUEST))
    )
    call.start()
    eventually(lambda: counter("tidewire_client_retries") > before + 1)
    serve(listen=address)
    call.join(30)
    [reply] = replies
    assert reply.attempts == len(reply.past) + 1 > 2
    for one in reply.past:
        assert (one.number, one.phase) == (tw.Errno.ECONNREFUSED, tw.Phase.CONNECT)
        assert (one.peer, one.sent) == (address, tw.Sent.NONE)
    assert reply.elapsed >= sum(one.elapsed for one in reply.past)


def test_what_needed_one_attempt_says_so(face, serve):
    client = face.client(echo_tw, face.channel(serve().address))
    reply = face.full(client, "echo", REQUEST)
    assert (reply.attempts, reply.past) == (1, ())


@ways
def test_a_stopping_server_costs_no_call(face, serve, gate, way):
    """They go to who takes over: where ELOGOFF says that it was not run, and where
    the connection ends."""
    old = serve(gate=gate, reuse_port=True)
    channel = face.channel(old.address, timeout=30.0)
    client = face.client(echo_tw, channel)
    client.echo = channel.unary(IDEMPOTENT)
    held = face.start(client, "echo", REQUEST)
    gate.until_entered()
    serve(listen=old.address, reuse_port=True)
    stopper = threading.Thread(target=serve.stop, args=(old,))
    stopper.start()
    gate.open()
    assert [ask(face, way, client).message for _ in range(20)] == ["hello"] * 20
    assert held.result(10).message == "hello"
    stopper.join(30)


@ways
@pytest.mark.parametrize("idempotent", [False, True])
def test_r9_what_may_have_run_is_tried_again_only_if_that_is_harmless(
    face, idempotent, way
):
    with RawServer(swallow) as raw:
        channel = face.channel(raw.address, timeout=20.0, max_retry=2)
        client = face.client(echo_tw, channel)
        if idempotent:
            client.echo = channel.unary(IDEMPOTENT)
        with pytest.raises(tw.Unavailable) as caught:
            ask(face, way, client)
        error = caught.value
        assert error.attempts == len(error.past) == (3 if idempotent else 1)
        assert {one.sent for one in error.past} == {tw.Sent.ALL}
        assert ("3 attempts" in str(error)) is idempotent


@ways
def test_max_retry_0(face, way):
    with RawServer(swallow) as raw:
        channel = face.channel(raw.address, timeout=20.0, max_retry=0)
        client = face.client(echo_tw, channel)
        client.echo = channel.unary(IDEMPOTENT)
        with pytest.raises(tw.Unavailable) as caught:
            ask(face, way, client)
        assert caught.value.attempts == 1


class AlsoInternal(tw.RetryPolicy):
    """Handlers may fail for a moment."""

    def retries(self, error, method):
        return error.code is tw.Code.INTERNAL or super().retries(error, method)

    def pause(self, error, tries):
        return 0.001


@ways
def test_a_policy_of_ones_own(face, serve, way):
    calls = []

    def fail_twice(request, ctx):
        calls.append(1)
        if len(calls) < 3:
            raise tw.Internal("not yet")
        return echo_pb2.EchoResponse(message=request.message)

    channel = face.channel(
        serve(fail_twice).address, timeout=30.0, retry=AlsoInternal()
    )
    assert ask(face, way, face.client(echo_tw, channel)).message == "hello"
    assert len(calls) == 3


@ways
def test_r9_the_budget(face, way):
    """Where it is used up, errors come at once."""
    policy = tw.RetryPolicy(budget_share=0, budget_floor=0.2, backoff=0)
    channel = face.channel(free_port(), timeout=30.0, max_retry=5, retry=policy)
    client = face.client(echo_tw, channel)
    attempts = []
    for _ in range(3):
        with pytest.raises(tw.Unavailable) as caught:
            ask(face, way, client)
        attempts.append(caught.value.attempts)
    assert attempts == [3, 1, 1]


@ways
def test_a_pause_for_which_no_time_is_left_is_not_made(face, way):
    """The call fails with what has happened, not with its deadline."""
    policy = tw.RetryPolicy(backoff=3600, backoff_most=3600)
    channel = face.channel(free_port(), timeout=60.0, retry=policy)
    client = face.client(echo_tw, channel)
    with pytest.raises(tw.Unavailable) as caught:
        ask(face, way, client)
    assert caught.value.number == tw.Errno.ECONNREFUSED
    assert caught.value.attempts == 1


@ways
def test_hooks_are_around_all_attempts_together(face, way):
    outcomes = []

    class Noting(tw.Hook):
        def on_end(self, call, outcome):
            outcomes.append(outcome.number)

    policy = tw.RetryPolicy(backoff=0)
    channel = face.channel(free_port(), timeout=30, hooks=[Noting()], retry=policy)
    with pytest.raises(tw.Unavailable) as caught:
        ask(face, way, face.client(echo_tw, channel))
    assert caught.value.attempts == 4
    assert outcomes == [tw.Errno.ECONNREFUSED]


def waiting(face):
    """A channel, and a call on it that has failed and waits to be tried again."""
    policy = tw.RetryPolicy(backoff=3600, backoff_most=3600)
    failures = counter("tidewire_client_failures", phase="connect")
    channel = face.channel(free_port(), timeout=None, retry=policy)
    client = face.client(echo_tw, channel)
    call = face.start(client, "echo", REQUEST)
    eventually(lambda: counter("tidewire_client_failures", phase="connect") > failures)
    return channel, call


def test_closing_ends_a_call_between_two_attempts(face):
    channel, call = waiting(face)
    face.close_channel(channel)
    with pytest.raises(tw.Cancelled):
        call.result(10)


def test_closing_ends_a_blocking_call_between_two_attempts(serve_def):
    policy = tw.RetryPolicy(backoff=3600, backoff_most=3600)
    failures = counter("tidewire_client_failures", phase="connect")
    options = tw.ChannelOptions(timeout=None, retry=policy)
    with (
        ThreadPoolExecutor() as pool,
        tw.Channel(free_port(), options=options) as channel,
    ):
        call = pool.submit(echo_tw.EchoClient(channel).echo, REQUEST)
        eventually(
            lambda: counter("tidewire_client_failures", phase="connect") > failures
        )
        channel.close()
        with pytest.raises(tw.Cancelled):
            call.result(10)


def test_a_call_is_cancelled_between_two_attempts(face):
    channel, call = waiting(face)
    assert call.cancel()
    face.close_channel(channel)


def test_a_lost_server_that_is_checked_fails_calls_at_once(face):
    """A health check will find it again: no attempt is worth while before."""
    with RawServer(swallow) as raw:
        channel = face.channel(
            raw.address, timeout=30.0, health_check=tw.HealthCheck(interval=60)
        )
        client = face.client(echo_tw, channel)
        with pytest.raises(tw.Unavailable):
            face.call(client, "echo", REQUEST)

        for _ in range(3):
            with pytest.raises(tw.Unavailable) as caught:
                face.call(client, "echo", REQUEST)
            assert caught.value.number == tw.Errno.EFAILEDSOCKET
            assert caught.value.attempts == 1
