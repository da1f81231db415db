"""README.md's example is real: extracted, generated, served and called; and so are
the tests that docs/testing-your-services.md writes for it."""

import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
PATIENCE = 20.0
RPC, ADMIN = "127.0.0.1:8000", "127.0.0.1:8001"
"""The addresses in the README; tests use free ones instead."""


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def free_addresses() -> tuple[str, str]:
    with socket.socket() as one, socket.socket() as other:
        for held in (one, other):
            held.bind(("127.0.0.1", 0))
        return tuple(f"127.0.0.1:{s.getsockname()[1]}" for s in (one, other))


def start(directory: Path, *command: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output(directory: Path, *command: str) -> str:
    with start(directory, *command) as process:
        try:
            out, _ = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 0, out
    return out


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A directory with the README's files and stubs, and the admin address."""
    directory = tmp_path_factory.mktemp("readme")
    [proto] = blocks("proto")
    (directory / "greeter.proto").write_text(proto)
    rpc, admin = free_addresses()
    names = []
    for block in blocks("python"):
        name = block.splitlines()[0].removeprefix("# ")
        names.append(name)
        assert RPC in block
        (directory / name).write_text(block.replace(RPC, rpc).replace(ADMIN, admin))
    assert names == ["server.py", "client.py", "client_async.py"]
    [command] = re.findall(r"^    tidewire (gen .*)$", README, re.M)
    output(directory, "-m", "tidewire.cli", *command.split())
    return directory, admin


@pytest.fixture(scope="module")
def server(project: tuple[Path, str]) -> Iterator[Path]:
    directory, admin = project
    with start(directory, "server.py") as process:
        try:
            end = time.monotonic() + PATIENCE
            while not is_healthy(admin):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < end
                time.sleep(0.05)
            yield directory
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def is_healthy(admin: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{admin}/health", timeout=5) as page:
            return page.status == 200
    except OSError:
        return False


def test_the_blocking_client_prints_what_the_server_says(server: Path) -> None:
    assert output(server, "client.py") == "Hello, Ada!\nwhom shall I greet?\n"


def test_the_asyncio_client_calls_three_times(server: Path) -> None:
    greetings = "Hello, Ada!\nHello, Grace!\nHello, Barbara!\n"
    assert output(server, "client_async.py") == greetings


def test_the_metrics_page_has_the_calls(
    server: Path, project: tuple[Path, str]
) -> None:
    output(server, "client_async.py")
    [url] = re.findall(r"^    curl (\S+)$", README, re.M)
    with urllib.request.urlopen(url.replace(ADMIN, project[1])) as page:
        text = page.read().decode()
    calls = re.search(
        r'^tidewire_server_calls_total\{method="Greet".*\} (\d+)', text, re.M
    )
    assert calls
    assert int(calls[1]) >= 3


def test_the_code_is_formatted_like_the_rest(project: tuple[Path, str]) -> None:
    for name in ("server.py", "client.py", "client_async.py"):
        for command in (["format", "--check"], ["check"]):
            subprocess.run(
                [
                    *(sys.executable, "-m", "ruff", *command, "--quiet"),
                    *("--config", str(ROOT / "pyproject.toml"), str(project[0] / name)),
                ],
                check=True,
                timeout=PATIENCE,
            )


PROGRAM = """
import pytest
from pytest_tidewire import ServeFixture


class Shop:
    def __init__(self, greeter: greeter_tw.GreeterClient) -> None:
        self.greeter = greeter

    def welcome(self, name: str) -> str:
        while True:
            try:
                request = greeter_pb2.GreetRequest(name=name)
                return f"<h1>{self.greeter.greet(request, timeout=0.5).text}</h1>"
            except (tw.Unavailable, tw.ResourceExhausted):
                continue


def main() -> None:
    with tw.Channel("127.0.0.1:1"):
        pass
"""
CONFTEST = """
import asyncio, inspect


def pytest_pyfunc_call(pyfuncitem):
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        asyncio.run(pyfuncitem.obj())
        return True
"""


def test_the_tests_in_the_document_pass(project: tuple[Path, str]) -> None:
    directory, _ = project
    document = (ROOT / "docs/testing-your-services.md").read_text("utf-8")
    first, *others = blocks("python", document)
    written = "\n\n".join([first.rstrip(), PROGRAM.strip(), *others])
    (directory / "test_greeter.py").write_text(written)
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "pytest.ini").write_text("[pytest]\ntidewire_unclosed = true\n")
    said = output(directory, "-m", "pytest", "-q", "-W", "error::ResourceWarning")
    count = written.count("def test_")
    assert f"{count} passed" in said, said
    assert count == 7


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]*)\)", README):
        if not target.startswith("https://"):
            assert (ROOT / target).exists(), target


def test_the_limits_are_the_defaults() -> None:
    import tidewire as tw

    options = tw.ServerOptions()
    assert {options.max_message, options.max_unwritten, options.max_pending_bytes} == {
        64 << 20
    }
    assert (options.max_pending, options.max_concurrency) == (1024, 0)
    assert options.max_connections == 10_000
    assert tw.ChannelOptions().timeout == 0.5
    for row in re.findall(r"^\|.*\| `(.*)` \|$", README, re.M):
        for name in row.split("`, `"):
            assert hasattr(options, name)


def test_it_names_no_path_of_a_machine() -> None:
    assert not re.search(r"/(root|home|work|tmp|opt)/", README)
