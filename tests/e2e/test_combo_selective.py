"""SelectiveChannel: one call goes to one of the sub-channels, and after a failure
to another."""

import gc
import socket
import warnings
from collections import Counter

import pytest
import tidewire as tw
from combos import (
    IDEMPOTENT,
    REQUEST,
    ask,
    client,
    failing,
    kind_of,
    named,
    opened,
    over,
    parallel,
    selective,
)
from harness import SLOW, Gate, RawServer, counter, eventually, read_frame, within

ways = pytest.mark.parametrize("way", ["call", "full", "start"])


def free_port():
    """An address at which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return "{}:{}".format(*listener.getsockname())


def first_word(text):
    return text.split()[0]


@ways
def test_calls_take_turns(face, serve_def, way):
    one = client(face, selective(face, [serve_def(named(name)) for name in "abc"]))
    names = Counter(first_word(ask(face, way, one)) for _ in range(12))
    assert names == {"a": 4, "b": 4, "c": 4}


@ways
def test_a_sub_channel_that_is_down_costs_no_call(face, serve_def, way):
    ends = [free_port(), serve_def(named("b")), f"list://{free_port()}"]
    one = client(face, selective(face, ends))
    assert {ask(face, way, one) for _ in range(12)} == {"b hello"}


def test_and_is_passed_by_for_a_while(face, serve_def):
    """Its own list is empty: ENODATA."""
    register_empty()
    one = client(face, selective(face, ["test-none://", serve_def(named("b"))]))
    reply = face.full(one, "echo", REQUEST)
    other = face.full(one, "echo", REQUEST)
    tried = [*reply.past, *other.past]
    assert [past.number for past in tried] == [tw.Errno.ENODATA]


def register_empty():
    from tidewire.naming import Naming, register

    class Nobody(Naming):
        def run(self, publish, stopping):
            publish([])
            stopping.wait(60)

    register("test-none", lambda rest: Nobody())


@ways
def test_nothing_is_retried_on_the_same_sub_channel(face, way):
    """That one has done so by itself."""
    ends = [free_port(), free_port()]
    one = client(face, selective(face, ends))
    with pytest.raises(tw.Unavailable) as caught:
        ask(face, way, one)
    assert sorted(past.peer for past in caught.value.past) == sorted(ends)


@ways
def test_what_may_have_run_is_retried_only_if_that_is_harmless(face, serve_def, way):
    def swallow(stream, connection):
        read_frame(stream)

    with RawServer(swallow) as raw:
        channel = selective(face, [raw.address, serve_def(named("b"))])
        one = client(face, channel)
        failures = []
        for _ in range(4):
            try:
                assert ask(face, way, one) == "b hello"
            except tw.Unavailable as error:
                failures.append([past.sent for past in error.past])
        assert failures
        assert all(sent == [tw.Sent.ALL] for sent in failures)
        one.echo = channel.unary(IDEMPOTENT)
        assert {ask(face, way, one) for _ in range(4)} == {"b hello"}


def test_a_parallel_call_that_ran_in_part_is_not_retried(face, serve_def):
    """Whatever the part that failed says of itself."""
    half = parallel(face, [serve_def(named("a")), free_port()], fail_limit=1)
    spare = serve_def(named("spare"))
    one = client(face, selective(face, [half, spare]))
    outcomes = Counter()
    for _ in range(2):
        try:
            outcomes[ask(face, "call", one)] += 1
        except tw.Unavailable as error:
            outcomes[error.sent] += 1
    assert outcomes == {"spare hello": 1, tw.Sent.ALL: 1}


@ways
def test_errors_of_the_handler_are_final(face, serve_def, way):
    one = client(face, selective(face, [serve_def(failing()), serve_def(failing())]))
    with pytest.raises(tw.NotFound) as caught:
        ask(face, way, one)
    assert caught.value.attempts == 1


@ways
def test_the_deadline_is_of_the_whole_call(face, serve_def, gate, way):
    channel = selective(
        face, [serve_def(gate=gate), serve_def(gate=gate)], options={"timeout": 0.2}
    )
    with within(0.2 + 1.0 * SLOW), pytest.raises(tw.DeadlineExceeded) as caught:
        ask(face, way, client(face, channel))
    assert caught.value.elapsed >= 0.19
    gate.open()


def test_no_retries_if_none_are_wanted(face, serve_def):
    ends = [free_port(), serve_def(named("b"))]
    one = client(face, selective(face, ends, options={"max_retry": 0}))
    outcomes = []
    for _ in range(2):
        try:
            outcomes.append(ask(face, "call", one))
        except tw.Unavailable:
            outcomes.append("failed")
    assert sorted(outcomes) == ["b hello", "failed"]


@ways
def test_sub_channels_come_and_go(face, serve_def, way):
    channel = selective(face, [])
    one = client(face, channel)
    with pytest.raises(tw.Unavailable, match="selective: it has no sub-channel"):
        ask(face, way, one)
    a, b = over(face, serve_def(named("a")), serve_def(named("b")))
    channel.add(a)
    assert ask(face, way, one) == "a hello"
    channel.add(b)
    assert channel.channels == (a, b)
    assert {ask(face, way, one) for _ in range(4)} == {"a hello", "b hello"}
    channel.remove(a)
    assert {ask(face, way, one) for _ in range(4)} == {"b hello"}
    with pytest.raises(tw.OptionError, match="is none of the sub-channels"):
        channel.remove(a)
    with pytest.raises(tw.OptionError, match="is one of the sub-channels already"):
        channel.add(b)
    with pytest.raises(tw.OptionError, match="weight is 0 .* from 1"):
        channel.add(a, weight=0)
    with pytest.raises(TypeError, match="channel is a str; allowed: tidewire"):
        channel.add("host:80")


def test_calls_on_one_that_is_removed_go_on(face, serve_def, gate):
    """It is owned, and so closed when they are over."""
    [sub] = over(face, serve_def(named("a"), gate=gate))
    channel = selective(face, [sub], owns=True)
    call = face.start(client(face, channel), "echo", REQUEST)
    gate.until_entered()
    channel.remove(sub)
    gate.open()
    assert call.result(30).message == "a hello"
    del call
    other = client(face, sub)

    def closed():
        gc.collect()
        try:
            face.call(other, "echo", REQUEST)
        except tw.ClosedError:
            return True
        return False

    eventually(closed)


def test_weights(face, serve_def):
    a, b = over(face, serve_def(named("a")), serve_def(named("b")))
    channel = selective(face, [a], options={"balancer": "wrr"})
    channel.add(b, weight=3)
    one = client(face, channel)
    names = Counter(first_word(ask(face, "call", one)) for _ in range(40))
    assert names == {"a": 10, "b": 30}


@ways
def test_they_nest_with_generated_clients(face, serve_def, way):
    left = parallel(face, [serve_def(named("a")), serve_def(named("b"))])
    right = selective(face, [serve_def(named("c"))])
    one = client(face, selective(face, [left, right]))
    seen = {ask(face, way, one) for _ in range(4)}
    assert seen == {"a hello|b hello", "c hello"}
    both = client(face, parallel(face, [left, right]))
    assert ask(face, way, both) == "a hello|b hello|c hello"


def test_the_key_reaches_the_sub_channels_balancer(face, serve_def):
    urls = ",".join(serve_def(named(n)).address for n in "abcd")
    cluster = face.channel(f"list://{urls}", balancer="c_murmurhash")
    one, direct = client(face, selective(face, [cluster])), client(face, cluster)
    for key in (1, 2**31, 2**32 - 1):
        assert ask(face, "call", one, key=key) == ask(face, "start", direct, key=key)
        assert ask(face, "start", one, key=key) == ask(face, "call", direct, key=key)


def test_a_backup_goes_to_another_sub_channel(face, serve_def, gate):
    ends = [serve_def(named("slow"), gate=gate), serve_def(named("fast"))]
    policy = tw.BackupPolicy(after=0.03, max_ratio=1)
    channel = selective(face, ends, options={"backup": policy})
    one = client(face, channel)
    one.echo = channel.unary(IDEMPOTENT)
    with within(1.0 * SLOW):
        assert {ask(face, "call", one) for _ in range(2)} == {"fast hello"}
    eventually(lambda: counter("tidewire_client_in_flight") == 0)
    gate.open()


def test_cancelling_ends_the_sub_call(face, serve_def, gate):
    """And the hooks are told."""
    ends = []

    class Note(tw.Hook):
        def on_end(self, call, outcome):
            ends.append(outcome.number)

    channel = selective(face, [serve_def(gate=gate)], options={"hooks": [Note()]})
    call = face.start(client(face, channel), "echo", REQUEST)
    gate.until_entered()
    assert call.cancel()
    eventually(lambda: counter("tidewire_client_in_flight") == 0)
    assert eventually(lambda: ends) == [tw.Errno.ECANCELED]
    gate.open()


@ways
def test_hooks_of_both_see_the_call(face, serve_def, way):
    seen = []

    class Note(tw.Hook):
        def __init__(self, name):
            self.name = name

        def on_start(self, call):
            seen.append(f"{self.name} starts")
            call.metadata[self.name] = "yes"

        def on_end(self, call, outcome):
            seen.append(f"{self.name} ends {outcome.number}")

    def tell(request, ctx):
        from generated import echo_pb2

        return echo_pb2.EchoResponse(message=" ".join(sorted(ctx.metadata)))

    sub = face.channel(serve_def(tell).address, hooks=[Note("inner")])
    channel = selective(face, [sub], options={"hooks": [Note("outer")]})
    assert ask(face, way, client(face, channel)) == "inner outer"
    assert seen == ["outer starts", "inner starts", "inner ends 0", "outer ends 0"]


@ways
def test_closed_is_closed_at_once(face, serve_def, way):
    for ends in ([serve_def(named("a"))], []):
        channel = selective(face, ends)
        one = client(face, channel)
        face.close_channel(channel)
        with pytest.raises(tw.ClosedError):
            ask(face, way, one)


def test_one_that_is_closed_takes_no_more(face, serve_def):
    channel = selective(face, [])
    face.close_channel(channel)
    with pytest.raises(tw.ClosedError):
        channel.add(*over(face, serve_def(named("a"))))


def test_the_sub_channels_are_closed_only_if_it_owns_them(face, serve_def):
    [sub] = over(face, serve_def(named("a")))
    face.close_channel(selective(face, [sub]))
    assert ask(face, "call", client(face, sub)) == "a hello"
    face.close_channel(selective(face, [sub], owns=True))
    with pytest.raises(tw.ClosedError):
        ask(face, "call", client(face, sub))


def test_one_left_open_is_told_of_if_it_owns_something(face):
    kind = kind_of(face, "SelectiveChannel")
    subs = over(face, "127.0.0.1:1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind(subs)
        gc.collect()
    with pytest.warns(ResourceWarning, match="unclosed <tidewire.*Selective"):
        kind(subs, owns=True)


def test_views(face, serve_def, gate):
    channel = selective(face, [serve_def(gate=gate)])
    one = client(face, channel.with_options(timeout=0.1))
    with within(0.1 + 1.0 * SLOW), pytest.raises(tw.DeadlineExceeded):
        face.call(one, "echo", REQUEST)
    gate.open()


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        ({"channels": "host:80"}, TypeError, "channels is a str; allowed: several"),
        ({"channels": [3]}, TypeError, r"channels\[0\] is a int; allowed"),
        ({"options": 3}, TypeError, "options is a int; allowed: ChannelOptions"),
    ],
)
def test_bad_input(face, bad, error, text):
    with pytest.raises(error, match=text):
        kind_of(face, "SelectiveChannel")(**bad)


def test_faces_do_not_mix(face):
    other = "AsyncChannel" if face.name == "blocking" else "Channel"
    stranger = getattr(tw, other)("127.0.0.1:1")
    with pytest.raises(TypeError, match=f"is a {other}; allowed"):
        opened(face, "SelectiveChannel", [stranger])
    stranger._close()


def test_gates_are_for_both_faces(face, serve_def):
    """Calls at the same time go to different sub-channels."""
    gates = [Gate(), Gate()]
    one = client(face, selective(face, [serve_def(gate=g) for g in gates]))
    calls = [face.start(one, "echo", REQUEST) for _ in gates]
    for g in gates:
        g.until_entered()
        g.open()
    assert [call.result(30).message for call in calls] == ["hello", "hello"]
