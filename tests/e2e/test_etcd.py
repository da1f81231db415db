"""Lists in a real etcd: what channels see when keys come and go, and when etcd
does."""

import contextlib
import json
import logging
import os
import queue
import socket
import threading

import pytest
from generated import echo_pb2, echo_tw
from harness import SLOW, eventually, within
from tidewire import naming
from tidewire.naming import etcd_client
from tidewire.node import Node
from tools.cable import Cable
from tools.etcd import free_ports

PATIENCE = 20 * SLOW
REQUEST = echo_pb2.EchoRequest(message="hello")
A, B, C = (Node(address=f"10.0.0.{i}:80") for i in (1, 2, 3))


@pytest.fixture
def lists():
    """Opens a watch: the lists that it publishes."""
    watches = []

    def open_one(url):
        seen = queue.Queue()
        watches.append(naming.watch_of(url))
        watches[-1].subscribe(lambda nodes: seen.put(tuple(nodes)))
        return seen

    yield open_one
    for watch in watches:
        naming.close_watch(watch)


def value(address, **more):
    return json.dumps({"address": address, **more})


def url_of(etcd, prefix):
    return f"etcd://{etcd.endpoint}{prefix}"


def until(seen, *nodes):
    """Skips lists until that one."""
    while (found := seen.get(timeout=PATIENCE)) != nodes:
        pass
    return found


def test_keys_come_change_and_go(etcd, prefix, lists):
    """Of this service and no other that begins like it."""
    etcd.put(f"{prefix}/2", value("10.0.0.2:80"))
    etcd.put(f"{prefix}/1", value("10.0.0.1:80"))
    etcd.put(f"{prefix}ping/1", value("10.0.0.9:80"))
    etcd.put(prefix, value("10.0.0.9:80"))
    seen = lists(url_of(etcd, prefix))
    assert seen.get(timeout=PATIENCE) == (A, B)
    etcd.put(f"{prefix}/3", value("10.0.0.3:80"))
    assert seen.get(timeout=PATIENCE) == (A, B, C)
    etcd.delete(f"{prefix}/2")
    assert seen.get(timeout=PATIENCE) == (A, C)
    heavy = Node(address="10.0.0.1:80", tag="5")
    etcd.put(f"{prefix}/1", value("10.0.0.1:80", tag="5"))
    assert seen.get(timeout=PATIENCE) == (heavy, C)


@pytest.mark.parametrize(
    ("text", "tag", "weight"),
    [
        (value("10.0.0.1:80"), "", None),
        (value("10.0.0.1:80", weight=7, more=[1]), "7", 7),
        (value("10.0.0.1:80", weight=7, tag=""), "7", 7),
        (value("10.0.0.1:80", weight=7, tag="0/3"), "0/3", None),
        (value("10.0.0.1:80", tag=3), "3", 3),
        ("10.0.0.1:80", "", None),
        (" 10.0.0.1:80 5\n", "5", 5),
    ],
)
def test_what_a_value_may_be(etcd, prefix, lists, text, tag, weight):
    etcd.put(f"{prefix}/1", text)
    [node] = lists(url_of(etcd, prefix)).get(timeout=PATIENCE)
    assert (node.address, node.tag, node.weight) == ("10.0.0.1:80", tag, weight)


BAD = [
    "",
    "nonsense",
    "10.0.0.1",
    "{",
    "{}",
    '{"address": 5}',
    value("10.0.0.1"),
    value("10.0.0.1:80", weight=1.5),
    value("10.0.0.1:80", weight=True),
    value("10.0.0.1:80", tag=["a"]),
    '{"a":' * 100_000,
    b"\xff\xfe",
]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_c10_a_bad_value_is_skipped_and_loses_nothing(etcd, prefix, lists, caplog, bad):
    """C10: when the list is read, and when a server changes its own: that
    stays in the list as it was."""
    etcd.put(f"{prefix}/0", bad)
    etcd.put(f"{prefix}/1", value("10.0.0.1:80"))
    with caplog.at_level(logging.WARNING, "tidewire.naming"):
        seen = lists(url_of(etcd, prefix))
        assert seen.get(timeout=PATIENCE) == (A,)
        assert caplog.text.count(f"{prefix}/0: ") == 1
        etcd.put(f"{prefix}/1", bad)
        etcd.put(f"{prefix}/2", value("10.0.0.2:80"))
        assert seen.get(timeout=PATIENCE) == (A, B)
        assert caplog.text.count(f"{prefix}/1: ") == 1


