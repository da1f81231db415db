"""tidewire.testing: servers and fakes for the tests of those who use Tidewire."""

import asyncio
import gc
import inspect
import os
import threading
import warnings
from contextlib import contextmanager, suppress

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import SLOW, no_leaks, service

ECHO = echo_tw.EchoService.echo
REQUEST = echo_pb2.EchoRequest(message="hello")
RAW = tw.MethodInfo(service="raw.Raw", name="Do", request=bytes, response=bytes)


def reply(text):
    return echo_pb2.EchoResponse(message=text)


@contextmanager
def entered(face, thing):
    """What serve() or fake() give, by `with` or by `async with`."""
    if face.name == "blocking":
        with thing as it:
            yield it
        return
    it = face.run(thing.__aenter__())
    try:
        yield it
    except BaseException as error:
        face.run(thing.__aexit__(type(error), error, error.__traceback__))
        raise
    face.run(thing.__aexit__(None, None, None))


def done(face, result):
    """A result that the asyncio face awaits."""
    return face.run(result) if inspect.isawaitable(result) else result


def stop(face, served):
    done(face, served.stop() if face.name == "blocking" else served.astop())


def restart(face, served):
    done(face, served.restart() if face.name == "blocking" else served.arestart())


def says(face, channel, request=REQUEST, **how):
    return face.call(face.client(echo_tw, channel), "echo", request, **how).message


def failure(face, client):
    """What a call fails with, None: it does not."""
    try:
        face.call(client, "echo", REQUEST, timeout=10)
    except tw.RpcError as error:
        return error
    return None


# ---- serve


@pytest.mark.parametrize("kind", ["def", "async"])
@pytest.mark.parametrize("listen", [None, "127.0.0.1:0"])
def test_a_server_and_a_channel_to_it(face, kind, listen):
    with entered(face, tw.testing.serve(service(kind), listen=listen)) as served:
        assert says(face, served.channel) == "hello"
        assert served.channel.address == served.address == served.server.address
        path = served.address.removeprefix("unix:")
        assert served.address.startswith("unix:/" if listen is None else "127.0.0.1:")
        assert os.path.exists(path) == (listen is None)
    assert not os.path.exists(path)
    with pytest.raises(tw.ClosedError):
        says(face, served.channel)


def test_no_two_servers_meet(face):
    with (
        entered(face, tw.testing.serve(service("def"))) as one,
        entered(face, tw.testing.serve(service("def"))) as other,
    ):
        assert one.address != other.address


def test_async_handlers_run_on_the_loop_of_async_with():
    async def main():
        loop = asyncio.get_running_loop()

        class Service(echo_tw.EchoService):
            async def echo(self, request, ctx):
                assert asyncio.get_running_loop() is loop
                return reply("here")

        async with tw.testing.serve(Service) as served:
            client = echo_tw.AsyncEchoClient(served.channel)
            assert (await client.echo(REQUEST)).message == "here"

    asyncio.run(main())


def test_what_serve_passes_on(face):
    @contextmanager
    def lifespan():
        yield "state"

    class Says(echo_tw.EchoService):
        def echo(self, request, ctx):
            return reply(f"{ctx.state} {ctx.thread_state} {ctx.identity}")

    serving = tw.testing.serve(
        Says,
        options=tw.ServerOptions(
            authenticator=tw.TokenAuthenticator({"alice": "a", "bob": "b"})
        ),
        channel=tw.ChannelOptions(timeout=5.0, credentials=b"a"),
        lifespan=lifespan,
        thread_state=lambda: "thread",
    )
    with entered(face, serving) as served:
        assert served.channel.options.timeout == 5.0
        assert says(face, served.channel) == "state thread alice"
        bob = served.connect(tw.ChannelOptions(credentials=b"b", timeout=5.0))
        assert says(face, bob) == "state thread bob"
        assert served.connect().options is served.channel.options


