"""Closing a channel: what still runs then, and what no longer does."""

import threading

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import Serving, eventually

LONG, DRAIN = 30.0, 600.0
"""Seconds until a test has failed; a drain that would wait for itself is longer."""


def request() -> echo_pb2.EchoRequest:
    return echo_pb2.EchoRequest(message="hello")


def test_no_callback_runs_after_close_has_returned(serve_def, gate):
    """L7: the futures' callbacks are over when close() returns."""
    server = serve_def(gate=gate)
    entered, go_on = threading.Event(), threading.Event()
    ended: list[int] = []

    def slow(_: object) -> None:
        entered.set()
        assert go_on.wait(30)
        ended.append(0)

    channel = tw.Channel(server.address, options=tw.ChannelOptions(timeout=None))
    client = echo_tw.EchoClient(channel)
    futures = [client.echo.future(request()) for _ in range(20)]
    futures[0].add_done_callback(slow)
    for future in futures[1:]:
        future.add_done_callback(lambda _: ended.append(1))
    gate.until_entered()
    closed: list[int] = []

    def close() -> None:
        channel.close()
        closed.extend(ended)

    closer = threading.Thread(target=close)
    closer.start()
    assert entered.wait(30)
    # A callback runs: close() is still inside.
    closer.join(0.05)
    assert closer.is_alive()
    go_on.set()
    closer.join(30)
    assert sorted(closed) == [0] + 19 * [1]
    for future in futures:
        with pytest.raises(tw.Cancelled):
            future.result(0)


def test_a_callback_may_close_its_own_channel(serve_def, gate):
    """L6: it does not wait for itself."""
    server = serve_def(gate=gate)
    channel = tw.Channel(server.address, options=tw.ChannelOptions(timeout=None))
    client = echo_tw.EchoClient(channel)
    closed = threading.Event()

    def close(_: object) -> None:
        channel.close()
        closed.set()

    future = client.echo.future(request())
    other = client.echo.future(request())
    future.add_done_callback(close)
    gate.open()
    assert closed.wait(30)
    # Answered before the close or ended by it.
    assert other.exception(30) is None or isinstance(other.exception(0), tw.Cancelled)


def test_close_waits_for_no_other_channels_futures(serve_def, gate):
    """L7: another channel's calls go on meanwhile."""
    server = serve_def(gate=gate)
    options = tw.ChannelOptions(timeout=None)
    with tw.Channel(server.address, options=options) as stays:
        waiting = echo_tw.EchoClient(stays).echo.future(request())
        with tw.Channel(server.address, options=options) as goes:
            ended = echo_tw.EchoClient(goes).echo.future(request())
        assert isinstance(ended.exception(0), tw.Cancelled)
        assert not waiting.done()
        gate.open()
        assert waiting.result(30).message == "hello"


def test_a_callback_may_cancel_its_own_call_and_others(serve_def, gate):
    """L6: a call that has ended stays as it ended; another one ends."""
    held = threading.Event()

    def answer(request: echo_pb2.EchoRequest, _: tw.Context) -> echo_pb2.EchoResponse:
        if request.message == "hold":
            assert held.wait(30)
        else:
            gate.wait()
        return echo_pb2.EchoResponse(message=request.message)

    server = serve_def(answer)
    options = tw.ChannelOptions(timeout=None)
    with tw.Channel(server.address, options=options) as channel:
        client = echo_tw.EchoClient(channel)
        future = client.echo.future(request())
        waiting = client.echo.future(echo_pb2.EchoRequest(message="hold"))
        cancelled: list[bool] = []
        over = threading.Event()

        def cancel(ended: object) -> None:
            assert ended is future
            cancelled.extend((future.cancel(), waiting.cancel()))
            over.set()

        future.add_done_callback(cancel)
        gate.open()
        assert over.wait(30)
        assert cancelled == [False, True]
        assert future.result(0).message == "hello"
        assert waiting.cancelled()
        held.set()


