"""os.fork() in user code: channels reconnect in the child, everything else of
the parent's says so, and the parent notices nothing."""

import asyncio
import faulthandler
import os
import re
import signal
import threading
import time
import traceback
import warnings

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import SLOW, LoopThread, echo, eventually, within
from tidewire import _core

REQUEST = echo_pb2.EchoRequest(message="hello")

# Python 3.12 warns of forks in a process with threads; that is what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def in_child(function, patience=8.0):
    """Runs it in a forked child; fails with the child's traceback."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            # A hang shows where, and ends.
            faulthandler.register(signal.SIGALRM, file=write, chain=True)
            signal.alarm(int(patience * SLOW))
            function()
            status = 0
        except BaseException:
            os.write(write, traceback.format_exc().encode()[:60_000])
        finally:
            os._exit(status)
    os.close(write)
    with open(read, "rb") as stream:
        trace = stream.read().decode()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with {status}\n{trace}"


def is_echo(client):
    assert client.echo(REQUEST, timeout=5).message == "hello"
    return True


def test_channel_reconnects_in_the_child(serve):
    """P2."""
    server = serve()
    with tw.Channel(server.address) as channel:
        client = echo_tw.EchoClient(channel)
        assert is_echo(client)

        def child():
            for _ in range(3):
                assert is_echo(client)
            assert is_echo(echo_tw.EchoClient(channel))

        in_child(child)
        assert is_echo(client)
        eventually(lambda: server.connections == 1)


def test_channel_that_was_never_used(serve):
    server = serve()
    with tw.Channel(server.address) as channel:
        in_child(lambda: is_echo(echo_tw.EchoClient(channel)))
        assert is_echo(echo_tw.EchoClient(channel))


def test_named_channel(serve):
    port = serve().address.rsplit(":", 1)[1]
    with tw.Channel(f"localhost:{port}") as channel:
        client = echo_tw.EchoClient(channel)
        assert is_echo(client)
        in_child(lambda: is_echo(client))
        assert is_echo(client)


def test_child_opens_everything_anew(serve):
    """P3: channels, futures, servers of both kinds and asyncio clients."""
    from harness import service

    outer = serve()

    def child():
        for kind in ("def", "async"):
            server = tw.Server([service(kind)], listen="127.0.0.1:0")
            with server, tw.Channel(server.address) as channel:
                client = echo_tw.EchoClient(channel)
                assert is_echo(client)
                assert client.echo.future(REQUEST).result(5).message == "hello"

        async def main():
            async with tw.AsyncChannel(outer.address) as channel:
                client = echo_tw.AsyncEchoClient(channel)
                assert (await client.echo(REQUEST)).message == "hello"

        asyncio.run(main())

    in_child(child)


def test_futures_in_the_child_after_futures_in_the_parent(serve):
    server = serve()
    with tw.Channel(server.address) as channel:
        client = echo_tw.EchoClient(channel)
        assert client.echo.future(REQUEST).result(5).message == "hello"

        def child():
            assert client.echo.future(REQUEST).result(5).message == "hello"

        in_child(child)
        assert client.echo.future(REQUEST).result(5).message == "hello"


def test_the_parents_server_raises_in_the_child(serve):
    """P2."""
    server = serve()

    def child():
        with pytest.raises(tw.ForkError, match="the server") as caught:
            server.wait(1)
        assert caught.value.parent == os.getppid()
        # Ending it is the parent's business: nothing happens.
        server.stop()
        server.stop(0.0)

    in_child(child)
    with tw.Channel(server.address) as channel:
        assert is_echo(echo_tw.EchoClient(channel))


def test_with_blocks_of_the_parent_end_quietly_in_the_child(serve_def):
    """A child that leaves the parent's with statements by an exception."""
    from harness import service

    server = tw.Server([service("def")], listen="127.0.0.1:0")
    with server, tw.Channel(server.address) as channel:
        client = echo_tw.EchoClient(channel)
        assert is_echo(client)

        def child():
            channel.__exit__(None, None, None)
            server.__exit__(None, None, None)

        in_child(child)
        assert is_echo(client)
        # The same connection as before.
        assert server.connections == 1


