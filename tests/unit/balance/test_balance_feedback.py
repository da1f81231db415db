"""la and p2c in a cluster of virtual time: who is quick gets more, who is slow
or fails gets less, and is tried again."""

import pytest
from balance_lab import Cluster, end, made, nodes_of, pick, shares
from tidewire import Balancer
from tidewire.node import Node

NODES = nodes_of(5)
SERVICE_US = dict(zip(NODES, [1000, 1000, 2000, 5000, 10_000], strict=True))
EVEN = dict.fromkeys(NODES, 1000)

both = pytest.mark.parametrize("spec", ["la", "p2c:tau_ms=1000"])
seeds = pytest.mark.parametrize("seed", [1, 2])


@seeds
@pytest.mark.parametrize(
    ("callers", "queued"), [(2, False), (20, False), (20, True), (100, True)]
)
def test_la_shares_are_as_the_speeds(callers: int, queued: bool, seed: int) -> None:
    cluster = Cluster(
        made("la", [], seed), SERVICE_US, callers=callers, queued=queued, seed=seed
    )
    cluster.run(1000)
    found = shares(cluster.run(60_000 // callers))
    speeds = sum(1 / service for service in SERVICE_US.values())
    for node, service in SERVICE_US.items():
        wanted = 1 / service / speeds
        assert found[node] == pytest.approx(wanted, rel=0.15), found


@seeds
@pytest.mark.parametrize(
    ("callers", "queued"), [(2, False), (20, False), (20, True), (100, True)]
)
def test_p2c_shares_follow_the_speeds(callers: int, queued: bool, seed: int) -> None:
    """Only about: few calls at a time go to the quicker of two rather than in
    proportion."""
    cluster = Cluster(
        made("p2c", [], seed), SERVICE_US, callers=callers, queued=queued, seed=seed
    )
    cluster.run(1000)
    found = shares(cluster.run(60_000 // callers))
    speeds = sum(1 / service for service in SERVICE_US.values())
    for node, service in list(SERVICE_US.items())[:4]:
        wanted = 1 / service / speeds
        assert found[node] == pytest.approx(wanted, rel=0.3), found
    assert found.get(NODES[4], 0) < 0.05


@both
@seeds
def test_equal_nodes_get_equal_shares(spec: str, seed: int) -> None:
    cluster = Cluster(made(spec, [], seed), EVEN, seed=seed)
    cluster.run(200)
    for share in shares(cluster.run(1000)).values():
        assert share == pytest.approx(0.2, rel=0.08)


@both
@seeds
def test_a_node_that_becomes_slow_loses_its_share_and_gets_it_back(
    spec: str, seed: int
) -> None:
    cluster = Cluster(made(spec, [], seed), dict(EVEN), callers=2, seed=seed)
    cluster.run(1000)
    cluster.service[NODES[0]] = 50_000
    cluster.run(200)
    assert shares(cluster.run(2000)).get(NODES[0], 0) < 0.02
    cluster.service[NODES[0]] = 1000
    cluster.run(12_000)
    assert shares(cluster.run(2000))[NODES[0]] == pytest.approx(0.2, rel=0.2)


@both
@seeds
@pytest.mark.parametrize("timeout_us", [500_000, 0])
def test_a_node_that_fails_is_not_taken_for_a_quick_one(
    spec: str, timeout_us: int, seed: int
) -> None:
    cluster = Cluster(
        made(spec, [], seed), EVEN, callers=2, seed=seed, timeout_us=timeout_us
    )
    cluster.run(1000)
    cluster.failing.add(NODES[1])
    cluster.run(100)
    assert shares(cluster.run(1000)).get(NODES[1], 0) < 0.01
    cluster.failing.clear()
    cluster.run(16_000)
    assert shares(cluster.run(2000))[NODES[1]] == pytest.approx(0.2, rel=0.2)


@both
@seeds
def test_a_node_that_fails_from_the_start(spec: str, seed: int) -> None:
    cluster = Cluster(made(spec, [], seed), dict(EVEN), seed=seed)
    cluster.failing.add(NODES[1])
    cluster.run(100)
    assert shares(cluster.run(1000)).get(NODES[1], 0) < 0.01


@both
@seeds
def test_a_node_that_hangs_is_left_before_its_calls_end(spec: str, seed: int) -> None:
    """The others' calls go on while it holds some."""
    cluster = Cluster(made(spec, [], seed), dict(EVEN), callers=100, seed=seed)
    cluster.run(100)
    cluster.hanging.add(NODES[2])
    counts = cluster.run(100)
    assert counts.total() > 2500
    assert counts[NODES[2]] < 90


@both
def test_a_node_without_an_answer_yet_gets_no_flood(spec: str) -> None:
    """It came into a busy cluster and answers nothing."""
    cluster = Cluster(made(spec, []), dict(EVEN), callers=100)
    cluster.run(100)
    (new,) = set(nodes_of(6)) - set(NODES)
    cluster.balancer.update([*NODES, new])
    cluster.hanging.add(new)
    assert cluster.run(20)[new] < 70


@both
def test_what_was_learnt_outlives_an_update(spec: str) -> None:
    cluster = Cluster(made(spec, []), {**EVEN, NODES[0]: 100_000})
    cluster.run(500)
    for _ in range(20):
        cluster.balancer.update(NODES[::-1])
        assert cluster.run(50)[NODES[0]] <= 5


def measured(spec: str, nodes: list[Node]) -> Balancer:
    """Each has answered 32 calls in 1 ms."""
    balancer = made(spec, nodes)
    for node in nodes * 32:
        assert pick(balancer, usable=node.__eq__) == node
        end(balancer, node)
    return balancer


@both
@pytest.mark.parametrize("when", ["after", "during"])
def test_calls_of_a_node_that_went_and_came_are_in_flight(spec: str, when: str) -> None:
    """Also when that was while it was chosen."""
    held, other = nodes = NODES[:2]
    balancer = measured(spec, nodes)

    def only_held(node: Node) -> bool:
        if when == "during":
            balancer.update([other])
            balancer.update(nodes)
        return node == held

    for _ in range(4):
        assert pick(balancer, usable=only_held) == held
    if when == "after":
        balancer.update([other])
        end(balancer, held)
        balancer.update(nodes)
    else:
        end(balancer, held)
    # Three calls are in flight, for a tenth of a second.
    found = []
    for _ in range(100):
        node = pick(balancer, now_us=100_000)
        assert node is not None
        found.append(node)
        end(balancer, node, began_us=100_000, ended_us=101_000)
    assert found.count(held) <= 10


def test_la_sees_that_one_call_hangs() -> None:
    hung, other = nodes = NODES[:2]
    balancer = measured("la", nodes)
    assert pick(balancer, usable=hung.__eq__) == hung
    found = []
    for _ in range(40):
        found.append(pick(balancer, now_us=100_000))
        if found[-1] == other:
            end(balancer, other, began_us=100_000, ended_us=101_000)
    assert found.count(hung) <= 2


def test_la_leaves_a_quick_node_that_hangs_among_many() -> None:
    quick, *others = nodes_of(1000)
    balancer = made("la", [quick, *others])
    for node in [*others, quick, quick]:
        assert pick(balancer, usable=node.__eq__) == node
        end(balancer, node, ended_us=1 if node == quick else 1000)
    for _ in range(5):
        assert pick(balancer, usable=quick.__eq__) == quick
    found = []
    for _ in range(50):
        found.append(node := pick(balancer, now_us=100_000))
        if node in others:
            end(balancer, node, began_us=100_000, ended_us=101_000)
    assert found.count(quick) <= 2


def test_la_seldom_draws_a_quick_node_that_is_down() -> None:
    down, *others = nodes = nodes_of(20)
    balancer = made("la", nodes)
    for node in nodes:
        assert pick(balancer, usable=node.__eq__) == node
        end(balancer, node, ended_us=10 if node == down else 10_000)
    asked = 0

    def usable(node: Node) -> bool:
        nonlocal asked
        asked += 1
        return node != down

    for _ in range(200):
        node = pick(balancer, usable=usable, now_us=10_000)
        assert node in others
        end(balancer, node, began_us=10_000, ended_us=20_000)
    assert asked < 1000


def test_p2c_spreads_calls_in_flight_by_weight() -> None:
    nodes = nodes_of(4, [1, 2, 3, 4])
    balancer = made("p2c:choices=4", nodes)
    held = [pick(balancer) for _ in range(100)]
    assert [held.count(node) for node in nodes] == [10, 20, 30, 40]


def test_p2c_takes_the_one_with_fewer_calls_in_flight() -> None:
    balancer = made("p2c", NODES[:2])
    held = [pick(balancer) for _ in range(20)]
    assert held.count(NODES[0]) == 10


def test_p2c_takes_the_best_of_more_choices() -> None:
    """The quickest of ten is among two drawn in a fifth of the cases, and always
    among ten."""
    nodes = nodes_of(10)

    def quickest(spec: str) -> int:
        balancer = made(spec, nodes)
        for node in nodes:
            assert pick(balancer, usable=node.__eq__) == node
            end(balancer, node, ended_us=1000 if node == nodes[7] else 3000)
        found = 0
        for _ in range(1000):
            node = pick(balancer, now_us=1000)
            assert node is not None
            found += node == nodes[7]
            end(balancer, node, began_us=1000, ended_us=1001)
        return found

    # (Ends in no time: an average falls with time only, so all stay as they are.)
    assert quickest("p2c:choices=10") == 1000
    assert 130 < quickest("p2c:choices=2") < 270
    assert 430 < quickest("p2c:choices=5") < 570


@pytest.mark.parametrize(("tau_ms", "back_ms"), [(1000, 6000), (10_000, 60_000)])
def test_p2c_forgets_at_the_pace_of_tau(tau_ms: int, back_ms: int) -> None:
    """A latency 100 times too high takes the time of 4.6 taus to be forgotten."""
    balancer = made(f"p2c:tau_ms={tau_ms} choices=2", NODES[:2])
    slow, quick = NODES[:2]

    def call(now_us: int, usable: Node | None = None, took_us: int = 1000) -> Node:
        node = pick(
            balancer,
            usable=usable.__eq__ if usable else lambda node: True,
            now_us=now_us,
        )
        assert node is not None
        end(balancer, node, began_us=now_us, ended_us=now_us + took_us)
        return node

    call(0, slow, took_us=100_000)
    call(0, quick)
    for ms in range(100, back_ms, 20):
        if call(1000 * ms) == slow:
            assert 4 * tau_ms < ms < 5 * tau_ms
            return
    pytest.fail("the slow node was never tried again")


def test_la_tries_a_slow_node_again_when_its_calls_are_old() -> None:
    balancer = made("la", NODES[:2])
    slow, quick = NODES[:2]
    for node, took_us in ((slow, 1_000_000), (quick, 100)):
        for _ in range(32):
            assert pick(balancer, usable=node.__eq__) == node
            end(balancer, node, ended_us=took_us)

    def tries(now_us: int) -> int:
        found = 0
        for i in range(400):
            node = pick(balancer, now_us=now_us + i * 200)
            assert node is not None
            found += node == slow
            began_us = now_us + i * 200
            end(balancer, node, began_us=began_us, ended_us=began_us + 100)
        return found

    assert tries(2_000_000) <= 2
    assert tries(12_000_000) > 100


@pytest.mark.parametrize(
    ("retried", "max_retry"), [(0, 3), (1, 3), (3, 3), (5, 3), (0, 0)]
)
def test_la_counts_every_error_as_slower(retried: int, max_retry: int) -> None:
    """Also the quick ones, with retries left or none, with a deadline or none."""
    for timeout_us in (0, 500_000):
        balancer = made("la", NODES[:2])
        bad, good = NODES[:2]
        for i in range(100):
            for node in (bad, good):
                assert pick(balancer, usable=node.__eq__, now_us=1000 * i) == node
                end(
                    balancer,
                    node,
                    began_us=1000 * i,
                    ended_us=1000 * i + (10 if node == bad else 900),
                    failed=node == bad,
                    retried=retried,
                    max_retry=max_retry,
                    timeout_us=timeout_us,
                )
        found = [pick(balancer, now_us=100_000) for _ in range(200)]
        assert found.count(bad) < 10


def test_p2c_errors_in_a_row_have_a_bound() -> None:
    """60 errors count as 30 s: with a tau of 1 s they are forgotten in 10 s."""
    bad = NODES[0]
    balancer = measured("p2c:tau_ms=1000", NODES[:2])
    for _ in range(60):
        assert pick(balancer, usable=bad.__eq__) == bad
        end(balancer, bad, failed=True)
    for now_us in range(0, 60_000_000, 20_000):
        node = pick(balancer, now_us=now_us)
        assert node is not None
        end(balancer, node, began_us=now_us, ended_us=now_us + 1000)
        if node == bad:
            assert 9_000_000 < now_us < 12_000_000
            return
    pytest.fail("the node was never tried again")