@pytest.mark.parametrize("listen", [None, "127.0.0.1:0"])
def test_stopping_and_restarting(face, listen):
    made = []

    def make():
        made.append(service("def"))
        return made[-1]

    with entered(face, tw.testing.serve(make, listen=listen)) as served:
        address, first = served.address, served.server
        assert says(face, served.channel) == "hello"
        stop(face, served)
        with pytest.raises(tw.Unavailable) as caught:
            says(face, served.channel)
        assert caught.value.phase is tw.Phase.CONNECT
        for _ in range(2):  # of one that is stopped, of one that runs
            restart(face, served)
            assert served.address == address
            assert served.server is not first
            # The channel may learn only by this call that the server has gone.
            with suppress(tw.Unavailable):
                says(face, served.channel)
            assert says(face, served.channel) == "hello"
    assert len(made) == 3


def test_the_end_waits_for_what_runs_unless_the_test_has_failed(face, gate):
    """A call on another channel, for served's own are closed by then."""
    answered = threading.Event()

    class Waits(echo_tw.EchoService):
        def echo(self, request, ctx):
            gate.wait()
            answered.set()
            return reply("late")

    serving = tw.testing.serve(Waits, options=tw.ServerOptions(drain=20.0 * SLOW))
    with entered(face, serving) as served:
        client = face.client(echo_tw, face.channel(served.address))
        call = face.start(client, "echo", REQUEST, timeout=30)
        gate.until_entered()
        opener = threading.Timer(0.1, gate.open)
        opener.start()
    assert call.result(30).message == "late"
    opener.join()


def test_after_an_error_nothing_is_waited_for(face, gate):
    class Waits(echo_tw.EchoService):
        async def echo(self, request, ctx):
            await gate.passed()

    serving = tw.testing.serve(Waits, options=tw.ServerOptions(drain=600.0))
    with (
        pytest.raises(ZeroDivisionError),  # and no other
        entered(face, serving) as served,
    ):
        client = face.client(echo_tw, face.channel(served.address))
        call = face.start(client, "echo", REQUEST, timeout=None)
        gate.until_entered()
        raise ZeroDivisionError
    assert isinstance(call.exception(30), tw.Unavailable)
    gate.until_cancelled()


def test_a_function_that_makes_the_server(face):
    made = []

    def make(listen):
        options = tw.ServerOptions(threads=1)
        made.append(tw.Server([service("def")], listen=listen, options=options))
        return made[-1]

    with entered(face, tw.testing.serve(server=make)) as served:
        assert says(face, served.channel) == "hello"
        restart(face, served)
        assert served.server is made[-1]
        assert len(made) == 2


def test_what_makes_no_server_is_refused(face):
    with pytest.raises(tw.OptionError, match="given server and more; allowed"):
        tw.testing.serve(service("def"), server=lambda listen: None)
    serving = tw.testing.serve(server=lambda listen: "none")
    with (
        pytest.raises(TypeError, match="server gave a str; allowed"),
        entered(face, serving),
    ):
        raise AssertionError("never here")


def test_what_cannot_be_served_is_refused_and_leaves_nothing(face):
    with no_leaks():
        for services, options in (
            ([], {}),
            (["no service"], {}),
            ([service("def")], {"workers": 2}),
        ):
            serving = tw.testing.serve(*services, options=tw.ServerOptions(**options))
            with (
                pytest.raises((tw.OptionError, TypeError), match="allowed"),
                entered(face, serving),
            ):
                raise AssertionError("never here")


# ---- fake


def test_a_message_is_answered_and_the_call_recorded(face):
    with entered(face, tw.testing.fake({ECHO: reply("fake")})) as faked:
        client = face.client(echo_tw, faked.channel)
        how = {"metadata": {"k": "v"}, "attachment": b"beside", "log_id": 7}
        for timeout in (5.0, None):
            answer = face.call(client, "echo", REQUEST, timeout=timeout, **how)
            assert answer.message == "fake"
        first, second = faked.calls
        assert first.method == "example.EchoService/Echo"
        assert first.request == REQUEST
        assert first.timeout == pytest.approx(5.0, abs=SLOW)
        assert first.metadata == {"k": "v"}
        assert (first.attachment, first.log_id) == (b"beside", 7)
        assert second.timeout is None
        assert faked.calls_of(ECHO) == [first, second]
        assert faked.calls_of(RAW) == []