def test_the_parents_futures_raise_in_the_child(serve, gate):
    """P2."""
    server = serve(gate=gate)
    with tw.Channel(server.address) as channel:
        client = echo_tw.EchoClient(channel)
        future = client.echo.future(REQUEST, timeout=30)
        gate.until_entered()

        def child():
            for ask in (future.result, future.exception):
                with pytest.raises(tw.ForkError, match=r"made in process \d+"):
                    ask(5)
                with pytest.raises(tw.ForkError):
                    ask()
            future.cancel()

        in_child(child)
        assert not future.done()
        gate.open()
        assert future.result(5).message == "hello"


def test_a_finished_future_is_just_a_value(serve):
    server = serve()
    with tw.Channel(server.address) as channel:
        future = echo_tw.EchoClient(channel).echo.future(REQUEST, timeout=5)
        assert future.result(5).message == "hello"
        in_child(lambda: future.result())


def test_attachments_stay_readable_in_the_child(serve):
    data = bytes(range(256)) * 1000
    server = serve()
    with tw.Channel(server.address) as channel:
        client = echo_tw.EchoClient(channel)
        response = client.echo.call(REQUEST, attachment=data, timeout=5)

        def child():
            assert response.attachment == data
            part = response.attachment[1000:]
            assert is_echo(client)
            assert part == data[1000:]

        in_child(child)
        assert response.attachment == data


def inherited(before):
    """Descriptors of the core's kinds among those."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if before.get(fd) == target and re.match(r"socket:|anon_inode", target):
            found.append(f"{fd} -> {target}")
    return found


def test_descriptors_are_closed_in_the_child(serve, tmp_path):
    """P2: at once, all of the core's: connections, listeners, epoll, timer, events."""
    core = _core.lib
    servers = [serve(), serve(listen=f"unix:{tmp_path}/s")]
    channels = [tw.Channel(s.address) for s in servers]
    for channel in channels:
        assert is_echo(echo_tw.EchoClient(channel))
    mine = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            mine[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
    # The loops' own are not ours to close: asyncio's self-pipes and epoll sets.
    foreign = set()
    import gc

    for thing in gc.get_objects():
        if isinstance(thing, asyncio.SelectorEventLoop) and not thing.is_closed():
            foreign |= {thing._selector.fileno(), thing._ssock.fileno()}
            foreign |= {thing._csock.fileno()}
    mine = {fd: target for fd, target in mine.items() if int(fd) not in foreign}
    assert sum("socket" in target for target in mine.values()) >= 6

    def child():
        assert core is not None
        assert inherited(mine) == []

    in_child(child)
    # The unix socket's file is still there, and the parent serves on.
    assert os.path.exists(f"{tmp_path}/s")
    for channel in channels:
        assert is_echo(echo_tw.EchoClient(channel))
        channel.close()


def test_fork_inside_a_handler(face, serve):
    def handler(request, ctx):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            os._exit(7)
        _, status = os.waitpid(pid, 0)
        return echo_pb2.EchoResponse(message=str(os.waitstatus_to_exitcode(status)))

    client = face.client(echo_tw, face.channel(serve(handler).address))
    for _ in range(5):
        assert face.call(client, "echo", REQUEST, timeout=5).message == "7"


def test_fork_while_calls_are_under_way(serve):
    """P3: other threads are anywhere in the core at that moment."""
    server = serve()
    over = threading.Event()
    failed = []
    with tw.Channel(server.address, options=tw.ChannelOptions(timeout=20)) as channel:
        client = echo_tw.EchoClient(channel)

        def calls():
            try:
                while not over.is_set():
                    assert client.echo(REQUEST).message == "hello"
                    client.echo.future(REQUEST).result(20)
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=calls) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(15):
                in_child(lambda: is_echo(client))
        finally:
            over.set()
            for thread in threads:
                thread.join(20)
    assert not failed


