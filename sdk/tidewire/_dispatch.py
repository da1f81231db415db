"""One served call as plain steps: decode, run, encode, or what to say instead.

Decides and never waits; the worker threads and the asyncio loop do that.
"""

import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from tidewire import _core, _meta, coding
from tidewire._chain import Layers
from tidewire._lend import LEND_BYTES
from tidewire.codec import Codec, functions_for
from tidewire.codes import Errno
from tidewire.coding import ContentType
from tidewire.context import Context, Shared, _current, context_class
from tidewire.errors import OptionError, RpcError, from_number
from tidewire.hooks import Call, Hook
from tidewire.service import GENERIC, MethodInfo, Service

__all__ = ["Answer", "Method", "handed", "methods_of"]

_log: Final = logging.getLogger("tidewire.server")
_unpack: Final = _core.ffi.unpack

Answer: TypeAlias = tuple[int, bytes, "tuple[Any, Any] | None"]
"""Code, message or error text, and what goes beside it."""

_UNSET: Final = object()


def handed(answer: bytes | Answer) -> tuple[int, bytes, Any, Any]:
    """An answer as the core takes it: code, message or text, tw_extra or NULL,
    and what must live until then.  A large message is lent."""
    if isinstance(answer, bytes):
        if len(answer) < LEND_BYTES:
            return 0, answer, _core.NULL, None
        return 0, answer, *_core.extra(None, None, body=answer)
    code, body, out = answer
    return (code, body, _core.NULL, None) if out is None else (code, body, *out)


def failure(error: BaseException, method: str, encoding: bool) -> Answer:
    """What the peer is told of an exception.  An RpcError speaks for itself;
    anything else is named by an id that the log has with the traceback."""
    if isinstance(error, RpcError) and not encoding:
        # -1 is brpc's word for "some failure": it travels as EINTERNAL, and to
        # tw_turn it would mean that there is no answer.
        number = int(Errno.EINTERNAL) if error.number == -1 else error.number
        return number, error.message.encode("utf-8", "replace"), None
    import secrets  # here: importing tidewire must be quick

    identity = secrets.token_hex(6)
    what = "answer cannot be encoded" if encoding else "internal error"
    _log.error("%s: %s, id %s", method, what, identity, exc_info=error)
    number = Errno.ERESPONSE if encoding else Errno.EINTERNAL
    return int(number), f"{what}, id {identity}".encode(), None


def undecodable(
    error: BaseException, info: MethodInfo[Any, Any], event: Any
) -> RpcError:
    name = info.request.__qualname__
    how = ""
    if event.coded:
        said = _meta.decode_coding(_unpack(event.meta, event.meta_len))
        how = (
            f" ContentType={said.content_type}, CompressType={said.compress_type},"
            f" ChecksumType={said.checksum_type},"
        )
    size = event.body_len
    text = f"Fail to parse request={name},{how} request_size={size}: {error}"
    return from_number(int(Errno.EREQUEST), text)


@dataclass(frozen=True, slots=True)
class Method:
    """A method of a server and how it is run."""

    info: MethodInfo[Any, Any]
    is_async: bool
    plain: Callable[[Any, Any], bytes | Answer]
    """def: the whole call, from its event and the event's memory; for requests
    without attachment and deadline, of bare protobuf.  bytes: the message of a
    plain success."""
    rich: Callable[[Any, Any], bytes | Answer]
    """def: the same for all others."""
    prepare: Callable[[Any, Any], tuple[Any, Context] | Answer]
    """async def: (request, context), or the answer to what is undecodable; with
    hooks the request is then the error."""
    handle: Callable[[Any, Context], Awaitable[bytes | Answer]]
    """async def: the handler and everything after."""


