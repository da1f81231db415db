"""Ctrl-C and other signals: within 100 ms, whatever the main thread waits for."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import tidewire as tw
from generated import ECHO, WHERE, echo_pb2, echo_tw
from harness import SLOW, Gate, LoopThread, echo, eventually, service, within
from tools.stalls import StallMonitor

REQUEST = echo_pb2.EchoRequest(message="hello")
SOON = 0.1 * SLOW


class Interrupt:
    """Sends this process a signal once `ready()` has returned, from a thread or
    from another process."""

    def __init__(self, how, ready=lambda: None, number=signal.SIGINT):
        self.how = how
        self.ready = ready
        self.number = number
        self.sent_at = None

    def __enter__(self):
        if self.how == "process":
            # Starting one takes a while: it waits for the word.
            self._child = subprocess.Popen(
                ["/bin/sh", "-c", f"read go; kill -{int(self.number)} {os.getpid()}"],
                stdin=subprocess.PIPE,
            )
        self._thread = threading.Thread(target=self._send)
        self._thread.start()
        return self

    def _send(self):
        self.ready()
        self.sent_at = time.monotonic()
        if self.how == "process":
            self._child.stdin.write(b"go\n")
            self._child.stdin.close()
            self._child.wait()
        elif self.how == "main":
            signal.pthread_kill(threading.main_thread().ident, self.number)
        else:
            os.kill(os.getpid(), self.number)

    def __exit__(self, *_):
        self._thread.join()


@pytest.fixture(params=["kill", "main", "process"])
def how(request):
    """os.kill (the kernel chooses a thread), pthread_kill, another process."""
    return request.param


@pytest.fixture(autouse=True)
def _python_handles_sigint():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def main_thread_in(function):
    """Waits until the main thread is inside of it: (file, name)."""
    main = threading.main_thread().ident

    def inside():
        frame = sys._current_frames()[main]
        while frame is not None:
            code = frame.f_code
            if (os.path.basename(code.co_filename), code.co_name) == function:
                return True
            frame = frame.f_back
        return False

    eventually(inside, f"the main thread is in {function}")


def interrupted(how, ready, function):
    """Seconds from the signal to KeyboardInterrupt, without the machine's
    stalls."""
    with StallMonitor() as machine, Interrupt(how, ready) as interrupt:
        with pytest.raises(KeyboardInterrupt):
            function()
        now = time.monotonic()
    sent = interrupt.sent_at
    return now - sent - machine.total(int(sent * 1e9), int(now * 1e9))


@pytest.mark.parametrize("timeout", [None, 30])
def test_blocking_call(serve, gate, how, timeout):
    server = serve(gate=gate)
    with tw.Channel(server.address) as channel:
        client = echo_tw.EchoClient(channel)
        client.echo  # noqa: B018
        took = interrupted(
            how, gate.until_entered, lambda: client.echo(REQUEST, timeout=timeout)
        )
        assert took < SOON
        # The call has ended; the channel serves on.
        gate.open()
        assert client.echo(REQUEST, timeout=5).message == "hello"


def test_blocking_call_with_other_callers(serve_def, gate, how):
    """Another thread polls, so that the main thread sleeps on a futex."""
    server = serve_def(gate=gate, threads=16)
    with tw.Channel(server.address, options=tw.ChannelOptions(timeout=60)) as channel:
        client = echo_tw.EchoClient(channel)
        others = [
            threading.Thread(target=client.echo, args=(REQUEST,)) for _ in range(4)
        ]
        for thread in others:
            thread.start()
        gate.until_entered(4)
        took = interrupted(
            how, lambda: gate.until_entered(5), lambda: client.echo(REQUEST)
        )
        assert took < SOON
        gate.open()
        for thread in others:
            thread.join(10)


def test_blocking_call_beside_an_asyncio_loop(serve_def, gate, how):
    """A loop watches the epoll set, so that the main thread does not poll."""
    server = serve_def(gate=gate)
    with LoopThread() as loop, tw.Channel(server.address) as channel:
        watching = tw.AsyncChannel(server.address)
        other = loop.start(echo_tw.AsyncEchoClient(watching).echo(REQUEST, timeout=60))
        gate.until_entered()
        took = interrupted(
            how,
            lambda: gate.until_entered(2),
            lambda: echo_tw.EchoClient(channel).echo(REQUEST, timeout=60),
        )
        assert took < SOON
        gate.open()
        assert other.result(10).message == "hello"
        loop.run(watching.aclose())


def test_call_response(serve_def, gate, how):
    server = serve_def(gate=gate)
    with tw.Channel(server.address) as channel:
        client = echo_tw.EchoClient(channel)
        took = interrupted(
            how,
            gate.until_entered,
            lambda: client.echo.call(REQUEST, timeout=60, attachment=bytes(100_000)),
        )
        assert took < SOON


def test_future_result(serve_def, gate, how):
    server = serve_def(gate=gate)
    with tw.Channel(server.address) as channel:
        future = echo_tw.EchoClient(channel).echo.future(REQUEST, timeout=60)
        gate.until_entered()

        def waiting():
            main_thread_in(("_base.py", "result"))

        took = interrupted(how, waiting, future.result)
        assert took < SOON
        gate.open()
        assert future.result(5).message == "hello"


def test_server_wait(serve, how):
    server = serve()

    def waiting():
        main_thread_in(("server.py", "wait"))

    assert interrupted(how, waiting, server.wait) < SOON


def test_server_stop_while_draining(serve_def, gate, how):
    server = serve_def(gate=gate)
    with tw.Channel(server.address) as channel:
        client = echo_tw.EchoClient(channel)
        call = client.echo.future(REQUEST, timeout=60)
        gate.until_entered()

        def draining():
            main_thread_in(("server.py", "_drain"))

        assert interrupted(how, draining, lambda: server.stop(60)) < SOON
        gate.open()
        assert call.result(5).message == "hello"


def test_while_connecting(how, black_hole):
    """(A server that never accepts.)"""
    options = tw.ChannelOptions(connect_timeout=None, timeout=None)
    with tw.Channel(black_hole, options=options) as channel:
        client = echo_tw.EchoClient(channel)
        pause = threading.Event()
        took = interrupted(how, lambda: pause.wait(0.05), lambda: client.echo(REQUEST))
        assert took < SOON


def test_asyncio_run(serve, gate, how):
    """asyncio turns Ctrl-C into a cancelled main task."""
    server = serve(gate=gate)

    cancelled_at = []

    async def main():
        async with tw.AsyncChannel(server.address) as channel:
            try:
                await echo_tw.AsyncEchoClient(channel).echo(REQUEST, timeout=None)
            except asyncio.CancelledError:
                cancelled_at.append(time.monotonic())
                raise

    interrupt = Interrupt(how, gate.until_entered)
    with StallMonitor() as machine, interrupt, pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    # Here asyncio's own handler acts, on a loop that shares two cores.
    took = cancelled_at[0] - interrupt.sent_at
    assert took < 5 * SOON + machine.total(int(interrupt.sent_at * 1e9))
    gate.open()


def test_an_answer_that_came_with_the_interrupt_is_given_back(serve_def):
    """The handler of the signal calls on the same connection: when that answer
    is here, so is the interrupted call's, in a block of its own."""
    gate = Gate()

    def handler(request, ctx):
        if request.message == "first":
            gate.wait()
            ctx.reply_attachment = bytes(100_000)
        return echo(request, ctx)

    server = serve_def(handler, threads=2)
    with tw.Channel(server.address, options=tw.ChannelOptions(timeout=30)) as channel:
        client = echo_tw.EchoClient(channel)

        def on_signal(number, frame):
            gate.open()
            eventually(lambda: server.in_flight == 0)
            client.echo(REQUEST)
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, on_signal)
        first = echo_pb2.EchoRequest(message="first")
        with Interrupt("main", gate.until_entered), pytest.raises(KeyboardInterrupt):
            client.echo.call(first)
        assert client.echo(REQUEST).message == "hello"


