"""The collector over a snapshot of the core's table."""

import math
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import tidewire
from cffi import FFI
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as om
from prometheus_client.parser import text_string_to_metric_families as plain
from tidewire import metrics
from tidewire.metrics import CoreCollector, Row, Snapshot, quantile

API = Path(__file__).resolve().parents[2] / "csrc/api.h"
BUCKETS = 250
# 128 ns each at first, then eight to every power of two: as in the core.
BOUNDS = tuple(
    [(i + 1) << 7 for i in range(8)]
    + [(9 + i % 8) << i // 8 << 7 for i in range(BUCKETS - 9)]
    + [2**64 - 1]
)
COUNTER, GAUGE, HISTOGRAM = 0, 1, 2


def row(name: str, kind: int, cell: int, unit: str = "", **labels: str) -> Row:
    return Row(
        name=name,
        help=f'Help of {name}, with "quotes" and a \\',
        unit=unit,
        labels=tuple(labels.items()),
        kind=kind,
        cell=cell,
    )


def registry_of(rows: list[Row], cells: list[int]) -> CollectorRegistry:
    registry = CollectorRegistry()
    snapshot = Snapshot(rows=rows, cells=cells, bounds=BOUNDS)
    registry.register(CoreCollector(lambda: snapshot))
    return registry


def latency(*times_ns: int) -> list[int]:
    cells = [0] * (BUCKETS + 1)
    for ns in times_ns:
        cells[next(i for i, bound in enumerate(BOUNDS) if ns < bound)] += 1
    cells[BUCKETS] = sum(times_ns)
    return cells


METHOD = {"service": "shop.Cart", "method": 'get"\\\n'}
ROWS = [
    row("tidewire_keepwrite", COUNTER, 0),
    row("tidewire_sent_bytes", COUNTER, 1, "bytes"),
    row("tidewire_sockets", GAUGE, 2),
    row("tidewire_server_errors", COUNTER, 3, **METHOD, code="ELIMIT"),
    row("tidewire_server_errors", COUNTER, 4, **METHOD, code="EREQUEST"),
    row("tidewire_uptime", GAUGE, 5, "seconds"),
    row("tidewire_server_handler_seconds", HISTOGRAM, 6, "seconds", **METHOD),
]
CELLS = [7, 2**60, 3, 4, 5, 1_500_000_000]
CELLS += latency(1_000, 900_000, 900_000, 3_000_000_000, 100 * 10**9)


class TestExposition:
    @pytest.mark.parametrize(
        ("encode", "parse"),
        [(generate_latest, plain), (openmetrics.generate_latest, om)],
    )
    def test_prometheus_parses_it(self, encode: Any, parse: Any) -> None:
        text = encode(registry_of(ROWS, CELLS)).decode()
        families = {family.name: family for family in parse(text)}
        handler = families["tidewire_server_handler_seconds"]
        assert handler.type == "histogram"
        assert {s.name.rpartition("_")[2] for s in handler.samples} == {
            "bucket",
            "count",
            "sum",
        }
        assert all(s.labels.items() >= METHOD.items() for s in handler.samples)
        assert "tidewire_keepwrite_total 7.0" in text
        assert 'with "quotes"' in families["tidewire_keepwrite"].documentation.replace(
            '\\"', '"'
        )

    def test_values(self) -> None:
        value = registry_of(ROWS, CELLS).get_sample_value
        assert value("tidewire_keepwrite_total") == 7
        assert value("tidewire_sent_bytes_total") == 2**60
        assert value("tidewire_sockets") == 3
        assert value("tidewire_uptime") == 1.5
        assert value("tidewire_server_errors_total", METHOD | {"code": "ELIMIT"}) == 4
        name = "tidewire_server_handler_seconds"
        assert value(f"{name}_count", METHOD) == 5
        assert value(f"{name}_sum", METHOD) == pytest.approx(103.001801)
        assert value(f"{name}_bucket", METHOD | {"le": "+Inf"}) == 5

    def test_units_are_declared_where_the_name_carries_them(self) -> None:
        text = openmetrics.generate_latest(registry_of(ROWS, CELLS)).decode()
        assert "# UNIT tidewire_sent_bytes bytes" in text
        assert "# UNIT tidewire_uptime" not in text

    def test_versions(self) -> None:
        text = generate_latest(registry_of([], [])).decode()
        python = ".".join(map(str, sys.version_info[:3]))
        assert re.search(rf'^tidewire_build_info{{.*python="{python}', text, re.M)

    def test_a_gauge_may_be_below_zero_for_a_moment(self) -> None:
        registry = registry_of([row("g", GAUGE, 0)], [2**64 - 2])
        assert registry.get_sample_value("g") == -2

    def test_equal_rows_make_one_series(self) -> None:
        rows = [row("c", COUNTER, 0, a="x"), row("c", COUNTER, 1, a="x")]
        registry = registry_of(rows, [3, 4])
        assert registry.get_sample_value("c_total", {"a": "x"}) == 7
        assert generate_latest(registry).count(b'c_total{a="x"}') == 1

    def test_one_name_has_one_kind(self) -> None:
        registry = registry_of([row("c", COUNTER, 0), row("c", GAUGE, 1)], [0, 0])
        with pytest.raises(ValueError, match="rows of c differ in kind"):
            generate_latest(registry)


class TestBuckets:
    def folded(self, *times_ns: int) -> list[tuple[float, float]]:
        rows = [row("h_seconds", HISTOGRAM, 0, "seconds")]
        (family,) = (
            family
            for family in registry_of(rows, latency(*times_ns)).collect()
            if family.name == "h_seconds"
        )
        return [
            (float(s.labels["le"]), s.value)
            for s in family.samples
            if s.name == "h_seconds_bucket"
        ]

    def test_bounds_are_the_cores_and_near_round_ones(self) -> None:
        bounds = [le for le, _ in self.folded()]
        assert bounds == sorted(set(bounds))
        assert bounds[-1] == math.inf
        assert all(round(le * 1e9) in BOUNDS for le in bounds[:-1])
        assert 16 <= len(bounds) <= 20
        assert bounds[0] == pytest.approx(50e-6, rel=1 / 16)
        assert bounds[-2] == pytest.approx(10, rel=1 / 16)
        assert any(le == pytest.approx(1e-3, rel=1 / 16) for le in bounds)

    @pytest.mark.parametrize("ns", [0, 127, 50_000, 999_999, 10**9, 11 * 10**9, 2**62])
    def test_a_time_counts_in_every_bucket_above_it(self, ns: int) -> None:
        assert [(le, n == 1) for le, n in self.folded(ns)] == [
            (le, ns / 1e9 < le) for le, _ in self.folded()
        ]

    def test_counts_add_up(self) -> None:
        counts = [n for _, n in self.folded(*range(0, 10**8, 10**5))]
        assert counts == sorted(counts)
        assert counts[-1] == 1000


class TestQuantile:
    def test_lies_within_a_bucket_of_the_truth(self) -> None:
        cells = latency(*range(1_000, 1_000_001, 1_000))[:-1]
        for q in (0.01, 0.5, 0.9, 0.99, 0.999, 1):
            assert quantile(cells, q, BOUNDS) == pytest.approx(q * 1e-3, rel=1 / 8)

    def test_of_nothing_is_no_number(self) -> None:
        assert math.isnan(quantile([0] * BUCKETS, 0.5, BOUNDS))

    def test_ends(self) -> None:
        cells = latency(100, 2**63)[:-1]
        assert quantile(cells, 0, BOUNDS) == 128e-9
        assert quantile(cells, 1, BOUNDS) == math.inf

    @pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
    def test_other_quantiles_are_refused(self, q: float) -> None:
        with pytest.raises(ValueError, match="0 to 1"):
            quantile([1], q, [1])


class TestRegister:
    def test_a_second_call_changes_nothing(self, monkeypatch: Any) -> None:
        registry = CollectorRegistry()
        monkeypatch.setattr(metrics, "read_core", lambda: pytest.fail("touched"))
        assert metrics.register(registry) is metrics.register(registry)

    def test_the_core_is_not_read(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(metrics, "read_core", lambda: pytest.fail("touched"))
        registry = CollectorRegistry()
        collector = metrics.register(registry)
        assert [family.name for family in collector.describe()] == ["tidewire_build"]

    def test_two_collectors_of_one_registry_are_refused(self) -> None:
        registry = registry_of([], [])
        for _ in range(2):
            with pytest.raises(ValueError, match="Duplicated"):
                metrics.register(registry)


class FakeCore(types.ModuleType):
    """The C functions over Python lists, with real C memory."""

    def __init__(self) -> None:
        super().__init__("tidewire._core")
        self.ffi = FFI()
        self.ffi.cdef(re.sub(r"/\*.*?\*/", "", API.read_text(), flags=re.S))
        self.lib = self
        self.opened = 0
        self.rows: list[tuple[bytes, bytes, bytes, bytes, int, int]] = []
        self.cells: list[int] = []
        self.TW_HISTOGRAM_CELLS = BUCKETS

    def open(self) -> None:
        self.opened += 1

    def tw_counter_rows(self, rows: Any, first: int, most: int) -> int:
        some = self.rows[first : first + most]
        for i, values in enumerate(some):
            r = rows[i]
            r.name, r.help, r.unit, r.labels, r.kind, r.cell = values
        return len(some)

    def tw_counter_cells(self, cells: Any, most: int) -> int:
        if len(self.cells) <= most:
            cells[0 : len(self.cells)] = self.cells
        return len(self.cells)

    def tw_histogram_bound(self, bucket: int) -> int:
        return BOUNDS[bucket]


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> FakeCore:
    fake = FakeCore()
    monkeypatch.setitem(sys.modules, "tidewire._core", fake)
    monkeypatch.setattr(tidewire, "_core", fake, raising=False)
    monkeypatch.setattr(metrics, "_rows", ())
    return fake


class TestReadCore:
    def test_rows_and_cells(self, core: FakeCore) -> None:
        labels = b"service\0a.B\0method\0\0code\0E\xff\0\0"
        core.rows = [
            (b"a_bytes", b"Help", b"bytes", b"\0", COUNTER, 0),
            (b"n" * 63, b"h" * 127, b"", labels, GAUGE, 1),
        ]
        core.cells = [5, 2**64 - 1]
        snapshot = metrics.read_core()
        assert core.opened == 1
        assert snapshot.rows[0] == Row(
            name="a_bytes", help="Help", unit="bytes", labels=(), kind=COUNTER, cell=0
        )
        assert snapshot.rows[1].name == "n" * 63
        assert snapshot.rows[1].labels == (
            ("service", "a.B"),
            ("method", ""),
            ("code", "E\ufffd"),
        )
        assert snapshot.cells == [5, 2**64 - 1]
        assert snapshot.bounds == BOUNDS

    def test_full_labels_need_no_end(self, core: FakeCore) -> None:
        core.rows = [(b"a", b"", b"", b"x\0" + b"v" * 254, COUNTER, 0)]
        core.cells = [1]
        assert metrics.read_core().rows[0].labels == (("x", "v" * 254),)

    def test_new_rows_are_seen(self, core: FakeCore) -> None:
        for count in (0, 1, 63, 64, 65, 200, 1000):
            core.rows = [(b"c%d" % i, b"", b"", b"", 0, i) for i in range(count)]
            core.cells = list(range(count))
            snapshot = metrics.read_core()
            assert [r.name for r in snapshot.rows] == [f"c{i}" for i in range(count)]
            assert snapshot.cells == core.cells

    def test_cells_may_grow_while_they_are_read(
        self, core: FakeCore, monkeypatch: Any
    ) -> None:
        core.cells = [1]
        real = core.tw_counter_cells

        def growing(cells: Any, most: int) -> int:
            count = real(cells, most)
            if len(core.cells) < 5:
                core.cells = [*core.cells, 1]
            return count

        monkeypatch.setattr(core, "tw_counter_cells", growing)
        assert set(metrics.read_core().cells) == {1}

    def test_is_what_a_registry_collects(self, core: FakeCore) -> None:
        core.rows = [(b"tidewire_keepwrite", b"Help", b"", b"", COUNTER, 0)]
        core.cells = [9]
        registry = CollectorRegistry()
        metrics.register(registry)
        assert registry.get_sample_value("tidewire_keepwrite_total") == 9
