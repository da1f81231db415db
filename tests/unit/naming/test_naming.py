"""Where lists of servers come from: schemes, files, names, and what is kept when
something goes wrong."""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness import SLOW, eventually
from tidewire import naming
from tidewire.errors import AddressError, OptionError
from tidewire.naming import Naming, PeriodicNaming, Publish, Stopping, Watch
from tidewire.naming.dns import DnsNaming, SrvNaming
from tidewire.naming.lists import FileNaming, StaticNaming, parse_node
from tidewire.node import Node

A, B, C = (Node(address=f"10.0.0.{i}:80") for i in (1, 2, 3))


@pytest.fixture
def watch_of() -> Iterator[Callable[[str], Watch]]:
    """watch_of, whose watches are closed at the end."""
    opened: list[Watch] = []

    def open_one(url: str) -> Watch:
        opened.append(naming.watch_of(url))
        return opened[-1]

    yield open_one
    for watch in opened:
        naming.close_watch(watch)


class Scripted(Naming):
    """Publishes or raises what the test puts into its queue."""

    def __init__(self, text: str = "") -> None:
        self.script: queue.Queue[Any] = queue.Queue()
        self.runs = 0

    def run(self, publish: Publish, stopping: Stopping) -> None:
        self.runs += 1
        while not stopping:
            try:
                what = self.script.get(timeout=0.02)
            except queue.Empty:
                continue
            if isinstance(what, Exception):
                raise what
            publish(what)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    made = Scripted()
    monkeypatch.setitem(naming._factories, "scripted", lambda text: made)
    return made


def lists_of(watch: Watch) -> queue.Queue[tuple[Node, ...]]:
    seen: queue.Queue[tuple[Node, ...]] = queue.Queue()
    watch.subscribe(lambda nodes: seen.put(tuple(nodes)))
    return seen


# ---- schemes


def test_a_list() -> None:
    found = naming.parse("list://10.0.0.1:80, 10.0.0.2:80 5,[::1]:8 a b")
    assert isinstance(found, StaticNaming)
    tags = [(node.address, node.tag, node.weight) for node in found.nodes]
    assert tags == [
        ("10.0.0.1:80", "", None),
        ("10.0.0.2:80", "5", 5),
        ("[::1]:8", "a b", None),
    ]


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("10.0.0.1:80", "allowed: scheme://"),
        ("list://", "allowed: 1.2.3.4:80"),
        ("list://10.0.0.1:80,", "allowed: 1.2.3.4:80"),
        ("list://10.0.0.1", "the port is missing"),
        ("what://x", "nothing is known of what://; allowed: list://, file://, dns://"),
        ("file://here", "allowed: file:// and an absolute path"),
        ("dns://name", "the port is missing"),
        ("dns://unix:/tmp/x", "no name for dns://"),
        ("dns+srv://name:80", "without a port"),
        ("dns+srv://", "without a port"),
    ],
)
def test_what_is_no_address(url: str, text: str) -> None:
    with pytest.raises(AddressError, match=text) as caught:
        naming.parse(url)
    assert repr(url) in str(caught.value)


@pytest.mark.parametrize("query", ["interval=0", "interval=x", "interval=", "every=3"])
def test_options_of_dns(query: str) -> None:
    with pytest.raises(OptionError, match=r"allowed: interval=N, 0.1 to 86400"):
        naming.parse(f"dns://name:80?{query}")
    assert naming.parse("dns://name:80?interval=2.5").interval == 2.5  # type: ignore[attr-defined]


def test_a_scheme_of_ones_own(
    monkeypatch: pytest.MonkeyPatch, watch_of: Callable[[str], Watch]
) -> None:
    class Own(PeriodicNaming):
        def __init__(self, text: str) -> None:
            self.text = text

        def lookup(self) -> Sequence[Node]:
            return [parse_node(self.text)]

    monkeypatch.setattr(naming, "_factories", dict(naming._factories))
    naming.register("own", Own)
    watch = watch_of("own://10.0.0.1:80")
    assert watch.wait_first(10)
    assert watch.nodes == (A,)


def test_a_scheme_of_a_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def entry_points(**how: str) -> list[Any]:
        asked.append(how)
        return [SimpleNamespace(load=lambda: Scripted)] if how["name"] == "zk" else []

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    assert isinstance(naming.parse("zk://x"), Scripted)
    assert asked == [{"group": "tidewire.naming", "name": "zk"}]
    with pytest.raises(AddressError):
        naming.parse("etcd3://x")


# ---- the watch


def test_one_watch_for_all_who_ask(
    watch_of: Callable[[str], Watch], scripted: Scripted
) -> None:
    first, second = watch_of("scripted://x"), watch_of("scripted://x")
    assert first is second
    assert watch_of("scripted://y") is not first
    scripted.script.put([A, B])
    assert first.wait_first(10)
    assert lists_of(second).get(timeout=10) == (A, B)


