"""GenericService: every method that nobody else serves, as bytes."""

import inspect
from types import SimpleNamespace

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import ECHO_META, connect, counter, field, frame, read_frame

REQUEST = echo_pb2.EchoRequest(message="hello")


def generic(kind, handler):
    """A GenericService that does `handler(request, ctx)`."""

    class Def(tw.GenericService):
        def handle(self, request, ctx):
            return handler(request, ctx)

    class Async(tw.GenericService):
        async def handle(self, request, ctx):
            answer = handler(request, ctx)
            return await answer if inspect.isawaitable(answer) else answer

    return Def() if kind == "def" else Async()


def raw(service, name):
    return tw.MethodInfo(service=service, name=name, request=bytes, response=bytes)


def client_of(channel, service="some.Service", name="Do"):
    return SimpleNamespace(do=channel.unary(raw(service, name)))


def test_any_method_as_bytes_with_its_meta(face, serve):
    seen = []

    def handle(request, ctx):
        seen.append((request, ctx.method, dict(ctx.metadata), bytes(ctx.attachment)))
        ctx.reply_attachment = b"attached"
        ctx.reply_metadata = {"answered": "yes"}
        return request[::-1]

    server = serve([generic(serve.kind, handle)])
    channel = face.channel(server.address)
    for service, name in [("a.b.C", "Do"), ("Undotted", "other"), ("*", "*")]:
        response = face.full(
            client_of(channel, service, name),
            "do",
            b"abc",
            timeout=5,
            metadata={"k": "v"},
            attachment=b"beside",
        )
        assert response.message == b"cba"
        assert bytes(response.attachment) == b"attached"
        assert response.metadata == {"answered": "yes"}
        assert seen.pop() == (b"abc", f"{service}/{name}", {"k": "v"}, b"beside")


def test_the_methods_of_other_services_are_theirs(face, serve):
    """Those of the same service that they lack are not."""
    server = serve([generic(serve.kind, lambda request, ctx: b"?"), serve.service()])
    channel = face.channel(server.address)
    client = face.client(echo_tw, channel)
    assert face.call(client, "echo", REQUEST, timeout=5).message == "hello"
    other = client_of(channel, "example.EchoService", "Lacks")
    assert face.call(other, "do", b"", timeout=5) == b"?"
    assert face.call(client_of(channel, "EchoService", "Lacks"), "do", b"") == b"?"
    # The undotted name of a service that is there.
    short = client_of(channel, "EchoService", "Echo")
    answer = face.call(short, "do", REQUEST.SerializeToString(), timeout=5)
    assert echo_pb2.EchoResponse.FromString(answer).message == "hello"


def test_without_one_unknown_methods_are_refused_as_ever(face, serve):
    channel = face.channel(serve().address)
    with pytest.raises(tw.Unimplemented) as caught:
        face.call(client_of(channel), "do", b"", timeout=5)
    assert caught.value.number == tw.Errno.ENOMETHOD


def test_what_it_raises_reaches_the_caller(face, serve):
    def handle(request, ctx):
        raise tw.Unimplemented(f"no {ctx.method} here", number=tw.Errno.ENOMETHOD)

    channel = face.channel(serve([generic(serve.kind, handle)]).address)
    with pytest.raises(tw.Unimplemented, match="no some.Service/Do here") as caught:
        face.call(client_of(channel), "do", b"", timeout=5)
    assert caught.value.number == tw.Errno.ENOMETHOD


def test_one_that_overrides_nothing_refuses(face, serve_def):
    channel = face.channel(serve_def([tw.GenericService()]).address)
    with pytest.raises(tw.Unimplemented, match="some.Service/Do is not implemented"):
        face.call(client_of(channel), "do", b"", timeout=5)


@pytest.mark.parametrize(
    "coding",
    [
        tw.Coding(compression=tw.Compression.GZIP),
        tw.Coding(content_type=tw.ContentType.JSON),
        tw.Coding(
            compression=tw.Compression.SNAPPY,
            content_type=tw.ContentType.PROTO_TEXT,
            checksum=tw.Checksum.CRC32C,
        ),
    ],
    ids=["gzip", "json", "all"],
)
def test_coded_requests_come_decompressed_and_else_as_they_are(face, serve, coding):
    def handle(request, ctx):
        assert ctx.coding == coding
        assert request == b"whatever " * 100
        ctx.reply_coding = ctx.coding
        return request

    channel = face.channel(serve([generic(serve.kind, handle)]).address)
    response = face.full(
        client_of(channel), "do", b"whatever " * 100, timeout=5, coding=coding
    )
    assert response.message == b"whatever " * 100
    assert response.coding == coding


