"""Plain sockets by Tidewire's addresses, for asyncio."""

import socket
from typing import Any

__all__ = ["address_of", "bound", "name_of", "prepare", "socket_for"]


def address_of(text: str) -> Any:
    """As socket.bind() and connect() take it."""
    if text.startswith("unix:"):
        return text.removeprefix("unix:")
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def socket_for(text: str) -> socket.socket:
    """A socket of the address's family, which does not block."""
    family = socket.AF_INET
    if text.startswith("unix:"):
        family = socket.AF_UNIX
    elif text.startswith("["):
        family = socket.AF_INET6
    sock = socket.socket(family)
    sock.setblocking(False)
    return sock


def bound(text: str) -> socket.socket:
    """A socket that is bound and does not listen yet."""
    sock = socket_for(text)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address_of(text))
    except BaseException:
        sock.close()
        raise
    return sock


def name_of(listener: socket.socket) -> str:
    """The address that it is bound to."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{host}:{name[1]}"


def prepare(sock: socket.socket) -> None:
    """For bytes that are passed on as they come."""
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
