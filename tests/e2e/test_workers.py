"""A server of several processes: its supervisor, its workers, what is known of
them from outside."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
from pathlib import Path

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import eventually
from tidewire import _supervisor
from tidewire._supervisor import RESTART_DELAY_MAX, restart_delay
from tools.workers import PATIENCE, TOOLS, Workers, total

CALLS = "tidewire_server_calls_total"


def ask(address: str, message: str = "hello", **how: object) -> str:
    """Over a connection of its own."""
    with tw.Channel(address) as channel:
        request = echo_pb2.EchoRequest(message=message)
        return (
            echo_tw.EchoClient(channel).echo(request, timeout=PATIENCE, **how).message
        )


def answers(address: str) -> bool:
    """False while a killed worker still holds connections or its listener."""
    try:
        return bool(ask(address))
    except tw.Unavailable:
        return False


def pid_of(answer: str) -> int:
    return int(answer.split()[0])


def is_alive(pid: int) -> bool:
    """Also for one that nobody has waited for: that is over."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_workers_share_the_addresses_and_go_with_their_supervisor(tmp_path):
    """P1, P7: TCP by SO_REUSEPORT, unix by the inherited socket."""
    path = tmp_path / "socket"
    with Workers(tmp_path, listen=f"127.0.0.1:0 unix:{path}") as server:
        pids = server.pids()
        assert len(set(pids)) == 2
        assert server.addresses[1] == f"unix:{path}"
        seen = set()
        eventually(
            lambda: seen.add(pid_of(ask(server.address))) or seen == set(pids),
            "both answer",
            within=PATIENCE,
        )
        assert pid_of(ask(server.addresses[1])) in pids
        assert server.stop() == 0
        assert not any(map(is_alive, pids))
        assert not path.exists()


def test_p7_a_dead_worker_is_restarted(tmp_path):
    """P7: and again when it dies at once."""
    with Workers(tmp_path) as server:
        for times in range(1, 4):
            os.kill(server.pids()[0], signal.SIGKILL)
            server.until("died by SIGKILL", times)
            server.until("is ready", 2 + times)
        assert len(server.pids()) == 2
        assert pid_of(ask(server.address)) in server.pids()
        assert server.stop() == 0


def test_p7_restarts_back_off():
    """P7: the first follows at once, later ones wait up to a limit."""
    delays = [restart_delay(deaths) for deaths in range(1, 40)]
    assert delays[:4] == [0.0, 0.1, 0.2, 0.4]
    assert delays == sorted(delays)
    assert delays[-1] == RESTART_DELAY_MAX


def test_p7_a_fork_that_fails_is_tried_again_later(monkeypatch, caplog):
    """P7: the supervisor and the other workers go on."""
    monkeypatch.setattr(_supervisor, "fork_refusal", lambda: "")
    server = tw.Server([echo_tw.EchoService], listen="127.0.0.1:0")
    supervisor = _supervisor.Supervisor(server._plan(), lambda: server)
    monkeypatch.setattr(os, "fork", no_fork)
    with pytest.raises(BlockingIOError):  # at the beginning it is the end
        supervisor._step()
    supervisor._started = True
    free = list(supervisor._free)
    assert supervisor._step()
    [seat] = supervisor._seats
    first = seat.start_at
    assert first > 0
    seat.start_at = 0
    assert supervisor._step()
    assert seat.start_at > first
    assert (seat.worker, supervisor._free) == (None, free)
    assert "no worker can be forked" in caplog.text


def no_fork():
    raise BlockingIOError(11, "no more processes")


def test_p7_a_stopped_and_continued_supervisor_goes_on(tmp_path):
    """P7: what happened meanwhile is made good."""
    with Workers(tmp_path) as server:
        server.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, server.process.pid, os.WSTOPPED | os.WNOWAIT)
        os.kill(server.pids()[0], signal.SIGKILL)
        eventually(lambda: answers(server.address), within=PATIENCE)
        server.process.send_signal(signal.SIGCONT)
        server.until("is ready", 3)
        assert server.stop() == 0


