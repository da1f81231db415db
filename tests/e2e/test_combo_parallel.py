"""ParallelChannel: one call is one to each sub-channel."""

import gc
import threading
import warnings

import pytest
import tidewire as tw
from combos import REQUEST, ask, failing, kind_of, named, parallel
from combos import client as client_for
from generated import echo_pb2, echo_tw
from harness import SLOW, Gate, counter, eventually, within

ways = pytest.mark.parametrize("way", ["call", "full", "start"])


def client_of(face, ends, **how):
    return client_for(face, parallel(face, ends, **how))


def nothing_in_flight():
    return counter("tidewire_client_in_flight") == 0


@ways
def test_all_are_called_and_merged_in_order(face, serve_def, way):
    client = client_of(face, [serve_def(named(name)) for name in "abc"])
    assert ask(face, way, client) == "a hello|b hello|c hello"


@ways
def test_they_run_at_the_same_time(face, serve_def, way):
    """Each waits for the others."""
    together = threading.Barrier(3)

    def meet(request, ctx):
        together.wait(30)
        return echo_pb2.EchoResponse(message="met")

    client = client_of(face, [serve_def(meet) for _ in range(3)])
    assert ask(face, way, client) == "met|met|met"


def test_without_a_merge_messages_are_merged(face, serve_def):
    client = client_of(face, [serve_def(named(n)) for n in "ab"], merge=None)
    # The last one's scalars count, as protobuf has it.
    assert ask(face, "call", client) == "b hello"


@ways
def test_failures_below_the_limit_are_left_out(face, serve_def, way):
    client = client_of(
        face, [serve_def(named("a")), serve_def(failing()), serve_def(named("c"))]
    )
    assert ask(face, way, client) == "a hello|-|c hello"


@ways
def test_one_number_of_all_failures_is_the_calls(face, serve_def, way):
    servers = [serve_def(failing()), serve_def(named("b")), serve_def(failing())]
    client = client_of(face, servers, fail_limit=2)
    with pytest.raises(tw.NotFound) as caught:
        ask(face, way, client)
    error = caught.value
    assert "2/3 channels failed, fail_limit=2 [C0]" in error.message
    assert [part.channel for part in error.parts] == [s.address for s in servers]
    assert [one.error and type(one.error) for one in error.parts[::2]] == [
        tw.NotFound,
        tw.NotFound,
    ]
    assert error.parts[0].error.peer == servers[0].address
    assert error.method == "example.EchoService/Echo"
    assert error.peer == f"parallel({', '.join(s.address for s in servers)})"
    assert error.elapsed > 0
    assert error.limit == 30.0


def test_different_numbers_are_too_many_failures(face, serve_def):
    servers = [serve_def(failing()), serve_def(failing(tw.Aborted))]
    client = client_of(face, servers)
    with pytest.raises(tw.RpcError) as caught:
        face.call(client, "echo", REQUEST)
    error = caught.value
    assert error.number == tw.Errno.ETOOMANYFAILS
    assert "2/2 channels failed, fail_limit=2 [C0][E" in error.message
    assert "[C1][E" in error.message


@ways
def test_the_fail_limit_cancels_the_rest(face, serve_def, gate, way):
    client = client_of(face, [serve_def(gate=gate), serve_def(failing())], fail_limit=1)
    with within(1.0 * SLOW), pytest.raises(tw.NotFound) as caught:
        ask(face, way, client)
    first, second = caught.value.parts
    assert first.error.number == tw.Errno.ECANCELED
    assert second.error.number == tw.Errno.ENXIO
    eventually(nothing_in_flight)
    gate.open()


@ways
def test_the_success_limit_cancels_the_rest(face, serve_def, gate, way):
    servers = [serve_def(gate=gate), serve_def(named("b")), serve_def(gate=gate)]
    client = client_of(face, servers, success_limit=1)
    with within(1.0 * SLOW):
        assert ask(face, way, client) == "-|b hello|-"
    reply = face.full(client, "echo", REQUEST)
    numbers = [part.error and part.error.number for part in reply.parts]
    assert numbers == [tw.Errno.EPCHANFINISH, None, tw.Errno.EPCHANFINISH]
    assert reply.parts[1].response.peer == servers[1].address
    eventually(nothing_in_flight)
    gate.open()


