"""Calls at a time, of a server and of a method: a number, or what learns one;
and the age that a request may reach in the queue."""

import threading
import time
from types import SimpleNamespace

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import (
    ECHO_META,
    connect,
    counter,
    echo,
    eventually,
    field,
    frame,
    read_frame,
)

REQUEST = echo_pb2.EchoRequest(message="hello")
ECHO = "example.EchoService/Echo"
LABELS = {"service": "example.EchoService", "method": "Echo"}


def of_echo(**options):
    return {ECHO: tw.MethodOptions(**options)}


def refusals(reason):
    return counter("tidewire_server_refusals", **LABELS, reason=reason)


def counts():
    return SimpleNamespace(
        calls=counter("tidewire_server_calls", **LABELS),
        errors=counter("tidewire_server_errors", **LABELS, code="ELIMIT"),
        refused=refusals("max_concurrency"),
        aged=refusals("max_queue_age"),
        unnamed=counter("tidewire_refused_requests"),
        server=counter("tidewire_concurrency_refusals"),
    )


def test_a_methods_limit_of_one(face, serve, gate):
    """The second of two slow calls is refused in brpc's words, without its
    handler, and counted as a call of the method; then there is room again."""
    server = serve(gate=gate, methods=of_echo(max_concurrency=1))
    client = face.client(echo_tw, face.channel(server.address))
    assert counter("tidewire_server_max_concurrency", **LABELS) == 1
    first = face.start(client, "echo", REQUEST, timeout=30)
    gate.until_entered(1)
    before = counts()
    for _ in range(3):
        with pytest.raises(tw.ResourceExhausted) as caught:
            face.call(client, "echo", REQUEST, timeout=30)
        assert caught.value.number == tw.Errno.ELIMIT
        assert caught.value.phase is tw.Phase.PEER
        assert (
            "Rejected by example.EchoService.Echo's ConcurrencyLimiter, concurrency=2"
            in str(caught.value)
        )
    after = counts()
    assert after.calls - before.calls == 3
    assert after.errors - before.errors == 3
    assert after.refused - before.refused == 3
    assert after.unnamed == before.unnamed
    assert gate.entered == 1
    gate.open()
    assert first.result(30).message == "hello"
    assert face.call(client, "echo", REQUEST, timeout=30).message == "hello"
    assert gate.entered == 2


def test_the_servers_limit_comes_first(face, serve, gate):
    """Before the method is looked for, so that unknown ones are refused, too."""
    server = serve(gate=gate, max_concurrency=1, methods=of_echo(max_concurrency=1))
    channel = face.channel(server.address, timeout=30)
    client = face.client(echo_tw, channel)
    unknown = tw.MethodInfo(
        service="example.EchoService", name="No", request=bytes, response=bytes
    )
    other = SimpleNamespace(no=channel.unary(unknown))
    # What is refused for another reason holds no place.
    for _ in range(3):
        with pytest.raises(tw.Unimplemented):
            face.call(other, "no", b"")
    first = face.start(client, "echo", REQUEST)
    gate.until_entered(1)
    before = counts()
    for target, name, request in ((client, "echo", REQUEST), (other, "no", b"")):
        with pytest.raises(tw.ResourceExhausted) as caught:
            face.call(target, name, request)
        assert "Reached server's max_concurrency=1" in str(caught.value)
    after = counts()
    assert after.server - before.server == 2
    assert after.unnamed - before.unnamed == 2
    assert after.refused == before.refused
    gate.open()
    first.result(30)


@pytest.mark.parametrize("named", ["*", ECHO, "both"])
def test_what_is_not_named_has_the_defaults(face, serve, gate, named):
    """ "*" is every method that has no entry of its own."""
    one, many = (tw.MethodOptions(max_concurrency=n) for n in (1, 9))
    methods = {"*": many, ECHO: one} if named == "both" else {named: one}
    server = serve(gate=gate, methods=methods)
    client = face.client(echo_tw, face.channel(server.address, timeout=30))
    assert counter("tidewire_server_max_concurrency", **LABELS) == 1
    first = face.start(client, "echo", REQUEST)
    gate.until_entered(1)
    with pytest.raises(tw.ResourceExhausted):
        face.call(client, "echo", REQUEST)
    gate.open()
    first.result(30)


