"""The echo examples as a user runs them: each in a process of its own."""

import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ECHO = Path(__file__).resolve().parents[2] / "examples" / "echo"
PATIENCE = 20.0
"""Seconds; far more than anything here takes."""

CLIENTS = ["client.py", "client_async.py"]


@pytest.fixture(scope="session")
def echo_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples, copied without what was generated, and stubs made as the
    examples themselves say."""
    root = tmp_path_factory.mktemp("project")
    copy = root / "examples" / "echo"
    ignore = shutil.ignore_patterns("gen", "__pycache__")
    shutil.copytree(ECHO, copy, ignore=ignore)
    done = run(copy / "client.py", "--connect", "127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    advice = done.stderr.partition("tidewire gen ")[2].split()
    subprocess.run(
        [sys.executable, "-m", "tidewire.cli", "gen", "-q", *advice],
        cwd=root,
        check=True,
        timeout=PATIENCE,
    )
    return copy


def run(
    script: Path, *arguments: str, env: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **(env or {})},
        timeout=PATIENCE,
        check=False,
    )


@dataclass
class Served:
    process: "subprocess.Popen[str]"
    address: str
    admin: str


def served(echo_dir: Path, *arguments: str) -> Served:
    """The echo server on free ports, once it has said which."""
    process = subprocess.Popen(
        [
            *(sys.executable, str(echo_dir / "server.py"), *arguments),
            *("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert process.stdout is not None
    said = ""
    end = time.monotonic() + PATIENCE
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while said.count("\n") < 2:
            if not selector.select(end - time.monotonic()):
                process.kill()
                raise AssertionError(f"the server said only {said!r}")
            chunk = os.read(process.stdout.fileno(), 4096).decode()
            assert chunk, f"the server ended after {said!r}"
            said += chunk
    found = re.fullmatch(r"listening on (\S+)\nadmin on http://(\S+)\n", said)
    assert found, said
    return Served(process, *found.groups())


@pytest.fixture(scope="module", params=["def", "async"])
def server(request: pytest.FixtureRequest, echo_dir: Path) -> Iterator[Served]:
    one = served(echo_dir, *(["--async"] if request.param == "async" else []))
    yield one
    one.process.terminate()
    assert one.process.wait(PATIENCE) == 0
    assert one.process.stdout is not None
    one.process.stdout.close()


# ---- the clients


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, echo_dir: Path) -> Path:
    return echo_dir / str(request.param)


def test_client_prints_the_answer(client: Path, server: Served) -> None:
    done = run(client, "--connect", server.address, "--message", "grüße")
    assert re.fullmatch(r"grüße \[\d+\.\d ms\]\n", done.stdout)
    assert (done.returncode, done.stderr) == (0, "")


def test_client_prints_the_attachment(client: Path, server: Served) -> None:
    done = run(client, "--connect", server.address, "--attachment", "beside")
    assert done.stdout.endswith("\nattachment: beside\n")
    assert done.returncode == 0


def test_client_calls_as_often_as_told(client: Path, server: Served) -> None:
    done = run(client, "--connect", server.address, "--count", "50")
    assert done.stdout.count("hello") == 50
    assert done.returncode == 0


def test_client_prints_the_facts_of_an_error(client: Path, server: Served) -> None:
    done = run(client, "--connect", server.address, "--fail-code", "2004")
    facts = done.stderr.strip()
    assert facts.startswith("ResourceExhausted: asked to fail with 2004 [")
    for fact in ("2004", "example.EchoService/Echo", server.address, "phase peer"):
        assert fact in facts
    assert (done.returncode, done.stdout) == (1, "")


def test_brpcs_number_for_some_failure_arrives(client: Path, server: Served) -> None:
    done = run(client, "--connect", server.address, "--fail-code", "-1")
    assert done.stderr.startswith("Internal: asked to fail with -1 [INTERNAL 2001, ")
    assert done.returncode == 1


def test_client_gives_up_at_its_deadline(client: Path, server: Served) -> None:
    done = run(
        client,
        *("--connect", server.address, "--sleep-ms", "2000", "--timeout", "0.1"),
    )
    # Otherwise it would have had its answer.
    assert done.stderr.startswith("DeadlineExceeded: ")
    assert done.returncode == 1


def test_client_says_that_nobody_listens(client: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        done = run(client, "--connect", address)
    assert re.search(
        rf"Unavailable: Connection refused .*peer {address}, phase connect", done.stderr
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--connect", "nonsense"], "'nonsense' is no address"),
        (["--connect", "127.0.0.1:1", "--timeout", "0"], "timeout is 0"),
    ],
)
def test_client_refuses_what_makes_no_sense(
    client: Path, arguments: list[str], complaint: str
) -> None:
    done = run(client, *arguments)
    assert done.stderr.startswith(complaint)
    assert done.stderr.count("\n") == 1
    assert done.returncode == 1


@pytest.mark.parametrize("name", [*CLIENTS, "server.py", "demo.py"])
def test_missing_stubs_are_explained_in_one_line(tmp_path: Path, name: str) -> None:
    shutil.copy(ECHO / name, tmp_path)
    done = run(tmp_path / name, *(["--connect", "127.0.0.1:1"] * (name in CLIENTS)))
    assert "tidewire gen examples/echo/echo.proto" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.returncode == 1


# ---- the server


def test_server_answers_health(server: Served) -> None:
    with urllib.request.urlopen(f"http://{server.admin}/health") as response:
        assert response.read() == b"OK\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("arguments", [[], ["--async"]])
def test_server_finishes_a_call_when_signalled(
    echo_dir: Path, number: int, arguments: list[str]
) -> None:
    one = served(echo_dir, *arguments)
    with one.process:
        caller = subprocess.Popen(
            [
                *(sys.executable, str(echo_dir / "client.py")),
                *("--connect", one.address, "--sleep-ms", "600", "--timeout", "10"),
            ],
            stdout=subprocess.PIPE,
        )
        with caller:
            await_in_flight(one.admin)
            one.process.send_signal(number)
            out, _ = caller.communicate(timeout=PATIENCE)
        assert out.startswith(b"hello ")
        assert one.process.wait(PATIENCE) == 0


def await_in_flight(admin: str) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        with urllib.request.urlopen(f"http://{admin}/metrics") as response:
            text = response.read().decode()
        if re.search(r"^tidewire_server_in_flight\{.*\} 1\.0$", text, re.M):
            return
        assert time.monotonic() < end
        time.sleep(0.02)


def test_server_says_why_it_cannot_serve(echo_dir: Path, server: Served) -> None:
    for arguments, complaint in (
        (["--listen", server.address], "cannot listen on "),
        (["--listen", "host.name:80"], "numeric address"),
        (["--admin", "0.0.0.0:0"], "loopback"),
        (["--threads", "0"], "threads is 0"),
    ):
        done = run(echo_dir / "server.py", "--listen", "127.0.0.1:0", *arguments)
        assert done.stderr.startswith("cannot serve: ")
        assert complaint in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.returncode == 1


# ---- the demo


def gone(pid_file: Path) -> bool:
    """Whether the process of this pid has ended."""
    try:
        os.kill(int(pid_file.read_text()), 0)
    except ProcessLookupError:
        return True
    return False


def test_demo_holds(echo_dir: Path) -> None:
    done = run(echo_dir / "demo.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) < 120
    # What was provoked can be seen.
    for counter in ("keepwrite", "waitepollout", "server_calls"):
        assert re.search(rf"^  tidewire_{counter}_total +0 +[1-9]", done.stdout, re.M)
    assert "✓" in done.stdout
    assert "✗" not in done.stdout


def test_demo_runs_without_stdin_and_in_plain_ascii(echo_dir: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" "$1" <&-', sys.executable, echo_dir / "demo.py"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.isascii()
    assert done.stdout.startswith(b"ok ")


def write_server(echo_dir: Path, name: str, text: str) -> tuple[Path, Path]:
    """(a server script beside the example, the file with its pid)."""
    script = echo_dir / f"{name}.py"
    pid = echo_dir / f"{name}.pid"
    script.write_text(
        "import os, sys, time, pathlib\n"
        f"pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\n{text}"
    )
    return script, pid


WRONG_ECHO = """\
import server
right = server.answer
def answer(request, ctx):
    reply = right(request, ctx)
    {change}
    return reply
