"""Calls that are made on a second server when the first takes long."""

import threading

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import SLOW, Gate, RawServer, counter, eventually, read_frame, within

REQUEST = echo_pb2.EchoRequest(message="hello")
IDEMPOTENT = tw.MethodInfo(
    service="example.EchoService",
    name="Echo",
    request=echo_pb2.EchoRequest,
    response=echo_pb2.EchoResponse,
    idempotency=tw.Idempotency.IDEMPOTENT,
)
ways = pytest.mark.parametrize("way", ["call", "full", "start"])
AFTER = 0.03


def named(name):
    return lambda request, ctx: echo_pb2.EchoResponse(message=name)


def ask(face, way, client, **how):
    if way == "full":
        return face.full(client, "echo", REQUEST, **how).message.message
    if way == "start":
        return face.start(client, "echo", REQUEST, **how).result(30).message
    return face.call(client, "echo", REQUEST, **how).message


def both(face, *servers, **options):
    """A client of them, of which the first is called first."""
    options = {"timeout": 30.0, "balancer": Ordered(), **options}
    urls = ",".join(s if isinstance(s, str) else s.address for s in servers)
    channel = face.channel(f"list://{urls}", **options)
    client = face.client(echo_tw, channel)
    client.echo = channel.unary(IDEMPOTENT)
    return client


class Ordered(tw.Balancer):
    """The first that was not tried."""

    name = "ordered"
    nodes = ()

    def update(self, nodes):
        self.nodes = tuple(nodes)

    def pick(self, *, key, excluded, usable, now_us):
        found = [node for node in self.nodes if usable(node)]
        return next(
            (n for n in found if n not in excluded), found[0] if found else None
        )


@ways
def test_the_second_answers_for_a_slow_first(face, serve_def, gate, way):
    slow, fast = serve_def(named("slow"), gate=gate), serve_def(named("fast"))
    client = both(face, slow, fast, backup=AFTER)
    with within(1.0 * SLOW) as took:
        assert ask(face, way, client) == "fast"
    assert took.seconds >= AFTER
    gate.open()


def test_the_loser_is_cancelled_and_counted(face, serve_def, gate):
    slow, fast = serve_def(named("slow"), gate=gate), serve_def(named("fast"))
    client = both(face, slow, fast, backup=AFTER)
    before = [counter(f"tidewire_client_{one}") for one in COUNTED]
    reply = face.full(client, "echo", REQUEST)
    after = [counter(f"tidewire_client_{one}") for one in COUNTED]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 0, 1, 1]
    assert (reply.attempts, reply.past) == (2, ())
    assert reply.peer == fast.address
    assert reply.elapsed >= AFTER
    eventually(lambda: counter("tidewire_client_in_flight") == 0, "the first has ended")
    gate.open()


COUNTED = ("calls", "retries", "backups", "won_backups")


@ways
def test_a_first_that_answers_in_time_is_alone(face, serve_def, way):
    calls = []

    def note(request, ctx):
        calls.append(1)
        return echo_pb2.EchoResponse(message="second")

    client = both(face, serve_def(named("first")), serve_def(note), backup=60.0)
    assert [ask(face, way, client) for _ in range(5)] == ["first"] * 5
    assert not calls


@ways
def test_the_first_may_still_win(face, serve_def, way):
    first, second = Gate(), Gate()
    client = both(
        face,
        serve_def(named("first"), gate=first),
        serve_def(named("second"), gate=second),
        backup=AFTER,
    )

    def let_win():
        second.until_entered()
        first.open()

    helper = threading.Thread(target=let_win)
    helper.start()
    assert ask(face, way, client) == "first"
    second.open()
    helper.join()


@ways
def test_a_failing_backup_ends_nothing(face, serve_def, gate, way):
    """The first is waited for."""

    def swallow(stream, connection):
        read_frame(stream)
        gate.open()

    with RawServer(swallow) as raw:
        client = both(
            face, serve_def(named("first"), gate=gate), raw.address, backup=AFTER
        )
        assert ask(face, way, client) == "first"


