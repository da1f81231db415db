"""The second peer: a client and a server written by hand (peer.py) against
ours, with many connections, pipelining and answers that overtake each other."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
import tidewire as tw
from bed import CLIENTS, LONG, SERVERS, balanced, face, serving
from generated import echo_pb2
from peer import Call, Client, Server, parse, request, string_message

CONNECTIONS = 24
DEEP = 16
"""Calls in flight on a connection."""
ROUNDS = 12


def payloads(rng: random.Random) -> tuple[bytes, bytes]:
    """(text, attachment), mostly small."""
    size = rng.choice(
        (0, 1, 7, 100, 1000, 20_000, 200_000 if rng.random() < 0.02 else 3)
    )
    behind = rng.choice((0, 0, 1, 50, 5000))
    return b"%d " % rng.randrange(10**9) + b"t" * size, rng.randbytes(behind)


def talk(address: tuple[str, int], seed: int, failures: list[BaseException]) -> None:
    """One connection's life: DEEP calls in flight, ROUNDS times over, each
    round written as one piece."""
    rng = random.Random(seed)
    try:
        with Client(address) as client:
            for round_ in range(ROUNDS):
                asked: dict[int, tuple[bytes, bytes, int]] = {}
                data = bytearray()
                for i in range(DEEP):
                    text, behind = payloads(rng)
                    # Ids of every size, negative ones included.
                    id = rng.randrange(-(2**63), 2**63) if i % 2 else round_ * DEEP + i
                    code = rng.choice((0, 0, 0, 0, 0, 3003))
                    message = string_message(text)
                    if code:
                        message += b"\x18" + bytes((code & 127 | 128, code >> 7))
                    asked[id] = text, behind, code
                    data += request(
                        b"example.EchoService", b"Echo", id, message, behind
                    )
                client.send(bytes(data))
                for _ in range(DEEP):
                    answer = client.take()
                    text, behind, code = asked.pop(answer.id)
                    assert answer.code == code
                    if code:
                        assert answer.text == b"asked to fail with 3003"
                        assert (answer.message, answer.attachment) == (b"", b"")
                    else:
                        assert parse(answer.message) == {1: [text]}
                        assert answer.attachment == behind
                assert not asked
    except BaseException as error:
        failures.append(error)


@pytest.mark.parametrize("kind", SERVERS)
def test_a_hand_written_client_pipelines_on_many_connections(kind):
    failures: list[BaseException] = []
    with balanced(), serving(kind) as scene:
        threads = [
            threading.Thread(target=talk, args=(scene.host_port, seed, failures))
            for seed in range(CONNECTIONS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        assert not failures, failures
        assert scene.tally.total == CONNECTIONS * ROUNDS * DEEP


@pytest.mark.parametrize("kind", SERVERS)
def test_slow_calls_are_overtaken_on_their_connection(kind):
    """Each answer carries its own id, and a slow handler keeps no later one."""
    with (
        balanced(),
        serving(kind, threads=4) as scene,
        Client(scene.host_port) as client,
    ):
        slow = string_message(b"slow") + b"\x10\xac\x02"  # sleep_ms = 300
        quick = string_message(b"quick")
        client.send(
            request(b"example.EchoService", b"Echo", 1, slow)
            + b"".join(
                request(b"example.EchoService", b"Echo", id, quick)
                for id in range(2, 10)
            )
        )
        ids = [client.take().id for _ in range(9)]
    assert ids[-1] == 1
    assert sorted(ids) == list(range(1, 10))


def echo(call: Call) -> bytes:
    assert (call.service, call.method) == ("example.EchoService", "Echo")
    fields = parse(call.message)
    [code] = fields.get(3, [0])
    if code:
        assert isinstance(code, int)
        return call.answer(code=code, why=b"asked to fail")
    [text] = fields[1]
    assert isinstance(text, bytes)
    # What came beside the message goes back in it.
    said = [text, str(call.log_id).encode(), call.request_id.encode()]
    said += [f"{k}={v}".encode() for k, v in sorted(call.user_fields.items())]
    return call.answer(string_message(b"|".join(said)), call.attachment)


@pytest.mark.parametrize("kind", CLIENTS)
def test_our_clients_understand_answers_that_overtake_each_other(kind):
    rng = random.Random(11)
    with balanced(), Server(echo, hold=8, seed=5) as server:
        address = f"127.0.0.1:{server.port}"
        group = {"connection_group": "two"}
        with face(kind, address) as one, face(kind, address, **group) as two:
            calls: list[tuple[Future[Any], str, bytes, int]] = []
            for i in range(2000):
                text, behind = payloads(rng)
                code = 0 if rng.random() < 0.9 else 7001
                extra: dict[str, Any] = {"attachment": behind} if behind else {}
                expected = text.decode() + "|"
                if i % 3 == 0:
                    extra["log_id"] = i + 1
                    expected += str(i + 1)
                else:
                    expected += "0"
                expected += "|"
                if i % 5 == 0:
                    extra["request_id"] = f"r{i}"
                    expected += f"r{i}"
                if i % 7 == 0:
                    extra["metadata"] = {"a": "1", "ü": f"ö{i}"}
                    expected += f"|a=1|ü=ö{i}"
                client = (one, two)[i % 2]
                call = client.start(text.decode(), fail_code=code, **extra)
                calls.append((call, expected, behind, code))
            for call, expected, behind, code in calls:
                if code:
                    error = call.exception(LONG)
                    assert isinstance(error, tw.Unknown)
                    assert (error.number, error.message) == (code, "asked to fail")
                    del error
                    continue
                result = call.result(LONG)
                if kind != "future":
                    assert bytes(result.attachment) == behind
                    result = result.message
                assert result == echo_pb2.EchoResponse(message=expected)
                del result
            calls.clear()
            del call
    assert server.calls == 2000
    assert server.connections == 2
    assert server.overtaken > 0


def test_all_faces_at_once_through_one_server():
    """Blocking threads, futures and asyncio tasks in one process, to one
    server of the other kind."""

    def drive(make: Callable[[int], "Future[Any]"]) -> list["Future[Any]"]:
        return [make(i) for i in range(500)]

    with balanced(), Server(echo, hold=4, seed=9) as server:
        address = f"127.0.0.1:{server.port}"
        with (
            face("blocking", address) as a,
            face("future", address) as b,
            face("asyncio", address) as c,
        ):
            calls = [
                (i, call)
                for client in (a, b, c)
                for i, call in enumerate(drive(lambda i, f=client: f.start(f"n{i}")))
            ]
            for i, call in calls:
                result = call.result(LONG)
                if isinstance(result, tw.Response):
                    result = result.message
                assert result.message == f"n{i}|0|"
                del result
            calls.clear()
            del call
    assert server.calls == 1500
