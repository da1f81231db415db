"""One served call as plain steps, over events made by hand."""

import asyncio
import logging
import re

import pytest
from generated import echo_pb2, echo_tw
from tidewire import _core
from tidewire._dispatch import methods_of
from tidewire.context import current_context
from tidewire.errors import NotFound, OptionError, RpcError
from tidewire.service import MethodInfo, Service

REQUEST = echo_pb2.EchoRequest(message="hello")


def limit_of(name):
    """Bytes of a message."""
    return 1 << 26


def served(handler):
    """The Method of an EchoService whose echo is that function."""
    cls = type("Mine", (echo_tw.EchoService,), {"echo": handler})
    [method] = methods_of([cls()], None, limit_of)
    return method


def call(method, body=None, way="plain", **fields):
    """(code, body, extra) of one call."""
    event = _core.ffi.new("tw_event *", fields)
    data = _core.ffi.from_buffer(REQUEST.SerializeToString() if body is None else body)
    event.body, event.body_len = data, len(data)
    memory = _core.ffi.buffer(event)
    if way == "async":
        prepared = method.prepare(event, memory)
        if len(prepared) == 3:
            return prepared
        answer = asyncio.run(method.handle(*prepared))
    else:
        answer = getattr(method, way)(event, memory)
    return (0, answer, None) if isinstance(answer, bytes) else answer


@pytest.fixture(params=["plain", "rich", "async"])
def way(request):
    """The short way of def methods, their long one, and async def's."""
    return request.param


@pytest.fixture
def serve(way):
    def serve(function):
        if way != "async":
            return served(function)

        async def handler(self, request, ctx):
            return function(self, request, ctx)

        return served(handler)

    return serve


def answer(self, request, ctx):
    return echo_pb2.EchoResponse(message=request.message)


def test_a_message(serve, way) -> None:
    code, body, extra = call(serve(answer), way=way)
    assert (code, extra) == (0, None)
    assert echo_pb2.EchoResponse.FromString(body).message == "hello"


def test_is_async(serve, way) -> None:
    assert serve(answer).is_async == (way == "async")


@pytest.mark.parametrize("body", [b"\xff", b"", b"\x0a\x09x"])
def test_undecodable_request(serve, way, body) -> None:
    ran = []

    def handler(self, request, ctx):
        ran.append(1)

    code, text, extra = call(serve(handler), body, way)
    assert code == _core.lib.TW_EREQUEST
    assert b"EchoRequest" in text
    assert f"request_size={len(body)}".encode() in text
    assert extra is None
    assert ran == []


def test_raised_rpc_error(serve, way) -> None:
    def handler(self, request, ctx):
        raise NotFound("no such thing")

    code, text, _ = call(serve(handler), way=way)
    assert (code, text) == (NotFound().number, b"no such thing")


def test_minus_one_becomes_an_internal_error(serve, way) -> None:
    def handler(self, request, ctx):
        raise RpcError("some failure", number=-1)

    assert call(serve(handler), way=way)[0] == _core.lib.TW_EINTERNAL


@pytest.mark.parametrize("cls", [ValueError, SystemExit])
def test_other_exceptions_are_named_by_an_id(serve, way, caplog, cls) -> None:
    def handler(self, request, ctx):
        raise cls("secret")

    with caplog.at_level(logging.ERROR):
        code, text, _ = call(serve(handler), way=way)
    assert code == _core.lib.TW_EINTERNAL
    assert b"secret" not in text
    [identity] = re.findall(rb"id ([0-9a-f]{12})$", text)
    [record] = caplog.records
    assert identity.decode() in record.getMessage()
    assert "secret" in logging.Formatter().format(record)


@pytest.mark.parametrize("wrong", [None, "text", REQUEST, echo_pb2.EchoResponse()])
def test_answer_that_cannot_be_encoded(serve, way, caplog, wrong) -> None:
    code, text, _ = call(serve(lambda self, request, ctx: wrong), way=way)
    assert code == _core.lib.TW_ERESPONSE
    assert b"cannot be encoded" in text
    assert len(caplog.records) == 1


