"""A process with several loops keeps every promise of one with a single loop.
The number is the process's, so each test has a process of its own; TW_LOOPS=3
in the environment gives the whole suite three."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from generated import WHERE
from harness import SLOW

INTEROP = Path(__file__).resolve().parents[1] / "interop"

# Nine connections: on every loop there are some from either side.
PRELUDE = """
import asyncio, logging, os, socket, struct, sys, threading
from contextlib import ExitStack
from pathlib import Path

import tidewire as tw
from echo_stubs import echo_pb2, echo_tw

import wire

logging.getLogger("tidewire.core").addHandler(logging.NullHandler())

REQUEST = echo_pb2.EchoRequest(message="hello")
OPTIONS = tw.ServerOptions(loops=3, threads=4)
PATIENT = tw.ChannelOptions(timeout=60)
gate, entered = threading.Event(), threading.Semaphore(0)

class Echo(echo_tw.EchoService):
    def echo(self, request, ctx):
        if request.message == "gate":
            entered.release()
            gate.wait()
        if request.message == "large":
            return echo_pb2.EchoResponse(message="x" * 100_000)
        if ctx.attachment:
            ctx.reply_attachment = ctx.attachment
        return echo_pb2.EchoResponse(message=request.message)

cancelled = threading.Semaphore(0)

class AsyncEcho(echo_tw.EchoService):
    async def echo(self, request, ctx):
        if request.message == "gate":
            entered.release()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.release()
                raise
        return echo_pb2.EchoResponse(message=request.message)

def serve(service=Echo):
    return tw.Server([service], listen="127.0.0.1:0", options=OPTIONS)

def clients(stack, server, count=9):
    return [
        echo_tw.EchoClient(
            stack.enter_context(tw.Channel(server.address, options=PATIENT))
        )
        for _ in range(count)
    ]

def is_echo(client):
    return client.echo(REQUEST).message == "hello"

def side_threads():
    names = [p.read_text() for p in Path("/proc/self/task").glob("*/comm")]
    return sorted(n.strip() for n in names if n.startswith("tidewire-"))
