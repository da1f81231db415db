"""systemd's two protocols for services, which are an environment variable
each: sockets that it hands over, and news that it is sent."""

import os
import socket
import time
from typing import Final

from tidewire.errors import AddressError

__all__ = ["ACTIVATION", "expand", "notify", "reloading"]

ACTIVATION: Final = "systemd"
"""As an address to listen on: every socket that systemd has handed over."""

_FIRST: Final = 3


def expand(listen: list[str]) -> list[str]:
    """The addresses, with "fd:3", "fd:4" and so on for "systemd"."""
    out: list[str] = []
    for text in listen:
        out += _handed_over() if text == ACTIVATION else [text]
    return out


def _handed_over() -> list[str]:
    pid, count = os.environ.get("LISTEN_PID"), os.environ.get("LISTEN_FDS", "")
    if pid != str(os.getpid()) or not count.isdecimal() or int(count) == 0:
        raise AddressError(
            f"listen is {ACTIVATION!r}, and systemd has handed over no socket"
            f" (LISTEN_PID is {pid}, this process {os.getpid()};"
            f" LISTEN_FDS is {count or None})"
        )
    return [f"fd:{_FIRST + i}" for i in range(int(count))]


def notify(news: str) -> bool:
    """Tells the service manager; False where there is none.  A manager that
    cannot be reached is no reason to fail."""
    where = os.environ.get("NOTIFY_SOCKET", "")
    if not where.startswith(("/", "@")):
        return False
    address = "\0" + where[1:] if where[0] == "@" else where
    try:
        with socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
        ) as sock:
            sock.settimeout(1.0)
            sock.sendto(news.encode(), address)
    except OSError:
        return False
    return True


def reloading() -> None:
    """Until the next READY=1."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
