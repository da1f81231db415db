"""The overload run itself, for a moment; `python bench/overload.py` measures."""

import overload


def test_more_than_it_can_do_is_refused_and_the_rest_is_served(bench_tools):
    """Every call is answered, right or refused, none lost or wrong."""
    outcome = overload.measure(0.5, 20.0, "auto", compute=False)
    print(outcome)
    assert outcome.capacity > 0
    assert outcome.goodput > 0
    assert outcome.refusals > 0
    assert 0 <= outcome.refused_p50 <= outcome.refused_p99 <= outcome.refused_max
    assert "goodput" in str(outcome)


def test_a_number_is_a_limit_too(bench_tools):
    outcome = overload.measure(0.3, 20.0, "8", compute=True)
    assert outcome.goodput > 0
    assert outcome.refusals > 0
