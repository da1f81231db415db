"""When a server is isolated, and for how long; brpc's numbers."""

from tidewire._breaker import Breaker

MS = 1000
SECOND = 1_000_000


def fail(
    breaker: Breaker, times: int, now_us: int = 0, latency_us: int = MS
) -> list[int]:
    return [breaker.isolation(True, latency_us, now_us) for _ in range(times)]


def succeed(
    breaker: Breaker, times: int, latency_us: int = MS, now_us: int = 0
) -> None:
    for _ in range(times):
        assert breaker.isolation(False, latency_us, now_us) == 0


def test_the_151st_error_of_a_new_server_isolates_it() -> None:
    breaker = Breaker()
    assert fail(breaker, 150) == [0] * 150
    assert fail(breaker, 1) == [100 * MS]


def test_errors_among_the_first_calls_are_counted_however_many_succeed() -> None:
    breaker = Breaker()
    for _ in range(150):
        succeed(breaker, 9)
        assert fail(breaker, 1) == [0]
    assert fail(breaker, 1) == [100 * MS]


def test_isolation_doubles_and_recovers() -> None:
    breaker = Breaker()
    now, waits = 0, []
    for _ in range(11):
        fail(breaker, 150, now)
        [wait] = fail(breaker, 1, now)
        waits.append(wait)
        now += wait + SECOND
    assert waits == [100 * MS * 2**i for i in range(9)] + [30 * SECOND] * 2
    now += 30 * SECOND
    fail(breaker, 150, now)
    assert fail(breaker, 1, now) == [100 * MS]


def warm() -> Breaker:
    """Past the first calls, 1 ms each."""
    breaker = Breaker()
    succeed(breaker, 3000)
    return breaker


def test_a_few_errors_in_a_hundred_are_borne() -> None:
    breaker = warm()
    for _ in range(300):
        succeed(breaker, 97)
        assert fail(breaker, 3) == [0] * 3


def test_one_in_five_is_too_much() -> None:
    """(One in six is the bound, for failures as long as other calls.)"""
    breaker = warm()
    for _ in range(2000):
        if any(fail(breaker, 1)):
            return
        succeed(breaker, 4)
    raise AssertionError("never isolated")


def test_quick_errors_cost_less_than_slow_ones() -> None:
    """As many errors until it trips as their time is shorter; a very slow one
    counts as two calls."""
    counts = []
    for latency_us in (MS // 10, MS, 100 * MS):
        breaker = warm()
        counts.append(
            next(i for i in range(5000) if any(fail(breaker, 1, 0, latency_us)))
        )
    assert counts[0] > 9 * counts[1] > 17 * counts[2]


def test_successes_forget_small_costs() -> None:
    breaker = warm()
    for _ in range(10_000):
        assert fail(breaker, 1, 0, 400) == [0]
        succeed(breaker, 1)


def test_it_starts_anew_after_isolation() -> None:
    """What was learnt of usual times stays."""
    breaker = warm()
    count = next(i for i in range(5000) if any(fail(breaker, 1)))
    assert next(i for i in range(5000) if any(fail(breaker, 1))) == count
