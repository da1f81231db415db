"""An echo server with worker processes, and the other side of it: its log, its
workers, its addresses.

Every request that carries a request id is noted in a journal before it is
answered, as in echoed.py.
"""

from __future__ import annotations

import http.client
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import tidewire as tw

TOOLS = Path(__file__).resolve().parent
PATIENCE = 40.0


def make() -> tw.Server:
    """Of what the environment says; also the target of `tidewire serve`."""
    from echo_stubs import echo_pb2, echo_tw

    journal = os.environ["JOURNAL"]
    url, ttl = os.environ.get("REGISTER", ""), int(os.environ.get("TTL", "2"))

    class Echo(echo_tw.EchoService):
        """Made in each worker, as its journal is."""

        def __init__(self) -> None:
            if Path(os.environ["FAILS"]).exists():
                raise RuntimeError("no database")
            self._out = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

        def echo(self, request: Any, ctx: tw.Context) -> Any:
            if ctx.request_id:
                os.write(self._out, f"{ctx.request_id}\n".encode())
            word, _, rest = request.message.partition(":")
            if word == "trouble":
                server.set_health(rest or None)
            time.sleep(request.sleep_ms / 1000)
            return echo_pb2.EchoResponse(message=f"{os.getpid()} {request.message}")

    server = tw.Server(
        [Echo],
        listen=os.environ["LISTEN"].split(),
        options=tw.ServerOptions(
            workers=int(os.environ["WORKERS"]),
            threads=4,
            admin="127.0.0.1:0",
            drain=float(os.environ.get("DRAIN", "20")),
            register=tw.Register(url=url, ttl=ttl) if url else None,
        ),
    )
    return server


class Workers:
    """That server, started by entering it."""

    def __init__(
        self,
        where: Path,
        workers: int = 2,
        listen: str = "127.0.0.1:0",
        command: list[str] | None = None,
        pass_fds: tuple[int, ...] = (),
        **env: str,
    ) -> None:
        """where: a directory for the journal.  command: what to run instead."""
        from generated import WHERE

        self.journal = where / "journal"
        self.journal.touch()
        self.fails = where / "fails"
        """While it exists no worker can start."""
        self._pass_fds = pass_fds
        self._command = command or [sys.executable, __file__]
        self._env = {
            **os.environ,
            "PYTHONPATH": f"{WHERE}:{TOOLS}",
            "JOURNAL": str(self.journal),
            "FAILS": str(self.fails),
            "LISTEN": listen,
            "WORKERS": str(workers),
            **env,
        }
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False

    def __enter__(self) -> Workers:
        self.start()
        try:
            self.until(r"serving on")
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command,
            stderr=subprocess.PIPE,
            text=True,
            env=self._env,
            pass_fds=self._pass_fds,
        )
        self._reader = threading.Thread(target=self._read, name="workers-log")
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self._lines.append(line.rstrip())
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pid in self._pids("starts", "died", "ended"):
            if self._is_ours(pid):  # whatever it does, it need not end it
                os.kill(pid, signal.SIGKILL)
        self.end()

    def end(self) -> int:
        """Waits until it and all of its workers are gone; its status."""
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert not self._reader.is_alive(), "a worker holds the log open"
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Lets it drain; its exit status."""
        self.process.send_signal(number)
        return self.end()

    # ---- the log

    @property
    def log(self) -> list[str]:
        with self._news:
            return list(self._lines)

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, line)) for line in self.log)

    def until(self, pattern: str, times: int = 1) -> str:
        """Waits for the line that matches for that time."""
        with self._news:
            found: list[str] = []

            def there() -> bool:
                found[:] = [li for li in self._lines if re.search(pattern, li)]
                return len(found) >= times or self._ended

            self._news.wait_for(there, PATIENCE)
            if len(found) < times:
                raise AssertionError(f"no {pattern!r} in\n" + "\n".join(self._lines))
            return found[times - 1]

    # ---- facts

    @property
    def address(self) -> str:
        return self.addresses[0]

    @property
    def addresses(self) -> list[str]:
        line = self.until("serving on").split("serving on ")[1]
        return line.split(";")[0].split(", ")

    @property
    def admin(self) -> str:
        return self.until("serving on").split("admin on ")[1]

    def pids(self) -> list[int]:
        """Of the workers that are ready and neither told to stop nor dead."""
        return self._pids("is ready", "drains", "died", "ended")

    def _pids(self, begin: str, *ends: str) -> list[int]:
        found: list[int] = []
        for line in self.log:
            match = re.search(rf"worker (\d+) ({'|'.join((begin, *ends))})", line)
            if match is None:
                continue
            pid = int(match[1])
            if match[2] == begin:
                found.append(pid)
            elif pid in found:
                found.remove(pid)
        return found

    def _is_ours(self, pid: int) -> bool:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        return f"JOURNAL={self.journal}".encode() in environment

    def get(self, path: str) -> tuple[int, str]:
        """A page of the admin's: (status, text); asked again when a worker goes
        just then."""
        request = f"http://{self.admin}{path}"
        end = time.monotonic() + PATIENCE
        while True:
            try:
                with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read().decode()
            except (OSError, http.client.HTTPException):
                assert time.monotonic() < end, f"no answer from {request}"
                time.sleep(0.01)

    def samples(self, path: str = "/metrics") -> dict[str, float]:
        """Every sample of a scrape; asked again when scrapes have taken too much
        time."""
        end = time.monotonic() + PATIENCE
        while (got := self.get(path))[0] != 200:
            assert time.monotonic() < end, "no scrape succeeds"
            time.sleep(0.05)
        lines = [li for li in got[1].splitlines() if li and not li.startswith("#")]
        return {k: float(v) for k, _, v in (li.rpartition(" ") for li in lines)}

    def ran(self) -> Counter[str]:
        """How often each request id was run, by all processes so far."""
        return Counter(self.journal.read_text().split())


def total(samples: dict[str, float], name: str) -> float:
    """The sum over the labels of a sample's name."""
    return sum(v for k, v in samples.items() if k.partition("{")[0] == name)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make().run()
