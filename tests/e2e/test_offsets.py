"""The end of a connection at every byte of a request and of a response: each
call ends once, nothing partial is delivered, nothing is left behind, and nobody
else notices.  A fresh connection for every offset."""

import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest
import tidewire as tw

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "interop"))

import wire
from bed import (
    CLIENTS,
    LONG,
    SERVERS,
    RawServer,
    Scene,
    Witness,
    balanced,
    counter,
    face,
    reset,
    serving,
    wait_until,
)

HOW = pytest.mark.parametrize("how", [socket.socket.close, reset], ids=["FIN", "RST"])
EEOF, ECONNRESET, EPIPE = 1014, 104, 32
PEER_GONE = {EEOF, ECONNRESET, EPIPE}


class Ends:
    """Counts how often each call has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.times: dict[str, int] = {}

    def watch(self, text: str, call: "Future[object]") -> None:
        def ended(_: "Future[object]") -> None:
            with self._lock:
                self.times[text] = self.times.get(text, 0) + 1

        call.add_done_callback(ended)


def peeked(sock: socket.socket) -> int:
    """Bytes of the frame that comes, which stays unread: what is unread at
    close would turn a FIN into a RST if it were more than the cut left over."""
    head = sock.recv(wire.HEADER, socket.MSG_PEEK | socket.MSG_WAITALL)
    assert len(head) == wire.HEADER, "the other side has ended"
    size = wire.HEADER + int.from_bytes(head[4:8], "big")
    sock.recv(size, socket.MSG_PEEK | socket.MSG_WAITALL)
    return size


def relay(
    server: RawServer, upstream: Scene, cut: int, where: str, how: Callable[..., None]
) -> bool:
    """Takes one connection of the client and carries one call, up to `cut`
    bytes in the direction `where`; then ends both connections.  False: the
    frame has no such offset.  (Ids, and with them frames, differ in length.)"""
    near = server.accept()
    with upstream.connect() as far:
        src, dst = near, far
        if where == "response":
            far.sendall(wire.read_raw_frame(near))
            src, dst = far, near
        inside = cut == 0 or cut < peeked(src)
        if inside:
            dst.sendall(wire.read_exactly(src, cut))
        how(near)
        how(far)
    return inside


def end_connections_until(
    server: RawServer, call: "Future[object]", how: Callable[..., None]
) -> None:
    """Ends the connections that come until the call has: a connection that ends
    before the call was given to it is no reason to fail the call yet."""

    def ended() -> bool:
        if not call.done() and not server.nobody_waits():
            how(server._open[-1])
        return call.done()

    wait_until(ended)


@HOW
@pytest.mark.parametrize("where", ["request", "response"])
@pytest.mark.parametrize("server_kind", SERVERS)
@pytest.mark.parametrize("kind", CLIENTS)
def test_cut_at_every_offset_one_completion_per_call(kind, server_kind, where, how):
    """C2: seen from both ends, the server runs a call at most once and only when
    it was whole, the client ends it exactly once and says how much was sent."""
    ends = Ends()
    attachment = b"ATT"
    with (
        serving(server_kind) as scene,
        Witness(scene.host_port) as witness,
        RawServer() as server,
        balanced(),
        face(kind, server.address) as client,
    ):
        before = counter("tidewire_client_calls")
        cut = 0
        inside = True
        while inside:
            text = f"{cut:05}"
            call = client.start(text, attachment=attachment)
            ends.watch(text, call)
            inside = relay(server, scene, cut, where, how)
            if not cut:
                end_connections_until(server, call, how)
            error = call.exception(LONG)
            assert isinstance(error, tw.Unavailable), (cut, error)
            assert error.number in PEER_GONE, (cut, error)
            if cut:
                assert error.phase in (tw.Phase.READ, tw.Phase.WRITE), (cut, error)
            if error.phase is tw.Phase.CONNECT:
                assert error.sent is tw.Sent.NONE
            ran = scene.tally.ran[text]
            if where == "request":
                assert ran == 0
                if cut:
                    assert error.sent is not tw.Sent.NONE
            else:
                # Nobody waited for it before the first byte of its answer.
                assert ran == 1 or (cut == 0 and ran == 0)
                assert error.sent is tw.Sent.ALL
                assert error.phase is tw.Phase.READ
            if error.sent is tw.Sent.NONE:
                assert ran == 0
            del call, error
            if cut % 20 == 0:
                witness.check()
            cut += 1
        assert cut > 30
        wait_until(lambda: scene.server.in_flight == 0)
        assert ends.times == {f"{c:05}": 1 for c in range(cut)}
        assert counter("tidewire_client_in_flight") == 0
        assert counter("tidewire_server_in_flight") == 0
        assert counter("tidewire_client_calls") - before == cut
        assert counter("tidewire_double_completions") == 0


@HOW
@pytest.mark.parametrize("kind", SERVERS)
def test_a_reader_that_goes_away_in_an_answer(kind, how):
    """C2: the peer takes some bytes of the answer and leaves, at every offset."""
    with serving(kind) as scene, Witness(scene.host_port), balanced():
        with scene.connect() as sock:
            sock.sendall(wire.echo_request("leave", attachment=b"ATT"))
            size = len(wire.read_raw_frame(sock))
        for cut in range(size):
            with scene.connect() as sock:
                sock.sendall(wire.echo_request("leave", attachment=b"ATT"))
                wire.read_exactly(sock, cut)
                how(sock)
        wait_until(lambda: scene.server.connections == 1)
        wait_until(lambda: scene.server.in_flight == 0)
        # Without waiting for a byte it may be gone before it was run.
        assert size <= scene.tally.ran["leave"] <= size + 1


@pytest.mark.parametrize("kind", SERVERS)
def test_half_a_close_at_every_offset_of_a_request(kind):
    """C2, C3: a request that was whole is answered although its sender has said
    that it sends no more; one that was not is never run."""
    whole = wire.echo_request("half", attachment=b"ATT")
    with serving(kind) as scene, Witness(scene.host_port), balanced():
        for cut in range(len(whole) + 1):
            with scene.connect() as sock:
                sock.sendall(whole[:cut])
                sock.shutdown(socket.SHUT_WR)
                if cut == len(whole):
                    frame = wire.read_frame(sock)
                    assert frame.meta.response.error_code == 0
                    assert bytes(frame.attachment) == b"ATT"
                assert sock.recv(1) == b"", cut
        wait_until(lambda: scene.server.connections == 1)
        assert scene.tally.ran["half"] == 1


@HOW
@pytest.mark.parametrize("kind", CLIENTS)
def test_a_cut_ends_every_call_of_the_connection_and_no_other(kind, how):
    """C2, L1: many calls share the connection; the answers that were whole are
    delivered, the others end once each, and other connections go on."""
    many = 8
    with (
        serving("def") as scene,
        Witness(scene.host_port),
        RawServer() as server,
        balanced(),
        face(kind, server.address) as client,
    ):
        for whole in range(many + 1):
            ends = Ends()
            calls = {}
            for i in range(many):
                calls[f"{i}"] = client.start(f"{i}")
                ends.watch(f"{i}", calls[f"{i}"])
            near = server.accept()
            frames = wire.read_frames(near, many)
            texts = [wire.EchoRequest.FromString(f.message).message for f in frames]
            answers = [wire.answer(f, t) for f, t in zip(frames, texts, strict=True)]
            near.sendall(b"".join(answers[:whole]))
            for text in texts[:whole]:
                # Read before the reset, which would take it away.
                result = calls[text].result(LONG)
                message = result.message if kind != "future" else result
                assert message.message == text
                del result, message
            if whole < many:
                near.sendall(answers[whole][:-1])
            how(near)
            for text in texts[whole:]:
                error = calls[text].exception(LONG)
                assert isinstance(error, tw.Unavailable)
                assert error.number in PEER_GONE
                assert (error.phase, error.sent) == (tw.Phase.READ, tw.Sent.ALL)
                del error
            assert ends.times == {f"{i}": 1 for i in range(many)}
            del calls
            # The next calls shall not be sent on the connection that has ended.
            wait_until(lambda: counter("tidewire_connections_out") == 0)
