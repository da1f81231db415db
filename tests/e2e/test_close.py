"""Closing a channel: what still runs then, and what no longer does."""

import threading

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw


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
