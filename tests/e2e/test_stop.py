"""Stopping: in-flight calls finish, new ones are told, nothing remains."""

import asyncio
import signal
import threading

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import SLOW, LoopThread, Serving, echo, eventually, service, within

REQUEST = echo_pb2.EchoRequest(message="hello")


def in_thread(function, *args):
    """(thread, list of what it raised)"""
    raised = []

    def run():
        try:
            function(*args)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


def test_calls_under_way_are_answered(face, serve, gate):
    server = serve(gate=gate, drain=20.0)
    client = face.client(echo_tw, face.channel(server.address, max_retry=0))
    calls = [face.start(client, "echo", REQUEST, timeout=20) for _ in range(5)]
    gate.until_entered(5)
    stopping, raised = in_thread(serve.stop, server)
    # A new request on an old connection is told.
    eventually(lambda: logged_off(face, client))
    assert stopping.is_alive()
    gate.open()
    for call in calls:
        assert call.result(10).message == "hello"
    stopping.join(10)
    assert not stopping.is_alive()
    assert not raised
    assert "stopped" in repr(server)


def logged_off(face, client):
    try:
        face.call(client, "echo", REQUEST, timeout=0.5)
    except tw.Unavailable as error:
        return (error.number, error.phase) == (tw.Errno.ELOGOFF, tw.Phase.PEER)
    except tw.DeadlineExceeded:
        return False  # it was cut before the stop, and waits at the gate
    return False


def test_new_connections_are_refused_at_once(face, serve, gate):
    server = serve(gate=gate, drain=20.0)
    client = face.client(echo_tw, face.channel(server.address, max_retry=0))
    call = face.start(client, "echo", REQUEST, timeout=20)
    gate.until_entered()
    stopping, _ = in_thread(serve.stop, server)
    eventually(lambda: logged_off(face, client))
    with pytest.raises(tw.Unavailable) as caught:
        late = face.client(echo_tw, face.channel(server.address, max_retry=0))
        face.call(late, "echo", REQUEST, timeout=5)
    assert caught.value.phase is tw.Phase.CONNECT
    assert caught.value.sent is tw.Sent.NONE
    gate.open()
    assert call.result(10).message == "hello"
    stopping.join(10)
    assert not stopping.is_alive()


def test_an_idle_server_stops_at_once(face, serve):
    server = serve()
    client = face.client(echo_tw, face.channel(server.address))
    face.call(client, "echo", REQUEST)
    with within(0.5 * SLOW):
        serve.stop(server)
    with pytest.raises(tw.Unavailable):
        face.call(client, "echo", REQUEST)


def test_drain_has_an_end(face, serve, gate, caplog):
    server = serve(gate=gate, drain=20.0)
    client = face.client(echo_tw, face.channel(server.address))
    call = face.start(client, "echo", REQUEST, timeout=20)
    gate.until_entered()
    # def handlers cannot be interrupted: stop() waits for them a while, but the
    # caller learns at once.
    stopping, raised = in_thread(serve.stop, server, 0.1)
    with within(1 * SLOW) as took, pytest.raises(tw.Unavailable):
        call.result(10)
    assert took.seconds > 0.05
    if serve.is_async:
        gate.until_cancelled()
    gate.open()
    stopping.join(10)
    assert not stopping.is_alive()
    assert not raised
    assert "1 calls were still unanswered after 0.1 s" in caplog.text
    caplog.clear()


def test_zero_drain(face, serve, gate):
    server = serve(gate=gate)
    client = face.client(echo_tw, face.channel(server.address))
    call = face.start(client, "echo", REQUEST, timeout=20)
    gate.until_entered()
    stopping, _ = in_thread(serve.stop, server, 0.0)
    with pytest.raises(tw.Unavailable):
        call.result(5)
    gate.open()
    stopping.join(10)
    assert not stopping.is_alive()


def test_second_stop_changes_nothing(serve):
    server = serve()
    for _ in range(3):
        serve.stop(server)
    assert server.wait(0)


def test_second_stop_may_hurry_the_first(face, serve_def, gate):
    server = serve_def(gate=gate)
    client = face.client(echo_tw, face.channel(server.address, max_retry=0))
    call = face.start(client, "echo", REQUEST, timeout=20)
    gate.until_entered()
    patient, _ = in_thread(server.stop, 20.0)
    eventually(lambda: logged_off(face, client))
    hasty, _ = in_thread(server.stop, 0.0)
    with pytest.raises(tw.Unavailable):
        call.result(5)
    gate.open()
    for thread in (patient, hasty):
        thread.join(10)
        assert not thread.is_alive()


def test_stop_before_start(serve_def):
    server = tw.Server([service("def")], listen="127.0.0.1:0")
    server.stop()
    assert server.wait(0)
    with pytest.raises(tw.ClosedError, match="stopped"):
        server.start()


def test_a_stopped_server_does_not_start_again(serve_def):
    server = serve_def()
    server.stop()
    with pytest.raises(tw.ClosedError, match="make another"):
        server.start()


def test_starting_twice(serve_def):
    server = serve_def()
    with pytest.raises(tw.ClosedError, match="started"):
        server.start()


def test_address_before_start():
    server = tw.Server([service("def")], listen="127.0.0.1:0")
    with pytest.raises(tw.ClosedError, match="not started"):
        _ = server.address


def test_wait_returns_when_another_thread_stops(serve):
    server = serve()
    assert not server.wait(0.01)
    waited = []
    waiter, raised = in_thread(lambda: waited.append(server.wait()))
    serve.stop(server)
    waiter.join(5)
    assert waited == [True]
    assert not raised


