"""The course of a call that is a future: its attempts follow each other, or run
beside each other, each a future of its own."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from tidewire import _completion
from tidewire._attempts import Attempts, Try
from tidewire._call import Response
from tidewire._completion import Alarm, CallFuture
from tidewire.errors import ClosedError, RpcError

__all__ = ["Course"]


class Course:
    """Everything but the start happens in the thread that ends futures, or in one
    for which it waits by itself."""

    def __init__(
        self,
        future: CallFuture[Any],
        attempts: Attempts,
        send: Callable[[float | None, Try], Future[Any]],
    ) -> None:
        """send: makes an attempt that has so many seconds."""
        self._future = future
        self._attempts = attempts
        self._send = send
        self._running: dict[Try, Future[Any]] = {}
        self._alarms: list[Alarm] = []
        future._course = self

    def start(self, backup: float | None) -> None:
        """The first attempt, and if it has no answer after `backup` seconds one
        beside it.  What no attempt could help is raised."""
        try:
            first = self._attempts.next()
        except RpcError as error:
            self._future.settle(None, error)
            return
        self._try(first)
        if backup is not None and self._running:
            self._later(backup, first, self._back_up)

    def go_on(self) -> None:
        """The next attempt, now or soon."""
        try:
            one = self._attempts.next()
        except RpcError as none:
            self._over(None, none)
            return
        if one.pause:
            self._later(one.pause, one, lambda: self._try_unwaited(one))
        else:
            self._try_unwaited(one)

    def _later(self, seconds: float, one: Try, do: Callable[[], None]) -> None:
        alarm = _completion.alarm(seconds, one.server.owner, do)
        self._alarms.append(alarm)
        if self._future.done():
            alarm.bring_forward()

    def cancel(self) -> None:
        """Ends what is under way, once the future has ended."""
        if self._future.cancelled():
            # Nobody gets this, but hooks are told.
            self._future.settle(None, self._attempts.cancelled())
        alarms, self._alarms = self._alarms, []
        for alarm in alarms:
            alarm.bring_forward()
        for attempt in list(self._running.values()):
            attempt.cancel()

    def _back_up(self) -> None:
        if self._running and not self._future.done():
            one = self._attempts.backup(list(self._running))
            if one is not None:
                self._try_unwaited(one)

    def _try_unwaited(self, one: Try) -> None:
        """Where nobody waits for what it raises."""
        if one.server.owner.is_unresolved:
            # The thread that ends all futures may not wait for a resolver.
            threading.Thread(
                target=self._try_now, args=(one,), name="tidewire-resolve", daemon=True
            ).start()
        else:
            self._try_now(one)

    def _try_now(self, one: Try) -> None:
        try:
            self._try(one)
        except Exception as error:
            if isinstance(error, ClosedError):
                error = self._attempts.closed()
            self._over(None, error.with_traceback(None))

    def _try(self, one: Try) -> None:
        if self._future.done():
            self._attempts.given_up(one)
            return
        try:
            attempt = self._send(self._attempts.left(), one)
        except RpcError as error:
            self._failed(one, error)
            return
        except BaseException:
            self._attempts.given_up(one)
            raise
        self._running[one] = attempt
        if self._future.cancelled():
            attempt.cancel()
        attempt.add_done_callback(lambda ended: self._ended(one, ended))

    def _ended(self, one: Try, attempt: Future[Any]) -> None:
        del self._running[one]
        if attempt.cancelled() or self._future.done():
            self._attempts.given_up(one)
            if not self._running:
                self._future._course = None  # no cycle is left behind
            return
        error = attempt.exception()
        try:
            if error is None:
                self._attempts.succeeded(one)
                self._over(self._full(attempt.result()), None)
            elif isinstance(error, RpcError):
                self._failed(one, error)
            else:
                self._attempts.given_up(one)
                self._over(None, error)
        finally:
            del error

    def _full(self, value: Any) -> Any:
        return self._attempts.told(value) if isinstance(value, Response) else value

    def _failed(self, one: Try, error: RpcError) -> None:
        if self._running:
            self._attempts.note(one, error)  # the other may do better
        elif self._attempts.failed(one, error):
            self._over(None, error)
        elif self._future.done():
            self._future._course = None
        else:
            self.go_on()

    def _over(self, value: Any, error: BaseException | None) -> None:
        try:
            self._future.settle(value, error)
        finally:
            del error
        self._future._course = None
        self.cancel()
