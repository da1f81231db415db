"""An asyncio loop's side of the core: one inbox per loop.

The loop watches the inbox's eventfd and, if no other loop does, the core's own
epoll descriptor; then its callback polls.  One batch per callback, the rest by
call_soon, so that the loop's other work goes on.
"""

import asyncio
import sys
import weakref
from collections.abc import Sequence
from typing import Any, Final

from tidewire import _core
from tidewire._dispatch import Answer, Method, handed
from tidewire._lend import LEND_BYTES
from tidewire._pending import Pending

__all__ = ["LoopPort", "port_of"]

_lib: Final = _core.lib
_ffi: Final = _core.ffi
_NULL: Final = _core.NULL
_tw_reply: Final = _core.lib.tw_reply
_BATCH: Final = 64
_EVENT_SIZE: Final = _core.EVENT.size


def _plain_task(
    coro: Any, loop: asyncio.AbstractEventLoop, name: str
) -> "asyncio.Task[None]":
    return asyncio.Task(coro, loop=loop, name=name)


def _eager_task(
    coro: Any, loop: asyncio.AbstractEventLoop, name: str
) -> "asyncio.Task[None]":
    # Unknown to checkers that are told of 3.11.
    options: Any = {"eager_start": True}
    return asyncio.Task(coro, loop=loop, name=name, **options)


# From its first line a handler is in a task of its own, started at once where
# Python can (3.12+).
_start_task: Final = _eager_task if sys.version_info >= (3, 12) else _plain_task


