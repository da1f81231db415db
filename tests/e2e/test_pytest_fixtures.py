"""The fixtures of pytest_tidewire, in runs of pytest of their own; and that what a
user writes with tidewire.testing satisfies strict checkers."""

import os
import re
import subprocess
import sys
import textwrap

import pytest
from generated import ROOT, WHERE

SDK = ROOT / "sdk"

HEAD = """
import socket, sys
import pytest
import tidewire as tw
from echo_stubs import echo_pb2, echo_tw

REQUEST = echo_pb2.EchoRequest(message="hello")


class Echo(echo_tw.EchoService):
    def echo(self, request, ctx):
        return echo_pb2.EchoResponse(message=request.message)
"""


@pytest.fixture
def run(tmp_path):
    """`run(tests, *arguments)`: what pytest says of a file with these tests."""

    def run(tests, *arguments, head=HEAD, ini="", timeout=60):
        (tmp_path / "pytest.ini").write_text(f"[pytest]\n{ini}\n")
        (tmp_path / "test_it.py").write_text(head + textwrap.dedent(tests))
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v"),
                *("--tb=short", *arguments),
            ],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(WHERE)},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return done.stdout + done.stderr

    return run


def outcomes(said):
    """{"passed": 3, ...} of the last line; the core's log may come after it."""
    [last] = re.findall(r"^=+ (.*) in \d.*s =+$", said, re.M)
    found = re.findall(r"(\d+) (passed|failed|errors?)", last)
    return {word.removesuffix("s"): int(count) for count, word in found}


def test_what_the_fixtures_give_ends_with_the_test(run):
    said = run(
        """
        ended = []


        def test_all(tidewire_serve, tidewire_fake, tidewire_faults):
            served, other = tidewire_serve(Echo), tidewire_serve(Echo)
            proxy = tidewire_faults(served.address, "slice=3")
            faked = tidewire_fake({echo_tw.EchoService.echo: tw.NotFound("none")})
            for channel in (served.channel, other.channel):
                assert echo_tw.EchoClient(channel).echo(REQUEST).message == "hello"
            with tw.Channel(proxy.address) as channel:
                client = echo_tw.EchoClient(channel)
                assert client.echo(REQUEST, timeout=10).message == "hello"
            with pytest.raises(tw.NotFound):
                echo_tw.EchoClient(faked.channel).echo(REQUEST)
            ended.extend([served, other, faked, proxy])


        def test_they_are_gone():
            assert len(ended) == 4
            for one in ended:
                with tw.Channel(one.address) as channel:
                    with pytest.raises(tw.Unavailable):
                        echo_tw.EchoClient(channel).echo(REQUEST)
        """,
        "-W",
        "error::ResourceWarning",
    )
    assert outcomes(said) == {"passed": 2}, said


def test_a_fake_that_knew_no_answer_fails_the_test(run):
    said = run(
        """
        def test_swallows(tidewire_fake):
            faked = tidewire_fake({})
            try:
                echo_tw.EchoClient(faked.channel).echo(REQUEST)
            except tw.RpcError:
                pass
        """
    )
    assert outcomes(said) == {"passed": 1, "error": 1}, said
    assert "does not know example.EchoService/Echo; it knows none" in said


def test_seeds_are_printed_and_may_be_given(run):
    tests = """
        def test_seed(tidewire_seed, tidewire_faults):
            proxy = tidewire_faults("127.0.0.1:1")
            assert proxy.seed == tidewire_seed > 0
            assert tidewire_faults("127.0.0.1:1", seed=5).seed == 5
            raise AssertionError
        """
    first = run(tests)
    [seed] = set(re.findall(r"--tidewire-seed=(\d+)", first))
    assert f"seed {seed}, plan 'none'" in first
    again = run(tests, f"--tidewire-seed={seed}")
    assert f"--tidewire-seed={seed}" in again
    assert outcomes(again) == {"failed": 1}, again


LEAVES = """
    @pytest.fixture
    def channel():
        with tw.Channel("127.0.0.1:1") as one:
            yield one


    def test_closes(channel, tidewire_serve):
        tidewire_serve(Echo)


    def test_leaves():
        global kept
        kept = tw.Channel("127.0.0.1:1")
    """


def test_left_open_fails_a_test_if_the_ini_file_says_so(run):
    assert outcomes(said := run(LEAVES)) == {"passed": 2}, said
    said = run(LEAVES, ini="tidewire_unclosed = true")
    assert outcomes(said) == {"passed": 2, "error": 1}, said
    assert re.search(
        r"left open:\n +<tidewire.Channel to 127.0.0.1:1>, made at .*test_it.py:\d+",
        said,
    )
    assert "ERROR test_it.py::test_leaves" in said


