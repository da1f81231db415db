"""with_options(): a channel with other options for some of its calls."""

import warnings

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import SLOW, within

REQUEST = echo_pb2.EchoRequest(message="hello")
kinds = pytest.mark.parametrize("kind", ["{}", "list://{}"], ids=["one", "cluster"])


@kinds
def test_a_view_has_its_own_timeout_and_the_same_connection(face, serve, gate, kind):
    server = serve(gate=gate)
    channel = face.channel(kind.format(server.address), timeout=60.0)
    client = face.client(echo_tw, channel)
    hasty = face.client(echo_tw, channel.with_options(timeout=0.05))
    call = face.start(client, "echo", REQUEST)
    gate.until_entered()
    with within(1.0 * SLOW), pytest.raises(tw.DeadlineExceeded):
        face.call(hasty, "echo", REQUEST)
    gate.open()
    assert call.result(10).message == "hello"
    assert server.connections == 1
    assert channel.options.timeout == 60.0


@kinds
def test_hooks_and_coding_of_a_view(face, serve, kind):
    codings, ended = [], []

    def note(request, ctx):
        codings.append(ctx.coding.compression)
        return echo_pb2.EchoResponse(message=request.message)

    class Noting(tw.Hook):
        def on_end(self, call, outcome):
            ended.append(outcome.number)

    channel = face.channel(kind.format(serve(note).address), timeout=30.0)
    gzip = tw.Coding(compression=tw.Compression.GZIP)
    view = channel.with_options(coding=gzip).with_options(hooks=[Noting()])
    plain, special = face.client(echo_tw, channel), face.client(echo_tw, view)
    for client in (plain, special, plain):
        assert face.call(client, "echo", REQUEST).message == "hello"
    assert codings == [
        tw.Compression.NONE,
        tw.Compression.GZIP,
        tw.Compression.NONE,
    ]
    assert ended == [0]


@kinds
def test_closing_is_the_channels(face, serve, kind):
    """A view's close() closes nothing, and a view needs none."""
    channel = face.channel(kind.format(serve().address), timeout=30.0)
    view = channel.with_options(max_retry=0)
    client = face.client(echo_tw, view)
    face.close_channel(view)
    assert face.call(client, "echo", REQUEST).message == "hello"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del view, client
    client = face.client(echo_tw, channel.with_options(timeout=5.0))
    face.close_channel(channel)
    with pytest.raises(tw.ClosedError):
        face.call(client, "echo", REQUEST)


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"timeout": -1}, tw.OptionError, "timeout is -1"),
        ({"balancer": "la"}, TypeError, "got balancer; allowed: timeout, max_retry"),
        ({"retry": 3}, TypeError, "a RetryPolicy"),
        ({"backup": "soon"}, TypeError, "a BackupPolicy"),
        ({"backup": -1}, tw.OptionError, "BackupPolicy.after is -1"),
    ],
)
def test_bad_changes(face, changes, kind, text):
    channel = face.channel("127.0.0.1:1")
    with pytest.raises(kind, match=text):
        channel.with_options(**changes)


@kinds
def test_a_future_with_all_that_came(serve_def, kind):
    server = serve_def()
    with tw.Channel(kind.format(server.address)) as channel:
        echo = echo_tw.EchoClient(channel).echo
        reply = echo.call_future(REQUEST, attachment=b"beside", timeout=30).result(30)
        assert reply.message.message == "hello"
        assert bytes(reply.attachment) == b"beside"
        assert reply.peer == server.address
        assert (reply.attempts, reply.past) == (1, ())
        assert reply.elapsed > 0


@kinds
def test_hooks_see_the_message_of_a_future_with_all_that_came(serve_def, kind):
    seen = []

    class Noting(tw.Hook):
        def on_message(self, call, message, outgoing):
            seen.append(message.message)

    options = tw.ChannelOptions(hooks=[Noting()], timeout=30.0)
    with tw.Channel(kind.format(serve_def().address), options=options) as channel:
        echo_tw.EchoClient(channel).echo.call_future(REQUEST).result(30)
    assert seen == ["hello", "hello"]
