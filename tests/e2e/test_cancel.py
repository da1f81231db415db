"""Giving up: futures, tasks, closed channels, and what the server learns."""

import asyncio
import concurrent.futures
import socket
import threading

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import Gate, Snapshot, echo, eventually, raw_request, reset

REQUEST = echo_pb2.EchoRequest(message="hello")


def test_cancelled_future(face, serve, gate):
    client = face.client(echo_tw, face.channel(serve(gate=gate).address))
    call = face.start(client, "echo", REQUEST, timeout=None)
    gate.until_entered()
    assert call.cancel()
    assert call.cancelled()
    with pytest.raises(concurrent.futures.CancelledError):
        call.result(5)
    gate.open()
    # The late answer goes to nobody.
    assert face.call(client, "echo", REQUEST, timeout=5).message == "hello"


def test_cancelling_twice_or_too_late(face, serve, gate):
    client = face.client(echo_tw, face.channel(serve(gate=gate).address))
    call = face.start(client, "echo", REQUEST, timeout=None)
    other = face.start(client, "echo", REQUEST, timeout=None)
    assert call.cancel()
    assert call.cancel()
    gate.open()
    assert other.result(10).message == "hello"
    assert not other.cancel()
    assert other.result(0).message == "hello"


def test_waiters_and_callbacks_see_the_cancellation(face, serve, gate):
    client = face.client(echo_tw, face.channel(serve(gate=gate).address))
    call = face.start(client, "echo", REQUEST, timeout=None)
    told = []
    call.add_done_callback(lambda f: told.append(f.cancelled()))
    waited = []
    thread = threading.Thread(
        target=lambda: waited.append(concurrent.futures.wait([call], timeout=10))
    )
    thread.start()
    gate.until_entered()
    call.cancel()
    thread.join(5)
    assert not thread.is_alive(), "concurrent.futures.wait() was not told"
    assert waited[0].done == {call}
    assert told == [True]
    assert list(concurrent.futures.as_completed([call], timeout=5)) == [call]


def test_many_cancelled_at_random(face, serve):
    """L1."""
    client = face.client(echo_tw, face.channel(serve().address))
    calls = []
    for i in range(300):
        request = echo_pb2.EchoRequest(message=str(i))
        call = face.start(client, "echo", request, timeout=10)
        if i % 3 == 0:
            call.cancel()
        calls.append(call)
    for i, call in enumerate(calls):
        try:
            assert call.result(10).message == str(i)
        except concurrent.futures.CancelledError:
            assert i % 3 == 0


def test_closing_the_channel_ends_calls_under_way(face, serve, gate):
    """L1."""
    channel = face.channel(serve(gate=gate).address)
    client = face.client(echo_tw, channel)
    calls = [face.start(client, "echo", REQUEST, timeout=None) for _ in range(100)]
    gate.until_entered()
    face.close_channel(channel)
    for call in calls:
        with pytest.raises(tw.Cancelled) as caught:
            call.result(5)
        assert caught.value.number == tw.Errno.ECANCELED
    with pytest.raises(tw.ClosedError, match="closed"):
        face.call(client, "echo", REQUEST)
    with pytest.raises(tw.ClosedError):
        face.start(client, "echo", REQUEST).result(5)
    face.close_channel(channel)


def test_closing_the_channel_ends_blocking_calls(serve_def, gate):
    channel = tw.Channel(serve_def(gate=gate).address)
    client = echo_tw.EchoClient(channel)
    ended = []

    def call():
        try:
            client.echo(REQUEST, timeout=None)
        except tw.Cancelled as error:
            ended.append(error)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    gate.until_entered(8)
    channel.close()
    for thread in threads:
        thread.join(5)
    assert len(ended) == 8


def test_other_channels_do_not_notice(face, serve, gate):
    server = serve(gate=gate)
    doomed, other = face.channel(server.address), face.channel(server.address)
    first = face.start(face.client(echo_tw, doomed), "echo", REQUEST, timeout=None)
    second = face.start(face.client(echo_tw, other), "echo", REQUEST, timeout=None)
    gate.until_entered(2)
    face.close_channel(doomed)
    with pytest.raises(tw.Cancelled):
        first.result(5)
    gate.open()
    assert second.result(5).message == "hello"


def test_channel_that_was_never_used_closes(face, serve):
    channel = face.channel(serve().address)
    face.close_channel(channel)
    face.close_channel(channel)


# ---- what the handler sees


class Watch:
    """A handler that notes whether it thinks that its caller is there."""

    def __init__(self):
        self.before = []
        self.after = []
        self.left = Gate()

    def handler(self, kind):
        def plain(request, ctx):
            self.before.append(ctx.cancelled())
            self.left.wait()
            eventually(ctx.cancelled, "ctx.cancelled()")
            self.after.append(True)
            return echo(request, ctx)

        async def awaiting(request, ctx):
            self.before.append(ctx.cancelled())
            try:
                await self.left.passed()
            except asyncio.CancelledError:
                self.after.append(ctx.cancelled())
                raise
            return echo(request, ctx)

        return plain if kind == "def" else awaiting


def test_handler_learns_that_its_connection_was_reset(serve):
    """An async handler is cancelled, a def one may ask."""
    watch = Watch()
    server = serve(watch.handler(serve.kind))
    connection = raw_request(server)
    watch.left.until_entered()
    reset(connection)
    if not serve.is_async:
        watch.left.open()
    eventually(lambda: watch.after, "the handler was told")
    assert watch.before == [False]
    assert watch.after == [True]
    eventually(lambda: server.in_flight == 0)
    eventually(lambda: server.connections == 0)


