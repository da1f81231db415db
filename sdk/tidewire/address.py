"""Addresses as text: "1.2.3.4:80", "[::1]:80", "host:80", "unix:/path"; and
lists of them for one server, with commas between."""

import os
import re
from dataclasses import dataclass
from typing import Final, Literal

from tidewire.errors import AddressError

__all__ = ["MAX_ADDRESSES", "Address", "is_cluster", "parse_address", "parse_addresses"]

_ALLOWED: Final = (
    "1.2.3.4:80, [::1]:80, host.name:80 (port 0 to 65535) or unix:/absolute/path"
)
MAX_ADDRESSES: Final = 16
"""Addresses of one server; the core takes no more."""
# sockaddr_un has 108 bytes; the last is for the NUL.
_MAX_UNIX_PATH: Final = 107
_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*"
    r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.?",
    re.IGNORECASE,
)
# What some resolvers read as an IPv4 address in an odd notation: 127.1, 0x7f.1
_NUMERIC_LABEL: Final = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A parsed address."""

    kind: Literal["ipv4", "ipv6", "name", "unix"]
    """A "name" must be resolved before the core can use it."""
    host: str
    """Host without brackets, or the path of a unix socket."""
    port: int
    """0 to 65535; 0 with "unix", and where the kernel shall choose."""
    text: str
    """The canonical form; parsing it gives an equal address."""

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it.  A name is not trusted to
        be local, not even localhost."""
        match self.kind:
            case "unix":
                return True
            case "ipv4":
                return self.host.startswith("127.")
            case "ipv6":
                return self.host == "::1"
            case _:
                return False


def is_cluster(address: object) -> bool:
    """Whether it names a cluster (`scheme://...`) and not one server."""
    return isinstance(address, str) and "://" in address


def parse_address(text: object) -> Address:
    """Raises AddressError for text that is no address, TypeError for what is
    no text.  Resolves nothing."""
    if not isinstance(text, str):
        raise TypeError(f"address is {text!r} ({type(text).__name__}); allowed: a str")
    if text.startswith("unix:"):
        return _parse_unix(text)
    if text.startswith("["):
        host, bracket, port_text = text[1:].partition("]:")
        if not bracket:
            raise _refusal(text, "an IPv6 address ends with ']:' and the port")
        port = _parse_port(text, port_text)
        host = _parse_ipv6(text, host)
        return Address(kind="ipv6", host=host, port=port, text=f"[{host}]:{port}")
    host, colon, port_text = text.rpartition(":")
    if not colon:
        raise _refusal(text, "the port is missing")
    if ":" in host:
        raise _refusal(text, "an IPv6 address needs brackets, as in [::1]:80")
    port = _parse_port(text, port_text)
    kind, host = _parse_host(text, host)
    return Address(kind=kind, host=host, port=port, text=f"{host}:{port}")


def parse_addresses(text: object) -> tuple[Address, ...]:
    """The addresses of one server, "a:80,b:80"; at least one.  Raises as
    parse_address does."""
    if not isinstance(text, str):
        return (parse_address(text),)  # which refuses it
    parts = text.split(",")
    if len(parts) > MAX_ADDRESSES:
        reason = f"{len(parts)} addresses are more than {MAX_ADDRESSES}"
        raise _refusal(text, reason)
    return tuple(parse_address(part.strip()) for part in parts)


def _refusal(text: str, reason: str) -> AddressError:
    given = repr(text if len(text) <= 200 else text[:197] + "...")
    return AddressError(f"{given} is no address: {reason}; allowed: {_ALLOWED}")


def _parse_unix(text: str) -> Address:
    path = text.removeprefix("unix:")
    if not path.startswith("/"):
        raise _refusal(text, "the path of a unix socket must be absolute")
    if "\0" in path:
        raise _refusal(text, "the path has a NUL")
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError:
        raise _refusal(text, "the path cannot be encoded") from None
    if size > _MAX_UNIX_PATH:
        reason = f"the path has {size} bytes, more than {_MAX_UNIX_PATH}"
        raise _refusal(text, reason)
    return Address(kind="unix", host=path, port=0, text=text)


def _parse_port(text: str, port: str) -> int:
    # int() would also take "+80", " 80", "8_0" and digits of other scripts.
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise _refusal(text, f"the port is {port[:20]!r}")
    return int(port)


def _parse_ipv6(text: str, host: str) -> str:
    import ipaddress  # here, because most programs never need it

    if "%" in host:
        raise _refusal(text, "IPv6 zones such as %eth0 are not supported")
    try:
        return ipaddress.IPv6Address(host).compressed
    except ValueError as error:
        raise _refusal(text, str(error)) from None


def _parse_host(text: str, host: str) -> tuple[Literal["ipv4", "name"], str]:
    last_label = host.removesuffix(".").rpartition(".")[2]
    if _NUMERIC_LABEL.fullmatch(last_label):
        if not _is_ipv4(host):
            raise _refusal(text, f"{host!r} is no IPv4 address")
        return "ipv4", host
    if not _NAME.fullmatch(host):
        raise _refusal(text, "the host is empty or no host name")
    return "name", host.lower()


def _is_ipv4(host: str) -> bool:
    parts = host.split(".")
    return len(parts) == 4 and all(
        re.fullmatch(r"0|[1-9][0-9]{0,2}", part) and int(part) <= 255 for part in parts
    )