def test_an_error_is_raised_as_a_servers(face):
    error = tw.NotFound("no such thing", number=12345)
    with entered(face, tw.testing.fake({ECHO: error})) as faked:
        client = face.client(echo_tw, faked.channel)
        for _ in range(2):
            with pytest.raises(tw.RpcError, match="no such thing") as caught:
                face.call(client, "echo", REQUEST)
            assert caught.value is not error
            assert caught.value.number == 12345
            assert caught.value.phase is tw.Phase.PEER
            assert caught.value.peer == faked.address


@pytest.mark.parametrize("kind", ["def", "async"])
def test_a_function_of_the_request(face, kind):
    def answer(request):
        if not request.message:
            raise tw.InvalidArgument("say something")
        return reply(request.message * 2)

    async def aanswer(request):
        await asyncio.sleep(0)
        return answer(request)

    replies = {ECHO: answer if kind == "def" else aanswer}
    with entered(face, tw.testing.fake(replies)) as faked:
        assert says(face, faked.channel) == "hellohello"
        with pytest.raises(tw.InvalidArgument, match="say something"):
            says(face, faked.channel, echo_pb2.EchoRequest(message=""))


def test_a_list_has_a_reply_for_each_call(face):
    async def third(request):
        return reply("third")

    replies = [reply("first"), tw.Unavailable("second"), third, lambda _: reply("last")]
    with entered(face, tw.testing.fake({ECHO: replies})) as faked:
        assert says(face, faked.channel) == "first"
        with pytest.raises(tw.Unavailable, match="second"):
            says(face, faked.channel)
        assert says(face, faked.channel) == "third"
        assert says(face, faked.channel) == "last"


def test_a_list_that_is_used_up_fails_the_test(face):
    used_up = "example.EchoService/Echo was called 2 times; it has 1 replies"
    with (
        pytest.raises(AssertionError, match=used_up),
        entered(face, tw.testing.fake({ECHO: [reply("one")]})) as faked,
    ):
        assert says(face, faked.channel) == "one"
        with pytest.raises(tw.Internal, match=used_up):
            says(face, faked.channel)


def test_an_unknown_method_is_named_with_those_that_are_known(face):
    text = "the fake does not know example.EchoService/Echo; it knows raw.Raw/Do"
    with (
        pytest.raises(AssertionError, match=text),
        entered(face, tw.testing.fake({RAW: b"raw"})) as faked,
    ):
        with pytest.raises(tw.Unimplemented, match=text) as caught:
            says(face, faked.channel)
        assert caught.value.number == tw.Errno.ENOMETHOD
        assert faked.calls[0].request == REQUEST.SerializeToString()


def test_an_empty_fake_knows_nothing(face):
    with (
        pytest.raises(AssertionError, match="it knows none"),
        entered(face, tw.testing.fake({})) as faked,
        suppress(tw.Unimplemented),
    ):
        says(face, faked.channel)


def test_methods_of_several_services_and_of_bytes(face):
    seen = []
    replies = {RAW: lambda request: seen.append(request) or b"raw", ECHO: reply("fake")}
    with entered(face, tw.testing.fake(replies)) as faked:
        assert says(face, faked.channel) == "fake"
        assert done(face, faked.channel.unary(RAW)(b"asked")) == b"raw"
        assert seen == [b"asked"]


def test_a_function_that_gives_something_else_fails_the_test(face):
    wrong = (
        "reply of example.EchoService/Echo is of type EchoRequest; allowed: a message"
    )
    with (
        pytest.raises(AssertionError, match=wrong),
        entered(face, tw.testing.fake({ECHO: lambda request: request})) as faked,
        # Whatever the code under test makes of it.
        suppress(tw.Internal),
    ):
        says(face, faked.channel)


