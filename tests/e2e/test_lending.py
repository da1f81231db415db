"""Large bytes go without a copy: the object is kept exactly as long as the core
may read it, whatever becomes of the call."""

import gc
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import eventually
from tidewire import _lend

REQUEST = echo_pb2.EchoRequest(message="hello")
LARGE = 8 * 1024 * 1024


def references(data: bytes) -> int:
    gc.collect()
    return sys.getrefcount(data)


class SlowReader:
    """A server that accepts and reads only when it is told to."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def accept(self) -> socket.socket:
        connection, _ = self._listener.accept()
        connection.settimeout(30)
        return connection

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def slow_reader():
    one = SlowReader()
    yield one
    one.close()


def exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(min(size - len(data), 1 << 20))
        assert part, "the stream ended"
        data += part
    return bytes(data)


def frame(connection: socket.socket) -> bytes:
    """Reads one frame; its body."""
    header = exactly(connection, 12)
    return exactly(connection, int.from_bytes(header[4:8], "big"))


def connect(face, reader, **options):
    """(client, channel, the reader's end), connected already."""
    channel = face.channel(reader.address, connect_timeout=30, **options)
    client = face.client(echo_tw, channel)
    first = face.start(client, "echo", REQUEST, timeout=60)
    connection = reader.accept()
    frame(connection)
    first.cancel()
    return client, channel, connection


def half_written(face, client, connection, data):
    """A call whose bytes have begun to leave and cannot all, ended."""
    call = face.start(client, "echo", REQUEST, attachment=data, timeout=None)
    assert connection.recv(1, socket.MSG_PEEK) == b"P"
    call.cancel()


def test_expired_call_keeps_its_bytes_until_they_are_written(face, slow_reader):
    client, _, connection = connect(face, slow_reader)
    data = os.urandom(LARGE)
    before = references(data)
    with connection:
        with pytest.raises(tw.DeadlineExceeded) as caught:
            face.call(client, "echo", REQUEST, attachment=data, timeout=1.0)
        # Half of it lies in the kernel; the rest is still read from the object.
        assert caught.value.sent is tw.Sent.SOME
        del caught
        assert eventually(lambda: references(data) == before + 1)
        assert _lend.outstanding() == 1
        assert frame(connection).endswith(data)
        eventually(lambda: references(data) == before)
    assert _lend.outstanding() == 0


def test_bytes_come_back_when_the_connection_fails(face, slow_reader):
    client, _, connection = connect(face, slow_reader)
    data = os.urandom(LARGE)
    before = references(data)
    half_written(face, client, connection, data)
    connection.close()
    eventually(lambda: references(data) == before)


def test_closed_channel_gives_the_bytes_back(face, slow_reader):
    client, channel, connection = connect(face, slow_reader)
    data = os.urandom(LARGE)
    before = references(data)
    with connection:
        half_written(face, client, connection, data)
        assert _lend.outstanding() == 1
        face.close_channel(channel)
        eventually(lambda: references(data) == before)


@pytest.mark.parametrize("size", [_lend.LEND_BYTES - 1, _lend.LEND_BYTES, 3_000_000])
def test_large_parts_arrive_as_they_were(face, serve, size):
    kept = os.urandom(size)
    before = references(kept)

    def handler(request, ctx):
        ctx.reply_attachment = kept if request.message == "kept" else None
        message = "m" * size
        return echo_pb2.EchoResponse(message=message)

    client = face.client(echo_tw, face.channel(serve(handler).address))
    data = os.urandom(size)
    for message in ("kept", "x" * size):
        request = echo_pb2.EchoRequest(message=message)
        reply = face.full(client, "echo", request, attachment=data, timeout=20)
        assert reply.message.message == "m" * size
        assert bytes(reply.attachment) == (kept if message == "kept" else b"")
    del reply
    eventually(lambda: references(kept) == before)
    eventually(lambda: _lend.outstanding() == 0)


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_only_bytes_are_lent(face, slow_reader, kind):
    """What may change is copied: it is the caller's again at once."""
    client, _, connection = connect(face, slow_reader)
    data = bytearray(os.urandom(LARGE))
    sent = bytes(data)
    with connection:
        half_written(face, client, connection, kind(data))
        assert _lend.outstanding() == 0
        data[:] = bytes(LARGE)
        assert frame(connection).endswith(sent)


def test_slow_readers_answer_is_kept_until_it_is_read(serve_def):
    """The same on the server's side."""
    answer = os.urandom(LARGE)
    before = references(answer)

    def handler(request, ctx):
        ctx.reply_attachment = answer
        return echo_pb2.EchoResponse(message="")

    server = serve_def(handler)
    host, port = server.address.rsplit(":", 1)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "interop"))
    import wire

    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect((host, int(port)))
        peer.settimeout(30)
        peer.sendall(wire.echo_request("x"))
        eventually(lambda: _lend.outstanding() == 1)
        assert frame(peer).endswith(answer)
        eventually(lambda: references(answer) == before)
    assert _lend.outstanding() == 0


def test_exit_with_half_written_bytes(slow_reader):
    """L12: the core ends before Python frees what it was lent."""
    code = (
        "import os, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})\n"
        "import tidewire as tw\n"
        "from generated import echo_pb2, echo_tw\n"
        "from tidewire import _lend\n"
        "options = tw.ChannelOptions(connect_timeout=30)\n"
        f"channel = tw.Channel({slow_reader.address!r}, options=options)\n"
        "client = echo_tw.EchoClient(channel)\n"
        "request = echo_pb2.EchoRequest(message='x' * 8_000_000)\n"
        "try:\n"
        "    client.echo(request, timeout=1.0)\n"
        "except tw.DeadlineExceeded:\n"
        "    print(_lend.outstanding())\n"
        "client.echo.future(request, timeout=None)\n"
        "print(_lend.outstanding() > 0, flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\nTrue\n", "")


def test_forked_child_keeps_nothing(face, slow_reader):
    client, _, connection = connect(face, slow_reader)
    data = os.urandom(LARGE)
    with connection:
        half_written(face, client, connection, data)
        assert _lend.outstanding() == 1
        child = os.fork()
        if child == 0:
            os._exit(_lend.outstanding())
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert frame(connection).endswith(data)
    eventually(lambda: _lend.outstanding() == 0)


def test_ignore_eovercrowded_passes_the_limit(face, slow_reader):
    """R1: over max_unwritten a call is refused at once, unless it says so."""
    client, _, connection = connect(face, slow_reader, max_unwritten=1_000_000)
    with connection:
        half_written(face, client, connection, bytes(LARGE))
        with pytest.raises(tw.ResourceExhausted) as refused:
            face.call(client, "echo", REQUEST, timeout=20)
        assert refused.value.number == tw.Errno.EOVERCROWDED
        assert refused.value.sent is tw.Sent.NONE
        late = face.start(client, "echo", REQUEST, ignore_eovercrowded=True, timeout=20)
        frame(connection)
        assert b"hello" in frame(connection)
    with pytest.raises(tw.Unavailable):
        late.result(20)
