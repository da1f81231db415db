"""Many threads pick while the list changes."""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from random import Random

import pytest
from balance_lab import SPECS, end, made, nodes_of, pick
from tidewire.balance import Balancer
from tidewire.node import Node

THREADS = 6
ROUNDS = 600


@pytest.fixture(autouse=True)
def often() -> Iterator[None]:
    """Threads change places in the middle of everything."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(*works: Callable[[], None]) -> None:
    errors: list[BaseException] = []
    start = threading.Barrier(len(works))

    def run(work: Callable[[], None]) -> None:
        start.wait()
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("spec", [*SPECS, "p2c:choices=20"])
def test_picks_go_on_while_the_list_changes(spec: str) -> None:
    pool = nodes_of(12)
    balancer = made(spec, pool)
    down = set(pool[3:5])

    def picker(seed: int) -> Callable[[], None]:
        rng = Random(seed)

        def work() -> None:
            for i in range(ROUNDS):
                usable = down.isdisjoint if i % 2 else set().isdisjoint
                node = pick(
                    balancer,
                    key=rng.getrandbits(32),
                    excluded=[pool[i % 12]],
                    usable=lambda node, usable=usable: usable([node]),
                )
                # pool[0] is in every list, and never down.
                assert node in pool
                assert i % 2 == 0 or node not in down
                end(balancer, node)

        return work

    def updater() -> None:
        rng = Random(0)
        for _ in range(ROUNDS // 4):
            balancer.update([pool[0], *rng.sample(pool[1:], rng.randint(0, 11))])
        balancer.update(pool)

    in_threads(updater, *(picker(seed) for seed in range(THREADS)))
    rng = Random(1)
    assert {pick(balancer, key=rng.getrandbits(32)) for _ in range(500)} == set(pool)


@pytest.mark.parametrize(("spec", "weights"), [("rr", [1] * 5), ("wrr", [1, 2, 3, 4])])
def test_no_turn_is_lost_or_taken_twice(spec: str, weights: list[int]) -> None:
    nodes = nodes_of(len(weights), weights)
    balancer = made(spec, nodes)
    found: list[list[Node | None]] = [[] for _ in range(THREADS)]

    def picker(mine: list[Node | None]) -> Callable[[], None]:
        def work() -> None:
            for _ in range(ROUNDS * 5):
                mine.append(pick(balancer))

        return work

    in_threads(*map(picker, found))
    counts = Counter(node for mine in found for node in mine)
    each = THREADS * ROUNDS * 5 // sum(weights)
    assert counts == {node: each * (node.weight or 1) for node in nodes}


def call_while_it_changes(balancer: Balancer, nodes: Sequence[Node]) -> None:
    """Calls in flight on nodes that leave the list and return."""

    def work() -> None:
        for _ in range(ROUNDS):
            held = [pick(balancer) for _ in range(3)]
            for node in held:
                assert node is not None
                end(balancer, node)

    def updater() -> None:
        for i in range(ROUNDS // 4):
            balancer.update(nodes if i % 2 else nodes[4:])
        balancer.update(nodes)

    in_threads(updater, *[work] * THREADS)


def test_p2c_counts_every_call_in_flight_once() -> None:
    nodes = nodes_of(8)
    balancer = made("p2c:choices=8", nodes)
    call_while_it_changes(balancer, nodes)
    # All have the same latency; were a call forgotten, its node would get fewer.
    for node in nodes:
        assert pick(balancer, usable=node.__eq__) == node
        end(balancer, node)
    counts = Counter(pick(balancer) for _ in range(80))
    assert counts == dict.fromkeys(nodes, 10)


def test_la_counts_every_call_in_flight_once() -> None:
    nodes = nodes_of(8)
    balancer = made("la", nodes)
    call_while_it_changes(balancer, nodes)
    # A second later a call that was forgotten would make its node look slow.
    counts: Counter[Node] = Counter()
    for _ in range(8000):
        node = pick(balancer, now_us=1_000_000)
        assert node is not None
        counts[node] += 1
        end(balancer, node, began_us=1_000_000, ended_us=1_001_000)
    assert min(counts[node] for node in nodes) > 800, counts