@pytest.mark.parametrize(
    "wrong",
    [
        REQUEST,
        None,
        "text",
        ValueError("not an RpcError"),
        tw.NotFound,
        b"",
        [],
        [None],
    ],
    ids=repr,
)
def test_replies_of_a_wrong_type_are_refused_at_once(wrong):
    with pytest.raises((TypeError, tw.OptionError), match="of example.EchoService/Ec"):
        tw.testing.fake({ECHO: wrong})


def test_a_reply_that_cannot_be_encoded_is_said_to_be_so(face):
    """A field that is required is missing."""
    lacks = "of example.EchoService/Echo cannot be encoded: .*required fields: message"
    with pytest.raises(tw.CodecError, match=lacks):
        tw.testing.fake({ECHO: [reply("fine"), echo_pb2.EchoResponse()]})
    with (
        pytest.raises(AssertionError, match=lacks),
        entered(
            face, tw.testing.fake({ECHO: lambda _: echo_pb2.EchoResponse()})
        ) as faked,
        pytest.raises(tw.Internal, match=lacks),
    ):
        says(face, faked.channel)


@pytest.mark.parametrize("method", ["example.EchoService/Echo", len, echo_tw, None])
def test_what_is_no_method_is_refused(method):
    with pytest.raises(TypeError, match="is no method; allowed: a method of a gener"):
        tw.testing.fake({method: reply("")})


def test_the_tests_own_error_goes_first(face):
    with (
        pytest.raises(ZeroDivisionError),
        entered(face, tw.testing.fake({})) as faked,
    ):
        with suppress(tw.Unimplemented):
            says(face, faked.channel)
        raise ZeroDivisionError


def test_deadlines_and_hooks_are_the_real_ones(face, gate):
    ends = []

    @tw.around
    def noted(call):
        call.metadata["hook"] = "yes"
        outcome = yield
        ends.append(outcome.code)

    async def never(request):
        await gate.passed()
        return reply("late")

    options = tw.ChannelOptions(hooks=[noted], timeout=0.05)
    with entered(face, tw.testing.fake({ECHO: never}, channel=options)) as faked:
        with pytest.raises(tw.DeadlineExceeded):
            says(face, faked.channel)
        assert ends == [tw.Code.DEADLINE_EXCEEDED]
        # It may have come too late to be run.
        assert all(call.metadata == {"hook": "yes"} for call in faked.calls)
        gate.open()


def test_fakes_behind_a_cluster(face):
    """One says that it leaves, the other gets the call."""
    leaves = tw.Unavailable("leaving", number=tw.Errno.ELOGOFF)
    with (
        entered(face, tw.testing.fake({ECHO: leaves})) as one,
        entered(face, tw.testing.fake({ECHO: reply("other")})) as other,
    ):
        channel = face.channel(f"list://{one.address},{other.address}", timeout=10)
        assert [says(face, channel) for _ in range(4)] == ["other"] * 4
        assert len(other.calls) == 4
        assert len(one.calls) > 0


# ---- faults


def test_a_cut_in_the_middle_of_an_answer(face, serve_def):
    with tw.testing.faults(serve_def().address, "down:reset@20") as proxy:
        with pytest.raises(tw.Unavailable) as caught:
            says(face, face.channel(proxy.address), timeout=5)
        assert caught.value.phase is tw.Phase.READ
        assert proxy.last.happened == "down:reset"
        proxy.plan = "none"
        assert says(face, face.channel(proxy.address), timeout=5) == "hello"


def test_refusing(face, serve_def):
    with tw.testing.faults(serve_def().address) as proxy:
        early = face.channel(proxy.address)
        assert says(face, early, timeout=5) == "hello"
        late = face.channel(proxy.address, connection_group="late")
        with proxy.refusing():
            for _ in range(3):
                with pytest.raises(tw.Unavailable, match="refused") as caught:
                    says(face, late, timeout=5)
                assert caught.value.phase is tw.Phase.CONNECT
            assert says(face, early, timeout=5) == "hello"
        assert says(face, late, timeout=5) == "hello"
        assert proxy.seen == 2


