"""Workers that are replaced and killed under the load of idempotent calls: the
channel's own retries leave nothing of it to the callers.

TW_LONG=1 makes it 100 restarts of each kind instead of 4; TW_SEED repeats a run.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import tidewire as tw
from generated import echo_pb2
from harness import eventually
from tools.workers import PATIENCE, Workers

LONG = bool(os.environ.get("TW_LONG"))
RESTARTS = 100 if LONG else 4
# In the long form a worker lives long enough not to be taken for one that keeps
# dying, whose restart is delayed.
CALLS_BETWEEN = (2000, 4000) if LONG else (50, 200)
SEED = int(os.environ.get("TW_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
THREADS, TASKS = 6, 6
OPTIONS = tw.ChannelOptions(timeout=PATIENCE, connect_timeout=PATIENCE)
ECHO = tw.MethodInfo(
    service="example.EchoService",
    name="Echo",
    request=echo_pb2.EchoRequest,
    response=echo_pb2.EchoResponse,
    idempotency=tw.Idempotency.IDEMPOTENT,
)


class Load:
    """Callers that take every failure for one."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.over = threading.Event()
        self._lock = threading.Lock()
        self.answered = 0
        self.attempts: Counter[str] = Counter()
        """Of each call that was tried more than once."""
        self.failed: list[str] = []

    def _note(self, name: str, reply: tw.Response[echo_pb2.EchoResponse]) -> None:
        assert reply.message.message.endswith(f" {name}")
        with self._lock:
            self.answered += 1
            if reply.attempts > 1:
                self.attempts[name] = reply.attempts

    def _fail(self, name: str, error: tw.RpcError) -> None:
        with self._lock:
            self.failed.append(f"{name}: {error!r}, {error.past}")

    def blocking(self, who: int) -> None:
        with tw.Channel(self.address, options=OPTIONS) as channel:
            method = channel.unary(ECHO)
            count = 0
            while not self.over.is_set():
                name = f"thread{who}-{(count := count + 1)}"
                request = echo_pb2.EchoRequest(message=name)
                try:
                    self._note(name, method.call(request, request_id=name))
                except tw.RpcError as error:
                    self._fail(name, error)

    async def tasks(self) -> None:
        """Over a connection of their own."""
        async with tw.AsyncChannel(self.address, options=OPTIONS) as channel:
            method = channel.unary(ECHO)

            async def caller(who: int) -> None:
                count = 0
                while not self.over.is_set():
                    name = f"task{who}-{(count := count + 1)}"
                    request = echo_pb2.EchoRequest(message=name)
                    try:
                        self._note(name, await method.call(request, request_id=name))
                    except tw.RpcError as error:
                        self._fail(name, error)

            await asyncio.gather(*(caller(who) for who in range(TASKS)))

    def until_more(self, calls: int) -> None:
        goal = self.answered + calls
        eventually(lambda: self.answered >= goal, "the load goes on", within=PATIENCE)


@pytest.mark.parametrize("how", ["reload", "kill"])
def test_restarts_fail_no_idempotent_call(tmp_path, how):
    """P6, P7: by SIGHUP and by SIGKILL."""
    print(f"TW_SEED={SEED}")
    rng = random.Random(SEED)
    with Workers(tmp_path) as server, ThreadPoolExecutor(THREADS + 1) as pool:
        load = Load(server.address)
        began = time.monotonic()
        callers = [pool.submit(load.blocking, who) for who in range(THREADS)]
        callers.append(pool.submit(asyncio.run, load.tasks()))
        restarted = reloads = 0
        try:
            while restarted < RESTARTS:
                load.until_more(rng.randrange(*CALLS_BETWEEN))
                if how == "reload":
                    server.process.send_signal(signal.SIGHUP)
                    reloads += 1
                    server.until("reload done", reloads)
                    restarted += 2
                else:
                    os.kill(server.pids()[0], signal.SIGKILL)  # the oldest
                    restarted += 1
                    server.until("is ready", 2 + restarted)
                if LONG:
                    print(f"{restarted} restarts, {load.answered} answered", flush=True)
        finally:
            load.over.set()
        for caller in callers:
            caller.result(PATIENCE)
        took = time.monotonic() - began
        print(
            f"{restarted} restarts, {load.answered} calls,"
            f" {load.answered / took:.0f}/s, {len(load.failed)} failed,"
            f" tries {dict(Counter(load.attempts.values()))}"
        )
        assert load.failed == []
        # One is run once for each time that it was tried, at most.
        ran = server.ran()
        assert {n: c for n, c in ran.items() if c > load.attempts.get(n, 1)} == {}
        assert len(ran) == load.answered
        if how == "reload":
            assert max(ran.values()) == 1
        assert server.stop() == 0
