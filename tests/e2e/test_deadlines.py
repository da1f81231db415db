"""Deadlines: the caller's, on the wire, in the server, and of calls inside."""

import asyncio
import threading
import time

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import SLOW, echo, eventually, within
from tools.stalls import StallMonitor, watching

REQUEST = echo_pb2.EchoRequest(message="hello")
LATE = 0.1 * SLOW
"""How much later than its deadline a call may end."""


def pass_the_servers_deadline():
    """It is counted from the request's arrival and in whole milliseconds, so
    it comes a moment after the caller's."""
    time.sleep(0.01)


def timed(function):
    """(what it raised, the Watch of it)"""
    with watching() as took, pytest.raises(tw.DeadlineExceeded) as caught:
        function()
    return caught.value, took


@pytest.mark.parametrize("timeout", [0.05, 0.15])
def test_call_ends_at_its_deadline(face, serve, gate, timeout):
    """L1."""
    server = serve(gate=gate)
    client = face.client(echo_tw, face.channel(server.address))
    # Connected, so that the call below is sent at once.
    face.start(client, "echo", REQUEST, timeout=None)
    gate.until_entered()
    error, took = timed(lambda: face.call(client, "echo", REQUEST, timeout=timeout))
    assert took.between(timeout, timeout + LATE), took
    assert isinstance(error, TimeoutError)
    assert error.number == tw.Errno.ERPCTIMEDOUT
    assert error.sent is tw.Sent.ALL
    assert error.phase is tw.Phase.READ
    assert error.method == "example.EchoService/Echo"
    # The deadline counts from the call's entry, `elapsed` from the core's.
    entered = 0.001 + took.stalled
    assert timeout - entered <= error.elapsed < timeout + LATE + took.stalled
    assert error.peer == server.address


def test_channels_timeout_is_the_default(face, serve, gate):
    client = face.client(echo_tw, face.channel(serve(gate=gate).address, timeout=0.05))
    _, took = timed(lambda: face.call(client, "echo", REQUEST))
    assert took.between(0.05, 0.05 + LATE), took


def test_none_waits(face, serve, gate):
    client = face.client(echo_tw, face.channel(serve(gate=gate).address, timeout=0.05))
    patient = face.start(client, "echo", REQUEST, timeout=None)
    timed(lambda: face.call(client, "echo", REQUEST))
    assert not patient.done()
    gate.open()
    assert patient.result(10).message == "hello"


def test_a_channel_without_timeout(face, serve, gate):
    client = face.client(echo_tw, face.channel(serve(gate=gate).address, timeout=None))
    patient = face.start(client, "echo", REQUEST)
    timed(lambda: face.call(client, "echo", REQUEST, timeout=0.02))
    assert not patient.done()
    gate.open()
    assert patient.result(10).message == "hello"


@pytest.mark.parametrize("wrong", [0, 0.0, -1, float("nan"), float("inf"), 1e10])
def test_impossible_timeouts_are_refused(face, serve_def, wrong):
    client = face.client(echo_tw, face.channel(serve_def().address))
    with pytest.raises(ValueError, match="timeout is .* allowed"):
        face.call(client, "echo", REQUEST, timeout=wrong)


def test_the_answer_after_the_deadline_is_dropped(face, serve, gate):
    """B3."""
    client = face.client(echo_tw, face.channel(serve(gate=gate).address))
    for i in range(5):
        late = echo_pb2.EchoRequest(message=f"late {i}")
        timed(lambda: face.call(client, "echo", late, timeout=0.02))  # noqa: B023
    gate.open()
    for i in range(20):
        request = echo_pb2.EchoRequest(message=f"call {i}")
        assert face.call(client, "echo", request, timeout=5).message == f"call {i}"


def test_every_call_keeps_its_own_deadline(face, serve, gate):
    client = face.client(echo_tw, face.channel(serve(gate=gate).address))
    ended = {}
    calls = []
    with StallMonitor() as machine, within(1 * SLOW):
        for i in range(40):
            timeout = 0.05 + (i * 7 % 40) / 100
            begun = time.monotonic_ns()
            call = face.start(client, "echo", REQUEST, timeout=timeout)
            call.add_done_callback(
                lambda _, t=timeout, b=begun: ended.setdefault(
                    t, (b, time.monotonic_ns())
                )
            )
            calls.append(call)
        for call in calls:
            with pytest.raises(tw.DeadlineExceeded):
                call.result(10)
        eventually(lambda: len(ended) == 40)
    for timeout, (begun, over) in ended.items():
        took = (over - begun) / 1e9
        assert timeout <= took < timeout + LATE + machine.total(begun, over)


# ---- what the server knows