@pytest.mark.parametrize("side", ["server", "channel"])
def test_a_share_of_the_calls_fails(face, serve, side, capsys):
    def outcomes(seed):
        hook = tw.testing.Failing(
            {tw.Errno.ELIMIT: 0.3, tw.Errno.EINTERNAL: 0.2}, seed=seed
        )
        hooks = {"hooks": [hook]}
        server = serve(**(hooks if side == "server" else {}))
        channel = face.channel(server.address, **(hooks if side == "channel" else {}))
        client = face.client(echo_tw, channel)
        numbers = []
        for _ in range(60):
            error = failure(face, client)
            assert error is None or f"seed {seed}" in error.message
            numbers.append(error.number if error else 0)
        assert (hook.seen, hook.failed) == (60, 60 - numbers.count(0))
        return numbers

    first = outcomes(3)
    assert first == outcomes(3)
    assert first != outcomes(4)
    assert set(first) == {0, tw.Errno.ELIMIT, tw.Errno.EINTERNAL}
    assert 10 < first.count(0) < 50
    assert "seed 3" in capsys.readouterr().out


def test_only_the_methods_named_fail(face, serve_def):
    hook = tw.testing.Failing({tw.Errno.ELIMIT: 1}, methods=["other.Service/Do"])
    assert hook.seed > 0
    assert says(face, face.channel(serve_def(hooks=[hook]).address)) == "hello"
    assert hook.seen == 0
    both = ["other.Service/Do", "example.EchoService/Echo"]
    hook = tw.testing.Failing({tw.Errno.ELIMIT: 1}, methods=both)
    with pytest.raises(tw.ResourceExhausted):
        says(face, face.channel(serve_def(hooks=[hook]).address))


@pytest.mark.parametrize(
    "shares", [{0: 0.5}, {5: -0.1}, {5: 1.1}, {5: 0.6, 6: 0.6}, {5: float("nan")}]
)
def test_shares_that_cannot_be(shares):
    with pytest.raises(tw.OptionError, match="shares is .*allowed"):
        tw.testing.Failing(shares)


def test_a_text_is_no_list_of_methods():
    with pytest.raises(TypeError, match="allowed: a list of full names"):
        tw.testing.Failing({5: 1}, methods="a.B/C")


# ---- unclosed


def test_what_is_closed_is_no_matter(face):
    with tw.testing.unclosed():
        with entered(face, tw.testing.serve(service("def"))) as served:
            assert says(face, served.channel) == "hello"
        tw.Server([service("def")], listen="127.0.0.1:0")  # never started


def test_what_is_left_open_is_named_with_its_place():
    here = f"{__file__}:"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        with (
            pytest.raises(AssertionError, match="left open") as caught,
            tw.testing.unclosed(),
        ):
            tw.Channel("127.0.0.1:1")  # not even kept
            kept = [
                tw.AsyncChannel("127.0.0.1:1"),
                tw.Server([service("def")], listen="127.0.0.1:0").start(),
            ]
        kept[1].stop()
        lines = str(caught.value).splitlines()[1:]
        assert [line.split()[0] for line in lines] == [
            "<tidewire.Channel",
            "<tidewire.AsyncChannel",
            "<tidewire.Server",
        ]
        assert all(here in line for line in lines)
        del kept, caught
        gc.collect()


def test_a_cluster_is_one_channel():
    with (
        pytest.raises(AssertionError) as caught,
        tw.testing.unclosed(),
    ):
        kept = tw.Channel("list://127.0.0.1:1,127.0.0.1:2")
    kept.close()
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "list://127.0.0.1:1,127.0.0.1:2" in lines[1]


def test_errors_go_first_and_other_channels_are_no_matter(face, serve_def):
    channel = face.channel(serve_def().address)
    with pytest.raises(ZeroDivisionError), tw.testing.unclosed():
        assert says(face, channel) == "hello"
        open_one = face.channel(channel.address)
        raise ZeroDivisionError
    assert says(face, open_one) == "hello"
