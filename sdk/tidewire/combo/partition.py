"""The blocking face of channels to a cluster whose servers have parts of the
whole."""

from typing import TypedDict, TypeVar

from tidewire._cluster_calls import method
from tidewire._peer import Peer
from tidewire.balance.balancer import whole
from tidewire.channel import Channel, UnaryMethod
from tidewire.combo.fanout import Map, Merge, Plan
from tidewire.combo.parallel import ParallelChannel
from tidewire.combo.partitions import (
    Parse,
    Partitions,
    Schemes,
    cluster_for,
    split_options,
)
from tidewire.combo.selective import SubMethod
from tidewire.naming import watch_of
from tidewire.options import ChannelOptions
from tidewire.service import MethodInfo

__all__ = ["DynamicPartitionChannel", "PartitionChannel"]

Req = TypeVar("Req")
Res = TypeVar("Res")


class _Part(Channel):
    """A channel to the servers of one partition."""

    def __init__(
        self,
        url: str,
        index: int,
        count: int,
        options: ChannelOptions,
        partitions: Partitions | None,
    ) -> None:
        self._place = url, index, count, partitions
        super().__init__(f"{url} [{index}/{count}]", options=options)

    def _open(self, address: str) -> None:
        url, index, count, partitions = self._place
        self._cluster = cluster_for(
            address, url, index, count, self.options, Channel, partitions
        )


def _parts(
    url: str, count: int, options: ChannelOptions, partitions: Partitions | None
) -> list[_Part]:
    made: list[_Part] = []
    try:
        for index in range(count):
            made.append(_Part(url, index, count, options, partitions))
    except BaseException:
        for part in made:
            part._close()
        raise
    return made


class PartitionChannel(ParallelChannel):
    """A channel to a cluster of which each server has one partition of N: a call goes
    to one server of each, and gives one answer made of theirs.

    Everything but the sub-channels is as in ParallelChannel.
    """

    def __init__(
        self,
        url: str,
        *,
        partitions: int,
        parse: Parse | None = None,
        fail_limit: int | None = None,
        success_limit: int | None = None,
        map: Map | None = None,
        merge: Merge | None = None,
        options: ChannelOptions | None = None,
    ) -> None:
        """url: of a cluster.  partitions: N, 1 to 65536.  parse: from a server's tag to
        (index, count), None where it is not to be called; None: "index/count", as
        "0/3".  Servers whose count is not N get no calls.

        The other arguments are those of ParallelChannel; `options` are also those
        of the connections and of the calls on each partition, `timeout` and `hooks`
        those of the whole call."""
        kind = type(self).__name__
        count = whole(f"{kind} partitions", partitions, 1, 65536, "partitions")
        tags = Partitions(kind, url, parse)
        parts = _parts(url, count, split_options(kind, options), tags)
        try:
            super().__init__(
                parts,
                fail_limit=fail_limit,
                success_limit=success_limit,
                map=map,
                merge=merge,
                owns=True,
                options=options,
                _address=url,
            )
        except BaseException:
            for part in parts:
                part._close()
            raise


class _How(TypedDict, total=False):
    fail_limit: int | None
    success_limit: int | None
    map: Map | None
    merge: Merge | None


class DynamicPartitionChannel(Channel):
    """A channel to a cluster whose servers are partitioned in several ways at once,
    as while it grows from 3 partitions to 4: a call is one on all partitions of one
    of them.

    Each way gets calls by the number of servers that its poorest partition has, none
    when one has no server; after a failure another is tried, as in SelectiveChannel.
    """

    def __init__(
        self,
        url: str,
        *,
        parse: Parse | None = None,
        fail_limit: int | None = None,
        success_limit: int | None = None,
        map: Map | None = None,
        merge: Merge | None = None,
        options: ChannelOptions | None = None,
    ) -> None:
        """As PartitionChannel's; the ways are found in the list, and change with it."""
        kind = type(self).__name__
        self._partitions = Partitions(kind, url, parse)
        self._how: _How = {
            "fail_limit": fail_limit,
            "success_limit": success_limit,
            "map": map,
            "merge": merge,
        }
        Plan(channels=(), name=kind, **self._how)  # what is wrong is said here
        split_options(kind, options)
        super().__init__(url, options=options)

    def _open(self, address: str) -> None:
        each, how = split_options(type(self).__name__, self.options), self._how

        def scheme(count: int) -> ParallelChannel:
            parts = _parts(address, count, each, None)
            name = f"{address} [{count} partitions]"
            return ParallelChannel(parts, owns=True, options=each, _address=name, **how)

        watch = watch_of(address)
        self._cluster = self._schemes = schemes = Schemes(
            address, self._partitions, SubMethod, scheme
        )
        schemes.follow(watch, self.options.allow_empty, schemes.take)

    def unary(self, info: MethodInfo[Req, Res]) -> UnaryMethod[Req, Res]:
        """A method to call without a generated client."""
        return method(self, info)

    def _close(self) -> list[Peer]:
        self._closed = True
        self._closing.set()
        return self._schemes.close()

    def __repr__(self) -> str:
        return f"<tidewire.{type(self).__name__} to {self.address}>"
