"""The drill of a cluster, for 4 s with each balancer in a process of its own;
TW_LONG=1 makes it 10 minutes, as `make drill` does."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 600 if os.environ.get("TW_LONG") else 4
SEED = int(os.environ.get("TW_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)


@pytest.mark.parametrize("balancer", ["rr", "la"])
def test_a_slow_a_dying_and_a_leaving_server_cost_no_call(balancer):
    """L1: none is lost, late or answered twice, and the shares are right."""
    done = subprocess.run(
        [
            *(sys.executable, Path(__file__).with_name("drill.py")),
            *("--minutes", str(SECONDS / 60), "--seed", str(SEED)),
            *("--balancer", balancer),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS + 55,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "all promises kept" in done.stdout
