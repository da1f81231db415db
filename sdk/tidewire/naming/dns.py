"""Names that DNS knows: dns:// and dns+srv://."""

import socket
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import parse_qsl

from tidewire.address import parse_address
from tidewire.errors import AddressError, OptionError
from tidewire.naming.naming import PeriodicNaming
from tidewire.node import Node

__all__ = ["DnsNaming", "SrvNaming"]

_INTERVALS: Final = (0.1, 86400.0)


def _with_interval(naming: PeriodicNaming, text: str) -> str:
    """Takes "?interval=30" off, and the interval over."""
    rest, _, query = text.partition("?")
    for name, value in parse_qsl(query, keep_blank_values=True):
        least, most = _INTERVALS
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1
        if name != "interval" or not least <= seconds <= most:
            raise OptionError(
                f"{name}={value} is no option of a DNS name; allowed: interval=N,"
                f" {least:g} to {most:.0f} (seconds)"
            )
        naming.interval = seconds
    return rest


def _nodes_of(host: str, port: int, tag: str = "") -> list[Node]:
    """One for each address, in an order that does not change by itself."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    hosts = sorted({str(info[4][0]) for info in found})
    return [
        Node(address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}", tag=tag)
        for host in hosts
    ]


class DnsNaming(PeriodicNaming):
    """dns://name:80: every address that the name has; or several, with commas
    between.  "?interval=30": how often it is looked up, in seconds."""

    def __init__(self, text: str) -> None:
        rest = _with_interval(self, text)
        self.names: Final = [parse_address(part) for part in rest.split(",")]
        for name in self.names:
            if name.kind == "unix":
                raise AddressError(f"{name.text!r} is no name for dns://")

    def lookup(self) -> Sequence[Node]:
        return [node for name in self.names for node in _nodes_of(name.host, name.port)]


class SrvNaming(PeriodicNaming):
    """dns+srv://_shop._tcp.example.org: the servers of the SRV records with the
    best priority, their weights as tags."""

    def __init__(self, text: str) -> None:
        try:
            import dns.resolver
        except ModuleNotFoundError:
            raise OptionError(
                "dns+srv:// wants dnspython: pip install 'tidewire[dns]'"
            ) from None
        self.name: Final = _with_interval(self, text)
        if not self.name or ":" in self.name:
            raise AddressError(
                f"{self.name!r} is no name of SRV records; allowed: a name without"
                " a port, such as _shop._tcp.example.org"
            )
        self._resolve: Any = dns.resolver.resolve

    def lookup(self) -> Sequence[Node]:
        records = list(self._resolve(self.name, "SRV"))
        best = min((record.priority for record in records), default=0)
        return [
            node
            for record in records
            if record.priority == best
            for node in _nodes_of(
                str(record.target).rstrip("."), record.port, str(record.weight or "")
            )
        ]
