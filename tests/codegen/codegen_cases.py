"""The golden cases: codegen/testdata/<case>/in is generated, .../out is expected."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTDATA = ROOT / "codegen" / "testdata"
SOURCES = (ROOT / "sdk", ROOT / "codegen")

CASES = sorted(path.parent.name for path in TESTDATA.glob("*/in"))
REFUSED = sorted(path.parents[1].name for path in TESTDATA.glob("*/out/error.txt"))


@dataclass(frozen=True)
class Outcome:
    """What `tidewire gen` did with one case."""

    status: int
    errors: str
    package: Path
    """The directory it was told to write to."""

    def texts(self) -> dict[str, str]:
        """What is compared: our modules, not those of protoc, or the refusal."""
        if self.status:
            return {"error.txt": self.errors}
        return read(self.package, "*_tw.py")


def generate(case: str, package: Path) -> Outcome:
    from tidewire.cli import main

    source = TESTDATA / case / "in"
    protos = sorted(map(str, source.rglob("*.proto")))
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        status = main(["gen", "-q", "-I", str(source), "-o", str(package), *protos])
    return Outcome(status, errors.getvalue(), package)


def expected(case: str) -> dict[str, str]:
    return read(TESTDATA / case / "out", "*")


def read(directory: Path, pattern: str) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): path.read_text("utf-8")
        for path in sorted(directory.rglob(pattern))
        if path.is_file()
    }
