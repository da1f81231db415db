"""Overload: many times more calls than the server can do.

    python bench/overload.py [--seconds 60] [--times 5] [--limit auto] [--compute]

Measures what the server can do, with a closed loop of two calls for each of its
workers, then asks for so many times that at an even rate, whatever comes back.
Prints both, what was served and how quickly the others were refused.  Exit
status 1 when less than 80 % of the first was served, or when of the refusals
less than 99 % came within 5 ms.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import process, tools

THREADS = 8
WORK = 0.01
"""Seconds that a handler takes."""
CONNECTIONS = 8
DEPTH = 1024
GOODPUT = 0.8
REFUSED_WITHIN_US = 5000
ELIMIT = 2004
CALIBRATION = 3.0
"""Seconds of the closed loop; a run that is shorter shortens it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Rates in calls/s, times in microseconds."""

    capacity: float
    offered: float
    goodput: float
    served_p99: float
    refusals: int
    refused_p50: float
    refused_p99: float
    refused_max: float
    sent: int
    late: int
    """Calls that the generator itself sent over 1 ms too late."""

    def __str__(self) -> str:
        return (
            f"capacity {self.capacity:,.0f}/s, offered {self.offered:,.0f}/s\n"
            f"goodput {self.goodput:,.0f}/s, {self.goodput / self.capacity:.0%} of the"
            f" capacity; p99 {self.served_p99 / 1000:.1f} ms\n"
            f"{self.refusals:,} refusals: p50 {self.refused_p50 / 1000:.2f} ms,"
            f" p99 {self.refused_p99 / 1000:.2f} ms,"
            f" max {self.refused_max / 1000:.2f} ms\n"
            f"of {self.sent:,} calls {self.late:,} were sent over 1 ms late"
        )


def main() -> int:
    arguments = _parse()
    if arguments.serve:
        _serve(arguments.limit, arguments.compute)
        return 0
    outcome = measure(
        arguments.seconds, arguments.times, arguments.limit, arguments.compute
    )
    print(outcome)
    good = (
        outcome.goodput >= GOODPUT * outcome.capacity
        and outcome.refused_p99 <= REFUSED_WITHIN_US
    )
    print("reached" if good else "missed")
    return 0 if good else 1


def measure(seconds: float, times: float, limit: str, compute: bool) -> Outcome:
    """One server without a limit for the capacity, one with it for the rest."""
    with tempfile.TemporaryDirectory(prefix="tidewire-overload-") as work:
        built = tools.build(Path(work))
        calibration = min(CALIBRATION, seconds)
        with _server("0", compute) as server:
            shape = (THREADS, 2)
            capacity = _load(built, server.port, shape, calibration)["qps"]
        with _server(limit, compute) as server:
            offered = times * capacity
            said = _load(
                built,
                server.port,
                (CONNECTIONS, DEPTH),
                seconds,
                rate=f"{offered:.3f}",
                refusal_code=ELIMIT,
            )
    refused = said["refused"]
    return Outcome(
        capacity=capacity,
        offered=offered,
        goodput=said["qps"],
        served_p99=said["p99_us"],
        refusals=refused["calls"],
        refused_p50=refused["p50_us"],
        refused_p99=refused["p99_us"],
        refused_max=refused["max_us"],
        sent=said["sent"],
        late=said["late"],
    )


def _server(limit: str, compute: bool) -> Any:
    options = ["--serve", f"--limit={limit}", *(["--compute"] if compute else [])]
    return process.server([sys.executable, __file__, *options])


def _load(
    built: tools.Tools,
    port: int,
    shape: tuple[int, int],
    seconds: float,
    **options: Any,
) -> dict[str, Any]:
    options |= {
        "warmup": min(1.0, seconds),
        "service": "bench.Overload",
        "method": "Work",
    }
    argv = tools.load_command(built, port, shape, seconds, **options)
    said: dict[str, Any] = json.loads(process.run(argv, timeout=seconds + 30.0))
    return said


def _serve(limit: str, compute: bool) -> None:
    import tidewire as tw

    class Overload(tw.Service):
        __tidewire_service__ = "bench.Overload"
        __tidewire_methods__ = {  # noqa: RUF012
            "work": tw.MethodInfo(
                service="bench.Overload", name="Work", request=bytes, response=bytes
            )
        }

        def work(self, request: bytes, ctx: tw.Context) -> bytes:
            if compute:
                end = time.thread_time() + WORK / THREADS
                while time.thread_time() < end:
                    pass
            else:
                time.sleep(WORK)
            return request

    of_work = tw.MethodOptions()
    if limit != "0":
        of_work = tw.MethodOptions(
            max_concurrency="auto" if limit == "auto" else int(limit)
        )
    options = tw.ServerOptions(
        threads=THREADS, methods={"bench.Overload/Work": of_work}
    )
    server = tw.Server([Overload()], listen="127.0.0.1:0", options=options)
    with server:
        print(f"listening on {server.address}", flush=True)
        server.wait()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Five times more than it can do.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--times", type=float, default=5.0)
    parser.add_argument("--limit", default="auto", help='"auto", a number, 0: none')
    parser.add_argument("--compute", action="store_true", help="handlers compute")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