@pytest.mark.parametrize("method", [None, ECHO])
def test_a_number_is_changed_while_it_serves(face, serve, gate, method):
    """Up and down; what runs stays, and counts."""

    def gauge():
        if method is None:
            return counter("tidewire_max_concurrency")
        return counter("tidewire_server_max_concurrency", **LABELS)

    server = serve(gate=gate, max_concurrency=1, methods=of_echo(max_concurrency=1))
    other = None if method else ECHO
    server.set_max_concurrency(50, other)
    client = face.client(echo_tw, face.channel(server.address, timeout=30))
    calls = [face.start(client, "echo", REQUEST)]
    gate.until_entered(1)
    server.set_max_concurrency(3, method)
    assert gauge() == 3
    calls += [face.start(client, "echo", REQUEST) for _ in range(2)]
    gate.until_entered(3)
    for most in (3, 2, 1):
        server.set_max_concurrency(most, method)
        with pytest.raises(tw.ResourceExhausted):
            face.call(client, "echo", REQUEST)
    assert gauge() == 1
    gate.open()
    for call in calls:
        assert call.result(30).message == "hello"
    for _ in range(5):
        face.call(client, "echo", REQUEST)


def test_what_is_no_number_cannot_be_changed(serve):
    methods = of_echo(max_concurrency="auto")
    server = serve(methods=methods)
    for method, what in ((None, "the server"), (ECHO, ECHO)):
        with pytest.raises(tw.OptionError, match=f"max_concurrency of {what} is not"):
            server.set_max_concurrency(4, method)
    with pytest.raises(tw.OptionError, match=r"method is 'no'; allowed: .*/Echo"):
        server.set_max_concurrency(4, "no")
    for wrong in (0, -1, 2**31):
        with pytest.raises(tw.OptionError, match="max_concurrency is"):
            server.set_max_concurrency(wrong)
    for wrong in ("auto", None, 1.5, True, tw.AutoLimit()):
        with pytest.raises(TypeError):
            server.set_max_concurrency(wrong)
    serve.stop(server)
    with pytest.raises(tw.ClosedError):
        server.set_max_concurrency(4)


@pytest.mark.parametrize("whose", ["server", "method"])
def test_who_has_an_answer_may_ask_again(face, serve, whose):
    """The place is free before the answer can be seen."""
    limit = {"max_concurrency": 1}
    server = serve(**(limit if whose == "server" else {"methods": of_echo(**limit)}))
    client = face.client(echo_tw, face.channel(server.address, timeout=30))
    for _ in range(300):
        face.call(client, "echo", REQUEST)


@pytest.mark.parametrize("end", ["error", "exception", "reset", "late"])
def test_a_methods_permits_return_however_a_call_ends(face, serve, gate, caplog, end):
    """R7."""

    def handler(request, ctx):
        if end == "error":
            raise tw.NotFound("no")
        if end == "exception":
            raise ZeroDivisionError
        return echo(request, ctx)

    server = serve(handler, gate=gate, methods=of_echo(max_concurrency=2))
    channel = face.channel(server.address)
    client = face.client(echo_tw, channel)
    timeout = 0.05 if end == "late" else 30
    calls = [face.start(client, "echo", REQUEST, timeout=timeout) for _ in range(2)]
    if end != "late":
        gate.until_entered(2)
    if end == "reset":
        face.close_channel(channel)
    if end in ("error", "exception"):
        gate.open()
    for call in calls:
        with pytest.raises(tw.RpcError):
            call.result(30)
    gate.open()
    eventually(lambda: server.in_flight == 0)
    client = face.client(echo_tw, face.channel(server.address, timeout=30))
    for _ in range(5):
        try:
            face.call(client, "echo", REQUEST)
        except (tw.NotFound, tw.Internal):
            assert end in ("error", "exception")
    caplog.clear()


class Hold:
    """A handler that holds its worker, or its whole loop, until the end."""

    def __init__(self):
        self.entered = threading.Semaphore(0)
        self.end = threading.Event()
        self.count = 0

    def __call__(self, request, ctx):
        self.count += 1
        self.entered.release()
        assert self.end.wait(30)
        return echo(request, ctx)


@pytest.mark.parametrize("whose", ["server", "method"])
def test_what_waited_too_long_is_not_run(face, serve, whose):
    """A request whose turn comes after `max_queue_age` is refused then; younger
    ones run.  A method's own age counts before the server's."""
    hold = Hold()
    options = {"max_queue_age": 0.05}
    if whose == "method":
        options = {"max_queue_age": 1000, "methods": of_echo(**options)}
    server = serve(hold, threads=1, **options)
    client = face.client(echo_tw, face.channel(server.address, timeout=30))
    first = face.start(client, "echo", REQUEST)
    assert hold.entered.acquire(timeout=30)
    old = [face.start(client, "echo", REQUEST) for _ in range(5)]
    eventually(lambda: server.in_flight == 6)
    queued = time.monotonic()
    eventually(lambda: time.monotonic() > queued + 0.1)
    before = counts()
    hold.end.set()
    assert first.result(30).message == "hello"
    for call in old:
        with pytest.raises(tw.ResourceExhausted) as caught:
            call.result(30)
        assert caught.value.number == tw.Errno.ELIMIT
        assert "Waited longer than max_queue_age" in str(caught.value)
    after = counts()
    assert hold.count == 1
    assert after.aged - before.aged == 5
    assert after.errors - before.errors == 5
    # It may wait for too long once more where the machine is slow.
    eventually(lambda: succeeds(face, client))


