"""One served call as plain steps: decode, run, encode, or what to say instead.

Decides and never waits; the worker threads and the asyncio loop do that.
"""

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from tidewire import _core, _meta, coding
from tidewire._lend import LEND_BYTES
from tidewire.codec import Codec, functions_for
from tidewire.codes import Errno
from tidewire.coding import ContentType
from tidewire.context import Context, _current, context_class
from tidewire.errors import OptionError, RpcError
from tidewire.service import MethodInfo, Service

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


def undecodable(error: BaseException, info: MethodInfo[Any, Any], event: Any) -> Answer:
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
    return int(Errno.EREQUEST), text.encode("utf-8", "replace"), None


@dataclass(frozen=True, slots=True)
class Method:
    """A method of a server and how it is run."""

    info: MethodInfo[Any, Any]
    is_async: bool
    plain: Callable[[Any, Any], bytes | Answer]
    """def: the whole call, from its event and the event's memory; for requests
    without attachment and deadline.  bytes: the message of a plain success."""
    rich: Callable[[Any, Any], bytes | Answer]
    """def: the same for all others."""
    prepare: Callable[[Any, Any], tuple[Any, Context] | Answer]
    """async def: (request, context), or the answer to what is undecodable."""
    handle: Callable[[Any, Context], Awaitable[bytes | Answer]]
    """async def: the handler and everything after."""


def _method(
    info: MethodInfo[Any, Any],
    handler: Callable[..., Any],
    codec: Codec | None,
    limit: int,
) -> Method:
    decode = functions_for(codec, info.request)[1]
    encode = functions_for(codec, info.response)[0]
    name = info.full_name
    # A class for each method: what all its calls share is set once.
    context_type = context_class(name)

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
        try:
            if event.coded:
                request = decode_coded(event)
            else:
                request = decode(_unpack(event.body, event.body_len))
        except Exception as error:
            return undecodable(error, info, event)
        ctx = context_type()
        ctx._raw = memory[:]
        if event.attachment_len:
            ctx._has_attachment = True
        if event.coded:
            ctx._is_coded = True
        return request, ctx

    def plain(event: Any, memory: Any) -> bytes | Answer:
        # The hot path: prepare() and outcome() again, without the calls.
        try:
            request = decode(_unpack(event.body, event.body_len))
        except Exception as error:
            return undecodable(error, info, event)
        ctx = context_type()
        ctx._raw = memory[:]
        reply = _UNSET
        try:
            reply = handler(request, ctx)
            return beside(reply, ctx) if ctx._has_extra else encode(reply)
        except BaseException as error:
            return failure(error, name, reply is not _UNSET)

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
            return failure(error, name, reply is not _UNSET)
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
            return failure(error, name, reply is not _UNSET)

    def beside(reply: Any, ctx: Context) -> Answer:
        """An answer with more than its message."""
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

    is_async = inspect.iscoroutinefunction(handler)
    return Method(info, is_async, plain, rich, prepare, handle)


def methods_of(
    services: Sequence[Service],
    codec: Codec | None,
    limit: int,
    lower: Mapping[str, int] = MappingProxyType({}),
) -> list[Method]:
    """The methods of all services.  limit: bytes of a message, decompressed;
    lower: those of some methods, by full name.
    Raises OptionError when two are the same, TypeError for what is no service."""
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
            own = lower.get(info.full_name, limit)
            methods.append(_method(info, handler, codec, own))
    return methods