server.answer = answer
server.main()
"""


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("ends", "sys.exit('no luck')", "start of the server: the server ended"),
        (
            "loud",
            WRONG_ECHO.format(change="reply.message = reply.message.upper()"),
            "blocking client: the echo of a message is another one",
        ),
        (
            "detached",
            WRONG_ECHO.format(change="ctx.reply_attachment = b'other'"),
            "blocking client: an attachment came back changed",
        ),
        (
            "short",
            WRONG_ECHO.format(change="reply.message = reply.message[:99]"),
            "slow reader: ",
        ),
        (
            "dies",
            WRONG_ECHO.format(change="if len(reply.message) > 99: os._exit(7)"),
            "slow reader: ",
        ),
    ],
)
def test_demo_says_what_did_not_hold(
    echo_dir: Path, name: str, text: str, complaint: str
) -> None:
    script, pid = write_server(echo_dir, name, text)
    done = run(echo_dir / "demo.py", "--server", str(script))
    assert done.returncode == 1, done.stdout
    assert f"✗ {complaint}" in done.stdout
    assert "Traceback" not in done.stderr
    assert gone(pid)


def test_demo_does_not_wait_for_a_silent_server(echo_dir: Path) -> None:
    script, pid = write_server(echo_dir, "silent", "time.sleep(60)")
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import demo, sys; demo.START = 0.5; sys.exit(demo.main())",
            *("--server", str(script)),
        ],
        cwd=echo_dir,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert b"said no address in 0.5 s" in done.stdout
    assert gone(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_takes_the_server_along_when_ended(echo_dir: Path, number: int) -> None:
    script, pid = write_server(echo_dir, f"waits{number}", "time.sleep(60)")
    demo = subprocess.Popen(
        [sys.executable, str(echo_dir / "demo.py"), "--server", str(script)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    with demo:
        end = time.monotonic() + PATIENCE
        while not (pid.exists() and pid.read_text()):
            assert time.monotonic() < end
            time.sleep(0.01)
        demo.send_signal(number)
        assert demo.wait(PATIENCE) == 128 + number
    assert gone(pid)
