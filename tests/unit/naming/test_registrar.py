"""What keeps a server registered, whatever the registry does; and what the options
say of it."""

import logging
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from harness import eventually, within
from tidewire import naming
from tidewire.errors import AddressError, OptionError
from tidewire.naming import Publish, Registration, Registry, Stopping
from tidewire.naming.registrar import Registrar
from tidewire.node import Node
from tidewire.options import Register, ServerOptions

NODE = Node(address="10.0.0.1:80")
URL = "etcd://127.0.0.1:2379/shop"


class Book(naming.Naming, Registry):
    """A registry that fails as the test says, and notes what it is asked."""

    def __init__(self, text: str = "") -> None:
        self.noted: list[str] = []
        self.fails: set[str] = set()
        self.held = threading.Event()
        self.held.set()
        self.nodes: list[Node] = []

    def run(self, publish: Publish, stopping: Stopping) -> None:
        publish(self.nodes)

    def do(self, what: str) -> None:
        self.noted.append(what)
        assert self.held.wait(20)
        if what in self.fails:
            raise OSError(f"no {what}")

    def register(self, node: Node, ttl: int) -> Registration:
        self.do("register")
        self.nodes.append(node)
        return Entry(self)


class Entry(Registration):
    def __init__(self, book: Book) -> None:
        self._book = book

    def keep(self) -> None:
        self._book.do("keep")

    def revoke(self) -> None:
        self._book.do("revoke")


@pytest.fixture
def book(monkeypatch: pytest.MonkeyPatch) -> Book:
    monkeypatch.setattr("tidewire.naming.backoff._FIRST", 0.001)
    return Book()


def registrar(book: Book, ttl: float = 0.003) -> Registrar:
    return Registrar("book://x", book, NODE, ttl)  # type: ignore[arg-type]


def test_kept_until_it_is_revoked(book: Book) -> None:
    one = registrar(book)
    eventually(lambda: book.noted.count("keep") >= 3)
    one.stop(10)
    assert (book.noted[0], book.noted[-1]) == ("register", "revoke")
    assert set(book.noted[1:-1]) == {"keep"}
    one.stop(10)
    assert book.noted.count("revoke") == 1


@pytest.mark.parametrize("fails", ["register", "keep"])
def test_tried_again_until_it_works(
    book: Book, caplog: pytest.LogCaptureFixture, fails: str
) -> None:
    """Logged once; a registration that cannot be kept is had anew."""
    book.fails = {fails}
    with caplog.at_level(logging.WARNING, "tidewire.naming"):
        one = registrar(book)
        eventually(lambda: book.noted.count("register") >= 3)
        assert one.registered is (fails == "keep")
        if fails == "register":
            lines = [record.getMessage() for record in caplog.records]
            assert lines == ["book://x: OSError: no register; it is tried again"]
        book.fails = set()
        eventually(lambda: book.noted[-1] == "keep")
        one.stop(10)
    assert book.noted[-1] == "revoke"


def test_what_cannot_be_kept_is_revoked_all_the_same(book: Book) -> None:
    one = registrar(book)
    eventually(lambda: "keep" in book.noted)
    book.fails = {"register", "keep"}
    eventually(lambda: book.noted[-1] == "register")
    one.stop(10)
    assert book.noted[-1] == "revoke"


def test_stopping_waits_no_longer_than_it_says(
    book: Book, caplog: pytest.LogCaptureFixture
) -> None:
    """What is under way is revoked later."""
    book.held.clear()
    one = registrar(book)
    eventually(lambda: book.noted == ["register"])
    with within(1.0), caplog.at_level(logging.WARNING, "tidewire.naming"):
        began = time.monotonic()
        one.stop(0.05)
        assert time.monotonic() - began >= 0.05
    assert "no answer in 0.1 s; the entry of 10.0.0.1:80 ends later" in caplog.text
    book.held.set()
    eventually(lambda: book.noted == ["register", "revoke"])


def test_a_revoke_that_fails_is_logged(
    book: Book, caplog: pytest.LogCaptureFixture
) -> None:
    book.fails = {"revoke"}
    one = registrar(book)
    eventually(lambda: one.registered)
    with caplog.at_level(logging.WARNING, "tidewire.naming"):
        one.stop(10)
    assert "no revoke; the entry of 10.0.0.1:80 ends by itself" in caplog.text


# ---- by url


def test_a_plug_in_may_be_a_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same entry point finds servers and enters them."""

    def entry_points(**how: str) -> list[Any]:
        return [SimpleNamespace(load=lambda: Book)] if how["name"] == "book" else []

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    assert isinstance(naming.registry_of("book://x"), Book)
    assert ServerOptions(register=Register(url="book://x")).register is not None


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ({"url": "list://10.0.0.1:80"}, AddressError, "cannot register there; allowed"),
        ({"url": "nowhere://x"}, AddressError, "nothing is known of nowhere://"),
        ({"url": "etcd://host:2379"}, AddressError, "the prefix is ''"),
        ({"url": 5}, TypeError, r"Register.url is 5 \(int\); allowed: a str"),
        ({"tag": 5}, TypeError, r"Register.tag is 5 \(int\); allowed: a str"),
        ({"ttl": 0}, OptionError, "Register.ttl is 0 .* from 1 to 86400"),
        ({"ttl": 1.5}, TypeError, "Register.ttl is 1.5"),
        ({"address": "host"}, AddressError, "the port is missing"),
        ({"address": 5}, TypeError, "address is 5"),
        ({"address": "0.0.0.0:80"}, AddressError, "every address of the machine"),
        ({"address": "[::]:80"}, AddressError, "every address of the machine"),
    ],
)
def test_bad_input_is_refused_at_once(how: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        Register(**{"url": URL, **how})


def test_register_is_one_or_none() -> None:
    with pytest.raises(TypeError, match=r"ServerOptions.register is 'x' .*Register"):
        ServerOptions(register="x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "bound", "entered"),
    [
        (None, "10.0.0.1:81", "10.0.0.1:81"),
        (None, "unix:/tmp/x", "unix:/tmp/x"),
        ("shop.example:0", "0.0.0.0:81", "shop.example:81"),
        ("shop.example:80", "0.0.0.0:81", "shop.example:80"),
        ("[::1]:0", "[::]:81", "[::1]:81"),
        ("unix:/tmp/y", "10.0.0.1:81", "unix:/tmp/y"),
    ],
)
def test_what_is_entered(given: str | None, bound: str, entered: str) -> None:
    register = Register(url=URL, address=given, tag="5")
    assert register.node(bound) == Node(address=entered, tag="5")


@pytest.mark.parametrize(
    ("given", "bound"),
    [(None, "0.0.0.0:81"), (None, "[::]:81"), ("shop.example:0", "unix:/tmp/x")],
)
def test_what_cannot_be_entered(given: str | None, bound: str) -> None:
    register = Register(url=URL, address=given)
    with pytest.raises(AddressError, match="allowed: "):
        register.node(bound)
