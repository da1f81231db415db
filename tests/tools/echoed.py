"""An echo server in a process of its own, which can be stopped, continued,
killed and started again at the same address.

Every request that carries a request id is noted in a journal before it is
answered: one line, written at once, so that it survives the process.
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any


def main(
    listen: str, kind: str, journal: str, threads: str, pause: str, leaving: str
) -> None:
    import tidewire as tw
    from echo_stubs import echo_pb2, echo_tw

    out = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    seconds, share = float(pause), float(leaving)

    def note(ctx: tw.Context) -> None:
        if random.random() < share:
            raise tw.RpcError("as if it stopped", number=tw.Errno.ELOGOFF)
        if ctx.request_id:
            os.write(out, f"{ctx.request_id}\n".encode())

    def answer(request: Any, ctx: tw.Context) -> Any:
        if request.fail_code:
            raise tw.RpcError("as asked", number=request.fail_code)
        if ctx.attachment:
            ctx.reply_attachment = ctx.attachment
        return echo_pb2.EchoResponse(message=request.message)

    class Def(echo_tw.EchoService):
        def echo(self, request: Any, ctx: tw.Context) -> Any:
            note(ctx)
            time.sleep(seconds + request.sleep_ms / 1000)
            return answer(request, ctx)

    class Async(echo_tw.EchoService):
        async def echo(self, request: Any, ctx: tw.Context) -> Any:
            note(ctx)
            await asyncio.sleep(seconds + request.sleep_ms / 1000)
            return answer(request, ctx)

    options = tw.ServerOptions(threads=int(threads), drain=10.0)
    service = Def() if kind == "def" else Async()
    server = tw.Server([service], listen=listen, options=options).start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    print(server.address, flush=True)
    try:
        server.wait()
    finally:
        server.stop()


class EchoProcess:
    """The other side: that server, started by entering it."""

    def __init__(
        self,
        journal: Path,
        kind: str = "def",
        listen: str = "127.0.0.1:0",
        threads: int = 4,
        pause: float = 0.0,
        leaving: float = 0.0,
    ) -> None:
        """pause: seconds that each call takes at least.  leaving: the share of
        calls that it answers with ELOGOFF instead of running them."""
        self.journal = journal
        self.kind = kind
        self.address = listen
        self.threads = threads
        self.pause = pause
        self.leaving = leaving
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "EchoProcess":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Returns when it listens, at the address it had before."""
        from generated import WHERE

        assert self._process is None
        if self.address.startswith("unix:"):
            Path(self.address.removeprefix("unix:")).unlink(missing_ok=True)
        process = subprocess.Popen(
            [
                *(sys.executable, __file__, self.address, self.kind),
                *(str(self.journal), str(self.threads)),
                *(str(self.pause), str(self.leaving)),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(WHERE)},
        )
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            process.wait()
            process.stdout.close()
            raise RuntimeError(f"no server at {self.address}: {process.returncode}")
        self._process = process
        self.address = address

    def _end(self, number: int) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        if number == signal.SIGTERM:
            process.send_signal(signal.SIGCONT)
        status = process.wait()
        assert process.stdout is not None
        process.stdout.close()
        return status

    def stop(self) -> int:
        """Lets it drain; its exit status."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP; returns when it has stopped."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        while self._state() not in "Tt":
            time.sleep(0.001)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _state(self) -> str:
        assert self._process is not None
        with open(f"/proc/{self._process.pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0]

    def ran(self) -> Counter[str]:
        """How often each request id was run, by all processes so far."""
        return Counter(self.journal.read_text().split())


if __name__ == "__main__":
    main(*sys.argv[1:])
