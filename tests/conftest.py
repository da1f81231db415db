"""Fixtures of all tests: both faces, every kind of server, and after each test
the count that nothing was left behind.

A test that takes over a minute ends the run with the stacks of all threads
(faulthandler_timeout in pyproject.toml).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

try:
    import tidewire._core  # noqa: F401
except ImportError:
    # The code generator's tests run where the core is not built, too.
    HAVE_CORE = False
else:
    HAVE_CORE = True

if TYPE_CHECKING:
    from harness import AsyncFace, BlockingFace, Gate, Serving
    from tools.etcd import Etcd


@pytest.fixture(scope="session")
def process_wide() -> None:
    """What lives as long as the process, there before the first count."""
    from harness import track_handles
    from tidewire import _cancel, _completion, _core

    track_handles()
    _core.open()
    # The whole suite with side loops: TW_LOOPS=3.
    _core.set_loops(int(os.environ.get("TW_LOOPS", "1")))
    _completion._running()
    _cancel._running()


_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        item.stash[_failed] = True
    return report


@pytest.fixture(autouse=True)
def leak_check(request: pytest.FixtureRequest) -> Iterator[None]:
    """After the test everything is back at what it was before."""
    if not HAVE_CORE:
        yield
        return
    from harness import Snapshot, leaks_since

    request.getfixturevalue("process_wide")
    before = Snapshot()
    yield
    # A failed test's traceback keeps its objects.
    if request.node.stash.get(_failed, False):
        return
    # pytest lets go of these only later.
    request.node.funcargs.clear()
    leaks = leaks_since(before)
    if leaks:
        pytest.fail("the test leaked\n  " + "\n  ".join(leaks), pytrace=False)


@pytest.fixture(params=["blocking", "asyncio"])
def face(request: pytest.FixtureRequest) -> Iterator[BlockingFace | AsyncFace]:
    """The client's side: the test runs once through each."""
    from harness import AsyncFace, BlockingFace

    one = BlockingFace() if request.param == "blocking" else AsyncFace()
    yield one
    one.close()


@pytest.fixture(params=["def", "async", "on-loop"])
def serve(request: pytest.FixtureRequest) -> Iterator[Serving]:
    """The server's side: `serve(handler, **options)` starts a server; the test
    runs once with each kind of handler."""
    from harness import Serving

    serving = Serving(request.param)
    yield serving
    serving.close()


@pytest.fixture(params=["async", "on-loop"])
def serve_async(request: pytest.FixtureRequest) -> Iterator[Serving]:
    """As `serve`, `async def` handlers only."""
    from harness import Serving

    serving = Serving(request.param)
    yield serving
    serving.close()


@pytest.fixture
def serve_def() -> Iterator[Serving]:
    """As `serve`, worker threads only: where the kind of handler is no matter."""
    from harness import Serving

    serving = Serving("def")
    yield serving
    serving.close()


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Where handlers wait; opened at the end at the latest."""
    from harness import Gate

    one = Gate()
    yield one
    one.open()


@pytest.fixture
def black_hole() -> Iterator[str]:
    """An address that connecting to takes for ever."""
    from harness import full_listener

    with full_listener() as address:
        yield address


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """A real one for all tests; those that kill it start it again."""
    from tools.etcd import Etcd, executable

    program = executable()
    if program is None:
        pytest.skip("no etcd: .ci/prerequisites unpacks Debian's")
    with Etcd(program, tmp_path_factory.mktemp("etcd")) as one:
        yield one


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """What keys of this test begin with, another one for each."""
    from uuid import uuid4

    return f"/{request.node.originalname}/{uuid4().hex}"
