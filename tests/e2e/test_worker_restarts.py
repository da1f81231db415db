"""Workers that are replaced and killed under load: a replacement costs no call,
a kill only those in flight, and the totals say exactly what was done.

TW_LONG=1 makes it 100 restarts of each kind instead of 4; TW_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import TRUE_ENDS, eventually
from tools.workers import PATIENCE, Workers, total

LONG = bool(os.environ.get("TW_LONG"))
RESTARTS = 100 if LONG else 4
# Calls between two of them.  In the long form a worker lives long enough not to
# be taken for one that keeps dying, whose restart is delayed.
CALLS_BETWEEN = (2000, 4000) if LONG else (50, 200)
SEED = int(os.environ.get("TW_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
CALLERS = 8
OPTIONS = tw.ChannelOptions(timeout=PATIENCE, connect_timeout=PATIENCE)
CALLS = "tidewire_server_calls_total"


class Load:
    """Callers over connections of their own, which repeat a call that failed
    until it succeeds."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.over = threading.Event()
        self._lock = threading.Lock()
        self.answered = 0
        self.attempts = 0
        self.uncertain: list[str] = []
        """Attempts of which all bytes were sent and no answer came."""
        self.refused = 0
        self.odd: list[str] = []

    def _note(self, name: str, error: tw.RpcError | None) -> None:
        with self._lock:
            if error is None:
                self.answered += 1
                return
            end = error.phase.name, error.sent.name
            if not isinstance(error, tw.Unavailable) or end not in TRUE_ENDS:
                self.odd.append(f"{name}: {error!r} {end}")
            if error.phase is tw.Phase.PEER:
                self.refused += 1
            elif error.sent is not tw.Sent.NONE:
                self.uncertain.append(name)

    def _attempt(self, client: echo_tw.EchoClient, name: str) -> bool:
        with self._lock:
            self.attempts += 1
        try:
            request = echo_pb2.EchoRequest(message=name)
            reply = client.echo.call(request, request_id=name)
        except tw.RpcError as error:
            self._note(name, error)
            return False
        assert reply.message.message.endswith(f" {name}")
        self._note(name, None)
        return True

    def caller(self, who: int) -> None:
        with tw.Channel(self.address, options=OPTIONS) as channel:
            client = echo_tw.EchoClient(channel)
            count = 0
            while not self.over.is_set():
                count += 1
                again = 0
                while not self._attempt(client, f"{who}-{count}-{again}"):
                    again += 1

    def until_more(self, calls: int) -> None:
        goal = self.answered + calls
        eventually(lambda: self.answered >= goal, "the load goes on", within=PATIENCE)


@pytest.mark.parametrize("how", ["reload", "kill"])
def test_p6_p7_restarts_under_load_lose_no_call(tmp_path, how):
    """P6, P7: by SIGHUP and by SIGKILL.  The short form of 100 restarts."""
    print(f"TW_SEED={SEED}")
    rng = random.Random(SEED)
    with Workers(tmp_path) as server, ThreadPoolExecutor(CALLERS) as pool:
        load = Load(server.address)
        began = time.monotonic()
        callers = [pool.submit(load.caller, who) for who in range(CALLERS)]
        restarted = scraped = 0
        reloads = 0
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
                # No total ever falls, and none is more than was sent.
                answered = load.answered
                before, scraped = scraped, total(server.samples(), CALLS)
                assert scraped >= max(before, answered)
                assert scraped <= load.attempts
        finally:
            load.over.set()
        for caller in callers:
            caller.result(PATIENCE)
        took = time.monotonic() - began
        ran = server.ran()
        scraped = total(server.samples(), CALLS)
        print(
            f"{restarted} restarts, {load.answered / took:.0f} calls/s,"
            f" {load.refused} refused, {len(load.uncertain)} uncertain"
        )
        assert load.odd == []
        # Every call came to its success (a caller ends after one); an attempt
        # is run once at most, and what was answered was run.
        assert {name: n for name, n in ran.items() if n > 1} == {}
        uncertain = set(load.uncertain)
        if how == "reload":
            # None was lost or refused.
            assert (load.refused, uncertain) == (0, set())
            assert load.attempts == load.answered == len(ran)
            assert scraped == load.answered
        else:
            # Only what was in flight at a kill: one call of each caller, and one
            # more where it came back to the listener that was just going.
            assert load.refused == 0
            assert len(uncertain) <= 2 * restarted * CALLERS
            assert load.answered <= len(ran) <= load.answered + len(uncertain)
            assert load.answered <= scraped <= len(ran)
        assert server.stop() == 0


def test_scraped_is_what_was_sent_after_a_drain(tmp_path):
    """Two workers under load: the sums agree to the call."""
    with Workers(tmp_path) as server:
        load = Load(server.address)
        with ThreadPoolExecutor(CALLERS) as pool:
            callers = [pool.submit(load.caller, who) for who in range(CALLERS)]
            load.until_more(2000)
            load.over.set()
            for caller in callers:
                caller.result(PATIENCE)
        assert total(server.samples(), CALLS) == load.attempts == load.answered
        by_worker = server.samples("/metrics?workers=1")
        assert total(by_worker, CALLS) == load.attempts
        assert server.stop() == 0
