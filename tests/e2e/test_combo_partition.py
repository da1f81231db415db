"""Channels to clusters whose servers have parts of the whole."""

import gc
import os
from collections import Counter

import pytest
import tidewire as tw
from combos import REQUEST, ask, client, joined, kind_of, named, opened
from harness import Gate, counter, eventually
from tidewire import balance

OWN = tw.ChannelOptions(balancer=balance.make("rr"))
ways = pytest.mark.parametrize("way", ["call", "full", "start"])


@pytest.fixture
def listed(tmp_path):
    """Writes a list of (server, tag), and says where it is."""
    path = tmp_path / "servers"

    def write(*entries):
        lines = [f"{server.address} {tag}\n" for server, tag in entries]
        fresh = tmp_path / "fresh"
        fresh.write_text("".join(lines))
        os.replace(fresh, path)
        return f"file://{path}"

    return write


def partitioned(face, url, n, **how):
    how.setdefault("merge", joined)
    return opened(face, "PartitionChannel", url, partitions=n, **how)


def dynamic(face, url, **how):
    how.setdefault("merge", joined)
    return opened(face, "DynamicPartitionChannel", url, **how)


@ways
def test_one_server_of_each_partition_is_called(face, serve_def, listed, way):
    url = listed(
        (serve_def(named("a0")), "0/2"),
        (serve_def(named("b0")), "0/2"),
        (serve_def(named("a1")), "1/2"),
        (serve_def(named("x")), "0/3"),
        (serve_def(named("y")), ""),
        (serve_def(named("z")), "2/2"),
        (serve_def(named("v")), "nonsense"),
    )
    one = client(face, partitioned(face, url, 2))
    seen = Counter(ask(face, way, one) for _ in range(8))
    assert seen == {"a0 hello|a1 hello": 4, "b0 hello|a1 hello": 4}


def test_a_partition_without_a_server_has_failed(face, serve_def, listed):
    url = listed((serve_def(named("a")), "0/2"))
    channel = partitioned(face, url, 2)
    reply = face.full(client(face, channel), "echo", REQUEST)
    assert reply.message.message == "a hello|-"
    assert reply.parts[1].error.number == tw.Errno.ENODATA
    assert reply.parts[1].channel == f"{url} [1/2]"
    strict = client(face, partitioned(face, url, 2, fail_limit=1))
    with pytest.raises(tw.Unavailable, match=r"1/2 channels failed.*\[C1\]\[E61\]"):
        face.call(strict, "echo", REQUEST)


def test_the_list_changes(face, serve_def, listed):
    a, b, c = (serve_def(named(name)) for name in "abc")
    url = listed((a, "0/2"), (b, "1/2"))
    one = client(face, partitioned(face, url, 2))
    assert ask(face, "call", one) == "a hello|b hello"
    listed((b, "0/2"), (c, "1/2"))
    eventually(lambda: ask(face, "call", one) == "b hello|c hello")
    # A server that has another partition now gets no call for the old one.
    listed((b, "0/3"), (c, "1/2"))
    eventually(lambda: ask(face, "call", one) == "-|c hello")


def test_tags_of_ones_own(face, serve_def, listed, caplog):
    def parse(tag):
        shard, _, size = tag.removeprefix("shard=").partition(" of ")
        return int(shard), int(size)

    url = listed(
        (serve_def(named("a")), "shard=0 of 2"),
        (serve_def(named("b")), "shard=1 of 2"),
        (serve_def(named("c")), "what?"),
        (serve_def(named("d")), "shard=2 of 2"),
    )
    one = client(face, partitioned(face, url, 2, parse=parse))
    assert ask(face, "call", one) == "a hello|b hello"
    said = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert sum("its tag 'what?' cannot be parsed: ValueError" in s for s in said) == 1
    assert sum("its tag 'shard=2 of 2' is partition 2 of 2" in s for s in said) == 1


def test_map_gets_the_partition(face, serve_def, listed):
    url = listed((serve_def(named("a")), "0/2"), (serve_def(named("b")), "1/2"))

    def only(i, n, method, request):
        return request if i == 1 else tw.SKIP

    one = client(face, partitioned(face, url, 2, map=only))
    assert ask(face, "call", one) == "-|b hello"


@ways
def test_closed_is_closed_at_once(face, serve_def, listed, way):
    server = serve_def(named("a"))
    url = listed((server, "0/1"))
    for channel in (partitioned(face, url, 1), dynamic(face, url)):
        one = client(face, channel)
        assert ask(face, way, one) == "a hello"
        face.close_channel(channel)
        with pytest.raises(tw.ClosedError):
            ask(face, way, one)


