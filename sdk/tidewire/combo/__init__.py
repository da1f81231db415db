"""Channels that are made of channels."""

from tidewire.combo.fanout import SKIP, Skip
from tidewire.combo.parallel import ParallelChannel
from tidewire.combo.parallel_aio import AsyncParallelChannel

__all__ = ["SKIP", "AsyncParallelChannel", "ParallelChannel", "Skip"]
