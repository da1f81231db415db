"""The accounting checker itself: it accepts what is sound and finds what is
planted."""

import time

import pytest
import tidewire as tw
from tidewire.errors import from_number
from tools.audit import GRACE, Audit
from tools.stalls import Stall, StallMonitor


def deadline(elapsed):
    return from_number(
        1008, "late", phase=tw.Phase.READ, sent=tw.Sent.ALL, elapsed=elapsed
    )


@pytest.fixture
def audit():
    """A sound run of six calls."""
    audit = Audit(StallMonitor())
    for error, elapsed in (
        (None, 0.1),
        (None, None),
        (deadline(1.0 + GRACE / 2), None),
        (tw.Unavailable("gone"), None),
        (KeyboardInterrupt(), None),
    ):
        audit.complete(audit.issue(1.0), error, elapsed)
    audit.complete(audit.issue(None), None, 100.0)
    return audit


def test_what_is_sound_is_accepted(audit):
    assert audit.violations() == []
    assert (audit.issued, audit.completed, audit.open) == (6, 6, 0)
    assert "lost 0, doubled 0, late 0" in audit.report()
    assert "1 ERPCTIMEDOUT READ ALL" in audit.report()


def test_a_lost_call_is_found(audit):
    audit.issue(1.0)
    assert audit.violations() == ["1 calls were lost: 6"]


def test_a_doubled_completion_is_found(audit):
    nonce = audit.issue(1.0)
    audit.complete(nonce, None, 0.1)
    audit.complete(nonce, deadline(1.0))
    assert audit.violations() == ["1 completions of calls that were not open"]


def test_a_completion_of_what_was_never_issued_is_found(audit):
    audit.complete(77, None, 0.1)
    assert audit.violations() == ["1 completions of calls that were not open"]


@pytest.mark.parametrize("error", [None, 1008])
def test_a_late_end_is_found(audit, error):
    late = 1.0 + GRACE * 2
    nonce = audit.issue(1.0)
    audit.complete(nonce, deadline(late) if error else None, late)
    first, second = audit.violations()
    assert first == "1 calls ended late"
    assert second.startswith(f"call {nonce} ended {GRACE * 2e3:.1f} ms after")


@pytest.mark.parametrize("stall", [0.5, 1.5])
def test_the_machines_stalls_excuse_as_much_and_no_more(audit, stall):
    """A call two graces late needs a stall of at least one."""
    nonce = audit.issue(1.0)
    now = time.monotonic_ns()
    length = int(stall * GRACE * 1e9)
    audit._monitor.stalls = [
        Stall(0, now - 10**12, now - 10**12 + 10**11),  # long ago
        Stall(0, now, now + length),
    ]
    audit.complete(nonce, deadline(1.0 + GRACE * 2))
    found = audit.violations()
    assert len(found) == (0 if stall > 1 else 2)
    assert audit.excused == (1 if stall > 1 else 0)


def test_the_return_to_python_is_only_reported(audit):
    """The core's stamp was in time."""
    nonce = audit.issue(0.01)
    time.sleep(0.02 + GRACE)
    audit.complete(nonce, deadline(0.01))
    assert audit.violations() == []
    assert audit.returned_late == 1
    assert audit.returned_worst > GRACE