@ways
def test_when_both_fail_the_error_has_both(face, way):
    first, second = threading.Event(), threading.Event()

    def swallow_first(stream, connection):
        read_frame(stream)
        first.set()
        assert second.wait(30)

    def swallow_second(stream, connection):
        read_frame(stream)
        second.set()

    with RawServer(swallow_first) as a, RawServer(swallow_second) as b:
        client = both(face, a.address, b.address, backup=AFTER, max_retry=1)
        with pytest.raises(tw.Unavailable) as caught:
            ask(face, way, client)
    assert {one.peer for one in caught.value.past} == {a.address, b.address}
    assert caught.value.attempts == 2


def only_the_first_is_called(face, serve_def, gate, client, entered):
    call = face.start(client, "echo", REQUEST)
    entered.until_entered()
    # A second call shows that the time for a backup has passed for the first.
    with pytest.raises(tw.DeadlineExceeded):
        face.call(client, "echo", REQUEST, timeout=5 * AFTER)
    gate.open()
    assert call.result(30).message == "first"


@pytest.mark.parametrize(
    "options",
    [
        {"backup": None},
        {"backup": tw.BackupPolicy(after=AFTER, max_ratio=0.001)},
        {"backup": AFTER, "max_retry": 0},
    ],
    ids=["none", "over the ratio", "no attempt left"],
)
def test_r9_no_backup(face, serve_def, gate, options):
    calls = []

    def note(request, ctx):
        calls.append(1)
        return echo_pb2.EchoResponse(message="second")

    client = both(
        face, serve_def(named("first"), gate=gate), serve_def(note), **options
    )
    if isinstance(options["backup"], tw.BackupPolicy):
        # One of 1000 calls may have one: the first has.
        assert face.call(client, "echo", REQUEST).message == "second"
        calls.clear()
    only_the_first_is_called(face, serve_def, gate, client, gate)
    assert not calls


def test_no_backup_of_what_may_not_run_twice(face, serve_def, gate):
    calls = []

    def note(request, ctx):
        calls.append(1)
        return echo_pb2.EchoResponse(message="second")

    client = both(
        face, serve_def(named("first"), gate=gate), serve_def(note), backup=AFTER
    )
    client.echo = client.echo._channel.unary(
        tw.MethodInfo(
            service="example.EchoService",
            name="Echo",
            request=echo_pb2.EchoRequest,
            response=echo_pb2.EchoResponse,
        )
    )
    only_the_first_is_called(face, serve_def, gate, client, gate)
    assert not calls


def test_an_only_server_has_no_backup(face, serve_def, gate):
    client = both(face, serve_def(named("first"), gate=gate), backup=AFTER)
    only_the_first_is_called(face, serve_def, gate, client, gate)


def test_a_policy_of_ones_own(face, serve_def, gate):
    class Any(tw.BackupPolicy):
        def delay(self, method):
            return 0.001

    slow, fast = serve_def(named("slow"), gate=gate), serve_def(named("fast"))
    client = both(face, slow, fast, backup=Any(after=60))
    assert face.call(client, "echo", REQUEST).message == "fast"
    gate.open()


def test_cancelling_ends_both(face, serve_def):
    first, second = Gate(), Gate()
    servers = [serve_def(gate=first), serve_def(gate=second)]
    client = both(face, *servers, backup=AFTER)
    call = face.start(client, "echo", REQUEST)
    first.until_entered()
    second.until_entered()
    assert call.cancel()
    eventually(lambda: counter("tidewire_client_in_flight") == 0)
    first.open()
    second.open()


@ways
def test_the_deadline_bounds_both(face, serve_def, way):
    first, second = Gate(), Gate()
    servers = [serve_def(gate=first), serve_def(gate=second)]
    client = both(face, *servers, backup=AFTER, timeout=0.2)
    with within(0.2 + 1.0 * SLOW), pytest.raises(tw.DeadlineExceeded) as caught:
        ask(face, way, client)
    assert caught.value.elapsed >= 0.19
    first.open()
    second.open()