def test_stop_from_many_threads(serve_def):
    server = serve_def()
    threads = [in_thread(server.stop) for _ in range(8)]
    for thread, raised in threads:
        thread.join(10)
        assert not thread.is_alive()
        assert not raised
    assert server.wait(0)


def test_stop_from_a_handler(face, serve_def):
    """It cannot wait for itself, but nothing hangs."""
    holder = []

    def handler(request, ctx):
        threading.Thread(target=holder[0].stop).start()
        return echo(request, ctx)

    server = serve_def(handler)
    holder.append(server)
    client = face.client(echo_tw, face.channel(server.address))
    assert face.call(client, "echo", REQUEST, timeout=5).message == "hello"
    assert server.wait(5)
    holder.clear()


def test_stop_called_inside_a_handler(face, serve_def):
    holder = []

    def handler(request, ctx):
        holder[0].stop(0.05)
        return echo(request, ctx)

    server = serve_def(handler)
    holder.append(server)
    client = face.client(echo_tw, face.channel(server.address))
    with pytest.raises(tw.Unavailable):
        face.call(client, "echo", REQUEST, timeout=5)
    assert server.wait(5)
    holder.clear()


def test_with(face):
    with tw.Server([service("def")], listen="127.0.0.1:0") as server:
        client = face.client(echo_tw, face.channel(server.address))
        assert face.call(client, "echo", REQUEST).message == "hello"
    assert server.wait(0)


def test_with_stops_after_an_exception():
    with (
        pytest.raises(ZeroDivisionError),
        tw.Server([service("async")], listen="127.0.0.1:0") as server,
    ):
        raise ZeroDivisionError
    assert server.wait(0)


@pytest.mark.parametrize("kind", ["def", "async"])
def test_async_with(kind):
    async def main():
        server = tw.Server([service(kind)], listen="127.0.0.1:0")
        async with server, tw.AsyncChannel(server.address) as channel:
            client = echo_tw.AsyncEchoClient(channel)
            calls = [client.echo(REQUEST, timeout=5) for _ in range(50)]
            answers = await asyncio.gather(*calls)
            assert [a.message for a in answers] == ["hello"] * 50
        assert server.wait(0)
        await server.astop()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["def", "async"])
def test_async_with_drains(gate, kind):
    """The handlers go on while __aexit__ waits for them, on the same loop."""

    async def main():
        channel = None
        async with tw.Server(
            [service(kind, gate=gate)], listen="127.0.0.1:0"
        ) as server:
            channel = tw.AsyncChannel(server.address)
            client = echo_tw.AsyncEchoClient(channel)
            task = asyncio.create_task(client.echo(REQUEST, timeout=20))
            await asyncio.to_thread(gate.until_entered)
            asyncio.get_running_loop().call_later(0.1, gate.open)
        assert (await task).message == "hello"
        await channel.aclose()

    asyncio.run(main())


def test_on_loop_server_stopped_by_another_thread(face):
    """stop() for a server that runs on somebody's loop."""
    serving = Serving("on-loop")
    try:
        server = serving()
        client = face.client(echo_tw, face.channel(server.address))
        assert face.call(client, "echo", REQUEST).message == "hello"
        server.stop()
        assert server.wait(0)
        # The loop goes on, and may serve again.
        again = serving()
        client = face.client(echo_tw, face.channel(again.address))
        assert face.call(client, "echo", REQUEST).message == "hello"
    finally:
        serving.close()


def test_on_loop_server_stopped_by_another_thread_under_load(face, gate):
    serving = Serving("on-loop")
    try:
        server = serving(gate=gate)
        client = face.client(echo_tw, face.channel(server.address))
        call = face.start(client, "echo", REQUEST, timeout=20)
        gate.until_entered()
        stopping, _ = in_thread(server.stop, 0.05)
        with pytest.raises(tw.Unavailable):
            call.result(5)
        gate.until_cancelled()
        stopping.join(5)
        assert not stopping.is_alive()
    finally:
        serving.close()


def test_the_loop_of_a_server_ends_without_stop(gate):
    """The loop is closed below a running server; stop() afterwards."""
    with LoopThread() as loop:
        server = tw.Server([service("async")], listen="127.0.0.1:0")
        loop.run(server.__aenter__())
        with tw.Channel(server.address) as channel:
            assert echo_tw.EchoClient(channel).echo(REQUEST).message == "hello"
    server.stop(0.0)
    assert server.wait(0)


def test_blocked_async_handler_does_not_block_stop_for_ever(face):
    """A handler that blocks its loop: stop() gives up waiting for it."""
    entered, free = threading.Event(), threading.Event()

    def handler(request, ctx):
        entered.set()
        assert free.wait(30)
        return echo(request, ctx)

    # Its own loop: with `async with`, stopping is the blocked loop's own task.
    server = tw.Server([service("async", handler)], listen="127.0.0.1:0").start()
    client = face.client(echo_tw, face.channel(server.address))
    call = face.start(client, "echo", REQUEST, timeout=20)
    assert entered.wait(10)
    with within(6):
        server.stop(0.0)
    with pytest.raises(tw.Unavailable):
        call.result(5)
    free.set()


def test_stop_leaves_no_threads(face, serve):
    """(The leak check says so; here for its time.)"""
    server = serve(threads=64)
    client = face.client(echo_tw, face.channel(server.address))
    face.call(client, "echo", REQUEST)
    serve.stop(server)
    alive = [t for t in threading.enumerate() if t.name.startswith("tidewire-worker")]
    assert alive == []


def test_signal_handlers_are_not_touched(serve_def):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    server = serve_def()
    server.stop()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
