"""Load plus a fault every 1 to 5 s, and the audit at the end.

    python tests/soak/soak.py --minutes 20 [--seed N]

Both faces call `def` and async servers over TCP and unix sockets, directly and
through a proxy of tidewire.testing: small and large messages, attachments, deadlines,
cancellations.  Meanwhile servers are killed, stopped and continued, connections
reset and swallowed, readers are slow, and descriptors run out.  Exit status 1 on
any violation.
"""

import argparse
import asyncio
import os
import random
import resource
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import tidewire as tw  # noqa: E402
from generated import echo_pb2, echo_tw  # noqa: E402
from harness import ECHO_META, Snapshot, connect, field, frame, leaks_since, service  # noqa: E402
from tidewire import _completion, _core, metrics  # noqa: E402
from tools.audit import Audit  # noqa: E402
from tools.echoed import EchoProcess  # noqa: E402
from tools.stalls import StallMonitor  # noqa: E402

MIB = 1 << 20
SETTLED = 300.0
"""Seconds after which memory may grow by GROWTH only."""
GROWTH = 4 * MIB
OPTIONS = tw.ChannelOptions(timeout=2.0, connect_timeout=1.0)
BLOCKING, FUTURES, TASKS = 4, 8, 8
NORMAL = "none | slice=1..4000 | latency=0..0.002 | slice=50..500,latency=0..0.0005"
BYTES = bytes(range(256)) * 4096


# Open for good: one of the faults is that there are no descriptors.
_STATM = open("/proc/self/statm", "rb", buffering=0)  # noqa: SIM115


def rss() -> int:
    pages = os.pread(_STATM.fileno(), 256, 0).split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Plan:
    """One call."""

    target: int
    timeout: float
    size: int
    sleep_ms: int
    cancel: bool


def plan_of(rng: random.Random, targets: int) -> Plan:
    dice = rng.random()
    size = rng.randrange(1 << 10)
    if dice < 0.003:
        size = MIB
    elif dice < 0.05:
        size = rng.randrange(1 << 16)
    dice = rng.random()
    timeout = 2.0
    if dice < 0.05:
        timeout = rng.uniform(0.001, 0.02)
    elif dice < 0.2:
        timeout = rng.uniform(0.02, 0.3)
    return Plan(
        target=rng.randrange(targets),
        timeout=timeout,
        size=size if rng.random() < 0.5 else 0,
        sleep_ms=rng.randrange(1, 30) if rng.random() < 0.05 else 0,
        cancel=rng.random() < 0.03,
    )