def test_signals_all_the_time(serve):
    """Handlers that return: no call is disturbed."""
    server = serve()
    hits = []
    signal.signal(signal.SIGINT, lambda number, frame: hits.append(1))
    over = threading.Event()

    def bombard():
        while not over.wait(0.001):
            os.kill(os.getpid(), signal.SIGINT)

    with tw.Channel(server.address, options=tw.ChannelOptions(timeout=30)) as channel:
        client = echo_tw.EchoClient(channel)
        thread = threading.Thread(target=bombard)
        thread.start()
        try:
            start = time.monotonic()
            count = 0
            while time.monotonic() - start < 0.3:
                assert client.echo(REQUEST).message == "hello"
                count += 1
        finally:
            over.set()
            thread.join()
    assert hits
    assert count > 20


def test_interrupts_at_random_leave_nothing_behind(serve_def):
    """KeyboardInterrupt at any point of a call (the leak check looks)."""
    server = serve_def()
    over = threading.Event()

    class Interrupted(Exception):
        pass

    armed = []

    def on_signal(number, frame):
        # Only inside of a call, and not while one is cleaned up.
        if armed and frame.f_code.co_name in ("__call__", "decoded", "deadline_ns"):
            armed.clear()
            raise Interrupted

    signal.signal(signal.SIGINT, on_signal)

    def bombard():
        while not over.wait(0.0003):
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=bombard)
    interrupted = 0
    with tw.Channel(server.address, options=tw.ChannelOptions(timeout=30)) as channel:
        client = echo_tw.EchoClient(channel)
        client.echo(REQUEST)
        thread.start()
        try:
            start = time.monotonic()
            while time.monotonic() - start < 1:
                armed.append(1)
                try:
                    client.echo(REQUEST)
                except Interrupted:
                    interrupted += 1
                armed.clear()
        finally:
            signal.signal(signal.SIGINT, lambda number, frame: None)
            over.set()
            thread.join()
        assert client.echo(REQUEST).message == "hello"
    assert interrupted > 5


