"""Hooks: one form for servers and channels, every face and kind of handler."""

import asyncio
import concurrent.futures
import contextvars
import logging
import threading

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import (
    ECHO_META,
    Gate,
    connect,
    echo,
    eventually,
    field,
    frame,
    raw_request,
    reset,
)

REQUEST = echo_pb2.EchoRequest(message="hello")


class Noting(tw.Hook):
    """Notes what it sees in a list that several may share."""

    def __init__(self, name, notes, fail_in=None, error=None):
        self.name, self.notes = name, notes
        self.fail_in, self.error = fail_in, error

    def _note(self, what, *more):
        self.notes.append((self.name, what, *more))
        if self.fail_in == what:
            raise self.error

    def on_start(self, call):
        self._note("start")

    def on_message(self, call, message, sent):
        self._note("sent" if sent else "received")

    def on_end(self, call, outcome):
        self.outcome = outcome
        self._note("end", outcome.number)


class Noticing(tw.Hook):
    """Keeps calls and outcomes."""

    def __init__(self):
        self.calls, self.messages, self.outcomes = [], [], []

    def on_start(self, call):
        call.data["hook"] = self
        self.calls.append(call)

    def on_message(self, call, message, sent):
        assert call.data["hook"] is self
        self.messages.append((message.message, sent))

    def on_end(self, call, outcome):
        assert call.data["hook"] is self
        self.outcomes.append(outcome)


def ask(face, way, client, **how):
    """A call by each way that a face has."""
    if way == "full":
        return face.full(client, "echo", REQUEST, **how).message
    if way == "start":
        return face.start(client, "echo", REQUEST, **how).result(30)
    return face.call(client, "echo", REQUEST, **how)


ways = pytest.mark.parametrize("way", ["call", "full", "start"])


# ---- order


def test_the_first_hook_of_a_server_is_the_outermost(face, serve):
    notes = []

    def handler(request, ctx):
        notes.append("handler")
        return echo(request, ctx)

    server = serve(handler, hooks=[Noting("a", notes), Noting("b", notes)])
    client = face.client(echo_tw, face.channel(server.address))
    assert face.call(client, "echo", REQUEST, timeout=5).message == "hello"
    assert notes == [
        ("a", "start"),
        ("b", "start"),
        ("a", "received"),
        ("b", "received"),
        "handler",
        ("b", "sent"),
        ("a", "sent"),
        ("b", "end", 0),
        ("a", "end", 0),
    ]


@ways
def test_the_first_hook_of_a_channel_is_the_outermost(face, serve, way):
    notes = []

    def handler(request, ctx):
        notes.append("handler")
        return echo(request, ctx)

    server = serve(handler)
    channel = face.channel(
        server.address, hooks=[Noting("a", notes), Noting("b", notes)]
    )
    client = face.client(echo_tw, channel)
    assert ask(face, way, client, timeout=5).message == "hello"
    assert notes == [
        ("a", "start"),
        ("b", "start"),
        ("a", "sent"),
        ("b", "sent"),
        "handler",
        ("b", "received"),
        ("a", "received"),
        ("b", "end", 0),
        ("a", "end", 0),
    ]


# ---- what they see


def test_what_a_servers_hook_sees(face, serve):
    hook = Noticing()
    server = serve(hooks=[hook])
    client = face.client(echo_tw, face.channel(server.address))
    # With and without a deadline: two ways through the dispatcher.
    for timeout in (5, None):
        face.call(client, "echo", REQUEST, timeout=timeout, metadata={"k": "v"})
    eventually(lambda: len(hook.outcomes) == 2)
    for call in hook.calls:
        assert call.method == "example.EchoService/Echo"
        assert isinstance(call.context, tw.Context)
        assert call.peer.startswith("127.0.0.1:")
    assert hook.messages == [("hello", False), ("hello", True)] * 2
    for outcome in hook.outcomes:
        assert (outcome.number, outcome.code) == (0, tw.Code.OK)
        assert outcome.error is None
        assert outcome.elapsed > 0


def test_a_servers_hook_reads_the_metadata(face, serve):
    seen = []

    class Reads(tw.Hook):
        def on_start(self, call):
            seen.append(call.metadata)

    server = serve(hooks=[Reads()])
    client = face.client(echo_tw, face.channel(server.address))
    face.call(client, "echo", REQUEST, timeout=5, metadata={"k": "v"})
    assert seen == [{"k": "v"}]


