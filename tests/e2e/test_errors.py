"""What a caller sees when a call fails at the other end."""

import gc
import logging
import re
import sys
import weakref

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import correlation_of, echo, eventually, raw_request, read_frame

REQUEST = echo_pb2.EchoRequest(message="hello")


def call(face, serve, handler, **how):
    server = serve(handler)
    client = face.client(echo_tw, face.channel(server.address))
    return face.call(client, "echo", REQUEST, **how)


def raiser(error):
    """A handler that raises; `error` may be a function that makes it."""

    def handler(request, ctx):
        raise error() if callable(error) else error

    return handler


@pytest.mark.parametrize("cls", tw.RpcError.__subclasses__(), ids=lambda c: c.__name__)
def test_each_error_arrives_as_it_was_raised(face, serve_def, cls):
    raised = cls("what went wrong")
    with pytest.raises(cls) as caught:
        call(face, serve_def, raiser(raised))
    error = caught.value
    assert type(error) is cls
    assert error.number == raised.number
    assert error.code is cls.code
    assert error.message == "what went wrong"
    assert error.phase is tw.Phase.PEER


def test_an_error_knows_its_call(face, serve):
    server = serve(raiser(tw.NotFound("no such thing")))
    client = face.client(echo_tw, face.channel(server.address))
    with pytest.raises(tw.NotFound) as caught:
        face.call(client, "echo", REQUEST)
    error = caught.value
    assert isinstance(error, LookupError)
    assert error.method == "example.EchoService/Echo"
    assert error.peer == server.address
    assert error.phase is tw.Phase.PEER
    assert error.sent is tw.Sent.ALL
    assert error.attempts == 1
    assert 0 < error.elapsed < 5
    for fact in ("no such thing", "NOT_FOUND", server.address, "Echo"):
        assert fact in str(error)


@pytest.mark.parametrize("number", [1, 77, 4242, 2**31 - 1, -5, -(2**31)])
def test_application_numbers_pass_unchanged(face, serve_def, number):
    with pytest.raises(tw.RpcError) as caught:
        call(face, serve_def, raiser(tw.RpcError("odd", number=number)))
    assert caught.value.number == number
    assert caught.value.message == "odd"


def test_minus_one_is_an_internal_error(face, serve):
    with pytest.raises(tw.Internal) as caught:
        call(face, serve, raiser(tw.RpcError("some failure", number=-1)))
    assert caught.value.number == tw.Errno.EINTERNAL


@pytest.mark.parametrize("text", ["one\ntwo", "ü\N{SNOWMAN}", "x" * 3000])
def test_error_text_passes_unchanged(face, serve_def, text):
    with pytest.raises(tw.Aborted) as caught:
        call(face, serve_def, raiser(tw.Aborted(text)))
    assert caught.value.message == text


def test_an_error_without_a_text_gets_the_numbers(face, serve_def):
    with pytest.raises(tw.Unavailable) as caught:
        call(face, serve_def, raiser(tw.RpcError("", number=tw.Errno.ELOGOFF)))
    assert caught.value.message == "The server is stopping"


def test_long_error_text_is_cut(face, serve):
    with pytest.raises(tw.Aborted) as caught:
        call(face, serve, raiser(tw.Aborted("x" * 1_000_000)), timeout=10)
    assert 1000 <= len(caught.value.message) < 1_000_000
    assert set(caught.value.message) == {"x"}


def test_unpaired_surrogate_in_a_text_does_no_harm(face, serve):
    with pytest.raises(tw.Aborted) as caught:
        call(face, serve, raiser(tw.Aborted("bad \udcff")))
    assert caught.value.message.startswith("bad ")


class Secret(Exception):
    pass


@pytest.mark.parametrize(
    "cls",
    [Secret, SystemExit, ZeroDivisionError, TimeoutError],
    ids=lambda c: c.__name__,
)
@pytest.mark.parametrize("timeout", [5, None])
def test_unexpected_exception_is_named_by_an_id(face, serve, caplog, cls, timeout):
    """A5: the peer gets a generic text with an id, the detail goes to the log."""
    server = serve(raiser(lambda: cls("password 1234")))
    client = face.client(echo_tw, face.channel(server.address))
    with caplog.at_level(logging.ERROR), pytest.raises(tw.Internal) as caught:
        face.start(client, "echo", REQUEST, timeout=timeout).result(10)
    assert caught.value.number == tw.Errno.EINTERNAL
    assert "password" not in str(caught.value)
    [identity] = re.findall(r"\bid ([0-9a-f]{12})\b", caught.value.message)
    [record] = [r for r in caplog.records if identity in r.getMessage()]
    assert record.name == "tidewire.server"
    assert record.levelno == logging.ERROR
    assert "example.EchoService/Echo" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is cls
    assert "password 1234" in logging.Formatter().format(record)
    # caplog keeps the record, and with it the handler's frame.
    caplog.clear()


