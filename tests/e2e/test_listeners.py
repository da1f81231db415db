"""Where servers listen: families, ports, unix paths, several at a time."""

import os
import socket
import stat
import threading

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import Serving, echo, eventually, has_ipv6

REQUEST = echo_pb2.EchoRequest(message="hello")


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")


def works(face, address):
    client = face.client(echo_tw, face.channel(address))
    return face.call(client, "echo", REQUEST, timeout=5).message == "hello"


@pytest.mark.parametrize(
    "listen", ["127.0.0.1:0", pytest.param("[::1]:0", marks=needs_ipv6)]
)
def test_port_0_is_any_free_one(face, serve, listen):
    server = serve(listen=listen)
    host, port = server.address.rsplit(":", 1)
    assert host == listen.rsplit(":", 1)[0]
    assert int(port) > 0
    assert works(face, server.address)


def test_all_interfaces(face, serve):
    server = serve(listen="0.0.0.0:0")
    port = server.address.rsplit(":", 1)[1]
    assert server.address == f"0.0.0.0:{port}"
    assert works(face, f"127.0.0.1:{port}")


def test_unix_socket(face, serve, tmp_path):
    path = tmp_path / "socket"
    server = serve(listen=f"unix:{path}")
    assert server.address == f"unix:{path}"
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert works(face, server.address)
    serve.stop(server)
    eventually(lambda: not path.exists(), "the socket's file is gone")


def test_unix_peers_have_names(face, serve, tmp_path):
    seen = []

    def handler(request, ctx):
        seen.append(ctx.peer)
        return echo(request, ctx)

    server = serve(handler, listen=f"unix:{tmp_path}/socket")
    client = face.client(echo_tw, face.channel(server.address))
    response = face.full(client, "echo", REQUEST)
    assert response.peer == server.address
    assert seen[0].startswith("unix:")


def test_stale_unix_socket_is_replaced(face, serve, tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.exists()
    assert works(face, serve(listen=f"unix:{path}").address)


def test_living_unix_socket_is_not_replaced(face, serve, tmp_path):
    first = serve(listen=f"unix:{tmp_path}/socket")
    with pytest.raises(OSError, match="in use"):
        serve(listen=f"unix:{tmp_path}/socket")
    assert works(face, first.address)


@pytest.mark.parametrize("what", ["file", "directory", "link"])
def test_other_files_are_left_alone(serve_def, tmp_path, what):
    path = tmp_path / "precious"
    if what == "file":
        path.write_text("data")
    elif what == "directory":
        path.mkdir()
    else:
        (tmp_path / "target").write_text("data")
        path.symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="in use"):
        serve_def(listen=f"unix:{path}")
    assert os.path.lexists(path)


@needs_ipv6
def test_several_listeners(face, serve, tmp_path):
    listen = ["127.0.0.1:0", "[::1]:0", f"unix:{tmp_path}/a", "127.0.0.1:0"]
    server = serve(listen=listen)
    assert len(server.addresses) == 4
    assert server.address == server.addresses[0]
    assert len(set(server.addresses)) == 4
    assert all(works(face, address) for address in server.addresses)
    eventually(lambda: server.connections == 4)


@needs_ipv6
def test_families_have_their_own_ports(face, serve):
    """[::] does not take 0.0.0.0's."""
    first = serve(listen="0.0.0.0:0")
    port = first.address.rsplit(":", 1)[1]
    second = serve(listen=f"[::]:{port}")
    assert works(face, f"127.0.0.1:{port}")
    assert works(face, f"[::1]:{port}")
    assert (first.connections, second.connections) == (1, 1)


def test_several_services_in_one_server(face, serve):
    other = tw.MethodInfo(
        service="other.Other", name="Do", request=bytes, response=bytes
    )

    class Other(tw.Service):
        __tidewire_service__ = "other.Other"
        __tidewire_methods__ = {"do": other}

        def do(self, request, ctx):
            return b"other " + request

    server = serve([serve.service(), Other])
    channel = face.channel(server.address)
    client = face.client(echo_tw, channel)
    raw = type("Raw", (), {"do": staticmethod(channel.unary(other))})()
    for _ in range(10):
        assert face.call(client, "echo", REQUEST).message == "hello"
        assert face.call(raw, "do", b"1") == b"other 1"
    assert server.connections == 1


def test_several_servers_in_one_process(face, serve):
    def named(name):
        return lambda request, ctx: echo_pb2.EchoResponse(message=name)

    servers = [serve(named(str(i))) for i in range(5)]
    clients = [face.client(echo_tw, face.channel(s.address)) for s in servers]
    for _ in range(3):
        answers = [face.call(c, "echo", REQUEST).message for c in clients]
        assert answers == ["0", "1", "2", "3", "4"]
    serve.stop(servers[2])
    for i in (0, 1, 3, 4):
        assert face.call(clients[i], "echo", REQUEST).message == str(i)
    with pytest.raises(tw.Unavailable):
        face.call(clients[2], "echo", REQUEST)


