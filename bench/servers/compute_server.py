"""The contender of rows 8 and 9: handlers that compute or sleep.

    python compute_server.py THREADS [--dressed]

Prints `listening on 127.0.0.1:PORT` and serves until it is ended by a signal.
"""

import hashlib
import signal
import sys
import time

import tidewire as tw
from bench_stubs import work_pb2, work_tw
from dress import dress

SHORT_NS = 200_000
TRIAL_ITERATIONS = 20_000
TRIALS = 5


def burn(ns: int) -> None:
    """Use `ns` of this thread's CPU time in Python code.

    CPU time, not the wall: the work stays the same while threads wait for
    each other.
    """
    until = time.thread_time_ns() + ns
    n = 0
    while time.thread_time_ns() < until:
        for _ in range(20):
            n = (n * 31 + 7) & 0xFFFF


def derive(iterations: int) -> None:
    """One C call that computes without the GIL."""
    hashlib.pbkdf2_hmac("sha256", b"secret", b"salt", iterations)


def iterations_per_ms() -> float:
    """How much derive() does in a millisecond; the best trial, noise only slows."""
    best = float("inf")
    for _ in range(TRIALS):
        start = time.perf_counter()
        derive(TRIAL_ITERATIONS)
        best = min(best, time.perf_counter() - start)
    return TRIAL_ITERATIONS / (best * 1000)


class Work(work_tw.WorkService):
    def __init__(self, per_ms: float) -> None:
        self.per_ms = per_ms

    def fast(self, request: work_pb2.Work, ctx: tw.Context) -> work_pb2.Done:
        return work_pb2.Done(message=request.message)

    def short(self, request: work_pb2.Work, ctx: tw.Context) -> work_pb2.Done:
        burn(SHORT_NS)
        return work_pb2.Done(message=request.message)

    def spin(self, request: work_pb2.Work, ctx: tw.Context) -> work_pb2.Done:
        burn(request.millis * 1_000_000)
        return work_pb2.Done(message=request.message)

    def native(self, request: work_pb2.Work, ctx: tw.Context) -> work_pb2.Done:
        derive(max(1, round(request.millis * self.per_ms)))
        return work_pb2.Done(message=request.message)

    def sleep(self, request: work_pb2.Work, ctx: tw.Context) -> work_pb2.Done:
        time.sleep(request.millis / 1000)
        return work_pb2.Done(message=request.message)


def main() -> None:
    names = ("Fast", "Short", "Spin", "Native", "Sleep")
    dressed = dress(f"bench.WorkService/{name}" for name in names)
    options = tw.ServerOptions(
        threads=int(sys.argv[1]),
        admin="127.0.0.1:0",
        **dressed if "--dressed" in sys.argv[2:] else {},
    )
    service = Work(iterations_per_ms())
    with tw.Server([service], listen="127.0.0.1:0", options=options) as server:
        signal.signal(signal.SIGTERM, lambda *_: server.stop())
        print(f"listening on {server.address}", flush=True)
        server.wait()


if __name__ == "__main__":
    main()
