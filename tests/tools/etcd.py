"""A real etcd of our own: found in PATH or where .ci/prerequisites puts it, at
ports that were free, its data in a directory of the test's.

What it is asked here does not go through the SDK.
"""

import base64
import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

UNPACKED = Path(__file__).resolve().parents[2] / ".tools/usr/bin/etcd"
PATIENCE = 20.0
"""Seconds until it answers."""


def executable() -> str | None:
    """None: there is none here."""
    return shutil.which("etcd") or (str(UNPACKED) if UNPACKED.exists() else None)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        listeners = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            for _ in range(count)
        ]
        return [listener.getsockname()[1] for listener in listeners]


class Etcd:
    """Runs from entering to leaving; kill() and start() in between keep the data
    and the port."""

    def __init__(self, program: str, where: Path, *options: str, tls: bool = False):
        self._program = program
        self._where = where
        self._options = options
        self._scheme = "https" if tls else "http"
        self._process: subprocess.Popen[bytes] | None = None
        self.endpoint = ""

    def __enter__(self) -> "Etcd":
        for left in reversed(range(5)):
            self.endpoint = "127.0.0.1:{}".format(*free_ports(1))
            try:
                self.start()
                break
            except OSError:  # somebody was quicker with the port
                if not left:
                    raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Returns when it answers."""
        client = f"{self._scheme}://{self.endpoint}"
        with (self._where / "log").open("ab") as log:
            process = self._process = subprocess.Popen(
                [
                    *(self._program, "--data-dir", str(self._where / "data")),
                    *("--listen-client-urls", client),
                    *("--advertise-client-urls", client),
                    # It is alone: nobody comes to that.
                    *("--listen-peer-urls", "http://127.0.0.1:0"),
                    *("--heartbeat-interval", "20", "--election-timeout", "200"),
                    *("--unsafe-no-fsync", "--logger", "zap", "--log-level", "error"),
                    *self._options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + PATIENCE
        while not self._listens():
            if process.poll() is not None or time.monotonic() > end:
                self.kill()
                log_text = (self._where / "log").read_text(errors="replace")
                raise OSError(f"etcd does not start: {log_text[-2000:]}")
            time.sleep(0.01)

    def _listens(self) -> bool:
        if self._scheme == "https":  # asking is the test's business
            host, port = self.endpoint.split(":")
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
            except OSError:
                return False
            return True
        try:
            return bool(self.get("/nothing") == [])
        except OSError:
            return False

    def kill(self) -> None:
        """By SIGKILL; its data stay."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def freeze(self) -> None:
        """Accepts and never answers, until thaw()."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    # ---- what is in it

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            f"http://{self.endpoint}/v3/{path}", json.dumps(body).encode()
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def put(self, key: str, value: str | bytes, **how: Any) -> int:
        """The revision."""
        data = value.encode() if isinstance(value, str) else value
        answer = self.ask("kv/put", key=b64(key.encode()), value=b64(data), **how)
        return int(answer["header"]["revision"])

    def delete(self, prefix: str) -> None:
        self.ask("kv/deleterange", **below(prefix))

    def compact(self, revision: int) -> None:
        self.ask("kv/compaction", revision=str(revision), physical=True)

    def pairs(self, prefix: str, **how: Any) -> list[dict[str, Any]]:
        """As etcd gives them."""
        answer = self.ask("kv/range", **below(prefix), **how)
        found: list[dict[str, Any]] = answer.get("kvs", [])
        return found

    def get(self, prefix: str) -> list[str]:
        """The values below it."""
        values = (pair.get("value", "") for pair in self.pairs(prefix))
        return [base64.b64decode(value).decode() for value in values]

    def revoke_leases(self, prefix: str) -> None:
        """As if they had ended: of all keys below it."""
        for pair in self.pairs(prefix):
            self.ask("lease/revoke", ID=pair["lease"])


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def below(prefix: str) -> dict[str, str]:
    """The range of all keys that begin so."""
    key = prefix.encode()
    return {"key": b64(key), "range_end": b64(key[:-1] + bytes([key[-1] + 1]))}
