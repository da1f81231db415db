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