def test_a_success_limit_out_of_reach_is_a_failure_at_once(face, serve_def, gate):
    servers = [serve_def(gate=gate), serve_def(failing()), serve_def(failing())]
    client = client_of(face, servers, success_limit=2)
    with within(1.0 * SLOW), pytest.raises(tw.NotFound, match="fail_limit=2"):
        face.call(client, "echo", REQUEST)
    gate.open()


@ways
def test_the_deadline_is_of_all(face, serve_def, gate, way):
    client = client_of(
        face, [serve_def(gate=gate), serve_def(gate=gate)], options={"timeout": 0.2}
    )
    with within(0.2 + 1.0 * SLOW), pytest.raises(tw.DeadlineExceeded) as caught:
        ask(face, way, client)
    assert caught.value.elapsed >= 0.19
    assert {part.error.number for part in caught.value.parts} == {tw.Errno.ERPCTIMEDOUT}
    gate.open()


def test_it_replaces_those_of_the_sub_channels(face, serve_def, gate):
    sub = face.channel(serve_def(named("a"), gate=gate).address, timeout=0.05)
    client = client_of(face, [sub])
    call = face.start(client, "echo", REQUEST)
    gate.until_entered()
    other = face.client(echo_tw, sub)
    with pytest.raises(tw.DeadlineExceeded):
        face.call(other, "echo", REQUEST)
    gate.open()
    assert call.result(30).message == "a hello"


def test_a_deadline_with_enough_answers_is_no_failure(face, serve_def, gate):
    client = client_of(face, [serve_def(named("a")), serve_def(gate=gate)])
    assert face.call(client, "echo", REQUEST, timeout=0.2).message == "a hello|-"
    gate.open()


def test_an_outer_deadline_bounds_it(face, serve_def, gate):
    client = client_of(face, [serve_def(gate=gate)])
    with within(0.2 + 1.0 * SLOW), pytest.raises(tw.DeadlineExceeded):
        if face.name == "blocking":
            with tw.deadline(0.2):
                client.echo(REQUEST)
        else:

            async def bounded():
                with tw.deadline(0.2):
                    await client.echo(REQUEST)

            face.run(bounded())
    gate.open()


def test_cancelling_cancels_all(face, serve_def):
    gates = [Gate(), Gate()]
    client = client_of(face, [serve_def(gate=one) for one in gates])
    call = face.start(client, "echo", REQUEST)
    for one in gates:
        one.until_entered()
    assert call.cancel()
    eventually(nothing_in_flight)
    for one in gates:
        one.open()


def test_each_gets_what_map_gives(face, serve_def):
    seen = []

    def share(i, n, method, request):
        seen.append((i, n, method.name))
        if i == 1:
            return tw.SKIP
        return echo_pb2.EchoRequest(message=f"{request.message} {i}/{n}")

    client = client_of(face, [serve_def(named(n)) for n in "abc"], map=share)
    reply = face.full(client, "echo", REQUEST)
    assert reply.message.message == "a hello 0/3|-|c hello 2/3"
    assert [part.skipped for part in reply.parts] == [False, True, False]
    assert seen == [(0, 3, "Echo"), (1, 3, "Echo"), (2, 3, "Echo")]


@ways
def test_all_skipped_is_cancelled(face, way):
    client = client_of(face, ["127.0.0.1:1"], map=lambda *_: tw.SKIP)
    with pytest.raises(tw.Cancelled, match="skipped"):
        ask(face, way, client)


@ways
def test_a_map_that_fails_fails_the_call_before_anything_is_sent(face, way):
    client = client_of(face, ["127.0.0.1:1"], map=lambda *_: {}["no"])
    with pytest.raises(KeyError):
        ask(face, way, client)
    client = client_of(face, ["127.0.0.1:1"], map=lambda *_: None)
    with pytest.raises(TypeError, match=r"map gave None .* tidewire.SKIP"):
        ask(face, way, client)