def test_handler_learns_that_its_caller_has_gone(face, serve, tmp_path):
    """A closed unix connection is known to be closed both ways.  (TCP says no
    more than that the caller sends nothing further.)"""
    watch = Watch()
    server = serve(watch.handler(serve.kind), listen=f"unix:{tmp_path}/s")
    channel = face.channel(server.address)
    client = face.client(echo_tw, channel)
    call = face.start(client, "echo", REQUEST, timeout=None)
    watch.left.until_entered()
    face.close_channel(channel)
    if not serve.is_async:
        watch.left.open()
    eventually(lambda: watch.after, "the handler was told")
    assert watch.before == [False]
    assert watch.after == [True]
    with pytest.raises(tw.Cancelled):
        call.result(5)
    eventually(lambda: server.in_flight == 0)
    # The server is as good as new.
    watch.left.open()
    if serve.is_async:
        again = face.client(echo_tw, face.channel(server.address))
        assert face.call(again, "echo", REQUEST, timeout=5).message == "hello"


def test_reset_cancels_half_close_does_not(serve, gate):
    """C3: a peer that only ends its own sending still gets its answer."""
    server = serve(gate=gate)
    with raw_request(server) as half_closed:
        doomed = raw_request(server)
        gate.until_entered(2)
        half_closed.shutdown(socket.SHUT_WR)
        reset(doomed)
        if serve.is_async:
            gate.until_cancelled(1)
        eventually(lambda: server.connections == 1)
        gate.open()
        answer = half_closed.recv(1000)
        assert answer.startswith(b"PRPC")
        assert b"hello" in answer
        assert half_closed.recv(1000) == b""
    assert gate.cancelled == (1 if serve.is_async else 0)


def test_a_cancelled_call_leaves_the_handler_alone(face, serve, gate):
    """Nothing on this wire says so: only the connection's end cancels."""
    server = serve(gate=gate)
    client = face.client(echo_tw, face.channel(server.address))
    call = face.start(client, "echo", REQUEST, timeout=None)
    gate.until_entered()
    call.cancel()
    assert server.in_flight == 1
    gate.open()
    eventually(lambda: server.in_flight == 0)
    assert gate.cancelled == 0


def test_handler_that_swallows_its_cancellation(serve_async):
    gate, done = Gate(), []

    async def stubborn(request, ctx):
        try:
            await gate.passed()
        except asyncio.CancelledError:
            done.append("swallowed")
        return echo(request, ctx)

    server = serve_async(stubborn)
    connection = raw_request(server)
    gate.until_entered()
    reset(connection)
    eventually(lambda: done == ["swallowed"])
    eventually(lambda: server.in_flight == 0)


def test_cleanup_after_cancellation_may_await(serve_async):
    gate, done = Gate(), []

    async def tidy(request, ctx):
        try:
            await gate.passed()
        finally:
            await asyncio.sleep(0.01)
            done.append(True)

    server = serve_async(tidy)
    connection = raw_request(server)
    gate.until_entered()
    reset(connection)
    eventually(lambda: done == [True])
    eventually(lambda: server.in_flight == 0)


# ---- tasks


def test_task_cancel_is_asyncios_own(serve, gate):
    """L11."""
    server = serve(gate=gate)

    async def main():
        async with tw.AsyncChannel(server.address) as channel:
            client = echo_tw.AsyncEchoClient(channel)
            task = asyncio.create_task(client.echo(REQUEST, timeout=None))
            await asyncio.to_thread(gate.until_entered)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.open()
            assert (await client.echo(REQUEST, timeout=5)).message == "hello"

    asyncio.run(main())


def test_a_failing_task_group_ends_its_calls(serve, gate):
    server = serve(gate=gate)

    async def main():
        async with tw.AsyncChannel(server.address) as channel:
            client = echo_tw.AsyncEchoClient(channel)
            with pytest.raises(ExceptionGroup) as caught:
                async with asyncio.TaskGroup() as group:
                    for _ in range(20):
                        group.create_task(client.echo(REQUEST, timeout=None))
                    await asyncio.to_thread(gate.until_entered)
                    raise ValueError
            assert isinstance(caught.value.exceptions[0], ValueError)
            gate.open()
            assert (await client.echo(REQUEST, timeout=5)).message == "hello"

    asyncio.run(main())


def test_cancel_before_the_task_ran(serve):
    server = serve()

    async def main():
        async with tw.AsyncChannel(server.address) as channel:
            client = echo_tw.AsyncEchoClient(channel)
            tasks = [asyncio.create_task(client.echo(REQUEST)) for _ in range(10)]
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(e, asyncio.CancelledError) for e in ended)

    asyncio.run(main())


def test_the_loop_may_end_with_calls_under_way(serve, gate):
    """L11: asyncio.run cancels what is left; nothing touches the closed loop."""
    server = serve(gate=gate)
    kept = []

    async def main():
        channel = tw.AsyncChannel(server.address)
        kept.append(channel)
        client = echo_tw.AsyncEchoClient(channel)
        for _ in range(20):
            kept.append(asyncio.create_task(client.echo(REQUEST, timeout=None)))
        await asyncio.to_thread(gate.until_entered)

    asyncio.run(main())
    gate.open()
    eventually(lambda: server.in_flight == 0)
    assert all(task.cancelled() for task in kept[1:])
    asyncio.run(kept[0].aclose())
    kept.clear()


def test_channel_used_in_a_second_run(serve):
    server = serve()
    channel = tw.AsyncChannel(server.address)
    client = echo_tw.AsyncEchoClient(channel)

    async def once():
        return (await client.echo(REQUEST)).message

    assert asyncio.run(once()) == "hello"
    before = Snapshot()
    for _ in range(20):
        assert asyncio.run(once()) == "hello"
    # Who delivered the last result lets go of it a moment later.
    eventually(lambda: not Snapshot().leaked_since(before))
    asyncio.run(channel.aclose())
