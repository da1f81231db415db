"""What sockets are made like: how servers listen, options of connections, and
connections that are closed for being silent, slow or idle."""

import contextlib
import dataclasses
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import (
    ECHO_META,
    SLOW,
    connect,
    echo,
    eventually,
    field,
    frame,
    has_ipv6,
    raw_request,
    read_frame,
)

needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")

REQUEST = echo_pb2.EchoRequest(message="hello")


def works(face, address, **options):
    client = face.client(echo_tw, face.channel(address, **options))
    return face.call(client, "echo", REQUEST, timeout=10).message == "hello"


def ends(connection):
    """Whether the other side closes it, without a word."""
    connection.settimeout(30 * SLOW)
    return connection.recv(1) == b""


# ---- listening


@pytest.fixture
def umask():
    before = os.umask(0o077)
    os.umask(before)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
@pytest.mark.parametrize(
    ("options", "mode"), [({}, 0o600), ({"unix_mode": 0o666}, 0o666)]
)
def test_p8_a_socket_file_has_its_mode_whatever_the_umask(
    serve_def, tmp_path, umask, mask, options, mode
):
    """P8"""
    umask(mask)
    server = serve_def(listen=f"unix:{tmp_path}/s", **options)
    umask(0o022)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == mode
    with connect(server):
        pass


def test_without_a_mode_the_umask_decides(serve_def, tmp_path, umask):
    umask(0o027)
    serve_def(listen=f"unix:{tmp_path}/s", unix_mode=None)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o750


def test_a_socket_file_is_never_wider_than_its_mode(serve_def, tmp_path, umask):
    """Not for a moment: a thread looks at it all the time."""
    path, over, seen = tmp_path / "s", threading.Event(), set()

    def watch():
        while not over.is_set():
            with contextlib.suppress(FileNotFoundError):
                seen.add(stat.S_IMODE(os.stat(path).st_mode))

    umask(0)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(30):
            server = serve_def(listen=f"unix:{path}")
            eventually(lambda: seen)
            server.stop()
    finally:
        over.set()
        watcher.join()
    assert seen == {0o600}


def test_somebody_elses_socket_file_stays_when_a_server_stops(serve_def, tmp_path):
    path = tmp_path / "s"
    server = serve_def(listen=f"unix:{path}")
    path.rename(tmp_path / "ours")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        server.stop()
        assert path.exists()


def test_reuse_port_shares_an_address(face, serve):
    first = serve(reuse_port=True)
    second = serve(listen=first.address, reuse_port=True)
    assert first.address == second.address
    kept = []
    try:
        # The kernel chooses by a hash of the ports: 64 times the same is none.
        for _ in range(64):
            kept.append(connect(first))
        eventually(lambda: first.connections + second.connections == 64)
        assert first.connections > 0
        assert second.connections > 0
    finally:
        for connection in kept:
            connection.close()
    serve.stop(first)
    assert works(face, second.address)


def test_without_reuse_port_an_address_is_one_servers(serve_def):
    first = serve_def(reuse_port=True)
    with pytest.raises(OSError, match="in use"):
        serve_def(listen=first.address)