@ways
def test_a_merge_that_fails_is_a_bad_response(face, serve_def, way):
    def refuse(replies):
        raise LookupError("no majority")

    client = client_of(face, [serve_def(named("a"))], merge=refuse)
    with pytest.raises(tw.RpcError, match="no majority") as caught:
        ask(face, way, client)
    assert caught.value.number == tw.Errno.ERESPONSE
    assert isinstance(caught.value.__cause__, LookupError)
    assert caught.value.parts[0].response.message.message == "a hello"


def test_a_merge_may_raise_what_the_call_is_to_raise(face, serve_def):
    def refuse(replies):
        raise tw.FailedPrecondition("no majority")

    client = client_of(face, [serve_def(named("a"))], merge=refuse)
    with pytest.raises(tw.FailedPrecondition) as caught:
        face.call(client, "echo", REQUEST)
    assert caught.value.parts[0].response is not None


@ways
def test_they_nest(face, serve_def, way):
    left = parallel(face, [serve_def(named(n)) for n in "ab"])
    right = parallel(face, [serve_def(named(n)) for n in "cd"])
    client = client_of(face, [left, right, left])
    part = "a hello|b hello"
    assert ask(face, way, client) == f"{part}|c hello|d hello|{part}"


def test_an_inner_failure_is_a_part(face, serve_def):
    inner = parallel(face, [serve_def(failing()), serve_def(named("b"))], fail_limit=1)
    client = client_of(face, [inner, serve_def(failing())])
    with pytest.raises(tw.NotFound) as caught:
        face.call(client, "echo", REQUEST)
    assert len(caught.value.parts[0].error.parts) == 2


def test_cancelling_reaches_the_innermost(face, serve_def, gate):
    inner = parallel(face, [serve_def(gate=gate)])
    call = face.start(client_of(face, [inner]), "echo", REQUEST)
    gate.until_entered()
    assert call.cancel()
    eventually(nothing_in_flight)
    gate.open()


def test_what_goes_beside_the_request_goes_to_all(face, serve_def):
    seen = []

    def note(request, ctx):
        seen.append((ctx.metadata["who"], bytes(ctx.attachment), ctx.log_id))
        return echo_pb2.EchoResponse(message="")

    cluster = face.channel(f"list://{serve_def(note).address}", balancer="c_murmurhash")
    client = client_of(face, [serve_def(note), cluster])
    face.call(
        client,
        "echo",
        REQUEST,
        metadata={"who": "me"},
        attachment=b"x",
        log_id=7,
        key=3,
    )
    assert seen == [("me", b"x", 7)] * 2


@ways
def test_hooks_see_one_call(face, serve_def, way):
    seen = []

    class Note(tw.Hook):
        def on_start(self, call):
            seen.append(call.method)
            call.metadata["by"] = "hook"

        def on_message(self, call, message, sent):
            seen.append(message.message)

        def on_end(self, call, outcome):
            seen.append(outcome.number)

    def tell(request, ctx):
        return echo_pb2.EchoResponse(message=ctx.metadata["by"])

    client = client_of(
        face, [serve_def(tell), serve_def(tell)], options={"hooks": [Note()]}
    )
    assert ask(face, way, client) == "hook|hook"
    assert seen == ["example.EchoService/Echo", "hello", "hook|hook", 0]


def test_hooks_see_the_end_of_a_cancelled_call(face, serve_def, gate):
    ends = []

    class Note(tw.Hook):
        def on_end(self, call, outcome):
            ends.append(outcome.number)

    client = client_of(face, [serve_def(gate=gate)], options={"hooks": [Note()]})
    call = face.start(client, "echo", REQUEST)
    gate.until_entered()
    assert call.cancel()
    assert eventually(lambda: ends) == [tw.Errno.ECANCELED]
    gate.open()


def test_the_sub_channels_stay_open_unless_it_owns_them(face, serve_def):
    sub = face.channel(serve_def(named("a")).address)
    client = face.client(echo_tw, sub)
    face.close_channel(parallel(face, [sub]))
    assert face.call(client, "echo", REQUEST).message == "a hello"
    face.close_channel(parallel(face, [sub], owns=True))
    with pytest.raises(tw.ClosedError):
        face.call(client, "echo", REQUEST)


@ways
def test_closed_is_closed_at_once(face, serve_def, way):
    channel = parallel(face, [serve_def(named("a"))])
    client = face.client(echo_tw, channel)
    face.close_channel(channel)
    with pytest.raises(tw.ClosedError, match=r"ParallelChannel to parallel\("):
        ask(face, way, client)


