"""h2load as a gRPC load generator: unary Echo calls with a fixed body."""

import re
import shutil
import struct
from pathlib import Path

from lib import process
from lib.errors import BenchError, SkipRow
from lib.tools import SPARE_SECONDS, WARMUP_SECONDS

MESSAGE = b"\x0a\x10" + b"x" * 16
# Not compressed, length, message: the body of a request and of its answer.
BODY = struct.pack(">BI", 0, len(MESSAGE)) + MESSAGE


def find() -> str:
    """The program, or the reason to skip a row."""
    found = shutil.which("h2load")
    if found is None:
        raise SkipRow(
            "h2load is not installed (it comes with nghttp2, "
            "package nghttp2-client in Debian and Ubuntu)"
        )
    return found


def load(port: int, shape: tuple[int, int], seconds: float, work: Path) -> float:
    """Calls/s of example.EchoService/Echo, CONNECTIONS x DEPTH."""
    connections, depth = shape
    body = work / "grpc_body"
    body.write_bytes(BODY)
    argv = [
        find(),
        f"-c{connections}",
        f"-m{depth}",
        f"-D{seconds * 1000:.0f}ms",
        f"--warm-up-time={WARMUP_SECONDS * 1000:.0f}ms",
        f"-d{body}",
        "-Hcontent-type: application/grpc",
        "-Hte: trailers",
        f"http://127.0.0.1:{port}/example.EchoService/Echo",
    ]
    return parse(process.run(argv, timeout=seconds + SPARE_SECONDS))


def parse(text: str) -> float:
    """req/s out of h2load's report; anything but full answers is an error.

    A gRPC error travels under HTTP status 200 without a body, so the bytes of
    data are what tells answers from errors.
    """
    rate = re.search(r"^finished in .*?, ([\d.]+) req/s", text, re.MULTILINE)
    counts = re.search(
        r"^requests: .* (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout",
        text,
        re.MULTILINE,
    )
    data = re.search(r"^traffic: .*\((\d+)\) data$", text, re.MULTILINE)
    if rate is None or counts is None or data is None:
        raise BenchError(f"cannot read what h2load printed: {text[-500:]}")
    succeeded, *others = map(int, counts.groups())
    if not succeeded or any(others):
        raise BenchError(f"h2load: {counts[0]}")
    if int(data[1]) < succeeded * len(BODY):
        raise BenchError("h2load: some answers were gRPC errors")
    return float(rate[1])