class LoopPort:
    """What one loop sends to and gets from the core.  Its thread only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        _core.open()
        inbox = _ffi.new("tw_id *")
        _core.check(_lib.tw_inbox_open(inbox), "no inbox for the asyncio loop")
        self.loop: Final = loop
        self.generation: Final = _core.generation
        self.inbox: Final[int] = inbox[0]
        self.pending: Final = Pending(self.inbox)
        self.servers: Final[dict[int, Sequence[Method]]] = {}
        # By request: its handler, and its server's slot.
        self._tasks: Final[dict[int, tuple[asyncio.Task[None], int]]] = {}
        self._events = _ffi.new("tw_event[]", _BATCH)
        self._cells = [self._events[i] for i in range(_BATCH)]
        self._memory = [
            _ffi.buffer(self._events + i, _EVENT_SIZE) for i in range(_BATCH)
        ]
        self._more = _ffi.new("int *")
        self._flush_due = False
        self._scheduled = False
        self._users = 0
        self._fd = _core.check(_lib.tw_inbox_fd(self.inbox))
        self._epoll = -1

    # ---- watching

    def acquire(self) -> None:
        """One more server or channel uses the port: the loop watches it."""
        self._users += 1
        if self._users > 1:
            return
        self.loop.add_reader(self._fd, self._ready)
        epoll = _lib.tw_watch(self.inbox)
        if epoll >= 0:
            self._epoll = epoll
            self.loop.add_reader(epoll, self._ready)

    def release(self) -> None:
        """The last user's release ends the watching, once no call is left
        whose result somebody awaits."""
        self._users -= 1
        self._rest()

    def _rest(self) -> None:
        if self._users == 0 and not self.pending.calls:
            self._unwatch()

    def drain_and_release(self) -> None:
        """Delivers what there is, then releases."""
        self._ready()
        self.release()

    def _unwatch(self) -> None:
        if self.loop.is_closed():
            return
        self.loop.remove_reader(self._fd)
        if self._epoll >= 0:
            self.loop.remove_reader(self._epoll)
            self._epoll = -1
        _lib.tw_unwatch(self.inbox)

    def close(self) -> None:
        """The loop is gone or going: nothing is delivered any more."""
        if self.generation == _core.generation:
            self._unwatch()
            _lib.tw_inbox_close(self.inbox)

    # ---- events

    def _again(self) -> None:
        self._scheduled = False
        self._ready()

    def _ready(self) -> None:
        more = self._more
        count = _lib.tw_drain(self.inbox, self._epoll >= 0, self._events, _BATCH, more)
        cells = self._cells
        results = False
        for i in range(count):
            event = cells[i]
            kind = event.kind
            if kind == 1:  # TW_REQUEST
                self._serve(event, self._memory[i])
            elif kind == 2:  # TW_RESULT
                results = True
                self._finish(event)
            elif kind == 4:  # TW_CANCELLED
                self.cancel(event.id)
        if self._flush_due:
            self._flush()
        if results:
            # The results' blocks go back now, not with the next event.
            if not more[0]:
                _lib.tw_drain(self.inbox, 0, self._events, 0, more)
            if self._users == 0:
                self._rest()
        if more[0] and not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._again)

    def _finish(self, event: Any) -> None:
        future, value, error = self.pending.end(event)
        if future is None or future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def _serve(self, event: Any, memory: Any) -> None:
        cookie: int = event.cookie
        request_id: int = event.id
        server = cookie >> 32
        methods = self.servers.get(server)
        if methods is None:  # the server was closed
            _lib.tw_reply(request_id, _lib.TW_ELOGOFF, b"", 0, _NULL, 0)
            return
        method = methods[cookie & 0xFFFFFFFF]
        prepared = method.prepare(event, memory)
        if len(prepared) == 3:
            self._reply(request_id, prepared)
            return
        task = _start_task(
            self._handle(method, request_id, *prepared),
            self.loop,
            method.info.name,
        )
        if not task.done():
            self._tasks[request_id] = (task, server)

    async def _handle(
        self, method: Method, request_id: int, request: Any, ctx: Any
    ) -> None:
        try:
            answer = await method.handle(request, ctx)
        except BaseException:
            # Cancelled: by the peer's going, or with the loop.
            self._give_up(request_id)
            raise
        self._tasks.pop(request_id, None)
        self._reply(request_id, answer)

    def _reply(self, request_id: int, answer: bytes | Answer) -> None:
        if isinstance(answer, bytes) and len(answer) < LEND_BYTES:
            _tw_reply(request_id, 0, answer, len(answer), _NULL, self.inbox)
        else:
            code, body, extra, _keep = handed(answer)
            _tw_reply(request_id, code, body, len(body), extra, self.inbox)
        if not self._flush_due:
            self._flush_due = True
            self.loop.call_soon(self._flush)

    def flush_soon(self) -> None:
        """What was corked is written at the end of this turn of the loop."""
        if not self._flush_due:
            self._flush_due = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._flush_due:
            self._flush_due = False
            _lib.tw_flush(self.inbox)

    def _give_up(self, request_id: int) -> None:
        self._tasks.pop(request_id, None)
        text = b"The handler was cancelled"
        # Refused, and no harm, if it was answered after all.
        _lib.tw_reply(request_id, _lib.TW_ELOGOFF, text, len(text), _NULL, 0)

    def cancel(self, request_id: int) -> None:
        """Cancels a request's handler, if it still runs."""
        running = self._tasks.get(request_id)
        if running is None:
            return
        task = running[0]
        # A task that is cancelled before its first step runs nothing at all.
        task.add_done_callback(lambda _: self._give_up(request_id))
        task.cancel()

    def handlers(self, server: int) -> "list[asyncio.Task[None]]":
        """Those of a server that still run."""
        return [task for task, slot in self._tasks.values() if slot == server]

    def cancel_all(self, server: int, but: int = 0) -> "list[asyncio.Task[None]]":
        """Cancels a server's handlers, all but that request's; those that are
        to be waited for."""
        running = [
            (request_id, task)
            for request_id, (task, slot) in self._tasks.items()
            if slot == server and request_id != but
        ]
        for request_id, task in running:
            if task.done():  # cancelled by others before its first step
                self._give_up(request_id)
            else:
                self.cancel(request_id)
        return [task for _, task in running if not task.done()]


# Weak on both sides: a port names its loop, so a strong port here would keep
# both for ever.  Its users keep it, and the loop while it watches.
_ports: """weakref.WeakKeyDictionary[
    asyncio.AbstractEventLoop, weakref.ReferenceType[LoopPort]
]""" = weakref.WeakKeyDictionary()


def port_of(loop: asyncio.AbstractEventLoop) -> LoopPort:
    """The loop's port, made when first asked for; from the loop's thread."""
    known = _ports.get(loop)
    port = None if known is None else known()
    if port is None or port.generation != _core.generation:
        port = LoopPort(loop)
        with _core.handles_lock:
            _close_ports_of_closed_loops()
            _ports[loop] = weakref.ref(port)
        weakref.finalize(port, _forget, port.inbox, port.generation)
    return port


def _close_ports_of_closed_loops() -> None:
    # Whoever uses them still may live long: a channel over many asyncio.run().
    for loop, known in list(_ports.items()):
        port = known() if loop.is_closed() else None
        if port is not None:
            port.close()
            del _ports[loop]


def _forget(inbox: int, generation: int) -> None:
    if generation == _core.generation:
        _lib.tw_inbox_close(inbox)
