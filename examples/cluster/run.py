"""A cluster of three servers under load: one leaves, another joins, and no call
fails.  `make cluster` runs it.

    python examples/cluster/run.py [--calls 5000] [--balancer rr] [--list etcd]

The servers register in etcd, which is started for that; where there is none the
list of servers is a file, as some deployments have it.  Exit status 0 says that
every call was answered by a server of the list; 1 that some were not.
"""

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tidewire as tw
from etcd import Etcd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "echo"))

try:
    from gen import echo_pb2, echo_tw
except ModuleNotFoundError as error:
    if error.name != "gen":
        raise
    sys.exit(
        "no stubs yet; from the project's directory: tidewire gen"
        " examples/echo/echo.proto -I examples/echo -o examples/echo/gen"
    )

CALLERS = 4
BAR = 30
"""Characters of the longest bar."""
PATIENCE = 30.0
"""Seconds for what is waited for."""


@dataclass
class Cluster:
    """Servers in processes of their own, which register, or are in a file."""

    url: str
    """Of the list."""
    servers: dict[str, "subprocess.Popen[str]"] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)

    def join(self, name: str) -> None:
        """Starts a server and has it on the list."""
        register = [] if self.path else ["--register", self.url]
        server = subprocess.Popen(
            [sys.executable, str(HERE / "server.py"), name, *register],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.servers[name] = server
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        if not address:
            raise SystemExit(f"server {name} did not start")
        self.addresses[name] = address
        self.write()

    def leave(self, name: str) -> None:
        """Takes a server off the list, if it does not so itself, and stops it
        gracefully."""
        del self.addresses[name]
        self.write()
        server = self.servers.pop(name)
        server.send_signal(signal.SIGTERM)
        server.wait(PATIENCE)
        assert server.stdout is not None
        server.stdout.close()

    @property
    def path(self) -> Path | None:
        """The file, if the list is one."""
        scheme, _, path = self.url.partition("://")
        return Path(path) if scheme == "file" else None

    def write(self) -> None:
        """The whole list takes the place of the last one."""
        if self.path is None:
            return
        other = self.path.with_suffix(".new")
        lines = [f"{address}  # {name}\n" for name, address in self.addresses.items()]
        other.write_text("".join(lines))
        other.replace(self.path)

    def close(self) -> None:
        for name in list(self.servers):
            if name in self.addresses:
                self.leave(name)
            else:
                self.servers.pop(name).kill()


class Load:
    """Callers that call until they are told to stop, and who answered them."""

    def __init__(self, address: str, options: tw.ChannelOptions) -> None:
        self.channel = tw.Channel(address, options=options)
        self.lock = threading.Lock()
        self.answered: Counter[str] = Counter()
        self.failed: list[tw.RpcError] = []
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.call) for _ in range(CALLERS)]
        for thread in self.threads:
            thread.start()

    def call(self) -> None:
        client = echo_tw.EchoClient(self.channel)
        request = echo_pb2.EchoRequest(message="hello")
        while not self.over.is_set():
            try:
                name = client.echo(request).message.split()[0]
            except tw.RpcError as error:
                with self.lock:
                    self.failed.append(error)
            else:
                with self.lock:
                    self.answered[name] += 1

    def until_more(self, calls: int) -> Counter[str]:
        """Waits for so many answers: whose they are."""
        with self.lock:
            before = self.answered.copy()
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with self.lock:
                more = self.answered - before
            if more.total() >= calls:
                return more
            time.sleep(0.01)
        raise SystemExit(f"no {calls} answers within {PATIENCE:.0f} s")

    def close(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()
        self.channel.close()


def show(what: str, answers: Counter[str]) -> None:
    """Who answered how often, as bars."""
    print(f"\n{what}")
    most = max(answers.values())
    for name, count in sorted(answers.items()):
        print(f"  {name}  {'#' * round(BAR * count / most):<{BAR}}  {count:,}")
    sys.stdout.flush()


@contextlib.contextmanager
def opened(kind: str) -> Iterator[Cluster]:
    """kind: of the list."""
    with contextlib.ExitStack() as stack:
        prefix = "tidewire-cluster-"
        where = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix)))
        if kind == "etcd":
            etcd = stack.enter_context(Etcd(where))
            url = f"etcd://{etcd.endpoint}/echo"
        else:
            url = f"file://{where}/servers"
        print(f"the list: {url}")
        cluster = Cluster(url)
        stack.callback(cluster.close)
        for name in "abc":
            cluster.join(name)
        yield cluster


def run(calls: int, balancer: str, kind: str) -> int:
    options = tw.ChannelOptions(balancer=balancer, timeout=5.0)
    with opened(kind) as cluster:
        load = Load(cluster.url, options)
        try:
            show("three servers", load.until_more(calls))
            cluster.leave("c")
            load.until_more(1)
            show("c has left", load.until_more(calls))
            cluster.join("d")
            end = time.monotonic() + PATIENCE
            while not load.until_more(calls // 10)["d"] and time.monotonic() < end:
                pass
            show("d has joined", load.until_more(calls))
        finally:
            load.close()
    total, failed = load.answered.total(), load.failed
    print(f"\n{total:,} calls answered, {len(failed):,} failed")
    for error in failed[:5]:
        print(f"  {error}")
    return 1 if failed or not load.answered["d"] else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="A cluster that changes under load.")
    parser.add_argument("--calls", type=int, default=5000, help="in each of the parts")
    parser.add_argument("--balancer", default="rr", help="rr, la, p2c, random, ...")
    kind = "etcd" if Etcd.program() else "file"
    parser.add_argument("--list", choices=["etcd", "file"], default=kind)
    arguments = parser.parse_args()
    return run(arguments.calls, arguments.balancer, arguments.list)


if __name__ == "__main__":
    sys.exit(main())
