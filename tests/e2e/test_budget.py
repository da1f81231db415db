"""R2: the process's budget for buffered bytes."""

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import AsyncFace, BlockingFace, Gate, Serving, eventually
from tidewire import _core, _memory

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "interop"))

import wire
from bed import census, core_log, counter

Face = BlockingFace | AsyncFace
MIB = 1 << 20


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    _core.lib.tw_memory_budget(_memory.budget())


def test_the_default_is_a_part_of_the_memory(serve_def: Serving) -> None:
    """R2: a quarter of what the machine or the control group has."""
    _core.open()
    serve_def()
    assert counter("tidewire_memory_budget_bytes") == _memory.budget() > 0
    serve_def(memory_budget=MIB)
    serve_def()
    assert counter("tidewire_memory_budget_bytes") == MIB
    serve_def(memory_budget=0)
    assert counter("tidewire_memory_budget_bytes") == 0


def test_near_the_budget_new_requests_are_refused(
    face: Face, serve: Serving, gate: Gate
) -> None:
    """R2: at 80 % with the limit code; those under way are answered."""
    server = serve(gate=gate, memory_budget=4 * MIB)
    client = face.client(echo_tw, face.channel(server.address, timeout=30.0))
    request = echo_pb2.EchoRequest(message="x" * 400_000)
    calls: list[Any] = []
    refused = counter("tidewire_budget_refusals")
    while counter("tidewire_budget_refusals") == refused:
        assert len(calls) < 20
        calls.append(face.start(client, "echo", request))
        waiting = len(calls)
        eventually(
            lambda waiting=waiting: (
                server.in_flight == waiting
                or counter("tidewire_budget_refusals") > refused
            )
        )
    with pytest.raises(tw.ResourceExhausted) as caught:
        face.call(client, "echo", echo_pb2.EchoRequest(message="small"))
    assert caught.value.number == tw.Errno.ELIMIT
    assert server.connections == 1
    gate.open()
    with pytest.raises(tw.ResourceExhausted):
        calls.pop().result(30)
    for call in calls:
        assert len(call.result(30).message) == 400_000
    del call
    calls.clear()

    def answered() -> bool:
        with contextlib.suppress(tw.ResourceExhausted):
            face.call(client, "echo", echo_pb2.EchoRequest(message="after"))
            return True
        return False

    eventually(answered)


def test_at_the_budget_the_largest_idle_connection_is_closed(
    face: Face, serve_def: Serving
) -> None:
    """R2: at 95 %, one after the other; logged and counted."""
    server = serve_def(memory_budget=3 * MIB)
    client = face.client(echo_tw, face.channel(server.address, timeout=30.0))
    face.call(client, "echo", echo_pb2.EchoRequest(message="before"))
    host, _, port = server.address.rpartition(":")
    closes = counter("tidewire_budget_closes")
    with (
        core_log() as log,
        socket.create_connection((host, int(port)), 20.0) as greedy,
        socket.create_connection((host, int(port)), 20.0) as modest,
    ):
        # Requests that lack their last byte.
        modest.sendall(wire.echo_request("x" * 300_000, id=1)[:-1])
        eventually(lambda: census()["block_bytes"] >= 300_000)
        with contextlib.suppress(ConnectionError):
            greedy.sendall(wire.echo_request("x" * (3 * MIB), id=1)[:-1])
            assert greedy.recv(1) == b""
        eventually(lambda: counter("tidewire_budget_closes") == closes + 1)
        eventually(lambda: any("memory budget" in line for line in log.lines))
        # Who holds little stays, and who calls notices nothing.
        eventually(lambda: census()["block_bytes"] < 2 * MIB)
        face.call(client, "echo", echo_pb2.EchoRequest(message="after"))
        assert server.connections == 2
        assert counter("tidewire_budget_closes") == closes + 1