def test_rpc_error_while_encoding_is_no_verdict(way, caplog) -> None:
    """An RpcError that the codec raises speaks for itself only in a handler."""

    class Odd:
        def encoder(self, cls):
            def encode(message):
                raise NotFound("from the codec")

            return encode

        def decoder(self, cls):
            return lambda data: data

    class Message:
        pass

    info = MethodInfo(service="odd.Odd", name="Do", request=Message, response=Message)

    class Serving(Service):
        __tidewire_service__ = "odd.Odd"
        __tidewire_methods__ = {"do": info}

        def do(self, request, ctx):
            return Message()

    class AsyncServing(Serving):
        async def do(self, request, ctx):
            return Message()

    [method] = methods_of(
        [AsyncServing() if way == "async" else Serving()], Odd(), limit_of
    )
    assert call(method, b"x", way)[0] == _core.lib.TW_ERESPONSE


def test_reply_extras(serve, way) -> None:
    def handler(self, request, ctx):
        ctx.reply_attachment = b"beside"
        ctx.reply_metadata = {"k": "v"}
        return answer(self, request, ctx)

    code, _, (x, keep) = call(serve(handler), way=way)
    assert code == 0
    assert bytes(_core.ffi.buffer(x.attachment, x.attachment_len)) == b"beside"
    assert x.meta_len == 8
    assert keep


def test_wrong_extras_are_an_answer_too(serve, way, caplog) -> None:
    def handler(self, request, ctx):
        ctx.reply_metadata = {"k": 1}
        return answer(self, request, ctx)

    code, _, _ = call(serve(handler), way=way)
    assert code in (_core.lib.TW_ERESPONSE, _core.lib.TW_EINTERNAL)
    assert len(caplog.records) == 1


def test_the_current_context(serve, way) -> None:
    seen = []

    def handler(self, request, ctx):
        seen.append((current_context(), ctx))
        return answer(self, request, ctx)

    call(serve(handler), way=way, deadline_ns=2**62)
    [(current, ctx)] = seen
    # The short way is for calls without a deadline: nothing to bound.
    assert current is (None if way == "plain" else ctx)
    assert current_context() is None


def test_the_current_context_goes_after_an_exception(serve, way, caplog) -> None:
    def handler(self, request, ctx):
        raise ValueError

    call(serve(handler), way=way)
    assert current_context() is None


def test_the_context_knows_its_call(serve, way) -> None:
    contexts = []

    def handler(self, request, ctx):
        contexts.append(ctx)
        return answer(self, request, ctx)

    call(serve(handler), way=way, log_id=-1, deadline_ns=5_000_000_000)
    [ctx] = contexts
    assert ctx.method == "example.EchoService/Echo"
    assert ctx.log_id == 2**64 - 1
    assert ctx.deadline == 5.0
    assert ctx.remaining() == 0.0
    assert ctx.attachment == b""


def test_all_methods_of_all_services() -> None:
    info = MethodInfo(service="other.Other", name="Do", request=bytes, response=bytes)

    class Other(Service):
        __tidewire_service__ = "other.Other"
        __tidewire_methods__ = {"do": info}

        def do(self, request, ctx):
            return request

    methods = methods_of([echo_tw.EchoService(), Other()], None, limit_of)
    assert [m.info.full_name for m in methods] == [
        "example.EchoService/Echo",
        "other.Other/Do",
    ]


def test_the_same_method_twice() -> None:
    with pytest.raises(OptionError, match="example.EchoService/Echo twice"):
        methods_of([echo_tw.EchoService(), echo_tw.EchoService()], None, limit_of)


@pytest.mark.parametrize("wrong", [None, "x", echo_tw.EchoService, 7])
def test_what_is_no_service(wrong) -> None:
    with pytest.raises(TypeError, match=r"services holds a .*; allowed"):
        methods_of([wrong], None, limit_of)
