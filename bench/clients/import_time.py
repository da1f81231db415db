"""Row 12: prints how long `import tidewire` takes, in milliseconds, and then
the modules it should not have brought along.

    python import_time.py MODULE...
"""

import sys
import time

if __name__ == "__main__":
    start = time.perf_counter()
    import tidewire  # noqa: F401

    print((time.perf_counter() - start) * 1000)
    print(*(name for name in sys.argv[1:] if name in sys.modules))