@pytest.mark.parametrize("name", ["PartitionChannel", "DynamicPartitionChannel"])
def test_one_left_open_is_told_of(face, name):
    how = {"partitions": 2} if name == "PartitionChannel" else {}
    with pytest.warns(ResourceWarning, match=f"unclosed <tidewire.*{name}"):
        kind_of(face, name)("list://127.0.0.1:1 0/2", **how)


@ways
def test_schemes_get_calls_by_their_poorest_partition(face, serve_def, listed, way):
    url = listed(
        (serve_def(named("a")), "0/1"),
        (serve_def(named("p")), "0/2"),
        (serve_def(named("p")), "0/2"),
        (serve_def(named("p")), "0/2"),
        (serve_def(named("q")), "1/2"),
        (serve_def(named("q")), "1/2"),
        (serve_def(named("x")), "0/3"),
        (serve_def(named("x")), "1/3"),
    )
    one = client(face, dynamic(face, url))
    seen = Counter(ask(face, way, one) for _ in range(30))
    # One of the first, two of the second, and the third lacks a partition.
    assert seen == {"a hello": 10, "p hello|q hello": 20}


def test_schemes_appear_and_vanish(face, serve_def, listed):
    a, p, q = (serve_def(named(name)) for name in "apq")
    url = listed((a, "0/1"), (p, "0/2"))
    one = client(face, dynamic(face, url))
    assert {ask(face, "call", one) for _ in range(4)} == {"a hello"}
    listed((a, "0/1"), (p, "0/2"), (q, "1/2"))
    both = {"a hello", "p hello|q hello"}
    eventually(lambda: {ask(face, "call", one) for _ in range(4)} == both)
    listed((p, "0/2"), (q, "1/2"))
    eventually(
        lambda: {ask(face, "call", one) for _ in range(4)} == {"p hello|q hello"}
    )
    listed((p, "0/2"), (q, "1/3"))

    def none():
        with pytest.raises(tw.Unavailable) as caught:
            ask(face, "call", one)
        return "it has no complete partition scheme" in caught.value.message

    def gone():
        try:
            ask(face, "call", one)
        except tw.Unavailable:
            return True
        return False

    eventually(gone)
    assert none()


def test_calls_on_a_scheme_that_vanishes_go_on(face, serve_def, listed):
    gate = Gate()
    old, new = serve_def(named("old"), gate=gate), serve_def(named("new"))
    url = listed((old, "0/1"))
    channel = dynamic(face, url)
    one = client(face, channel)
    call = face.start(one, "echo", REQUEST)
    gate.until_entered()
    listed((new, "0/2"), (new, "1/2"))

    def is_new():
        try:
            return ask(face, "call", one, timeout=0.1) == "new hello|new hello"
        except tw.DeadlineExceeded:
            return False  # it went to the old one

    eventually(is_new)
    gate.open()
    assert call.result(30).message == "old hello"
    del call
    gc.collect()
    face.close_channel(channel)
    eventually(lambda: counter("tidewire_client_in_flight") == 0)


def test_a_scheme_that_fails_is_left_for_another(face, serve_def, listed):
    dead, alive = serve_def(named("dead")), serve_def(named("alive"))
    url = listed((dead, "0/1"), (alive, "0/2"), (alive, "1/2"))
    one = client(face, dynamic(face, url))
    serve_def.stop(dead, 0.0)
    assert {ask(face, "call", one) for _ in range(6)} == {"alive hello|alive hello"}


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        ({"partitions": 0}, tw.OptionError, "partitions is 0 .* from 1 to 65536"),
        ({"partitions": "2"}, TypeError, "partitions is '2' "),
        ({"url": "127.0.0.1:1"}, tw.AddressError, "url is '127.0.0.1:1'; allowed"),
        ({"url": "what://x"}, tw.AddressError, "nothing is known of what://"),
        ({"url": 3}, TypeError, "url is a int; allowed"),
        ({"parse": 3}, TypeError, "parse is 3; allowed: a function"),
        ({"fail_limit": 0}, tw.OptionError, "fail_limit is 0"),
        ({"options": 3}, TypeError, "options is a int; allowed: ChannelOptions"),
        ({"options": OWN}, tw.OptionError, "balancer is a RoundRobin; allowed: a name"),
    ],
)
def test_bad_input(face, bad, error, text):
    good = {"url": "list://127.0.0.1:1 0/2", "partitions": 2}
    with pytest.raises(error, match=text):
        kind_of(face, "PartitionChannel")(**{**good, **bad})
    if "partitions" not in bad:
        with pytest.raises(error, match=text):
            kind_of(face, "DynamicPartitionChannel")(**{"url": good["url"], **bad})