@ways
def test_what_a_channels_hook_sees_and_adds(face, serve, way):
    seen = []

    def handler(request, ctx):
        seen.append(dict(ctx.metadata))
        return echo(request, ctx)

    class Adds(Noticing):
        def on_start(self, call):
            super().on_start(call)
            call.metadata["added"] = "yes"

    hook = Adds()
    server = serve(handler)
    client = face.client(echo_tw, face.channel(server.address, hooks=[hook]))
    given = {"own": "1"}
    ask(face, way, client, timeout=5, metadata=given)
    assert given == {"own": "1"}
    ask(face, way, client, timeout=5)
    assert seen == [{"own": "1", "added": "yes"}, {"added": "yes"}]
    assert [call.method for call in hook.calls] == ["example.EchoService/Echo"] * 2
    assert hook.calls[0].peer == server.address
    assert hook.calls[0].context is None
    assert hook.messages == [("hello", True), ("hello", False)] * 2
    assert [outcome.number for outcome in hook.outcomes] == [0, 0]
    assert hook.outcomes[0].elapsed > 0


def test_a_hook_may_set_the_reply_metadata(face, serve):
    class Sets(tw.Hook):
        def on_start(self, call):
            call.context.reply_metadata = {"from": "hook"}

    server = serve(hooks=[Sets()])
    client = face.client(echo_tw, face.channel(server.address))
    response = face.full(client, "echo", REQUEST, timeout=5)
    assert response.metadata == {"from": "hook"}


ERRORS = [
    (tw.NotFound("none"), tw.Code.NOT_FOUND, tw.Errno.ENXIO),
    (tw.RpcError("own", number=777), tw.Code.UNKNOWN, 777),
    (ValueError("oops"), tw.Code.INTERNAL, tw.Errno.EINTERNAL),
]


@pytest.mark.parametrize(("error", "code", "number"), ERRORS)
def test_the_outcome_of_a_failed_handler(face, serve, caplog, error, code, number):
    hook, outside = Noticing(), Noticing()

    def handler(request, ctx):
        raise error

    server = serve(handler, hooks=[hook])
    client = face.client(echo_tw, face.channel(server.address, hooks=[outside]))
    with caplog.at_level(logging.CRITICAL), pytest.raises(tw.RpcError):
        face.call(client, "echo", REQUEST, timeout=5)
    [inner], [outer] = hook.outcomes, outside.outcomes
    assert (inner.number, inner.code, inner.error) == (number, code, error)
    assert (outer.number, outer.code) == (number, code)
    assert isinstance(outer.error, tw.RpcError)
    assert outside.messages == [("hello", True)]


def test_requests_that_cannot_be_decoded_pass_the_hooks(serve):
    notes = []
    hook = Noting("a", notes)
    server = serve(hooks=[hook])
    with connect(server) as connection:
        connection.sendall(frame(ECHO_META, b"\xff"))
        assert b"Fail to parse request=EchoRequest" in connection.recv(1000)
    assert notes == [("a", "start"), ("a", "end", tw.Errno.EREQUEST)]
    assert isinstance(hook.outcome.error, tw.InvalidArgument)


def test_answers_that_cannot_be_encoded_pass_the_hooks(face, serve, caplog):
    notes = []
    hook = Noting("a", notes)
    server = serve(lambda request, ctx: "no message", hooks=[hook])
    client = face.client(echo_tw, face.channel(server.address))
    with caplog.at_level(logging.CRITICAL), pytest.raises(tw.Internal) as caught:
        face.call(client, "echo", REQUEST, timeout=5)
    assert caught.value.number == tw.Errno.ERESPONSE
    assert "answer cannot be encoded, id " in caught.value.message
    assert notes[-1] == ("a", "end", tw.Errno.ERESPONSE)
    assert isinstance(hook.outcome.error, TypeError)


@ways
def test_a_call_that_cannot_be_made_is_ended_too(face, way):
    notes = []
    # Nobody listens at port 1.
    channel = face.channel("127.0.0.1:1", hooks=[Noting("a", notes)])
    client = face.client(echo_tw, channel)
    with pytest.raises(tw.Unavailable):
        ask(face, way, client, timeout=5)
    assert notes == [
        ("a", "start"),
        ("a", "sent"),
        ("a", "end", tw.Errno.ECONNREFUSED),
    ]


@ways
def test_a_deadline_ends_the_hooks(face, serve, gate, way):
    notes = []
    server = serve(gate=gate)
    channel = face.channel(server.address, hooks=[Noting("a", notes)])
    client = face.client(echo_tw, channel)
    with pytest.raises(tw.DeadlineExceeded):
        ask(face, way, client, timeout=0.05)
    assert notes[-1] == ("a", "end", tw.Errno.ERPCTIMEDOUT)


