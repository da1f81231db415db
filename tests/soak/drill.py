"""A cluster of three servers, of which each does something wrong all the time.

    python tests/soak/drill.py --minutes 10 [--balancer rr] [--seed N]

One is slow, ten times as slow as the others, one is killed and started again and
again, one answers every twentieth call with ELOGOFF.  Both faces call, mostly with
time enough, now and then with too little.  No call may be lost, doubled or late,
or fail for another reason than its deadline, and the balancer has to keep its
promise.  Prints a table; exit status 1 on any violation.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import tidewire as tw  # noqa: E402
from generated import echo_pb2  # noqa: E402
from harness import SLOW  # noqa: E402
from tools.audit import Audit  # noqa: E402
from tools.echoed import EchoProcess  # noqa: E402
from tools.stalls import StallMonitor  # noqa: E402

THREADS, FUTURES, TASKS = 4, 4, 8
CALL = 0.001
"""Seconds of a call on a quick server; ten times that on the slow one."""
LEAVING = 0.05
TIMEOUT = 2.0 * SLOW
HASTY = 0.02
"""The share of calls with less time than the slow server takes."""
NO_TIME = 0.002
"""Seconds before its deadline in which a call that failed is not tried again."""
WRONG = 1e-4
"""The share of calls that may fail for another reason than their deadline."""
NAMES = ("slow", "killed", "leaving")
ENOUGH = 500
"""Attempts that say something about shares."""
UP, DOWN = "all up", "one down"
ECHO = tw.MethodInfo(
    service="example.EchoService",
    name="Echo",
    request=echo_pb2.EchoRequest,
    response=echo_pb2.EchoResponse,
    idempotency=tw.Idempotency.IDEMPOTENT,
)


@dataclass(eq=False)
class Phase:
    """A time in which the same servers are up."""

    what: str


@dataclass
class Seen:
    """Of one server."""

    ends: Counter[str] = field(default_factory=Counter)
    """What its attempts came to."""
    attempts: Counter[str] = field(default_factory=Counter)
    """Of calls that were under way in one kind of phase only."""
    took: deque[float] = field(default_factory=lambda: deque(maxlen=2000))


class Drill:
    """One run."""

    def __init__(self, seconds: float, balancer: str, seed: int, where: Path) -> None:
        self.seconds = seconds
        self.balancer = balancer
        self.seed = seed
        self.where = where
        self.monitor = StallMonitor(outside=True)
        self.audit = Audit(self.monitor)
        self.over = threading.Event()
        self.kills = 0
        self.wrong: list[str] = []
        self.failed: list[str] = []
        """Calls that had time left."""
        self.tries = bytearray()
        """Of each call, by its number; 0: it has not succeeded."""
        self._phase: Phase | None = None
        self._lock = threading.Lock()
        self._seen: dict[str, Seen] = {}

    # ---- calls

    def _calls(self, who: str) -> Iterator["Call"]:
        rng = random.Random(f"{self.seed}/{who}")
        while not self.over.is_set():
            hasty = rng.random() < HASTY
            yield Call(self, rng.uniform(0.002, 0.009) if hasty else TIMEOUT)

    def ended(self, call: "Call", end: Any, past: tuple[Any, ...]) -> None:
        """With a Response or an error."""
        with self._lock:
            for one in past:
                self._seen[one.peer].ends[_name(one.number)] += 1
            peers = [one.peer for one in past]
            if isinstance(end, tw.Response):
                assert end.peer is not None
                peers.append(end.peer)
                seen = self._seen[end.peer]
                seen.ends["answered"] += 1
                if end.attempts == 1:
                    seen.took.append(end.elapsed)
                if len(self.tries) <= call.number:
                    self.tries.extend(bytes(call.number + 1 - len(self.tries)))
                self.tries[call.number] = min(end.attempts, 255)
            elif (
                end.number != tw.Errno.ERPCTIMEDOUT
                and end.elapsed < call.timeout - NO_TIME
            ):
                self.failed.append(f"call {call.number}: {end!r}, {end.past}")
            if call.phase is not None and call.phase is self._phase:
                for peer in peers:
                    self._seen[peer].attempts[call.phase.what] += 1

    def _blocking(self, channel: tw.Channel, who: int) -> None:
        method = channel.unary(ECHO)
        for call in self._calls(f"blocking/{who}"):
            with call:
                call.reply = method.call(call.request, **call.how)

    def _futures(self, channel: tw.Channel) -> None:
        method = channel.unary(ECHO)
        free = threading.Semaphore(FUTURES)

        def done(future: "Future[Any]", call: Call) -> None:
            call.end(future.exception() or future.result())
            free.release()

        for call in self._calls("futures"):
            free.acquire()
            future = method.call_future(call.request, **call.how)
            future.add_done_callback(lambda f, call=call: done(f, call))
            del future
        for _ in range(FUTURES):
            free.acquire()

    async def _tasks(self, url: str, options: tw.ChannelOptions) -> None:
        async with tw.AsyncChannel(url, options=options) as channel:
            method = channel.unary(ECHO)

            async def caller(who: int) -> None:
                for call in self._calls(f"tasks/{who}"):
                    with call:
                        call.reply = await method.call(call.request, **call.how)

            await asyncio.gather(*(caller(who) for who in range(TASKS)))

    # ---- faults

    def _kill_and_start(self, server: EchoProcess) -> None:
        """Again and again.  It is up when it is called, not when it listens."""
        rng = random.Random(f"{self.seed}/kills")
        seen = self._seen[server.address]
        while True:
            known = seen.ends["answered"]
            while seen.ends["answered"] == known:
                if self.over.wait(0.01):
                    return
            self._phase = Phase(UP)
            over = self.over.wait(rng.uniform(0.5, 1.5))
            self._phase = None
            if over:
                return
            server.kill()
            self.kills += 1
            self.over.wait(0.05)  # those under way have noticed
            self._phase = Phase(DOWN)
            self.over.wait(rng.uniform(0.1, 0.5))
            self._phase = None
            server.start()

    # ---- the run

    def run(self) -> list[str]:
        """What is wrong; empty when all is well."""
        with self.monitor, ExitStack() as stack:
            servers = [
                stack.enter_context(
                    EchoProcess(
                        self.where / name,
                        kind,
                        threads=THREADS + FUTURES + TASKS,
                        pause=10 * CALL if name == "slow" else CALL,
                        leaving=LEAVING if name == "leaving" else 0.0,
                    )
                )
                for name, kind in zip(NAMES, ("def", "async", "async"), strict=True)
            ]
            self._seen = {server.address: Seen() for server in servers}
            self._under_load(servers)
            ran = self._ran(servers)
        return (
            self.audit.violations()
            + self.wrong
            + self._failures()
            + self._twice(ran)
            + self._shares()
        )

    def _under_load(self, servers: list[EchoProcess]) -> None:
        url = "list://" + ",".join(server.address for server in servers)
        options = tw.ChannelOptions(timeout=TIMEOUT, balancer=self.balancer)
        with (
            tw.Channel(url, options=options) as channel,
            ThreadPoolExecutor(THREADS + 3) as pool,
        ):
            work = [pool.submit(self._blocking, channel, i) for i in range(THREADS)]
            work.append(pool.submit(self._futures, channel))
            work.append(pool.submit(asyncio.run, self._tasks(url, options)))
            work.append(pool.submit(self._kill_and_start, servers[1]))
            try:
                self._watch(work)
            finally:
                self.over.set()
            for one in work:
                one.result(60)

    def _watch(self, work: list["Future[Any]"]) -> None:
        """Tells how it goes until the time is over or something broke."""
        begin = shown = time.monotonic()
        every = 1.0 if sys.stdout.isatty() else 10.0
        while (now := time.monotonic()) < begin + self.seconds:
            if any(one.done() for one in work):
                return
            if now - shown >= every:
                shown = now
                self.audit.settle()
                ends = ", ".join(f"{n} {c}" for n, c in self.audit.errors().items())
                line = f"{now - begin:5.0f} of {self.seconds:.0f} s  {self.kills} kills"
                end = "\r" if sys.stdout.isatty() else "\n"
                print(f"{line}  {ends}", end=end, flush=True)
            time.sleep(0.05)

    def _ran(self, servers: list[EchoProcess]) -> bytearray:
        """How often each call was run."""
        ran = bytearray(self.audit.issued)
        for server in servers:
            with server.journal.open() as journal:
                for line in journal:
                    ran[int(line)] += 1
        return ran

    # ---- judging

    def _failures(self) -> list[str]:
        errors = self.audit.errors()
        print(
            f"{errors['ok']} succeeded, {errors['ERPCTIMEDOUT']} ran out of time,"
            f" {len(self.failed)} failed otherwise"
        )
        if len(self.failed) > WRONG * self.audit.completed:
            return [f"{len(self.failed)} calls failed", *self.failed[:20]]
        return []

    def _twice(self, ran: bytearray) -> list[str]:
        """A call is run once for each time that it was tried, at most."""
        found = []
        for number, tries in enumerate(self.tries):
            if tries and not 1 <= ran[number] <= tries:
                found.append(f"call {number}: {tries} tries, run {ran[number]} times")
        return found[:20]

    def _shares(self) -> list[str]:
        """What the balancer promises, with what chance may do to it."""
        slow, killed, leaving = (self._seen[address].attempts for address in self._seen)
        found = []
        for phase in (UP, DOWN):
            others = [leaving]
            if self.balancer == "rr" and phase == UP:
                # By speed it gets little when it has just begun.
                others.append(killed)
            for other in others:
                mine, its = slow[phase], other[phase]
                if mine + its < ENOUGH:
                    continue
                # Four deviations of a sum that chance splits in halves.
                chance = 4 * (mine + its) ** 0.5
                if self.balancer == "rr":
                    # A retry passes over the turn of a server that it has tried.
                    fair = abs(mine - its) <= chance + LEAVING * max(mine, its)
                else:
                    fair = its - mine > chance
                if not fair:
                    found.append(f"{phase}: {mine} attempts on the slow one, {its}")
        return found

    def table(self) -> str:
        """What each server got, and gave."""
        names = sorted({end for seen in self._seen.values() for end in seen.ends})
        lines = ["".join(f"{head:>14}" for head in ("", *NAMES))]

        def add(what: str, values: list[str]) -> None:
            lines.append("".join(f"{cell:>14}" for cell in (what, *values)))

        every = list(self._seen.values())
        for phase in (UP, DOWN):
            counts = [seen.attempts[phase] for seen in every]
            whole = sum(counts) or 1
            add(phase, [f"{count} {count / whole:6.1%}" for count in counts])
        add("median", [f"{_median_ms(seen.took):.2f} ms" for seen in every])
        for name in names:
            add(name, [str(seen.ends[name]) for seen in every])
        return "\n".join(lines)


class Call:
    """One of them; entered while it is made, or end() is called."""

    def __init__(self, drill: Drill, timeout: float) -> None:
        self._drill = drill
        self.phase = drill._phase
        self.timeout = timeout
        self.number = drill.audit.issue(timeout)
        self.request = echo_pb2.EchoRequest(message=str(self.number))
        self.how: dict[str, Any] = {"timeout": timeout, "request_id": f"{self.number}"}
        self.reply: Any = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        self.end(self.reply if error is None else error)
        return isinstance(error, tw.RpcError)

    def end(self, end: Any) -> None:
        """end: a Response or what was raised."""
        if isinstance(end, tw.Response):
            if end.message.message != str(self.number):
                self._drill.wrong.append(f"call {self.number} got {end.message}")
            # Over several attempts it is not the core's.
            elapsed = end.elapsed if end.attempts == 1 else None
            self._drill.audit.complete(self.number, None, elapsed)
            self._drill.ended(self, end, end.past)
        elif isinstance(end, tw.RpcError):
            past = end.past
            elapsed = sum(one.elapsed for one in past)
            self._drill.audit.complete(self.number, end, elapsed)
            self._drill.ended(self, end, past)
        else:
            self._drill.audit.complete(self.number, end)


def _median_ms(took: deque[float]) -> float:
    return statistics.median(took) * 1000 if took else 0.0


def _name(number: int) -> str:
    try:
        return tw.Errno(number).name
    except ValueError:
        return str(number)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--balancer", choices=("rr", "la"), default="rr")
    parser.add_argument("--seed", type=int, default=0, help="0: a fresh one")
    how = parser.parse_args(arguments)
    seed = how.seed or random.SystemRandom().randrange(1, 2**32)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="tidewire-drill-") as where:
        drill = Drill(how.minutes * 60, how.balancer, seed, Path(where))
        found = drill.run()
    print(drill.audit.report())
    print(drill.table())
    print(f"{drill.kills} kills; {how.balancer}; seed {seed}")
    for line in found:
        print(f"VIOLATION: {line}")
    print("FAILED" if found else "all promises kept")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