def test_children_of_children(serve):
    server = serve()
    with tw.Channel(server.address) as channel:
        client = echo_tw.EchoClient(channel)
        assert is_echo(client)

        def child():
            assert is_echo(client)
            in_child(grandchild)
            assert is_echo(client)

        def grandchild():
            assert is_echo(client)

        in_child(child)
        assert is_echo(client)


def test_fork_beside_a_watching_loop(serve):
    server = serve()
    with LoopThread() as loop:
        channel = tw.AsyncChannel(server.address)
        client = echo_tw.AsyncEchoClient(channel)
        assert loop.run(client.echo(REQUEST)).message == "hello"

        def child():
            async def main():
                assert (await client.echo(REQUEST)).message == "hello"
                await channel.aclose()

            asyncio.run(main())

        in_child(child)
        assert loop.run(client.echo(REQUEST)).message == "hello"
        loop.run(channel.aclose())


def test_interrupted_call_and_fork_in_the_signals_handler(serve_def, gate):
    """The child returns from the handler into the parent's call."""
    server = serve_def(gate=gate)
    with tw.Channel(server.address, options=tw.ChannelOptions(timeout=30)) as channel:
        client = echo_tw.EchoClient(channel)
        read, write = os.pipe()
        children = []

        def on_signal(number, frame):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                children.append(os.fork())
            if children[0]:
                gate.open()

        before = signal.signal(signal.SIGUSR1, on_signal)

        def kick():
            gate.until_entered()
            os.kill(os.getpid(), signal.SIGUSR1)

        thread = threading.Thread(target=kick)
        thread.start()
        ended = "nothing"
        try:
            assert client.echo(REQUEST).message == "hello"
        except BaseException as error:
            ended = type(error).__name__
        if children and children[0] == 0:
            os.write(write, ended.encode())
            os._exit(0)
        assert ended == "nothing"
        thread.join()
        signal.signal(signal.SIGUSR1, before)
        os.close(write)
        with open(read, "rb") as stream:
            told = stream.read().decode()
        os.waitpid(children[0], 0)
        assert told == "ForkError"


def test_child_returns_from_a_handler(serve_def):
    """A handler that forks and forgets to leave the child: the child must not
    serve, nor disturb the parent."""
    children = []

    def handler(request, ctx):
        if request.message == "fork":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                children.append(os.fork())
        return echo(request, ctx)

    server = serve_def(handler)
    with tw.Channel(server.address, options=tw.ChannelOptions(timeout=10)) as channel:
        client = echo_tw.EchoClient(channel)
        fork = echo_pb2.EchoRequest(message="fork")
        assert client.echo(fork).message == "fork"
        pid = children[0]
        end = time.monotonic() + 5 * SLOW
        while time.monotonic() < end:
            ended, _ = os.waitpid(pid, os.WNOHANG)
            if ended:
                break
            time.sleep(0.01)
        else:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            pytest.fail("the child serves on")
        assert is_echo(client)


def test_ctrl_c_in_a_child_of_a_thread(serve, gate):
    """The forking thread becomes the child's main thread."""
    server = serve(gate=gate)
    with tw.Channel(server.address, options=tw.ChannelOptions(timeout=30)) as channel:
        client = echo_tw.EchoClient(channel)
        failed = []

        def child():
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            with within(0.2 + 0.1 * SLOW), pytest.raises(KeyboardInterrupt):
                client.echo(REQUEST)

        def run():
            try:
                # The thread's own buffers exist already.
                with pytest.raises(tw.DeadlineExceeded):
                    client.echo(REQUEST, timeout=0.02)
                in_child(child)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(30)
        gate.open()
        if failed:
            raise failed[0]


def test_multiprocessing_fork(serve):
    """P3: what most people's forks are."""
    import multiprocessing

    server = serve()
    context = multiprocessing.get_context("fork")
    with tw.Channel(server.address) as channel:
        client = echo_tw.EchoClient(channel)
        assert is_echo(client)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            workers = [context.Process(target=worker, args=(client,)) for _ in range(3)]
            for process in workers:
                process.start()
        for process in workers:
            process.join(20)
            assert process.exitcode == 0
            process.close()
        assert is_echo(client)


def worker(client):
    for _ in range(10):
        assert is_echo(client)
