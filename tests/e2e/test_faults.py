"""The proxy of tidewire.testing by itself: what a plan says is what happens, and the
same again for the same seed."""

import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
import tidewire as tw
from harness import eventually, no_leaks
from tidewire.testing.plan import drawn

DATA = bytes(range(256)) * 40


class Peer:
    """A server that answers whatever it gets with `answer`, once it has `size`
    bytes or the end, and keeps what it got of every connection."""

    def __init__(self, size, answer=b""):
        self.size = size
        self.answer = answer
        self.got = []
        self.ends = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._main)

    def _main(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(10)
                got = bytearray()
                end = "more"
                try:
                    while len(got) < self.size and (data := sock.recv(1 << 16)):
                        got += data
                    if len(got) < self.size:
                        end = "fin"
                    sock.sendall(self.answer)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(1 << 16):
                        pass
                except ConnectionResetError:
                    end = "reset"
                except TimeoutError:
                    end = "silence"
                except OSError:
                    pass
                self.got.append(bytes(got))
                self.ends.append(end)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@contextmanager
def through(plan):
    """(a socket to the proxy, the peer, the proxy)"""
    with no_leaks(), Peer(len(DATA), DATA) as peer:
        with tw.testing.faults(peer.address, plan, seed=1) as proxy:
            host, port = proxy.address.split(":")
            with socket.create_connection((host, int(port)), 10) as sock:
                yield sock, peer, proxy
        # What the proxy closed the peer has seen closed.
        eventually(lambda: len(peer.got) == proxy.seen)


def taken(sock):
    """(what came, how it ended)"""
    got = bytearray()
    try:
        while data := sock.recv(1 << 16):
            got += data
    except ConnectionResetError:
        return bytes(got), "reset"
    return bytes(got), "fin"


@pytest.mark.parametrize("plan", ["none", "slice=7", "slice=100,latency=0..0.001"])
def test_everything_passes(plan):
    with through(plan) as (sock, peer, proxy):
        sock.sendall(DATA)
        assert taken(sock) == (DATA, "fin")
        sock.close()
        eventually(lambda: peer.got == [DATA])
        assert proxy.last.passed == {"up": len(DATA), "down": len(DATA)}
        assert proxy.last.happened is None


@pytest.mark.parametrize("end", ["reset", "fin"])
@pytest.mark.parametrize("at", [0, 1, 1000])
def test_an_end_on_the_way_up(end, at):
    with through(f"up:{end}@{at}") as (sock, peer, proxy):
        sock.sendall(DATA)
        assert taken(sock)[1] == end
        sock.close()
        eventually(lambda: peer.ends == [end])
        assert peer.got == [DATA[:at]]
        assert proxy.last.happened == f"up:{end}"


@pytest.mark.parametrize("end", ["reset", "fin"])
@pytest.mark.parametrize("at", [0, 1, 1000])
def test_an_end_on_the_way_down(end, at):
    with through(f"down:{end}@{at}") as (sock, _, proxy):
        sock.sendall(DATA)
        got, how = taken(sock)
        assert (got, how) == (DATA[:at], end)
        assert proxy.last.happened == f"down:{end}"


def test_half_a_close_lets_the_answer_back():
    with through("up:half@100") as (sock, peer, _):
        sock.sendall(DATA)
        assert taken(sock) == (DATA, "fin")
        sock.close()
        eventually(lambda: peer.got == [DATA[:100]])
        assert peer.ends == ["fin"]


def test_a_black_hole_takes_all_and_gives_nothing():
    with through("up:swallow@100") as (sock, peer, proxy):
        sock.settimeout(0.2)
        for _ in range(100):
            sock.sendall(DATA)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        assert proxy.last.passed["up"] == 100
        assert proxy.last.happened == "up:swallow"
        assert proxy.reset_all() == 1
    assert peer.got in ([DATA[:100]], [])


def test_a_frozen_reader_takes_no_more():
    with through("up:freeze@100") as (sock, _, proxy):
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            while True:
                sock.sendall(DATA)
        assert proxy.last.passed["up"] == 100


def test_resetting_all():
    with through("none") as (sock, peer, proxy):
        sock.sendall(DATA[:100])
        eventually(lambda: proxy.last and proxy.last.passed["up"] == 100)
        assert proxy.reset_all() == 1
        assert taken(sock) == (b"", "reset")
        eventually(lambda: peer.ends == ["reset"])


def test_a_server_that_is_not_there():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    with no_leaks(), tw.testing.faults(address) as proxy:
        host, port = proxy.address.split(":")
        # Connecting may meet the reset already.
        with (
            pytest.raises(ConnectionResetError),
            socket.create_connection((host, int(port)), 10) as sock,
        ):
            sock.recv(1)


def test_unix(tmp_path):
    with Peer(len(DATA), DATA) as peer:
        listen = f"unix:{tmp_path}/proxy"
        with tw.testing.faults(peer.address, "slice=1000", listen=listen) as proxy:
            assert proxy.address == listen
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(tmp_path / "proxy"))
                sock.settimeout(10)
                sock.sendall(DATA)
                assert taken(sock) == (DATA, "fin")


# ---- plans


def test_the_same_seed_draws_the_same():
    plan = "none | slice=1..1000,latency=0.1..0.2 | down:reset@0..99999,up:half@3"
    first = [drawn(plan, 5, n) for n in range(200)]
    assert first == [drawn(plan, 5, n) for n in range(200)]
    assert first != [drawn(plan, 6, n) for n in range(200)]
    assert len({way.slice for way, _ in first}) > 20
    assert {way.end for way, _ in first} == {None, "half"}
    assert {way.end for _, way in first} == {None, "reset"}


@pytest.mark.parametrize(
    "plan",
    [
        *("", "slice", "slice=", "slice=0", "slice=x", "slice=5..2", "reset=3"),
        *("side:slice=3", "reset@-1", "none | slice=", "up:", "latency=-1", "boom@1"),
    ],
)
def test_a_plan_that_is_none_is_refused(plan):
    with pytest.raises(ValueError, match="is no|at least"):
        drawn(plan, 1, 1)


def test_the_seed_is_printed(capsys):
    with tw.testing.faults("127.0.0.1:1") as proxy:
        pass
    assert proxy.seed > 0
    assert f"seed {proxy.seed}" in capsys.readouterr().out


def test_as_a_command():
    with Peer(len(DATA), DATA) as peer:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tidewire.cli", "faults"),
                *("--to", peer.address, "--seed", "3"),
                "--plan",
                "down:fin@10",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            line = process.stdout.readline()
            assert line.startswith("faults on 127.0.0.1:")
            assert line.endswith(": seed 3, plan 'down:fin@10'\n")
            host, port = line.split()[2].rstrip(":").split(":")
            with socket.create_connection((host, int(port)), 10) as sock:
                sock.sendall(DATA)
                assert taken(sock) == (DATA[:10], "fin")
            process.communicate("", timeout=30)
        assert process.returncode == 0
