"""Lists that somebody wrote: list:// and file://."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tidewire.address import parse_address
from tidewire.errors import AddressError
from tidewire.naming.naming import Naming, Publish, Stopping
from tidewire.node import Node

__all__ = ["FileNaming", "StaticNaming", "parse_node"]

_log: Final = logging.getLogger("tidewire.naming")

_LOOK: Final = 0.1
"""Seconds between two looks at a file."""


def parse_node(text: str) -> Node:
    """The server of an "address", or an "address tag".  Raises AddressError."""
    address, _, tag = text.strip().partition(" ")
    return Node(address=parse_address(address).text, tag=tag.strip())


class StaticNaming(Naming):
    """list://10.0.0.1:80,10.0.0.2:80 3: addresses and tags."""

    def __init__(self, text: str) -> None:
        self.nodes: Final = tuple(parse_node(part) for part in text.split(","))

    def run(self, publish: Publish, stopping: Stopping) -> None:
        publish(self.nodes)


class FileNaming(Naming):
    """file:///etc/servers: a server in each line, and a tag behind it; what
    follows a "#" is for people.

    A change is seen within a second, also when the file is replaced.  While it
    cannot be read the list stays as it was."""

    def __init__(self, path: str) -> None:
        if not path.startswith("/"):
            raise AddressError(
                f"the file is {path!r}; allowed: file:// and an absolute path,"
                " file:///etc/servers"
            )
        self.path: Final = Path(path)

    def run(self, publish: Publish, stopping: Stopping) -> None:
        read: tuple[int, ...] | None = None
        seen: tuple[int, ...] | None = None
        said = ""
        while not stopping:
            try:
                now = self._mark()
                # The same twice: nobody is writing it at this moment.
                if now == seen and now != read:
                    publish(self._read())
                    read, said = now, ""
                seen = now
            except (OSError, UnicodeError) as error:
                seen = None
                if said != str(error):
                    said = str(error)
                    _log.warning("the list stays as it was: %s", error)
            stopping.wait(_LOOK)

    def _mark(self) -> tuple[int, ...]:
        """Other bytes make another one."""
        stat = os.stat(self.path)
        return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns

    def _read(self) -> Sequence[Node]:
        nodes = []
        for number, line in enumerate(self.path.read_text().splitlines(), 1):
            text = line.partition("#")[0].strip()
            if not text:
                continue
            try:
                nodes.append(parse_node(text.replace("\t", " ")))
            except AddressError as error:
                _log.warning("%s, line %d: %s", self.path, number, error)
        return nodes
