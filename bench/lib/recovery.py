"""When throughput came back after a disturbance (row 11)."""

import statistics
from collections.abc import Sequence

from lib.errors import BenchError

SHARE = 0.9


def recovery_seconds(
    intervals: Sequence[tuple[float, int]], begin: float, end: float
) -> float:
    """From `end` to the end of the first interval at 90 % of before `begin`.

    Intervals are (end, count) with times since the load's start; the first is
    not used, it is the warm-up.  When throughput does not come back at all the
    answer is how long that was watched.
    """
    rates = []
    previous = 0.0
    for finish, count in intervals:
        rates.append((previous, finish, count / (finish - previous)))
        previous = finish
    before = [rate for _, finish, rate in rates[1:] if finish <= begin]
    if not before or not any(start >= end for start, _, _ in rates):
        raise BenchError("too short to compare before and after")
    enough = SHARE * statistics.median(before)
    for start, finish, rate in rates:
        if start >= end and rate >= enough:
            return finish - end
    return rates[-1][1] - end
