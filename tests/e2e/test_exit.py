"""The interpreter ends in any state: within 5 s, with status 0, silently."""

import os
import re
import subprocess
import sys

import pytest
from generated import WHERE
from harness import SLOW
from tools.stalls import watching

PRELUDE = """
import asyncio, sys, threading, time
import tidewire as tw
from echo_stubs import echo_pb2, echo_tw

REQUEST = echo_pb2.EchoRequest(message="hello")

class Echo(echo_tw.EchoService):
    def echo(self, request, ctx):
        if request.sleep_ms:
            time.sleep(request.sleep_ms / 1000)
        return echo_pb2.EchoResponse(message=request.message)

class AsyncEcho(echo_tw.EchoService):
    async def echo(self, request, ctx):
        await asyncio.sleep(request.sleep_ms / 1000)
        return echo_pb2.EchoResponse(message=request.message)

SLEEPY = echo_pb2.EchoRequest(message="late", sleep_ms=60_000)
FOREVER = tw.ChannelOptions(timeout=None)

def serve(service=Echo, **options):
    options = tw.ServerOptions(threads=2, **options)
    return tw.Server([service], listen="127.0.0.1:0", options=options).start()

def until(holds):
    while not holds():
        time.sleep(0.001)
"""

SCRIPTS = {
    "import only": "",
    "everything left open": """
        server, other = serve(), serve(AsyncEcho, admin="127.0.0.1:0")
        channel = tw.Channel(server.address)
        client = echo_tw.EchoClient(channel)
        assert client.echo(REQUEST).message == "hello"
        assert client.echo.future(REQUEST).result(5).message == "hello"
        response = client.echo.call(REQUEST, attachment=bytes(100_000))
        second = tw.Channel(other.address)
        assert echo_tw.EchoClient(second).echo(REQUEST).message == "hello"
    """,
    # The server goes before the channel, whose log then says so.
    "in a function": """
        import logging
        logging.getLogger("tidewire.core").addHandler(logging.NullHandler())
        def main():
            server = serve()
            client = echo_tw.EchoClient(tw.Channel(server.address))
            assert client.echo(REQUEST).message == "hello"
            sys.exit()
        main()
    """,
    "everything closed": """
        with tw.Server([Echo], listen="127.0.0.1:0") as server:
            channel = tw.Channel(server.address)
            assert echo_tw.EchoClient(channel).echo(REQUEST).message == "hello"
            channel.close()
    """,
    "a call of a daemon thread under way": """
        server = serve()
        client = echo_tw.EchoClient(tw.Channel(server.address, options=FOREVER))
        def call():
            try:
                client.echo(SLEEPY)
            except tw.Cancelled:
                pass
        threading.Thread(target=call, daemon=True).start()
        until(lambda: server.in_flight)
    """,
    "a call of another thread under way": """
        server = serve()
        client = echo_tw.EchoClient(tw.Channel(server.address, options=FOREVER))
        def call():
            try:
                client.echo(SLEEPY)
            except tw.Cancelled:
                pass
        threading.Thread(target=call).start()
        until(lambda: server.in_flight)
    """,
    "a thread that waits for a future": """
        server = serve()
        client = echo_tw.EchoClient(tw.Channel(server.address, options=FOREVER))
        future = client.echo.future(SLEEPY)
        def wait():
            try:
                future.result()
            except (tw.RpcError, tw.ClosedError):
                pass
        threading.Thread(target=wait).start()
        until(lambda: server.in_flight)
    """,
    "futures that nobody waits for": """
        server = serve()
        client = echo_tw.EchoClient(tw.Channel(server.address, options=FOREVER))
        futures = [client.echo.future(SLEEPY) for _ in range(100)]
        until(lambda: server.in_flight > 1)
    """,
    "a blocked handler": """
        server = serve()
        client = echo_tw.EchoClient(tw.Channel(server.address))
        try:
            client.echo(SLEEPY, timeout=0.1)
        except tw.DeadlineExceeded:
            pass
        assert server.in_flight
    """,
    "an async handler that waits": """
        server = serve(AsyncEcho)
        client = echo_tw.EchoClient(tw.Channel(server.address))
        try:
            client.echo(SLEEPY, timeout=0.1)
        except tw.DeadlineExceeded:
            pass
        assert server.in_flight
    """,
    "an async handler that blocks its loop": """
        class Blocking(echo_tw.EchoService):
            async def echo(self, request, ctx):
                time.sleep(60)
        server = serve(Blocking)
        client = echo_tw.EchoClient(tw.Channel(server.address))
        try:
            client.echo(SLEEPY, timeout=0.1)
        except tw.DeadlineExceeded:
            pass
    """,
    "a call under way in a loop of another thread": """
        server = serve()
        def run():
            async def main():
                channel = tw.AsyncChannel(server.address, options=FOREVER)
                try:
                    await echo_tw.AsyncEchoClient(channel).echo(SLEEPY)
                except tw.Cancelled:
                    pass
                await channel.aclose()
            asyncio.run(main())
        threading.Thread(target=run).start()
        until(lambda: server.in_flight)
    """,
    "a loop in a daemon thread": """
        server = serve()
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        async def call():
            channel = tw.AsyncChannel(server.address, options=FOREVER)
            await echo_tw.AsyncEchoClient(channel).echo(SLEEPY)
        call = asyncio.run_coroutine_threadsafe(call(), loop)
        until(lambda: server.in_flight)
    """,
    "a server on a loop that was left": """
        async def main():
            server = tw.Server([AsyncEcho], listen="127.0.0.1:0")
            await server.__aenter__()
            channel = tw.AsyncChannel(server.address)
            assert (await echo_tw.AsyncEchoClient(channel).echo(REQUEST)).message
            return server, channel
        kept = asyncio.run(main())
    """,
    "a thread that goes on calling": """
        server = serve()
        client = echo_tw.EchoClient(tw.Channel(server.address))
        started = threading.Event()
        def calls():
            while True:
                try:
                    client.echo(REQUEST)
                except (tw.RpcError, tw.ClosedError):
                    return
                started.set()
        threading.Thread(target=calls).start()
        started.wait()
    """,
    "a thread that goes on with futures": """
        server = serve()
        client = echo_tw.EchoClient(tw.Channel(server.address))
        started = threading.Event()
        def calls():
            while True:
                try:
                    client.echo.future(REQUEST, timeout=None).result()
                except (tw.RpcError, tw.ClosedError):
                    return
                started.set()
        threading.Thread(target=calls).start()
        started.wait()
    """,
    "a loop in another thread that goes on calling": """
        server = serve()
        started = threading.Event()
        async def main():
            channel = tw.AsyncChannel(server.address, options=FOREVER)
            client = echo_tw.AsyncEchoClient(channel)
            try:
                while True:
                    await client.echo(REQUEST)
                    started.set()
            except (tw.RpcError, tw.ClosedError):
                pass
            await channel.aclose()
        threading.Thread(target=asyncio.run, args=(main(),)).start()
        started.wait()
    """,
    "a daemon thread that goes on calling": """
        server = serve()
        client = echo_tw.EchoClient(tw.Channel(server.address))
        started = threading.Event()
        def calls():
            while True:
                try:
                    client.echo(REQUEST)
                    client.echo.future(REQUEST).result(1)
                except Exception:
                    pass
                started.set()
        threading.Thread(target=calls, daemon=True).start()
        started.wait()
    """,
    "a thread that makes a channel when all is over": """
        server = serve()
        address = server.address
        def late():
            # The main thread is in threading._shutdown by then.
            threading.main_thread().join()
            try:
                with tw.Channel(address) as channel:
                    echo_tw.EchoClient(channel).echo(REQUEST)
            except (tw.RpcError, tw.ClosedError):
                pass
        threading.Thread(target=late).start()
    """,
    "attachments that outlive everything": """
        import builtins
        class Holder(echo_tw.EchoService):
            def echo(self, request, ctx):
                builtins.held = ctx.attachment
                return echo_pb2.EchoResponse(message="")
        with tw.Server([Holder], listen="127.0.0.1:0") as server:
            with tw.Channel(server.address) as channel:
                client = echo_tw.EchoClient(channel)
                client.echo(REQUEST, attachment=bytes(1 << 20), timeout=5)
        assert len(builtins.held) == 1 << 20
    """,
    "unclosed, in reference cycles": """
        server = serve()
        client = echo_tw.EchoClient(tw.Channel(server.address))
        client.myself = client
        server.myself = server
        assert client.echo(REQUEST).message == "hello"
        del client, server
    """,
    "calls made by atexit": """
        import atexit
        server = serve()
        client = echo_tw.EchoClient(tw.Channel(server.address))
        def late():
            try:
                client.echo(REQUEST, timeout=1)
            except (tw.RpcError, tw.ClosedError):
                pass
        atexit.register(late)
        assert client.echo(REQUEST).message == "hello"
    """,
    "stop by atexit": """
        import atexit
        server = serve()
        channel = tw.Channel(server.address)
        client = echo_tw.EchoClient(channel)
        assert client.echo(REQUEST).message == "hello"
        atexit.register(server.stop)
        atexit.register(channel.close)
    """,
    "admin pages": """
        import urllib.request
        server = serve(admin="127.0.0.1:0")
        url = f"http://{server.admin_address}/health"
        assert urllib.request.urlopen(url).status == 200
    """,
}


