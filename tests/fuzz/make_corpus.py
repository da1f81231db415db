"""Writes the seed inputs of the fuzzers below corpus/; --check only compares.

python tests/fuzz/make_corpus.py [--check]
"""

import random
import struct
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CAPTURES = HERE.parent / "interop" / "captures"
SMALL = 4096  # larger captures teach a fuzzer nothing and slow it down

VARINT, FIXED64, LEN, FIXED32 = 0, 1, 2, 5


def varint(value: int, pad: int = 0) -> bytes:
    """Encodes a varint of 64 bits, with `pad` superfluous bytes."""
    value &= 2**64 - 1
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F)
    groups += [0] * pad
    return bytes(g | 0x80 for g in groups[:-1]) + bytes(groups[-1:])


def field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return varint(number << 3 | VARINT) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | LEN) + varint(len(data)) + data


def frame(
    meta: bytes,
    payload: bytes = b"",
    *,
    body_size: int | None = None,
    meta_size: int | None = None,
) -> bytes:
    if body_size is None:
        body_size = len(meta) + len(payload)
    if meta_size is None:
        meta_size = len(meta)
    return b"PRPC" + struct.pack(">II", body_size, meta_size) + meta + payload


def baidu_std() -> dict[str, bytes]:
    names = field(1, "example.EchoService") + field(2, "Echo")
    request = field(1, names)
    body = field(1, "hello")
    smallest = frame(request + field(4, 1), body)
    full = frame(
        field(1, names + field(3, 7) + field(8, 500))
        + field(3, 0)
        + field(4, 1)
        + field(5, 3)
        + field(10, 0)
        + field(11, 0)
        + field(12, b""),
        body + b"ATT",
    )
    success = frame(
        field(2, field(1, 0)) + field(3, 0) + field(4, 1) + field(12, b""), body
    )
    failure = frame(field(2, field(1, 1002) + field(2, "no such method")) + field(4, 1))
    every = frame(
        field(
            1,
            names
            + field(3, -1)
            + field(4, 1)
            + field(5, 2)
            + field(6, 3)
            + field(7, "req-42")
            + field(8, 2**31 - 1),
        )
        + field(2, field(1, -1) + field(2, "text"))
        + field(3, 2)
        + field(4, -(2**63))
        + field(5, 4)
        + field(6, field(1, 1) + field(2, 2))
        + field(7, b"secret")
        + field(8, field(1, 0) + field(2, 1) + field(3, 1) + field(4, 9))
        + field(9, field(1, "k") + field(2, "v"))
        + field(10, 3)
        + field(11, 1)
        + field(12, b"\x61\xf6\x3a\x7e")
        + field(13, 1)
        + field(14, 1)
        + field(15, b"unknown")
        + varint(16 << 3 | FIXED64)
        + bytes(8)
        + varint((2**29 - 1) << 3 | FIXED32)
        + bytes(4),
        body + b"abcd",
    )
    good = {
        "empty": b"",
        "full-request": full,
        "smallest-request": smallest,
        "success": success,
        "failure": failure,
        "every-field": every,
        "empty-frame": frame(b""),
        "no-meta": frame(b"", body),
        "two-frames": smallest + success,
        "four-frames": full + failure + frame(b"") + smallest,
        "merged-request": frame(
            field(1, field(1, "s")) + field(4, 1) + field(1, field(2, "m"))
        ),
        "last-wins": frame(request + b"".join(field(4, i) for i in range(5))),
        "padded-varints": frame(
            request + varint(4 << 3, 3) + varint(1, 9) + varint(5 << 3) + varint(2, 4),
            body,
        ),
        "bits-beyond-64": frame(b"\x20" + b"\xff" * 9 + b"\x7f"),
        "attachment-too-large": frame(request + field(5, 100), body),
        "attachment-negative": frame(request + field(5, -1), body),
        "attachment-minimum": frame(request + field(5, -(2**31)), body),
        "attachment-maximum": frame(request + field(5, 2**31 - 1), body),
        "attachment-all": frame(request + field(5, len(body)), body),
        "timeout-negative": frame(field(1, names + field(8, -1)), body),
        "empty-names": frame(field(1, field(1, b"") + field(2, b""))),
        "not-utf8": frame(field(1, field(1, b"\xff\xfe") + field(2, b"\x80"))),
        "many-unknown": frame(request + field(15, 1) * 500),
    }
    incomplete = {
        "more-prefix": b"PR",
        "more-header": smallest[:11],
        "more-meta": smallest[:20],
        "more-payload": smallest[:-1],
        "more-second-frame": smallest + full[:30],
        "more-largest": frame(b"", body_size=64 << 20, meta_size=1 << 20),
    }
    foreign = {
        "other-http": b"POST /example.EchoService/Echo HTTP/1.1\r\n\r\n",
        "other-late": b"PRPQ" + smallest[4:],
        "other-stream": b"STRM" + smallest[4:],
        "other-behind": smallest + b"GET / HTTP/1.1\r\n\r\n",
    }
    broken_meta = {
        "tag-cut": b"\x80",
        "tag-eleven-bytes": b"\x80" * 10 + b"\x01\x01",
        "tag-six-bytes": varint(4 << 3, 5) + b"\x01",
        "tag-beyond-32-bits": varint(2**32 + 0x20) + b"\x01",
        "value-missing": b"\x20",
        "value-cut": b"\x20\x80",
        "value-eleven-bytes": b"\x20" + b"\x80" * 10 + b"\x01",
        "string-short": b"\x62\x03ab",
        "string-length-six-bytes": b"\x62" + varint(2, 5) + b"ab",
        "string-length-31": b"\x62" + varint(2**31 - 1) + b"ab",
        "string-length-32": b"\x62" + varint(2**32) + b"ab",
        "string-length-63": b"\x62" + varint(2**63) + b"ab",
        "string-length-64": b"\x62" + varint(2**64 - 1) + b"ab",
        "unknown-length-64": b"\x7a" + varint(2**64 - 12) + bytes(12),
        "fixed64-short": b"\x79" + bytes(7),
        "fixed32-short": b"\x7d" + bytes(3),
        "field-zero": b"\x00\x01",
        "group": b"\x7b\x7c",
        "wire-type-6": b"\x7e\x01",
        "wire-type-7": b"\x7f\x01",
        "request-as-varint": field(1, 1),
        "response-as-varint": field(2, 1),
        "correlation-as-string": field(4, b"\x01"),
        "correlation-as-fixed64": varint(4 << 3 | FIXED64) + bytes(8),
        "auth-as-varint": field(7, 1),
        "request-empty": field(1, b""),
        "request-no-method": field(1, field(1, "s")),
        "request-no-service": field(1, field(2, "m")),
        "request-leaves": b"\x0a\x06" + field(1, "s") + b"\x12\x02m" + field(4, 1),
        "request-group": field(1, names + b"\x4b\x4c"),
        "timeout-as-string": field(1, names + field(8, b"1")),
        "response-leaves": b"\x12\x02\x08\x80\x01",
        "late": request + field(4, 1) + b"\x7a\x01",
    }
    broken = {
        "broken-body-over-limit": frame(b"", body_size=(64 << 20) + 1, meta_size=0),
        "broken-body-largest": frame(b"", body_size=2**32 - 1, meta_size=0),
        "broken-meta-over-body": frame(b"", body_size=1, meta_size=2),
        "broken-meta-over-limit": frame(
            b"", body_size=8 << 20, meta_size=(1 << 20) + 1
        ),
        "broken-sizes-swapped": frame(b"", body_size=0, meta_size=2**32 - 1),
        "broken-second-frame": smallest + frame(b"\x20\x80"),
    }
    for name, meta in broken_meta.items():
        broken[f"broken-{name}"] = frame(meta, body)
    recorded = {
        f"recorded-{path.name.removesuffix('.bin')}": path.read_bytes()
        for path in sorted(CAPTURES.glob("*.bin"))
        if 0 < path.stat().st_size < SMALL
    }
    # The answer that travels inside a stream frame, and what follows it.
    stream = recorded["recorded-stream.s2c"]
    recorded["recorded-stream-answer"] = stream[stream.index(b"PRPC") :]
    return good | incomplete | foreign | broken | recorded


