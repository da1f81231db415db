"""The admin thread over a scripted core: real C memory, no sockets."""

import errno
import queue
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cffi import FFI
from tidewire.admin.messages import Request, Response, plain
from tidewire.admin.thread import AdminThread

API = Path(__file__).resolve().parents[2] / "csrc/api.h"
INBOX = 77
GET = b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n"


class FakeLib:
    """What the thread calls.  put() wakes it; `calls` is what it did."""

    TW_CHUNK, TW_CLOSED, TW_STOPPED = 3, 5, 5002
    TW_EINTERNAL = 2001

    def __init__(self, ffi: FFI) -> None:
        self.ffi = ffi
        self.events: queue.Queue[list[tuple[int, int, bytes]]] = queue.Queue()
        self.now: list[tuple[int, int, bytes]] = []
        self.calls: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self.write_code: Callable[[int], int] = lambda socket: 0
        self.keep: list[Any] = []
        self.interrupt = True

    def put(self, *events: tuple[int, int, bytes]) -> None:
        self.events.put(list(events))

    def chunk(self, socket: int, data: bytes) -> None:
        self.put((self.TW_CHUNK, socket, data))

    def tw_inbox_open(self, inbox: Any) -> int:
        inbox[0] = INBOX
        return 0

    def tw_inbox_close(self, inbox: int) -> int:
        assert inbox == INBOX
        self.put((0, 0, b""))
        return 0

    def tw_inbox_wait(self, inbox: int, timeout_ns: int, poll: int) -> int:
        assert inbox == INBOX
        if self.interrupt:
            self.interrupt = False
            return -errno.EINTR
        try:
            self.now = self.events.get(block=timeout_ns < 0)
        except queue.Empty:
            return -errno.ETIMEDOUT
        return -self.TW_STOPPED if self.now[0][0] == 0 else 0

    def tw_drain(self, inbox: int, poll: int, events: Any, most: int, more: Any) -> int:
        assert (inbox, poll) == (INBOX, 0)
        for i, (kind, socket, data) in enumerate(self.now):
            body = self.ffi.new("char[]", data)
            self.keep.append(body)
            events[i].kind = kind
            events[i].socket = socket
            events[i].body = body
            events[i].body_len = len(data)
        return len(self.now)

    def tw_raw_next(self, socket: int) -> int:
        self.calls.put(("next", socket))
        return 0

    def tw_raw_write(self, socket: int, data: bytes, size: int, close: int) -> int:
        assert size == len(data)
        status, body = data[9:12], data.partition(b"\r\n\r\n")[2]
        self.calls.put(("write", socket, int(status), body, bool(close)))
        return self.write_code(socket)

    def tw_socket_fail(self, socket: int, code: int) -> int:
        self.calls.put(("fail", socket, code))
        return 0

    def done(self, count: int) -> list[tuple[Any, ...]]:
        return [self.calls.get(timeout=10) for _ in range(count)]


def handle(request: Request) -> Response:
    if request.path == "/raise":
        raise RuntimeError("broken page")
    return plain(200, request.path)


@pytest.fixture
def ffi() -> FFI:
    ffi = FFI()
    ffi.cdef(re.sub(r"/\*.*?\*/", "", API.read_text(), flags=re.S))
    return ffi


@pytest.fixture
def lib(ffi: FFI) -> Iterator[FakeLib]:
    fake = FakeLib(ffi)
    thread = AdminThread(handle, lib=fake, ffi=ffi)  # type: ignore[arg-type]
    assert thread.inbox == INBOX
    assert thread.daemon
    thread.start()
    yield fake
    thread.close()
    thread.close()
    assert not thread.is_alive()
    assert fake.calls.empty()