def test_ids_differ(face, serve, caplog):
    server = serve(raiser(Secret()))
    client = face.client(echo_tw, face.channel(server.address))
    texts = set()
    for _ in range(3):
        with pytest.raises(tw.Internal) as caught:
            face.call(client, "echo", REQUEST)
        texts.add(caught.value.message)
    assert len(texts) == 3
    caplog.clear()


def test_server_goes_on_after_any_exception(face, serve, caplog):
    errors = [Secret, tw.NotFound, SystemExit, RecursionError, MemoryError]

    def handler(request, ctx):
        if request.fail_code:
            raise errors[request.fail_code - 1]()
        return echo(request, ctx)

    client = face.client(echo_tw, face.channel(serve(handler, threads=1).address))
    for i in range(len(errors)):
        failing = echo_pb2.EchoRequest(message="", fail_code=i + 1)
        with pytest.raises(tw.RpcError):
            face.call(client, "echo", failing, timeout=2)
        assert face.call(client, "echo", REQUEST, timeout=2).message == "hello"
    caplog.clear()


@pytest.mark.parametrize(
    "answer",
    [None, "text", b"bytes", REQUEST, echo_pb2.EchoResponse, echo_pb2.EchoResponse()],
    ids=["None", "str", "bytes", "other message", "class", "required missing"],
)
def test_wrong_return_type(face, serve, caplog, answer):
    with caplog.at_level(logging.ERROR), pytest.raises(tw.Internal) as caught:
        call(face, serve, lambda request, ctx: answer)
    assert caught.value.number == tw.Errno.ERESPONSE
    [identity] = re.findall(r"\bid ([0-9a-f]{12})\b", caught.value.message)
    [record] = [r for r in caplog.records if identity in r.getMessage()]
    assert record.exc_info is not None
    caplog.clear()


# With and without a deadline: the server has a shorter way for calls without.
@pytest.mark.parametrize("timeout", [5, None])
def test_reply_extras_that_cannot_be_sent(face, serve, caplog, timeout):
    def handler(request, ctx):
        if request.fail_code:
            ctx.reply_metadata = {"number": 1}
        return echo(request, ctx)

    client = face.client(echo_tw, face.channel(serve(handler, threads=1).address))
    failing = echo_pb2.EchoRequest(message="", fail_code=1)
    with pytest.raises(tw.Internal) as caught:
        face.start(client, "echo", failing, timeout=timeout).result(5)
    assert caught.value.number in (tw.Errno.ERESPONSE, tw.Errno.EINTERNAL)
    answer = face.start(client, "echo", REQUEST, timeout=timeout).result(5)
    assert answer.message == "hello"
    caplog.clear()


def raw(name, request=bytes, response=bytes, service="example.EchoService"):
    return tw.MethodInfo(service=service, name=name, request=request, response=response)


def raw_call(face, address, info, data=b"", **how):
    method = face.channel(address).unary(info)
    return face.call(
        type("Holder", (), {"m": staticmethod(method)})(), "m", data, **how
    )


@pytest.mark.parametrize(
    "data", [b"\xff", b"\x0a\x05abc", b""], ids=["tag", "cut", "empty"]
)
def test_undecodable_request_never_reaches_the_handler(face, serve, data):
    ran = []
    server = serve(lambda request, ctx: ran.append(1))
    # `message` is required, so that no bytes at all are wrong as well.
    with pytest.raises(tw.InvalidArgument) as caught:
        raw_call(face, server.address, raw("Echo"), data)
    assert caught.value.number == tw.Errno.EREQUEST
    assert caught.value.phase is tw.Phase.PEER
    assert "EchoRequest" in caught.value.message
    assert ran == []


def test_undecodable_response(face, serve_def):
    class Raw(tw.Service):
        __tidewire_service__ = "example.EchoService"
        __tidewire_methods__ = {"echo": raw("Echo")}

        def echo(self, request, ctx):
            return b"\xff\xff"

    server = serve_def([Raw()])
    client = face.client(echo_tw, face.channel(server.address))
    with pytest.raises(tw.Internal) as caught:
        face.call(client, "echo", REQUEST)
    assert caught.value.number == tw.Errno.ERESPONSE
    assert caught.value.phase is tw.Phase.READ
    assert caught.value.sent is tw.Sent.ALL
    assert caught.value.peer == server.address
    assert caught.value.__cause__ is not None