def test_c10_the_last_server_stays_when_all_keys_are_deleted(
    etcd, prefix, lists, caplog
):
    """C10: an empty list is taken for a mistake."""
    etcd.put(f"{prefix}/1", value("10.0.0.1:80"))
    etcd.put(f"{prefix}/2", value("10.0.0.2:80"))
    with caplog.at_level(logging.WARNING, "tidewire.naming"):
        seen = lists(url_of(etcd, prefix))
        assert seen.get(timeout=PATIENCE) == (A, B)
        etcd.delete(f"{prefix}/")
        eventually(lambda: "an empty list" in caplog.text, within=PATIENCE)
    assert seen.empty()
    etcd.put(f"{prefix}/3", value("10.0.0.3:80"))
    assert seen.get(timeout=PATIENCE) == (C,)


def test_what_happens_while_the_watch_is_cut_is_made_up_for(etcd, prefix, lists):
    """Watched from the revision that was seen last."""
    etcd.put(f"{prefix}/1", value("10.0.0.1:80"))
    with Cable(etcd.endpoint) as cable:
        seen = lists(f"etcd://{cable.address}{prefix}")
        assert seen.get(timeout=PATIENCE) == (A,)
        cable.be("cut")
        etcd.put(f"{prefix}/2", value("10.0.0.2:80"))
        etcd.delete(f"{prefix}/1")
        cable.be("whole")
        assert until(seen, B)


def test_all_is_read_again_when_the_changes_were_compacted(etcd, prefix, lists, caplog):
    etcd.put(f"{prefix}/1", value("10.0.0.1:80"))
    with Cable(etcd.endpoint) as cable, caplog.at_level(logging.WARNING):
        seen = lists(f"etcd://{cable.address}{prefix}")
        assert seen.get(timeout=PATIENCE) == (A,)
        cable.be("cut")
        etcd.put(f"{prefix}/2", value("10.0.0.2:80"))
        etcd.delete(f"{prefix}/1")
        etcd.compact(etcd.put(f"{prefix}/3", value("10.0.0.3:80")))
        cable.be("whole")
        assert seen.get(timeout=PATIENCE) == (B, C)
        assert "are compacted: all is read again" in caplog.text
        etcd.delete(f"{prefix}/2")
        assert seen.get(timeout=PATIENCE) == (C,)


def test_etcd_is_killed_and_started_again(etcd, prefix, lists):
    """With its data: the list stays meanwhile, and is followed again."""
    etcd.put(f"{prefix}/1", value("10.0.0.1:80"))
    seen = lists(url_of(etcd, prefix))
    assert seen.get(timeout=PATIENCE) == (A,)
    etcd.kill()
    etcd.start()
    etcd.put(f"{prefix}/2", value("10.0.0.2:80"))
    assert seen.get(timeout=PATIENCE) == (A, B)


def test_a_channel_may_come_before_etcd(etcd, prefix, lists):
    etcd.put(f"{prefix}/1", value("10.0.0.1:80"))
    with Cable(etcd.endpoint) as cable:
        cable.be("cut")
        seen = lists(f"etcd://{cable.address}{prefix}")
        eventually(lambda: cable.accepted >= 2)
        assert seen.empty()
        cable.be("whole")
        assert seen.get(timeout=PATIENCE) == (A,)


@pytest.mark.parametrize("place", ["first", "last"])
def test_one_of_several_endpoints_is_dead(etcd, prefix, lists, place):
    etcd.put(f"{prefix}/1", value("10.0.0.1:80"))
    both = ["127.0.0.1:{}".format(*free_ports(1)), etcd.endpoint]
    if place == "last":
        both.reverse()
    seen = lists(f"etcd://{','.join(both)}{prefix}")
    assert seen.get(timeout=PATIENCE) == (A,)
    etcd.put(f"{prefix}/2", value("10.0.0.2:80"))
    assert seen.get(timeout=PATIENCE) == (A, B)


def test_the_next_endpoint_follows_one_that_is_lost(etcd, prefix, lists):
    etcd.put(f"{prefix}/1", value("10.0.0.1:80"))
    with Cable(etcd.endpoint) as one, Cable(etcd.endpoint) as other:
        seen = lists(f"etcd://{one.address},{other.address}{prefix}")
        assert seen.get(timeout=PATIENCE) == (A,)
        one.be("cut")
        etcd.put(f"{prefix}/2", value("10.0.0.2:80"))
        assert seen.get(timeout=PATIENCE) == (A, B)
        assert other.accepted


def test_an_endpoint_that_never_answers(etcd, prefix, lists, monkeypatch):
    """It accepts and is silent; the other one is asked then."""
    monkeypatch.setattr(etcd_client, "_TIMEOUT", 0.2 * SLOW)
    etcd.put(f"{prefix}/1", value("10.0.0.1:80"))
    with Cable(etcd.endpoint) as mute:
        mute.be("mute")
        seen = lists(f"etcd://{mute.address},{etcd.endpoint}{prefix}")
        assert seen.get(timeout=PATIENCE) == (A,)


