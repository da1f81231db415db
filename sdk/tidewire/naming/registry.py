"""Where servers enter themselves, so that a naming finds them."""

from abc import ABC, abstractmethod

from tidewire.node import Node

__all__ = ["Registration", "Registry"]


class Registration(ABC):
    """One server's entry.  Its methods may block, for seconds, and raise what is
    wrong; they are called in one thread."""

    @abstractmethod
    def keep(self) -> None:
        """Says that the server lives: called three times in each `ttl`.  Raises
        when the entry is gone or that cannot be said; then the server is
        registered anew."""

    @abstractmethod
    def revoke(self) -> None:
        """Takes the entry off, at once."""


class Registry(ABC):
    """A naming whose scheme servers can register with is this, too."""

    @abstractmethod
    def register(self, node: Node, ttl: int) -> Registration:
        """Enters it.  The entry is to end by itself `ttl` seconds after the last
        word of the server.  Called again, on the same object, it replaces what it
        may have entered before; entries of other objects stay, also of the
        same address: each worker process of a server has its own.

        May block, for seconds, and raise what is wrong; then it is tried again
        after a while."""
