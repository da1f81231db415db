"""Consistent hashing, against rings computed from the facts alone: with mmh3 and
hashlib, searched from end to end."""

import hashlib
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from random import Random
from typing import Any

import mmh3
import pytest
from balance_lab import made, nodes_of, pick
from tidewire import md5_32, murmur32
from tidewire.balance import make
from tidewire.node import Node

Point = tuple[int, int, int, Node]


def murmur_points(address: str, replicas: int) -> Iterator[int]:
    for i in range(replicas):
        yield mmh3.hash(f"{address}-{i}".encode(), 0, signed=False)


def md5_points(address: str, replicas: int) -> Iterator[int]:
    for i in range(replicas):
        yield struct.unpack("<I", hashlib.md5(f"{address}-{i}".encode()).digest()[:4])[
            0
        ]


def ketama_points(address: str, replicas: int) -> Iterator[int]:
    for i in range(replicas // 4):
        yield from struct.unpack("<4I", hashlib.md5(f"{address}-{i}".encode()).digest())


KINDS: dict[str, Callable[[str, int], Iterator[int]]] = {
    "c_murmurhash": murmur_points,
    "c_md5": md5_points,
    "c_ketama": ketama_points,
}

every = pytest.mark.parametrize("kind", KINDS)


def ring_of(kind: str, nodes: list[Node], replicas: int = 100) -> list[Point]:
    ring = []
    for node in nodes:
        host, port = node.address.split(":")
        (ip,) = struct.unpack("<I", socket.inet_aton(host))
        ring += [(h, ip, int(port), node) for h in KINDS[kind](node.address, replicas)]
    return sorted(ring, key=lambda point: point[:3])


def owners(ring: list[Point], keys: list[int]) -> list[Node]:
    """By one pass over both in order."""
    found: dict[int, Node] = {}
    at = 0
    for key in sorted(keys):
        while at < len(ring) and ring[at][0] < key:
            at += 1
        found[key] = ring[at % len(ring)][3]
    return [found[key] for key in keys]


def keys_of(count: int, seed: int) -> list[int]:
    rng = Random(seed)
    return [0, 2**32 - 1] + [rng.getrandbits(32) for _ in range(count - 2)]


@pytest.mark.parametrize("seed", [0, 1, 0x9747B28C, 2**32 - 1])
def test_murmur32(seed: int) -> None:
    rng = Random(seed)
    for size in [*range(50), 1000]:
        data = rng.randbytes(size)
        assert murmur32(data, seed) == mmh3.hash(data, seed, signed=False), data


def test_known_hashes() -> None:
    assert murmur32(b"") == 0
    assert murmur32(b"", 1) == 0x514E28B7
    assert murmur32(b"hello") == 0x248BFA47
    # d41d8cd98f00b204e9800998ecf8427e
    assert md5_32(b"") == 0xD98C1DD4


@every
@pytest.mark.parametrize(
    ("count", "replicas"), [(1, 100), (2, 4), (3, 100), (10, 160), (200, 100)]
)
def test_keys_go_where_the_facts_say(kind: str, count: int, replicas: int) -> None:
    nodes = nodes_of(count)
    balancer = make(f"{kind}:replicas={replicas}")
    balancer.update(nodes)
    ring = ring_of(kind, nodes, replicas)
    # Also exactly on points, and beside them.
    keys = keys_of(10_000, seed=count)
    for point in Random(8).sample(ring, min(len(ring), 100)):
        keys += [point[0], (point[0] + 1) % 2**32, (point[0] - 1) % 2**32]
    found = [pick(balancer, key=key) for key in keys]
    assert found == owners(ring, keys)


@every
def test_a_point_of_two_nodes_belongs_to_the_lower_address(kind: str) -> None:
    """Addresses compare as brpc compares them: as little-endian numbers."""
    nodes = nodes_of(1000)
    ring = ring_of(kind, nodes)
    twice = [(a, b) for a, b in pairwise(ring) if a[0] == b[0]]
    if kind == "c_murmurhash":
        assert twice, "the addresses no longer have what is tested here"
    for order in (nodes, nodes[::-1]):
        balancer = made(kind, order)
        for first, second in twice:
            assert pick(balancer, key=first[0]) == first[3]
            up = second[3].__eq__
            assert pick(balancer, key=first[0], usable=up) == second[3]


@every
def test_unusable_and_tried_nodes_leave_their_keys_to_the_next(kind: str) -> None:
    nodes = nodes_of(10)
    balancer = made(kind, nodes)
    away = set(nodes[2:6])
    keys = keys_of(5000, seed=2)
    ring = [point for point in ring_of(kind, nodes) if point[3] not in away]
    wanted = owners(ring, keys)
    for arguments in (
        {"usable": lambda node: node not in away},
        {"excluded": away},
        {"excluded": nodes[2:4], "usable": lambda node: node not in nodes[4:6]},
    ):
        some: Any = arguments
        assert [pick(balancer, key=key, **some) for key in keys] == wanted


@every
def test_the_last_resort_is_the_keys_own_node(kind: str) -> None:
    nodes = nodes_of(5)
    balancer = made(kind, nodes)
    for key in keys_of(500, seed=3):
        assert pick(balancer, key=key, excluded=nodes) == pick(balancer, key=key)


@every
@pytest.mark.parametrize("gone", [0, 4, 9])
def test_a_node_that_goes_takes_only_its_keys_along(kind: str, gone: int) -> None:
    nodes = nodes_of(10)
    balancer = made(kind, nodes)
    keys = keys_of(10_000, seed=4)
    before = [pick(balancer, key=key) for key in keys]
    balancer.update([node for node in nodes if node != nodes[gone]])
    after = [pick(balancer, key=key) for key in keys]
    moved = {a for a, b in zip(before, after, strict=True) if a != b}
    assert moved == {nodes[gone]}
    assert nodes[gone] not in after
    balancer.update(nodes)
    assert [pick(balancer, key=key) for key in keys] == before


@every
def test_updates_one_by_one_give_the_same_ring(kind: str) -> None:
    rng = Random(9)
    pool = nodes_of(30)
    balancer = made(kind, [])
    for _ in range(20):
        nodes = rng.sample(pool, rng.randint(1, 30))
        balancer.update(nodes)
    keys = keys_of(2000, seed=5)
    fresh = made(kind, sorted(nodes, key=lambda node: node.address))
    assert [pick(balancer, key=k) for k in keys] == [pick(fresh, key=k) for k in keys]


@every
def test_replicas_even_the_shares_out(kind: str) -> None:
    nodes = nodes_of(10)
    balancer = made(kind, nodes)
    counts = Counter(pick(balancer, key=key) for key in keys_of(20_000, seed=6))
    for node in nodes:
        assert 0.6 < counts[node] / 2000 < 1.5


def test_the_tag_moves_no_key() -> None:
    plain, tagged = (made("c_md5", nodes_of(5, tags)) for tags in ((), [1, 2, 3, 4, 5]))
    for key in keys_of(1000, seed=7):
        one, other = pick(plain, key=key), pick(tagged, key=key)
        assert one is not None
        assert other is not None
        assert one.address == other.address
