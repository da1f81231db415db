"""What the library does to the process it lives in: nothing that is not its own."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from generated import WHERE, echo_pb2, echo_tw

REQUEST = echo_pb2.EchoRequest(message="hello")
TESTS = Path(__file__).resolve().parents[1]


def descriptors():
    """Number -> name of all, but the one that lists them."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
    return found


def test_all_descriptors_are_close_on_exec(face, serve, tmp_path):
    """P9: the core's and those of connections on both sides, TCP and unix."""
    before = descriptors()
    servers = [
        serve(admin="127.0.0.1:0"),
        serve(listen=f"unix:{tmp_path}/socket"),
    ]
    for server in servers:
        client = face.client(echo_tw, face.channel(server.address))
        assert face.call(client, "echo", REQUEST, timeout=5).message == "hello"
    new = {fd: n for fd, n in descriptors().items() if before.get(fd) != n}
    # Two listeners, an admin's, and two connections with two ends.
    assert sum(name.startswith("socket:") for name in new.values()) >= 7
    inherited = {
        fd: name
        for fd, name in new.items()
        if not fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    }
    assert inherited == {}


SCRIPT = """
import os, signal, socket, struct, sys
signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it; others do not
before = {n: signal.getsignal(n) for n in signal.valid_signals()}
import tidewire as tw
from echo_stubs import echo_pb2, echo_tw
from harness import RawServer, Serving, connect, frame, ECHO_META, field, reset

request = echo_pb2.EchoRequest(message="hello")

def goes(stream, connection):
    stream.read(12)
    if KIND == "reset":
        linger = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

# As a client: the peer goes while a large request is written.
with RawServer(goes) as server, tw.Channel(server.address) as channel:
    client = echo_tw.EchoClient(channel)
    for _ in range(10):
        try:
            client.echo(request, attachment=bytes(4 << 20), timeout=5)
        except tw.Unavailable:
            continue
        raise SystemExit("an answer from nobody")
# As a server: the peer goes before its answer.
serve = Serving("def")
server = serve()
for _ in range(50):
    sock = connect(server)
    sock.sendall(frame(ECHO_META, field(1, b"x" * 100000)) * 3)
    reset(sock) if KIND == "reset" else sock.close()
with tw.Channel(server.address) as channel:
    assert echo_tw.EchoClient(channel).echo(request, timeout=5).message == "hello"
assert before == {n: signal.getsignal(n) for n in signal.valid_signals()}
serve.close()
"""


@pytest.mark.parametrize("kind", ["close", "reset"])
def test_no_death_by_sigpipe_and_no_signal_handler_installed(kind):
    """P4: with SIGPIPE at its default, peers that go while they are written to."""
    done = subprocess.run(
        [sys.executable, "-c", f"KIND = {kind!r}\n{SCRIPT}"],
        env={**os.environ, "PYTHONPATH": f"{WHERE}:{TESTS}"},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode != -signal.SIGPIPE
    assert done.returncode == 0, done.stderr
