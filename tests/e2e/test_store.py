"""The store of examples/store, in this process and as one of its own."""

import importlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tidewire as tw

STORE = Path(__file__).resolve().parents[2] / "examples" / "store"
PATIENCE = 30.0
TOKENS = {"alice": b"alices-secret", "bob": b"bobs-secret"}


@pytest.fixture(scope="session")
def stubs(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[ModuleType, ModuleType]]:
    """Messages and clients, where the example looks for them, and the example
    itself: it can be imported from now on."""
    root = tmp_path_factory.mktemp("store")
    subprocess.run(
        [
            *(sys.executable, "-m", "tidewire.cli", "gen", "-q"),
            *("store.proto", "-I", ".", "-o", str(root / "stubs")),
        ],
        cwd=STORE,
        check=True,
        timeout=PATIENCE,
    )
    sys.path[:0] = [str(root), str(STORE)]
    yield (
        importlib.import_module("stubs.store_pb2"),
        importlib.import_module("stubs.store_tw"),
    )
    sys.path.remove(str(root))
    sys.path.remove(str(STORE))


@dataclass
class Running:
    process: "subprocess.Popen[str]"
    address: str
    lines: "list[str]" = field(default_factory=list)

    def __post_init__(self) -> None:
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._more:
                self.lines.append(line)
                self._more.notify_all()

    def said(self, pattern: str, after: int = 0) -> "re.Match[str]":
        """The first line of the log, from `after` on, that has this."""

        def found() -> "re.Match[str] | None":
            hits = (re.search(pattern, line) for line in self.lines[after:])
            return next(filter(None, hits), None)

        with self._more:
            assert self._more.wait_for(found, PATIENCE), "".join(self.lines)
            match = found()
            assert match is not None
            return match

    def ended(self) -> int:
        """Its status, once its log is read to the end."""
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


