"""etcd:// where a real etcd cannot be brought to it: answers that are none, a
store that goes back; and what its addresses may be."""

import base64
import contextlib
import json
import logging
import queue
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import RawServer, eventually
from tidewire import naming
from tidewire.errors import AddressError, OptionError
from tidewire.naming import etcd_client
from tidewire.naming.etcd import EtcdNaming
from tidewire.node import Node

A, B = (Node(address=f"10.0.0.{i}:80") for i in (1, 2))


def pair(number: int, revision: int) -> dict[str, Any]:
    def b64(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    return {
        "key": b64(f"/shop/{number}"),
        "value": b64(f"10.0.0.{number}:80"),
        "mod_revision": str(revision),
    }


def listing(revision: int, *numbers: int) -> dict[str, Any]:
    pairs = [pair(number, revision) for number in numbers]
    return {"header": {"revision": str(revision)}, "kvs": pairs}


def created(revision: int) -> dict[str, Any]:
    return {"header": {"revision": str(revision)}, "created": True}


def http(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (
        status.encode(),
        len(body),
        body,
    )


class Scripted:
    """Gives the answers of its script, in order: bytes as they are, a dict as
    JSON, a list as the messages of a watch, which stays open after the last."""

    def __init__(self) -> None:
        self.script: queue.Queue[Any] = queue.Queue()
        self.asked: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._server = RawServer(self._serve)
        self.address = self._server.address

    def _serve(self, stream: Any, connection: Any) -> None:
        # The client may go at any byte, when its watch is closed.
        with contextlib.suppress(OSError):
            asked = self._request(stream)
            if asked is not None:
                self.asked.put(asked)
                self._answer(self.script.get(timeout=20), stream, connection)

    def _request(self, stream: Any) -> tuple[str, Any] | None:
        """The path and the body; None: not the whole of it came."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = stream.readline()
            if not line:
                return None
            head += line
        size = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
        body = stream.read(size)
        return (
            (head.split()[1].decode(), json.loads(body)) if len(body) == size else None
        )

    def _answer(self, what: Any, stream: Any, connection: Any) -> None:
        if not isinstance(what, list):
            data = what if isinstance(what, bytes) else http(json.dumps(what).encode())
            connection.sendall(data)
            return
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for message in what:
            data = message
            if isinstance(message, dict):
                data = json.dumps({"result": message}).encode() + b"\n"
            connection.sendall(b"%x\r\n%s\r\n" % (len(data), data))
        stream.read(1)  # until the client goes

    def until_asked(self, path: str) -> Any:
        """What is asked next: that."""
        found, body = self.asked.get(timeout=20)
        assert found == path
        return body

    def close(self) -> None:
        self.script.put(b"")
        self._server.__exit__()


@pytest.fixture
def etcd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    monkeypatch.setattr("tidewire.naming.backoff._FIRST", 0.001)
    one = Scripted()
    yield one
    one.close()


@pytest.fixture
def lists(etcd: Scripted) -> Iterator[Callable[[], queue.Queue[tuple[Node, ...]]]]:
    opened = []

    def watch() -> queue.Queue[tuple[Node, ...]]:
        seen: queue.Queue[tuple[Node, ...]] = queue.Queue()
        opened.append(naming.watch_of(f"etcd://{etcd.address}/shop"))
        opened[-1].subscribe(lambda nodes: seen.put(tuple(nodes)))
        return seen

    yield watch
    for one in opened:
        naming.close_watch(one)


BAD = {
    "nothing": b"",
    "no HTTP": b"hello\r\n\r\n",
    "an error": http(b'{"error": "etcdserver: no leader"}', "503 Unavailable"),
    "an error in text": http(b"Not Found", "404 Not Found"),
    "no JSON": http(b"<html>"),
    "no object": http(b"[]"),
    "no header": http(b"{}"),
    "deep": http(b"[" * 100_000),
    "half an answer": http(b"{}")[:-1],
    "keys are no list": http(b'{"header": {"revision": "5"}, "kvs": 5}'),
    "a key is none": http(b'{"header": {"revision": "5"}, "kvs": [{"key": 5}]}'),
    "no number": http(b'{"header": {"revision": "x"}}'),
    "no base64": http(b'{"header": {"revision": "5"}, "kvs": [{"key": "?"}]}'),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_c10_an_answer_that_is_none_keeps_the_last_list(
    etcd: Scripted,
    lists: Callable[[], queue.Queue[tuple[Node, ...]]],
    caplog: pytest.LogCaptureFixture,
    bad: bytes,
) -> None:
    """C10: it is logged once with its endpoint, and asked again."""
    with caplog.at_level(logging.WARNING, "tidewire.naming"):
        seen = lists()
        etcd.script.put(listing(5, 1))
        etcd.until_asked("/v3/kv/range")
        assert seen.get(timeout=10) == (A,)
        # Compacted, so that all is read again.
        etcd.script.put([created(5), {"canceled": True, "compact_revision": "5"}])
        etcd.until_asked("/v3/watch")
        for _ in range(3):
            etcd.script.put(bad)
            etcd.until_asked("/v3/kv/range")
        etcd.script.put(listing(6, 1, 2))
        etcd.until_asked("/v3/kv/range")
        assert seen.get(timeout=10) == (A, B)
    lines = [r.getMessage() for r in caplog.records if r.name == "tidewire.naming"]
    assert len(lines) == 2, lines
    etcd.script.put([])


BAD_MESSAGES = {
    "an error": b'{"error": {"message": "no leader"}}\n',
    "no JSON": b"nonsense\n",
    "no result": b'{"result": 5}\n',
    "an event is none": b'{"result": {"events": [5]}}\n',
    "cut": b'{"result": {"events"',
    "cancelled": b'{"result": {"canceled": true, "cancel_reason": "no"}}\n',
}


@pytest.mark.parametrize("bad", BAD_MESSAGES.values(), ids=BAD_MESSAGES)
def test_c10_a_message_that_is_none_ends_that_watch_only(
    etcd: Scripted,
    lists: Callable[[], queue.Queue[tuple[Node, ...]]],
    monkeypatch: pytest.MonkeyPatch,
    bad: bytes,
) -> None:
    """C10: the next one goes on from the revision that was seen last."""
    monkeypatch.setattr(etcd_client, "_QUIET", 0.05)
    seen = lists()
    etcd.script.put(listing(5, 1))
    etcd.until_asked("/v3/kv/range")
    assert seen.get(timeout=10) == (A,)
    etcd.script.put([created(5), {"events": [{"kv": pair(2, 9)}]}, bad])
    assert etcd.until_asked("/v3/watch")["create_request"]["start_revision"] == "6"
    assert seen.get(timeout=10) == (A, B)
    gone = {"type": "DELETE", "kv": pair(1, 10)}
    etcd.script.put([created(9), {"events": [gone]}])
    assert etcd.until_asked("/v3/watch")["create_request"]["start_revision"] == "10"
    assert seen.get(timeout=10) == (B,)
    etcd.script.put([])


def test_a_store_that_has_gone_back_is_read_again(
    etcd: Scripted, lists: Callable[[], queue.Queue[tuple[Node, ...]]]
) -> None:
    """A backup was restored: a watch from a revision that is to come would be
    silent until then."""
    seen = lists()
    etcd.script.put(listing(900, 1))
    etcd.until_asked("/v3/kv/range")
    assert seen.get(timeout=10) == (A,)
    etcd.script.put([created(40)])
    etcd.until_asked("/v3/watch")
    etcd.script.put(listing(40, 2))
    etcd.until_asked("/v3/kv/range")
    assert seen.get(timeout=10) == (B,)
    etcd.script.put([created(40)])
    assert etcd.until_asked("/v3/watch")["create_request"]["start_revision"] == "41"


def test_a_failing_etcd_is_asked_ever_less_often(
    etcd: Scripted,
    lists: Callable[[], queue.Queue[tuple[Node, ...]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also when it can be read and not watched."""
    pauses: list[float] = []

    def wait(self: naming.Stopping, seconds: float) -> bool:
        pauses.append(seconds)
        return bool(self)

    monkeypatch.setattr(naming.Stopping, "wait", wait)
    lists()
    etcd.script.put(listing(5, 1))
    for _ in range(5):
        etcd.script.put(http(b"{}", "501 Not Implemented"))
    etcd.script.put([created(5)])
    eventually(lambda: len(pauses) == 5)
    assert 0.0005 <= pauses[0] <= 0.001
    assert 0.008 <= pauses[4] <= 0.016


# ---- addresses


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("etcd://", "the port is missing"),
        ("etcd://host", "the port is missing"),
        ("etcd://host:2379", "the prefix is ''; allowed: host:2379,host:2379/prefix"),
        ("etcd://host:2379/", "the prefix is '/'"),
        ("etcd://host:2379/a b", "without blanks"),
        ("etcd://host:2379,/a", "the port is missing"),
        ("etcd://unix:/tmp/x", "is no (endpoint|address)"),
        ("etcd://host:0/a", "no endpoint of etcd"),
    ],
)
def test_what_is_no_address(url: str, text: str) -> None:
    with pytest.raises(AddressError, match=text) as caught:
        naming.parse(url)
    assert repr(url) in str(caught.value)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("etcd://h:1/a?ca=/x", "no option of etcd://; allowed: none"),
        ("etcds://h:1/a?user=me", "allowed: ca=/path"),
        ("etcds://h:1/a?cert=/x", "allowed: ca=/path"),
        ("etcds://h:1/a?ca=/not/there", "ca=/not/there cannot be read"),
    ],
)
def test_options_of_etcd(url: str, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        naming.parse(url)


@pytest.mark.parametrize(
    "path", ["/shops/one", "/shops/one/", "//shops/one", "/shops/one//"]
)
def test_the_prefix_ends_where_a_name_ends(path: str) -> None:
    """Not amidst another service's."""
    found = naming.parse(f"etcd://[::1]:2379,host:2379{path}")
    assert isinstance(found, EtcdNaming)
    assert found.prefix == "/shops/one/"