@ways
def test_a_closed_channel_ends_the_hooks(face, serve, way):
    notes = []
    channel = face.channel(serve().address, hooks=[Noting("a", notes)])
    client = face.client(echo_tw, channel)
    face.close_channel(channel)
    with pytest.raises(tw.ClosedError):
        ask(face, way, client)
    assert notes[-1] == ("a", "end", tw.Errno.EINTERNAL)


def test_a_cancelled_call_ends_the_hooks(face, serve, gate):
    notes = []
    server = serve(gate=gate)
    channel = face.channel(server.address, hooks=[Noting("a", notes)])
    client = face.client(echo_tw, channel)
    call = face.start(client, "echo", REQUEST, timeout=None)
    gate.until_entered()
    assert call.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        call.result(5)
    eventually(lambda: len(notes) == 3)
    assert notes[-1] == ("a", "end", tw.Errno.ECANCELED)


def test_a_cancelled_handler_ends_the_hooks(serve_async, gate):
    notes = []
    hook = Noting("a", notes)
    server = serve_async(gate=gate, hooks=[hook])
    connection = raw_request(server)
    gate.until_entered()
    reset(connection)
    eventually(lambda: server.in_flight == 0)
    assert notes == [
        ("a", "start"),
        ("a", "received"),
        ("a", "end", tw.Errno.ECANCELED),
    ]
    assert isinstance(hook.outcome.error, asyncio.CancelledError)


# ---- hooks that fail


RECEIVED = "a start, b start, c start, a received, b received"
SENT = f"{RECEIVED}, c received, c sent, b sent"
ENDED = "c end, b end, a end"


@pytest.mark.parametrize(
    ("where", "ran"),
    [
        ("start", "a start, b start, a end"),
        ("received", f"{RECEIVED}, {ENDED}"),
        ("sent", f"{SENT}, {ENDED}"),
        ("end", f"{SENT}, a sent, {ENDED}"),
    ],
)
def test_a_servers_hook_that_raises_fails_the_call(face, serve, where, ran):
    """As if the handler had raised it; who has started is ended."""
    notes = []
    hooks = [
        Noting("a", notes),
        Noting("b", notes, where, tw.Aborted("by b")),
        Noting("c", notes),
    ]
    server = serve(hooks=hooks)
    client = face.client(echo_tw, face.channel(server.address))
    for _ in range(2):
        with pytest.raises(tw.Aborted, match="by b"):
            face.call(client, "echo", REQUEST, timeout=5)
        assert ", ".join(f"{note[0]} {note[1]}" for note in notes) == ran
        # Who is further out sees it.
        assert hooks[0].outcome.number == tw.Errno.EDEADLK
        assert hooks[0].outcome.error is hooks[1].error
        notes.clear()
    eventually(lambda: server.in_flight == 0)


@ways
@pytest.mark.parametrize("where", ["start", "sent", "received", "end"])
def test_a_channels_hook_that_raises_reaches_the_caller(face, serve, way, where):
    notes = []
    hooks = [
        Noting("a", notes),
        Noting("b", notes, where, LookupError("by b")),
        Noting("c", notes),
    ]
    client = face.client(echo_tw, face.channel(serve().address, hooks=hooks))
    with pytest.raises(LookupError, match="by b"):
        ask(face, way, client, timeout=5)
    ended = [note[0] for note in notes if note[1] == "end"]
    assert ended == (["a"] if where == "start" else ["c", "b", "a"])
    assert hooks[0].outcome.error is hooks[1].error
    assert hooks[0].outcome.number == tw.Errno.EINTERNAL


def test_an_unexpected_exception_of_a_hook_is_not_told(face, serve, caplog):
    """A3, A5: it means denied, and the log alone says why."""
    notes = []
    hook = Noting("a", notes, "start", KeyError("secret"))
    client = face.client(echo_tw, face.channel(serve(hooks=[hook]).address))
    with caplog.at_level(logging.ERROR), pytest.raises(tw.Internal) as caught:
        face.call(client, "echo", REQUEST, timeout=5)
    assert "secret" not in caught.value.message
    assert caught.value.message.startswith("internal error, id ")
    assert "secret" in caplog.text


# ---- the onion form


def layer(name, notes, before=None, after=None):
    @tw.around
    def around(call):
        notes.append((name, "start"))
        if before is not None:
            raise before
        outcome = yield
        notes.append((name, "end", outcome.number))
        if after is not None:
            raise after

    return around


