"""The list of a cluster, without servers: who is on it, who is closed, and a
channel that goes while its list changes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from tidewire._cluster import Cluster
from tidewire._standing import Standing
from tidewire.balance import make
from tidewire.errors import ClosedError
from tidewire.node import Node

A, B = Node(address="10.0.0.1:80"), Node(address="10.0.0.2:80")


class Channel:
    """Notes that it was closed."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.closed = 0

    def _close(self) -> None:
        self.closed += 1


def cluster_of(made: list[Channel], also: Callable[[], Any] = lambda: None) -> Cluster:
    def channel(node: Node) -> Channel:
        made.append(Channel(node))
        also()
        return made[-1]

    return Cluster("test", make("rr"), channel, lambda node: Standing())


def test_who_stays_on_the_list_keeps_its_channel() -> None:
    made: list[Channel] = []
    cluster = cluster_of(made)
    cluster.update([A])
    cluster.update([A, B])
    assert [channel.node for channel in made] == [A, B]
    assert [channel.closed for channel in made] == [0, 0]
    cluster.update([B])
    assert [channel.closed for channel in made] == [1, 0]
    cluster.close()
    assert made[1].closed
    with pytest.raises(ClosedError):
        cluster.pick(None, (), 0)


def test_who_is_called_is_closed_after_its_last_call() -> None:
    made: list[Channel] = []
    cluster = cluster_of(made)
    cluster.update([A])
    member = cluster.pick(None, (), 0)
    cluster.update([B])
    assert made[0].closed == 0
    del member
    assert made[0].closed == 1
    cluster.close()


def test_a_channel_that_is_closed_while_its_list_changes() -> None:
    """By the same thread, as the collector does: it does not wait for itself, and
    nothing stays open."""
    made: list[Channel] = []
    cluster = cluster_of(made, lambda: cluster.close())
    thread = threading.Thread(target=cluster.update, args=([A, B],), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert [channel.closed > 0 for channel in made] == [True] * len(made)
    with pytest.raises(ClosedError):
        cluster.pick(None, (), 0)
