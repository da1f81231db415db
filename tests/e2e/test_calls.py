"""Unary calls: messages, attachments, metadata, ids, what the handler sees."""

import gc
import secrets
import socket

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import echo, no_leaks

REQUEST = echo_pb2.EchoRequest(message="hello")
MIB = 1 << 20


@pytest.fixture
def client(face, serve):
    return face.client(echo_tw, face.channel(serve().address))


def test_message_comes_back(face, client):
    assert face.call(client, "echo", REQUEST).message == "hello"


def test_many_calls_one_connection(face, serve):
    server = serve()
    client = face.client(echo_tw, face.channel(server.address))
    for i in range(200):
        request = echo_pb2.EchoRequest(message=f"number {i}")
        assert face.call(client, "echo", request).message == request.message
    assert server.connections == 1


@pytest.mark.parametrize("size", [0, 1, 4000, 5000, 64 * 1024, MIB])
def test_message_of_any_size(face, client, size):
    request = echo_pb2.EchoRequest(message="x" * size)
    assert face.call(client, "echo", request, timeout=10) == echo_pb2.EchoResponse(
        message=request.message
    )


# Up to 4096 bytes are copied, more are a view of the core's memory.
@pytest.mark.parametrize("size", [0, 1, 100, 4095, 4096, 4097, 8192, 65536, MIB])
def test_attachment_comes_back(face, client, size):
    data = secrets.token_bytes(size)
    response = face.full(client, "echo", REQUEST, attachment=data, timeout=10)
    assert response.attachment == data
    assert response.attachment.readonly
    assert response.message.message == "hello"


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_attachment_may_be_any_bytes(face, client, make):
    response = face.full(client, "echo", REQUEST, attachment=make(b"abc"))
    assert bytes(response.attachment) == b"abc"


@pytest.mark.parametrize("size", [10, 4096, 4097, MIB])
def test_attachments_outlive_call_channel_and_server(face, serve, size):
    data = secrets.token_bytes(size)
    kept = []

    def keep(request, ctx):
        kept.append(ctx.attachment)
        ctx.reply_attachment = data
        return echo_pb2.EchoResponse(message="")

    server = serve(keep)
    channel = face.channel(server.address)
    client = face.client(echo_tw, channel)
    response = face.full(client, "echo", REQUEST, attachment=data, timeout=10)
    # Later calls reuse the connection's memory, unless it is held.
    for _ in range(5):
        face.call(client, "echo", REQUEST, attachment=bytes(size), timeout=10)
    face.close_channel(channel)
    serve.stop(server)
    assert response.attachment == data
    assert kept[0] == data
    assert all(bytes(other) == bytes(size) for other in kept[1:])


def test_slice_of_a_view_keeps_the_memory(face, serve):
    data = secrets.token_bytes(100_000)
    server = serve()
    channel = face.channel(server.address)
    client = face.client(echo_tw, channel)
    part = face.full(client, "echo", REQUEST, attachment=data).attachment[50_000:]
    gc.collect()
    face.close_channel(channel)
    serve.stop(server)
    assert part == data[50_000:]
    with pytest.raises(TypeError, match="read-only"):
        part[0] = 0


def test_attachment_that_the_handler_never_looks_at(face, serve):
    server = serve(lambda request, ctx: echo_pb2.EchoResponse(message="x"))
    client = face.client(echo_tw, face.channel(server.address))
    response = face.full(client, "echo", REQUEST, attachment=bytes(MIB), timeout=10)
    assert response.attachment == b""


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_reply_attachment_may_be_any_bytes(face, serve, make):
    def handler(request, ctx):
        ctx.reply_attachment = make(b"from the server")
        return echo_pb2.EchoResponse(message="")

    client = face.client(echo_tw, face.channel(serve(handler).address))
    response = face.full(client, "echo", REQUEST)
    assert response.attachment == b"from the server"


def test_metadata_goes_both_ways(face, serve):
    seen = []

    def handler(request, ctx):
        seen.append(dict(ctx.metadata))
        ctx.reply_metadata = {"answer": "42", "": "empty key", "ключ": "значение"}
        return echo_pb2.EchoResponse(message="")

    client = face.client(echo_tw, face.channel(serve(handler).address))
    sent = {"trace": "abc", "empty": "", "long": "x" * 70_000, "ü": "\N{SNOWMAN}"}
    response = face.full(client, "echo", REQUEST, metadata=sent)
    assert seen == [sent]
    assert response.metadata == {"answer": "42", "": "empty key", "ключ": "значение"}


def test_no_metadata_is_empty(face, client):
    assert face.full(client, "echo", REQUEST).metadata == {}
    assert face.full(client, "echo", REQUEST, metadata={}).metadata == {}


@pytest.mark.parametrize("wrong", [{"a": 1}, {1: "a"}, {"a": b"b"}])
def test_wrong_metadata_raises_at_once(face, serve_def, wrong):
    client = face.client(echo_tw, face.channel(serve_def().address))
    with pytest.raises(TypeError, match="metadata is .* allowed: str"):
        face.call(client, "echo", REQUEST, metadata=wrong)


