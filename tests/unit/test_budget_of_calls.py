"""How many retries there may be for so many calls."""

import pytest
from tidewire._budget import Budget, Calls


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_r9_a_tenth_of_the_calls_and_a_floor() -> None:
    clock = Clock()
    calls = Calls(clock)
    calls.begun += 1000
    budget = Budget(calls)
    taken = sum(budget.spend(0.1, 10) for _ in range(1000))
    assert taken == 200  # 10 in each of 10 seconds, and a tenth of 1000
    assert not budget.spend(0.1, 10)
    # They come back as the second passes out of the window, the calls' share too.
    clock.now += 9
    assert not budget.spend(0.1, 10)
    clock.now += 11
    assert sum(budget.spend(0.1, 10) for _ in range(1000)) == 100


def test_a_share_alone() -> None:
    clock = Clock()
    calls = Calls(clock)
    budget = Budget(calls)
    assert not budget.spend(0.1)
    calls.begun = 50
    assert [budget.spend(0.1) for _ in range(6)] == [True] * 5 + [False]


def test_a_long_pause_leaves_nothing() -> None:
    clock = Clock()
    calls = Calls(clock)
    budget = Budget(calls)
    calls.begun = 5000
    assert budget.spend(0.1, 10)
    clock.now += 1e6
    assert sum(budget.spend(0.1, 10) for _ in range(1000)) in (100, 101)


@pytest.mark.parametrize("every", [0.1, 0.7, 3.0, 25.0])
def test_calls_are_taken_as_spread_evenly(every: float) -> None:
    """100 calls/s, looked at now and then: 1000 lately."""
    clock = Clock()
    calls = Calls(clock)
    for _ in range(int(60 / every)):
        clock.now += every
        calls.begun += int(100 * every)
        if clock.now > 1011:
            assert 985 <= calls.lately() <= 1015
