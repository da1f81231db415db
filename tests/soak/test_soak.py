"""The soak itself, for 20 s in a process of its own; `make soak MINUTES=n` runs
it for longer."""

import os
import random
import subprocess
import sys
from pathlib import Path

SEED = int(os.environ.get("TW_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)


def test_20_seconds_of_load_and_faults_leave_the_accounts_in_order():
    """L1: no call is lost, doubled or late whatever is done to its connection,
    and everything is given back."""
    done = subprocess.run(
        [
            *(sys.executable, Path(__file__).with_name("soak.py")),
            *("--minutes", str(20 / 60), "--seed", str(SEED)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=55,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "all accounts agree" in done.stdout
    assert f"seed {SEED}" in done.stdout
