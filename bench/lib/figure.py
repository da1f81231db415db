"""What a row hands to the table."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lib.stats import Spread, spread


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on a median: at least (`>=`) or at most (`<=`)."""

    sign: str
    bound: float

    def met_by(self, value: float) -> bool:
        return value >= self.bound if self.sign == ">=" else value <= self.bound


def at_least(bound: float) -> Target:
    return Target(">=", bound)


def at_most(bound: float) -> Target:
    return Target("<=", bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table, measured.

    `values` are what the target is about: the ratios of the pairs, or plain
    measurements in `unit` where there is nothing to divide by.
    """

    row: str
    what: str
    target: Target
    values: Sequence[float]
    unit: str = ""
    """Unit of `values`; empty for ratios."""
    ours: Sequence[float] = ()
    peer: Sequence[float] = ()
    sides_unit: str = ""
    """Unit of `ours` and `peer`."""
    faults: Sequence[str] = field(default_factory=tuple)
    """What misses the target besides the number."""

    @property
    def spread(self) -> Spread:
        return spread(self.values)

    @property
    def reached(self) -> bool:
        return self.target.met_by(self.spread.median) and not self.faults


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A line of the table without a figure, and why."""

    row: str
    what: str
    verdict: str
    """`skipped` or `failed`."""
    reason: str


Line = Figure | Missing