def succeeds(face, client):
    try:
        return face.call(client, "echo", REQUEST).message == "hello"
    except tw.ResourceExhausted:
        return False


def test_no_age_is_too_old_without_the_option(serve_def):
    hold = Hold()
    server = serve_def(hold, threads=1, methods=of_echo(max_concurrency=10))
    with tw.Channel(server.address, options=tw.ChannelOptions(timeout=30)) as channel:
        client = echo_tw.EchoClient(channel)
        calls = [client.echo.future(REQUEST) for _ in range(5)]
        eventually(lambda: server.in_flight == 5)
        hold.end.set()
        for call in calls:
            assert call.result(30).message == "hello"


def test_auto_learns_from_the_answers(serve):
    """Eight times what the workers can do: the limit moves, some calls are
    refused and many served; the gauge goes with the server."""

    def work(request, ctx):
        time.sleep(0.001)
        return echo(request, ctx)

    limit = tw.AutoLimit(initial=8, most=200, window=0.05)
    server = serve(work, threads=4, methods=of_echo(max_concurrency=limit))

    def gauge():
        return counter("tidewire_server_max_concurrency", **LABELS)

    assert gauge() == 8
    before = counts()
    seen, served, end = set(), 0, time.monotonic() + 60
    with tw.Channel(server.address, options=tw.ChannelOptions(timeout=30)) as channel:
        client = echo_tw.EchoClient(channel)
        while not (len(seen) > 1 and served > 500 and refused_since(before)):
            assert time.monotonic() < end, (seen, served)
            calls = [client.echo.future(REQUEST) for _ in range(32)]
            for call in calls:
                try:
                    call.result(30)
                    served += 1
                except tw.ResourceExhausted:
                    pass
            seen.add(gauge())
    assert all(1 <= limit <= 200 for limit in seen)
    serve.stop(server)
    eventually(lambda: gauge() == 0)


def refused_since(before):
    return counts().refused > before.refused


def test_auto_for_the_whole_server(serve):
    server = serve(max_concurrency="auto")
    assert counter("tidewire_max_concurrency") == 40
    with tw.Channel(server.address, options=tw.ChannelOptions(timeout=30)) as channel:
        client = echo_tw.EchoClient(channel)
        for _ in range(50):
            client.echo(REQUEST)
    serve.stop(server)
    eventually(lambda: counter("tidewire_max_concurrency") == 0)


def test_a_call_that_would_come_too_late_is_refused(serve_def, gate):
    """TimeoutLimit: by the time that its caller says, else by the option's."""

    def work(request, ctx):
        time.sleep(0.003)
        if request.message == "wait":
            gate.wait()
        return echo(request, ctx)

    limit = tw.TimeoutLimit(timeout=30, max_concurrency=50, window=1000)
    server = serve_def(work, threads=16, methods=of_echo(max_concurrency=limit))
    assert counter("tidewire_server_max_concurrency", **LABELS) == 50
    hello, wait = field(1, b"hello"), field(1, b"wait")
    names = field(1, b"example.EchoService") + field(2, b"Echo")
    impatient = field(1, names + field(8, 1)) + field(4, 7)  # timeout_ms
    with connect(server) as connection, connection.makefile("rb") as stream:
        # Of each round one answer at least is looked at, and 200 are enough.
        for _ in range(201):
            connection.sendall(frame(ECHO_META, hello) * 2)
            for _ in range(2):
                assert read_frame(stream)[1] == hello
        connection.sendall(frame(ECHO_META, wait))
        gate.until_entered(1)
        before = counts()
        connection.sendall(frame(impatient, wait))
        assert b"ConcurrencyLimiter, concurrency=2" in read_frame(stream)[0]
        assert counts().refused == before.refused + 1
        connection.sendall(frame(ECHO_META, wait))
        gate.until_entered(2)
        gate.open()
        for _ in range(2):
            assert read_frame(stream)[1] == wait
