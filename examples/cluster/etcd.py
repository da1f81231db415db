"""An etcd for the example alone: one process, its data in a temporary directory."""

import shutil
import socket
import subprocess
import time
from pathlib import Path

UNPACKED = Path(__file__).resolve().parents[2] / ".tools/usr/bin/etcd"
PATIENCE = 20.0


class Etcd:
    """Runs while entered."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.endpoint = ""

    @staticmethod
    def program() -> str | None:
        """In PATH, or where the project's tests have unpacked it."""
        return shutil.which("etcd") or (str(UNPACKED) if UNPACKED.exists() else None)

    def __enter__(self) -> "Etcd":
        program = self.program()
        if program is None:
            raise SystemExit("there is no etcd; allowed: --list file")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.endpoint = f"127.0.0.1:{free.getsockname()[1]}"
        with (self.where / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(program, "--data-dir", str(self.where / "data")),
                    *("--listen-client-urls", f"http://{self.endpoint}"),
                    *("--advertise-client-urls", f"http://{self.endpoint}"),
                    # It is alone: nobody comes to that.
                    *("--listen-peer-urls", "http://127.0.0.1:0"),
                ],
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + PATIENCE
        while not self.listens():
            if self.process.poll() is not None or time.monotonic() > end:
                self.__exit__()
                raise SystemExit((self.where / "log").read_text())
            time.sleep(0.01)
        return self

    def listens(self) -> bool:
        host, port = self.endpoint.split(":")
        try:
            socket.create_connection((host, int(port)), timeout=1.0).close()
        except OSError:
            return False
        return True

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
