"""Row 11: a foreign program that keeps one core busy.

    python spin.py CORE SECONDS

It ends by itself.
"""

import os
import sys
import time

if __name__ == "__main__":
    core, seconds = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        pass
