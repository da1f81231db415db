"""The cluster example as a user runs it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tools.etcd import UNPACKED, executable

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PATIENCE = 50.0

needs_etcd = pytest.mark.skipif(
    executable() is None, reason="no etcd: .ci/prerequisites unpacks Debian's"
)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, with the echo example's stubs beside it."""
    root = tmp_path_factory.mktemp("examples")
    for name in ("echo", "cluster"):
        ignore = shutil.ignore_patterns("gen", "__pycache__")
        shutil.copytree(EXAMPLES / name, root / name, ignore=ignore)
    echo = root / "echo"
    subprocess.run(
        [
            *(sys.executable, "-m", "tidewire.cli", "gen", "-q"),
            *(str(echo / "echo.proto"), f"-I{echo}", "-o", str(echo / "gen")),
        ],
        check=True,
        timeout=PATIENCE,
    )
    return root / "cluster" / "run.py"


@pytest.mark.parametrize(
    ("balancer", "kind"),
    [
        # Not by latency: a server that was slow once may get next to no calls.
        ("random", "file"),
        pytest.param("rr", "etcd", marks=needs_etcd),
    ],
)
def test_a_server_leaves_and_one_joins_without_a_failed_call(
    example: Path, balancer: str, kind: str
) -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(example), "--calls", "400"),
            *("--balancer", balancer, "--list", kind),
        ],
        env={**os.environ, "PATH": f"{os.environ['PATH']}:{UNPACKED.parent}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"the list: {kind}://" in done.stdout
    assert re.search(r"\d calls answered, 0 failed", done.stdout)
    three, left, joined = re.split(r"c has left|d has joined", done.stdout)

    def names(text: str) -> list[str]:
        return re.findall(r"^  (\w)  #", text, re.M)

    assert names(three) == ["a", "b", "c"]
    assert names(left) == ["a", "b"]
    assert names(joined) == ["a", "b", "d"]
