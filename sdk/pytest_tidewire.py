"""Fixtures for pytest: what tidewire.testing has, ended when the test ends.

Outside of the package, because pytest imports it in every run: neither tidewire nor
its core is imported before a fixture is used.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tidewire import Channel, ChannelOptions, Server, ServerOptions, Service
    from tidewire.testing import Faked, Proxy, Served

__all__ = ["FakeFixture", "FaultsFixture", "ServeFixture"]


class ServeFixture(Protocol):
    """tidewire_serve."""

    def __call__(
        self,
        *services: "Service | Callable[[], Service]",
        server: "Callable[[str], Server] | None" = None,
        listen: str | None = None,
        options: "ServerOptions | None" = None,
        channel: "ChannelOptions | None" = None,
        lifespan: Callable[[], Any] | None = None,
        thread_state: Callable[[], Any] | None = None,
    ) -> "Served": ...


class FakeFixture(Protocol):
    """tidewire_fake."""

    def __call__(
        self,
        replies: "Mapping[Any, object]",
        *,
        channel: "ChannelOptions | None" = None,
    ) -> "Faked[Channel]": ...


class FaultsFixture(Protocol):
    """tidewire_faults."""

    def __call__(
        self,
        to: str,
        plan: str = "none",
        *,
        listen: str = "127.0.0.1:0",
        seed: int | None = None,
    ) -> "Proxy": ...


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tidewire")
    group.addoption(
        "--tidewire-seed",
        type=int,
        default=0,
        metavar="N",
        help="what tidewire_seed and tidewire_faults draw from; 0: fresh ones",
    )
    parser.addini(
        "tidewire_unclosed",
        "whether a test that leaves a Tidewire channel or server open fails",
        type="bool",
        default=False,
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getini("tidewire_unclosed"):
        config.pluginmanager.register(_Always(), "tidewire-unclosed")


class _Always:
    """Registered only if the ini file asks for it."""

    @pytest.fixture(autouse=True)
    def _tidewire_unclosed(self, tidewire_unclosed: None) -> None:
        pass


@pytest.fixture
def tidewire_unclosed() -> Iterator[None]:
    """Fails the test if it leaves a Channel, AsyncChannel or Server open that was
    made in it.  For all tests: `tidewire_unclosed = true` in the ini file."""
    from tidewire.testing import unclosed

    try:
        with unclosed():
            yield
    except AssertionError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def tidewire_seed(request: pytest.FixtureRequest) -> int:
    """A number to draw from, printed; --tidewire-seed repeats one."""
    from tidewire.testing.plan import fresh_seed

    seed = int(request.config.getoption("--tidewire-seed") or 0) or fresh_seed()
    print(f"--tidewire-seed={seed}")
    return seed


@pytest.fixture
def tidewire_serve() -> Iterator[ServeFixture]:
    """tw.testing.serve() as a function: `served = tidewire_serve(Greeter)`; the
    servers end with the test."""
    from tidewire.testing import serve

    with ExitStack() as stack:

        def served(*services: Any, **how: Any) -> "Served":
            return stack.enter_context(serve(*services, **how))

        yield served


@pytest.fixture
def tidewire_fake() -> Iterator[FakeFixture]:
    """tw.testing.fake() as a function: `faked = tidewire_fake({METHOD: reply})`.  A
    call that it has no answer for fails the test."""
    from tidewire.testing import fake

    with ExitStack() as stack:

        def faked(replies: Any, **how: Any) -> "Faked[Channel]":
            return stack.enter_context(fake(replies, **how))

        yield faked


@pytest.fixture
def tidewire_faults(tidewire_seed: int) -> Iterator[FaultsFixture]:
    """tw.testing.faults() as a function: `proxy = tidewire_faults(address, plan)`,
    with the seed of tidewire_seed unless it gets one."""
    from tidewire.testing import faults

    with ExitStack() as stack:

        def proxy(
            to: str, plan: str = "none", *, seed: int | None = None, **how: Any
        ) -> "Proxy":
            seed = tidewire_seed if seed is None else seed
            return stack.enter_context(faults(to, plan, seed=seed, **how))

        yield proxy