def test_an_endpoint_that_falls_silent(etcd, prefix, lists, monkeypatch):
    """A watch that says nothing for long is left for the next endpoint; what
    this one has not told is made up for."""
    monkeypatch.setattr(etcd_client, "_QUIET", 0.2 * SLOW)
    etcd.put(f"{prefix}/1", value("10.0.0.1:80"))
    with Cable(etcd.endpoint) as one, Cable(etcd.endpoint) as other:
        seen = lists(f"etcd://{one.address},{other.address}{prefix}")
        assert seen.get(timeout=PATIENCE) == (A,)
        eventually(lambda: one.accepted >= 2, "the watch", within=PATIENCE)
        one.be("mute")
        etcd.put(f"{prefix}/2", value("10.0.0.2:80"))
        assert seen.get(timeout=PATIENCE) == (A, B)


@pytest.mark.parametrize("when", ["watching", "reading"])
def test_closing_ends_what_waits_for_etcd(etcd, prefix, when):
    def waits():
        return any(t.name == "tidewire-naming" for t in threading.enumerate())

    with Cable(etcd.endpoint) as cable:
        if when == "reading":
            cable.be("mute")
        watch = naming.watch_of(f"etcd://{cable.address}{prefix}")
        if when == "watching":
            assert watch.wait_first(PATIENCE)
        eventually(lambda: cable.accepted == (1 if when == "reading" else 2))
        with within(1.0 * SLOW):
            naming.close_watch(watch)
            eventually(lambda: not waits())


def test_a_forks_child_has_a_connection_of_its_own(etcd, prefix):
    """And closes what it inherited of the parent's."""
    etcd.put(f"{prefix}/1", value("10.0.0.1:80"))
    with Cable(etcd.endpoint) as cable:
        port = int(cable.address.split(":")[1])
        watch = naming.watch_of(f"etcd://{cable.address}{prefix}")
        assert watch.wait_first(PATIENCE)
        etcd.put(f"{prefix}/2", value("10.0.0.2:80"))
        eventually(lambda: watch.nodes == (A, B), "it watches", within=PATIENCE)
        assert connections_to(port) == 1
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                assert connections_to(port) == 0
                seen = queue.Queue()
                watch.subscribe(seen.put)
                assert seen.get(timeout=PATIENCE) == (A, B)
                watch.touch()
                eventually(lambda: connections_to(port) == 1, within=PATIENCE)
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        etcd.delete(f"{prefix}/1")
        eventually(lambda: watch.nodes == (B,), within=PATIENCE)
        naming.close_watch(watch)


def connections_to(port):
    """Of this process."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if not os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(fd))) as one:
                found += one.getpeername() == ("127.0.0.1", port)
    return found


def test_calls_follow_the_list(face, serve, etcd, prefix):
    """Through both faces: a server joins, another leaves."""

    def named(name):
        return lambda request, ctx: echo_pb2.EchoResponse(message=name)

    servers = {name: serve(named(name)) for name in "ab"}
    etcd.put(f"{prefix}/a", value(servers["a"].address))
    channel = face.channel(url_of(etcd, prefix), timeout=30.0)
    client = face.client(echo_tw, channel)
    assert face.call(client, "echo", REQUEST).message == "a"
    etcd.put(f"{prefix}/b", servers["b"].address)
    eventually(lambda: face.call(client, "echo", REQUEST).message == "b")
    etcd.delete(f"{prefix}/a")
    eventually(lambda: servers["a"].connections == 0)
    answers = {face.call(client, "echo", REQUEST).message for _ in range(5)}
    assert answers == {"b"}


def test_c10_a_silent_etcd_delays_no_call(face, serve_def, etcd, prefix, monkeypatch):
    """C10: calls go by the last list, while etcd is asked in vain."""
    monkeypatch.setattr(etcd_client, "_QUIET", 0.1)
    server = serve_def()
    etcd.put(f"{prefix}/1", value(server.address))
    with Cable(etcd.endpoint) as cable:
        channel = face.channel(f"etcd://{cable.address}{prefix}", timeout=30.0)
        client = face.client(echo_tw, channel)
        assert face.call(client, "echo", REQUEST).message == "hello"
        cable.be("mute")
        before = cable.accepted
        eventually(lambda: cable.accepted > before, within=PATIENCE)
        with within(1.0 * SLOW):
            for _ in range(20):
                assert face.call(client, "echo", REQUEST).message == "hello"