def test_a_handler_may_stop_its_own_server(serve_def):
    """L6: without a drain it does not wait for itself."""
    server: tw.Server
    returned = threading.Event()

    def stop(_request: object, _ctx: tw.Context) -> echo_pb2.EchoResponse:
        server.stop(0.0)
        returned.set()
        return echo_pb2.EchoResponse(message="to nobody")

    server = serve_def(stop)
    options = tw.ChannelOptions(timeout=None)
    with tw.Channel(server.address, options=options) as channel:
        future = echo_tw.EchoClient(channel).echo.future(request())
        assert isinstance(future.exception(30), tw.Unavailable)
        assert returned.wait(30)
        assert server.wait(30)


@pytest.mark.parametrize("kind", ["def", "async", "on-loop", "async, blocking"])
def test_l6_a_handler_may_drain_its_own_server(face, gate, kind):
    """L6: with a drain it waits for the others, whose answers arrive, and not
    for itself; its own caller learns that the connection is closed."""
    blocking = kind == "async, blocking"
    serving = Serving("async" if blocking else kind)
    returned = threading.Event()
    entered = threading.Event()
    server: tw.Server

    async def drain_async() -> None:
        if blocking:
            server.stop(DRAIN)
        else:
            await server.astop(DRAIN)

    def handler(request: echo_pb2.EchoRequest, ctx: tw.Context) -> object:
        answer = echo_pb2.EchoResponse(message=request.message)
        if request.message != "stop":
            return answer
        entered.set()
        if not serving.is_async:
            server.stop(DRAIN)
            returned.set()
            return answer

        async def stop() -> echo_pb2.EchoResponse:
            try:
                await drain_async()
            finally:
                returned.set()
            return answer

        return stop()

    def held(request: echo_pb2.EchoRequest, ctx: tw.Context) -> object:
        if serving.is_async:

            async def wait() -> echo_pb2.EchoResponse:
                await gate.passed()
                return echo_pb2.EchoResponse(message=request.message)

            return wait()
        gate.wait()
        return echo_pb2.EchoResponse(message=request.message)

    def either(request: echo_pb2.EchoRequest, ctx: tw.Context) -> object:
        return (held if request.message == "other" else handler)(request, ctx)

    try:
        server = serving(either, threads=4)
        client, other = (
            face.client(echo_tw, face.channel(server.address, timeout=None))
            for _ in range(2)
        )
        others = []
        # A handler that blocks the loop keeps others from ending, whoever waits.
        if not blocking:
            for _ in range(2):
                message = echo_pb2.EchoRequest(message="other")
                others.append(face.start(other, "echo", message))
            gate.until_entered(2)
        stopper = face.start(client, "echo", echo_pb2.EchoRequest(message="stop"))
        assert entered.wait(LONG)
        if others:
            eventually(lambda: server._state == "stopping")
            assert not returned.is_set()
        gate.open()
        for call in others:
            assert call.result(LONG).message == "other"
        with pytest.raises(tw.RpcError):
            stopper.result(LONG)
        assert server.wait(LONG)
        assert returned.wait(LONG)
        assert server.connections == 0
    finally:
        gate.open()
        serving.close()


def test_l6_handlers_that_stop_their_server_at_once_wait_for_none(face, serve_def):
    """L6: nor for each other, though all of them wait for the others."""
    server: tw.Server
    together = threading.Barrier(3)

    def stop(_request: object, _ctx: tw.Context) -> echo_pb2.EchoResponse:
        together.wait(LONG)
        server.stop(DRAIN)
        return echo_pb2.EchoResponse(message="to nobody")

    server = serve_def(stop, threads=3)
    client = face.client(echo_tw, face.channel(server.address, timeout=None))
    calls = [face.start(client, "echo", request()) for _ in range(3)]
    for call in calls:
        with pytest.raises(tw.RpcError):
            call.result(LONG)
    assert server.wait(LONG)
