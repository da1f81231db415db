"""docs/hardening.md tells which test shows which item: all of them, truly, and
nothing that carries an id is missing."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOC = ROOT / "docs" / "hardening.md"
TESTS = ROOT / "tests"

PROMISED = [
    *(f"W{i}" for i in range(1, 14)),
    *(f"B{i}" for i in range(1, 6)),
    *("R1", "R2", "R3", "R4", "R5", "R6", "R7", "R8"),
    *("C1", "C2", "C3", "C4", "C5", "C6", "C8", "C10", "C11"),
    *("L1", "L2", "L3", "L4", "L5", "L6", "L7", "L9", "L12"),
    *(f"P{i}" for i in range(1, 10)),
    *(f"A{i}" for i in range(1, 7)),
]

_IDS = r"[WBRCLPA]\d{1,2}(?:, [WBRCLPA]\d{1,2})*"
OPENING = re.compile(rf"({_IDS})\b")
"""How a Python test's docstring begins that shows something."""
COMMENT = re.compile(rf"\b({_IDS})[:)]")
"""How a comment in C says it: `R4: ...` or `... (R4)`."""
IN_NAME = re.compile(r"(?:^|_)([wbrclpa]\d{1,2})(?=_|$)")


def rows():
    """id -> (what holds, the tests column)."""
    found = {}
    for line in DOC.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 3 and re.fullmatch(r"[WBRCLPA]\d{1,2}", cells[0]):
            assert cells[0] not in found, f"two rows for {cells[0]}"
            found[cells[0]] = cells[1], cells[2]
    return found


ROWS = rows()
NAMED = sorted(
    (id, test)
    for id, (_, tests) in ROWS.items()
    for test in re.findall(r"`(tests/[^`]+)`", tests)
)


def carried():
    """(id, path::name) of every test in Python that carries an id."""
    found = set()
    for path in TESTS.rglob("test_*.py"):
        where = path.relative_to(ROOT)
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if not node.name.startswith("test_"):
                continue
            for id in ids_of(node):
                found.add((id, f"{where}::{node.name}"))
    return found


def ids_of(node):
    opening = OPENING.match(ast.get_docstring(node) or "")
    ids = set(opening[1].split(", ")) if opening else set()
    known = {id for id in map(str.upper, IN_NAME.findall(node.name)) if id in ROWS}
    return ids | known


CARRIED = carried()


def ids_in_c(text):
    return {id for found in COMMENT.findall(text) for id in found.split(", ")}


def test_every_promised_item_has_a_row():
    assert [id for id in PROMISED if id not in ROWS] == []


@pytest.mark.parametrize("id", ROWS)
def test_a_row_names_tests_or_says_why_it_is_open(id):
    holds, tests = ROWS[id]
    assert holds
    has_tests = any(named == id for named, _ in NAMED)
    assert has_tests or re.match(r"\*\*open\*\*: .{10,}", tests), tests


@pytest.mark.parametrize(("id", "test"), NAMED)
def test_the_named_test_is_there_and_carries_the_id(id, test):
    where, _, name = test.partition("::")
    path = ROOT / where
    assert path.is_file(), where
    if path.suffix == ".py":
        assert (id, test) in CARRIED, f"{name} does not say that it shows {id}"
        return
    text = path.read_text()
    assert re.search(rf"\b{re.escape(name)}\b", text), f"no {name} in {where}"
    assert id in ids_in_c(text), f"nothing in {where} says that it shows {id}"


@pytest.mark.parametrize("id", sorted({id for id, _ in CARRIED}))
def test_what_carries_an_id_is_in_its_row(id):
    assert id in ROWS, f"no row for {id}"
    named = {test for i, test in NAMED if i == id}
    missing = {test for i, test in CARRIED if i == id} - named
    assert not missing, f"not in the row of {id}: {sorted(missing)}"


def test_the_readers_of_ids():
    """They find what is written as the rules of the tests say."""
    source = 'def test_w1_x():\n    """C2, C3: as C9 says."""\n'
    node = ast.parse(source).body[0]
    assert ids_of(node) == {"W1", "C2", "C3"}
    assert ids_in_c("/* R4, C1: pauses */ int R5; // poisoned (L4)") == {
        *("R4", "C1", "L4"),
    }
