"""rr and wrr: exact shares, in a fixed order."""

from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from balance_lab import made, nodes_of, pick, picks
from tidewire.node import Node


def test_rr_goes_round_in_the_lists_order() -> None:
    nodes = nodes_of(3)
    found = picks(made("rr", nodes), 300)
    start = nodes.index(found[0])
    assert found == [nodes[(start + i) % 3] for i in range(300)]


def test_rr_begins_anywhere() -> None:
    nodes = nodes_of(10)
    starts = Counter(pick(made("rr", nodes, seed)) for seed in range(1000))
    assert set(starts) == set(nodes)
    assert max(starts.values()) < 200


def test_rr_without_a_seed_begins_anywhere() -> None:
    from tidewire.balance import make

    starts = set()
    for _ in range(40):
        balancer = make("rr")
        balancer.update(nodes_of(10))
        starts.add(pick(balancer))
    assert len(starts) > 1


@pytest.mark.parametrize("down", [1, 2, 3])
def test_rr_gives_no_neighbour_more_than_another(down: int) -> None:
    nodes = nodes_of(5)
    up = set(nodes[down:])
    counts = Counter(picks(made("rr", nodes), 100 * len(up), usable=up.__contains__))
    assert counts == dict.fromkeys(up, 100)


@pytest.mark.parametrize("up", [1, 7, 100, 500])
def test_rr_shares_stay_even_when_most_of_a_long_list_is_down(up: int) -> None:
    nodes = nodes_of(1000)
    usable = set(nodes[-up:])
    found = picks(made("rr", nodes), 20 * up, usable=usable.__contains__)
    counts = Counter(found)
    assert set(counts) == usable
    assert max(counts.values()) - min(counts.values()) <= 2


def test_rr_excluded_nodes_turns_go_round() -> None:
    """The calls that avoid a node are shared out by all others."""
    nodes = nodes_of(4)
    balancer = made("rr", nodes)
    counts = Counter(pick(balancer, excluded=[nodes[0]]) for _ in range(300))
    assert counts == dict.fromkeys(nodes[1:], 100)


@pytest.mark.parametrize(
    "weights",
    [[1], [1, 1], [3, 2, 1], [5, 1, 1], [100, 1], [2, 4, 6], [7, 11, 13, 17, 19]],
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_wrr_is_exact_in_every_round(weights: list[int], seed: int) -> None:
    nodes = nodes_of(len(weights), weights)
    balancer = made("wrr", nodes, seed)
    wanted = dict(zip(nodes, weights, strict=True))
    for _ in range(3):
        assert Counter(picks(balancer, sum(weights))) == wanted


def test_wrr_mixes() -> None:
    """The distances between a node's turns are nowhere far from their mean."""
    weights = [50, 30, 15, 5]
    nodes = nodes_of(4, weights)
    found = picks(made("wrr", nodes), 1000)
    for node, weight in zip(nodes, weights, strict=True):
        turns = [i for i, one in enumerate(found) if one == node]
        gaps = [b - a for a, b in pairwise(turns)]
        assert max(gaps) <= 2.7 * 100 / weight, (node, max(gaps))


@pytest.mark.parametrize("up", [1, 2, 3, 4])
def test_wrr_keeps_proportions_among_those_that_are_up(up: int) -> None:
    weights = [1, 2, 3, 40, 2]
    nodes = nodes_of(5, weights)
    usable = set(nodes[:up])
    total = sum(weights[:up])
    counts = Counter(picks(made("wrr", nodes), 60 * total, usable.__contains__))
    for node, weight in zip(nodes[:up], weights[:up], strict=True):
        assert abs(counts[node] - 60 * weight) <= 3, (node, counts[node])


def test_wrr_takes_nodes_without_a_weight_as_of_weight_1() -> None:
    nodes = [
        Node(address="10.0.0.1:80", tag="3"),
        Node(address="10.0.0.2:80"),
        Node(address="10.0.0.3:80", tag="0"),
        Node(address="10.0.0.4:80", tag="red"),
    ]
    assert Counter(picks(made("wrr", nodes), 60)) == dict(
        zip(nodes, [30, 10, 10, 10], strict=True)
    )


@pytest.mark.parametrize("spec", ["wrr", "wr", "p2c"])
def test_weights_of_more_than_32_bits_are_the_largest(spec: str) -> None:
    huge = nodes_of(2, [10**400, 2**32 - 1])
    counts = Counter(picks(made(spec, huge), 2000))
    assert abs(counts[huge[0]] - 1000) < 150


def test_wrr_with_random_weights_is_exact() -> None:
    rng = Random(11)
    for _ in range(50):
        weights = [rng.randint(1, 20) for _ in range(rng.randint(1, 12))]
        nodes = nodes_of(len(weights), weights)
        found = picks(made("wrr", nodes, rng.getrandbits(16)), sum(weights))
        assert Counter(found) == dict(zip(nodes, weights, strict=True)), weights
