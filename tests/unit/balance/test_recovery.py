"""The gate before a cluster that comes back."""

import random

import pytest
from tidewire.balance import make
from tidewire.codes import Errno
from tidewire.errors import OptionError, Phase, RpcError
from tidewire.node import Node

NODES = [Node(address=f"10.0.0.{i}:80") for i in range(1, 7)]
SECOND = 1_000_000


class Cluster:
    """Six servers, of which some are up."""

    def __init__(self, spec, seed=1):
        print(f"seed {seed}")
        self.balancer = make(spec, rng=random.Random(seed))
        self.balancer.update(NODES)
        self.up = set(NODES)

    def pick(self, now_us):
        return self.balancer.pick(
            key=None, excluded=(), usable=lambda node: node in self.up, now_us=now_us
        )

    def share(self, now_us, calls=2000):
        """How many of the calls get a server."""
        passed, refusals = 0, []
        for _ in range(calls):
            try:
                passed += self.pick(now_us) is not None
            except RpcError as error:
                refusals.append((error.number, error.phase))
        assert set(refusals) <= {(Errno.EREJECT, Phase.CONNECT)}
        return passed / calls


both = pytest.mark.parametrize("name", ["rr", "random"])


@both
def test_the_gate_is_open_at_first(name):
    cluster = Cluster(f"{name}:min_working_instances=6 hold_seconds=10")
    cluster.up = set(NODES[:1])
    assert cluster.share(0) == 1


@both
def test_calls_pass_in_proportion_until_it_holds(name):
    cluster = Cluster(f"{name}:min_working_instances=6 hold_seconds=10")
    cluster.up = set()
    assert cluster.pick(0) is None
    now = SECOND
    for count in (1, 3, 5):
        cluster.up = set(NODES[:count])
        assert abs(cluster.share(now) - count / 6) < 0.05
        now += SECOND
    # The last change was a second ago.
    assert cluster.share(now + 8 * SECOND) < 0.9
    assert cluster.share(now + 9 * SECOND) == 1
    cluster.up = set(NODES[:1])
    assert cluster.share(now + 10 * SECOND) == 1


@both
def test_enough_servers_pass_all(name):
    cluster = Cluster(f"{name}:min_working_instances=3 hold_seconds=10")
    cluster.up = set()
    cluster.pick(0)
    cluster.up = set(NODES[:4])
    assert cluster.share(SECOND) == 1


@both
def test_none_that_is_usable_is_no_rejection(name):
    cluster = Cluster(f"{name}:min_working_instances=6 hold_seconds=10")
    cluster.up = set()
    assert [cluster.pick(i * SECOND) for i in range(20)] == [None] * 20


@both
def test_the_servers_are_counted_now_and_then(name):
    cluster = Cluster(f"{name}:min_working_instances=6 hold_seconds=10")
    cluster.up = set()
    cluster.pick(0)
    cluster.up = set(NODES)
    assert cluster.share(5_000) == 1  # 0 were usable: nobody is refused for that
    cluster.up = set(NODES[:2])
    assert abs(cluster.share(20_000) - 2 / 6) < 0.05
    cluster.up = set(NODES)
    assert abs(cluster.share(25_000) - 2 / 6) < 0.05
    assert cluster.share(31_000) == 1


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("rr:min_working_instances=6", "rr: hold_seconds is missing; allowed: both"),
        ("random:hold_seconds=6", "random: min_working_instances is missing"),
        ("rr:min_working_instances=0 hold_seconds=1", "from 1 to"),
        ("rr:min_working_instances=1 hold_seconds=0", "from 1 to"),
        ("rr:min=1 hold_seconds=1", "'min=1' is unknown; allowed: min_working"),
        ("la:hold_seconds=1", "allowed: none"),
    ],
)
def test_bad_parameters(spec, text):
    with pytest.raises(OptionError) as caught:
        make(spec)
    assert text in str(caught.value)
