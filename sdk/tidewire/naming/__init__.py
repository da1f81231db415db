"""Naming: where the servers of a cluster come from."""

import os
import threading
from collections.abc import Callable
from typing import Final, TypeAlias

from tidewire.errors import AddressError
from tidewire.naming.lists import FileNaming, StaticNaming
from tidewire.naming.naming import Naming, PeriodicNaming, Publish, Stopping
from tidewire.naming.registry import Registration, Registry
from tidewire.naming.watch import Watch

__all__ = [
    "Naming",
    "PeriodicNaming",
    "Publish",
    "Registration",
    "Registry",
    "Stopping",
    "Watch",
    "close_watch",
    "parse",
    "register",
    "registry_of",
    "watch_of",
]

Factory: TypeAlias = Callable[[str], Naming]
"""From what stands behind `scheme://`."""

_GROUP: Final = "tidewire.naming"
"""Entry points: a scheme's name, and its factory."""

# The collector may close a channel, and with it a watch, in here.
_lock = threading.RLock()
_watches: Final[dict[str, Watch]] = {}


def _dns(text: str) -> Naming:
    from tidewire.naming.dns import DnsNaming

    return DnsNaming(text)


def _srv(text: str) -> Naming:
    from tidewire.naming.dns import SrvNaming

    return SrvNaming(text)


def _etcd(text: str) -> Naming:
    from tidewire.naming.etcd import EtcdNaming

    return EtcdNaming(text)


def _etcds(text: str) -> Naming:
    from tidewire.naming.etcd import EtcdNaming

    return EtcdNaming(text, tls=True)


_factories: Final[dict[str, Factory]] = {
    "list": StaticNaming,
    "file": FileNaming,
    "dns": _dns,
    "dns+srv": _srv,
    "etcd": _etcd,
    "etcds": _etcds,
}


def register(scheme: str, factory: Factory) -> None:
    """Makes `scheme://...` known to channels that are opened from now on."""
    _factories[scheme] = factory


def parse(url: str) -> Naming:
    """The naming of an address of a cluster.  Raises AddressError, or OptionError,
    for what is none."""
    scheme, colon, rest = url.partition("://")
    if not colon:
        raise AddressError(f"address is {url!r}; allowed: scheme://...")
    factory = _factories.get(scheme) or _plugged_in(scheme)
    if factory is None:
        raise AddressError(
            f"address is {url!r}: nothing is known of {scheme}://; allowed:"
            f" {', '.join(f'{name}://' for name in _factories)}, or a plug-in's"
        )
    try:
        return factory(rest)
    except AddressError as error:
        raise AddressError(f"address is {url!r}: {error}") from None


def registry_of(url: str) -> Registry:
    """Where servers enter themselves.  Raises as parse() does."""
    found = parse(url)
    if not isinstance(found, Registry):
        raise AddressError(
            f"url is {url!r}: servers cannot register there; allowed: etcd://,"
            " etcds://, or a plug-in's whose naming is a Registry, too"
        )
    return found


def _plugged_in(scheme: str) -> Factory | None:
    from importlib.metadata import entry_points

    for found in entry_points(group=_GROUP, name=scheme):
        factory: Factory = found.load()
        return factory
    return None


def watch_of(url: str) -> Watch:
    """The watch that all channels to that address share; close_watch() it."""
    with _lock:
        watch = _watches.get(url)
        if watch is None:
            watch = _watches[url] = Watch(url, parse(url))
        watch.open()
        return watch


def close_watch(watch: Watch) -> None:
    """It is not used here any more."""
    with _lock:
        if watch.close() and _watches.get(watch.url) is watch:
            del _watches[watch.url]


def _after_fork() -> None:
    """In the child: the lock may be held by a thread that is not there."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)