def test_signal_handler_that_calls_while_a_call_waits(serve, gate, how):
    def handler(request, ctx):
        return echo(request, ctx)

    slow, fast = serve(handler, gate=gate), serve(handler)
    answers = []
    with tw.Channel(slow.address) as one, tw.Channel(fast.address) as other:
        waiting, client = echo_tw.EchoClient(one), echo_tw.EchoClient(other)

        def on_signal(number, frame):
            answers.append(client.echo(REQUEST, timeout=5).message)
            gate.open()

        signal.signal(signal.SIGINT, on_signal)
        with Interrupt(how, gate.until_entered):
            assert waiting.echo(REQUEST, timeout=30).message == "hello"
        assert answers == ["hello"]


def test_signal_handler_that_calls_on_the_same_channel(serve_def, gate):
    """While the outer call waits, three signals nest calls of their own."""
    server = serve_def(
        lambda request, ctx: (
            gate.wait() if request.message == "outer" else None,
            echo(request, ctx),
        )[1],
        threads=8,
    )
    depth = []
    with tw.Channel(server.address, options=tw.ChannelOptions(timeout=30)) as channel:
        client = echo_tw.EchoClient(channel)

        def on_signal(number, frame):
            depth.append(1)
            if len(depth) < 3:
                signal.raise_signal(signal.SIGINT)
            message = f"inner {len(depth)}"
            answer = client.echo(echo_pb2.EchoRequest(message=message))
            assert answer.message == message
            gate.open()

        signal.signal(signal.SIGINT, on_signal)
        outer = echo_pb2.EchoRequest(message="outer")
        with Interrupt("kill", gate.until_entered):
            assert client.echo(outer).message == "outer"
        assert len(depth) == 3


# ---- run(): in processes of their own

SERVER = [sys.executable, str(ECHO / "server.py"), "--listen", "127.0.0.1:0"]


