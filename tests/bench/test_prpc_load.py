"""The load generator: what it sends, what it counts, how it ends."""

import itertools
import json
import re
import socket
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from prpc_peer import Peer, response

RUN_SECONDS = 30


@pytest.fixture
def load(bench_tools):
    """Run prpc_load with these arguments."""

    def run(*arguments):
        return subprocess.run(
            [str(bench_tools / "prpc_load"), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
        )

    return run


@pytest.fixture
def load_json(load):
    """Run prpc_load --json; exit status and the object."""

    def run(*arguments):
        done = load("--json", *arguments)
        return done.returncode, json.loads(done.stdout)

    return run


@pytest.fixture
def echo_port(bench_tools):
    """The port of a running echo_limit, which the kernel has chosen."""
    with subprocess.Popen(
        [str(bench_tools / "echo_limit"), "0"], stdout=subprocess.PIPE, text=True
    ) as limit:
        try:
            yield int(re.fullmatch(r"port=(\d+)\n", limit.stdout.readline())[1])
        finally:
            limit.terminate()


def echo(request):
    return request.answer()


def silent(request):
    return None


def test_closed_loop_prints_the_line_and_misses_no_answer(load, echo_port):
    done = load(echo_port, 3, 4, 0.2)
    found = re.fullmatch(
        r"qps=(\d+) p50=(\d+) p99=(\d+) calls=(\d+) bad=0 sent=(\d+) lost=0 errors=\n",
        done.stdout,
    )
    assert found, done
    qps, p50, p99, calls, sent = map(int, found.groups())
    assert calls == sent >= 12
    assert qps > 0
    assert p50 <= p99
    assert done.returncode == 0


def test_the_same_counts_reach_the_server(load_json):
    with Peer(echo) as peer:
        status, said = load_json(peer.port, 3, 4, 0.2)
        assert status == 0
        assert said["sent"] == said["calls"] == len(peer.requests)
    by_connection = Counter(r.connection for r in peer.requests)
    assert set(by_connection) == {0, 1, 2}


def test_correlation_ids_are_never_used_twice(load_json):
    with Peer(echo) as peer:
        load_json(peer.port, 1, 8, 0.1)
    ids = [r.correlation_id for r in peer.requests]
    assert len(set(ids)) == len(ids)


def test_depth_is_what_a_connection_keeps_in_flight(load_json):
    with Peer(silent) as peer:
        status, said = load_json(peer.port, 2, 5, 0.05, "--drain", 0)
    assert status == 1
    assert (said["sent"], said["lost"], said["calls"]) == (10, 10, 0)
    assert Counter(r.connection for r in peer.requests) == {0: 5, 1: 5}


def test_a_request_carries_names_message_and_fields(load_json):
    with Peer(echo) as peer:
        status, _ = load_json(
            *(peer.port, 1, 1, 0.05, 300),
            *("--service", "shop.Cart", "--method", "Add"),
            *("--sleep-ms", 150, "--fail-code", -7),
        )
    assert status == 0
    request = peer.requests[0]
    assert (request.service, request.method) == ("shop.Cart", "Add")
    assert request.fields == {1: b"x" * 300, 2: 150, 3: 2**64 - 7}


def test_messages_larger_than_its_buffer(load_json, echo_port):
    status, said = load_json(echo_port, 2, 2, 0.1, 1 << 20)
    assert status == 0
    assert said["calls"] == said["sent"] > 0


def test_a_unix_socket(load_json):
    # Not tmp_path: a unix socket's path may have 107 bytes only.
    with (
        tempfile.TemporaryDirectory() as folder,
        Peer(echo, path=str(Path(folder) / "s")),
    ):
        status, said = load_json("--unix", Path(folder) / "s", 0, 1, 1, 0.05)
    assert status == 0
    assert said["calls"] > 0


def test_errors_are_counted_by_code(load):
    turn = itertools.count()

    def behave(request):
        return request.answer((0, 1008, 2004, -5)[next(turn) % 4])

    with Peer(behave) as peer:
        done = load(peer.port, 1, 4, 0.1)
    total = len(peer.requests)
    wrong = total - len(range(0, total, 4))
    expected = ",".join(
        f"{code}:{len(range(first, total, 4))}"
        for code, first in ((-5, 3), (1008, 1), (2004, 2))
    )
    assert done.stdout.endswith(f" errors={expected}\n"), done
    assert f" bad={wrong} " in done.stdout
    assert done.returncode == 1


def test_more_codes_than_it_tells_apart_are_counted_together(load_json):
    turn = itertools.count()

    def behave(request):
        return request.answer(1 + next(turn) % 100)

    with Peer(behave) as peer:
        _, said = load_json(peer.port, 1, 100, 0.05)
    assert len(said["errors"]) == 64 + 1
    assert sum(said["errors"].values()) == len(peer.requests)


def test_an_expected_error_is_a_right_answer(load_json):
    with Peer(lambda request: request.answer(1008)) as peer:
        status, said = load_json(peer.port, 1, 2, 0.1, "--expect-code", 1008)
    assert status == 0
    assert said["bad"] == 0
    assert said["calls"] == said["errors"]["1008"] == len(peer.requests)


def test_success_is_wrong_where_an_error_is_expected(load_json):
    with Peer(echo) as peer:
        status, said = load_json(peer.port, 1, 1, 0.05, "--expect-code", 1008)
    assert status == 1
    assert said["bad"] == said["sent"]


def test_a_changed_message_is_wrong(load_json):
    with Peer(lambda request: request.answer(0, b"\x0a\x01y")) as peer:
        status, said = load_json(peer.port, 1, 1, 0.05)
    assert status == 1
    assert said["bad"] == said["sent"] > 0


def test_an_answer_to_nothing_is_wrong(load_json):
    def behave(request):
        if len(peer.requests) > 1:
            return request.answer()
        stranger = response(999999, 0, request.payload)
        return stranger + request.answer() + request.answer()

    with Peer(behave) as peer:
        status, said = load_json(peer.port, 1, 1, 0.05)
    assert status == 1
    assert said["bad"] == 2


def test_a_closed_connection_ends_it(load):
    def behave(request):
        raise ConnectionAbortedError

    with Peer(behave) as peer:
        done = load(peer.port, 1, 3, 5)
    assert done.returncode == 1
    assert "closed by server with 3 calls out" in done.stderr


def test_a_malformed_answer_ends_it(load):
    with Peer(lambda request: b"HTTP/1.1 400\r\n\r\n") as peer:
        done = load(peer.port, 1, 1, 5)
    assert done.returncode == 1
    assert "malformed answer" in done.stderr


def test_open_loop_sends_exactly_the_schedule(load_json):
    with Peer(echo) as peer:
        status, said = load_json(peer.port, 3, 4096, 0.4, "--rate", 500)
    assert status == 0
    assert said["sent"] == said["calls"] == len(peer.requests) == 200
    assert said["behind"] == 0
    # In turn on each connection.
    counts = Counter(r.connection for r in peer.requests)
    assert sorted(counts.values()) == [66, 67, 67]


def test_open_loop_counts_late_and_behind_on_its_line(load, echo_port):
    done = load(echo_port, 1, 64, 0.2, "--rate", 100)
    assert re.search(
        r" calls=20 bad=0 sent=20 lost=0 late=\d+ behind=0 errors=\n$", done.stdout
    )


def test_a_full_cap_keeps_arrivals_back(load_json):
    with Peer(silent) as peer:
        status, said = load_json(peer.port, 1, 2, 0.2, "--rate", 200, "--drain", 0)
    assert status == 1
    assert (said["sent"], said["lost"], said["behind"]) == (2, 2, 38)
    assert len(peer.requests) == 2


def test_latency_counts_from_the_intended_time(load_json):
    # Two connections, one call each at a time, an arrival every 10 ms in turn.
    # One connection's first call is answered only after the other has had 15,
    # the last of which is due 14 x 20 ms after the first. So its own arrivals of
    # that time wait: at least 270, 250, 230 ... ms.
    held = []

    def behave(request):
        others = sum(r.connection == 1 for r in peer.requests)
        if request.connection == 0 and others < 15:
            held.append(request)
            return None
        due = [(request, request.answer())]
        if others >= 15:
            due += [(r, r.answer()) for r in held]
            held.clear()
        return due

    with Peer(behave) as peer:
        status, said = load_json(peer.port, 2, 1, 0.5, "--rate", 100)
    assert status == 0
    assert said["sent"] == said["calls"] == 50
    assert said["max_us"] >= 270_000
    assert said["late"] >= 12
    assert said["p90_us"] >= 150_000  # the sixth longest of 50


def test_warm_up_is_sent_but_not_measured(load_json):
    with Peer(echo) as peer:
        status, said = load_json(peer.port, 1, 64, 0.2, "--rate", 100, "--warmup", 0.3)
    assert status == 0
    assert said["sent"] == said["calls"] == 50
    assert said["qps"] * said["seconds"] < 50


def test_intervals_add_up_to_the_answers(load_json, echo_port):
    _, said = load_json(echo_port, 1, 1, 0.3, "--interval", 0.05)
    ends = [end for end, _ in said["intervals"]]
    assert ends == sorted(ends)
    assert 0 < sum(count for _, count in said["intervals"]) <= said["calls"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["1", "1", "1"],
        ["1", "1", "1", "1", "1", "1"],
        ["0", "1", "1", "1"],
        ["1", "0", "1", "1"],
        ["1", "20001", "1", "1"],
        ["1", "1", "4097", "1"],
        ["1", "1", "1.5", "1"],
        ["1", "1", "1", "0"],
        ["1", "1", "1", "3601"],
        ["1", "1", "1", "1", "16777217"],
        ["1", "1", "1", "nan"],
        ["1", "1", "1", "1x"],
        ["--rate", "0", "1", "1", "1", "1"],
        ["--what", "1", "1", "1", "1"],
        ["--method", "m" * 121, "1", "1", "1", "1"],
        ["--unix", "p" * 108, "0", "1", "1", "1"],
    ],
)
def test_wrong_usage_is_refused(load, arguments):
    done = load(*arguments)
    assert done.returncode == 2
    assert done.stderr
    assert not done.stdout


def test_too_much_memory_is_refused_before_connecting(load):
    done = load(1, 20000, 4096, 1, 1 << 20)
    assert done.returncode == 1
    assert "MiB" in done.stderr


def test_nobody_listening_is_an_error(load, free_port):
    done = load(free_port, 1, 1, 1)
    assert done.returncode == 1
    assert "connect" in done.stderr


@pytest.fixture
def free_port():
    """A port that is bound, so nobody else takes it, but does not listen."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]