def test_p7_workers_of_a_killed_supervisor_drain(tmp_path):
    """P7: no orphan stays; the call under way is answered."""
    with Workers(tmp_path) as server:
        answers = []
        request = echo_pb2.EchoRequest(message="slow", sleep_ms=500)

        def call():
            with tw.Channel(server.address) as channel:
                client = echo_tw.EchoClient(channel)
                reply = client.echo.call(request, timeout=PATIENCE, request_id="slow")
                answers.append(reply.message.message)

        thread = threading.Thread(target=call)
        thread.start()
        eventually(lambda: server.ran()["slow"] == 1, "it runs", within=PATIENCE)
        pids = server.pids()
        server.process.kill()
        assert server.end() == -signal.SIGKILL
        thread.join(PATIENCE)
        assert [answer.split()[1] for answer in answers] == ["slow"]
        assert not any(map(is_alive, pids))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_p5_the_second_signal_ends_the_drain(tmp_path, number):
    """P5: a handler that does not return keeps nobody."""
    with Workers(tmp_path, DRAIN="1000") as server:
        request = echo_pb2.EchoRequest(message="slow", sleep_ms=3_600_000)

        def call():
            with tw.Channel(server.address) as channel:
                client = echo_tw.EchoClient(channel)
                with pytest.raises(tw.Unavailable):
                    client.echo.call(request, timeout=1000, request_id="slow")

        thread = threading.Thread(target=call)
        thread.start()
        eventually(lambda: server.ran()["slow"] == 1, "it runs", within=PATIENCE)
        server.process.send_signal(number)
        server.until("2 workers drain")
        assert server.get("/health") == (503, "draining\n")
        server.process.send_signal(number)
        assert server.end() == 0
        thread.join(PATIENCE)
        assert not thread.is_alive()


HANGS = """
import logging, time
from tidewire import _lifespan, _supervisor
import workers
logging.basicConfig(level=logging.INFO)
_supervisor.KILL_AFTER = 0.5
_lifespan.Lifespan.leave = lambda self, responsive: time.sleep(3600)
workers.make().run()
"""


@pytest.mark.parametrize("how", ["stop", "reload"])
def test_p5_a_worker_that_does_not_end_is_killed(tmp_path, how):
    """P5: its own time after the drain is over, whatever hangs in it."""
    command = [sys.executable, "-c", HANGS]
    with Workers(tmp_path, command=command, DRAIN="0") as server:
        if how == "stop":
            assert server.stop() == 0
        else:
            server.process.send_signal(signal.SIGHUP)
            server.until("reload done")
            assert answers(server.address)
        assert server.count("does not stop: killed") == 2
        assert server.count("ended by SIGKILL") == 2


# ---- start-up


@pytest.mark.parametrize("workers", [1, 3])
def test_a_failing_start_up_ends_everything_with_status_1(tmp_path, workers):
    """And says why, on the last line."""
    server = Workers(tmp_path, workers=workers)
    server.fails.touch()
    server.start()
    assert server.end() == 1
    assert "RuntimeError: no database" in server.log[-1]
    assert server.pids() == []


def test_an_address_in_use_ends_it_with_status_1(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = Workers(tmp_path, listen=address)
        server.start()
        assert server.end() == 1
        assert f"cannot listen on {address}" in server.log[-1]


def test_a_reload_that_cannot_start_changes_nothing(tmp_path):
    with Workers(tmp_path) as server:
        before = server.pids()
        server.fails.touch()
        server.process.send_signal(signal.SIGHUP)
        server.until("reload given up")
        assert server.pids() == before
        assert server.count("RuntimeError: no database") == 1
        assert pid_of(ask(server.address)) in before
        server.fails.unlink()
        server.process.send_signal(signal.SIGHUP)
        server.until("reload done", 2)
        assert not set(server.pids()) & set(before)
        assert server.stop() == 0


def test_serve_loads_new_code_at_sighup(tmp_path):
    """The supervisor never imports the module."""
    module = tmp_path / "shop.py"
    code = (
        "import os, tidewire as tw\n"
        "from echo_stubs import echo_pb2, echo_tw\n"
        "class Echo(echo_tw.EchoService):\n"
        "    def echo(self, request, ctx):\n"
        "        return echo_pb2.EchoResponse(message='VERSION')\n"
        "server = tw.Server([Echo()], listen='127.0.0.1:0')\n"
    )
    module.write_text(code.replace("VERSION", "one"))
    command = [
        *(sys.executable, "-B", "-m", "tidewire.cli", "serve", "shop:server"),
        *("--workers", "2", "--admin", "127.0.0.1:0"),
    ]
    from generated import WHERE

    path = f"{WHERE}:{tmp_path}"
    with Workers(tmp_path, command=command, PYTHONPATH=path) as server:
        assert ask(server.address) == "one"
        module.write_text(code.replace("VERSION", "another"))
        server.process.send_signal(signal.SIGHUP)
        server.until("reload done")
        assert ask(server.address) == "another"
        assert server.get("/health") == (200, "OK\n")
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("nonsense", "not of the form MODULE:SERVER"),
        ("no_such_module:server", "No module named 'no_such_module'"),
        ("os:nothing", "has no attribute 'nothing'"),
        ("os:sep", "it is a str; allowed: a tidewire.Server"),
    ],
)
def test_serve_says_what_it_cannot_serve(tmp_path, target, says):
    command = [sys.executable, "-m", "tidewire.cli", "serve", target]
    server = Workers(tmp_path, command=command)
    server.start()
    assert server.end() == 1
    assert says in server.log[-1]


