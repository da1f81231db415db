"""A real server in this process, and channels to it, for the time of a test."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from tempfile import TemporaryDirectory
from typing import Any, Final, Generic, TypeAlias, TypeVar

from tidewire._lifespan import MakeLifespan
from tidewire.aio import AsyncChannel
from tidewire.channel import Channel
from tidewire.errors import OptionError
from tidewire.options import ChannelOptions, ServerOptions
from tidewire.server import Server
from tidewire.service import Service
from tidewire.testing.faces import Faces

__all__ = ["PATIENT", "AsyncServed", "Served", "serve"]

C = TypeVar("C", bound=Channel | AsyncChannel)

PATIENT: Final = ChannelOptions(timeout=10.0, connect_timeout=None)
"""How test channels call unless told otherwise: a machine that runs tests may be
busy."""

_Make: TypeAlias = Callable[[str], Server]


class _Served(Generic[C]):
    def __init__(
        self,
        make: _Make,
        server: Server,
        open_channel: Callable[[str, ChannelOptions], C],
        options: ChannelOptions,
    ) -> None:
        self._make: Final = make
        self._open = open_channel
        self._options: Final = options
        self._channels: Final[list[C]] = []
        self.server = server
        """The server, started; after a restart another one."""
        self.channel: C = self.connect()
        """To the server; it connects at the first call."""

    @property
    def address(self) -> str:
        """Where the server listens, also after a restart."""
        return self.server.address

    def connect(self, options: ChannelOptions | None = None) -> C:
        """Another channel to the server, closed at the end like the first.
        options: None: those of the first."""
        channel = self._open(self.address, options or self._options)
        self._channels.append(channel)
        return channel

    def _again(self) -> Server:
        return self._make(self.address)


class Served(_Served[Channel]):
    """A server under test, the blocking face."""

    def stop(self, drain: float | None = None) -> None:
        """Stops the server; the channels stay open.  drain: seconds for the calls
        under way; None: the option's."""
        self.server.stop(drain)

    def restart(self) -> None:
        """Stops the server if it runs, and starts another one of the same services
        at the same address.  Services that were given as functions are made
        again."""
        self.server.stop()
        self.server = self._again().start()

    def _close(self, drain: float | None) -> None:
        while self._channels:
            self._channels.pop().close()
        self.server.stop(drain)


class AsyncServed(_Served[AsyncChannel]):
    """A server under test, the asyncio face."""

    async def astop(self, drain: float | None = None) -> None:
        """Stops the server; the channels stay open.  drain: seconds for the calls
        under way; None: the option's."""
        await self.server.astop(drain)

    async def arestart(self) -> None:
        """Stops the server if it runs, and starts another one of the same services
        at the same address.  Services that were given as functions are made
        again."""
        await self.server.astop()
        self.server = await self._again().__aenter__()

    async def _aclose(self, drain: float | None) -> None:
        while self._channels:
            await self._channels.pop().aclose()
        await self.server.astop(drain)


@contextmanager
def _address(listen: str | None) -> Iterator[str]:
    if listen is not None:
        yield listen
        return
    with TemporaryDirectory(prefix="tidewire-") as directory:
        yield f"unix:{directory}/socket"


def serve(
    *services: Service | Callable[[], Service],
    server: Callable[[str], Server] | None = None,
    listen: str | None = None,
    options: ServerOptions | None = None,
    channel: ChannelOptions | None = None,
    lifespan: MakeLifespan | None = None,
    thread_state: Callable[[], Any] | None = None,
) -> Faces[Served, AsyncServed]:
    """A server of the services and a channel to it, to be entered:

        with tw.testing.serve(Greeter) as served:
            greeter = greeter_tw.GreeterClient(served.channel)

    Nothing is simulated: the server, the socket and the bytes are the real ones.
    With `async with` the channel is an AsyncChannel, and `async def` handlers run
    on the running loop; otherwise they run on a loop of the server's.

    listen: None: a unix socket in a directory of its own, so that no two tests
    meet; for TCP "127.0.0.1:0".  channel: of `served.channel`; None: 10 s for a
    call.  options, lifespan, thread_state: the server's.  server: instead of these
    and the services, a function that makes the server for an address.

    At the end the channels are closed, then the server is stopped: calls under way
    get its drain time, but after an error none.  Raises OptionError and TypeError,
    now or when entered, for what cannot be served.
    """
    if server is not None and (services or options or lifespan or thread_state):
        raise OptionError(
            "serve was given server and more; allowed: services, options, lifespan"
            " and thread_state, or server"
        )

    def make(listen: str) -> Server:
        if server is not None:
            made = server(listen)
            if not isinstance(made, Server):
                raise TypeError(
                    f"server gave a {type(made).__name__}; allowed: a tidewire.Server"
                )
            return made
        return Server(
            services,
            listen=listen,
            options=options,
            lifespan=lifespan,
            thread_state=thread_state,
        )

    how = PATIENT if channel is None else channel

    @contextmanager
    def plain() -> Iterator[Served]:
        with _address(listen) as where:
            served = Served(make, make(where).start(), _blocking, how)
            drain: float | None = 0.0
            try:
                yield served
                drain = None
            finally:
                served._close(drain)

    @asynccontextmanager
    async def asynchronous() -> AsyncIterator[AsyncServed]:
        with _address(listen) as where:
            started = await make(where).__aenter__()
            served = AsyncServed(make, started, _asyncio, how)
            drain: float | None = 0.0
            try:
                yield served
                drain = None
            finally:
                await served._aclose(drain)

    return Faces(plain, asynchronous)


def _blocking(address: str, options: ChannelOptions) -> Channel:
    return Channel(address, options=options)


def _asyncio(address: str, options: ChannelOptions) -> AsyncChannel:
    return AsyncChannel(address, options=options)
