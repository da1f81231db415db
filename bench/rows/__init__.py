"""One module per question; the numbers are those of design.md section 6."""

from collections.abc import Callable, Iterator

from lib.bench import Bench
from lib.figure import Line

from rows import (
    row01_02_def,
    row03_async,
    row04_grpc_server,
    row05_blocking_client,
    row06_asyncio_client,
    row07_sleeping,
    row08_computing,
    row09_fast_beside_slow,
    row10_large,
    row11_after_hog,
    row12_import,
    row13_idle_memory,
)

ROWS: dict[int, Callable[[Bench], Iterator[Line]]] = {
    1: row01_02_def.row1,
    2: row01_02_def.row2,
    3: row03_async.row3,
    4: row04_grpc_server.row4,
    5: row05_blocking_client.row5,
    6: row06_asyncio_client.row6,
    7: row07_sleeping.row7,
    8: row08_computing.row8,
    9: row09_fast_beside_slow.row9,
    10: row10_large.row10,
    11: row11_after_hog.row11,
    12: row12_import.row12,
    13: row13_idle_memory.row13,
}
