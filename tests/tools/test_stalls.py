"""The stall monitor itself: it notices stalls, and only what overlaps counts."""

import os
import signal
import subprocess
import sys
import time

import pytest
from harness import eventually, within
from tools.stalls import Stall, StallMonitor, Watch


def planted(*stalls):
    monitor = StallMonitor()
    monitor.stalls = [Stall(0, begin, end) for begin, end in stalls]
    return monitor


def test_what_overlaps_counts():
    monitor = planted((100, 300), (1000, 1100), (2000, 2050))
    assert monitor.longest() == pytest.approx(200e-9)
    assert monitor.total() == pytest.approx(350e-9)
    assert monitor.longest(400) == pytest.approx(100e-9)
    assert monitor.longest(400, 500) == 0
    assert monitor.total(1100, 2000) == pytest.approx(150e-9)


def test_stalls_are_taken_off_upper_bounds_only():
    watch = Watch()
    watch.seconds, watch.stalled = 0.5, 0.2
    assert watch.undisturbed == pytest.approx(0.3)
    assert watch.between(0.4, 0.31)
    assert not watch.between(0.4, 0.29)
    assert not watch.between(0.51, 1)
    watch.stalled = 0.7
    assert watch.undisturbed == 0


def test_a_block_that_is_slow_by_itself_fails():
    """The product's own slowness is no stall: threads that sleep stall nobody."""
    with pytest.raises(AssertionError, match="not within 0.01 s"), within(0.01) as took:
        # A machine may stall for some of it, not for all.
        time.sleep(0.5)
    assert took.seconds >= 0.5


def test_an_error_inside_is_told_and_not_the_time():
    with pytest.raises(KeyError), within(0):
        raise KeyError


def test_a_stopped_process_is_a_stall_to_itself():
    """SIGSTOP for 300 ms, as a machine might do it."""
    script = (
        "import sys, time; from tools.stalls import watching\n"
        "with watching() as took:\n"
        "    print('on', flush=True); sys.stdin.readline()\n"
        "print(took.seconds, took.undisturbed, took.stalled)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with process:
        assert process.stdout.readline() == "on\n"
        process.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        eventually(lambda: time.monotonic() - stopped > 0.3)
        process.send_signal(signal.SIGCONT)
        out, _ = process.communicate("\n", timeout=30)
    seconds, undisturbed, stalled = map(float, out.split())
    assert seconds >= 0.3
    assert stalled >= 0.25
    assert undisturbed <= seconds - 0.25


def test_from_outside():
    """The monitor's own process notices what this process cannot cause."""
    with StallMonitor(outside=True) as monitor:
        process = monitor._process
        begin = time.monotonic_ns()
        # Again, should it have been stopped before it began to watch.
        while monitor.longest(begin) < 0.15:
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.2)
            process.send_signal(signal.SIGCONT)
            time.sleep(0.01)
            assert time.monotonic_ns() - begin < 10e9
    assert process.returncode == 0