@ways
def test_layers_of_an_onion(face, serve, way):
    """They nest as hooks do, and among hooks, on both sides."""
    inner, outer = [], []
    hooks = [layer("a", inner), Noting("b", inner), layer("c", inner)]
    server = serve(hooks=hooks)
    channel = face.channel(server.address, hooks=[layer("x", outer), layer("y", outer)])
    for _ in range(2):
        ask(face, way, face.client(echo_tw, channel), timeout=5)
        eventually(lambda: len(inner) == 8)
        assert inner == [
            *[(name, "start") for name in "abc"],
            *[("b", "received"), ("b", "sent")],
            *[(name, "end", 0) for name in "cba"],
        ]
        assert outer == [
            ("x", "start"),
            ("y", "start"),
            ("y", "end", 0),
            ("x", "end", 0),
        ]
        inner.clear()
        outer.clear()


def test_a_layer_sees_a_failure_and_may_make_one(face, serve):
    notes = []

    def handler(request, ctx):
        raise tw.NotFound("no")

    server = serve(handler, hooks=[layer("a", notes, after=tw.Aborted("again"))])
    client = face.client(echo_tw, face.channel(server.address))
    with pytest.raises(tw.Aborted, match="again"):
        face.call(client, "echo", REQUEST, timeout=5)
    assert notes == [("a", "start"), ("a", "end", tw.NotFound("no").number)]


def test_a_layer_that_raises_first_keeps_the_call_out(face, serve):
    notes = []
    hooks = [layer("a", notes), layer("b", notes, before=tw.PermissionDenied("you"))]
    server = serve(lambda request, ctx: notes.append("ran"), hooks=hooks)
    client = face.client(echo_tw, face.channel(server.address))
    with pytest.raises(tw.PermissionDenied, match="you") as caught:
        face.call(client, "echo", REQUEST, timeout=5)
    number = caught.value.number
    assert notes == [("a", "start"), ("b", "start"), ("a", "end", number)]


def test_calls_at_once_have_layers_of_their_own(face, serve, gate):
    outcomes = []

    @tw.around
    def keeps(call):
        mine = object()
        call.data["mine"] = mine
        yield
        outcomes.append(call.data["mine"] is mine)

    server = serve(gate=gate, hooks=[keeps], threads=8)
    client = face.client(echo_tw, face.channel(server.address))
    calls = [face.start(client, "echo", REQUEST, timeout=30) for _ in range(8)]
    gate.until_entered(8)
    gate.open()
    for call in calls:
        call.result(30)
    eventually(lambda: outcomes == [True] * 8)


@pytest.mark.parametrize("yields", [0, 2])
def test_a_layer_yields_once(face, serve, yields, caplog):
    @tw.around
    def odd(call):
        for _ in range(yields):
            yield

    server = serve(hooks=[odd])
    client = face.client(echo_tw, face.channel(server.address))
    with caplog.at_level(logging.ERROR), pytest.raises(tw.Internal):
        face.call(client, "echo", REQUEST, timeout=5)
    assert "odd" in caplog.text
    assert ("a second time" if yields else "without a yield") in caplog.text
    caplog.clear()


@pytest.mark.parametrize("wrong", [None, 3, lambda call: None, tw.Hook()])
def test_what_has_no_yield_is_no_layer(wrong):
    with pytest.raises(TypeError, match="around was given .* a function with a yield"):
        tw.around(wrong)


# ---- what they are for


def test_authorisation_of_each_request_is_a_hook(face, serve):
    """A3: Nothing of the handler runs for who may not."""
    ran = []

    class Authorise(tw.Hook):
        def on_start(self, call):
            token = call.metadata.get("token")
            if token is None:
                raise tw.Unauthenticated("say who you are")
            if token != "secret":
                raise tw.PermissionDenied("not you")

    class Token(tw.Hook):
        def __init__(self, token):
            self.token = token

        def on_start(self, call):
            call.metadata["token"] = self.token

    def handler(request, ctx):
        ran.append(ctx.metadata["token"])
        return echo(request, ctx)

    server = serve(handler, hooks=[Authorise()])
    nobody = face.client(echo_tw, face.channel(server.address))
    with pytest.raises(tw.Unauthenticated, match="say who you are"):
        face.call(nobody, "echo", REQUEST, timeout=5)
    other = face.client(echo_tw, face.channel(server.address, hooks=[Token("x")]))
    with pytest.raises(tw.PermissionDenied, match="not you"):
        face.call(other, "echo", REQUEST, timeout=5)
    assert ran == []
    friend = face.client(echo_tw, face.channel(server.address, hooks=[Token("secret")]))
    assert face.call(friend, "echo", REQUEST, timeout=5).message == "hello"
    assert ran == ["secret"]