# ---- what is refused


def test_a_ready_service_is_refused_unless_it_is_fork_safe():
    options = tw.ServerOptions(workers=2)
    with pytest.raises(tw.OptionError, match="a ready EchoService.*fork_safe"):
        tw.Server([echo_tw.EchoService()], listen="127.0.0.1:0", options=options)

    class Safe(echo_tw.EchoService):
        fork_safe = True

    tw.Server([Safe()], listen="127.0.0.1:0", options=options)


def test_only_run_takes_workers():
    options = tw.ServerOptions(workers=2)

    def server():
        return tw.Server([echo_tw.EchoService], listen="127.0.0.1:0", options=options)

    with pytest.raises(tw.OptionError, match=r"workers is 2.*run\(\)"):
        server().start()
    with pytest.raises(tw.OptionError, match="workers"), server():
        pass
    # The tests' process has the core open.
    with pytest.raises(tw.OptionError, match="open in this process"):
        server().run()


# ---- what is known of them


def test_p7_any_worker_tells_the_totals_of_all_also_of_dead_ones(tmp_path):
    """P7, M: scraped is what was sent; by worker it adds up."""
    with Workers(tmp_path) as server:
        served: dict[int, int] = {}
        sent = 0

        def some() -> None:
            nonlocal sent
            for _ in range(30):
                sent += 1
                pid = pid_of(ask(server.address))
                served[pid] = served.get(pid, 0) + 1

        some()
        assert total(server.samples(), CALLS) == sent
        by_worker = server.samples("/metrics?workers=1")
        of_workers = [int(v) for k, v in by_worker.items() if k.startswith(CALLS)]
        assert sorted(filter(None, of_workers)) == sorted(served.values())
        for times in (1, 2):
            os.kill(server.pids()[0], signal.SIGKILL)
            server.until("is ready", 2 + times)
            some()
            assert total(server.samples(), CALLS) == sent
        # The gauges of the dead are gone: what is left are the living's.
        eventually(
            lambda: total(server.samples(), "tidewire_servers") == 2,
            within=PATIENCE,
        )
        assert server.stop() == 0


def test_health_answers_for_the_whole_server(tmp_path):
    """One worker's trouble is told by every worker."""
    with Workers(tmp_path) as server:
        assert server.get("/health") == (200, "OK\n")
        with tw.Channel(server.address) as channel:
            client = echo_tw.EchoClient(channel)
            client.echo(
                echo_pb2.EchoRequest(message="trouble:no database"), timeout=PATIENCE
            )
            for _ in range(10):
                assert server.get("/health") == (503, "no database\n")
            client.echo(echo_pb2.EchoRequest(message="trouble:"), timeout=PATIENCE)
        for _ in range(10):
            assert server.get("/health") == (200, "OK\n")
        assert server.stop() == 0


def test_systemd_hands_over_sockets_and_is_told(tmp_path):
    """LISTEN_FDS and NOTIFY_SOCKET, without a library."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        # As systemd does: descriptor 3, and the number of the process itself.
        os.set_inheritable(listener.fileno(), True)
        code = (
            "import os, sys\n"
            f"os.dup2({listener.fileno()}, 3)\n"
            "os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'}\n"
            f"os.execv(sys.executable, [sys.executable, '{TOOLS}/workers.py'])\n"
        )
        command = [sys.executable, "-c", code]
        server = Workers(
            tmp_path,
            listen="systemd",
            command=command,
            pass_fds=(listener.fileno(),),
            NOTIFY_SOCKET=str(tmp_path / "notify"),
        )
        with server:
            assert manager.recv(100) == b"READY=1"
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            assert server.addresses == [address]
            assert pid_of(ask(address)) in server.pids()
            server.process.send_signal(signal.SIGHUP)
            assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", manager.recv(100))
            assert manager.recv(100) == b"READY=1"
            assert pid_of(ask(address)) in server.pids()
            server.process.send_signal(signal.SIGTERM)
            assert manager.recv(100) == b"STOPPING=1"
            assert server.end() == 0


def test_systemd_without_sockets_is_an_error(monkeypatch):
    monkeypatch.delenv("LISTEN_FDS", raising=False)
    server = tw.Server([echo_tw.EchoService], listen="systemd")
    with pytest.raises(tw.OptionError, match="handed over no socket"):
        server.start()