def remaining_of(face, serve, call_timeout, **options):
    seen = []

    def handler(request, ctx):
        seen.append((ctx.remaining(), ctx.deadline, time.monotonic()))
        return echo(request, ctx)

    client = face.client(echo_tw, face.channel(serve(handler).address, **options))
    face.call(client, "echo", REQUEST, timeout=call_timeout)
    return seen[0]


def test_deadline_is_sent(face, serve):
    remaining, deadline, now = remaining_of(face, serve, 5.0)
    # Whole milliseconds on the wire, rounded up.
    assert 4 < remaining <= 5.001
    assert deadline == pytest.approx(now + remaining, abs=0.1)


def test_no_deadline_no_remaining(face, serve):
    remaining, deadline, _ = remaining_of(face, serve, None)
    assert remaining is None
    assert deadline is None


def test_deadline_is_not_sent_when_told_so(face, serve):
    remaining, _, _ = remaining_of(face, serve, 5.0, send_deadline=False)
    assert remaining is None


def test_remaining_does_not_fall_below_zero(face, serve, gate):
    seen = []

    def handler(request, ctx):
        seen.append(ctx.remaining())
        return echo(request, ctx)

    client = face.client(echo_tw, face.channel(serve(handler, gate=gate).address))
    timed(lambda: face.call(client, "echo", REQUEST, timeout=0.02))
    pass_the_servers_deadline()
    gate.open()
    eventually(lambda: seen)
    assert seen == [0.0]


def test_expired_before_start_is_never_run(face, serve):
    """The only worker, or the loop, is busy until the deadline has passed."""
    busy, free = threading.Event(), threading.Event()
    ran = []

    def handler(request, ctx):
        ran.append(request.message)
        if request.message == "block":
            busy.set()
            # In an async handler too: it blocks the loop.
            assert free.wait(30)
        return echo(request, ctx)

    server = serve(handler, threads=1)
    client = face.client(echo_tw, face.channel(server.address))
    block = echo_pb2.EchoRequest(message="block")
    blocking = face.start(client, "echo", block, timeout=30)
    assert busy.wait(10)
    late = echo_pb2.EchoRequest(message="late")
    timed(lambda: face.call(client, "echo", late, timeout=0.03))
    eventually(lambda: server.in_flight == 2, "both requests were cut")
    pass_the_servers_deadline()
    free.set()
    assert blocking.result(10).message == "block"
    assert face.call(client, "echo", REQUEST, timeout=5).message == "hello"
    assert ran == ["block", "hello"]
    eventually(lambda: server.in_flight == 0)


# ---- calls inside a handler


def outer_service(serve, inner_address, results, **how):
    """A service that calls the inner one and notes how that ended."""

    if not serve.is_async:
        channel = tw.Channel(inner_address, options=tw.ChannelOptions(timeout=None))
        inner = echo_tw.EchoClient(channel)

        def handler(request, ctx):
            try:
                with watching() as took:
                    inner.echo(request, **how)
                results.append(("ok", took))
            except tw.DeadlineExceeded:
                results.append(("deadline", took))
                raise
            return echo(request, ctx)

        return handler, channel.close

    made = []

    async def call(request, ctx):
        if not made:
            made.append(
                tw.AsyncChannel(inner_address, options=tw.ChannelOptions(timeout=None))
            )
        try:
            with watching() as took:
                await echo_tw.AsyncEchoClient(made[0]).echo(request, **how)
            results.append(("ok", took))
        except tw.DeadlineExceeded:
            results.append(("deadline", took))
            raise
        return echo(request, ctx)

    def close():
        if made:
            made[0]._close()

    return call, close


@pytest.mark.parametrize("how", [{}, {"timeout": 10}, {"timeout": None}], ids=str)
def test_deadline_bounds_calls_inside(face, serve, serve_def, gate, how):
    inner = serve_def(gate=gate)
    results = []
    handler, close = outer_service(serve, inner.address, results, **how)
    try:
        client = face.client(echo_tw, face.channel(serve(handler).address))
        timed(lambda: face.call(client, "echo", REQUEST, timeout=0.1))
        eventually(lambda: results, "the inner call has ended")
        [(end, took)] = results
        assert end == "deadline"
        assert took.undisturbed < 0.1 + LATE, took
    finally:
        close()


def test_a_shorter_timeout_inside_holds(face, serve, serve_def, gate):
    inner = serve_def(gate=gate)
    results = []
    handler, close = outer_service(serve, inner.address, results, timeout=0.05)
    try:
        client = face.client(echo_tw, face.channel(serve(handler).address))
        with pytest.raises(tw.DeadlineExceeded) as caught:
            face.call(client, "echo", REQUEST, timeout=10)
        assert caught.value.phase is tw.Phase.PEER
        [(end, took)] = results
        assert end == "deadline"
        assert took.between(0.05, 0.05 + LATE), took
    finally:
        close()


