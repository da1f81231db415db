"""A server that answers as a test tells it."""

import copy
import inspect
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from tidewire.aio import AsyncChannel
from tidewire.channel import Channel
from tidewire.codec import Codec, functions_for
from tidewire.codes import Errno
from tidewire.context import Context
from tidewire.errors import CodecError, Internal, OptionError, RpcError, Unimplemented
from tidewire.options import ChannelOptions, ServerOptions
from tidewire.service import GenericService, MethodInfo, Service
from tidewire.testing.faces import Faces
from tidewire.testing.served import PATIENT, serve

__all__ = ["Faked", "Received", "fake"]

C = TypeVar("C", bound=Channel | AsyncChannel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A call that has come to a fake."""

    method: str
    """Full name, `package.Service/Method`."""
    request: Any
    """The message; of a method that the fake does not know, bytes."""
    timeout: float | None
    """Seconds that the call had left when it came, a little less than it was given;
    None: no deadline."""
    metadata: Mapping[str, str]
    attachment: bytes
    request_id: str
    log_id: int


class _Record:
    """What has come to one fake, and what was wrong with its replies."""

    def __init__(self) -> None:
        self.calls: Final[list[Received]] = []
        self.faults: Final[list[str]] = []

    def note(self, request: Any, ctx: Context) -> None:
        received = Received(
            method=ctx.method,
            request=request,
            timeout=ctx.remaining(),
            metadata=dict(ctx.metadata),
            attachment=bytes(ctx.attachment),
            request_id=ctx.request_id,
            log_id=ctx.log_id,
        )
        self.calls.append(received)

    def fault(self, text: str) -> str:
        self.faults.append(text)
        return text

    def check(self) -> None:
        """Raises AssertionError if the fake did not know what to answer."""
        if self.faults:
            raise AssertionError("\n  ".join(["the fake failed calls:", *self.faults]))


class Faked(Generic[C]):
    """A fake under way."""

    def __init__(self, channel: C, record: _Record) -> None:
        self.channel: C = channel
        """For clients of any of the methods."""
        self.address: Final = channel.address
        """For code that makes its channel itself."""
        self.calls: Final[Sequence[Received]] = record.calls
        """All that have come so far, in their order."""

    def calls_of(self, method: object) -> list[Received]:
        """Those of one method, named as for fake()."""
        name = _info_of(method).full_name
        return [call for call in self.calls if call.method == name]


class _Replies:
    """What one method answers, checked."""

    def __init__(
        self, info: MethodInfo[Any, Any], given: object, codec: Codec | None
    ) -> None:
        self.info: Final = info
        self._encode: Final = functions_for(codec, info.response)[0]
        # A message class may well be a sequence, as `bytes` is.
        self._many: Final = not self._is_message(given) and isinstance(
            given, list | tuple
        )
        replies: Any = given if self._many else [given]
        self._replies: Final[Sequence[Any]] = list(replies)
        if not self._replies:
            raise OptionError(f"the replies of {info.full_name} are none; allowed: one")
        for reply in self._replies:
            if self._is_message(reply):
                if wrong := self._wrong(reply):
                    raise CodecError(wrong)
            elif isinstance(reply, type) or not (
                isinstance(reply, RpcError) or callable(reply)
            ):
                raise TypeError(f"{self._wrong(reply)}, an RpcError, or a function")

    @property
    def is_async(self) -> bool:
        return any(inspect.iscoroutinefunction(reply) for reply in self._replies)

    def _is_message(self, reply: object) -> bool:
        return isinstance(reply, self.info.response)

    def _wrong(self, reply: object) -> str:
        """What is wrong with it as a message, "": nothing."""
        name = self.info.full_name
        if not self._is_message(reply):
            given = reply if isinstance(reply, type) else type(reply)
            what = "the class" if isinstance(reply, type) else "of type"
            return (
                f"a reply of {name} is {what} {given.__qualname__}; allowed: a"
                f" message of type {self.info.response.__qualname__}"
            )
        try:
            self._encode(reply)
        except Exception as error:
            return f"a reply of {name} cannot be encoded: {error}"
        return ""

    def handler(self, record: _Record) -> Any:
        """`def` or `async def`, as a service has it."""
        numbers = iter(range(sys.maxsize))
        lock = threading.Lock()

        def begin(request: Any, ctx: Context) -> Any:
            # Together: the first call gets the first reply.
            with lock:
                record.note(request, ctx)
                number = next(numbers)
            if not self._many:
                reply = self._replies[0]
            elif number < len(self._replies):
                reply = self._replies[number]
            else:
                raise Internal(
                    record.fault(
                        f"{ctx.method} was called {number + 1} times; it has"
                        f" {len(self._replies)} replies"
                    )
                )
            if isinstance(reply, RpcError):
                raise copy.copy(reply)
            return reply if self._is_message(reply) else reply(request)

        def end(reply: Any) -> Any:
            if wrong := self._wrong(reply):
                raise Internal(record.fault(wrong))
            return reply

        def handle(request: Any, ctx: Context) -> Any:
            return end(begin(request, ctx))

        async def ahandle(request: Any, ctx: Context) -> Any:
            reply = begin(request, ctx)
            return end(await reply if inspect.isawaitable(reply) else reply)

        return ahandle if self.is_async else handle


def _service(replies: Sequence[_Replies], record: _Record) -> Service:
    """With a method for each, of whatever services: names are all that counts."""
    names = [f"method_{i}" for i in range(len(replies))]
    infos = {name: each.info for name, each in zip(names, replies, strict=True)}
    made: Service = type("FakeService", (Service,), {"__tidewire_methods__": infos})()
    for name, each in zip(names, replies, strict=True):
        setattr(made, name, each.handler(record))
    return made


class _Others(GenericService):
    """The methods that a fake does not know."""

    def __init__(self, known: Sequence[str], record: _Record) -> None:
        self._known: Final = ", ".join(sorted(known)) or "none"
        self._record: Final = record

    def handle(self, request: bytes, ctx: Context) -> bytes:
        self._record.note(request, ctx)
        text = f"the fake does not know {ctx.method}; it knows {self._known}"
        raise Unimplemented(self._record.fault(text), number=Errno.ENOMETHOD)


def _info_of(method: object) -> MethodInfo[Any, Any]:
    if isinstance(method, MethodInfo):
        return method
    if inspect.isfunction(method):
        # A generated service's function says where its class is.
        owner: Any = sys.modules.get(method.__module__)
        *path, name = method.__qualname__.split(".")
        for part in path:
            owner = getattr(owner, part, None)
        info = getattr(owner, "__tidewire_methods__", {}).get(name)
        if isinstance(info, MethodInfo):
            return info
    raise TypeError(
        f"{method!r} is no method; allowed: a method of a generated service, such as"
        " GreeterService.greet, or a MethodInfo"
    )


def fake(
    replies: Mapping[Any, object], *, channel: ChannelOptions | None = None
) -> Faces[Faked[Channel], Faked[AsyncChannel]]:
    """A server that answers what it is told, and a channel to it, to be entered with
    `with` or `async with`:

        answers = {greeter_tw.GreeterService.greet: GreetReply(text="Hello")}
        with tw.testing.fake(answers) as faked:
            greeter = greeter_tw.GreeterClient(faked.channel)
        assert faked.calls[0].request.name == "Ada"

    replies: by method, which is a method of a generated service or a MethodInfo:
    a message; an RpcError, which the caller gets; a function of the request, `def` or
    `async def`, that returns a message or raises; or a list of such, one for each
    call.
    channel: None: 10 s for a call.

    It is serve() with services made for the occasion.  So what a real server does
    to messages, errors, deadlines, metadata and hooks is done here, too, and code
    that passes with the fake does not fail with the server for that.

    A call that the fake has no answer for fails, and so does the test, whatever the
    code makes of the error: leaving raises AssertionError when an unknown method was
    called, a function has given no message of the method's, or a list was used up.
    Raises TypeError at once for replies of a wrong type, CodecError for messages that
    cannot be encoded.
    """
    how = PATIENT if channel is None else channel
    checked = [
        _Replies(_info_of(method), reply, how.codec)
        for method, reply in replies.items()
    ]
    names = [each.info.full_name for each in checked]

    def served(record: _Record) -> Any:
        services: list[Service] = [_Others(names, record)]
        if checked:
            services.append(_service(checked, record))
        options = ServerOptions(codec=how.codec)
        return serve(*services, options=options, channel=how)

    @contextmanager
    def plain() -> Iterator[Faked[Channel]]:
        record = _Record()
        with served(record) as one:
            yield Faked(one.channel, record)
        record.check()

    @asynccontextmanager
    async def asynchronous() -> AsyncIterator[Faked[AsyncChannel]]:
        record = _Record()
        async with served(record) as one:
            yield Faked(one.channel, record)
        record.check()

    return Faces(plain, asynchronous)
