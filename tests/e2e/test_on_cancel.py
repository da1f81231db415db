"""ctx.on_cancel and ctx.peer_closed: what a running handler learns of its caller."""

import asyncio
import logging
import socket
import threading

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import Gate, echo, eventually, raw_request, reset

REQUEST = echo_pb2.EchoRequest(message="hello")


class Told:
    """A handler that asks to be told, comes to the gate, and stays there until
    it is opened or cancelled."""

    def __init__(self, count=1):
        self.gate = Gate()
        self.calls = []
        self.contexts = []
        self.count = count

    def ask(self, ctx):
        self.contexts.append(ctx)
        for i in range(self.count):
            ctx.on_cancel(lambda i=i: self.calls.append((i, ctx.cancelled())))

    def handler(self, kind):
        def plain(request, ctx):
            self.ask(ctx)
            self.gate.wait()
            return echo(request, ctx)

        async def awaiting(request, ctx):
            self.ask(ctx)
            await self.gate.passed()
            return echo(request, ctx)

        return plain if kind == "def" else awaiting


@pytest.fixture
def told(serve):
    one = Told(3)
    yield one
    one.gate.open()


def test_a_reset_calls_the_callbacks_once_and_in_order(serve, told):
    """The `def` handler runs on meanwhile."""
    server = serve(told.handler(serve.kind))
    connection = raw_request(server)
    told.gate.until_entered()
    assert told.calls == []
    reset(connection)
    eventually(lambda: len(told.calls) == 3)
    told.gate.open()
    eventually(lambda: server.in_flight == 0)
    assert told.calls == [(0, True), (1, True), (2, True)]


def test_callers_that_stay_call_nothing(face, serve, told):
    """Not when the handler has returned, nor when the connection ends later."""
    server = serve(told.handler(serve.kind))
    channel = face.channel(server.address)
    client = face.client(echo_tw, channel)
    call = face.start(client, "echo", REQUEST, timeout=10)
    told.gate.open()
    assert call.result(10).message == "hello"
    face.close_channel(channel)
    eventually(lambda: server.connections == 0)
    assert told.calls == []
    assert told.contexts[0].cancelled()
    told.contexts[0].on_cancel(lambda: told.calls.append("late"))
    assert told.calls == []


def test_a_caller_that_is_gone_already_calls_at_once(serve):
    gate, calls = Gate(), []

    def ask(ctx):
        eventually(ctx.cancelled, "the reset was noticed")
        ctx.on_cancel(lambda: calls.append(threading.get_ident()))
        calls.append(threading.get_ident())

    def plain(request, ctx):
        gate.wait()
        ask(ctx)
        return echo(request, ctx)

    async def awaiting(request, ctx):
        try:
            await gate.passed()
        finally:
            ask(ctx)
        return echo(request, ctx)

    server = serve(plain if serve.kind == "def" else awaiting)
    connection = raw_request(server)
    gate.until_entered()
    reset(connection)
    if not serve.is_async:
        gate.open()
    eventually(lambda: len(calls) == 2)
    assert calls[0] == calls[1]
    gate.open()


def test_callbacks_that_raise_or_add_others_do_no_harm(serve, caplog):
    gate, calls = Gate(), []

    def ask(ctx):
        def fail():
            raise SystemExit("not a good idea")

        ctx.on_cancel(fail)
        ctx.on_cancel(lambda: ctx.on_cancel(lambda: calls.append("added")))
        ctx.on_cancel(lambda: calls.append("last"))

    def plain(request, ctx):
        ask(ctx)
        gate.wait()
        return echo(request, ctx)

    async def awaiting(request, ctx):
        ask(ctx)
        await gate.passed()
        return echo(request, ctx)

    server = serve(plain if serve.kind == "def" else awaiting)
    for round_ in (1, 2):  # the thread or loop that calls them lives on
        connection = raw_request(server)
        gate.until_entered(round_)
        with caplog.at_level(logging.CRITICAL):
            reset(connection)
            eventually(lambda n=round_: len(calls) == 2 * n)
    assert calls == ["added", "last"] * 2
    gate.open()