def test_hooks_see_what_was_asked_for(face, serve):
    seen = []

    class Sees(tw.Hook):
        def on_start(self, call):
            seen.append(call.method)

        def on_message(self, call, message, sent):
            seen.append(message)

    server = serve([generic(serve.kind, lambda request, ctx: b"out")], hooks=[Sees()])
    channel = face.channel(server.address)
    assert face.call(client_of(channel), "do", b"in", timeout=5) == b"out"
    assert seen == ["some.Service/Do", b"in", b"out"]


def test_two_of_them_are_refused():
    services = [tw.GenericService(), tw.GenericService()]
    server = tw.Server(services, listen="127.0.0.1:0")
    with pytest.raises(tw.OptionError, match=r"services has \*/\* twice"):
        server.start()


def test_its_calls_are_counted_under_a_star(serve):
    """A peer that invents names makes no rows."""
    before = counter("tidewire_server_calls", service="*", method="*")
    server = serve([generic(serve.kind, lambda request, ctx: b"")])
    with connect(server) as connection, connection.makefile("rb") as stream:
        for i in range(20):
            asked = field(1, b"invented.S%d" % i) + field(2, b"M%d" % i)
            connection.sendall(frame(field(1, asked) + field(4, 7), b""))
            assert read_frame(stream)[0]
    assert counter("tidewire_server_calls", service="*", method="*") == before + 20


def test_names_that_are_no_text(serve):
    """Bytes that are no UTF-8 are replaced, nothing fails."""
    server = serve([generic(serve.kind, lambda request, ctx: ctx.method.encode())])
    with connect(server) as connection, connection.makefile("rb") as stream:
        asked = field(1, b"a\xff.B") + field(2, b"\xfe")
        connection.sendall(frame(field(1, asked) + field(4, 7), b""))
        assert read_frame(stream)[1].decode() == "a\ufffd.B/\ufffd"
        connection.sendall(frame(ECHO_META, b"x"))
        assert read_frame(stream)[1] == b"example.EchoService/Echo"


def test_a_proxy(face, serve):
    """Messages, attachments, metadata and errors pass through, undecoded."""

    def target(request, ctx):
        if request.message == "fail":
            raise tw.NotFound("not there")
        ctx.reply_metadata = {**ctx.metadata, "seen": "yes"}
        ctx.reply_attachment = ctx.attachment
        return echo_pb2.EchoResponse(message=request.message)

    behind = serve(target)
    with tw.Channel(behind.address) as channel:

        def forward(request, ctx):
            service, _, name = ctx.method.rpartition("/")
            response = channel.unary(raw(service, name)).call(
                request,
                timeout=ctx.remaining(),
                attachment=ctx.attachment,
                metadata=ctx.metadata,
            )
            ctx.reply_attachment = response.attachment
            ctx.reply_metadata = response.metadata
            return response.message

        async def aforward(request, ctx):
            service, _, name = ctx.method.rpartition("/")
            async with tw.AsyncChannel(behind.address) as one:
                response = await one.unary(raw(service, name)).call(
                    request,
                    timeout=ctx.remaining(),
                    attachment=ctx.attachment,
                    metadata=ctx.metadata,
                )
            ctx.reply_attachment = response.attachment
            ctx.reply_metadata = response.metadata
            return response.message

        proxy = serve(
            [generic(serve.kind, forward if serve.kind == "def" else aforward)]
        )
        client = face.client(echo_tw, face.channel(proxy.address))
        response = face.full(
            client,
            "echo",
            REQUEST,
            timeout=10,
            attachment=b"beside",
            metadata={"k": "v"},
        )
        assert response.message.message == "hello"
        assert bytes(response.attachment) == b"beside"
        assert response.metadata == {"k": "v", "seen": "yes"}
        with pytest.raises(tw.NotFound, match="not there"):
            face.call(client, "echo", echo_pb2.EchoRequest(message="fail"), timeout=10)
