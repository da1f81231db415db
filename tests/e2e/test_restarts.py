"""Two servers restarted in turn under load: no call is lost or doubled, every
failure says truly how far it got, connections come back by themselves.

TW_LONG=1 makes it 100 restarts instead of 6; TW_SEED repeats a run.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import SLOW, TRUE_ENDS, counter, eventually
from tools.audit import Audit
from tools.echoed import EchoProcess
from tools.stalls import StallMonitor

RESTARTS = 100 if os.environ.get("TW_LONG") else 6
SEED = int(os.environ.get("TW_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
CALLERS = 8
TIMEOUT = 5.0 * SLOW
# With checks no call connects: a connection that comes back does so by itself.
OPTIONS = tw.ChannelOptions(
    timeout=TIMEOUT,
    connect_timeout=2.0,
    health_check=tw.HealthCheck(interval=0.3),
)


class Attempt:
    """One of a call, at one of the servers; entered while it is made."""

    def __init__(self, load: Load, name: str, at: int) -> None:
        self._load = load
        self.name = name
        self.at = at
        self.request = echo_pb2.EchoRequest(message=name)
        self.reply: Any = None
        self.repeat = False
        """At the other server."""

    def __enter__(self) -> None:
        self._ticket = self._load.audit.issue(TIMEOUT)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if isinstance(error, tw.RpcError):
            self._load.audit.complete(self._ticket, error)
            self.repeat = self._load.note(self.name, error)
            return True
        if error is None:
            self._load.audit.complete(self._ticket, None, self.reply.elapsed)
            assert self.reply.message.message == self.name
            self._load.note(self.name, None)
        return False


class Load:
    """Callers that move a failed call to the other server, if that cannot run it
    twice."""

    def __init__(self, audit: Audit) -> None:
        self.audit = audit
        self.over = threading.Event()
        self._lock = threading.Lock()
        self.succeeded: set[str] = set()
        self.uncertain: set[str] = set()
        """Failed where it may have been run: not repeated."""
        self.unsent: Counter[str] = Counter()
        """Attempts of which nothing was sent."""
        self.odd: list[str] = []

    def note(self, name: str, error: tw.RpcError | None) -> bool:
        """Whether the attempt is to be repeated elsewhere."""
        with self._lock:
            if error is None:
                self.succeeded.add(name)
                return False
            end = error.phase.name, error.sent.name
            if not isinstance(error, tw.Unavailable) or end not in TRUE_ENDS:
                self.odd.append(f"{name}: {error!r} {end}")
            # A server that stops refuses before it runs anything.
            refused = error.phase is tw.Phase.PEER
            if error.sent is tw.Sent.NONE or refused:
                self.unsent[name] += 1
                return True
            self.uncertain.add(name)
            return False

    def attempts(self, who: object) -> Iterator[Attempt]:
        """Of a caller's calls, one after the other until it is over."""
        count = 0
        while not self.over.is_set():
            attempt = Attempt(self, f"{who}-{count}", count := count + 1)
            yield attempt
            while attempt.repeat:
                attempt = Attempt(self, attempt.name, attempt.at + 1)
                yield attempt

    def blocking(self, clients, who: int) -> None:
        for attempt in self.attempts(who):
            with attempt:
                attempt.reply = clients[attempt.at % 2].echo.call(
                    attempt.request, request_id=attempt.name
                )

    async def tasks(self, addresses, width: int) -> None:
        channels = [tw.AsyncChannel(a, options=OPTIONS) for a in addresses]
        clients = [echo_tw.AsyncEchoClient(c) for c in channels]

        async def caller(who: str) -> None:
            for attempt in self.attempts(who):
                with attempt:
                    attempt.reply = await clients[attempt.at % 2].echo.call(
                        attempt.request, request_id=attempt.name
                    )

        try:
            await asyncio.gather(*(caller(f"async{i}") for i in range(width)))
        finally:
            for channel in channels:
                await channel.aclose()


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_restarts_lose_and_double_no_call(tmp_path, how):
    """L1, C8: by SIGKILL and by a graceful stop."""
    print(f"TW_SEED={SEED}")
    checks = counter("tidewire_healthcheck")
    rng = random.Random(SEED)
    servers = [EchoProcess(tmp_path / f"journal{i}", k) for i, k in enumerate(KINDS)]
    monitor = StallMonitor(outside=True)
    audit = Audit(monitor)
    load = Load(audit)
    with monitor, servers[0], servers[1]:
        addresses = [server.address for server in servers]
        channels = [tw.Channel(a, options=OPTIONS) for a in addresses]
        clients = [echo_tw.EchoClient(channel) for channel in channels]
        with ThreadPoolExecutor(CALLERS) as pool:
            callers = [
                pool.submit(load.blocking, clients, who) for who in range(CALLERS - 1)
            ]
            callers.append(pool.submit(asyncio.run, load.tasks(addresses, CALLERS)))
            try:
                for i in range(RESTARTS):
                    server = servers[i % 2]
                    # The other is in use, and so is this one again.
                    ready = len(load.succeeded) + rng.randrange(50, 200)
                    eventually(
                        lambda ready=ready: len(load.succeeded) >= ready, within=30
                    )
                    if how == "kill":
                        server.kill()
                    else:
                        assert server.stop() == 0
                    server.start()
                    reached = len(server.ran())
                    eventually(
                        lambda server=server, reached=reached: (
                            len(server.ran()) > reached
                        ),
                        "it is used again",
                        within=30,
                    )
            finally:
                load.over.set()
            for caller in callers:
                caller.result(60)
        for channel in channels:
            channel.close()
        ran = servers[0].ran() + servers[1].ran()
    checks = counter("tidewire_healthcheck") - checks
    print(audit.report())
    print(f"{RESTARTS} restarts, {checks} health checks")
    assert audit.violations() == []
    # Each restart lost the connections of two channels, and each came back.
    assert checks >= 2 * RESTARTS
    assert load.odd == []
    # No call lost: each came to a success or to an end that may have run.
    names = load.succeeded | load.uncertain
    assert not load.succeeded & load.uncertain
    assert load.succeeded <= ran.keys()
    assert {n: c for n, c in ran.items() if c > 1} == {}
    assert ran.keys() <= names
    if how == "stop":
        # What was run was answered; what was refused late was not run.
        assert load.uncertain & ran.keys() == set()


KINDS = ("def", "async")
