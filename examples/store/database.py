"""The store's tables in a SQLite file, which any number of processes share."""

import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Conflict", "Database", "Row"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS items (
    owner TEXT NOT NULL, name TEXT NOT NULL, value BLOB NOT NULL,
    version INTEGER NOT NULL, PRIMARY KEY (owner, name)
) WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One item."""

    name: str
    value: bytes
    version: int


class Conflict(Exception):
    """What is stored has another version."""

    def __init__(self, version: int) -> None:
        super().__init__(f"the item has version {version}")
        self.version = version


class Database:
    """Each thread has a connection of its own; SQLite's locks do the rest."""

    def __init__(self, path: Path, patience: float = 5.0) -> None:
        """patience: seconds to wait for another writer."""
        self._path = path
        self._patience = patience
        self._threads = threading.local()
        self._lock = threading.Lock()
        self._all: list[sqlite3.Connection] = []

    @staticmethod
    def create(path: Path) -> None:
        """Makes the tables in the file, if they are not there.  Once, before
        several processes open it: they would be in each other's way."""
        connection = sqlite3.connect(path)
        with connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(_SCHEMA)
        connection.close()

    def _connection(self) -> sqlite3.Connection:
        known: sqlite3.Connection | None = getattr(self._threads, "connection", None)
        if known is None:
            known = sqlite3.connect(
                self._path,
                timeout=self._patience,
                isolation_level=None,
                check_same_thread=False,  # close() comes from another thread
            )
            known.execute("PRAGMA synchronous = NORMAL")
            self._threads.connection = known
            with self._lock:
                self._all.append(known)
        return known

    def close(self) -> None:
        """Once no thread uses it any more."""
        with self._lock:
            for connection in self._all:
                connection.close()
            self._all.clear()

    def put(self, owner: str, name: str, value: bytes, expected: int) -> Row:
        """Writes; raises Conflict.  expected: a version, 0: any, -1: none."""
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            found = self.get(owner, name)
            version = found.version if found else 0
            if expected and version != max(expected, 0):
                raise Conflict(version)
            row = Row(name, value, version + 1)
            connection.execute(
                "INSERT INTO items VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
                " SET value = excluded.value, version = excluded.version",
                (owner, name, value, row.version),
            )
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
        return row

    def get(self, owner: str, name: str) -> Row | None:
        """What is stored under a name."""
        found = self._connection().execute(
            "SELECT name, value, version FROM items WHERE owner = ? AND name = ?",
            (owner, name),
        )
        row = found.fetchone()
        return None if row is None else Row(*row)

    def names(self, owner: str, prefix: str, after: str, limit: int) -> list[Row]:
        """Up to `limit` items in the order of their names, without values."""
        found = self._connection().execute(
            "SELECT name, version FROM items WHERE owner = ? AND name > ?"
            " AND substr(name, 1, ?) = ? ORDER BY name LIMIT ?",
            (owner, after, len(prefix), prefix, limit),
        )
        return [Row(name, b"", version) for name, version in found]

    def delete(self, owner: str, name: str) -> bool:
        """Whether there was one."""
        gone = self._connection().execute(
            "DELETE FROM items WHERE owner = ? AND name = ?", (owner, name)
        )
        return gone.rowcount > 0
