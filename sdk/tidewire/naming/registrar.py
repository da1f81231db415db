"""Keeps one server registered."""

import logging
import threading
from typing import Final

from tidewire.naming.backoff import Backoff
from tidewire.naming.naming import Stopping
from tidewire.naming.registry import Registration, Registry
from tidewire.node import Node

__all__ = ["Registrar"]

_log: Final = logging.getLogger("tidewire.naming")


class Registrar:
    """A thread from its making to stop().  Whatever the registry does, the server
    does not wait for it."""

    def __init__(self, url: str, registry: Registry, node: Node, ttl: int) -> None:
        self.url: Final = url
        self._registry: Final = registry
        self._node: Final = node
        self.ttl: Final = ttl
        self._stopping: Final = Stopping()
        self._ended: Final = threading.Event()
        self.registered = False
        """Whether it ever was."""
        threading.Thread(
            target=self._run, name="tidewire-register", daemon=True
        ).start()

    def stop(self, timeout: float) -> None:
        """Takes the server off, and waits so many seconds for that."""
        self._stopping.set()
        if not self._ended.wait(timeout) and timeout:
            _log.warning(
                "%s: no answer in %.1f s; the entry of %s ends later, after %d s at"
                " most",
                *(self.url, timeout, self._node.address, self.ttl),
            )

    def _run(self) -> None:
        try:
            held = self._keep()
            if held is not None:
                held.revoke()
                _log.info("%s: %s is taken off", self.url, self._node.address)
        except Exception as error:
            _log.warning(
                "%s: %s: %s; the entry of %s ends by itself, after %d s",
                *(self.url, type(error).__name__, error),
                *(self._node.address, self.ttl),
            )
        finally:
            self._ended.set()

    def _keep(self) -> Registration | None:
        """Until it is to stop: what is held then."""
        address = self._node.address
        backoff = Backoff(self._stopping, self.url, "it is tried again")
        held: Registration | None = None
        good = False
        while not self._stopping:
            try:
                if held is None or not good:
                    held = self._registry.register(self._node, self.ttl)
                    _log.info("%s: %s is registered", self.url, address)
                    good = True
                    self.registered = True
                else:
                    held.keep()
                backoff.worked()
            except Exception as error:
                good = False
                if not self._stopping:
                    backoff.failed(error)
            else:
                self._stopping.wait(self.ttl / 3)
        return held
