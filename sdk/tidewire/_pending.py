"""Submitted calls whose results come through an inbox, by cookie.

Used by the completion thread and by asyncio loops; both only wait and hand
out what end() returns.
"""

import itertools
from typing import Any, Final

from tidewire import _core
from tidewire._call import Packed, Plan
from tidewire.errors import ClosedError, Phase

__all__ = ["Pending"]

_lib: Final = _core.lib


class Pending:
    """The calls of one inbox that are under way."""

    def __init__(self, inbox: int) -> None:
        self.inbox: Final = inbox
        self.calls: Final[dict[int, tuple[Any, Plan[Any, Any], bool]]] = {}
        self._cookies = itertools.count(1)
        self._id = _core.ffi.new("tw_id *")

    def submit(
        self,
        peer: int,
        plan: Plan[Any, Any],
        request: Packed,
        sink: Any,
        *,
        deadline_ns: int,
        full: bool,
        cork: bool,
    ) -> tuple[int, int]:
        """Sends a call whose end goes to `sink`: (call id, cookie).  full: the
        sink gets a Response, else the message.  Raises what cannot be sent."""
        if _core.ended:
            raise ClosedError("the interpreter is ending")
        body = request.body
        cookie = next(self._cookies)
        # One id cell per call in flight between threads: allocate.
        call = self._id if cork else _core.ffi.new("tw_id *")
        # Known before the result can come.
        self.calls[cookie] = (sink, plan, full)
        try:
            code = _lib.tw_submit(
                peer,
                plan.index,
                body,
                len(body),
                request.extra,
                deadline_ns,
                self.inbox,
                cookie,
                cork,
                call,
            )
        finally:
            _core.let_go(request.keep)
        if code < 0:
            self.calls.pop(cookie, None)  # who gives up may have taken it
            if code == -_lib.TW_STALE:
                raise ClosedError("the channel is closed")
            raise plan.local_error(-code, _core.text_of(-code), Phase.NONE)
        return call[0], cookie

    def alarm(self, when_ns: int, alarm: Any) -> int:
        """Has end() give the alarm at that time: the id for tw_cancel(), by which
        it is given at once."""
        cookie = next(self._cookies)
        call = _core.ffi.new("tw_id *")
        self.calls[cookie] = (alarm, alarm, False)
        code = _lib.tw_alarm(self.inbox, when_ns, cookie, call)
        if code < 0:
            self.calls.pop(cookie, None)
            raise ClosedError("the interpreter is ending")
        return int(call[0])

    def end(self, event: Any) -> tuple[Any, Any, BaseException | None]:
        """(sink, value, error) of a TW_RESULT; the sink is None when nobody
        waits any more."""
        entry = self.calls.pop(event.cookie, None)
        if entry is None:
            return None, None, None
        sink, plan, full = entry
        if sink is plan:
            return sink, None, None  # an alarm
        # An error without a traceback: through this frame it would hold the
        # sink, which holds the error: a cycle for each call that fails.
        if event.code:
            return sink, None, plan.error(event)
        try:
            return sink, (plan.response if full else plan.message)(event), None
        except Exception as error:
            return sink, None, error.with_traceback(None)