@pytest.fixture
def start():
    """start(*arguments) or start(script=...): (process, address)."""
    processes = []

    def start(*arguments, script=None):
        command = [sys.executable, "-c", script] if script else [*SERVER, *arguments]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(WHERE)},
        )
        processes.append(process)
        line = process.stdout.readline()
        assert line.startswith("listening on "), line + process.stderr.read()
        eventually(lambda: catches(process, signal.SIGTERM), "run() has begun")
        return process, line.split()[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def status_of(process):
    with open(f"/proc/{process.pid}/status") as status:
        return dict(line.split(":", 1) for line in status)


def catches(process, number):
    return int(status_of(process)["SigCgt"], 16) >> (number - 1) & 1


def ended(process, patience=5):
    """(status, stdout, stderr)"""
    out, err = process.communicate(timeout=patience * SLOW)
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", [[], ["--async"]], ids=["def", "async"])
def test_run_ends_with_0(start, number, kind):
    process, address = start(*kind)
    with tw.Channel(address) as channel:
        assert echo_tw.EchoClient(channel).echo(REQUEST, timeout=5).message == "hello"
    with within(2 * SLOW):
        process.send_signal(number)
        status, _, err = ended(process)
    assert (status, err) == (0, "")


@pytest.mark.parametrize("kind", [[], ["--async"]], ids=["def", "async"])
def test_run_finishes_calls_under_way(start, kind):
    process, address = start(*kind)
    with tw.Channel(address, options=tw.ChannelOptions(timeout=20)) as channel:
        client = echo_tw.EchoClient(channel)
        sleepy = echo_pb2.EchoRequest(message="slow", sleep_ms=500)
        call = client.echo.future(sleepy)
        client.echo(REQUEST)  # behind it: it has arrived
        process.send_signal(signal.SIGTERM)
        assert call.result(10).message == "slow"
    status, _, err = ended(process)
    assert (status, err) == (0, "")


def test_second_signal_ends_the_drain(start):
    process, address = start()
    with tw.Channel(address, options=tw.ChannelOptions(timeout=60)) as channel:
        client = echo_tw.EchoClient(channel)
        call = client.echo.future(echo_pb2.EchoRequest(message="slow", sleep_ms=30_000))
        client.echo(REQUEST)
        process.send_signal(signal.SIGTERM)

        def told():
            try:
                client.echo(REQUEST, timeout=1)
            except tw.Unavailable:
                return True
            return False

        eventually(told, "it is draining")
        with within(2 * SLOW):
            process.send_signal(signal.SIGTERM)
            with pytest.raises(tw.Unavailable):
                call.result(5)
            status, _, _ = ended(process)
        assert status == 0


RUN = """
import signal, threading
from echo_stubs import echo_tw
import tidewire as tw
server = tw.Server([echo_tw.EchoService], listen="127.0.0.1:0")
print("listening on", server, flush=True)
{before}
server.run()
print("run returned", flush=True)
"""


@pytest.fixture
def run_script(start):
    return lambda before="": start(script=RUN.format(before=before))[0]


def test_run_returns_when_a_thread_stops_the_server(run_script):
    process = run_script("threading.Timer(0.2, lambda: server.stop()).start()")
    assert ended(process) == (0, "run returned\n", "")


def test_run_puts_signal_handlers_back(run_script):
    """P4."""
    process = run_script(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "import atexit;"
        "atexit.register("
        "lambda: print(signal.getsignal(signal.SIGTERM) is signal.SIG_IGN))"
    )
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (0, "run returned\nTrue\n", "")


def test_run_of_a_started_server(run_script):
    process = run_script("server.start()")
    process.send_signal(signal.SIGINT)
    assert ended(process) == (0, "run returned\n", "")


def test_two_signals_at_once(run_script):
    """Both are pending when the process goes on, at whatever point it is."""
    for i in range(10):
        process = run_script("server.start()" if i % 2 else "")
        process.send_signal(signal.SIGSTOP)
        eventually(lambda: "T" in status_of(process)["State"])  # noqa: B023
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        assert ended(process) == (0, "run returned\n", "")


@pytest.mark.parametrize("name", ["tidewire-worker-1", "tidewire-admin"])
@pytest.mark.parametrize("when", ["before it begins", "once it has begun"])
def test_a_signal_while_a_thread_is_started_ends_the_start(monkeypatch, name, when):
    """It is what start() raises, and nothing of the server is left."""
    start = threading.Thread.start

    def interrupted(thread):
        if thread.name == name and when == "before it begins":
            raise KeyboardInterrupt
        start(thread)
        if thread.name == name:
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    options = tw.ServerOptions(threads=3, admin="127.0.0.1:0")
    server = tw.Server([service("def")], listen="127.0.0.1:0", options=options)
    with pytest.raises(KeyboardInterrupt):
        server.start()
    assert server.wait(0)
    server.stop()