"""

SCRIPTS = {
    "loops have threads": """
        assert side_threads() == []
        with serve() as server:
            assert side_threads() == ["tidewire-1", "tidewire-2"]
            with tw.Channel(server.address) as channel:
                assert is_echo(echo_tw.EchoClient(channel))
        with serve():
            pass
    """,
    "the number stays": """
        with tw.Server([Echo], listen="127.0.0.1:0") as server:
            try:
                serve().start()
            except tw.OptionError as error:
                assert "ServerOptions.loops is 3" in str(error), error
            else:
                raise AssertionError("three loops, after a listener")
            assert side_threads() == []
            with tw.Channel(server.address) as channel:
                assert is_echo(echo_tw.EchoClient(channel))
    """,
    "calls": """
        with serve() as server, ExitStack() as stack:
            ours, wrong = clients(stack, server), []
            def call(client, number):
                for i in range(200):
                    data = b"%d %d" % (number, i)
                    got = client.echo.call(REQUEST, attachment=data)
                    if bytes(got.attachment) != data:
                        wrong.append((data, got))
            threads = [
                threading.Thread(target=call, args=(client, n))
                for n, client in enumerate(ours)
            ]
            for thread in threads:
                thread.start()
            futures = [c.echo.future(REQUEST) for c in ours for _ in range(100)]
            assert all(f.result().message == "hello" for f in futures)
            for thread in threads:
                thread.join()
            assert not wrong
    """,
    "calls of asyncio": """
        async def main():
            async with AsyncExitStack() as stack:
                server = await stack.enter_async_context(serve(AsyncEcho))
                channels = [
                    await stack.enter_async_context(
                        tw.AsyncChannel(server.address, options=PATIENT)
                    )
                    for _ in range(9)
                ]
                ours = [echo_tw.AsyncEchoClient(c) for c in channels]
                for _ in range(50):
                    got = await asyncio.gather(*(c.echo(REQUEST) for c in ours * 4))
                    assert all(one.message == "hello" for one in got)
        from contextlib import AsyncExitStack
        asyncio.run(main())
    """,
    "deadlines": """
        with serve() as server, ExitStack() as stack:
            ours = clients(stack, server)
            assert all(is_echo(client) for client in ours)
            # Four find a worker, the others wait in the queue.
            for client in ours:
                for timeout in (0.001, 0.05):
                    request = echo_pb2.EchoRequest(message="gate")
                    try:
                        client.echo(request, timeout=timeout)
                    except tw.DeadlineExceeded as error:
                        assert error.elapsed >= timeout - 0.001
                    else:
                        raise AssertionError("no deadline")
                future = client.echo.future(request, timeout=0.05)
                assert isinstance(future.exception(), tw.DeadlineExceeded)
            gate.set()
            assert all(is_echo(client) for client in ours)
    """,
    "cancellation by the caller": """
        with serve() as server, ExitStack() as stack:
            ours = clients(stack, server, 4)
            request = echo_pb2.EchoRequest(message="gate")
            futures = [client.echo.future(request, timeout=None) for client in ours]
            for _ in futures:
                entered.acquire()
            for future in futures:
                assert future.cancel() and future.cancelled()
            gate.set()
            assert all(is_echo(client) for client in ours)
    """,
    "cancellation by a peer that goes": """
        with serve(AsyncEcho) as server:
            host, port = server.address.rsplit(":", 1)
            socks = [socket.create_connection((host, int(port))) for _ in range(9)]
            for sock in socks:
                sock.sendall(wire.echo_request("gate"))
            for sock in socks:
                entered.acquire()
            for sock in socks:
                sock.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                sock.close()
            for sock in socks:
                cancelled.acquire()
    """,
    "slow readers": """
        LARGE = 500
        with serve() as server, ExitStack() as stack:
            host, port = server.address.rsplit(":", 1)
            socks = [socket.create_connection((host, int(port))) for _ in range(3)]
            # Answers for 50 MB each, unread: far more than the kernel takes.
            for sock in socks:
                sock.sendall(
                    b"".join(wire.echo_request("large", id=i) for i in range(LARGE))
                )
            for client in clients(stack, server):
                assert all(is_echo(client) for _ in range(20))
            for sock in socks:
                frames = wire.read_frames(sock, LARGE)
                ids = sorted(frame.meta.correlation_id for frame in frames)
                assert ids == list(range(LARGE))
                sock.close()
    """,
    "fork": """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        with serve() as server, ExitStack() as stack:
            ours = clients(stack, server)
            assert all(is_echo(client) for client in ours)
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    assert side_threads() == []
                    assert all(is_echo(client) for client in ours)
                    assert side_threads() == ["tidewire-1", "tidewire-2"]
                    with serve() as mine, tw.Channel(mine.address) as channel:
                        assert is_echo(echo_tw.EchoClient(channel))
                    status = 0
                finally:
                    os._exit(status)
            assert all(is_echo(client) for client in ours for _ in range(20))
            _, status = os.waitpid(pid, 0)
            assert status == 0, status
            assert all(is_echo(client) for client in ours)
    """,
    "stop under load": """
        with ExitStack() as stack:
            server = serve().start()
            ours, done = clients(stack, server), threading.Semaphore(0)
            good = [0] * len(ours)
            def call(client, number):
                try:
                    while True:
                        assert is_echo(client)
                        good[number] += 1
                        done.release()
                except (tw.RpcError, tw.ClosedError):
                    pass
            threads = [
                threading.Thread(target=call, args=(client, n))
                for n, client in enumerate(ours)
            ]
            for thread in threads:
                thread.start()
            for _ in range(500):
                done.acquire()
            server.stop()
            for thread in threads:
                thread.join()
            assert all(good) and server.in_flight == 0
    """,
    "exit with everything open": """
        server = serve().start()
        ours = clients(ExitStack(), server)
        assert all(is_echo(client) for client in ours)
        held = ours[0].echo.future(echo_pb2.EchoRequest(message="gate"))
        entered.acquire()
        gate.set()
    """,
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_with_three_loops(name: str) -> None:
    body = PRELUDE + textwrap.dedent(SCRIPTS[name])
    paths = f"import sys; sys.path[:0] = [{str(WHERE)!r}, {str(INTEROP)!r}]\n"
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", paths + body],
        capture_output=True,
        text=True,
        timeout=50 * SLOW,
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