def test_it_ends_with_the_last_user(scripted: Scripted) -> None:
    def threads() -> int:
        return sum(t.name == "tidewire-naming" for t in threading.enumerate())

    eventually(lambda: threads() == 0, "those of other tests end")
    one, other = naming.watch_of("scripted://x"), naming.watch_of("scripted://x")
    assert threads() == 1
    naming.close_watch(one)
    assert threads() == 1
    naming.close_watch(other)
    eventually(lambda: threads() == 0)
    again = naming.watch_of("scripted://x")
    assert again is not one
    naming.close_watch(again)


def test_lists_come_in_order_without_doubles(
    watch_of: Callable[[str], Watch], scripted: Scripted
) -> None:
    watch = watch_of("scripted://x")
    assert not watch.wait_first(0)
    seen = lists_of(watch)
    for nodes in ([A, B, A], [A, B], [B, C], [B, C, B], [A]):
        scripted.script.put(nodes)
    found = [seen.get(timeout=10) for _ in range(3)]
    assert found == [(A, B), (B, C), (A,)]
    assert lists_of(watch).get(timeout=10) == (A,)
    assert watch.first.result(0) == (A, B)


def test_c10_a_bad_answer_keeps_the_last_list(
    watch_of: Callable[[str], Watch],
    scripted: Scripted,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """C10: an error, an empty list; each is logged once and the naming run again."""
    monkeypatch.setattr("tidewire.naming.backoff._FIRST", 0.001)
    with caplog.at_level(logging.WARNING, "tidewire.naming"):
        watch = watch_of("scripted://x")
        seen = lists_of(watch)
        scripted.script.put([A])
        assert seen.get(timeout=10) == (A,)
        for _ in range(3):
            scripted.script.put(OSError("no answer"))
        scripted.script.put([])
        scripted.script.put([B])
        assert seen.get(timeout=10) == (B,)
    assert scripted.runs == 4
    said = [r.getMessage() for r in caplog.records if r.name == "tidewire.naming"]
    assert sum("no answer" in text for text in said) == 1
    assert sum("an empty list" in text for text in said) == 1


def test_who_wants_them_gets_empty_lists(
    watch_of: Callable[[str], Watch], scripted: Scripted
) -> None:
    watch = watch_of("scripted://x")
    seen: queue.SimpleQueue[tuple[Node, ...]] = queue.SimpleQueue()
    watch.subscribe(lambda nodes: seen.put(tuple(nodes)), empty=True)
    for nodes in ([A], [], [A], [], [B]):
        scripted.script.put(nodes)
        assert seen.get(timeout=10) == tuple(nodes)
        assert watch.nodes == tuple(nodes or [A])


def test_an_empty_first_list_is_one(
    watch_of: Callable[[str], Watch], scripted: Scripted
) -> None:
    watch = watch_of("scripted://x")
    scripted.script.put([])
    assert watch.wait_first(10)
    assert watch.nodes == ()


def test_a_callback_that_fails_harms_nobody(
    watch_of: Callable[[str], Watch],
    scripted: Scripted,
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch = watch_of("scripted://x")

    def fail(nodes: Sequence[Node]) -> None:
        raise RuntimeError("mine")

    watch.subscribe(fail)
    seen = lists_of(watch)
    with caplog.at_level(logging.ERROR, "tidewire.naming"):
        scripted.script.put([A])
        assert seen.get(timeout=10) == (A,)
    assert "mine" in caplog.text
    caplog.clear()


def test_who_has_unsubscribed_hears_nothing(
    watch_of: Callable[[str], Watch], scripted: Scripted
) -> None:
    watch = watch_of("scripted://x")
    heard: list[Any] = []
    stop = watch.subscribe(heard.append)
    seen = lists_of(watch)
    scripted.script.put([A])
    seen.get(timeout=10)
    stop()
    stop()
    scripted.script.put([B])
    assert seen.get(timeout=10) == (B,)
    assert heard == [(A,)]


def test_a_forks_child_has_a_thread_of_its_own(scripted: Scripted) -> None:
    """Started when it is first used there; the last list is there at once."""
    watch = naming.watch_of("scripted://x")
    scripted.script.put([A])
    assert watch.wait_first(10)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            scripted.script = queue.Queue()  # the parent's may be locked
            assert watch.nodes == (A,)
            assert watch.wait_first(0)
            watch.touch()
            seen = lists_of(watch)
            assert seen.get(timeout=10) == (A,)
            scripted.script.put([B])
            assert seen.get(timeout=10) == (B,)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert watch.nodes == (A,)
    naming.close_watch(watch)


# ---- files


def write(path: Path, text: str) -> None:
    """As careful writers do: another file takes its place."""
    other = path.with_suffix(".new")
    other.write_text(text)
    other.replace(path)


def test_a_file_and_its_changes(
    tmp_path: Path,
    watch_of: Callable[[str], Watch],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "servers"
    with caplog.at_level(logging.WARNING, "tidewire.naming"):
        watch = watch_of(f"file://{path}")  # which is not there yet
        seen = lists_of(watch)
        eventually(lambda: "No such file" in caplog.text)
        assert not watch.wait_first(0)
        write(path, "# mine\n10.0.0.1:80\n\n10.0.0.2:80\t7  # seven\nnonsense\n")
        weighted = Node(address="10.0.0.2:80", tag="7")
        assert seen.get(timeout=10 * SLOW) == (A, weighted)
        assert f"{path}, line 5: " in caplog.text
        write(path, "10.0.0.3:80\n")
        assert seen.get(timeout=10 * SLOW) == (C,)
        path.unlink()
        eventually(lambda: caplog.text.count("No such file") == 2)
        write(path, "")  # is no list
        eventually(lambda: "an empty list" in caplog.text)
        assert watch.nodes == (C,)
        path.write_text("10.0.0.1:80\n")  # in place
        assert seen.get(timeout=10 * SLOW) == (A,)
    assert isinstance(naming.parse(f"file://{path}"), FileNaming)


def test_a_file_that_is_no_text(
    tmp_path: Path,
    watch_of: Callable[[str], Watch],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "servers"
    path.write_bytes(b"\xff\xfe10.0.0.1:80\n")
    with caplog.at_level(logging.WARNING, "tidewire.naming"):
        watch = watch_of(f"file://{path}")
        seen = lists_of(watch)
        eventually(lambda: "can't decode" in caplog.text)
        write(path, "10.0.0.1:80\n")
        assert seen.get(timeout=10 * SLOW) == (A,)


# ---- names


def answers(table: dict[str, list[str]]) -> Callable[..., Any]:
    """A getaddrinfo that knows these names."""

    def getaddrinfo(host: str, port: int, **how: Any) -> list[Any]:
        if host not in table:
            raise socket.gaierror(-2, "Name or service not known")
        return [(0, 0, 0, "", (address, port)) for address in table[host]]

    return getaddrinfo


def test_every_address_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"a": ["10.0.0.2", "10.0.0.1", "10.0.0.2"], "b": ["::1"]}
    monkeypatch.setattr(socket, "getaddrinfo", answers(table))
    found = DnsNaming("a:80,b:81,c:82?interval=1")
    with pytest.raises(OSError, match="not known"):
        found.lookup()
    table["c"] = ["10.0.0.3"]
    assert [node.address for node in found.lookup()] == [
        *("10.0.0.1:80", "10.0.0.2:80", "[::1]:81", "10.0.0.3:82")
    ]


def test_a_name_is_looked_up_again(
    monkeypatch: pytest.MonkeyPatch, watch_of: Callable[[str], Watch]
) -> None:
    table = {"a": ["10.0.0.1"]}
    monkeypatch.setattr(socket, "getaddrinfo", answers(table))
    seen = lists_of(watch_of("dns://a:80?interval=0.1"))
    assert seen.get(timeout=10) == (A,)
    table["a"] = ["10.0.0.1", "10.0.0.2"]
    assert seen.get(timeout=10) == (A, B)


def test_srv_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with the best priority; their weights are tags."""
    resolver = pytest.importorskip("dns.resolver", reason="dnspython is not installed")

    def record(priority: int, weight: int, target: str) -> Any:
        return SimpleNamespace(
            priority=priority, weight=weight, port=80, target=f"{target}."
        )

    def resolve(name: str, kind: str) -> list[Any]:
        assert (name, kind) == ("_shop._tcp.example.org", "SRV")
        return [record(1, 5, "a"), record(1, 0, "b"), record(2, 9, "c")]

    monkeypatch.setattr(resolver, "resolve", resolve)
    table = {"a": ["10.0.0.1"], "b": ["10.0.0.2"], "c": ["10.0.0.3"]}
    monkeypatch.setattr(socket, "getaddrinfo", answers(table))
    found = SrvNaming("_shop._tcp.example.org?interval=9")
    assert found.interval == 9
    assert list(found.lookup()) == [Node(address="10.0.0.1:80", tag="5"), B]


def test_srv_wants_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dns.resolver", None)
    with pytest.raises(OptionError, match=r"pip install 'tidewire\[dns\]'"):
        naming.parse("dns+srv://_shop._tcp.example.org")
