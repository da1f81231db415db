"""What a row gets: the settings of this run, the tools, and how to measure."""

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lib import process, stubs, tools
from lib.errors import SkipRow
from lib.stats import spread
from lib.table import number

ECHO_SERVER = stubs.ROOT / "examples" / "echo" / "server.py"
DRESSED_SERVER = stubs.BENCH / "servers" / "echo_server.py"
Measure = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Both sides of the pairs, in the order they were measured."""

    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.peer, strict=True)]


@dataclass(frozen=True)
class Bench:
    """One run of the driver."""

    rounds: int
    seconds: float
    work: Path
    """A directory that is gone after the run."""
    dressed: bool = False
    """Whether our servers have on what one in production has (servers/dress.py)."""

    @cached_property
    def programs(self) -> tools.Tools:
        """The compiled C tools."""
        return tools.build(self.work)

    @cached_property
    def stubs_env(self) -> dict[str, str]:
        """The environment in which `import bench_stubs` works."""
        return stubs.generate(self.work)

    # -- the servers --

    @contextlib.contextmanager
    def echo_limit(self) -> Iterator[process.Server]:
        """The ceiling."""
        with process.server([str(self.programs.echo_limit), "0"]) as server:
            yield server

    @contextlib.contextmanager
    def echo(self, *options: str) -> Iterator[process.Server]:
        """The server under test: one process, admin listener and metrics on."""
        listen = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        script = DRESSED_SERVER if self.dressed else ECHO_SERVER
        argv = [sys.executable, str(script), *listen, *options]
        with process.server(argv) as server:
            yield server

    @contextlib.contextmanager
    def compute(self, threads: int) -> Iterator[process.Server]:
        """Our server with the handlers of bench/proto/work.proto."""
        script = stubs.BENCH / "servers" / "compute_server.py"
        argv = [sys.executable, str(script), str(threads)]
        argv += ["--dressed"] if self.dressed else []
        with process.server(argv, env=self.stubs_env) as server:
            yield server

    @contextlib.contextmanager
    def grpc(self, kind: str) -> Iterator[process.Server]:
        """grpcio's server, `sync` or `async`."""
        need_grpcio()
        script = stubs.BENCH / "servers" / "grpc_server.py"
        argv = [sys.executable, str(script), kind]
        with process.server(argv, env=self.stubs_env) as server:
            yield server

    # -- the loads --

    def load(
        self, server: process.Server, shape: tuple[int, int], **options: Any
    ) -> tools.Load:
        """One round of prpc_load."""
        return tools.load(self.programs, server.port, shape, self.seconds, **options)

    def qps(
        self, server: process.Server, shape: tuple[int, int], **options: Any
    ) -> Measure:
        """A round of prpc_load that yields calls/s."""
        return lambda: self.load(server, shape, **options).qps

    def client(self, script: str, *args: str) -> float:
        """Run a script of bench/clients that prints one number."""
        path = stubs.BENCH / "clients" / script
        argv = [sys.executable, str(path), *args]
        timeout = self.seconds + tools.SPARE_SECONDS
        return float(process.run(argv, timeout=timeout, env=self.stubs_env))

    # -- measuring --

    def alternate(self, name: str, ours: Measure, peer: Measure) -> Pairs:
        """Pairs of rounds; which side goes first alternates, too."""
        pairs = Pairs()
        for i in range(self.rounds):
            sides = [(ours, pairs.ours), (peer, pairs.peer)]
            for measure, into in sides if i % 2 == 0 else reversed(sides):
                into.append(measure())
            middle = spread(pairs.ratios).median
            self.progress(
                name,
                i,
                f"{number(pairs.ours[-1])} / {number(pairs.peer[-1])}"
                f" = {number(pairs.ratios[-1])}, median {number(middle)}",
            )
        return pairs

    def repeat(self, name: str, measure: Measure) -> list[float]:
        """Rounds of one side, where there is nothing to alternate with."""
        values: list[float] = []
        for i in range(self.rounds):
            values.append(measure())
            middle = spread(values).median
            self.progress(name, i, f"{number(values[-1])}, median {number(middle)}")
        return values

    def progress(self, name: str, done: int, text: str) -> None:
        print(f"{name}: {done + 1}/{self.rounds}: {text}", file=sys.stderr, flush=True)


def need_grpcio() -> None:
    if importlib.util.find_spec("grpc") is None:
        raise SkipRow("grpcio is not installed (pip install grpcio)")


def shape_text(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]}"