user = contextvars.ContextVar("user", default="nobody")


def test_context_variables_of_a_hook_are_the_handlers(face, serve):
    """And no other call's, though threads serve many."""
    seen = []

    class Sets(tw.Hook):
        def on_start(self, call):
            assert user.get() == "nobody"
            name = call.metadata.get("name")
            if name:
                user.set(name)

        def on_end(self, call, outcome):
            seen.append(("end", user.get()))

    def handler(request, ctx):
        seen.append(("handler", user.get()))
        assert tw.current_context() is ctx
        return echo(request, ctx)

    server = serve(handler, hooks=[Sets()], threads=1)
    client = face.client(echo_tw, face.channel(server.address))
    for name in ("ada", "grace"):
        face.call(client, "echo", REQUEST, timeout=5, metadata={"name": name})
        face.call(client, "echo", REQUEST, timeout=5)
    assert seen == [
        ("handler", "ada"),
        ("end", "ada"),
        ("handler", "nobody"),
        ("end", "nobody"),
        ("handler", "grace"),
        ("end", "grace"),
        ("handler", "nobody"),
        ("end", "nobody"),
    ]


def test_nested_calls_are_bounded_with_hooks_too(face, serve):
    """The deadline of the call that is served ends those made inside."""
    left = []

    def handler(request, ctx):
        left.append((ctx.remaining(), tw.current_context() is ctx))
        return echo(request, ctx)

    server = serve(handler, hooks=[tw.Hook()])
    client = face.client(echo_tw, face.channel(server.address))
    face.call(client, "echo", REQUEST, timeout=5)
    [(remaining, is_current)] = left
    assert 0 < remaining <= 5
    assert is_current


def test_on_cancel_works_within_hooks(serve):
    gate, calls = Gate(), []

    def plain(request, ctx):
        ctx.on_cancel(lambda: calls.append("told"))
        gate.wait()
        return echo(request, ctx)

    async def awaiting(request, ctx):
        ctx.on_cancel(lambda: calls.append("told"))
        await gate.passed()

    server = serve(plain if serve.kind == "def" else awaiting, hooks=[tw.Hook()])
    connection = raw_request(server)
    gate.until_entered()
    reset(connection)
    eventually(lambda: calls == ["told"])
    gate.open()
    eventually(lambda: server.in_flight == 0)


def test_many_calls_at_once_have_their_own_chains(face, serve):
    lock, counts = threading.Lock(), {"start": 0, "end": 0}

    class Counts(tw.Hook):
        def on_start(self, call):
            call.data[self] = call.metadata.get("n")
            with lock:
                counts["start"] += 1

        def on_end(self, call, outcome):
            assert call.data[self] == call.metadata.get("n")
            with lock:
                counts["end"] += 1

    hook = Counts()
    server = serve(hooks=[hook])
    client = face.client(echo_tw, face.channel(server.address, hooks=[hook]))
    calls = [
        face.start(client, "echo", REQUEST, timeout=20, metadata={"n": str(i)})
        for i in range(100)
    ]
    for call in calls:
        assert call.result(20).message == "hello"
    assert counts == {"start": 200, "end": 200}


def test_a_call_of_an_unknown_method_passes_no_hook(serve_def):
    notes = []
    server = serve_def(hooks=[Noting("a", notes)])
    with connect(server) as connection:
        unknown = field(1, field(1, b"example.EchoService") + field(2, b"No"))
        connection.sendall(frame(unknown + field(4, 7), b""))
        assert b"Fail to find method" in connection.recv(1000)
    assert notes == []


# ---- options


class Async(tw.Hook):
    async def on_start(self, call):
        pass


@pytest.mark.parametrize("kind", [tw.ServerOptions, tw.ChannelOptions])
@pytest.mark.parametrize("hooks", [5, tw.Hook(), [tw.Hook], ["x"], [Async()], None])
def test_what_is_no_list_of_hooks_is_refused(kind, hooks):
    with pytest.raises(TypeError, match=r"hooks is .*allowed: a list of tidewire.Hook"):
        kind(hooks=hooks)


def test_hooks_are_kept_as_a_tuple():
    hooks = [tw.Hook()]
    options = tw.ServerOptions(hooks=hooks)
    hooks.append(tw.Hook())
    assert len(options.hooks) == 1
    assert tw.ChannelOptions().hooks == ()