def run(body, *flags):
    lines = [line.removeprefix("        ") for line in body.splitlines()]
    script = PRELUDE + "\n".join(lines)
    with watching() as took:
        process = subprocess.run(
            [sys.executable, *flags, "-c", script],
            env={**os.environ, "PYTHONPATH": str(WHERE)},
            capture_output=True,
            text=True,
            timeout=30 * SLOW,
        )
    return process, took.undisturbed


@pytest.mark.parametrize("name", SCRIPTS)
def test_exit(name):
    """L12."""
    process, took = run(SCRIPTS[name])
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    assert took < 5 * SLOW


def test_exit_status_is_the_programs():
    process, took = run("server = serve()\nsys.exit(7)")
    assert (process.returncode, process.stderr) == (7, "")
    assert took < 5 * SLOW


def test_uncaught_exception():
    """L12."""
    process, took = run("server = serve()\nchannel = tw.Channel(server.address)\n1 / 0")
    assert process.returncode == 1
    assert process.stderr.rstrip().endswith("ZeroDivisionError: division by zero")
    assert took < 5 * SLOW


@pytest.mark.parametrize("what", ["tw.Channel(server.address)", "serve()"])
def test_unclosed_handles_warn(what):
    """With the warning on: what was forgotten, and where."""
    process, _ = run(f"server = serve()\nx = {what}\ndel x\nserver.stop()", "-Wall")
    assert process.returncode == 0
    assert re.findall("ResourceWarning: un(closed|stopped)", process.stderr) == [
        "closed" if "Channel" in what else "stopped"
    ]
    assert "127.0.0.1" in process.stderr


def test_unclosed_async_channel_warns():
    process, _ = run(
        """
        server = serve()
        async def main():
            channel = tw.AsyncChannel(server.address)
            await echo_tw.AsyncEchoClient(channel).echo(REQUEST)
        asyncio.run(main())
        import gc; gc.collect()
        server.stop()
        """,
        "-Wall",
    )
    assert process.returncode == 0
    assert process.stderr.count("ResourceWarning: unclosed") == 1
    assert "AsyncChannel" in process.stderr


@pytest.mark.parametrize("name", ["everything left open", "a blocked handler"])
def test_development_mode(name):
    """python -X dev, which checks more and warns of all."""
    process, took = run(SCRIPTS[name], "-X", "dev")
    assert process.returncode == 0
    noise = [
        line
        for line in process.stderr.splitlines()
        if line and "ResourceWarning" not in line and not line.startswith(" ")
    ]
    assert noise == []
    assert took < 5 * SLOW