@pytest.mark.parametrize("where", ["tcp", "unix"])
def test_an_inherited_listener_serves_and_stays_its_owners(
    face, serve, tmp_path, where
):
    if where == "tcp":
        listener = socket.create_server(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{tmp_path}/s")
        listener.listen()
        address = f"unix:{tmp_path}/s"
    with listener:
        for _ in range(3):
            server = serve(listen=f"fd:{listener.fileno()}")
            assert server.address == address
            assert works(face, address)
            serve.stop(server)
        # Neither shut down nor unlinked: its owner goes on with it.
        with connect(server) as client, client.makefile("rb") as stream:
            client.sendall(frame(ECHO_META, field(1, b"hello")))
            server = serve(listen=f"fd:{listener.fileno()}")
            assert read_frame(stream)[1] == field(1, b"hello")


def test_what_is_no_listener_is_named(serve_def, tmp_path):
    (tmp_path / "file").write_text("")
    reader, writer = os.pipe()
    with (
        socket.socket() as stream,
        socket.socket(type=socket.SOCK_DGRAM) as datagram,
        open(tmp_path / "file") as file,
    ):
        for fd, what in [
            (reader, "a pipe"),
            (file.fileno(), "a file"),
            (stream.fileno(), "a stream socket that does not listen"),
            (datagram.fileno(), "a datagram socket"),
        ]:
            with pytest.raises(OSError, match=f"descriptor {fd} is {what}"):
                serve_def(listen=f"fd:{fd}")
            os.fstat(fd)  # still its owner's
    os.close(reader)
    os.close(writer)
    with pytest.raises(OSError, match=r"descriptor 999999 is not open"):
        serve_def(listen="fd:999999")


@pytest.mark.parametrize("listen", ["fd:", "fd:x", "fd:-1", "fd:1234567890"])
def test_what_is_no_descriptor(listen):
    with pytest.raises(tw.OptionError, match=r"fd:|no address"):
        tw.Server([echo_tw.EchoService], listen=listen)


def test_p5_nobody_is_accepted_while_a_stop_drains(face, serve, gate):
    """P5: what is under way gets its answer, newcomers are refused."""
    server = serve(gate=gate)
    client = face.client(echo_tw, face.channel(server.address))
    call = face.start(client, "echo", REQUEST, timeout=30)
    gate.until_entered()
    stopping = threading.Thread(target=serve.stop, args=(server, 30.0))
    stopping.start()

    def refused():
        try:
            connect(server).close()
        except ConnectionRefusedError:
            return True
        return False

    eventually(refused)
    count = server.connections
    for _ in range(100):
        assert refused()
    assert server.connections <= count
    gate.open()
    assert call.result(30).message == "hello"
    stopping.join(30)
    assert server.connections == 0


# ---- options

OPTIONS = tw.SocketOptions(
    keepalive=tw.KeepAlive(idle=77, interval=7, count=4),
    user_timeout=12.5,
    tos=0x28,
    send_buffer=50_000,
    receive_buffer=60_000,
)
TOLD = (1, 77, 7, 4, 12_500, 0x28, 100_000, 120_000)


def options_of(connection):
    tcp, v6 = socket.IPPROTO_TCP, connection.family == socket.AF_INET6
    tos = (
        (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
        if v6
        else (socket.IPPROTO_IP, socket.IP_TOS)
    )
    return tuple(
        connection.getsockopt(*which)
        for which in (
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            (tcp, socket.TCP_KEEPIDLE),
            (tcp, socket.TCP_KEEPINTVL),
            (tcp, socket.TCP_KEEPCNT),
            (tcp, socket.TCP_USER_TIMEOUT),
            tos,
            (socket.SOL_SOCKET, socket.SO_SNDBUF),
            (socket.SOL_SOCKET, socket.SO_RCVBUF),
        )
    )


def sockets_of(server):
    """(accepted, connecting) connections of the server in this process."""
    port = int(server.address.rsplit(":", 1)[1])
    accepted, connecting = [], []
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            one = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        with one:
            if one.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            try:
                peer = one.getpeername()[1]
            except OSError:
                continue
            if one.getsockname()[1] == port:
                accepted.append(options_of(one))
            elif peer == port:
                connecting.append(options_of(one))
    return accepted, connecting


@pytest.mark.parametrize(
    "listen", ["127.0.0.1:0", pytest.param("[::1]:0", marks=needs_ipv6)]
)
@pytest.mark.parametrize("side", ["server", "client"])
def test_options_reach_the_connections(face, serve, listen, side):
    mine = {"socket": OPTIONS}
    server = serve(listen=listen, **(mine if side == "server" else {}))
    assert works(face, server.address, **(mine if side == "client" else {}))
    accepted, connecting = sockets_of(server)
    assert len(accepted) == len(connecting) == 1
    told, other = (accepted, connecting) if side == "server" else (connecting, accepted)
    assert told == [TOLD]
    assert other[0][0] == 0
    assert other[0][4] == 0


def test_unix_sockets_ignore_what_they_do_not_know(face, serve, tmp_path):
    server = serve(listen=f"unix:{tmp_path}/s", socket=OPTIONS)
    assert works(face, server.address, socket=OPTIONS)


def test_a_channel_connects_from_the_address_it_is_bound_to(face, serve):
    seen = []

    def handler(request, ctx):
        seen.append(ctx.peer)
        return echo(request, ctx)

    server = serve(handler)
    bound = tw.SocketOptions(bind="127.0.0.99")
    assert works(face, server.address, socket=bound)
    assert works(face, server.address, socket=bound)
    assert {peer.rsplit(":", 1)[0] for peer in seen} == {"127.0.0.99"}


@pytest.mark.parametrize("bind", ["192.0.2.1", "::1"])
def test_a_refused_option_is_named(face, bind):
    with pytest.raises(OSError, match=r"ChannelOptions\.socket\.bind is refused"):
        face.channel("127.0.0.1:1", socket=tw.SocketOptions(bind=bind))


def test_a_refused_option_of_a_name_is_named_at_the_first_call(face):
    bound = tw.SocketOptions(bind="192.0.2.1")
    client = face.client(echo_tw, face.channel("localhost:1", socket=bound))
    with pytest.raises(OSError, match=r"socket\.bind is refused"):
        face.call(client, "echo", REQUEST, timeout=5)


# ---- silent, slow, idle


def test_c1_a_connection_that_says_nothing_is_closed(face, serve):
    """C1"""
    server = serve(first_byte_timeout=0.1, stall_timeout=None, idle_timeout=None)
    client = face.client(echo_tw, face.channel(server.address))
    assert face.call(client, "echo", REQUEST, timeout=10).message == "hello"
    for _ in range(3):
        with connect(server) as silent:
            assert ends(silent)
    # Who has said something may be silent from then on.
    assert face.call(client, "echo", REQUEST, timeout=10).message == "hello"
    eventually(lambda: server.connections == 1)


def test_c1_a_message_that_does_not_go_on_is_closed(face, serve):
    """C1"""
    server = serve(first_byte_timeout=None, stall_timeout=0.1, idle_timeout=None)
    client = face.client(echo_tw, face.channel(server.address))
    assert face.call(client, "echo", REQUEST, timeout=10).message == "hello"
    for size in (1, 11, 12, 20):
        with connect(server) as slow:
            slow.sendall(frame(ECHO_META, field(1, bytes(100)))[:size])
            assert ends(slow)
    assert face.call(client, "echo", REQUEST, timeout=10).message == "hello"
    eventually(lambda: server.connections == 1)


def test_c1_an_idle_connection_is_closed_but_not_one_that_waits_for_us(
    face, serve, gate
):
    """C1"""
    server = serve(gate=gate, idle_timeout=0.1)
    client = face.client(echo_tw, face.channel(server.address))
    call = face.start(client, "echo", REQUEST, timeout=60)
    gate.until_entered()
    # Several times the limit, by connections that come and are closed.
    for _ in range(4):
        with connect(server) as idle:
            assert ends(idle)
    eventually(lambda: server.connections == 1)
    gate.open()
    assert call.result(30).message == "hello"
    eventually(lambda: server.connections == 0, "idle now")
    assert face.call(client, "echo", REQUEST, timeout=10).message == "hello"
    with raw_request(server) as asked, asked.makefile("rb") as stream:
        assert read_frame(stream)[1] == field(1, b"hello")
        assert ends(asked)


# ---- dead peers

DEAD = """
import os, socket, subprocess, sys
from harness import *

def lo(state):
    subprocess.run(["ip", "link", "set", "lo", state], check=True)

lo("up")
options, sending = eval(sys.argv[1]), sys.argv[2] == "while sending"
gate = Gate()
if not sending:
    gate.open()
serve = Serving("def")
plain, server = serve(gate=gate), serve(gate=gate, socket=options)
connections = [raw_request(plain), raw_request(server)]
gate.until_entered(2)
if not sending:
    for connection in connections:
        assert read_frame(connection.makefile("rb"))[1]
assert server.connections == plain.connections == 1
lo("down")  # from now on every packet is lost
with watching() as watch:
    gate.open()
    eventually(lambda: server.connections == 0, "the dead peer is found", 60.0)
print(f"after {watch}", file=sys.stderr)
assert watch.undisturbed < float(sys.argv[3]) + 1, watch
# One that was not told to look still believes in its peer.
assert plain.connections == 1
print("found")
sys.stdout.flush()
os._exit(0)
"""


def in_a_network_of_its_own(script, *arguments):
    if not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("needs unshare and ip (util-linux, iproute2)")
    probe = subprocess.run(
        ["unshare", "-n", "ip", "link", "set", "lo", "up"],
        capture_output=True,
        text=True,
    )
    if probe.returncode:
        pytest.skip(f"no network namespace here: {probe.stderr.strip()}")
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", script, *arguments],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=100 * SLOW,
    )
    print(done.stderr)  # what it measured
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("options", "when", "setting"),
    [
        ("keepalive=tw.KeepAlive(idle=1, interval=1, count=2)", "while silent", 3),
        ("user_timeout=1.0", "while sending", 1),
    ],
)
def test_c4_a_dead_peer_without_fin_is_found(options, when, setting):
    """C4: by keepalive or by TCP_USER_TIMEOUT, within what is set plus 1 s."""
    options = f"tw.SocketOptions({options})"
    found = in_a_network_of_its_own(DEAD, options, when, str(setting))
    assert found == "found\n"


def test_options_are_small_and_frozen():
    assert dataclasses.replace(OPTIONS, tos=1).tos == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        OPTIONS.tos = 2