def test_left_open_fails_a_test_that_asks_for_it(run):
    tests = LEAVES.replace("test_leaves()", "test_leaves(tidewire_unclosed)")
    assert outcomes(said := run(tests)) == {"passed": 2, "error": 1}, said


def test_nothing_is_imported_for_those_who_use_nothing(run):
    tests = """
        def test_nothing():
            import sys

            assert "pytest_tidewire" in sys.modules
            assert not {"tidewire", "asyncio"} & set(sys.modules)
        """
    assert outcomes(said := run(tests, head="")) == {"passed": 1}, said


def test_it_can_be_turned_off(run):
    tests = "def test_nothing(tidewire_serve): pass\n"
    said = run(tests, "-p", "no:tidewire")
    assert "fixture 'tidewire_serve' not found" in said


TYPED = """
import pytest
import tidewire as tw
from echo_stubs import echo_pb2, echo_tw
from pytest_tidewire import FakeFixture, FaultsFixture, ServeFixture


class Echo(echo_tw.EchoService):
    def echo(
        self, request: echo_pb2.EchoRequest, ctx: tw.Context
    ) -> echo_pb2.EchoResponse:
        return echo_pb2.EchoResponse(message=request.message)


ANSWERS = {echo_tw.EchoService.echo: echo_pb2.EchoResponse(message="hello")}


def test_serve() -> None:
    with tw.testing.serve(Echo, options=tw.ServerOptions(threads=2)) as served:
        client = echo_tw.EchoClient(served.channel)
        client.echo(echo_pb2.EchoRequest(message="hello")).message.upper()
        echo_tw.EchoClient(served.connect())
        served.restart()
        served.server.address.upper()
        with tw.testing.faults(served.address, "latency=0.1", seed=3) as proxy:
            proxy.address.upper()
            with proxy.refusing():
                pass
        echo_tw.AsyncEchoClient(served.channel)  # WRONG


async def test_aserve() -> None:
    async with tw.testing.serve(lambda: Echo()) as served:
        client = echo_tw.AsyncEchoClient(served.channel)
        (await client.echo(echo_pb2.EchoRequest(message="hello"))).message.upper()
        await served.arestart()
        echo_tw.EchoClient(served.channel)  # WRONG


def test_fake() -> None:
    with tw.testing.fake(ANSWERS) as faked:
        echo_tw.EchoClient(faked.channel)
    answers = {
        echo_tw.EchoService.echo: [tw.NotFound(""), lambda request: request],
        Echo.echo: tw.NotFound(""),
    }
    with tw.testing.fake(answers, channel=tw.ChannelOptions()) as faked:
        [call] = faked.calls_of(echo_tw.EchoService.echo)
        assert (call.method, call.timeout) == ("", None)


async def test_afake() -> None:
    async with tw.testing.fake(ANSWERS) as faked:
        echo_tw.AsyncEchoClient(faked.channel)


def test_failing() -> None:
    hook = tw.testing.Failing({tw.Errno.ELIMIT: 0.5, 1234: 0.1})
    tw.ServerOptions(hooks=[hook])
    with tw.testing.unclosed():
        pass


def test_fixtures(
    tidewire_serve: ServeFixture,
    tidewire_fake: FakeFixture,
    tidewire_faults: FaultsFixture,
    tidewire_seed: int,
) -> None:
    served = tidewire_serve(Echo)
    echo_tw.EchoClient(tidewire_fake(ANSWERS).channel)
    tidewire_faults(served.address, "none", seed=tidewire_seed).reset_all()
    tidewire_serve("no service")  # WRONG
"""


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_strict_checkers_accept_what_users_write(tmp_path, checker):
    (tmp_path / "test_typed.py").write_text(TYPED)
    command = {
        "mypy": ["mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}/c"],
        "pyright": ["pyright", "--pythonpath", sys.executable],
    }[checker]
    done = subprocess.run(
        [sys.executable, "-m", *command, "test_typed.py"],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": f"{WHERE}:{SDK}", "PYTHONPATH": f"{WHERE}:{SDK}"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = TYPED.splitlines()
    wrong = [number for number, line in enumerate(lines, 1) if "# WRONG" in line]
    found = re.findall(r"test_typed\.py:(\d+):.*error", done.stdout)
    assert [int(number) for number in found] == wrong, done.stdout + done.stderr
