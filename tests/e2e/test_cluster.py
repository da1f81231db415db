"""A channel to several servers: who gets a call, and what happens when one of
them fails."""

import os
import socket
import threading
import time
from collections import Counter

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import SLOW, Gate, RawServer, eventually, read_frame, within

REQUEST = echo_pb2.EchoRequest(message="hello")
IDEMPOTENT = tw.MethodInfo(
    service="example.EchoService",
    name="Echo",
    request=echo_pb2.EchoRequest,
    response=echo_pb2.EchoResponse,
    idempotency=tw.Idempotency.IDEMPOTENT,
)
ways = pytest.mark.parametrize("way", ["call", "full", "start"])


def free_port():
    """An address at which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return "{}:{}".format(*listener.getsockname())


def named(name):
    return lambda request, ctx: echo_pb2.EchoResponse(
        message=f"{name} {request.message}"
    )


def three(serve, **options):
    return [serve(named(name), **options) for name in "abc"]


def url(*servers):
    return "list://" + ",".join(
        server if isinstance(server, str) else server.address for server in servers
    )


def ask(face, way, client, **how):
    """The name of the server that answers, by each way that a face has."""
    if way == "full":
        reply = face.full(client, "echo", REQUEST, **how).message
    elif way == "start":
        reply = face.start(client, "echo", REQUEST, **how).result(30)
    else:
        reply = face.call(client, "echo", REQUEST, **how)
    return reply.message.split()[0]


@ways
def test_rr_takes_turns(face, serve, way):
    client = face.client(echo_tw, face.channel(url(*three(serve))))
    names = [ask(face, way, client) for _ in range(30)]
    assert Counter(names) == {"a": 10, "b": 10, "c": 10}
    assert all(len(set(names[i : i + 3])) == 3 for i in range(28))


@ways
def test_a_dead_server_costs_no_call(face, serve, way):
    """Nobody listens at one of four addresses."""
    servers = three(serve)
    channel = face.channel(url(free_port(), *servers), timeout=5.0)
    client = face.client(echo_tw, channel)
    names = Counter(ask(face, way, client) for _ in range(40))
    assert set(names) == {"a", "b", "c"}
    assert max(names.values()) - min(names.values()) <= 8


@ways
def test_a_server_that_stops_costs_no_call(face, serve, way):
    """ELOGOFF says that the call was not run."""
    servers = three(serve)
    client = face.client(echo_tw, face.channel(url(*servers), timeout=5.0))
    for _ in range(3):
        ask(face, way, client)
    serve.stop(servers[1])
    names = Counter(ask(face, way, client) for _ in range(30))
    assert set(names) == {"a", "c"}


@ways
def test_all_down_fails_at_once(face, way):
    """With the facts of each attempt; later calls without trying any."""
    addresses = [free_port() for _ in range(3)]
    client = face.client(echo_tw, face.channel(url(*addresses), timeout=5.0))
    with pytest.raises(tw.Unavailable) as caught:
        ask(face, way, client)
    error = caught.value
    assert 1 <= len(error.past) <= 4
    assert error.attempts == len(error.past)
    assert {one.peer for one in error.past} <= set(addresses)
    for one in error.past:
        assert (one.number, one.phase) == (tw.Errno.ECONNREFUSED, tw.Phase.CONNECT)
        assert one.sent is tw.Sent.NONE

    def untried():
        """They are passed by for 50 ms at first, then ever longer."""
        with pytest.raises(tw.Unavailable) as caught:
            ask(face, way, client)
        return None if caught.value.past else caught.value

    error = eventually(untried)
    assert error.number == tw.Errno.EHOSTDOWN
    assert error.method == "example.EchoService/Echo"
    assert "none of its 3 servers can be reached" in str(error)


def test_a_server_that_comes_back_is_used_again(face, serve):
    address = free_port()
    [other] = [serve(named("a"))]
    client = face.client(echo_tw, face.channel(url(address, other), timeout=5.0))
    for _ in range(5):
        assert ask(face, "call", client) == "a"
    serve(named("b"), listen=address)
    eventually(lambda: ask(face, "call", client) == "b")


def test_elimit_goes_to_another_server(face, serve, gate):
    """And only there: one that has enough to do is not asked again."""
    full = serve(gate=gate, max_concurrency=1)
    blocker = face.client(echo_tw, face.channel(full.address))
    held = face.start(blocker, "echo", REQUEST, timeout=30)
    gate.until_entered()
    other = serve(named("b"))
    both = face.client(echo_tw, face.channel(url(full, other), timeout=5.0))
    assert [ask(face, "call", both) for _ in range(6)] == ["b"] * 6
    alone = face.client(echo_tw, face.channel(url(full), timeout=5.0))
    with pytest.raises(tw.ResourceExhausted) as caught:
        ask(face, "call", alone)
    assert [one.number for one in caught.value.past] == [tw.Errno.ELIMIT]
    gate.open()
    held.result(30)


@pytest.mark.parametrize("idempotent", [False, True])
def test_what_may_have_run_is_tried_again_only_if_that_is_harmless(
    face, serve, idempotent
):
    """The connection ends after the request was sent whole."""

    def swallow(stream, connection):
        read_frame(stream)

    with RawServer(swallow) as raw:
        server = serve(named("b"))
        channel = face.channel(url(raw.address, server), timeout=5.0)
        client = face.client(echo_tw, channel)
        if idempotent:
            client.echo = channel.unary(IDEMPOTENT)
        failed = []
        for _ in range(4):
            try:
                assert ask(face, "call", client) == "b"
            except tw.Unavailable as error:
                failed.append(error)
        assert bool(failed) is not idempotent
        for error in failed:
            [one] = error.past
            assert (one.peer, one.sent) == (raw.address, tw.Sent.ALL)


@ways
def test_errors_of_the_handler_are_final(face, serve, way):
    calls = []

    def refuse(request, ctx):
        calls.append(1)
        raise tw.NotFound("no")

    servers = [serve(refuse), serve(refuse)]
    client = face.client(echo_tw, face.channel(url(*servers)))
    with pytest.raises(tw.NotFound) as caught:
        ask(face, way, client)
    assert len(calls) == 1
    assert caught.value.attempts == 1


@ways
def test_the_deadline_is_of_the_whole_call(face, serve, gate, way):
    servers = [serve(gate=gate), serve(gate=gate)]
    client = face.client(echo_tw, face.channel(url(*servers)))
    with within(1.0 * SLOW), pytest.raises(tw.DeadlineExceeded) as caught:
        ask(face, way, client, timeout=0.2)
    assert caught.value.attempts == 1
    assert caught.value.elapsed >= 0.19
    gate.open()


def test_no_retries_if_none_are_wanted(face, serve):
    address = free_port()
    channel = face.channel(url(address, serve(named("b"))), max_retry=0, timeout=5.0)
    client = face.client(echo_tw, channel)
    failed = []
    for _ in range(2):
        try:
            ask(face, "call", client)
        except tw.Unavailable as error:
            failed.append(error)
    assert [error.attempts for error in failed] == [1]


def test_a_key_goes_to_its_server(face, serve):
    channel = face.channel(url(*three(serve)), balancer="c_murmurhash")
    client = face.client(echo_tw, channel)
    keys = [tw.murmur32(b"user %d" % i) for i in range(30)]
    first = [ask(face, "call", client, key=key) for key in keys]
    assert [ask(face, "full", client, key=key) for key in keys] == first
    assert set(first) == {"a", "b", "c"}
    with pytest.raises((tw.OptionError, TypeError), match="key"):
        ask(face, "call", client)


def test_hooks_are_around_all_attempts_together(face, serve):
    outcomes = []

    class Noting(tw.Hook):
        def on_end(self, call, outcome):
            outcomes.append((call.peer, outcome.number))

    servers = [free_port(), serve(named("b"))]
    channel = face.channel(url(*servers), hooks=[Noting()], timeout=5.0)
    client = face.client(echo_tw, channel)
    for way in ("call", "full", "start"):
        for _ in range(2):
            assert ask(face, way, client) == "b"
    assert outcomes == [(url(*servers), 0)] * 6


def test_closing_ends_what_is_under_way(face, serve, gate):
    servers = [serve(gate=gate), serve(gate=gate)]
    channel = face.channel(url(*servers))
    client = face.client(echo_tw, channel)
    calls = [face.start(client, "echo", REQUEST, timeout=30) for _ in range(4)]
    gate.until_entered(4)
    face.close_channel(channel)
    for call in calls:
        with pytest.raises((tw.Cancelled, tw.ClosedError)):
            call.result(10)
    with pytest.raises(tw.ClosedError):
        face.call(client, "echo", REQUEST)
    gate.open()


def test_a_cancelled_call_ends_its_attempt(face, serve, gate):
    servers = [serve(gate=gate), serve(gate=gate)]
    client = face.client(echo_tw, face.channel(url(*servers)))
    call = face.start(client, "echo", REQUEST, timeout=30)
    gate.until_entered()
    assert call.cancel()
    gate.open()
    assert face.call(client, "echo", REQUEST, timeout=10).message == "hello"


@ways
def test_the_only_server_is_tried_again_after_a_pause(face, serve, way):
    """One attempt and max_retry more, each a little later than the last."""
    times = []

    def close_first(stream, connection):
        times.append(time.monotonic())
        read_frame(stream)

    with RawServer(close_first) as raw:
        channel = face.channel(url(raw.address), timeout=20.0, max_retry=2)
        client = face.client(echo_tw, channel)
        client.echo = channel.unary(IDEMPOTENT)
        with pytest.raises(tw.Unavailable) as caught:
            ask(face, way, client)
        assert [one.peer for one in caught.value.past] == [raw.address] * 3
        assert len(times) == 3
        assert times[1] - times[0] >= 0.005
        assert times[2] - times[1] >= 0.010


def test_what_cannot_be_sent_is_told_at_once(serve_def):
    """Wrong arguments and a closed channel are no futures."""
    with tw.Channel(url(serve_def())) as channel:
        client = echo_tw.EchoClient(channel)
        with pytest.raises(TypeError):
            client.echo.future("hello")
        with pytest.raises((TypeError, ValueError)):
            client.echo.future(REQUEST, timeout=-1)
    with pytest.raises(tw.ClosedError):
        client.echo.future(REQUEST)


def test_a_future_is_cancelled_once(serve_def, gate):
    with tw.Channel(url(serve_def(gate=gate))) as channel:
        future = echo_tw.EchoClient(channel).echo.future(REQUEST, timeout=30)
        gate.until_entered()
        ended = []
        future.add_done_callback(ended.append)
        assert [future.cancel() for _ in range(3)] == [True] * 3
        assert ended == [future]
        gate.open()


def test_many_threads(serve):
    """Shares are even whoever calls."""
    servers = three(serve)
    counts, lock = Counter(), threading.Lock()
    with tw.Channel(url(*servers), options=tw.ChannelOptions(timeout=30.0)) as channel:
        client = echo_tw.EchoClient(channel)

        def run():
            mine = Counter(client.echo(REQUEST).message.split()[0] for _ in range(60))
            with lock:
                counts.update(mine)

        threads = [threading.Thread(target=run) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert counts == {"a": 100, "b": 100, "c": 100}


def test_an_unclosed_channel_warns_and_closes_its_servers(serve):
    server = serve()
    channel = tw.Channel(url(server))
    echo_tw.EchoClient(channel).echo(REQUEST, timeout=10)
    with pytest.warns(ResourceWarning, match="unclosed .*list://"):
        channel.__del__()
    eventually(lambda: server.connections == 0)


@pytest.mark.parametrize(
    ("address", "options", "text"),
    [
        ("list://", {}, "list"),
        ("nowhere://x", {}, "nowhere"),
        ("list://127.0.0.1:1", {"balancer": "best"}, "'best' is unknown; allowed: rr"),
        ("list://127.0.0.1:1", {"max_retry": -1}, "max_retry is -1"),
    ],
)
def test_bad_input_is_refused_at_once(address, options, text):
    with pytest.raises(ValueError, match=text):
        tw.Channel(address, options=tw.ChannelOptions(**options))


def test_a_slow_server_gets_less_from_la(serve):
    """Its share is about that of its speed."""

    def slow(request, ctx):
        time.sleep(0.02)
        return named("slow")(request, ctx)

    options = tw.ChannelOptions(balancer="la", timeout=30.0)
    with tw.Channel(url(serve(slow), serve(named("fast"))), options=options) as channel:
        client = echo_tw.EchoClient(channel)
        counts = Counter(client.echo(REQUEST).message.split()[0] for _ in range(300))
    assert counts["fast"] > 4 * counts["slow"], counts
    assert counts["slow"] > 0


@ways
def test_a_breaker_isolates_a_server_whose_answers_are_failures(
    face, serve, monkeypatch, way
):
    """Its errors reach the callers as long as it gets calls; then the others do."""
    monkeypatch.setattr("tidewire._breaker._ISOLATION_FIRST", 60_000_000)

    def broken(request, ctx):
        raise tw.Internal("broken")

    servers = [serve(broken), serve(named("b"))]
    channel = face.channel(url(*servers), circuit_breaker=True, timeout=30.0)
    client = face.client(echo_tw, channel)
    answers = Counter()
    for _ in range(330):
        try:
            answers[ask(face, way, client)] += 1
        except tw.Internal:
            answers["failed"] += 1
        if answers["failed"] == 151:
            break
    assert answers["failed"] == 151
    assert [ask(face, way, client) for _ in range(10)] == ["b"] * 10


# ---- lists that change


def write(path, *servers):
    other = path.with_suffix(".new")
    other.write_text("".join(f"{server.address}\n" for server in servers))
    other.replace(path)


def test_a_list_in_a_file(face, serve, tmp_path):
    """Calls follow it; what is under way on a server that has left goes on."""
    path, held = tmp_path / "servers", Gate()
    a, b = serve(named("a")), serve(named("b"))
    slow = serve(lambda request, ctx: named("slow")(request, ctx), gate=held)
    write(path, slow)
    client = face.client(echo_tw, face.channel(f"file://{path}", timeout=30.0))
    under_way = face.start(client, "echo", REQUEST)
    held.until_entered()
    write(path, a, b)

    def moved():
        try:
            return ask(face, "start", client, timeout=0.2) in "ab"
        except tw.DeadlineExceeded:
            return False  # on the one that is held

    eventually(moved, within=10 * SLOW)
    names = Counter(ask(face, "call", client) for _ in range(10))
    assert names == {"a": 5, "b": 5}
    assert slow.connections == 1
    held.open()
    assert under_way.result(10).message == "slow hello"
    del under_way
    eventually(lambda: slow.connections == 0, "its last call was over")
    write(path, b)
    eventually(lambda: a.connections == 0)
    assert {ask(face, "call", client) for _ in range(5)} == {"b"}


def test_c10_a_list_that_becomes_empty(face, serve, tmp_path):
    """Leaves a cluster without servers only where that is allowed."""
    path = tmp_path / "servers"
    write(path, serve(named("a")))
    url = f"file://{path}"
    careful = face.client(echo_tw, face.channel(url, timeout=30.0))
    exact = face.client(echo_tw, face.channel(url, timeout=30.0, allow_empty=True))
    assert ask(face, "call", careful) == ask(face, "call", exact) == "a"
    write(path)

    def gone():
        try:
            ask(face, "call", exact)
        except tw.Unavailable as error:
            return error
        return None

    assert eventually(gone).number == tw.Errno.ENODATA
    assert ask(face, "call", careful) == "a"
    write(path, serve(named("b")))
    eventually(lambda: gone() is None)
    eventually(lambda: ask(face, "call", careful) == "b")


@ways
def test_the_first_list_is_waited_for(face, serve, tmp_path, way):
    """As long as the call may take."""
    path = tmp_path / "servers"
    client = face.client(echo_tw, face.channel(f"file://{path}"))
    with within(1.0 * SLOW), pytest.raises(tw.Unavailable) as caught:
        ask(face, way, client, timeout=0.15)
    assert caught.value.number == tw.Errno.ENODATA
    assert caught.value.phase is tw.Phase.CONNECT
    write(path, serve(named("a")))
    assert ask(face, way, client, timeout=30) == "a"


def test_c10_names_are_looked_up_off_the_loop(face, serve, monkeypatch):
    """A resolver that does not answer any more delays no call."""
    server = serve(named("a"))
    port = int(server.address.rpartition(":")[2])
    stuck, looked = threading.Event(), []

    def getaddrinfo(host, port, **how):
        looked.append(host)
        if len(looked) > 1:
            assert stuck.wait(60)
        return [(0, 0, 0, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    url = f"dns://shop.example:{port}?interval=0.1"
    channel = face.channel(url, timeout=5.0)
    client = face.client(echo_tw, channel)
    assert ask(face, "call", client) == "a"
    eventually(lambda: len(looked) == 2, "it hangs")
    for _ in range(20):
        assert ask(face, "call", client) == "a"
    face.close_channel(channel)
    stuck.set()


def test_a_forks_child_calls_the_cluster(serve_def, tmp_path):
    path = tmp_path / "servers"
    servers = [serve_def(named(name)) for name in "ab"]
    write(path, *servers)
    with tw.Channel(
        f"file://{path}", options=tw.ChannelOptions(timeout=20.0)
    ) as channel:
        client = echo_tw.EchoClient(channel)
        client.echo(REQUEST)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                names = {client.echo(REQUEST).message.split()[0] for _ in range(6)}
                write(path, servers[0])
                while client.echo(REQUEST).message.split()[0] != "a":
                    pass
                status = 0 if names == {"a", "b"} else 2
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert client.echo(REQUEST).message