def test_both_kinds_of_servers_side_by_side(face):
    servings = [Serving(kind) for kind in ("def", "async", "on-loop")]
    try:
        clients = [face.client(echo_tw, face.channel(s().address)) for s in servings]
        for _ in range(20):
            for client in clients:
                assert face.call(client, "echo", REQUEST).message == "hello"
    finally:
        for serving in servings:
            serving.close()


def test_stopping_one_of_two_servers_on_a_loop(face, gate):
    """Each stops its own handlers only."""
    serving = Serving("on-loop")
    try:
        doomed, other = serving(), serving(gate=gate)
        client = face.client(echo_tw, face.channel(other.address))
        call = face.start(client, "echo", REQUEST, timeout=10)
        gate.until_entered()
        serving.stop(doomed, 0.0)
        gate.open()
        assert call.result(10).message == "hello"
        assert face.call(client, "echo", REQUEST).message == "hello"
    finally:
        serving.close()


def test_port_in_use(face, serve):
    first = serve()
    with pytest.raises(OSError, match="in use"):
        serve(listen=first.address)
    with pytest.raises(OSError, match="in use"):
        serve(listen=["127.0.0.1:0", first.address])
    assert works(face, first.address)


def test_address_that_is_not_ours(serve_def):
    with pytest.raises(OSError, match="192.0.2.1"):
        serve_def(listen="192.0.2.1:0")


def test_restart_on_the_same_port(face, serve):
    server = serve()
    address = server.address
    for _ in range(10):
        assert works(face, address)
        serve.stop(server)
        server = serve(listen=address)
    assert works(face, address)


def test_restart_on_the_same_path(face, serve, tmp_path):
    address = f"unix:{tmp_path}/socket"
    server = serve(listen=address)
    for _ in range(10):
        assert works(face, address)
        serve.stop(server)
        server = serve(listen=address)
    assert works(face, address)


@pytest.mark.parametrize("where", ["tcp", "unix"])
def test_restart_while_clients_come_and_go(serve_def, tmp_path, where):
    """stop() has given the address back when it returns."""
    server = serve_def(
        listen=f"unix:{tmp_path}/s" if where == "unix" else "127.0.0.1:0"
    )
    address = server.address
    over = threading.Event()
    counts = {"ok": 0, "failed": 0}

    def callers():
        while not over.is_set():
            with tw.Channel(address) as channel:
                try:
                    echo_tw.EchoClient(channel).echo(REQUEST, timeout=2)
                    counts["ok"] += 1
                except (tw.Unavailable, tw.DeadlineExceeded):
                    counts["failed"] += 1

    threads = [threading.Thread(target=callers) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            before = counts["ok"]
            eventually(lambda b=before: counts["ok"] > b + 2)
            server.stop()
            server = serve_def(listen=address)
    finally:
        over.set()
        for thread in threads:
            thread.join(5)


# ---- wrong use


@pytest.mark.parametrize(
    "listen", ["localhost:0", "nonsense", "1.2.3.4", ":80", "", []]
)
def test_what_is_no_address_to_listen_on(listen):
    with pytest.raises(tw.OptionError, match=r"allowed|expected|listen"):
        tw.Server([echo_tw.EchoService], listen=listen)


@pytest.mark.parametrize("listen", [80, None, [80], b"127.0.0.1:0"])
def test_listen_of_the_wrong_type(listen):
    with pytest.raises(TypeError, match=r"listen is .*allowed"):
        tw.Server([echo_tw.EchoService], listen=listen)


@pytest.mark.parametrize("services", [echo_tw.EchoService(), None, "x", ["x"], [None]])
def test_services_of_the_wrong_type(services):
    with pytest.raises(TypeError, match=r"services .*allowed"):
        tw.Server(services, listen="127.0.0.1:0")


def test_no_services():
    with pytest.raises(tw.OptionError, match="services is empty"):
        tw.Server([], listen="127.0.0.1:0")


def test_the_same_service_twice():
    server = tw.Server([echo_tw.EchoService, echo_tw.EchoService], listen="127.0.0.1:0")
    with pytest.raises(tw.OptionError, match="example.EchoService/Echo twice"):
        server.start()


def test_factory_of_something_else():
    server = tw.Server([lambda: "no service"], listen="127.0.0.1:0")
    with pytest.raises(TypeError, match="services holds a str"):
        server.start()


def test_factory_that_raises():
    def factory():
        raise ZeroDivisionError

    server = tw.Server([factory], listen="127.0.0.1:0")
    with pytest.raises(ZeroDivisionError):
        server.start()


def test_factories_run_once_at_start():
    made = []

    class Mine(echo_tw.EchoService):
        def __init__(self):
            made.append(self)

    server = tw.Server([Mine], listen="127.0.0.1:0")
    assert made == []
    with server:
        assert len(made) == 1


def test_options_of_the_wrong_type():
    with pytest.raises(TypeError, match="options is a dict; allowed: ServerOptions"):
        tw.Server([echo_tw.EchoService], listen="127.0.0.1:0", options={"threads": 1})
    with pytest.raises(TypeError, match="options is a .*; allowed: ChannelOptions"):
        tw.Channel("127.0.0.1:1", options=tw.ServerOptions())
