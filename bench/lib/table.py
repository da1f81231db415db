"""The lines as a Markdown table."""

from collections.abc import Iterable, Sequence

from lib.figure import Figure, Line, Missing
from lib.stats import spread

_HEAD = "| # | figure | target | median [q1, q3] | ours | peer | verdict |"
_RULE = "| --- | --- | --- | --- | --- | --- | --- |"
_REASON_LENGTH = 300


def render(lines: Iterable[Line]) -> str:
    """The whole table, one line each, ending with a newline."""
    return "\n".join([_HEAD, _RULE, *map(_render_line, lines)]) + "\n"


def number(value: float) -> str:
    """Three significant digits or whole: 0.631, 12.3, 118, 81,204."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def _render_line(line: Line) -> str:
    if isinstance(line, Missing):
        verdict = f"{line.verdict}: {line.reason[:_REASON_LENGTH]}"
        return _row([line.row, line.what, "", "", "", "", verdict])
    return _row(_cells(line))


def _cells(figure: Figure) -> list[str]:
    s = figure.spread
    bound = f"{figure.target.sign} {figure.target.bound:g}"
    verdict = "reached" if figure.reached else "**missed**"
    return [
        figure.row,
        figure.what,
        _with_unit(bound, figure.unit),
        _with_unit(f"{number(s.median)} [{number(s.q1)}, {number(s.q3)}]", figure.unit),
        _side(figure.ours, figure.sides_unit),
        _side(figure.peer, figure.sides_unit),
        "; ".join([verdict, *figure.faults]),
    ]


def _side(values: Sequence[float], unit: str) -> str:
    return _with_unit(number(spread(values).median), unit) if values else ""


def _with_unit(text: str, unit: str) -> str:
    return f"{text} {unit}" if unit else text


def _row(cells: Sequence[str]) -> str:
    # A bar or a line break in a reason would break the table.
    plain = (" ".join(cell.replace("|", "/").split()) for cell in cells)
    return f"| {' | '.join(plain)} |"
