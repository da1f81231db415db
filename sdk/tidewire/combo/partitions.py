"""Which servers of a list have which partition.

Decides and never waits.
"""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, TypeAlias

from tidewire._cluster import Cluster, cluster_of
from tidewire.address import is_cluster
from tidewire.balance import Balancer, make
from tidewire.combo.choice import Choice, Place, place_of
from tidewire.errors import AddressError, OptionError
from tidewire.naming import watch_of
from tidewire.node import Node
from tidewire.options import ChannelOptions

__all__ = ["Parse", "Partitions", "Schemes", "cluster_for", "split_options"]

_log: Final = logging.getLogger("tidewire.naming")

Parse: TypeAlias = Callable[[str], tuple[int, int] | None]
"""From a server's tag to (index, count): which partition of how many it has; None:
it is not to be called."""

_FRACTION: Final = re.compile(r"([0-9]{1,9})/([0-9]{1,9})", re.ASCII)
_TAGS: Final = 10_000


def fraction(tag: str) -> tuple[int, int] | None:
    """ "N/M": partition N, from 0 on, of M."""
    found = _FRACTION.fullmatch(tag.strip())
    return (int(found[1]), int(found[2])) if found else None


class Partitions:
    """What the tags of one list say."""

    def __init__(self, kind: str, url: object, parse: Parse | None) -> None:
        if not isinstance(url, str):
            raise TypeError(
                f"{kind} url is a {type(url).__name__}; allowed: text such as"
                " dns://name:80"
            )
        if not is_cluster(url):
            raise AddressError(
                f"{kind} url is {url!r}; allowed: that of a cluster, such as"
                " file:///path or dns://name:80"
            )
        if parse is not None and not callable(parse):
            raise TypeError(
                f"{kind} parse is {parse!r}; allowed: a function from a tag to"
                " (index, count) or None"
            )
        self._url = url
        self._parse: Parse = parse or fraction
        self._known: dict[str, tuple[int, int] | None] = {}

    def of(self, node: Node) -> tuple[int, int] | None:
        """(index, count); None: it is passed by."""
        tag = node.tag
        if tag not in self._known:
            if len(self._known) >= _TAGS:
                self._known.clear()
            self._known[tag] = self._read(node)
        return self._known[tag]

    def _read(self, node: Node) -> tuple[int, int] | None:
        try:
            found: Any = self._parse(node.tag)
            if found is None:
                return None
            index, count = found
            if 0 <= index < count:
                return int(index), int(count)
            problem = f"is partition {index} of {count}; allowed: from 0, below the"
            problem += " count"
        except Exception as error:
            problem = f"cannot be parsed: {type(error).__name__}: {error}"
        _log.warning(
            "%s: %s is passed by: its tag %r %s",
            self._url,
            node.address,
            node.tag,
            problem,
        )
        return None

    def schemes(self, nodes: Sequence[Node]) -> dict[int, list[list[Node]]]:
        """By count, the servers of each partition; where none lacks servers."""
        found: dict[int, dict[int, list[Node]]] = {}
        for node in nodes:
            place = self.of(node)
            if place is not None:
                index, count = place
                found.setdefault(count, {}).setdefault(index, []).append(node)
        return {
            count: [parts[i] for i in range(count)]
            for count, parts in sorted(found.items())
            if len(parts) == count
        }


def split_options(kind: str, options: object) -> ChannelOptions:
    """Those of the channels that a partition channel is made of."""
    if not isinstance(options, ChannelOptions | None):
        raise TypeError(
            f"{kind} options is a {type(options).__name__}; allowed: ChannelOptions"
        )
    if options is not None and isinstance(options.balancer, Balancer):
        raise OptionError(
            f"{kind} options.balancer is a {type(options.balancer).__name__}; allowed:"
            " a name, for each partition has one to itself"
        )
    return replace(options or ChannelOptions(), hooks=())


def cluster_for(
    name: str,
    url: str,
    index: int,
    count: int,
    options: ChannelOptions,
    kind: Callable[..., Any],
    partitions: Partitions | None,
) -> Cluster:
    """That of one partition.  partitions: None: its list comes by update()."""
    cluster = cluster_of(name, options, kind)
    if partitions is not None:
        of, mine = partitions.of, (index, count)
        watch = watch_of(url)

        def update(nodes: Sequence[Node]) -> None:
            # Servers that have another partition now get no call for this one,
            # even if none is left for it.
            cluster.update([node for node in nodes if of(node) == mine])

        cluster.follow(watch, options.allow_empty, update)
    return cluster


class Schemes(Choice):
    """Several ways to partition at the same time, each a channel."""

    noun = "complete partition scheme"

    def __init__(
        self,
        url: str,
        partitions: Partitions,
        attempt: Callable[[Any], Any],
        make_scheme: Callable[[int], Any],
    ) -> None:
        """make_scheme: from a count to its channel."""
        super().__init__(url, make("wrr"), attempt)
        self._partitions = partitions
        self._make_scheme = make_scheme
        self._by_count: dict[int, Place] = {}

    def take(self, nodes: Sequence[Node]) -> None:
        """The whole new list."""
        with self._guard():
            if self._closed:
                return
            known, self._by_count = self._by_count, {}
            for count, lists in self._partitions.schemes(nodes).items():
                weight = min(len(one) for one in lists)
                place = known.get(count)
                if place is None:
                    place = place_of(self._make_scheme(count), weight, owned=True)
                for part, servers in zip(place.channel._channels, lists, strict=True):
                    part._cluster.update(servers)
                if place.weight != weight:
                    place = place.weighing(weight)
                self._by_count[count] = place
            self.update(list(self._by_count.values()))