class Soak:
    """One run."""

    def __init__(self, seconds: float, seed: int, where: Path) -> None:
        self.seconds = seconds
        self.seed = seed
        self.where = where
        self.rng = random.Random(seed)
        self.monitor = StallMonitor(outside=True)
        self.audit = Audit(self.monitor)
        self.over = threading.Event()
        self.faults = 0
        self.fault = ""
        self.wrong: list[str] = []
        self.memory: dict[str, int] = {}
        self._begin = 0.0

    # ---- load

    def _request(self, plan: Plan) -> tuple[Any, dict[str, Any]]:
        request = echo_pb2.EchoRequest(message=f"{plan.size}", sleep_ms=plan.sleep_ms)
        how: dict[str, Any] = {"timeout": plan.timeout}
        if plan.size:
            how["attachment"] = memoryview(BYTES)[: plan.size]
        return request, how

    def _check(self, plan: Plan, reply: Any) -> None:
        if reply.message.message != f"{plan.size}" or len(reply.attachment) != (
            plan.size
        ):
            self.wrong.append(f"an answer that is not the call's: {plan}")

    def _blocking(self, clients: list[Any], who: int) -> None:
        rng = random.Random(f"{self.seed}/blocking/{who}")
        while not self.over.wait(rng.uniform(0, 0.002)):
            plan = plan_of(rng, len(clients))
            request, how = self._request(plan)
            ticket = self.audit.issue(plan.timeout)
            try:
                reply = clients[plan.target].echo.call(request, **how)
            except tw.RpcError as error:
                self.audit.complete(ticket, error)
            else:
                self.audit.complete(ticket, None, reply.elapsed)
                self._check(plan, reply)

    def _futures(self, clients: list[Any]) -> None:
        rng = random.Random(f"{self.seed}/futures")
        free = threading.Semaphore(FUTURES)

        def done(future: "Future[Any]", ticket: int) -> None:
            error: BaseException | None
            try:
                error = future.exception()
            except CancelledError as cancelled:
                error = cancelled
            self.audit.complete(ticket, error)
            free.release()

        while not self.over.wait(rng.uniform(0, 0.002)):
            plan = plan_of(rng, len(clients))
            request, how = self._request(plan)
            free.acquire()
            ticket = self.audit.issue(plan.timeout)
            try:
                future = clients[plan.target].echo.future(request, **how)
            except tw.RpcError as error:
                self.audit.complete(ticket, error)
                free.release()
                continue
            future.add_done_callback(lambda f, ticket=ticket: done(f, ticket))
            if plan.cancel:
                future.cancel()
            del future
        for _ in range(FUTURES):
            free.acquire()

    async def _tasks(self, addresses: list[str]) -> None:
        channels = [tw.AsyncChannel(a, options=OPTIONS) for a in addresses]
        clients = [echo_tw.AsyncEchoClient(channel) for channel in channels]

        async def caller(who: int) -> None:
            rng = random.Random(f"{self.seed}/tasks/{who}")
            while not self.over.is_set():
                await asyncio.sleep(rng.uniform(0, 0.004))
                plan = plan_of(rng, len(clients))
                request, how = self._request(plan)
                ticket = self.audit.issue(plan.timeout)
                task = asyncio.ensure_future(
                    clients[plan.target].echo.call(request, **how)
                )
                if plan.cancel:
                    asyncio.get_running_loop().call_soon(task.cancel)
                try:
                    reply = await task
                except (tw.RpcError, asyncio.CancelledError) as error:
                    self.audit.complete(ticket, error)
                else:
                    self.audit.complete(ticket, None, reply.elapsed)
                    self._check(plan, reply)

        try:
            await asyncio.gather(*(caller(who) for who in range(TASKS)))
        finally:
            for channel in channels:
                await channel.aclose()

    # ---- faults

    def _pause(self, least: float, most: float) -> None:
        self.over.wait(self.rng.uniform(least, most))

    def _kill(self) -> None:
        server = self.rng.choice(self.servers)
        server.kill()
        self._pause(0, 0.5)
        server.start()

    def _stop(self) -> None:
        server = self.rng.choice(self.servers)
        if status := server.stop():
            self.wrong.append(f"a server ended with {status}")
        server.start()

    def _freeze(self) -> None:
        server = self.rng.choice(self.servers)
        server.freeze()
        self._pause(0.1, 1.0)
        server.thaw()

    def _reset(self) -> None:
        self.proxy.reset_all()

    def _black_hole(self) -> None:
        self.proxy.plan = "up:swallow@0..9999 | down:swallow@0..9999 | freeze@0..9999"
        self.proxy.reset_all()
        self._pause(0.3, 1.0)
        self.proxy.plan = NORMAL
        self.proxy.reset_all()

    def _cut(self) -> None:
        self.proxy.plan = "up:reset@0..999 | down:fin@0..999 | up:half@0..999"
        self.proxy.reset_all()
        self._pause(0.3, 1.0)
        self.proxy.plan = NORMAL
        self.proxy.reset_all()

    def _slow_reader(self) -> None:
        """Sends what is answered at length, reads nothing, and goes."""
        large = frame(ECHO_META, field(1, b"x" * 50_000))
        with connect(self.local) as sock:
            sock.setblocking(False)
            rest = b""
            end = time.monotonic() + self.rng.uniform(0.2, 1.0)
            while time.monotonic() < end and not self.over.is_set():
                try:
                    rest = rest or large
                    rest = rest[sock.send(rest) :]
                except BlockingIOError:
                    self._pause(0.01, 0.02)
                except OSError:
                    break

    def _no_descriptors(self) -> None:
        """No further one for a while, in the process of the clients, the proxy
        and one server."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Anything new is over it, for this one had the lowest free number.
        probe = socket.socket()
        least = probe.fileno()
        probe.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, hard))
        try:
            self.proxy.reset_all()
            self._pause(0.1, 0.5)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def _faults(self) -> None:
        kinds: list[Callable[[], None]] = [
            *(self._kill, self._stop, self._freeze, self._reset, self._black_hole),
            *(self._cut, self._slow_reader, self._no_descriptors),
        ]
        # Each at least once, then as the dice fall.
        order = self.rng.sample(kinds, len(kinds))
        while not self.over.wait(self.rng.uniform(1.0, 5.0)):
            fault = order.pop() if order else self.rng.choice(kinds)
            self.fault = fault.__name__.strip("_").replace("_", " ")
            try:
                fault()
            except Exception as error:
                self.wrong.append(f"{self.fault}: {error!r}")
            self.faults += 1

    # ---- the run

    def run(self) -> list[str]:
        """What is wrong; empty when all is well."""
        _core.open()
        _completion._running()
        with self.monitor:
            before = Snapshot()
            doubles = self._doubles()
            with ExitStack() as stack:
                self._under_load(stack)
            found = self.audit.violations() + self.wrong
            found += [f"not given back: {leak}" for leak in leaks_since(before, 10.0)]
        if more := self._doubles() - doubles:
            found.append(f"the core counted {more} double completions")
        self.memory["end"] = rss()
        if "after 5 min" in self.memory:
            grown = self.memory["end"] - self.memory["after 5 min"]
            if grown > GROWTH:
                found.append(f"memory grew by {grown / MIB:.1f} MiB")
        return found

    @staticmethod
    def _doubles() -> int:
        core = metrics.read_core()
        return sum(
            core.cells[row.cell]
            for row in core.rows
            if row.name == "tidewire_double_completions"
        )

    def _under_load(self, stack: ExitStack) -> None:
        self.servers = [
            stack.enter_context(
                EchoProcess(self.where / f"journal{i}", kind, listen, threads=4)
            )
            for i, (kind, listen) in enumerate(
                [
                    ("def", "127.0.0.1:0"),
                    ("async", "127.0.0.1:0"),
                    ("def", f"unix:{self.where}/socket"),
                ]
            )
        ]
        self.local = stack.enter_context(
            tw.Server([service("def")], listen="127.0.0.1:0")
        )
        self.proxy = stack.enter_context(
            tw.testing.faults(self.local.address, NORMAL, seed=self.seed)
        )
        addresses = [server.address for server in self.servers]
        addresses += [self.local.address, self.proxy.address]
        channels = [
            stack.enter_context(tw.Channel(a, options=OPTIONS)) for a in addresses
        ]
        clients = [echo_tw.EchoClient(channel) for channel in channels]
        self._begin = time.monotonic()
        self.memory["start"] = rss()
        with ThreadPoolExecutor(BLOCKING + 3) as pool:
            work = [
                pool.submit(self._blocking, clients, who) for who in range(BLOCKING)
            ]
            work.append(pool.submit(self._futures, clients))
            work.append(pool.submit(asyncio.run, self._tasks(addresses)))
            work.append(pool.submit(self._faults))
            try:
                self._watch(work)
            finally:
                self.over.set()
            for one in work:
                one.result(60)

    def _watch(self, work: list["Future[Any]"]) -> None:
        """Tells how it goes until the time is over or something broke."""
        terminal = sys.stdout.isatty()
        shown = 0.0
        while (passed := time.monotonic() - self._begin) < self.seconds:
            if any(one.done() for one in work):
                return
            if passed >= SETTLED:
                self.memory.setdefault("after 5 min", rss())
            if passed - shown >= (1 if terminal else 10):
                shown = passed
                self.audit.settle()
                for i in range(len(self.servers)):
                    # Not read here; it would only grow.
                    with suppress(OSError):
                        os.truncate(self.where / f"journal{i}", 0)
                errors = self.audit.errors()
                most = " ".join(
                    f"{name} {count}" for name, count in errors.most_common(6)
                )
                line = (
                    f"{passed:5.0f} of {self.seconds:.0f} s  {self.audit.completed}"
                    f" calls  {self.faults} faults ({self.fault})  {most}"
                )
                end = "\r" if terminal else "\n"
                print(line[:160].ljust(160 if terminal else 0), end=end, flush=True)
            time.sleep(0.1)
        if terminal:
            print()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0, help="0: a fresh one")
    how = parser.parse_args(arguments)
    seed = how.seed or random.SystemRandom().randrange(1, 2**32)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="tidewire-soak-") as where:
        soak = Soak(how.minutes * 60, seed, Path(where))
        found = soak.run()
    print(soak.audit.report())
    print(
        "memory: "
        + ", ".join(
            f"{name} {size / MIB:.1f} MiB" for name, size in soak.memory.items()
        )
    )
    print(f"{soak.faults} faults; seed {seed}")
    for line in found:
        print(f"VIOLATION: {line}")
    print("FAILED" if found else "all accounts agree")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
