"""Consistent hashing: the same key goes to the same node, and when a node comes
or goes only its own keys move.  Picks the nodes that brpc picks."""

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from typing import ClassVar, Final

from tidewire.balance.balancer import Balancer, Usable, whole
from tidewire.balance.hashes import Murmur32
from tidewire.errors import OptionError
from tidewire.node import Node

__all__ = ["Ketama", "Md5Hash", "MurmurHash", "RingHash"]

_MAX_KEY: Final = 2**32 - 1
_MAX_REPLICAS: Final = 10_000


class _Ring:
    """Points on a circle, each of which belongs to a node.  Never changes."""

    __slots__ = ("hashes", "nodes", "owners", "points")

    def __init__(self, points: dict[Node, list[int]]) -> None:
        self.points = points
        self.nodes = sorted(points, key=_order)
        # Point and owner in one number: it sorts as the pair, but quickly.
        ring = sorted(
            point << 32 | rank
            for rank, node in enumerate(self.nodes)
            for point in points[node]
        )
        self.hashes = [pair >> 32 for pair in ring]
        self.owners = [pair & _MAX_KEY for pair in ring]

    def first(self, key: int) -> int:
        """The index of the first point from the key on, clockwise."""
        index = bisect_left(self.hashes, key)
        return index if index < len(self.hashes) else 0

    def clockwise(self, index: int) -> Iterator[Node]:
        """Each node once, in the order of their first points from there on."""
        seen: set[int] = set()
        for i in range(index - len(self.owners), index):
            rank = self.owners[i]
            if rank not in seen:
                seen.add(rank)
                yield self.nodes[rank]
                if len(seen) == len(self.nodes):
                    return


class RingHash(Balancer):
    """What the three have in common; they differ in where a node's points are."""

    needs_key = True
    multiple: ClassVar[int] = 1
    """Of what `replicas` must be a multiple."""

    def __init__(self, *, replicas: int = 100) -> None:
        what = f"{self.name}: replicas"
        self._replicas = whole(what, replicas, 1, _MAX_REPLICAS, "points of a node")
        if self._replicas % self.multiple:
            raise OptionError(
                f"{what} is {self._replicas}; allowed: a multiple of {self.multiple}"
            )
        self._ring = _Ring({})

    def update(self, nodes: Sequence[Node]) -> None:
        old = self._ring.points
        self._ring = _Ring(
            {node: old.get(node) or self._points(node.address) for node in nodes}
        )

    def pick(
        self,
        *,
        key: int | None,
        excluded: Collection[Node],
        usable: Usable,
        now_us: int,
    ) -> Node | None:
        if key is None:
            raise OptionError(
                f"{self.name}: the call has no key; allowed: 0 to {_MAX_KEY}, such as"
                " murmur32(data)"
            )
        # `True` is no key, and neither is a number with a fraction.
        if type(key) is not int or not 0 <= key <= _MAX_KEY:
            key = whole(f"{self.name}: key", key, 0, _MAX_KEY, "a hash of 32 bits")
        ring = self._ring
        if not ring.nodes:
            return None
        index = ring.first(key)
        node = ring.nodes[ring.owners[index]]
        if not excluded and usable(node):
            return node
        last = None
        for node in ring.clockwise(index):
            if last is not None and node in excluded:
                continue
            if usable(node):
                if node not in excluded:
                    return node
                last = node
        return last

    @abstractmethod
    def _points(self, address: str) -> list[int]:
        """Where the node is on the ring, as often as there are replicas."""


class MurmurHash(RingHash):
    """Points by murmur3."""

    name = "c_murmurhash"

    def _points(self, address: str) -> list[int]:
        murmur = Murmur32(f"{address}-".encode())
        return [murmur.of(b"%d" % i) for i in range(self._replicas)]


class Md5Hash(RingHash):
    """Points by the first four bytes of MD5."""

    name = "c_md5"

    def _points(self, address: str) -> list[int]:
        return [_md5(address, i)[0] for i in range(self._replicas)]


class Ketama(RingHash):
    """Four points by each MD5, as libmemcached has them."""

    name = "c_ketama"
    multiple = 4

    def _points(self, address: str) -> list[int]:
        return [point for i in range(self._replicas // 4) for point in _md5(address, i)]


def _md5(address: str, i: int) -> list[int]:
    from hashlib import md5  # here, because most programs never need it

    digest = md5(f"{address}-{i}".encode(), usedforsecurity=False).digest()
    return [int.from_bytes(digest[j : j + 4], "little") for j in (0, 4, 8, 12)]


def _order(node: Node) -> tuple[int, int, str]:
    """Who owns a point that two nodes have.  brpc compares IPv4 addresses as
    little-endian numbers, then ports; its order of others is not the same in
    every process, so theirs is that of their text."""
    host, _, port = node.address.rpartition(":")
    try:
        octets = bytes(map(int, host.split(".")))
        if len(octets) == 4:
            return int.from_bytes(octets, "little"), int(port), node.tag
    except ValueError:
        pass
    return 2**32, 0, f"{node.address} {node.tag}"