@pytest.mark.parametrize("log_id", [0, 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
def test_log_id_reaches_the_handler(face, serve, log_id):
    seen = []

    def handler(request, ctx):
        seen.append(ctx.log_id)
        return echo_pb2.EchoResponse(message="")

    client = face.client(echo_tw, face.channel(serve(handler).address))
    face.call(client, "echo", REQUEST, log_id=log_id)
    face.call(client, "echo", REQUEST)
    assert seen == [log_id, 0]


@pytest.mark.parametrize("wrong", [2**64, -(2**63) - 1, -1])
def test_log_id_out_of_range_is_refused(face, serve_def, wrong):
    client = face.client(echo_tw, face.channel(serve_def().address))
    with pytest.raises(ValueError, match="log_id is .* allowed"):
        face.call(client, "echo", REQUEST, log_id=wrong)


@pytest.mark.parametrize(
    ("option", "wrong"),
    [
        ("log_id", "1"),
        ("log_id", 1.5),
        ("request_id", 7),
        ("request_id", b"x"),
        ("attachment", "text"),
        ("attachment", 12),
        ("timeout", "1"),
        ("timeout", True),
        ("metadata", "x"),
        ("metadata", [("a", "b")]),
    ],
)
def test_option_of_the_wrong_type_is_named(face, serve_def, option, wrong):
    client = face.client(echo_tw, face.channel(serve_def().address))
    with pytest.raises(TypeError, match=f"{option} is .*; allowed"):
        face.call(client, "echo", REQUEST, **{option: wrong})


@pytest.mark.parametrize("request_id", ["", "a", "0123-4567", "x" * 1000, "ид"])
def test_request_id_reaches_the_handler(face, serve, request_id):
    seen = []

    def handler(request, ctx):
        seen.append(ctx.request_id)
        return echo_pb2.EchoResponse(message="")

    client = face.client(echo_tw, face.channel(serve(handler).address))
    face.call(client, "echo", REQUEST, request_id=request_id)
    face.call(client, "echo", REQUEST)
    assert seen == [request_id, ""]


def test_all_extras_at_once(face, serve):
    seen = {}

    def handler(request, ctx):
        seen.update(
            log_id=ctx.log_id,
            request_id=ctx.request_id,
            metadata=dict(ctx.metadata),
            attachment=bytes(ctx.attachment),
            method=ctx.method,
            message=request.message,
        )
        ctx.reply_metadata = {"m": "n"}
        ctx.reply_attachment = b"r" * 5000
        return echo_pb2.EchoResponse(message="m" * 5000)

    client = face.client(echo_tw, face.channel(serve(handler).address))
    response = face.full(
        client,
        "echo",
        REQUEST,
        log_id=7,
        request_id="id",
        metadata={"k": "v"},
        attachment=b"a" * 9000,
    )
    assert seen == {
        "log_id": 7,
        "request_id": "id",
        "metadata": {"k": "v"},
        "attachment": b"a" * 9000,
        "method": "example.EchoService/Echo",
        "message": "hello",
    }
    assert response.message.message == "m" * 5000
    assert response.attachment == b"r" * 5000
    assert response.metadata == {"m": "n"}


def test_peers_name_each_other(face, serve):
    seen = []

    def handler(request, ctx):
        seen.append(ctx.peer)
        return echo_pb2.EchoResponse(message="")

    server = serve(handler)
    client = face.client(echo_tw, face.channel(server.address))
    response = face.full(client, "echo", REQUEST)
    assert response.peer == server.address
    host, port = seen[0].rsplit(":", 1)
    assert host == "127.0.0.1"
    assert 0 < int(port) < 65536
    assert seen[0] != server.address


def test_elapsed_is_the_calls_time(face, client):
    response = face.full(client, "echo", REQUEST)
    assert 0 < response.elapsed < 1


def test_context_belongs_to_its_call(face, serve):
    contexts = []

    def handler(request, ctx):
        contexts.append(ctx)
        return echo(request, ctx)

    client = face.client(echo_tw, face.channel(serve(handler).address))
    for i in range(3):
        face.call(client, "echo", REQUEST, log_id=i, metadata={"i": str(i)})
    assert [ctx.log_id for ctx in contexts] == [0, 1, 2]
    assert len({id(ctx) for ctx in contexts}) == 3
    # What needs the request's memory says so after the answer.
    with pytest.raises(tw.ClosedError, match="before the handler returns"):
        _ = contexts[0].metadata


def test_large_attachment_after_the_answer_says_so(face, serve):
    contexts = []

    def handler(request, ctx):
        contexts.append(ctx)
        return echo_pb2.EchoResponse(message="")

    client = face.client(echo_tw, face.channel(serve(handler).address))
    face.call(client, "echo", REQUEST, attachment=bytes(10_000))
    with pytest.raises(tw.ClosedError, match="before the handler returns"):
        _ = contexts[0].attachment
    assert "example.EchoService/Echo" in repr(contexts[0])


def test_both_kinds_in_one_service(face, serve_def):
    class Both(tw.Service):
        __tidewire_service__ = "test.Both"
        __tidewire_methods__ = {
            "plain": tw.MethodInfo(
                service="test.Both", name="Plain", request=bytes, response=bytes
            ),
            "awaited": tw.MethodInfo(
                service="test.Both", name="Awaited", request=bytes, response=bytes
            ),
        }

        def plain(self, request, ctx):
            return b"plain " + request

        async def awaited(self, request, ctx):
            return b"awaited " + request

    class Client(tw.Client):
        __tidewire_methods__ = Both.__tidewire_methods__

    class AsyncClient(tw.AsyncClient):
        __tidewire_methods__ = Both.__tidewire_methods__

    class stubs:
        pass

    stubs.Client, stubs.AsyncClient = Client, AsyncClient
    server = serve_def([Both()])
    client = face.client(stubs, face.channel(server.address))
    for _ in range(20):
        assert face.call(client, "plain", b"1") == b"plain 1"
        assert face.call(client, "awaited", b"2") == b"awaited 2"


def test_raw_bytes_need_no_codec(face, serve_def):
    info = tw.MethodInfo(service="raw.Raw", name="Up", request=bytes, response=bytes)

    class Raw(tw.Service):
        __tidewire_service__ = "raw.Raw"
        __tidewire_methods__ = {"up": info}

        def up(self, request, ctx):
            return request.upper()

    channel = face.channel(serve_def([Raw()]).address)
    method = channel.unary(info)
    holder = type("Holder", (), {"up": method})()
    assert face.call(holder, "up", b"abc\xff") == b"ABC\xff"
    assert face.call(holder, "up", b"") == b""


def test_pipelined_calls_each_get_their_own_answer(face, client):
    calls = [
        face.start(client, "echo", echo_pb2.EchoRequest(message=str(i)), timeout=10)
        for i in range(500)
    ]
    assert [c.result(10).message for c in calls] == [str(i) for i in range(500)]


def test_answers_out_of_order(face, serve, gate):
    import asyncio
    import threading

    slow = threading.Event()

    def handler(request, ctx):
        if request.message != "first":
            return echo(request, ctx)
        if not serve.is_async:
            assert slow.wait(10)
            return echo(request, ctx)

        async def later():
            await asyncio.get_running_loop().run_in_executor(None, slow.wait, 10)
            return echo(request, ctx)

        return later()

    client = face.client(echo_tw, face.channel(serve(handler).address))
    first = face.start(
        client, "echo", echo_pb2.EchoRequest(message="first"), timeout=10
    )
    second = face.start(client, "echo", REQUEST, timeout=10)
    assert second.result(10).message == "hello"
    assert not first.done()
    slow.set()
    assert first.result(10).message == "first"


def test_unknown_bytes_do_not_disturb_others(face, serve):
    server = serve()
    client = face.client(echo_tw, face.channel(server.address))
    face.call(client, "echo", REQUEST)
    host, port = server.address.rsplit(":", 1)
    with socket.create_connection((host, int(port))) as odd:
        odd.sendall(b"GARBAGE " * 4)
        assert odd.recv(100) == b""
    assert face.call(client, "echo", REQUEST).message == "hello"


def test_nothing_of_a_call_remains(face, client):
    face.call(client, "echo", REQUEST)
    with no_leaks():
        for _ in range(50):
            face.full(client, "echo", REQUEST, attachment=bytes(20_000))


def test_lent_memory_is_given_back_at_once(face, client):
    data = bytearray(100_000)
    face.call(client, "echo", REQUEST, attachment=data, timeout=10)
    data.clear()  # BufferError while somebody holds it


def test_trace_ids_go_along(face, serve):
    seen = []

    def handler(request, ctx):
        seen.append(ctx.trace)
        return echo(request, ctx)

    client = face.client(echo_tw, face.channel(serve(handler).address))
    top = tw.Trace(trace_id=2**64 - 1, span_id=2**63, parent_span_id=7)
    for trace in (top, tw.Trace(trace_id=1, span_id=0), None):
        face.call(client, "echo", REQUEST, trace=trace)
    assert seen == [top, tw.Trace(trace_id=1, span_id=0), None]


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        ({"trace_id": 0}, tw.OptionError),
        ({"trace_id": 2**64}, tw.OptionError),
        ({"trace_id": 1, "span_id": -1}, tw.OptionError),
        ({"trace_id": "1"}, TypeError),
        ({"trace_id": 1, "parent_span_id": True}, TypeError),
    ],
)
def test_a_wrong_trace_is_refused(ids, error):
    with pytest.raises(error, match=r"Trace\.[a-z_]+ is .*; allowed: "):
        tw.Trace(**{"span_id": 0} | ids)


def test_only_a_trace_is_one(face, serve):
    client = face.client(echo_tw, face.channel(serve().address))
    with pytest.raises(TypeError, match=r"trace is 5 .*; allowed: a tidewire\.Trace"):
        face.call(client, "echo", REQUEST, trace=5)
