"""Runs the echo server as its own process, uses it in every way, and looks at
what its counters say about that.  `make demo` runs it.

Exit status 0 says that everything held; 1 comes with what did not.
"""

import argparse
import asyncio
import contextlib
import http.client
import logging
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import tidewire as tw
from prometheus_client.parser import text_string_to_metric_families

try:
    from gen import echo_pb2, echo_tw
except ModuleNotFoundError as error:
    if error.name != "gen":
        raise
    sys.exit(
        "no stubs yet; from the project's directory: tidewire gen"
        " examples/echo/echo.proto -I examples/echo -o examples/echo/gen"
    )

START = 5.0
"""Seconds that the server has to say where it listens."""
PATIENCE = 5.0
"""Seconds for everything else that is waited for."""

METHOD = "example.EchoService/Echo"
ATTACHMENT = bytes(range(256)) * 16
SLEEP_MS = 800
"""How long the server handles a call whose deadline is 100 ms."""
AT_ONCE = 100
"""Calls that the asyncio client has under way at once."""
SLOW_ANSWERS = 8
SLOW_SIZE = 1 << 20
"""What the slow reader asks for: so many answers of so many bytes."""


class Broken(Exception):
    """Something did not hold."""


def check(holds: bool, what: str) -> None:
    """Raises Broken with `what` unless it holds."""
    if not holds:
        raise Broken(what)


@contextlib.contextmanager
def part(name: str) -> Iterator[None]:
    """A part of the demo: what goes wrong in it becomes Broken, with its name."""
    try:
        yield
    except (Broken, tw.TidewireError, OSError, http.client.HTTPException) as error:
        what = str(error) if isinstance(error, Broken) else repr(error)
        raise Broken(f"{name}: {what}") from error


# ---- what is shown


