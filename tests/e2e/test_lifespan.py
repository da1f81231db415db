"""What is open as long as a server runs, and what its threads keep."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import Gate, LoopThread, echo, eventually, raw_request, service

REQUEST = echo_pb2.EchoRequest(message="hello")


class Life:
    """A lifespan that notes what happens; async or not."""

    def __init__(self, is_async, fail_in=None, gate=None):
        self.notes, self.threads = [], []
        self.is_async, self.fail_in, self.gate = is_async, fail_in, gate

    def _step(self, what):
        self.notes.append(what)
        self.threads.append(threading.get_ident())
        if self.fail_in == what:
            raise RuntimeError(f"{what} failed")

    def __call__(self):
        return self._async() if self.is_async else self._plain()

    @contextlib.contextmanager
    def _plain(self):
        self._step("enter")
        yield self.notes
        self._step("leave")

    @contextlib.asynccontextmanager
    async def _async(self):
        # What a task begins it must end: the same task enters and leaves.
        async with asyncio.timeout(60):
            await asyncio.sleep(0)
            self._step("enter")
            yield self.notes
            await asyncio.sleep(0)
            self._step("leave")


class Started:
    """Starts and stops servers of every kind with a lifespan."""

    def __init__(self, kind):
        self.kind = kind
        self._loop = LoopThread("test-server-loop") if kind == "on-loop" else None

    def start(self, life, handler=echo, **more):
        server = tw.Server(
            [service(self.kind, handler)], listen="127.0.0.1:0", lifespan=life, **more
        )
        if self._loop is not None:
            self._loop.run(server.__aenter__())
        else:
            server.start()
        return server

    def stop(self, server, drain=5.0):
        if self._loop is not None:
            self._loop.run(server.astop(drain))
        else:
            server.stop(drain)

    def close(self):
        if self._loop is not None:
            self._loop.close()


@pytest.fixture(params=["def", "async", "on-loop"])
def started(request):
    one = Started(request.param)
    yield one
    one.close()


plain_or_async = pytest.mark.parametrize("is_async", [False, True], ids=["cm", "acm"])


@plain_or_async
def test_handlers_see_what_the_lifespan_yields(face, started, is_async):
    seen = []

    def handler(request, ctx):
        seen.append(ctx.state)
        return echo(request, ctx)

    life = Life(is_async)
    server = started.start(life, handler)
    assert life.notes == ["enter"]
    assert server.state is life.notes
    client = face.client(echo_tw, face.channel(server.address))
    face.call(client, "echo", REQUEST, timeout=5)
    assert seen == [life.notes]
    assert life.notes == ["enter"]
    started.stop(server)
    assert life.notes == ["enter", "leave"]
    started.stop(server)
    assert life.notes == ["enter", "leave"]


@plain_or_async
def test_it_is_entered_before_the_first_connection(started, is_async):
    """And with an address in use nothing is left open."""
    life = Life(is_async)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = tw.Server([service(started.kind)], listen=address, lifespan=life)
        with pytest.raises(OSError, match="cannot listen"):
            if started._loop is not None:
                started._loop.run(server.__aenter__())
            else:
                server.start()
    assert life.notes == ["enter", "leave"]


@plain_or_async
def test_it_is_left_after_the_last_call(face, started, is_async):
    gate, order = Gate(), []

    def plain(request, ctx):
        gate.wait()
        order.append(list(ctx.state))
        return echo(request, ctx)

    async def awaiting(request, ctx):
        await gate.passed()
        order.append(list(ctx.state))
        return echo(request, ctx)

    def handler(request, ctx):
        return (plain if started.kind == "def" else awaiting)(request, ctx)

    life = Life(is_async)
    server = started.start(life, handler)
    client = face.client(echo_tw, face.channel(server.address))
    call = face.start(client, "echo", REQUEST, timeout=20)
    gate.until_entered()
    stopping = threading.Thread(target=started.stop, args=(server, 20.0))
    stopping.start()
    eventually(lambda: server._state == "stopping")
    gate.open()
    assert call.result(20).message == "hello"
    stopping.join(20)
    assert not stopping.is_alive()
    assert order == [["enter"]]
    assert life.notes == ["enter", "leave"]


@plain_or_async
def test_a_start_that_fails_says_why(started, is_async):
    life = Life(is_async, fail_in="enter")
    server = tw.Server([service(started.kind)], listen="127.0.0.1:0", lifespan=life)
    with pytest.raises(RuntimeError, match="enter failed") as caught:
        if started._loop is not None:
            started._loop.run(server.__aenter__())
        else:
            server.start()
    assert any("lifespan was entered" in note for note in caught.value.__notes__)
    assert life.notes == ["enter"]
    with pytest.raises(tw.ClosedError):
        assert server.address


@plain_or_async
def test_an_end_that_fails_is_raised_by_stop(started, is_async):
    """Everything else is closed all the same."""
    life = Life(is_async, fail_in="leave")
    server = started.start(life)
    with pytest.raises(RuntimeError, match="leave failed") as caught:
        started.stop(server)
    assert any("lifespan was left" in note for note in caught.value.__notes__)
    assert server.wait(0)
    started.stop(server)


@pytest.mark.parametrize("started", ["async", "on-loop"], indirect=True)
def test_an_async_one_lives_on_the_handlers_loop(face, started):
    loops = []

    @contextlib.asynccontextmanager
    async def life():
        loops.append(asyncio.get_running_loop())
        yield

    async def handler(request, ctx):
        loops.append(asyncio.get_running_loop())
        return echo(request, ctx)

    server = started.start(life, handler)
    client = face.client(echo_tw, face.channel(server.address))
    face.call(client, "echo", REQUEST, timeout=5)
    started.stop(server)
    assert loops[0] is loops[1]


def test_a_stop_without_patience_leaves_it_too(started):
    gate = Gate()
    life = Life(True)

    def plain(request, ctx):
        ctx.on_cancel(gate.open)
        gate.wait()
        return echo(request, ctx)

    async def awaiting(request, ctx):
        await gate.passed()
        return echo(request, ctx)

    server = started.start(life, plain if started.kind == "def" else awaiting)
    with raw_request(server):
        gate.until_entered()
        started.stop(server, 0.0)
    assert life.notes == ["enter", "leave"]
    gate.open()


@plain_or_async
@pytest.mark.parametrize("blocking", [False, True], ids=["await", "block"])
def test_a_handler_that_stops_its_server_ends_the_lifespan(started, is_async, blocking):
    """Also one that blocks the loop on which the lifespan is."""
    stopped = threading.Event()

    async def stop(request, ctx):
        if blocking:
            server.stop(0.0)
        else:
            await server.astop(0.0)
        stopped.set()
        return echo(request, ctx)

    def handler(request, ctx):
        if started.kind != "def":
            return stop(request, ctx)
        server.stop(0.0)
        stopped.set()
        return echo(request, ctx)

    life = Life(is_async)
    server = started.start(life, handler)
    with raw_request(server):
        assert stopped.wait(30)
        assert server.wait(30)
    eventually(lambda: life.notes == ["enter", "leave"])


def test_a_server_that_was_never_started_enters_nothing():
    life = Life(False)
    tw.Server([service("def")], listen="127.0.0.1:0", lifespan=life).stop()
    assert life.notes == []


def test_without_a_lifespan_there_is_no_state(face, started):
    seen = []

    def handler(request, ctx):
        seen.append((ctx.state, ctx.thread_state))
        return echo(request, ctx)

    server = started.start(None, handler)
    client = face.client(echo_tw, face.channel(server.address))
    face.call(client, "echo", REQUEST, timeout=5)
    started.stop(server)
    assert seen == [(None, None)]
    assert server.state is None


@pytest.mark.parametrize("kind", ["lifespan", "thread_state"])
def test_what_is_no_function_is_refused(kind):
    with pytest.raises(TypeError, match=f"{kind} is a int; allowed: a function"):
        tw.Server([service("def")], listen="127.0.0.1:0", **{kind: 5})


def test_a_function_that_gives_no_context_manager():
    server = tw.Server([service("def")], listen="127.0.0.1:0", lifespan=lambda: 5)
    with pytest.raises(TypeError, match="lifespan gave a int; allowed: a context"):
        server.start()


@plain_or_async
def test_run_ends_with_status_1(is_async):
    """And the reason is the last thing on stderr."""
    code = f"""
