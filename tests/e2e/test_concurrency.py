"""Many callers: threads, loops, futures, and what 5,000 calls at once cost."""

import asyncio
import concurrent.futures
import contextlib
import os
import random
import threading
import time

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import SLOW, LoopThread, Serving, echo, eventually, service, within
from tools.stalls import StallMonitor

REQUEST = echo_pb2.EchoRequest(message="hello")


def run_threads(count, function):
    """Runs function(i) in so many threads; re-raises what one raised."""
    failed = []

    def run(i):
        try:
            function(i)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if failed:
        raise failed[0]


def test_64_threads_on_one_channel(serve):
    server = serve()
    with tw.Channel(server.address, options=tw.ChannelOptions(timeout=30)) as channel:
        client = echo_tw.EchoClient(channel)

        def calls(i):
            for n in range(50):
                message = f"{i} {n}"
                answer = client.echo(echo_pb2.EchoRequest(message=message))
                assert answer.message == message

        run_threads(64, calls)
    eventually(lambda: server.in_flight == 0)


def test_64_threads_with_a_channel_each(serve):
    server = serve()

    def calls(i):
        options = tw.ChannelOptions(timeout=30)
        with tw.Channel(server.address, options=options) as channel:
            client = echo_tw.EchoClient(channel)
            for n in range(20):
                message = f"{i} {n}"
                data = bytes([i]) * (n * 500)
                response = client.echo.call(
                    echo_pb2.EchoRequest(message=message), attachment=data
                )
                assert response.message.message == message
                assert response.attachment == data

    run_threads(64, calls)
    eventually(lambda: server.connections == 0)


def test_threads_that_call_in_every_way(serve):
    server = serve()
    options = tw.ChannelOptions(timeout=30)
    with tw.Channel(server.address, options=options) as channel:
        client = echo_tw.EchoClient(channel)

        def calls(i):
            mine = random.Random(i)
            for n in range(40):
                request = echo_pb2.EchoRequest(message=f"{i} {n}")
                data = bytes(mine.choice([0, 10, 5000, 100_000]))
                way = mine.randrange(3)
                if way == 0:
                    assert client.echo(request).message == request.message
                elif way == 1:
                    response = client.echo.call(request, attachment=data)
                    assert len(response.attachment) == len(data)
                else:
                    future = client.echo.future(request, attachment=data)
                    assert future.result(30).message == request.message

        run_threads(16, calls)


async def tasks_call(client, i):
    """Eight tasks of one loop, the i-th, call at the same time."""

    async def calls(j):
        for n in range(10):
            message = f"{i} {j} {n}"
            answer = await client.echo(echo_pb2.EchoRequest(message=message))
            assert answer.message == message

    await asyncio.gather(*(calls(j) for j in range(8)))


def test_loops_in_several_threads_at_once(serve):
    """One of them watches the core's epoll set, the others do not."""
    server = serve()

    async def main(i):
        options = tw.ChannelOptions(timeout=30)
        async with tw.AsyncChannel(server.address, options=options) as channel:
            await tasks_call(echo_tw.AsyncEchoClient(channel), i)

    run_threads(8, lambda i: asyncio.run(main(i)))
    eventually(lambda: server.connections == 0)


def test_one_async_channel_in_several_loops(serve):
    server = serve()
    options = tw.ChannelOptions(timeout=30)
    channel = tw.AsyncChannel(server.address, options=options)
    client = echo_tw.AsyncEchoClient(channel)
    run_threads(4, lambda i: asyncio.run(tasks_call(client, i)))
    assert server.connections == 1
    asyncio.run(channel.aclose())


def test_async_channel_closed_in_another_loop(serve, gate):
    server = serve(gate=gate)
    channel = tw.AsyncChannel(server.address)
    client = echo_tw.AsyncEchoClient(channel)
    with LoopThread() as one, LoopThread() as other:
        first = one.start(client.echo(REQUEST, timeout=None))
        second = other.start(client.echo(REQUEST, timeout=None))
        gate.until_entered(2)
        one.run(channel.aclose())
        for call in (first, second):
            with pytest.raises(tw.Cancelled):
                call.result(5)


def test_the_watching_loop_goes_and_others_carry_on(serve):
    """When the loop that watches the epoll set ends, somebody else polls."""
    server = serve()
    with LoopThread() as stays:
        channel = tw.AsyncChannel(server.address)
        client = echo_tw.AsyncEchoClient(channel)
        with LoopThread() as goes:
            passing = tw.AsyncChannel(server.address)
            other = echo_tw.AsyncEchoClient(passing)
            for _ in range(5):
                assert goes.run(other.echo(REQUEST, timeout=5)).message == "hello"
                assert stays.run(client.echo(REQUEST, timeout=5)).message == "hello"
            # Not closed: its loop ends below it.
        with within(1 * SLOW):
            for _ in range(20):
                assert stays.run(client.echo(REQUEST, timeout=5)).message == "hello"
        stays.run(channel.aclose())
        stays.run(passing.aclose())


