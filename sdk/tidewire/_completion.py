"""Futures: one daemon thread per process drains the results of all calls made
with .future(); started by the first."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any, Final, TypeVar

from tidewire import _core
from tidewire._call import Packed, Plan
from tidewire._pending import Pending
from tidewire.errors import ClosedError, RpcError

__all__ = ["Alarm", "CallFuture", "alarm", "settle", "submit"]

Res = TypeVar("Res")

_log: Final = logging.getLogger("tidewire.client")
_lib: Final = _core.lib
_BATCH: Final = 64


class CallFuture(Future[Res]):
    """A call under way.  cancel() ends it at both ends of this process; the
    server may still run it."""

    _call = 0
    _generation = 0
    _told = False
    _finish: "Callable[..., Any] | None" = None
    """What the result passes before it is anybody's."""
    _retry: tuple[Any, ...] | None = None
    """What says whether the call goes on after an error, and by itself: it gets this
    future and the error, and then the rest of the tuple."""
    _course: Any = None
    """What makes its attempts, if this is none itself."""

    def cancel(self) -> bool:
        if not super().cancel():
            return False
        # Tells wait() and as_completed(); the second time there is nobody.
        with self._condition:
            first, self._told = not self._told, True
        if first:
            self.set_running_or_notify_cancel()
            if self._course is not None:
                self._course.cancel()
            elif self._generation == _core.generation:
                _lib.tw_cancel(self._call)
        return True

    def settle(self, value: Any, error: BaseException | None) -> None:
        """The call is over, or was cancelled before."""
        try:
            if self._finish is not None:
                value, error = self._finish(value, error)
            if error is None:
                self.set_result(value)
            else:
                self.set_exception(error)
        except InvalidStateError:
            pass  # cancelled meanwhile: nobody wants the result
        finally:
            del error

    def ended(self, value: Any, error: BaseException | None) -> None:
        """What the core made of it."""
        try:
            retry, self._retry = self._retry, None
            if (
                retry is None
                or not isinstance(error, RpcError)
                or self.cancelled()
                or not retry[0](self, error, *retry[1:])
            ):
                self.settle(value, error)
        finally:
            del error

    def result(self, timeout: float | None = None) -> Res:
        self._check()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._check()
        return super().exception(timeout)

    def _check(self) -> None:
        # Nobody ends it in a fork's child.
        if self._generation != _core.generation and self._state == "PENDING":
            raise _core.forked("the call")


class Alarm:
    """Something to be done later, in the thread that ends futures."""

    def __init__(self, owner: object, do: Callable[[], None]) -> None:
        """owner: whose closing brings it forward."""
        self.owner: Final = owner
        self._do: Final = do
        self.id = 0

    def ended(self, value: Any, error: BaseException | None) -> None:
        self._do()

    def bring_forward(self) -> None:
        """Now rather than then."""
        _lib.tw_cancel(self.id)


class _Completions:
    def __init__(self) -> None:
        _core.open()
        inbox = _core.ffi.new("tw_id *")
        _core.check(_lib.tw_inbox_open(inbox), "no inbox for futures")
        self.generation: Final = _core.generation
        self.pending: Final = Pending(inbox[0])
        # settle() waits for it while `waiting` says so.
        self._batch_over = threading.Condition()
        self._waiting = 0
        self._batches = 0
        self._ending = False  # futures are being ended
        self._thread = threading.Thread(
            target=self._run, name="tidewire-futures", daemon=True
        )
        self._thread.start()

    def _run(self) -> None:
        inbox = self.pending.inbox
        events = _core.ffi.new("tw_event[]", _BATCH)
        more = _core.ffi.new("int *")
        while True:
            code = _lib.tw_inbox_wait(inbox, -1, 1)
            count = _lib.tw_drain(inbox, 0, events, _BATCH, more)
            self._ending = count > 0
            if count <= 0 and _core.events_lost(code):
                self._give_up()
                return
            for i in range(count):
                future, value, error = self.pending.end(events[i])
                if future is None:
                    continue
                self._end(future, value, error)
                del future, value, error
            self._end_batch()
            if count > 0 and not more[0]:
                # The results' blocks go back now, not with the next result.
                _lib.tw_drain(inbox, 0, events, 0, more)

    def _give_up(self) -> None:
        # Threads may wait for them, and the interpreter for those threads.
        for cookie, (sink, _, _) in list(self.pending.calls.items()):
            self._end(sink, None, ClosedError("the interpreter is ending"))
            self.pending.calls.pop(cookie, None)
        self._end_batch()

    def _end_batch(self) -> None:
        self._ending = False
        self._batches += 1
        # Looked at after counting; who waits counts itself before it looks.
        if self._waiting:
            with self._batch_over:
                self._batch_over.notify_all()

    def settle(self, owner: object) -> None:
        """Waits until no future of `owner`'s calls is to end and no callback of
        one runs.  From a callback it returns at once."""
        if threading.current_thread() is self._thread:
            return

        def under_way() -> bool:
            calls = list(self.pending.calls.values())
            mine = [sink for sink, plan, _ in calls if plan.owner is owner]
            for sink in mine:
                if isinstance(sink, Alarm):
                    sink.bring_forward()
            return bool(mine)

        with self._batch_over:
            self._waiting += 1
            try:
                while under_way() and self._thread.is_alive():
                    self._batch_over.wait(0.1)
                # A call that is gone from the table may be in its callbacks:
                # the batch it came with must be over.
                seen = self._batches
                while self._ending and self._batches == seen:
                    self._batch_over.wait(0.1)
            finally:
                self._waiting -= 1

    @staticmethod
    def _end(sink: Any, value: Any, error: BaseException | None) -> None:
        try:
            sink.ended(value, error)
        except BaseException:
            # Futures let SystemExit and the like out of their callbacks; it
            # must not end the thread that all other futures wait for.
            _log.exception("a callback of %r raised", sink)
        finally:
            del error


_completions: _Completions | None = None


def _running() -> _Completions:
    global _completions
    completions = _completions
    if completions is None or completions.generation != _core.generation:
        with _core.handles_lock:
            completions = _completions
            if completions is None or completions.generation != _core.generation:
                completions = _completions = _Completions()
    return completions


def settle(owner: object) -> None:
    """Waits until the futures of `owner`'s calls have ended, callbacks included."""
    completions = _completions
    if completions is not None and completions.generation == _core.generation:
        completions.settle(owner)


def submit(
    peer: int,
    plan: Plan[Any, Res],
    request: Packed,
    deadline_ns: int,
    full: bool,
    finish: Callable[..., Any] | None,
    retry: tuple[Any, ...] | None,
) -> CallFuture[Res]:
    """Sends a call; its answer becomes the future's result: the message, or if
    `full` a Response.  finish: from (result, error), one of them None, to what the
    future gets instead.  retry: as CallFuture has it."""
    future: CallFuture[Res] = CallFuture()
    if finish is not None:
        future._finish = finish
    future._retry = retry
    future._generation = _core.generation
    future._call, _ = _running().pending.submit(
        peer,
        plan,
        request,
        future,
        deadline_ns=deadline_ns,
        full=full,
        cork=False,
    )
    return future


def alarm(seconds: float, owner: object, do: Callable[[], None]) -> Alarm:
    """Does that after so many seconds, in the thread that ends futures."""
    made = Alarm(owner, do)
    when_ns = time.monotonic_ns() + int(seconds * 1e9)
    made.id = _running().pending.alarm(when_ns, made)
    return made
