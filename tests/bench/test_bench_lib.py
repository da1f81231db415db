"""The driver's helpers that decide and print, and how it treats children."""

import contextlib
import os
import platform
import signal
import sys

import pytest
from lib import h2load, machine, process, table
from lib.bench import Pairs
from lib.errors import BenchError
from lib.figure import Figure, Missing, at_least, at_most
from lib.recovery import recovery_seconds
from lib.stats import Spread, spread
from lib.tools import Load, parse_load
from run import parse_rows, report


def test_spread_is_median_and_quartiles():
    assert spread([5, 1, 4, 2, 3]) == Spread(3, 2, 4)
    assert spread([1, 2, 3, 4]) == Spread(2.5, 1.75, 3.25)


def test_spread_of_one_value_is_that_value():
    assert spread([0.7]) == Spread(0.7, 0.7, 0.7)


def test_spread_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no values"):
        spread([])


def test_ratios_are_per_pair():
    assert Pairs([2, 9], [4, 3]).ratios == [0.5, 3]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.6312, "0.631"),
        (1.254, "1.25"),
        (12.34, "12.3"),
        (118.4, "118"),
        (81204.4, "81,204"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert table.number(value) == text


def test_the_table_shows_ratio_sides_and_verdict():
    lines = [
        Figure(
            row="1",
            what="def handler",
            target=at_least(0.6),
            values=[0.7, 0.62, 0.65],
            ours=[70_000, 62_000, 65_000],
            peer=[100_000, 100_000, 100_000],
            sides_unit="calls/s",
        ),
        Figure(row="12", what="import", target=at_most(60), values=[61.5], unit="ms"),
        Missing(row="4", what="grpc", verdict="skipped", reason="no a|b\nhere"),
    ]
    assert table.render(lines).splitlines() == [
        "| # | figure | target | median [q1, q3] | ours | peer | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| 1 | def handler | >= 0.6 | 0.650 [0.635, 0.675] | 65,000 calls/s "
        "| 100,000 calls/s | reached |",
        "| 12 | import | <= 60 ms | 61.5 [61.5, 61.5] ms |  |  | **missed** |",
        "| 4 | grpc |  |  |  |  | skipped: no a/b here |",
    ]


def test_a_fault_misses_the_target_whatever_the_number():
    figure = Figure(
        row="12", what="", target=at_most(60), values=[10], faults=["imports asyncio"]
    )
    assert not figure.reached
    assert "**missed**; imports asyncio" in table.render([figure])


def test_the_target_itself_is_reached():
    assert at_least(0.6).met_by(0.6)
    assert at_most(1.25).met_by(1.25)


def test_the_report_names_neither_the_host_nor_a_path():
    text = report([], rounds=9, seconds=2)
    assert platform.node() not in text
    assert os.getcwd() not in text
    assert platform.python_version() in text
    assert "mean nothing" not in text


def test_a_short_run_says_that_it_means_nothing():
    assert "mean nothing" in report([], rounds=1, seconds=0.3)


def test_the_machine_has_a_processor():
    assert machine.cpu_model()
    assert machine.version("no-such-package-here") == "not installed"


def test_rows_are_chosen_by_number():
    assert parse_rows("2,1") == [1, 2]
    assert parse_rows("3-5,1") == [1, 3, 4, 5]


@pytest.mark.parametrize("text", ["0", "99", "x", "", "1,,2"])
def test_rows_that_do_not_exist_are_refused(text):
    with pytest.raises(Exception, match="row"):
        parse_rows(text)


H2LOAD = """finished in 2.01s, {qps} req/s, 257.88KB/s
requests: 957 total, 989 started, 957 done, 957 succeeded, {failed} failed, \
0 errored, 0 timeout
status codes: 957 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 77.37KB (79222) total, 3.39KB (3471) headers (space savings 95.52%), \
21.50KB ({data}) data
"""


def test_h2load_reports_calls_per_second():
    assert h2load.parse(H2LOAD.format(qps="3190.50", failed=0, data=22011)) == 3190.5


@pytest.mark.parametrize(
    "text",
    [
        H2LOAD.format(qps=1, failed=3, data=22011),
        H2LOAD.format(qps=1, failed=0, data=22010),  # an answer without its message
        "nothing of the kind",
    ],
)
def test_h2load_with_anything_but_answers_is_an_error(text):
    with pytest.raises(BenchError):
        h2load.parse(text)


def test_a_load_report_is_read():
    text = (
        '{"qps": 10.5, "p50_us": 1, "p99_us": 2, "start": 3.5, "behind": 4,'
        ' "intervals": [[0.25, 7]], "calls": 9}'
    )
    assert parse_load(text) == Load(10.5, 1, 2, 3.5, [(0.25, 7)], 4)


def intervals(*counts):
    return [((i + 1) * 0.25, count) for i, count in enumerate(counts)]


def test_recovery_ends_with_the_first_interval_at_nine_tenths():
    # Quiet until 1.0, disturbed until 1.6; 1.75 to 2.0 is slow, then it is back.
    steps = intervals(1, 100, 100, 100, 10, 10, 90, 89, 90, 100)
    assert recovery_seconds(steps, 1.0, 1.6) == pytest.approx(2.25 - 1.6)


def test_no_recovery_is_as_long_as_was_watched():
    steps = intervals(1, 100, 100, 100, 10, 10, 10, 10)
    assert recovery_seconds(steps, 1.0, 1.5) == pytest.approx(0.5)


def test_recovery_needs_a_before_and_an_after():
    with pytest.raises(BenchError, match="too short"):
        recovery_seconds(intervals(1, 100), 0.2, 0.3)
    with pytest.raises(BenchError, match="too short"):
        recovery_seconds(intervals(1, 100, 100), 0.5, 0.6)


def python(code):
    return [sys.executable, "-c", code]


SERVER = """
import sys, time
print("starting")
print("listening on 127.0.0.1:4711", flush=True)
time.sleep(600)
"""


def test_a_server_is_ended_when_its_block_is_left_by_an_error():
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(process.server(python(SERVER)))
        assert server.address == "127.0.0.1:4711"
        with pytest.raises(ZeroDivisionError), stack:
            raise ZeroDivisionError
    assert server.popen.returncode == -signal.SIGTERM


def test_a_server_that_ignores_the_first_signal_is_killed(monkeypatch):
    monkeypatch.setattr(process, "STOP_SECONDS", 0.1)
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + SERVER
    with process.server(python(stubborn)) as server:
        pass
    assert server.popen.returncode == -signal.SIGKILL


def test_a_server_that_ends_early_tells_why():
    code = "import sys; sys.exit('no such option')"
    with (
        pytest.raises(BenchError, match=r"ended with 1.*no such option"),
        process.server(python(code)),
    ):
        pass


def test_a_program_that_fails_tells_why():
    code = "import sys; print('half'); sys.exit('broken')"
    with pytest.raises(BenchError, match="ended with 1: half broken"):
        process.run(python(code), timeout=30)


def test_a_program_that_does_not_end_is_ended():
    with pytest.raises(BenchError, match="did not end"):
        process.run(python("import time; time.sleep(600)"), timeout=0.1)
