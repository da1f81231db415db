"""Accounting: many calls through every face at once, with deadlines, cancels,
errors and connections that break; each ends once, and all books agree.

TW_CALLS sets how many (1000000: some minutes), TW_SEED repeats a run.
"""

import asyncio
import faulthandler
import os
import random
import socket
import sys
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tidewire as tw
from generated import echo_pb2
from tidewire import metrics

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "interop"))

import wire
from bed import (
    CLIENTS,
    LONG,
    RawServer,
    balanced,
    counted,
    counter,
    face,
    wait_until,
)
from tools.audit import Audit
from tools.stalls import StallMonitor

CALLS = int(os.environ.get("TW_CALLS", "20000"))
SEED = int(os.environ.get("TW_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
CALLERS = {"blocking": 24, "future": 20, "asyncio": 20}

OK, CANCELLED, NOT_ENDED = 0, -1000, -1001
INFO: Any = tw.MethodInfo(
    service="accounting.EchoService",
    name="Echo",
    request=echo_pb2.EchoRequest,
    response=echo_pb2.EchoResponse,
)
"""A method of its own, so that its counters are of these calls only: a method
counts 15 codes apart, other tests may have used them up."""
CLOSE = 2005
"""The handler asks to close the connection; all its calls fail."""


class Journal:
    """What was issued, executed and ended, by nonce.  All of it is allocated at
    once, so that the memory's growth during the run is not ours."""

    def __init__(self, calls: int) -> None:
        self.calls = calls
        self.ended = bytearray(calls)
        """How often each call ended."""
        self.outcome = array("i", [NOT_ENDED]) * calls
        """OK, CANCELLED or the error number."""
        self.sent = bytearray(calls)
        self.executed = bytearray(calls)
        """How often each call was run."""
        self.answered = array("i", [NOT_ENDED]) * calls
        """What its handler answered with."""
        self.wrong: list[str] = []
        """Answers that were not the call's."""
        self._lock = threading.Lock()

    def executes(self, nonce: int, code: int) -> None:
        with self._lock:
            self.executed[nonce] += 1
            self.answered[nonce] = code

    def ends(self, nonce: int, outcome: int, sent: int = 2) -> None:
        with self._lock:
            self.ended[nonce] += 1
            self.outcome[nonce] = outcome
            self.sent[nonce] = sent

    def count(self, values: "array[int]") -> Counter[int]:
        return Counter(values)


@dataclass
class Books:
    """What the core counted meanwhile."""

    calls: int = 0
    errors: dict[int, int] = field(default_factory=dict)
    in_flight: int = 0
    latencies: int = 0
    """Observations of the client's histogram."""
    server_calls: int = 0
    server_errors: dict[int, int] = field(default_factory=dict)
    server_in_flight: int = 0
    handlers: int = 0
    """Observations of the handler's histogram."""
    expired: int = 0
    doubles: int = 0


def violations(journal: Journal, books: Books) -> list[str]:
    """Everything that does not add up; empty when all is well."""
    found = list(journal.wrong)
    for nonce in range(journal.calls):
        ended, outcome = journal.ended[nonce], journal.outcome[nonce]
        ran = journal.executed[nonce]
        if ended != 1:
            found.append(f"call {nonce} ended {ended} times")
        if ran > 1:
            found.append(f"call {nonce} was run {ran} times")
        if outcome == OK and ran != 1:
            found.append(f"call {nonce} succeeded and was run {ran} times")
        if outcome == OK and ran and journal.answered[nonce] != OK:
            found.append(f"call {nonce} succeeded where its handler failed")
        if journal.sent[nonce] == 0 and ran:
            found.append(f"call {nonce} was not sent and was run")
    found += _compared(
        "client", _tally(journal.outcome), books.calls, books.errors, journal.calls
    )
    if books.latencies != books.calls:
        found.append(f"{books.latencies} latencies of {books.calls} calls")
    ran = sum(journal.executed)
    if books.handlers != ran:
        found.append(f"{books.handlers} handlers counted, {ran} run")
    # What was not run was expired or its peer was gone.
    unrun = books.server_calls - ran
    if unrun < books.expired:
        found.append(
            f"{books.server_calls} answered, {ran} run, {books.expired} expired"
        )
    for code, times in _tally(journal.answered).items():
        if code not in (OK, NOT_ENDED) and books.server_errors.get(code, 0) != times:
            found.append(
                f"{times} handlers failed with {code}, the server counted"
                f" {books.server_errors.get(code, 0)}"
            )
    for name, value in (
        ("calls in flight at clients", books.in_flight),
        ("calls in flight at servers", books.server_in_flight),
        ("double completions", books.doubles),
    ):
        if value:
            found.append(f"{value} {name}")
    return found


def _tally(values: "array[int]") -> Counter[int]:
    return Counter(values)


def _compared(
    who: str, log: Counter[int], calls: int, errors: dict[int, int], issued: int
) -> list[str]:
    """The counters against the log.  A call that was cancelled here may have
    ended otherwise just before: the core then counted that."""
    found = []
    if calls != issued:
        found.append(f"the {who} counted {calls} calls of {issued}")
    cancelled = log[CANCELLED]
    spare = cancelled - errors.get(125, 0)
    if spare < 0:
        found.append(f"{errors[125]} cancelled of {cancelled}")
    succeeded = calls - sum(errors.values())
    counts = {OK: succeeded} | {c: n for c, n in errors.items() if c != 125}
    for code in counts.keys() | log.keys() - {CANCELLED, NOT_ENDED}:
        more = counts.get(code, 0) - log[code]
        if more < 0 or more > max(spare, 0):
            found.append(
                f"the {who} counted {counts.get(code, 0)} calls with {code}, the log"
                f" has {log[code]}"
            )
        spare -= max(more, 0)
    return found


# ---- the checker itself


def sound() -> tuple[Journal, Books]:
    """A run of ten calls in which everything is as it should be."""
    journal = Journal(10)
    for nonce in range(10):
        code = (OK, OK, OK, 7001, 1008, 1014, OK, OK, CANCELLED, CANCELLED)[nonce]
        if nonce not in (4, 9):
            journal.executes(nonce, 7001 if code == 7001 else OK)
        journal.ends(nonce, code, 0 if nonce == 4 else 2)
    books = Books(
        calls=10,
        errors={7001: 1, 1008: 1, 1014: 1, 125: 1},
        latencies=10,
        server_calls=9,
        server_errors={7001: 1, 1008: 1},
        handlers=8,
        expired=1,
    )
    return journal, books


Plant = Callable[[Journal, Books], object]

PLANTED: dict[str, Plant] = {
    "call 2 ended 2 times": lambda j, b: j.ends(2, OK),
    "call 2 ended 0 times": lambda j, b: j.ended.__setitem__(2, 0),
    "call 2 was run 2 times": lambda j, b: j.executes(2, OK),
    "call 2 succeeded and was run 0 times": lambda j, b: j.executed.__setitem__(2, 0),
    "call 3 succeeded where its handler failed": lambda j, b: j.outcome.__setitem__(
        3, OK
    ),
    "call 5 was not sent and was run": lambda j, b: j.sent.__setitem__(5, 0),
    "somebody else's answer": lambda j, b: j.wrong.append("somebody else's answer"),
    "the client counted 11 calls of 10": lambda j, b: setattr(b, "calls", 11),
    "the client counted 9 calls of 10": lambda j, b: setattr(b, "calls", 9),
    "the client counted 0 calls with 1008": lambda j, b: b.errors.pop(1008),
    "the client counted 3 calls with 1008": lambda j, b: b.errors.update({1008: 3}),
    "the client counted 2 calls with 22": lambda j, b: b.errors.update({22: 2}),
    "3 cancelled of 2": lambda j, b: b.errors.update({125: 3}),
    "9 latencies of 10 calls": lambda j, b: setattr(b, "latencies", 9),
    "7 handlers counted, 8 run": lambda j, b: setattr(b, "handlers", 7),
    "9 answered, 8 run, 2 expired": lambda j, b: setattr(b, "expired", 2),
    "1 handlers failed with 7001": lambda j, b: b.server_errors.pop(7001),
    "1 calls in flight at clients": lambda j, b: setattr(b, "in_flight", 1),
    "-1 calls in flight at servers": lambda j, b: setattr(b, "server_in_flight", -1),
    "1 double completions": lambda j, b: setattr(b, "doubles", 1),
}


def test_the_checker_accepts_what_is_sound():
    assert violations(*sound()) == []


@pytest.mark.parametrize("violation", PLANTED)
def test_the_checker_finds_what_is_planted(violation):
    journal, books = sound()
    PLANTED[violation](journal, books)
    found = violations(journal, books)
    assert any(violation in line for line in found), found


# ---- "not sent" is a promise


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_call_that_ended_while_connecting_never_leaves(kind):
    """The listener's backlog is full; the deadline passes; then it accepts."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        listener.settimeout(LONG)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        full = [stack.enter_context(socket.socket()) for _ in range(4)]
        for sock in full:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        ports = {sock.getsockname() for sock in full}
        stack.enter_context(balanced())
        client = stack.enter_context(face(kind, address))
        early = client.start("ended", timeout=0.05)
        late = client.start("waits")
        error = early.exception(LONG)
        assert isinstance(error, tw.DeadlineExceeded)
        assert error.sent is tw.Sent.NONE
        del early, error
        # Until it is our connection's turn.
        sock, peer = listener.accept()
        while peer in ports:
            sock.close()
            sock, peer = listener.accept()
        with sock:
            sock.settimeout(LONG)
            frame = wire.read_frame(sock)
            assert wire.EchoRequest.FromString(frame.message).message == "waits"
            sock.sendall(wire.answer(frame))
            late.result(LONG)


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_call_that_ended_in_the_queue_never_leaves(kind):
    """The server reads nothing; the queue behind a large call ends by deadline
    and by cancel; then the server reads."""
    large = bytes(16 << 20)
    with balanced(), RawServer() as server, face(kind, server.address) as client:
        first = client.start("large", attachment=large)
        connection = server.accept()
        wait_until(lambda: counter("tidewire_waitepollout") > 0)
        calls = [client.start(f"{i}", timeout=0.05) for i in range(20)]
        for call in calls:
            error = call.exception(LONG)
            assert isinstance(error, tw.DeadlineExceeded)
            assert error.sent is tw.Sent.NONE
            del error
        if kind == "future":
            cancelled = client.start("cancelled")
            assert cancelled.cancel()
        last = client.start("last")
        frames = wire.read_frames(connection, 2)
        texts = [wire.EchoRequest.FromString(f.message).message for f in frames]
        assert texts == ["large", "last"]
        for frame in frames:
            connection.sendall(wire.answer(frame))
        first.result(LONG)
        last.result(LONG)
        calls.clear()
        del call


# ---- the run


@dataclass(slots=True)
class Plan:
    """One call, made from its nonce and the seed alone."""

    nonce: int
    server: int
    size: int
    timeout: float
    cancel: float | None
    """Seconds after which a future or a task is cancelled."""
    request: Any
    ticket: int = -1
    """The audit's number for it."""


def plan_of(nonce: int, seed: int) -> Plan:
    rng = random.Random(nonce * 2654435761 ^ seed)
    dice = rng.random()
    if dice < 0.001:
        size = 1 << 20
    elif dice < 0.2:
        size = rng.randrange(0, 1 << 16)
    else:
        size = rng.choice((0, 0, 1, 16, 100, 1000))
    dice = rng.random()
    timeout = LONG
    if dice < 0.03:
        timeout = rng.uniform(1e-6, 1e-3)
    elif dice < 0.10:
        timeout = rng.uniform(0.001, 0.05)
    fail = sleep = 0
    dice = rng.random()
    if dice < 0.02:
        fail = rng.choice((7001, 7002, 1003, 2001))
    elif dice < 0.0205:
        fail = CLOSE
    elif dice < 0.03:
        sleep = rng.randrange(1, 4)
    cancel = rng.choice((0.0, 0.0, 0.0005, 0.005)) if rng.random() < 0.04 else None
    request = echo_pb2.EchoRequest(message=str(nonce))
    if fail:
        request.fail_code = fail
    if sleep:
        request.sleep_ms = sleep
    return Plan(nonce, rng.randrange(2), size, timeout, cancel, request)


_ZEROS = bytes(1 << 20)


def attachment_of(plan: Plan) -> Any:
    return memoryview(_ZEROS)[: plan.size] if plan.size else None


def services(journal: Journal) -> list[tw.Service]:
    def answer(request: Any, ctx: tw.Context) -> Any:
        nonce = int(request.message)
        code = request.fail_code
        journal.executes(nonce, code)
        if code:
            raise tw.RpcError("as asked", number=code)
        if ctx.attachment:
            ctx.reply_attachment = ctx.attachment
        return echo_pb2.EchoResponse(message=request.message)

    class Base(tw.Service):
        __tidewire_service__ = INFO.service
        __tidewire_methods__: ClassVar = {"echo": INFO}

    class Def(Base):
        def echo(self, request: Any, ctx: tw.Context) -> Any:
            if request.sleep_ms:
                time.sleep(request.sleep_ms / 1000)
            return answer(request, ctx)

    class Async(Base):
        async def echo(self, request: Any, ctx: tw.Context) -> Any:
            # What is counted as run is what got past this point; cancelled by
            # the peer's going it has not run.
            if request.sleep_ms:
                try:
                    await asyncio.sleep(request.sleep_ms / 1000)
                except asyncio.CancelledError:
                    journal.executes(int(request.message), NOT_ENDED)
                    raise
            return answer(request, ctx)

    return [Def(), Async()]


class Run:
    """CALLS calls by 64 callers."""

    def __init__(self, journal: Journal, audit: Audit, seed: int) -> None:
        self.journal = journal
        self.audit = audit
        self.seed = seed
        self._next = 0
        self._lock = threading.Lock()
        self._begin = time.monotonic()
        self.failures: list[BaseException] = []
        self.rss: dict[int, int] = {}

    def take(self) -> Plan | None:
        with self._lock:
            nonce = self._next
            if nonce >= self.journal.calls or self.failures:
                return None
            self._next += 1
        step = max(self.journal.calls // 10, 1)
        if nonce and nonce % step == 0:
            self.rss[nonce] = resident()
            rate = nonce / (time.monotonic() - self._begin)
            print(
                f"{nonce:>8} of {self.journal.calls}, {rate:.0f}/s,"
                f" {self.rss[nonce] / 2**20:.1f} MiB",
                flush=True,
            )
        plan = plan_of(nonce, self.seed)
        plan.ticket = self.audit.issue(plan.timeout)
        return plan

    # ---- how calls end

    def ended(self, plan: Plan, result: Any, error: BaseException | None) -> None:
        journal = self.journal
        elapsed = result.elapsed if isinstance(result, tw.Response) else None
        self.audit.complete(plan.ticket, error, elapsed)
        if isinstance(error, tw.RpcError):
            journal.ends(plan.nonce, error.number, int(error.sent))
        elif error is not None:
            journal.ends(plan.nonce, CANCELLED)
        else:
            message = result
            if isinstance(result, tw.Response):
                message = result.message
                if len(result.attachment) != plan.size:
                    journal.wrong.append(f"call {plan.nonce}: attachment differs")
            if message.message != str(plan.nonce):
                journal.wrong.append(f"call {plan.nonce} got {message.message}")
            journal.ends(plan.nonce, OK)

    # ---- callers

    def blocking(self, clients: list[Any]) -> None:
        try:
            while (plan := self.take()) is not None:
                method = clients[plan.server]
                try:
                    result = method.call(
                        plan.request,
                        timeout=plan.timeout,
                        attachment=attachment_of(plan),
                    )
                except tw.RpcError as error:
                    self.ended(plan, None, error)
                else:
                    self.ended(plan, result, None)
        except BaseException as error:
            self.failures.append(error)

    def futures(self, clients: list[Any], width: int) -> None:
        """One thread keeps `width` calls under way."""
        free = threading.Semaphore(width)

        def done(plan: Plan, future: "Future[Any]") -> None:
            try:
                if future.cancelled():
                    self.ended(plan, None, asyncio.CancelledError())
                else:
                    error = future.exception()
                    self.ended(plan, None if error else future.result(), error)
            except BaseException as error:
                self.failures.append(error)
            finally:
                free.release()

        try:
            later: list[Future[Any]] = []
            while (plan := self.take()) is not None:
                assert free.acquire(timeout=LONG)
                future = clients[plan.server].future(
                    plan.request, timeout=plan.timeout, attachment=attachment_of(plan)
                )
                future.add_done_callback(lambda f, plan=plan: done(plan, f))
                if plan.cancel == 0.0:
                    future.cancel()
                elif plan.cancel is not None:
                    later.append(future)
                while len(later) > 2:
                    later.pop(0).cancel()
            for _ in range(width):
                assert free.acquire(timeout=2 * LONG)
        except BaseException as error:
            self.failures.append(error)

    async def tasks(self, addresses: list[str], width: int) -> None:
        loop = asyncio.get_running_loop()
        channels = [tw.AsyncChannel(a, options=OPTIONS) for a in addresses]
        clients = [c.unary(INFO) for c in channels]

        async def call(plan: Plan) -> Any:
            return await clients[plan.server].call(
                plan.request, timeout=plan.timeout, attachment=attachment_of(plan)
            )

        async def caller() -> None:
            while (plan := self.take()) is not None:
                try:
                    if plan.cancel is None:
                        result = await call(plan)
                    else:
                        task = asyncio.create_task(call(plan))
                        handle = loop.call_later(plan.cancel, task.cancel)
                        try:
                            result = await task
                        finally:
                            handle.cancel()
                except (tw.RpcError, asyncio.CancelledError) as error:
                    self.ended(plan, None, error)
                else:
                    self.ended(plan, result, None)

        try:
            await asyncio.gather(*(caller() for _ in range(width)))
        finally:
            for channel in channels:
                await channel.aclose()


# One attempt for each call, so that every one is in the books.
OPTIONS = tw.ChannelOptions(timeout=LONG, connect_timeout=LONG, max_retry=0)


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def by_code(name: str) -> dict[int, int]:
    """A method's error counters, by number."""
    numbers = {code.name: int(code) for code in tw.Errno}
    snapshot = metrics.read_core()
    found: Counter[int] = Counter()
    for row in snapshot.rows:
        labels = dict(row.labels)
        if row.name == name and labels["service"] == INFO.service:
            code = labels["code"]
            found[numbers[code] if code in numbers else int(code)] += snapshot.cells[
                row.cell
            ]
    return found


def read_books() -> Books:
    ours = {"service": INFO.service}
    return Books(
        calls=counter("tidewire_client_calls", **ours),
        errors=by_code("tidewire_client_errors"),
        in_flight=counter("tidewire_client_in_flight", **ours),
        latencies=counted("tidewire_client", "latency_seconds", **ours),
        server_calls=counter("tidewire_server_calls", **ours),
        server_errors=by_code("tidewire_server_errors"),
        server_in_flight=counter("tidewire_server_in_flight", **ours),
        handlers=counted("tidewire_server", "handler_seconds", **ours),
        expired=counter("tidewire_expired_requests"),
        doubles=counter("tidewire_double_completions"),
    )


def since(before: Books, after: Books) -> Books:
    def less(a: dict[int, int], b: dict[int, int]) -> dict[int, int]:
        return {k: n for k in a if (n := a[k] - b.get(k, 0))}

    return Books(
        calls=after.calls - before.calls,
        errors=less(after.errors, before.errors),
        in_flight=after.in_flight,
        latencies=after.latencies - before.latencies,
        server_calls=after.server_calls - before.server_calls,
        server_errors=less(after.server_errors, before.server_errors),
        server_in_flight=after.server_in_flight,
        handlers=after.handlers - before.handlers,
        expired=after.expired - before.expired,
        doubles=after.doubles,
    )


def test_every_call_ends_once_and_the_books_agree():
    """L1: whatever races; and ended in the core by its deadline plus 20 ms."""
    if "TW_CALLS" in os.environ:
        faulthandler.cancel_dump_traceback_later()  # pytest's, after a minute
    print(f"\n{CALLS} calls, TW_SEED={SEED}")
    journal = Journal(CALLS)
    monitor = StallMonitor(outside=True)
    audit = Audit(monitor)
    run = Run(journal, audit, SEED)
    before = read_books()
    begin = time.monotonic()
    with monitor, balanced(), ExitStack() as stack:
        servers = [
            stack.enter_context(
                tw.Server(
                    [service],
                    listen="127.0.0.1:0",
                    options=tw.ServerOptions(threads=8),
                )
            )
            for service in services(journal)
        ]
        addresses = [server.address for server in servers]

        def clients() -> list[Any]:
            channels = [
                stack.enter_context(tw.Channel(a, options=OPTIONS)) for a in addresses
            ]
            return [channel.unary(INFO) for channel in channels]

        def loop() -> None:
            try:
                asyncio.run(run.tasks(addresses, CALLERS["asyncio"]))
            except BaseException as error:
                run.failures.append(error)

        shared = clients()
        threads = [
            threading.Thread(target=run.blocking, args=(shared,))
            for _ in range(CALLERS["blocking"])
        ]
        width = CALLERS["future"]
        threads.append(threading.Thread(target=run.futures, args=(clients(), width)))
        threads.append(threading.Thread(target=loop))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - begin
        assert not run.failures, run.failures
        wait_until(lambda: all(server.in_flight == 0 for server in servers))
        del shared
    books = since(before, read_books())
    found = violations(journal, books)
    found += audit.violations()
    log = dict(sorted(_tally(journal.outcome).items()))
    print(
        f"{CALLS} calls in {took:.1f} s, {CALLS / took:.0f}/s; outcomes {log}"
        f" ({CANCELLED}: cancelled); {sum(journal.executed)} run;"
        f" not sent {journal.sent.count(0)}\n{audit.report()}"
    )
    assert found == [], f"TW_SEED={SEED}: {found[:20]}"
    assert log[OK] > 0.8 * CALLS
    if CALLS >= 1_000_000:
        growth = max(run.rss.values()) - run.rss[CALLS // 10]
        print(f"memory after the first tenth: {growth / 2**20:+.2f} MiB at most")