def started(root: Path, data: Path, *arguments: str) -> Running:
    """The server on a free port; `root` holds the stubs that it imports."""
    process = subprocess.Popen(
        [
            *(sys.executable, str(STORE / "serve.py"), "--listen", "127.0.0.1:0"),
            *("--data", str(data), *arguments),
            *(f"--token={name}={secret.decode()}" for name, secret in TOKENS.items()),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    running = Running(process, "")
    try:
        running.address = running.said(r"serving on (\S+)")[1]
    except BaseException:
        process.terminate()
        running.ended()
        raise
    return running


def workers_of(running: Running) -> list[int]:
    return [
        int(pid) for pid in re.findall(r"worker (\d+) is ready", "".join(running.lines))
    ]


def stop(running: Running) -> None:
    running.process.send_signal(signal.SIGTERM)
    assert running.ended() == 0, "".join(running.lines)
    assert "Traceback" not in "".join(running.lines)


@pytest.fixture
def root(stubs: Any) -> Path:
    return Path(stubs[0].__file__).parents[1]


@pytest.fixture
def process(root: Path, tmp_path: Path) -> Iterator[Running]:
    running = started(root, tmp_path / "store.db")
    yield running
    stop(running)


@pytest.fixture
def store(stubs: Any, tmp_path: Path, tidewire_serve: Any) -> Any:
    """The same server in this process, which has no workers."""
    make_server = importlib.import_module("service").make_server
    data = tmp_path / "store.db"
    importlib.import_module("database").Database.create(data)
    tokens = {name: secret.decode() for name, secret in TOKENS.items()}
    return tidewire_serve(
        server=lambda listen: make_server(listen, data, tokens, workers=1)
    )


def client_of(face: Any, stubs: Any, store: Any, who: str = "alice") -> Any:
    channel = face.channel(
        store.address,
        credentials=TOKENS.get(who, who.encode()),
        timeout=PATIENCE,
        connect_timeout=PATIENCE,
    )
    return face.client(stubs[1], channel)


def test_writes_reads_lists_and_deletes(face, stubs, store):
    pb = stubs[0]
    client = client_of(face, stubs, store)
    for i, name in enumerate(("b", "a", "aa")):
        put = pb.PutRequest(name=name, value=name.encode() * 3)
        assert face.call(client, "put", put).version == 1, i
    item = face.call(client, "get", pb.GetRequest(name="aa"))
    assert (item.name, item.value, item.version) == ("aa", b"aaaaaa", 1)
    listed = face.call(client, "list", pb.ListRequest(prefix="a"))
    assert [i.name for i in listed.items] == ["a", "aa"]
    assert not listed.more
    first = face.call(client, "list", pb.ListRequest(limit=2))
    assert ([i.name for i in first.items], first.more) == (["a", "aa"], True)
    rest = face.call(client, "list", pb.ListRequest(limit=2, after="aa"))
    assert ([i.name for i in rest.items], rest.more) == (["b"], False)
    for found in (True, False):
        assert face.call(client, "delete", pb.DeleteRequest(name="a")).found is found
    with pytest.raises(tw.NotFound, match="nothing is stored as 'a'"):
        face.call(client, "get", pb.GetRequest(name="a"))


def test_an_expected_version_guards_a_write(face, stubs, store):
    pb = stubs[0]
    client = client_of(face, stubs, store)

    def put(expected):
        request = pb.PutRequest(name="n", value=b"v", expected_version=expected)
        return face.call(client, "put", request).version

    assert put(-1) == 1
    with pytest.raises(tw.FailedPrecondition, match="the item has version 1"):
        put(-1)
    assert put(1) == 2
    with pytest.raises(tw.FailedPrecondition, match="the item has version 2"):
        put(1)
    assert put(0) == 3


def test_everybody_has_names_of_their_own(face, stubs, store):
    pb = stubs[0]
    alice, bob = (client_of(face, stubs, store, who) for who in TOKENS)
    face.call(alice, "put", pb.PutRequest(name="mine", value=b"alice's"))
    with pytest.raises(tw.NotFound):
        face.call(bob, "get", pb.GetRequest(name="mine"))
    assert not face.call(bob, "list", pb.ListRequest()).items
    assert not face.call(bob, "delete", pb.DeleteRequest(name="mine")).found


def test_who_has_no_token_is_refused(face, stubs, store):
    stranger = client_of(face, stubs, store, "nobody's secret")
    with pytest.raises(tw.Unauthenticated):
        face.call(stranger, "get", stubs[0].GetRequest(name="a"))


@pytest.mark.parametrize("name", ["", "n" * 257])
def test_a_wrong_name_is_refused(face, stubs, store, name):
    client = client_of(face, stubs, store)
    for method, request in (
        ("put", stubs[0].PutRequest(name=name)),
        ("get", stubs[0].GetRequest(name=name)),
        ("delete", stubs[0].DeleteRequest(name=name)),
        ("wait", stubs[0].WaitRequest(name=name)),
    ):
        with pytest.raises(tw.InvalidArgument, match="allowed: 1 to 256"):
            face.call(client, method, request)


def test_a_value_that_is_too_large_is_refused(face, stubs, store):
    pb = stubs[0]
    client = client_of(face, stubs, store)
    largest = bytes(1 << 20)
    face.call(client, "put", pb.PutRequest(name="n", value=largest))
    assert face.call(client, "get", pb.GetRequest(name="n")).value == largest
    with pytest.raises(tw.InvalidArgument, match="allowed: 1048576"):
        face.call(client, "put", pb.PutRequest(name="n", value=largest + b"x"))


def test_waiting_ends_with_the_next_write(face, stubs, store):
    """However many wait, they keep nobody from writing."""
    pb = stubs[0]
    client = client_of(face, stubs, store)
    face.call(client, "put", pb.PutRequest(name="n", value=b"1"))
    waits = [
        face.start(client, "wait", pb.WaitRequest(name="n", version=1))
        for _ in range(50)
    ]
    face.call(client, "put", pb.PutRequest(name="n", value=b"2"))
    for wait in waits:
        item = wait.result(PATIENCE)
        assert (item.value, item.version) == (b"2", 2)
    with pytest.raises(tw.DeadlineExceeded):
        request = pb.WaitRequest(name="n", version=2)
        face.call(client, "wait", request, timeout=0.1)


def test_no_increment_is_lost(stubs, process):
    """Optimistic writers of eight threads, each counting to 25 in the same
    item."""
    pb = stubs[0]
    options = tw.ChannelOptions(credentials=TOKENS["alice"], timeout=PATIENCE)
    with tw.Channel(process.address, options=options) as channel:
        client = stubs[1].StoreClient(channel)
        client.put(pb.PutRequest(name="count", value=b"0"))
        together = threading.Barrier(8)

        def count(_: int) -> None:
            together.wait(PATIENCE)
            done = 0
            while done < 25:
                item = client.get(pb.GetRequest(name="count"))
                request = pb.PutRequest(
                    name="count",
                    value=str(int(item.value) + 1).encode(),
                    expected_version=item.version,
                )
                try:
                    client.put(request)
                except tw.FailedPrecondition:
                    continue
                done += 1

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(count, range(8)))
        item = client.get(pb.GetRequest(name="count"))
        assert (item.value, item.version) == (b"200", 201)


def test_what_was_answered_survives_sigkill(face, stubs, root, tmp_path):
    pb = stubs[0]
    data = tmp_path / "store.db"
    running = started(root, data)
    client = client_of(face, stubs, running)
    version = 0
    for i in range(20):
        request = pb.PutRequest(name="n", value=str(i).encode())
        version = face.call(client, "put", request).version
    # The supervisor first: it would start others.
    running.process.kill()
    for worker in workers_of(running):
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    running.ended()
    again = started(root, data)
    client = client_of(face, stubs, again)
    item = face.call(client, "get", pb.GetRequest(name="n"))
    assert (item.value, item.version) == (b"19", version)
    stop(again)


def test_a_killed_worker_is_replaced_and_nothing_is_lost(face, stubs, process):
    """Whoever was connected to it connects again; the other one serves meanwhile."""
    pb = stubs[0]
    client = client_of(face, stubs, process)

    def put(value: bytes) -> int:
        while True:  # a write may be repeated: the last one counts
            try:
                request = pb.PutRequest(name="n", value=value)
                return int(face.call(client, "put", request).version)
            except tw.Unavailable:
                continue

    first = put(b"before")
    for worker in workers_of(process):
        seen = len(process.lines)
        os.kill(worker, signal.SIGKILL)
        assert put(b"after") > first
        process.said(rf"worker {worker} died by SIGKILL", seen)
        process.said(r"worker \d+ is ready", seen)
    assert face.call(client, "get", pb.GetRequest(name="n")).value == b"after"


def test_the_command_line_client(root, store):

    def call(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [
                *(sys.executable, str(STORE / "call.py"), "--connect", store.address),
                *("--secret", "bobs-secret", *arguments),
            ],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(root)},
            timeout=PATIENCE,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    assert call("put", "greeting", "hello") == (0, "version 1\n")
    assert call("get", "greeting") == (0, "hello (version 1)\n")
    assert call("list") == (0, "greeting (version 1)\n")
    assert call("wait", "greeting", "0") == (0, "hello (version 1)\n")
    assert call("delete", "greeting") == (0, "deleted\n")
    assert call("delete", "greeting") == (0, "there was none\n")
    code, said = call("get", "greeting")
    assert (code, said.split(":")[0]) == (1, "NotFound")


def test_without_tokens_it_does_not_start():
    done = subprocess.run(
        [sys.executable, str(STORE / "serve.py")],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode != 0
    assert "--token" in done.stderr or "tidewire gen" in done.stderr