def test_the_inner_server_learns_the_outer_deadline(face, serve, serve_def):
    seen = []

    def note(request, ctx):
        seen.append(ctx.remaining())
        return echo(request, ctx)

    inner = serve_def(note)
    results = []
    handler, close = outer_service(serve, inner.address, results)
    try:
        client = face.client(echo_tw, face.channel(serve(handler).address))
        face.call(client, "echo", REQUEST, timeout=5)
        face.call(client, "echo", REQUEST, timeout=None)
        assert 4 < seen[0] <= 5.001
        assert seen[1] is None
        assert [end for end, _ in results] == ["ok", "ok"]
    finally:
        close()


def test_a_past_deadline_ends_an_inner_call_at_once(face, serve, serve_def, gate):
    inner = serve_def()
    results = []
    inside, close = outer_service(serve, inner.address, results)
    try:
        server = serve(inside, gate=gate)
        client = face.client(echo_tw, face.channel(server.address))
        timed(lambda: face.call(client, "echo", REQUEST, timeout=0.02))
        pass_the_servers_deadline()
        gate.open()
        eventually(lambda: results)
        [(end, took)] = results
        assert end == "deadline"
        assert took.undisturbed < LATE, took
    finally:
        close()


def test_current_context(face, serve):
    seen = []

    def handler(request, ctx):
        seen.append(tw.current_context() is ctx)
        return echo(request, ctx)

    client = face.client(echo_tw, face.channel(serve(handler).address))
    face.call(client, "echo", REQUEST, timeout=5)
    assert seen == [True]
    assert tw.current_context() is None


def test_asyncio_timeout_around_a_call(serve, gate):
    """The task is cancelled, and with it the call."""
    server = serve(gate=gate)

    async def main():
        async with tw.AsyncChannel(server.address) as channel:
            client = echo_tw.AsyncEchoClient(channel)
            with within(0.05 + LATE), pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(0.05):
                    await client.echo(REQUEST, timeout=None)
            assert not isinstance(caught.value, tw.RpcError)

    asyncio.run(main())


# ---- a deadline around several calls


def in_deadline(face, seconds, function):
    """What the function gives, called within tw.deadline() where the face calls."""
    if face.name == "blocking":
        with tw.deadline(seconds):
            return function()

    async def run():
        with tw.deadline(seconds):
            return await function()

    return face.run(run())


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_deadline_around_calls_ends_them(face, serve, gate, timeout):
    server = serve(gate=gate)
    client = face.client(echo_tw, face.channel(server.address, timeout=timeout))
    with within(1.0 * SLOW) as took, pytest.raises(tw.DeadlineExceeded):
        in_deadline(face, 0.1, lambda: client.echo(REQUEST))
    assert took.seconds > 0.09
    gate.open()
    assert face.call(client, "echo", REQUEST, timeout=10).message == "hello"


def test_the_shorter_of_deadline_and_timeout_holds(face, serve, gate):
    server = serve(gate=gate)
    client = face.client(echo_tw, face.channel(server.address))
    with within(1.0 * SLOW), pytest.raises(tw.DeadlineExceeded):
        in_deadline(face, 60.0, lambda: client.echo(REQUEST, timeout=0.1))
    gate.open()


def test_deadlines_nest(serve_def):
    """An inner one never lets a call have more."""
    left = []
    server = serve_def(
        lambda request, ctx: left.append(ctx.remaining()) or echo(request, ctx)
    )
    with tw.Channel(server.address, options=tw.ChannelOptions(timeout=None)) as channel:
        client = echo_tw.EchoClient(channel)
        with tw.deadline(20.0):
            with tw.deadline(1000.0):
                client.echo(REQUEST)
            with tw.deadline(5.0):
                client.echo(REQUEST)
            client.echo(REQUEST)
        client.echo(REQUEST)
    assert [value and 15 < value <= 20 for value in left] == [True, False, True, None]
    assert 0 < left[1] <= 5


def test_a_passed_deadline_spares_the_server_the_call(serve_def):
    calls = []
    server = serve_def(lambda request, ctx: calls.append(1) or echo(request, ctx))
    with tw.Channel(server.address) as channel, tw.deadline(1e-9):
        with pytest.raises(tw.DeadlineExceeded, match="around this call has passed"):
            echo_tw.EchoClient(channel).echo(REQUEST)
        with pytest.raises(tw.DeadlineExceeded):
            echo_tw.EchoClient(channel).echo.future(REQUEST).result(5)
    assert calls == []


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), 1e10])
def test_impossible_deadlines_are_refused(wrong):
    with pytest.raises(ValueError, match="deadline is"), tw.deadline(wrong):
        pass


@pytest.mark.parametrize("wrong", [None, "1", True])
def test_a_deadline_is_a_number(wrong):
    with pytest.raises(TypeError, match="deadline is"), tw.deadline(wrong):
        pass
