"""Specifications, and what is wrong with them."""

from typing import Any

import pytest
from balance_lab import SPECS, always, nodes_of
from tidewire import Balancer, OptionError
from tidewire.balance import make


@pytest.mark.parametrize("spec", SPECS)
def test_every_name_makes_its_balancer(spec: str) -> None:
    balancer = make(spec)
    assert balancer.name == spec
    assert balancer.needs_key == spec.startswith("c_")


@pytest.mark.parametrize(
    "spec",
    [
        "p2c:choices=3 tau_ms=5000",
        "p2c:tau_ms=1",
        "p2c:",
        "c_murmurhash:replicas=200",
        "c_md5:replicas=1",
        "c_ketama:replicas=160",
    ],
)
def test_parameters(spec: str) -> None:
    assert make(spec).name == spec.partition(":")[0]


def test_replicas_are_the_points_of_a_node() -> None:
    """One point: a node's part of the keys is what lies before it."""
    one, many = make("c_md5:replicas=1"), make("c_md5:replicas=1000")
    nodes = nodes_of(2)
    parts = []
    for balancer in (one, many):
        balancer.update(nodes)
        found = [
            balancer.pick(key=key, excluded=(), usable=always, now_us=0)
            for key in range(0, 2**32, 2**22)
        ]
        parts.append(found.count(nodes[0]) / len(found))
    assert abs(parts[1] - 0.5) < 0.05 < abs(parts[0] - 0.5)


def test_what_is_made_already_stays() -> None:
    balancer = make("rr")
    assert make(balancer) is balancer
    assert isinstance(balancer, Balancer)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", "balancer '' is unknown; allowed: rr, random, wrr, wr, la, p2c, c_"),
        ("RR", "balancer 'RR' is unknown; allowed: rr, "),
        ("wr:x=1", "wr: parameters are 'x=1'; allowed: none"),
        ("p2c:choises=2", "'choises=2' is unknown; allowed: choices=N tau_ms=N"),
        ("p2c:choices=1", r"p2c: choices is 1 \(int\); allowed: .* from 2 to 64"),
        ("p2c:choices=65", r"p2c: choices is 65 \(int\); allowed: .* from 2 to 64"),
        ("p2c:choices=two", "p2c: choices is 'two'; allowed: a whole number"),
        ("p2c:choices=", "p2c: choices is ''; allowed: a whole number"),
        ("p2c:choices=-2", "p2c: choices is '-2'; allowed: a whole number"),
        ("p2c:choices=2 choices=3", "p2c: choices is there twice; allowed: once"),
        ("p2c:tau_ms=0", r"p2c: tau_ms is 0 \(int\); allowed: .* from 1 to "),
        ("c_md5:replicas=0", r"c_md5: replicas is 0 \(int\); allowed: .* from 1 to "),
        ("c_md5:choices=2", "'choices=2' is unknown; allowed: replicas=N"),
        ("c_ketama:replicas=6", "c_ketama: replicas is 6; allowed: a multiple of 4"),
    ],
)
def test_refusals_say_what_is_allowed(spec: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        make(spec)


@pytest.mark.parametrize("spec", [None, 3, b"rr", ["rr"]])
def test_what_is_no_specification(spec: Any) -> None:
    with pytest.raises(TypeError, match="balancer is .*; allowed: a Balancer or a str"):
        make(spec)


@pytest.mark.parametrize("spec", [one for one in SPECS if one.startswith("c_")])
@pytest.mark.parametrize("count", [0, 3])
def test_keys_are_asked_for(spec: str, count: int) -> None:
    balancer = make(spec)
    balancer.update(nodes_of(count))

    def pick(key: Any) -> object:
        return balancer.pick(key=key, excluded=(), usable=always, now_us=0)

    for key in (0, 1, 2**32 - 1):
        assert (pick(key) is None) == (count == 0)
    with pytest.raises(OptionError, match=f"{spec}: the call has no key; allowed: 0 "):
        pick(None)
    for key in (-1, 2**32):
        with pytest.raises(ValueError, match=f"{spec}: key is {key} .*allowed: .*32 b"):
            pick(key)
    for wrong in (True, 1.0, "1", b"1"):
        with pytest.raises(TypeError, match=f"{spec}: key is .*; allowed: a whole"):
            pick(wrong)
