"""The asyncio face of channels to a cluster whose servers have parts of the
whole."""

from typing import TypedDict, TypeVar

from tidewire._cluster_acalls import method
from tidewire.aio import AsyncChannel, AsyncUnaryMethod
from tidewire.balance.balancer import whole
from tidewire.combo.fanout import Map, Merge, Plan
from tidewire.combo.parallel_aio import AsyncParallelChannel
from tidewire.combo.partitions import (
    Parse,
    Partitions,
    Schemes,
    cluster_for,
    split_options,
)
from tidewire.combo.selective_aio import SubMethod
from tidewire.naming import watch_of
from tidewire.options import ChannelOptions
from tidewire.service import MethodInfo

__all__ = ["AsyncDynamicPartitionChannel", "AsyncPartitionChannel"]

Req = TypeVar("Req")
Res = TypeVar("Res")


class _Part(AsyncChannel):
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
            address, url, index, count, self.options, AsyncChannel, partitions
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


class AsyncPartitionChannel(AsyncParallelChannel):
    """The same as PartitionChannel, for asyncio."""

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
        """As PartitionChannel's."""
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


class AsyncDynamicPartitionChannel(AsyncChannel):
    """The same as DynamicPartitionChannel, for asyncio."""

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
        """As DynamicPartitionChannel's."""
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

        def scheme(count: int) -> AsyncParallelChannel:
            parts = _parts(address, count, each, None)
            name = f"{address} [{count} partitions]"
            return AsyncParallelChannel(
                parts, owns=True, options=each, _address=name, **how
            )

        watch = watch_of(address)
        self._cluster = schemes = Schemes(address, self._partitions, SubMethod, scheme)
        schemes.follow(watch, self.options.allow_empty, schemes.take)

    def unary(self, info: MethodInfo[Req, Res]) -> AsyncUnaryMethod[Req, Res]:
        """A method to call without a generated client."""
        return method(self, info)

    def __repr__(self) -> str:
        return f"<tidewire.{type(self).__name__} to {self.address}>"