def test_a_blocked_loop_delays_nobody_else(serve_def):
    """L9: the watching loop hangs in a callback: threads still get their answers."""
    server = serve_def()
    free, blocked = threading.Event(), threading.Event()
    with LoopThread() as loop:
        channel = tw.AsyncChannel(server.address)
        assert loop.run(echo_tw.AsyncEchoClient(channel).echo(REQUEST)).message

        def block():
            blocked.set()
            free.wait(20)

        loop.loop.call_soon_threadsafe(block)
        assert blocked.wait(5)
        with tw.Channel(server.address) as other:
            client = echo_tw.EchoClient(other)
            with within(1 * SLOW):
                for _ in range(20):
                    assert client.echo(REQUEST, timeout=5).message == "hello"
        free.set()
        loop.run(channel.aclose())


def os_threads():
    return len(os.listdir("/proc/self/task"))


def test_5000_futures_cost_no_threads(gate):
    """Handlers parked on a gate; at most two threads more than before."""
    serving = Serving("async")
    try:
        server = serving(gate=gate, max_pending=10_000)
        with tw.Channel(server.address) as channel:
            client = echo_tw.EchoClient(channel)
            assert client.echo.future(REQUEST, timeout=None) is not None
            before = os_threads()
            calls = [
                client.echo.future(echo_pb2.EchoRequest(message=str(i)), timeout=None)
                for i in range(5000)
            ]
            gate.until_entered(5001)
            assert server.in_flight == 5001
            assert os_threads() <= before + 2
            gate.open()
            assert not concurrent.futures.wait(calls, timeout=30).not_done
            assert [c.result().message for c in calls] == [str(i) for i in range(5000)]
    finally:
        serving.close()


def test_5000_tasks(gate):
    serving = Serving("async")
    try:
        server = serving(gate=gate, max_pending=10_000)

        async def main():
            async with tw.AsyncChannel(server.address) as channel:
                client = echo_tw.AsyncEchoClient(channel)
                before = os_threads()
                tasks = [
                    asyncio.create_task(
                        client.echo(echo_pb2.EchoRequest(message=str(i)), timeout=None)
                    )
                    for i in range(5000)
                ]
                await asyncio.to_thread(gate.until_entered, 5000)
                # One for to_thread.
                assert os_threads() <= before + 1
                gate.open()
                answers = await asyncio.gather(*tasks)
                assert [a.message for a in answers] == [str(i) for i in range(5000)]

        asyncio.run(main())
    finally:
        serving.close()


def test_callbacks_of_futures(serve, caplog):
    """They run in the completion thread; what they raise harms nobody."""
    server = serve()
    with tw.Channel(server.address, options=tw.ChannelOptions(timeout=10)) as channel:
        client = echo_tw.EchoClient(channel)
        names, chained = [], threading.Event()

        def bad(future):
            raise ZeroDivisionError

        def worse(future):
            raise SystemExit

        def chain(future):
            names.append(threading.current_thread().name)
            client.echo.future(REQUEST).add_done_callback(lambda _: chained.set())

        client.echo.future(REQUEST).add_done_callback(bad)
        with contextlib.suppress(SystemExit):  # it may be done: then it runs here
            client.echo.future(REQUEST).add_done_callback(worse)
        client.echo.future(REQUEST).add_done_callback(chain)
        assert chained.wait(5)
        assert client.echo.future(REQUEST).result(5).message == "hello"
        assert names[0] in ("tidewire-futures", threading.current_thread().name)
    caplog.clear()


def test_blocking_call_inside_a_callback(serve):
    server = serve()
    with tw.Channel(server.address, options=tw.ChannelOptions(timeout=10)) as channel:
        client = echo_tw.EchoClient(channel)
        answers = []
        done = threading.Event()

        def callback(future):
            answers.append(client.echo(REQUEST).message)
            done.set()

        client.echo.future(REQUEST).add_done_callback(callback)
        assert done.wait(5)
        assert answers == ["hello"]


def test_handlers_that_sleep_run_side_by_side(serve):
    """20 at a time, each 50 ms: not one after the other."""
    server = serve(
        lambda request, ctx: (
            asleep(request, ctx) if serve.is_async else sleeping(request, ctx)
        ),
        threads=20,
    )
    with tw.Channel(server.address, options=tw.ChannelOptions(timeout=30)) as channel:
        client = echo_tw.EchoClient(channel)
        # 3 rounds of 50 ms with threads, 1 on a loop.
        with within(0.6 * SLOW):
            calls = [client.echo.future(REQUEST) for _ in range(60)]
            for call in calls:
                call.result(30)