def test_what_is_no_function_is_refused(face, serve):
    def handler(request, ctx):
        with pytest.raises(TypeError, match="callback is a int; allowed"):
            ctx.on_cancel(5)
        return echo(request, ctx)

    client = face.client(echo_tw, face.channel(serve(handler).address))
    assert face.call(client, "echo", REQUEST, timeout=5).message == "hello"


def test_the_end_of_a_def_handler_waits_for_a_callback_that_runs(serve_def):
    """So that what the callback uses may be closed after the handler's end."""
    begun, go_on = threading.Event(), threading.Event()
    order = []

    def callback():
        begun.set()
        assert go_on.wait(10)
        order.append("callback")

    def handler(request, ctx):
        ctx.on_cancel(callback)
        entered.set()
        assert begun.wait(10)
        threading.Timer(0.01, go_on.set).start()
        return echo(request, ctx)

    entered = threading.Event()
    server = serve_def(handler)
    connection = raw_request(server)
    assert entered.wait(10)
    reset(connection)
    eventually(lambda: server.in_flight == 0)
    assert order == ["callback"]


def test_a_stop_that_waits_no_longer_cancels(serve, told):
    server = serve(told.handler(serve.kind))
    with raw_request(server):
        told.gate.until_entered()
        if not serve.is_async:
            # The handler returns when it is told.
            told.contexts[0].on_cancel(told.gate.open)
        serve.stop(server, 0.0)
    eventually(lambda: len(told.calls) == 3)


def test_a_half_close_is_seen_and_answered(serve, told):
    server = serve(told.handler(serve.kind))
    with raw_request(server) as connection:
        told.gate.until_entered()
        ctx = told.contexts[0]
        assert not ctx.peer_closed
        connection.shutdown(socket.SHUT_WR)
        eventually(lambda: ctx.peer_closed)
        assert not ctx.cancelled()
        told.gate.open()
        assert b"hello" in connection.recv(1000)
    assert told.calls == []


def test_a_half_close_cancels_where_the_server_says_so(serve, told):
    server = serve(told.handler(serve.kind), cancel_on_eof=True)
    with raw_request(server) as connection:
        told.gate.until_entered()
        connection.shutdown(socket.SHUT_WR)
        eventually(lambda: len(told.calls) == 3)
        assert told.contexts[0].peer_closed
        if serve.is_async:
            told.gate.until_cancelled()
        told.gate.open()
        assert connection.recv(1000) == b""
    eventually(lambda: server.connections == 0)


def test_a_half_close_after_the_answer_cancels_nothing(face, serve):
    """A client that asks, reads and ends is served as ever."""
    server = serve(cancel_on_eof=True)
    with raw_request(server) as connection:
        assert b"hello" in connection.recv(1000)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1000) == b""


def test_tasks_are_cancelled_after_the_callbacks(serve_async):
    gate, order = Gate(), []

    async def handler(request, ctx):
        ctx.on_cancel(lambda: order.append(asyncio.current_task()))
        try:
            await gate.passed()
        except asyncio.CancelledError:
            order.append("cancelled")
            raise
        return echo(request, ctx)

    server = serve_async(handler)
    connection = raw_request(server)
    gate.until_entered()
    reset(connection)
    eventually(lambda: server.in_flight == 0)
    # On the loop, in no task.
    assert order == [None, "cancelled"]


def test_a_handler_may_ask_for_many_and_from_other_threads(serve_def):
    gate, calls = Gate(), []

    def handler(request, ctx):
        threads = [
            threading.Thread(target=ctx.on_cancel, args=(lambda i=i: calls.append(i),))
            for i in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gate.wait()
        return echo(request, ctx)

    server = serve_def(handler)
    connection = raw_request(server)
    gate.until_entered()
    reset(connection)
    eventually(lambda: len(calls) == 8)
    assert sorted(calls) == list(range(8))
    gate.open()


def test_the_option_is_a_bool():
    with pytest.raises(TypeError, match="cancel_on_eof is 1 .*True or False"):
        tw.ServerOptions(cancel_on_eof=1)
