"""What choosing a node costs.

    python bench/balance.py [--nodes 1000] [--rounds 9] [--picks 20000]

Prints a Markdown table: for each balancer nanoseconds of one pick with all nodes
usable and with a tenth of them down, of telling it how a call ended, and
milliseconds of its first update and of one that takes a node away.  Medians of
the rounds, one thread; an attempt costs a pick and an end.  Progress goes to
standard error.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tidewire.balance import Balancer, make
from tidewire.node import Node

SPECS = (
    "rr",
    "random",
    "wrr",
    "wr",
    "la",
    "p2c",
    "p2c:choices=4",
    "c_murmurhash",
    "c_md5",
    "c_ketama",
)
IN_FLIGHT = 100
LATENCY_US = 1000
SEED = 1


@dataclass(frozen=True, slots=True)
class Cost:
    """Nanoseconds."""

    pick: float
    ended: float


def main() -> None:
    arguments = _parse()
    nodes = [
        Node(address=f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}:8000", tag=str(1 + i % 7))
        for i in range(arguments.nodes)
    ]
    print(f"{len(nodes)} nodes, {arguments.rounds} rounds of {arguments.picks} picks\n")
    print("| balancer | pick ns | 10 % down ns | ended ns | update ms | again ms |")
    print("| --- | --: | --: | --: | --: | --: |", flush=True)
    for spec in SPECS:
        print(_row(spec, nodes, arguments.rounds, arguments.picks), flush=True)


def _row(spec: str, nodes: list[Node], rounds: int, picks: int) -> str:
    down = set(Random(SEED).sample(nodes, len(nodes) // 10))
    balancer = make(spec, rng=Random(SEED))
    first = _update_ms(balancer, nodes)
    again = []
    costs, degraded = [], []
    for i in range(rounds):
        print(f"{spec}: round {i + 1} of {rounds}", file=sys.stderr)
        without = nodes[:i] + nodes[i + 1 :]
        again.append(_update_ms(balancer, without))
        costs.append(_measure(balancer, picks, lambda node: True))
        degraded.append(_measure(balancer, picks, lambda node: node not in down))
    figures = (
        statistics.median(cost.pick for cost in costs),
        statistics.median(cost.pick for cost in degraded),
        statistics.median(cost.ended for cost in costs),
    )
    whole = " | ".join(f"{figure:,.0f}" for figure in figures)
    return f"| {spec} | {whole} | {first:.1f} | {statistics.median(again):.1f} |"


def _measure(balancer: Balancer, picks: int, usable: Callable[[Node], bool]) -> Cost:
    rng = Random(SEED)
    picking = ending = now_us = done = 0
    while done < picks:
        keys = [rng.getrandbits(32) for _ in range(IN_FLIGHT)]
        begin = time.perf_counter_ns()
        held = [
            balancer.pick(key=key, excluded=(), usable=usable, now_us=now_us)
            for key in keys
        ]
        middle = time.perf_counter_ns()
        for node in held:
            assert node is not None
            balancer.ended(
                node,
                began_us=now_us,
                ended_us=now_us + LATENCY_US,
                failed=False,
                retried=0,
                max_retry=3,
                timeout_us=500_000,
            )
        ending += time.perf_counter_ns() - middle
        picking += middle - begin
        now_us += LATENCY_US
        done += IN_FLIGHT
    return Cost(pick=picking / done, ended=ending / done)


def _update_ms(balancer: Balancer, nodes: list[Node]) -> float:
    begin = time.perf_counter_ns()
    balancer.update(nodes)
    return (time.perf_counter_ns() - begin) / 1e6


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What choosing a node costs.")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--picks", type=int, default=20_000, help="of each round")
    return parser.parse_args()


if __name__ == "__main__":
    main()
