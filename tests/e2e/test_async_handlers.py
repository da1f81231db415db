"""Async handlers are tasks of their own from their first line: everything that
asyncio offers to a task works before the first await."""

import asyncio
import contextvars

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import echo, eventually

REQUEST = echo_pb2.EchoRequest(message="hello")


@pytest.fixture
def run(serve_async):
    """run(handler): what the handler's value is, over the wire and back."""

    def run(handler, calls=1, **how):
        values = []

        async def wrapped(request, ctx):
            values.append(await handler(request, ctx))
            return echo(request, ctx)

        server = serve_async(wrapped)
        with tw.Channel(server.address) as channel:
            client = echo_tw.EchoClient(channel)
            futures = [
                client.echo.future(REQUEST, **{"timeout": 10, **how})
                for _ in range(calls)
            ]
            for future in futures:
                assert future.result(10).message == "hello"
        return values if calls > 1 else values[0]

    return run


def test_current_task_before_the_first_await(run):
    async def handler(request, ctx):
        task = asyncio.current_task()
        assert isinstance(task, asyncio.Task)
        assert asyncio.current_task() is task
        await asyncio.sleep(0)
        assert asyncio.current_task() is task
        return task.get_name()

    assert run(handler) == "Echo"


def test_each_call_has_its_own_task(run):
    async def handler(request, ctx):
        task = asyncio.current_task()
        await asyncio.sleep(0)
        return task

    tasks = run(handler, calls=20)
    assert len(set(tasks)) == 20


def test_running_loop(run):
    async def handler(request, ctx):
        return asyncio.get_running_loop() is asyncio.get_event_loop()

    assert run(handler)


def test_asyncio_timeout_that_expires(run):
    async def handler(request, ctx):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        return "expired"

    assert run(handler) == "expired"


def test_asyncio_timeout_that_does_not(run):
    async def handler(request, ctx):
        async with asyncio.timeout(5):
            return "in time"

    assert run(handler) == "in time"


def test_task_group(run):
    async def handler(request, ctx):
        async def one(i):
            await asyncio.sleep(0)
            return i

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(i)) for i in range(5)]
        return [task.result() for task in tasks]

    assert run(handler) == [0, 1, 2, 3, 4]


def test_task_group_that_fails(run):
    async def handler(request, ctx):
        async def fail():
            raise ValueError

        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                group.create_task(asyncio.Event().wait())
        return "failed"

    assert run(handler) == "failed"


def test_wait_for(run):
    async def handler(request, ctx):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.01)
        return await asyncio.wait_for(asyncio.sleep(0, "slept"), 5)

    assert run(handler) == "slept"


def test_gather_and_shield(run):
    async def handler(request, ctx):
        values = await asyncio.gather(*(asyncio.sleep(0, i) for i in range(3)))
        return [*values, await asyncio.shield(asyncio.sleep(0, "shielded"))]

    assert run(handler) == [0, 1, 2, "shielded"]


def test_to_thread(run):
    async def handler(request, ctx):
        return await asyncio.to_thread(lambda: "from a thread")

    assert run(handler) == "from a thread"


def test_locks_and_queues(run):
    lock = asyncio.Lock()
    order = []

    async def handler(request, ctx):
        async with lock:
            order.append("in")
            await asyncio.sleep(0)
            order.append("out")
        return True

    run(handler, calls=10)
    assert order == ["in", "out"] * 10


variable = contextvars.ContextVar("variable", default="unset")


def test_context_variables_do_not_leak_between_calls(run):
    async def handler(request, ctx):
        before = variable.get()
        variable.set("set")
        await asyncio.sleep(0)
        assert variable.get() == "set"
        return before

    # Also without a suspension, where an eager task runs inside the loop's own
    # context.
    assert set(run(handler, calls=20)) == {"unset"}


def test_context_variables_set_without_an_await(run):
    async def handler(request, ctx):
        before = variable.get()
        variable.set("set")
        return before

    assert set(run(handler, calls=20)) == {"unset"}


def test_current_context_does_not_leak(run):
    async def handler(request, ctx):
        assert tw.current_context() is ctx
        await asyncio.sleep(0)
        assert tw.current_context() is ctx
        return await asyncio.create_task(inner()) is ctx

    async def inner():
        return tw.current_context()

    assert set(run(handler, calls=20)) == {True}
    assert tw.current_context() is None


