"""An echo server in a process of its own, which tells what it holds.

    python served.py '{"kind": "def", "path": "/tmp/s", "threads": 4, ...}'

Prints one line of JSON when it listens, and one for each line on stdin:
`books` (the core's census, counters, memory), `trim` (the same, after the
allocator gave back what is free) or anything else to stop.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

COUNTERS = (
    "tidewire_keepwrite",
    "tidewire_waitepollout",
    "tidewire_read_pauses",
    "tidewire_unwritten_bytes",
    "tidewire_overcrowded",
    "tidewire_received_messages",
    "tidewire_sent_messages",
    "tidewire_sent_bytes",
    "tidewire_writev_calls",
    "tidewire_double_completions",
    "tidewire_server_calls",
    "tidewire_server_in_flight",
)


def main() -> None:
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    import bed

    options = json.loads(sys.argv[1])
    kind, path = options.pop("kind"), options.pop("path")

    def books() -> dict[str, Any]:
        with open("/proc/self/statm") as statm:
            rss = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        counted = {name: bed.counter(name) for name in COUNTERS}
        cpu = time.process_time()
        return bed.census() | counted | {"rss": rss, "cpu": cpu}

    tally = bed.Tally()
    tally.note = lambda request, ctx: None  # type: ignore[method-assign]
    options.setdefault("admin", "127.0.0.1:0")
    server = bed.tw.Server(
        [bed.echo_service(kind, tally)],
        listen=["127.0.0.1:0", f"unix:{path}"],
        options=bed.tw.ServerOptions(**options),
    )
    with server:
        first = {"address": server.address, "admin": server.admin_address}
        print(json.dumps(first | {"pid": os.getpid()}), flush=True)
        for line in sys.stdin:
            if line.strip() == "trim":
                gc.collect()
                ctypes.CDLL(None).malloc_trim(0)
            elif line.strip() != "books":
                break
            print(json.dumps(books()), flush=True)


class Served:
    """The other side of it."""

    def __init__(self, process: "subprocess.Popen[str]", path: str) -> None:
        self._process = process
        self.path = path
        """Of the unix socket that it listens on as well."""
        first = self._line()
        self.address: str = first["address"]
        self.admin: str = first["admin"]
        self.pid: int = first["pid"]
        host, _, port = self.address.rpartition(":")
        self.host_port = (host, int(port))

    def _line(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the server has ended: {self._process.poll()}"
        return json.loads(line)

    def books(self, trim: bool = False) -> dict[str, Any]:
        """What the process holds at this moment; trim: without memory that is
        free and only not yet given back to the system."""
        assert self._process.stdin is not None
        self._process.stdin.write("trim\n" if trim else "books\n")
        self._process.stdin.flush()
        books: dict[str, Any] = self._line()
        return books


@contextmanager
def served(**options: Any) -> Iterator[Served]:
    """A running server process; ends with status 0."""
    with (
        tempfile.TemporaryFile("w+") as errors,
        tempfile.TemporaryDirectory() as directory,
    ):
        path = os.path.join(directory, "socket")
        process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(options | {"path": path})],
            # What is free goes back to the system, as far as the allocator can:
            # its caches would hide what is held.
            env=os.environ | {"MALLOC_TRIM_THRESHOLD_": "65536"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            yield Served(process, path)
        finally:
            process.communicate("stop\n", timeout=30)
            errors.seek(0)
            said = errors.read()
            sys.stderr.write(said)
        assert process.returncode == 0
        # Nothing that Python says when something was forgotten.
        for bad in ("Traceback", "Warning:", "unanswered"):
            assert bad not in said


if __name__ == "__main__":
    main()