def test_wrong_request_type_raises_at_once(face, serve):
    client = face.client(echo_tw, face.channel(serve().address))
    for wrong in (None, "text", b"bytes", echo_pb2.EchoResponse(message="")):
        with pytest.raises(TypeError, match="expected a .*EchoRequest"):
            face.call(client, "echo", wrong)


def test_request_that_lacks_a_required_field_raises_at_once(face, serve):
    client = face.client(echo_tw, face.channel(serve().address))
    with pytest.raises(tw.CodecError, match="message"):
        face.call(client, "echo", echo_pb2.EchoRequest())


def test_unknown_method(face, serve):
    with pytest.raises(tw.Unimplemented) as caught:
        raw_call(face, serve().address, raw("Missing"))
    assert caught.value.number == tw.Errno.ENOMETHOD


def test_unknown_service(face, serve):
    server = serve()
    with pytest.raises(tw.Unimplemented) as caught:
        raw_call(face, server.address, raw("Echo", service="Missing"))
    assert caught.value.number == tw.Errno.ENOSERVICE
    # As brpc does: a dotted name that nobody has is an unknown method.
    with pytest.raises(tw.Unimplemented) as caught:
        raw_call(face, server.address, raw("Echo", service="no.Missing"))
    assert caught.value.number == tw.Errno.ENOMETHOD


def test_short_service_name_is_enough(face, serve):
    answer = raw_call(
        face, serve().address, raw("Echo", service="EchoService"), b"\x0a\x02hi"
    )
    assert answer == b"\x0a\x02hi"


def test_method_that_is_not_overridden(face, serve_def):
    server = serve_def([echo_tw.EchoService()])
    client = face.client(echo_tw, face.channel(server.address))
    with pytest.raises(tw.Unimplemented, match="not implemented") as caught:
        face.call(client, "echo", REQUEST)
    assert isinstance(caught.value, NotImplementedError)


def test_no_attachment_goes_with_an_error(serve):
    def handler(request, ctx):
        ctx.reply_attachment = b"x" * 10_000
        raise tw.NotFound("no")

    server = serve(handler)
    with raw_request(server) as connection, connection.makefile("rb") as stream:
        meta, rest = read_frame(stream)
    assert b"no" in meta
    assert rest == b""
    # attachment_size, field 5: absent.
    assert meta.endswith(correlation_of(meta))


def test_a_service_error_may_be_pickled(face, serve):
    import pickle

    with pytest.raises(tw.NotFound) as caught:
        call(face, serve, raiser(tw.NotFound("gone")))
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is tw.NotFound
    assert vars(again) == vars(caught.value)
    assert str(again) == str(caught.value)


def test_the_handlers_frames_are_let_go(face, serve, caplog):
    """An exception's traceback must not keep request and context alive."""
    import gc
    import weakref

    class Big:
        pass

    alive = []

    def handler(request, ctx):
        big = Big()
        alive.append(weakref.ref(big))
        raise tw.NotFound("x")

    with pytest.raises(tw.NotFound):
        call(face, serve, handler)

    def gone():
        gc.collect()
        return alive[0]() is None

    eventually(gone, "the frame is gone")
    assert sys.exc_info()[0] is None


def test_a_failed_call_leaves_no_cycle(face, serve):
    """Nothing for the garbage collector: an error goes with its last user."""

    def refuse(request, ctx):
        raise tw.NotFound("no")

    client = face.client(echo_tw, face.channel(serve(refuse).address))

    def failed():
        attachment = memoryview(b"beside")
        call = face.start(client, "echo", REQUEST, attachment=attachment)
        return weakref.ref(call.exception(10)), weakref.ref(attachment)

    gc.collect()
    gc.disable()
    try:
        gone = [ref for _ in range(20) for ref in failed()]
        # The last one's frame may still be on its way out of the loop.
        eventually(lambda: not any(ref() for ref in gone), "all are gone")
    finally:
        gc.enable()


def test_an_error_keeps_no_buffer_in_use(face, serve):
    """Whoever keeps it: what was sent can be changed again."""

    def refuse(request, ctx):
        raise tw.NotFound("no")

    server = serve(refuse)
    client = face.client(echo_tw, face.channel(server.address))
    gone = face.client(echo_tw, face.channel("127.0.0.1:1"))
    for to, kind in ((client, tw.NotFound), (gone, tw.Unavailable)):
        for size in (1, 300_000):
            data = bytearray(size)
            with pytest.raises(kind) as caught:
                face.call(to, "echo", REQUEST, attachment=data, timeout=10)
            data.append(1)
            del caught