def test_uncancel_and_cancelling(run):
    async def handler(request, ctx):
        task = asyncio.current_task()
        task.cancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            return task.cancelling(), task.uncancel()

    assert run(handler) == (1, 0)


def test_handler_that_cancels_itself(serve_async, face):
    async def handler(request, ctx):
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    server = serve_async(handler)
    client = face.client(echo_tw, face.channel(server.address))
    with pytest.raises(tw.Unavailable, match="cancelled") as caught:
        face.call(client, "echo", REQUEST, timeout=5)
    assert caught.value.phase is tw.Phase.PEER
    eventually(lambda: server.in_flight == 0)


def test_handler_that_raises_cancelled_error(serve_async, face):
    async def handler(request, ctx):
        raise asyncio.CancelledError

    server = serve_async(handler)
    client = face.client(echo_tw, face.channel(server.address))
    with pytest.raises(tw.Unavailable, match="cancelled"):
        face.call(client, "echo", REQUEST, timeout=5)
    eventually(lambda: server.in_flight == 0)


def test_generators_and_cleanup(run):
    async def numbers():
        try:
            for i in range(3):
                await asyncio.sleep(0)
                yield i
        finally:
            await asyncio.sleep(0)

    async def handler(request, ctx):
        return [i async for i in numbers()]

    assert run(handler) == [0, 1, 2]


def test_abandoned_generators_are_closed(run):
    """Their finalizer is a task of the loop's; nothing complains."""

    async def numbers():
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)

    async def handler(request, ctx):
        async for i in numbers():
            return i

    assert run(handler) == 1


def test_background_tasks_outlive_the_call(run):
    done = []
    keep = set()

    async def later():
        await asyncio.sleep(0.01)
        done.append(True)

    async def handler(request, ctx):
        task = asyncio.create_task(later())
        keep.add(task)
        task.add_done_callback(keep.discard)
        return True

    assert run(handler)
    # The server may stop first and take its loop along.
    assert done in ([], [True])


def test_a_call_in_the_handler_is_awaited_on_its_loop(serve_async, serve_def, face):
    inner = serve_def()
    channels = []

    async def handler(request, ctx):
        channel = tw.AsyncChannel(inner.address)
        channels.append(channel)
        try:
            return await echo_tw.AsyncEchoClient(channel).echo(request)
        finally:
            await channel.aclose()

    client = face.client(echo_tw, face.channel(serve_async(handler).address))
    for _ in range(10):
        assert face.call(client, "echo", REQUEST, timeout=10).message == "hello"
    channels.clear()


def test_coroutine_from_a_plain_function(serve_async, face):
    """What counts is how the method is declared: a def that returns a coroutine
    is a mistake that the caller learns of."""

    class Odd(echo_tw.EchoService):
        def echo(self, request, ctx):
            async def coroutine():
                return echo_pb2.EchoResponse(message="hello")

            made = coroutine()
            made.close()
            return made

    client = face.client(echo_tw, face.channel(serve_async([Odd()]).address))
    with pytest.raises(tw.Internal) as caught:
        face.call(client, "echo", REQUEST, timeout=5)
    assert caught.value.number == tw.Errno.ERESPONSE


def test_decorated_handlers(serve_async, face):
    """A wrapper that is a coroutine function itself, and functools.partial."""
    import functools

    def logged(function):
        @functools.wraps(function)
        async def wrapper(self, request, ctx):
            return await function(self, request, ctx)

        return wrapper

    class Decorated(echo_tw.EchoService):
        @logged
        async def echo(self, request, ctx):
            await asyncio.sleep(0)
            return echo(request, ctx)

    client = face.client(echo_tw, face.channel(serve_async([Decorated()]).address))
    assert face.call(client, "echo", REQUEST, timeout=5).message == "hello"


def test_debug_mode(serve_async, monkeypatch):
    """asyncio's own checks find nothing: no call from a wrong thread."""
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    server = serve_async()

    async def main():
        async with tw.AsyncChannel(server.address) as channel:
            client = echo_tw.AsyncEchoClient(channel)
            answers = await asyncio.gather(*(client.echo(REQUEST) for _ in range(50)))
            assert len(answers) == 50

    asyncio.run(main(), debug=True)
