"""The core's counters for prometheus_client.

    from tidewire import metrics
    metrics.register()

The core counts; this module only reads, one snapshot per scrape.  Names,
help, kinds and units come from the core's table, so a counter that is new
there appears here without a change.  The admin listener registers by itself.
"""

import math
import platform
import struct
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _distribution_version
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = [
    "CoreCollector",
    "Row",
    "Snapshot",
    "quantile",
    "read_core",
    "read_workers",
    "register",
    "version",
]

Labels = tuple[tuple[str, str], ...]

_KINDS: Final = ("counter", "gauge", "histogram")
_HISTOGRAM: Final = 2

# Upper bounds that a latency histogram should have, in nanoseconds; each is
# moved to the nearest bound of the core's finer buckets, so that no bucket
# has to be split by guessing.
_WANTED_BOUNDS: Final = tuple(
    int(seconds * 1e9)
    for seconds in (
        *(50e-6, 100e-6, 200e-6, 500e-6),
        *(1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3),
        *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the core's table."""

    name: str
    """Prometheus name, without "_total"."""
    help: str
    unit: str
    """"", "bytes", or "seconds", in which case cells hold nanoseconds."""
    labels: Labels
    kind: int
    """0 counter, 1 gauge, 2 histogram."""
    cell: int
    """Index of its first cell.  A histogram's buckets are followed by the
    sum of what was observed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All counters at one moment."""

    rows: Sequence[Row]
    cells: Sequence[int]
    bounds: tuple[int, ...]
    """Upper bounds of a histogram's buckets in nanoseconds, ascending; the
    last stands for infinity."""


class CoreCollector(Collector):
    """Yields the core's counters; register it once per registry.

    `snapshot` is for tests; the default reads the core and opens it if needed.
    """

    def __init__(self, snapshot: Callable[[], Snapshot] | None = None) -> None:
        self._snapshot = snapshot or read_core

    def describe(self) -> Iterable[Metric]:
        """Does not touch the core.  One name is enough for a registry to
        refuse a second collector."""
        return [_build_info()]

    def collect(self) -> Iterator[Metric]:
        """One snapshot; from any thread."""
        yield _build_info()
        snapshot = self._snapshot()
        families: dict[str, list[Row]] = {}
        for row in snapshot.rows:
            families.setdefault(row.name, []).append(row)
        for rows in families.values():
            yield _family(rows, snapshot)


_registered: Final[weakref.WeakKeyDictionary[CollectorRegistry, CoreCollector]] = (
    weakref.WeakKeyDictionary()
)


def register(registry: CollectorRegistry | None = None) -> CoreCollector:
    """Adds the core's counters to a registry (None: the default one) and
    returns the collector; a second call changes nothing."""
    registry = REGISTRY if registry is None else registry
    fresh = CoreCollector()
    collector = _registered.setdefault(registry, fresh)
    if collector is fresh:
        try:
            registry.register(collector)
        except ValueError:  # it holds a CoreCollector that did not come from here
            del _registered[registry]
            raise
    return collector


def quantile(buckets: Sequence[int], q: float, bounds: Sequence[int]) -> float:
    """Upper bound in seconds of the bucket that holds quantile `q` (0 to 1).

    NaN when nothing was observed; infinity when it lies in the last bucket.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"quantile is {q}; allowed: 0 to 1")
    total = sum(buckets)
    if total == 0:
        return math.nan
    rank = max(1, math.ceil(q * total))
    seen = 0
    for i, count in enumerate(buckets):
        seen += count
        if seen >= rank:
            return bounds[i] / 1e9 if i + 1 < len(bounds) else math.inf
    raise AssertionError("the counts add up to their sum")


@lru_cache(maxsize=1)
def version() -> str:
    """Version of the installed distribution."""
    try:
        return _distribution_version("tidewire")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"


def _build_info() -> Metric:
    return InfoMetricFamily(
        "tidewire_build",
        "Versions of Tidewire and Python",
        value={"version": version(), "python": platform.python_version()},
    )


def _family(rows: list[Row], snapshot: Snapshot) -> Metric:
    first = rows[0]
    # prometheus_client would append a unit that the name does not end with.
    unit = first.unit if first.name.endswith(f"_{first.unit}") else ""
    metric = Metric(first.name, first.help, _KINDS[first.kind], unit)
    scale = 1e-9 if first.unit == "seconds" else 1
    width = len(snapshot.bounds) + 1 if first.kind == _HISTOGRAM else 1
    # Rows of equal labels (two servers with one service) make one series.
    totals: dict[Labels, list[int]] = {}
    for row in rows:
        if row.kind != first.kind:
            raise ValueError(f"rows of {row.name} differ in kind")
        cells = snapshot.cells[row.cell : row.cell + width]
        total = totals.setdefault(row.labels, [0] * width)
        total[:] = map(sum, zip(total, cells, strict=True))
    for labels, cells in totals.items():
        _add_samples(metric, dict(labels), cells, scale, snapshot.bounds)
    return metric


def _add_samples(
    metric: Metric,
    labels: dict[str, str],
    cells: list[int],
    scale: float,
    bounds: tuple[int, ...],
) -> None:
    if metric.type == "counter":
        metric.add_sample(f"{metric.name}_total", labels, cells[0] * scale)
    elif metric.type == "gauge":
        # Two's complement: a gauge may be seen below zero for a moment.
        value = cells[0] & (2**64 - 1)
        value -= (value >> 63) << 64
        metric.add_sample(metric.name, labels, value * scale)
    else:
        *buckets, sum_of_all = cells
        seen = start = 0
        for le, end in _folding(bounds):
            seen += sum(buckets[start:end])
            start = end
            metric.add_sample(f"{metric.name}_bucket", labels | {"le": le}, seen)
        metric.add_sample(f"{metric.name}_count", labels, seen)
        metric.add_sample(f"{metric.name}_sum", labels, sum_of_all * scale)


@lru_cache(maxsize=4)
def _folding(bounds: tuple[int, ...]) -> list[tuple[str, int]]:
    """(le, how many fine buckets lie at or below it) for every bucket shown."""
    finite = range(len(bounds) - 1)
    chosen = sorted(
        {
            min(finite, key=lambda i: abs(math.log(max(bounds[i], 1) / wanted)))
            for wanted in _WANTED_BOUNDS
        }
    )
    shown = [(repr(bounds[i] / 1e9), i + 1) for i in chosen]
    return [*shown, ("+Inf", len(bounds))]


# tw_row, as api.h declares it.
_ROW: Final = struct.Struct("64s128s16s256sii")
_ROWS_AT_A_TIME: Final = 64

_rows: tuple[Row, ...] = ()


def read_core() -> Snapshot:
    """Reads the core's table, opening the core if needed.  From any thread."""
    from tidewire import _core  # here: without a core, snapshots can be injected

    _core.open()
    ffi, lib = _core.ffi, _core.lib
    rows = _read_rows()
    # After the rows: the cells of every row read so far are then there.
    cells = ffi.new("uint64_t[]", 0)
    while (count := lib.tw_counter_cells(cells, len(cells))) > len(cells):
        cells = ffi.new("uint64_t[]", count)
    return Snapshot(rows=rows, cells=ffi.unpack(cells, count), bounds=_core_bounds())


def read_workers() -> Snapshot:
    """The same for each process that has counted something: rows have the label
    `worker`, the number of its lane."""
    from tidewire import _core

    _core.open()
    ffi, lib = _core.ffi, _core.lib
    rows: list[Row] = []
    cells: list[int] = []
    plain = _read_rows()
    for lane in range(lib.tw_counter_lanes()):
        buffer = ffi.new("uint64_t[]", 0)
        while (count := lib.tw_lane_cells(lane, buffer, len(buffer))) > len(buffer):
            buffer = ffi.new("uint64_t[]", count)
        mine = ffi.unpack(buffer, count)
        if any(mine):
            label = ("worker", str(lane))
            rows += (
                replace(row, labels=(*row.labels, label), cell=row.cell + len(cells))
                for row in plain
            )
            cells += mine
    return Snapshot(rows=rows, cells=cells, bounds=_core_bounds())


def _read_rows() -> tuple[Row, ...]:
    """Rows never change once they are there, so each is parsed once.  Two
    threads may parse the same new ones; a lock would not outlive a fork."""
    from tidewire import _core

    global _rows
    ffi, lib = _core.ffi, _core.lib
    rows = list(_rows)
    buffer = ffi.new("tw_row[]", _ROWS_AT_A_TIME)
    while (count := lib.tw_counter_rows(buffer, len(rows), _ROWS_AT_A_TIME)) > 0:
        data = ffi.buffer(buffer, count * _ROW.size)[:]
        rows += (_row(fields) for fields in _ROW.iter_unpack(data))
    _rows = tuple(rows)
    return _rows


@lru_cache(maxsize=1)
def _core_bounds() -> tuple[int, ...]:
    from tidewire import _core

    lib = _core.lib
    return tuple(lib.tw_histogram_bound(i) for i in range(lib.TW_HISTOGRAM_CELLS))


def _row(fields: tuple[bytes, bytes, bytes, bytes, int, int]) -> Row:
    name, help, unit, labels, kind, cell = fields
    return Row(
        name=_text(name),
        help=_text(help),
        unit=_text(unit),
        labels=_labels(labels),
        kind=kind,
        cell=cell,
    )


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")


def _labels(field: bytes) -> Labels:
    """name NUL value NUL name NUL value NUL ... NUL; values may be empty."""
    parts = iter(field.split(b"\0"))
    pairs = []
    while name := next(parts, b""):
        pairs.append((_text(name), _text(next(parts, b""))))
    return tuple(pairs)