def reader() -> dict[str, bytes]:
    """Flags (client; protocols), the number of splits, the splits, the bytes."""
    server, http, both, client = 0x02, 0x04, 0x06, 0x01
    frames = baidu_std()
    chosen = {
        name: frames[name]
        for name in (
            "full-request",
            "smallest-request",
            "success",
            "failure",
            "two-frames",
            "four-frames",
            "attachment-too-large",
            "more-header",
            "more-payload",
            "more-largest",
            "other-late",
            "other-stream",
            "other-behind",
            "broken-tag-cut",
            "broken-second-frame",
            "broken-body-largest",
        )
    }
    get = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    inputs = {"http": bytes([http, 3, 1, 2, 9]) + get * 3}
    inputs["http-either"] = bytes([both, 2, 3, 1]) + get
    inputs["http-refused"] = bytes([server, 0]) + get
    inputs["http-long-word"] = bytes([both, 0]) + b"ABCDEFGHIJKLMNOPQR /"
    inputs["no-protocol"] = bytes([0, 0]) + get
    for i, (name, data) in enumerate(chosen.items()):
        splits = bytes((7 * i + 3 * j) % 31 for j in range(i % 6))
        for side, flags in (("server", both if i % 2 else server), ("client", client)):
            inputs[f"{side}-{name}"] = bytes([flags, len(splits)]) + splits + data
    return inputs


def sequences(seed: int, tail: bytes) -> dict[str, bytes]:
    """Operations at random, and at the end some that matter."""
    dice = random.Random(seed)
    return {
        f"sequence-{i:02}": dice.randbytes(8 << i % 6) + tail * (i % 3)
        for i in range(24)
    }


TARGETS = {
    "baidu_std": baidu_std,
    "reader": reader,
    # Appending, dropping, moving over; pushing, resuming, failing.
    "iobuf": lambda: sequences(1, bytes([0, 200, 5, 40, 0x84, 0x80, 90])),
    "wstack": lambda: sequences(2, bytes([0, 9, 130, 5, 16, 60, 10, 12, 13, 14])),
}


def main() -> int:
    check = "--check" in sys.argv[1:]
    differing = []
    for target, make in TARGETS.items():
        inputs = make()
        folder = HERE / "corpus" / target
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {f"{name}.bin": data for name, data in inputs.items()}
        for path in folder.glob("*.bin"):
            # A finding that was added by hand stays: it is named found-*.
            if path.name in wanted or path.name.startswith("found-"):
                continue
            differing.append(path)
            if not check:
                path.unlink()
        for name, data in wanted.items():
            path = folder / name
            if path.exists() and path.read_bytes() == data:
                continue
            differing.append(path)
            if not check:
                path.write_bytes(data)
    for path in differing:
        print("differs:" if check else "written:", path.relative_to(HERE))
    return 1 if check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