def plain_unless(text: str, plain: str) -> str:
    """`text` where standard output can show it, else `plain`."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return plain
    return text


def say(text: str) -> None:
    print(text, flush=True)


def held(text: str) -> None:
    """One more thing that was tried and is as it should be."""
    say(f"{plain_unless('✓', 'ok')} {text}")


def ms(since: float) -> str:
    return f"{(time.perf_counter() - since) * 1e3:.1f} ms"


# ---- the server's process


class EchoServer:
    """The example's server as a child; leaving the `with` block ends it."""

    def __init__(self, script: Path) -> None:
        self._script = script
        self.log: list[str] = []
        self.address = ""
        self.admin = ""

    def __enter__(self) -> "EchoServer":
        command = [sys.executable, str(self._script)]
        command += ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        # Reads to the end, so that the server never waits for its own output.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            with part("start of the server"):
                self._await_addresses()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    @property
    def pid(self) -> int:
        return self._process.pid

    def terminate(self) -> None:
        self._process.terminate()

    def wait(self, seconds: float) -> int | None:
        """Its exit status, None when it still runs after so many seconds."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        """Ends it by force, if it still runs."""
        self._process.kill()
        self._process.wait()
        self._reader.join(PATIENCE)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self.log.append(line.rstrip())
                self._lines.put(line)
        self._lines.put("")

    def _await_addresses(self) -> None:
        end = time.monotonic() + START
        while not (self.address and self.admin):
            try:
                line = self._lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise Broken(f"the server said no address in {START:g} s") from None
            check(line != "", "the server ended before it listened")
            if line.startswith("listening on "):
                self.address = line.split()[-1]
            elif line.startswith("admin on http://"):
                self.admin = line.split("//")[-1].strip()


# ---- what its admin pages say


Counters = dict[str, float]


def get(server: EchoServer, path: str) -> tuple[int, str]:
    """Status and text of an admin page."""
    connection = http.client.HTTPConnection(server.admin, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()


def scrape(server: EchoServer) -> tuple[Counters, Counters]:
    """The counters and the gauges of /metrics."""
    status, text = get(server, "/metrics")
    check(status == 200, f"/metrics answered {status}")
    counters, gauges = Counters(), Counters()
    for family in text_string_to_metric_families(text):
        if not family.name.startswith("tidewire_"):
            continue
        for sample in family.samples:
            name, labels = sample.name, sample.labels
            if "code" in labels:
                name += f" {labels['code']}"
            if family.type == "counter":
                counters[name] = sample.value
            elif family.type == "gauge":
                gauges[name] = sample.value
    return counters, gauges


def await_in_flight(server: EchoServer, calls: int) -> None:
    """Waits until so many calls are being handled."""
    end = time.monotonic() + PATIENCE
    while (now := scrape(server)[1].get("tidewire_server_in_flight")) != calls:
        check(time.monotonic() < end, f"{now} calls are in flight, not {calls}")
        time.sleep(0.02)


def show_moved(before: Counters, after: Counters) -> None:
    """The table of the counters that are not what they were."""
    moved = {name: n - before.get(name, 0) for name, n in after.items()}
    moved = {name: n for name, n in moved.items() if n}
    width = max(map(len, moved))
    say(f"\n  {'counters that moved':{width}}  {'from':>12} {'by':>12}")
    for name, n in moved.items():
        say(f"  {name:{width}}  {before.get(name, 0):12,.0f} {n:12,.0f}")
    say("")


# ---- the two clients


def check_refusal(error: tw.RpcError) -> None:
    check(error.number == 2004, f"error 2004 was asked for, not {error}")
    check(error.phase is tw.Phase.PEER, f"not the server's answer: {error}")


def check_deadline(seconds: float) -> None:
    check(
        0.09 < seconds < SLEEP_MS / 1e3,
        f"a deadline of 100 ms ended the call after {seconds * 1e3:.0f} ms",
    )


def blocking_calls(address: str) -> int:
    """How many calls reached the server."""
    with tw.Channel(address, options=tw.ChannelOptions(timeout=PATIENCE)) as channel:
        echo = echo_tw.EchoClient(channel).echo
        start = time.perf_counter()
        check(
            echo(echo_pb2.EchoRequest(message="hello")).message == "hello",
            "the echo of a message is another one",
        )
        held(f"blocking client: a message and its echo ({ms(start)}, connecting)")
        request = echo_pb2.EchoRequest(message="with an attachment")
        response = echo.call(request, attachment=ATTACHMENT)
        check(response.attachment == ATTACHMENT, "an attachment came back changed")
        held(f"blocking client: an attachment of {len(ATTACHMENT)} bytes and back")
        try:
            echo(echo_pb2.EchoRequest(message="", fail_code=2004))
        except tw.ResourceExhausted as error:
            check_refusal(error)
        else:
            raise Broken("a call that was to fail did not")
        held("blocking client: error 2004 is tw.ResourceExhausted")
        start = time.perf_counter()
        try:
            echo(echo_pb2.EchoRequest(message="", sleep_ms=SLEEP_MS), timeout=0.1)
        except TimeoutError:  # tw.DeadlineExceeded is one
            check_deadline(time.perf_counter() - start)
        else:
            raise Broken("a call was answered after its deadline")
        held(f"blocking client: a deadline of 100 ms expired after {ms(start)}")
    return 4


async def asyncio_calls(address: str) -> int:
    """How many calls reached the server."""
    options = tw.ChannelOptions(timeout=PATIENCE)
    async with tw.AsyncChannel(address, options=options) as channel:
        echo = echo_tw.AsyncEchoClient(channel).echo
        start = time.perf_counter()
        texts = [f"hello {i}" for i in range(AT_ONCE)]
        replies = await asyncio.gather(
            *(echo(echo_pb2.EchoRequest(message=text)) for text in texts)
        )
        check(
            [reply.message for reply in replies] == texts,
            "calls at once got each other's answers",
        )
        held(f"asyncio client: {AT_ONCE} calls at once ({ms(start)})")
        request = echo_pb2.EchoRequest(message="with an attachment")
        response = await echo.call(request, attachment=ATTACHMENT)
        check(response.attachment == ATTACHMENT, "an attachment came back changed")
        held(f"asyncio client: an attachment of {len(ATTACHMENT)} bytes and back")
        try:
            await echo(echo_pb2.EchoRequest(message="", fail_code=2004))
        except tw.ResourceExhausted as error:
            check_refusal(error)
        else:
            raise Broken("a call that was to fail did not")
        held("asyncio client: error 2004 is tw.ResourceExhausted")
        start = time.perf_counter()
        try:
            await echo(echo_pb2.EchoRequest(message="", sleep_ms=SLEEP_MS), timeout=0.1)
        except TimeoutError:
            check_deadline(time.perf_counter() - start)
        else:
            raise Broken("a call was answered after its deadline")
        held(f"asyncio client: a deadline of 100 ms expired after {ms(start)}")
    return AT_ONCE + 3


# ---- a reader that is slow, with nothing but a socket (docs/wire.md)


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def frame(correlation_id: int, message: bytes) -> bytes:
    """A request as it goes over the wire."""
    service, method = METHOD.encode().split(b"/")
    meta = field(1, field(1, service) + field(2, method))
    meta += varint(4 << 3) + varint(correlation_id)
    return struct.pack(">4sII", b"PRPC", len(meta) + len(message), len(meta)) + (
        meta + message
    )


def receive(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = connection.recv(min(size - len(data), 1 << 16))
        check(more != b"", "the server closed the slow reader's connection")
        data += more
    return bytes(data)


@contextlib.contextmanager
def slow_reader(address: str) -> Iterator[socket.socket]:
    """A connection whose receive buffer is as small as the kernel lets it."""
    host, port = address.rsplit(":", 1)
    with socket.socket() as connection:
        # Before connecting: the window is agreed on then.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(PATIENCE)
        connection.connect((host, int(port)))
        yield connection


def slow_calls(server: EchoServer) -> int:
    """How many calls reached the server."""
    texts = [chr(ord("a") + i) * SLOW_SIZE for i in range(SLOW_ANSWERS)]
    with slow_reader(server.address) as connection:
        for i, text in enumerate(texts):
            message = echo_pb2.EchoRequest(message=text).SerializeToString()
            connection.sendall(frame(i + 1, message))
        await_in_flight(server, 0)  # all handled, and nothing read of it
        waiting = scrape(server)[1]["tidewire_unwritten_bytes"]
        check(waiting > 0, "no answer waits for the slow reader")
        start = time.perf_counter()
        with tw.Channel(server.address) as channel:
            echo_tw.EchoClient(channel).echo(echo_pb2.EchoRequest(message="beside"))
        beside = ms(start)
        seen = set()
        for _ in texts:
            magic, body, meta = struct.unpack(">4sII", receive(connection, 12))
            check(magic == b"PRPC", f"an answer begins with {magic!r}")
            receive(connection, meta)
            answer = receive(connection, body - meta)
            seen.add(echo_pb2.EchoResponse.FromString(answer).message)
    check(seen == set(texts), "the slow reader's answers are not what it asked for")
    held(
        f"slow reader: {waiting / (1 << 20):.1f} MiB of answers waited for it, a"
        f" call beside took {beside}, all arrived"
    )
    return SLOW_ANSWERS + 1


# ---- the end


def stop_gracefully(server: EchoServer) -> None:
    options = tw.ChannelOptions(timeout=PATIENCE)
    with tw.Channel(server.address, options=options) as channel:
        request = echo_pb2.EchoRequest(message="last", sleep_ms=500)
        future = echo_tw.EchoClient(channel).echo.future(request)
        await_in_flight(server, 1)
        start = time.perf_counter()
        server.terminate()
        end = time.monotonic() + PATIENCE
        while (health := get(server, "/health"))[0] == 200:
            check(time.monotonic() < end, "/health says OK of a server that stops")
        check(health == (503, "draining\n"), f"/health of a stopping server: {health}")
        check(future.result(PATIENCE).message == "last", "the last echo is wrong")
        answered = ms(start)
    status = server.wait(PATIENCE)
    check(status == 0, f"the server ended with status {status}")
    held(
        f"SIGTERM: /health says draining, the call in flight was answered after"
        f" {answered}, exit status 0 after {ms(start)}"
    )


def check_counters(before: Counters, after: Counters, calls: int) -> None:
    def moved(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    answered = moved("tidewire_server_calls_total")
    check(answered == calls, f"{calls} calls were made, {answered:g} were counted")
    failed = moved("tidewire_server_errors_total ELIMIT")
    check(failed == 2, f"2 calls failed with ELIMIT, {failed:g} were counted")
    for name in ("tidewire_keepwrite_total", "tidewire_waitepollout_total"):
        check(moved(name) > 0, f"{name} did not move for a slow reader")
    for name in ("tidewire_overcrowded_total", "tidewire_double_completions_total"):
        check(after[name] == 0, f"{name} is {after[name]:g}")


def run(server: EchoServer) -> None:
    """All of it, in order; raises Broken for what does not hold."""
    held(f"echo server: process {server.pid} on {server.address}")
    with part("admin pages"):
        health = get(server, "/health")
        check(health == (200, "OK\n"), f"/health answered {health}")
        held(f"http://{server.admin}/health says OK")
        before, _ = scrape(server)
    with part("blocking client"):
        calls = blocking_calls(server.address)
    with part("asyncio client"):
        calls += asyncio.run(asyncio_calls(server.address))
    with part("slow reader"):
        calls += slow_calls(server)
    with part("counters"):
        await_in_flight(server, 0)
        after, gauges = scrape(server)
        show_moved(before, after)
        check_counters(before, after, calls)
        check(gauges["tidewire_unwritten_bytes"] == 0, "bytes remain unwritten")
        held(f"http://{server.admin}/metrics has all {calls} calls, 2 of them failed")
    with part("graceful stop"):
        stop_gracefully(server)


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        description="Runs the echo server, uses it in every way, shows its counters."
    )
    parser.add_argument(
        "--server",
        type=Path,
        default=Path(__file__).with_name("server.py"),
        metavar="SCRIPT",
        help="another server to try (default: server.py)",
    )
    options = parser.parse_args()
    # Ended from outside, it still takes the server along.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda n, _: sys.exit(128 + n))
    # What goes wrong is said below.
    logging.getLogger("tidewire").addHandler(logging.NullHandler())
    server = EchoServer(options.server)
    start = time.perf_counter()
    try:
        with server:
            run(server)
    except Broken as broken:
        say(f"{plain_unless('✗', 'FAILED:')} {broken}")
        for line in server.log[-10:]:
            say(f"  server: {line}")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    say(f"everything held, in {time.perf_counter() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