import contextlib
import tidewire as tw

@contextlib.{"asynccontextmanager" if is_async else "contextmanager"}
{"async " * is_async}def life():
    raise ConnectionError("no database at db:5432")
    yield

class Nothing(tw.Service):
    __tidewire_methods__ = {{}}

tw.Server([Nothing()], listen="127.0.0.1:0", lifespan=life).run()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-2:]
    assert last == [
        "ConnectionError: no database at db:5432",
        "(raised while the server's lifespan was entered)",
    ]


# ---- of each thread


def test_each_thread_has_its_own(serve_def):
    """Made when first asked for, and once."""
    barrier, made, seen = threading.Barrier(3), [], []

    def make():
        made.append(threading.get_ident())
        return object()

    def handler(request, ctx):
        first = ctx.thread_state
        assert ctx.thread_state is first
        barrier.wait(20)
        seen.append((threading.get_ident(), first))
        return echo(request, ctx)

    server = tw.Server(
        [service("def", handler)],
        listen="127.0.0.1:0",
        options=tw.ServerOptions(threads=3),
        thread_state=make,
    )
    with server, tw.Channel(server.address) as channel:
        client = echo_tw.EchoClient(channel)
        assert made == []
        for _ in range(2):
            calls = [client.echo.future(REQUEST, timeout=20) for _ in range(3)]
            for call in calls:
                call.result(20)
    assert len(made) == len(set(made)) == 3
    assert len(set(seen)) == 3
    assert len({state for _, state in seen}) == 3