def test_a_chunk_is_answered_and_the_next_one_asked_for(lib: FakeLib) -> None:
    lib.chunk(1, GET % b"a" + GET % b"b" + b"GET /c")
    lib.chunk(1, b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert lib.done(5) == [
        ("write", 1, 200, b"/a\n", False),
        ("write", 1, 200, b"/b\n", False),
        ("next", 1),
        ("write", 1, 200, b"/c\n", False),
        ("next", 1),
    ]


def test_nothing_more_is_read_after_the_last_answer(lib: FakeLib) -> None:
    lib.chunk(1, b"NONSENSE\r\n\r\n" + GET % b"a")
    lib.chunk(1, GET % b"b")
    lib.chunk(2, GET % b"c")
    assert lib.done(3) == [
        ("write", 1, 400, b"bad request line\n", True),
        ("write", 2, 200, b"/c\n", False),
        ("next", 2),
    ]


def test_a_closed_connection_is_forgotten(lib: FakeLib) -> None:
    lib.put((lib.TW_CHUNK, 1, b"GET /half"), (lib.TW_CLOSED, 1, b""))
    lib.put((lib.TW_CHUNK, 1, GET % b"a"), (lib.TW_CLOSED, 9, b""))
    assert lib.done(3) == [("next", 1), ("write", 1, 200, b"/a\n", False), ("next", 1)]


def test_connections_take_turns(lib: FakeLib) -> None:
    """One that pipelines hundreds lets another in between."""
    lib.put(
        (lib.TW_CHUNK, 1, b"".join(GET % b"%d" % i for i in range(200))),
        (lib.TW_CHUNK, 2, GET % b"x"),
    )
    calls = lib.done(203)
    assert calls[64] == ("write", 2, 200, b"/x\n", False)
    assert [c[3] for c in calls if c[:2] == ("write", 1)] == [
        b"/%d\n" % i for i in range(200)
    ]
    assert calls[-1] == ("next", 1)
    assert calls.count(("next", 1)) == 1


def test_a_connection_may_end_with_requests_unanswered(lib: FakeLib) -> None:
    lib.put(
        (lib.TW_CHUNK, 1, b"".join(GET % b"a" for _ in range(100))),
        (lib.TW_CLOSED, 1, b""),
    )
    lib.chunk(2, GET % b"x")
    calls = lib.done(66)
    assert calls[64:] == [("write", 2, 200, b"/x\n", False), ("next", 2)]


def test_who_takes_no_answers_is_cut_off(lib: FakeLib) -> None:
    lib.write_code = lambda socket: -1011 if socket == 1 else 0
    lib.put((lib.TW_CHUNK, 1, GET % b"a" * 3), (lib.TW_CHUNK, 2, GET % b"b"))
    assert lib.done(4) == [
        ("write", 1, 200, b"/a\n", False),
        ("fail", 1, 1011),
        ("write", 2, 200, b"/b\n", False),
        ("next", 2),
    ]


def test_a_broken_page_ends_its_connection_only(
    lib: FakeLib, caplog: pytest.LogCaptureFixture
) -> None:
    lib.put((lib.TW_CHUNK, 1, GET % b"raise"), (lib.TW_CHUNK, 2, GET % b"b"))
    assert lib.done(3) == [
        ("fail", 1, 2001),
        ("write", 2, 200, b"/b\n", False),
        ("next", 2),
    ]
    assert "broken page" in caplog.text


def test_other_events_are_none_of_its_business(lib: FakeLib) -> None:
    lib.put((1, 5, b""), (4, 5, b""))
    lib.chunk(1, b"G")
    assert lib.done(1) == [("next", 1)]


def test_a_thread_that_never_ran_can_be_closed(ffi: FFI) -> None:
    AdminThread(handle, lib=FakeLib(ffi), ffi=ffi).close()  # type: ignore[arg-type]


def test_no_inbox_no_thread(ffi: FFI) -> None:
    fake = FakeLib(ffi)
    fake.tw_inbox_open = lambda inbox: -errno.ENOMEM  # type: ignore[method-assign]
    before = threading.active_count()
    with pytest.raises(OSError, match="inbox"):
        AdminThread(handle, lib=fake, ffi=ffi)  # type: ignore[arg-type]
    assert threading.active_count() == before