@pytest.mark.parametrize("owns", [False, True])
def test_closing_ends_calls_under_way(face, serve_def, gate, owns):
    channel = parallel(face, [serve_def(gate=gate)], owns=owns)
    call = face.start(face.client(echo_tw, channel), "echo", REQUEST)
    gate.until_entered()
    face.close_channel(channel)
    with pytest.raises(tw.Cancelled):
        call.result(30)
    eventually(nothing_in_flight)
    gate.open()


def test_one_left_open_is_told_of_if_it_owns_something(face):
    subs = [face.channel("127.0.0.1:1")]
    kind = kind_of(face, "ParallelChannel")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind(subs)
        gc.collect()
    with pytest.warns(ResourceWarning, match="unclosed <tidewire.*parallel"):
        kind(subs, owns=True)


def test_views(face, serve_def, gate):
    seen = []

    def note(request, ctx):
        seen.append(ctx.coding.content_type)
        return echo_pb2.EchoResponse(message="")

    channel = parallel(face, [serve_def(note, gate=gate)])
    client = face.client(echo_tw, channel.with_options(timeout=0.1))
    with within(0.1 + 1.0 * SLOW), pytest.raises(tw.DeadlineExceeded):
        face.call(client, "echo", REQUEST)
    gate.open()
    json = tw.Coding(content_type=tw.ContentType.JSON)
    client = face.client(echo_tw, channel.with_options(coding=json))
    face.call(client, "echo", REQUEST)
    assert seen[-1] is tw.ContentType.JSON


def test_what_owns_nothing_is_not_left_open(face):
    subs = [face.channel("127.0.0.1:1")]
    kind = kind_of(face, "ParallelChannel")
    with tw.testing.unclosed():
        kind(subs)
    with pytest.raises(AssertionError, match="parallel"), tw.testing.unclosed():
        owner = kind(subs, owns=True)
    owner._close()


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        ({"channels": []}, tw.OptionError, "channels is empty; allowed: one or more"),
        ({"channels": "host:80"}, TypeError, "channels is a str; allowed"),
        ({"channels": ["host:80"]}, TypeError, r"channels\[0\] is a str; allowed"),
        ({"fail_limit": 0}, tw.OptionError, "fail_limit is 0 .* from 1 to"),
        ({"fail_limit": True}, TypeError, "fail_limit is True"),
        ({"success_limit": -1}, tw.OptionError, "success_limit is -1"),
        ({"fail_limit": 1, "success_limit": 1}, tw.OptionError, "one of them"),
        ({"map": 3}, TypeError, "map is 3; allowed: a function"),
        ({"merge": "x"}, TypeError, "merge is 'x'; allowed: a function"),
        ({"options": {}}, TypeError, "options is a dict; allowed: ChannelOptions"),
    ],
)
def test_bad_input(face, bad, error, text):
    kind = kind_of(face, "ParallelChannel")
    good = {"channels": [face.channel("127.0.0.1:1")]}
    with pytest.raises(error, match=text):
        kind(**{**good, **bad})


def test_faces_do_not_mix(face):
    mine, other = tw.ParallelChannel, tw.AsyncParallelChannel
    if face.name == "asyncio":
        mine, other = other, mine
    channel = face.channel("127.0.0.1:1")
    with pytest.raises(TypeError, match=r"channels\[0\] is a \w*Channel; allowed"):
        other([channel])
    assert "parallel(127.0.0.1:1)" in repr(mine([channel]))


def test_no_thread_for_each_sub_call(serve_def, gate):
    with tw.Channel(serve_def(gate=gate, threads=40).address) as sub:
        channel = tw.ParallelChannel(
            [sub] * 30, options=tw.ChannelOptions(timeout=30.0)
        )
        client = echo_tw.EchoClient(channel)
        first = client.echo.future(REQUEST)
        gate.until_entered(30)
        before = threading.active_count()
        second = client.echo.future(REQUEST)
        assert threading.active_count() <= before
        gate.open()
        assert (
            first.result(30)
            == second.result(30)
            == echo_pb2.EchoResponse(message="hello")
        )
