"""Channels that are made of channels."""

from tidewire.combo.fanout import SKIP, Skip
from tidewire.combo.parallel import ParallelChannel
from tidewire.combo.parallel_aio import AsyncParallelChannel
from tidewire.combo.partition import DynamicPartitionChannel, PartitionChannel
from tidewire.combo.partition_aio import (
    AsyncDynamicPartitionChannel,
    AsyncPartitionChannel,
)
from tidewire.combo.selective import SelectiveChannel
from tidewire.combo.selective_aio import AsyncSelectiveChannel

__all__ = [
    "SKIP",
    "AsyncDynamicPartitionChannel",
    "AsyncParallelChannel",
    "AsyncPartitionChannel",
    "AsyncSelectiveChannel",
    "DynamicPartitionChannel",
    "ParallelChannel",
    "PartitionChannel",
    "SelectiveChannel",
    "Skip",
]
