"""What holds for every balancer."""

from collections import Counter
from random import Random

import pytest
from balance_lab import SPECS, always, end, made, nodes_of, pick, picks
from tidewire.node import Node

NODES = nodes_of(5, [1, 2, 3, 4, 5])

every = pytest.mark.parametrize("spec", [*SPECS, "p2c:choices=8"])


@every
def test_an_empty_list_gives_nothing(spec: str) -> None:
    assert pick(made(spec, [])) is None


@every
def test_none_usable_gives_nothing_and_each_is_asked(spec: str) -> None:
    asked = set()

    def usable(node: Node) -> bool:
        asked.add(node)
        return False

    assert pick(made(spec, NODES), usable=usable) is None
    assert asked == set(NODES)


@every
def test_every_node_gets_calls(spec: str) -> None:
    assert set(picks(made(spec, NODES), 500)) == set(NODES)


@every
@pytest.mark.parametrize("count", [1, 3, 40])
def test_the_only_usable_node_is_found(spec: str, count: int) -> None:
    for node in (nodes := nodes_of(count)):
        balancer = made(spec, nodes)
        only = node.__eq__
        assert set(picks(balancer, 20, usable=only)) == {node}


@every
def test_unusable_nodes_get_nothing_and_are_back_when_usable(spec: str) -> None:
    balancer = made(spec, NODES)
    down = set(NODES[1:3])
    assert set(picks(balancer, 300, lambda node: node not in down)) == {
        node for node in NODES if node not in down
    }
    assert set(picks(balancer, 500)) == set(NODES)


@every
def test_tried_nodes_are_skipped(spec: str) -> None:
    balancer = made(spec, NODES)
    rng = Random(5)
    found = Counter(
        pick(balancer, key=rng.getrandbits(32), excluded=NODES[:3]) for _ in range(200)
    )
    assert set(found) == set(NODES[3:])


@every
def test_a_tried_node_is_the_last_resort(spec: str) -> None:
    balancer = made(spec, NODES)
    up = {NODES[1], NODES[4]}
    rng = Random(6)
    for _ in range(50):
        key = rng.getrandbits(32)
        # One that was not tried comes first, ...
        node = pick(balancer, key=key, excluded=[NODES[1]], usable=up.__contains__)
        assert node == NODES[4]
        # ... then one that was, if it can be used.
        node = pick(balancer, key=key, excluded=NODES, usable=up.__contains__)
        assert node in up
        assert pick(balancer, key=key, excluded=NODES, usable=always) in NODES
        node = pick(balancer, key=key, excluded=NODES, usable=lambda node: False)
        assert node is None


@every
def test_the_new_list_counts(spec: str) -> None:
    balancer = made(spec, NODES)
    picks(balancer, 100)
    balancer.update(new := [NODES[0], *nodes_of(9)[6:]])
    assert set(picks(balancer, 300)) == set(new)
    balancer.update([])
    assert pick(balancer) is None
    balancer.update(NODES[:1])
    assert picks(balancer, 3) == NODES[:1] * 3


@every
def test_the_callers_list_may_change_afterwards(spec: str) -> None:
    mine = list(NODES)
    balancer = made(spec, [])
    balancer.update(mine)
    mine.clear()
    assert set(picks(balancer, 500)) == set(NODES)


@every
def test_one_address_with_two_tags_is_two_nodes(spec: str) -> None:
    one, two = (Node(address="10.0.0.1:80", tag=tag) for tag in ("0/2", "1/2"))
    balancer = made(spec, [one, two])
    assert set(picks(balancer, 100)) <= {one, two}
    assert set(picks(balancer, 20, usable=two.__eq__)) == {two}
    balancer.update([two])
    assert set(picks(balancer, 20)) == {two}


@every
def test_any_address_will_do(spec: str) -> None:
    nodes = [
        Node(address=text)
        for text in ("unix:/tmp/a", "[::1]:80", "host.name:80", "10.0.0.1:80", "odd")
    ]
    assert set(picks(made(spec, nodes), 500)) == set(nodes)


@every
def test_a_seed_repeats_a_sequence(spec: str) -> None:
    first = picks(made(spec, NODES, seed=7), 50)
    assert first == picks(made(spec, NODES, seed=7), 50)


@every
def test_feedback_about_unknown_nodes_is_ignored(spec: str) -> None:
    balancer = made(spec, NODES)
    end(balancer, Node(address="10.9.9.9:1"))
    end(balancer, NODES[0], failed=True)  # of a call that it never gave out
    assert set(picks(balancer, 500)) == set(NODES)


@every
def test_a_clock_that_is_read_late_does_no_harm(spec: str) -> None:
    """Another thread's time may be used after a later one."""
    balancer = made(spec, NODES)
    for now_us in (1_000_000, 10, 999_990, 0):
        held = [pick(balancer, now_us=now_us) for _ in range(20)]
        for node in held:
            assert node in NODES
            end(balancer, node, began_us=now_us, ended_us=now_us - 5)
    assert set(picks(balancer, 500)) == set(NODES)


@every
def test_usually_few_nodes_are_asked(spec: str) -> None:
    """However many there are."""
    balancer = made(spec, nodes_of(1000))
    asked = 0

    def usable(node: Node) -> bool:
        nonlocal asked
        asked += 1
        return True

    picks(balancer, 100, usable)
    assert asked <= 100 * (8 if "choices" in spec else 2)