def sleeping(request, ctx):
    time.sleep(0.05)
    return echo(request, ctx)


async def asleep(request, ctx):
    await asyncio.sleep(0.05)
    return echo(request, ctx)


def test_sleeping_handlers_do_not_hold_up_a_fast_one(serve_def):
    """7 of 8 workers asleep: the fast method answers in a few ms."""
    free = threading.Event()

    def handler(request, ctx):
        if request.message == "slow":
            assert free.wait(30)
        return echo(request, ctx)

    server = serve_def(handler, threads=8)
    with tw.Channel(server.address, options=tw.ChannelOptions(timeout=30)) as channel:
        client = echo_tw.EchoClient(channel)
        slow = [
            client.echo.future(echo_pb2.EchoRequest(message="slow")) for _ in range(7)
        ]
        times = []
        with StallMonitor() as machine:
            for _ in range(50):
                start = time.monotonic_ns()
                assert client.echo(REQUEST).message == "hello"
                times.append((start, time.monotonic_ns()))
        free.set()
        for call in slow:
            call.result(10)
        # The first ones may wake threads and prove the sleepers asleep.
        took = sorted((e - b) / 1e9 - machine.total(b, e) for b, e in times)
        assert took[-3] < 0.02 * SLOW


def test_all_workers_asleep_and_io_goes_on(serve_def):
    """Connects, deadlines and queued requests progress without a worker."""
    free = threading.Event()

    def handler(request, ctx):
        assert free.wait(30)
        return echo(request, ctx)

    server = serve_def(handler, threads=2)
    with tw.Channel(server.address) as channel:
        client = echo_tw.EchoClient(channel)
        stuck = [client.echo.future(REQUEST, timeout=20) for _ in range(2)]
        with tw.Channel(server.address) as second:
            late = echo_tw.EchoClient(second)
            with within(0.2 * SLOW), pytest.raises(tw.DeadlineExceeded):
                late.echo(REQUEST, timeout=0.1)
        eventually(lambda: server.in_flight == 3)
        free.set()
        for call in stuck:
            assert call.result(10).message == "hello"


def test_server_and_client_on_one_loop(gate):
    """A handler calls its own server, on the loop that serves both."""

    async def main():
        inner = {}

        async def handler(request, ctx):
            if request.message == "again":
                return await inner["client"].echo(REQUEST, timeout=5)
            return echo(request, ctx)

        mine = service("async", handler)
        async with tw.Server([mine], listen="127.0.0.1:0") as server:
            channel = tw.AsyncChannel(server.address)
            client = inner["client"] = echo_tw.AsyncEchoClient(channel)
            again = echo_pb2.EchoRequest(message="again")
            for _ in range(20):
                answer = await client.echo(again, timeout=5)
                assert answer.message == "hello"
            await channel.aclose()

    asyncio.run(main())


def test_def_handler_calls_its_own_server(serve_def):
    holder = {}

    def handler(request, ctx):
        if request.message == "again":
            return holder["client"].echo(REQUEST, timeout=5)
        return echo(request, ctx)

    server = serve_def(handler, threads=2)
    with tw.Channel(server.address, options=tw.ChannelOptions(timeout=10)) as channel:
        client = holder["client"] = echo_tw.EchoClient(channel)
        again = echo_pb2.EchoRequest(message="again")
        for _ in range(20):
            assert client.echo(again).message == "hello"


def test_channels_opened_and_closed_all_the_time(serve):
    server = serve()

    def calls(i):
        for _ in range(25):
            with tw.Channel(server.address) as channel:
                client = echo_tw.EchoClient(channel)
                assert client.echo(REQUEST, timeout=10).message == "hello"

    run_threads(8, calls)
    eventually(lambda: server.connections == 0)


def test_every_call_completes_exactly_once(serve):
    """Answers, deadlines, cancellations and a closing channel race."""
    server = serve()
    for _ in range(10):
        ended = []
        with tw.Channel(server.address) as channel:
            client = echo_tw.EchoClient(channel)
            calls = []
            for i in range(200):
                call = client.echo.future(REQUEST, timeout=0.001 * (1 + i % 5))
                call.add_done_callback(ended.append)
                if i % 7 == 0:
                    call.cancel()
                calls.append(call)
        concurrent.futures.wait(calls, timeout=10)
        assert len(ended) == 200
        assert set(ended) == set(calls)
