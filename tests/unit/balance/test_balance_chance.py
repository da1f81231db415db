"""random and wr: shares as likely as said."""

from collections import Counter
from collections.abc import Callable

import pytest
from balance_lab import made, nodes_of, picks
from tidewire.node import Node

DRAWS = 20_000


def check(
    spec: str, weights: list[int], usable: Callable[[int], bool], seed: int
) -> None:
    """Five standard deviations, of a fixed sequence."""
    nodes = nodes_of(len(weights), weights)
    up = {node for i, node in enumerate(nodes) if usable(i)}
    counts = Counter(picks(made(spec, nodes, seed), DRAWS, up.__contains__))
    assert set(counts) <= up
    expected = {node: (node.weight or 1) if spec == "wr" else 1 for node in up}
    total = sum(expected.values())
    for node in up:
        p = expected[node] / total
        spread = 5 * (DRAWS * p * (1 - p)) ** 0.5
        assert abs(counts[node] - DRAWS * p) <= spread, (seed, node, counts[node])


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("spec", ["random", "wr"])
@pytest.mark.parametrize("weights", [[1], [1, 1, 1], [1, 2, 3, 4], [1000, 1, 10, 100]])
def test_all_usable(spec: str, weights: list[int], seed: int) -> None:
    check(spec, weights, lambda i: True, seed)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("spec", ["random", "wr"])
def test_some_down(spec: str, seed: int) -> None:
    """Those beside a node that is down get no more than the others."""
    check(spec, [4, 3, 2, 1, 7], lambda i: i not in (1, 4), seed)


@pytest.mark.parametrize("spec", ["random", "wr"])
def test_most_down(spec: str) -> None:
    """Draws by chance find one of 40 too seldom: the list is looked at."""
    check(spec, [i + 1 for i in range(40)], lambda i: i in (5, 20), 1)


def test_wr_without_weights_is_even() -> None:
    nodes = [Node(address=f"10.0.0.{i}:80", tag="x") for i in range(4)]
    counts = Counter(picks(made("wr", nodes), DRAWS))
    assert max(counts.values()) < 1.1 * min(counts.values())
