"""Accept what is generated now as the golden output.

Run from anywhere as `python tests/codegen/update.py`, then review the diff.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from codegen_cases import CASES, SOURCES, TESTDATA, expected, generate


def main() -> None:
    sys.path[:0] = map(str, SOURCES)
    for case in CASES:
        with tempfile.TemporaryDirectory() as directory:
            texts = generate(case, Path(directory, "package")).texts()
        if texts == expected(case):
            continue
        out = TESTDATA / case / "out"
        shutil.rmtree(out, ignore_errors=True)
        for name, text in texts.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(text, "utf-8")
        print(f"updated {case}")


if __name__ == "__main__":
    main()
