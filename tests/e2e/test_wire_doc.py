"""The exchanges that docs/wire.md shows are those that happen."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tidewire as tw
from harness import echo, service

DOC = Path(__file__).resolve().parents[2] / "docs" / "wire.md"
BYTE = re.compile(r" *((?:[0-9a-f]{2} {1,2})*[0-9a-f]{2})(?: {3,}|$)")


def shown(kind: str) -> list[bytes]:
    """The bytes of the blocks of that kind: columns of hex, then words."""
    text = DOC.read_text("utf-8")
    blocks = re.findall(rf"^```hex {kind}\n(.*?)^```$", text, re.M | re.S)
    return [
        bytes.fromhex("".join(BYTE.match(line)[1] for line in block.splitlines()))  # type: ignore[index]
        for block in blocks
    ]


@pytest.fixture
def connection(serve_def: Any) -> Iterator[socket.socket]:
    server = serve_def(echo)
    host, port = server.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=5) as one:
        yield one


def test_each_request_gets_the_response_shown(connection: socket.socket) -> None:
    requests, responses = shown("request"), shown("response")
    assert len(requests) == len(responses) == 2
    for request, response in zip(requests, responses, strict=True):
        connection.sendall(request)
        got = b""
        while len(got) < len(response):
            more = connection.recv(4096)
            assert more
            got += more
        assert got.hex(" ") == response.hex(" ")


def test_our_client_sends_the_request_shown() -> None:
    from generated import echo_pb2, echo_tw

    [shown_request, _] = shown("request")
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        tw.Channel(f"127.0.0.1:{listener.getsockname()[1]}") as channel,
    ):
        listener.settimeout(5)
        call = echo_tw.EchoClient(channel).echo.future(
            echo_pb2.EchoRequest(message="hello"),
            timeout=100.0,
            log_id=7,
            attachment=b"ATT",
        )
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5)
            got = connection.recv(4096)
        call.cancel()

    assert stable(got) == stable(shown_request)


def stable(frame: bytes) -> tuple[bytes, ...]:
    """All of a request but what differs by nature: lengths, time, correlation."""
    names = rb"(\x0a\x13.{19}\x12\x04.{4}\x18\x07)"
    rest = rb"\x40..?.?\x20.{1,10}?(\x28\x03.*)"
    found = re.fullmatch(rb"PRPC.{8}\x0a." + names + rest, frame, re.S)
    assert found, frame
    return found.groups()


def test_the_service_is_the_one_in_the_text() -> None:
    assert service("def").__tidewire_service__.encode() in shown("request")[0]