def _method(
    info: MethodInfo[Any, Any],
    handler: Callable[..., Any],
    codec: Codec | None,
    limit: int,
    hooks: Sequence[Hook],
    shared: Shared,
) -> Method:
    decode = functions_for(codec, info.request)[1]
    encode = functions_for(codec, info.response)[0]
    name = info.full_name
    is_async = inspect.iscoroutinefunction(handler)
    own = "" if info is GENERIC else name
    # A class for each method: what all its calls share is set once.
    context_type = context_class(own, is_async, shared)

    def decode_coded(event: Any) -> Any:
        data, content_type = coding.decoded(
            _unpack(event.meta, event.meta_len),
            _unpack(event.body, event.body_len) if event.body_len else b"",
            _core.ffi.buffer(event.attachment, event.attachment_len)
            if event.attachment_len
            else b"",
            limit,
        )
        if content_type is not ContentType.PROTOBUF:
            return coding.reader(codec, info.request, content_type)(data)
        return decode(data)

    def prepare(event: Any, memory: Any) -> tuple[Any, Context] | Answer:
        request: Any
        try:
            if event.coded:
                request = decode_coded(event)
            else:
                request = decode(_unpack(event.body, event.body_len))
        except Exception as error:
            request = undecodable(error, info, event)
            if not hooks:
                return failure(request, name, False)
        ctx = context_type()
        ctx._raw = memory[:]
        if event.attachment_len:
            ctx._has_attachment = True
        if event.coded:
            ctx._is_coded = True
        return request, ctx

    def plain(event: Any, memory: Any) -> bytes | Answer:
        # The hot path: what prepare() and rich() do, without the calls.
        try:
            request = decode(_unpack(event.body, event.body_len))
        except Exception as error:
            return failure(undecodable(error, info, event), name, False)
        ctx = context_type()
        ctx._raw = memory[:]
        reply = _UNSET
        try:
            reply = handler(request, ctx)
            return beside(reply, ctx) if ctx._has_extra else encode(reply)
        except BaseException as error:
            return failed(error, ctx, reply is not _UNSET)

    def rich(event: Any, memory: Any) -> bytes | Answer:
        prepared = prepare(event, memory)
        if len(prepared) == 3:
            return prepared
        request, ctx = prepared
        # Calls made inside find the deadline by the context variable.
        token = _current.set(ctx)
        reply = _UNSET
        try:
            reply = handler(request, ctx)
            return beside(reply, ctx) if ctx._has_extra else encode(reply)
        except BaseException as error:
            return failed(error, ctx, reply is not _UNSET)
        finally:
            _current.reset(token)

    async def handle(request: Any, ctx: Context) -> bytes | Answer:
        # In a task of its own: the variable dies with the task's context.
        _current.set(ctx)
        reply = _UNSET
        try:
            reply = await handler(request, ctx)
            return beside(reply, ctx) if ctx._has_extra else encode(reply)
        # SystemExit too: it would end the loop, and all other calls with it.
        except (Exception, SystemExit) as error:
            return failed(error, ctx, reply is not _UNSET)
        except BaseException:
            ctx._returned()
            raise

    def failed(error: BaseException, ctx: Context, encoding: bool) -> Answer:
        ctx._returned()
        return failure(error, name, encoding)

    def beside(reply: Any, ctx: Context) -> Answer:
        """An answer with more than its message."""
        ctx._returned()
        how, fields = ctx._reply_coding, b""
        if how is None:
            body = encode(reply)
        else:
            kind = how.content_type
            if kind is ContentType.PROTOBUF:
                body = encode(reply)
            else:
                body = coding.writer(codec, info.response, kind)(reply)
            body, fields = coding.encoded(how, body, ctx._reply_attachment)
        return 0, body, ctx._extra(body, fields)

    # The same within hooks, written out for the two kinds of handlers and without
    # calls that could be saved: this is what a hook costs.
    layers = Layers(hooks)
    starts, any_ends, end = layers.starts, layers.any_ends, layers.end
    requests, replies = layers.requests, layers.replies
    prepare_any: Any = prepare  # with hooks it gives no answer

    def ended(
        ctx: Context,
        call: Call,
        started: int,
        error: BaseException,
        encoding: bool,
        began_ns: int,
    ) -> Answer:
        ctx._returned()
        number = int(Errno.ERESPONSE) if encoding else None
        raised = end(call, started, error, number, began_ns)
        return failure(raised or error, name, encoding and raised is error)

    def within(request: Any, ctx: Context, began_ns: int) -> bytes | Answer:
        call = Call(own or ctx.method, ctx)
        started, encoding = 0, False
        try:
            for on_start in starts:
                if on_start is not None:
                    on_start(call)
                started += 1
            if isinstance(request, RpcError):
                raise request
            for on_message in requests:
                on_message(call, request, False)
            reply = handler(request, ctx)
            if ctx._watch is not None:
                ctx._returned()
            for on_message in replies:
                on_message(call, reply, True)
            encoding = True
            answer = beside(reply, ctx) if ctx._has_extra else encode(reply)
        except BaseException as error:
            return ended(ctx, call, started, error, encoding, began_ns)
        if not any_ends:
            return answer
        raised = end(call, started, None, None, began_ns)
        return answer if raised is None else failure(raised, name, False)

    def bounded(request: Any, ctx: Context, began_ns: int) -> bytes | Answer:
        # Calls made inside find the deadline by the context variable.
        _current.set(ctx)
        return within(request, ctx, began_ns)

    def hooked_plain(event: Any, memory: Any) -> bytes | Answer:
        request, ctx = prepare_any(event, memory)
        # The thread serves other calls afterwards: a context for each.
        return copy_context().run(within, request, ctx, event.received_ns)

    def hooked_rich(event: Any, memory: Any) -> bytes | Answer:
        request, ctx = prepare_any(event, memory)
        return copy_context().run(bounded, request, ctx, event.received_ns)

    async def hooked_handle(request: Any, ctx: Context) -> bytes | Answer:
        _current.set(ctx)
        call = Call(own or ctx.method, ctx)
        began_ns: int = ctx._event()[15]
        started, encoding = 0, False
        try:
            for on_start in starts:
                if on_start is not None:
                    on_start(call)
                started += 1
            if isinstance(request, RpcError):
                raise request
            for on_message in requests:
                on_message(call, request, False)
            reply = await handler(request, ctx)
            if ctx._watch is not None:
                ctx._returned()
            for on_message in replies:
                on_message(call, reply, True)
            encoding = True
            answer = beside(reply, ctx) if ctx._has_extra else encode(reply)
        except (Exception, SystemExit) as error:
            return ended(ctx, call, started, error, encoding, began_ns)
        except BaseException as error:
            ctx._returned()
            end(call, started, error, int(Errno.ECANCELED), began_ns)
            raise
        if not any_ends:
            return answer
        raised = end(call, started, None, None, began_ns)
        return answer if raised is None else failure(raised, name, False)

    if hooks:
        return Method(info, is_async, hooked_plain, hooked_rich, prepare, hooked_handle)
    return Method(info, is_async, plain, rich, prepare, handle)


def methods_of(
    services: Sequence[Service],
    codec: Codec | None,
    limit_of: Callable[[str], int],
    hooks: Sequence[Hook] = (),
    shared: Shared | None = None,
) -> list[Method]:
    """The methods of all services.  limit_of: bytes of a message, decompressed, of
    a method's full name.
    Raises OptionError when two are the same, TypeError for what is no service."""
    shared = shared or Shared()
    methods: list[Method] = []
    names: set[str] = set()
    for service in services:
        if not isinstance(service, Service):
            raise TypeError(
                f"services holds a {type(service).__name__}; allowed: instances of"
                " generated services, or functions that make one"
            )
        for attribute, info in service.__tidewire_methods__.items():
            if info.full_name in names:
                raise OptionError(f"services has {info.full_name} twice")
            names.add(info.full_name)
            handler = getattr(service, attribute)
            own = limit_of(info.full_name)
            methods.append(_method(info, handler, codec, own, hooks, shared))
    return methods
