"""The page that the processes of a server share."""

import os

import pytest
from tidewire._health import DRAINING, READY, STARTING, Board


def test_who_is_ready_decides() -> None:
    board = Board(3)
    assert board.trouble() == "starting"
    board.set(0, STARTING)
    assert board.trouble() == "starting"
    board.set(1, READY)
    assert board.trouble() == ""
    # As in a reload: one drains while another serves.
    board.set(1, DRAINING)
    assert board.trouble() == "draining"
    board.set(0, READY)
    assert board.trouble() == ""
    board.drain()
    assert board.trouble() == "draining"


def test_one_ones_trouble_is_everybodys_until_it_goes() -> None:
    board = Board(2)
    board.set(0, READY)
    board.set(1, READY)
    board.tell(1, "no database")
    assert board.trouble() == "no database"
    board.tell(1, "")
    assert board.trouble() == ""
    board.tell(0, "no disk")
    board.clear(0)
    assert board.trouble() == ""
    board.set(0, READY)
    assert board.trouble() == ""


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("two\r\nlines\t of it ", "two lines of it"),
        ("x" * 1000, "x" * 254),
        ("ä" * 200, "ä" * 127),
        ("a" + "ä" * 200, "a" + "ä" * 126 + "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_texts_are_one_line_of_254_bytes(text: str, kept: str) -> None:
    board = Board()
    board.set(0, READY)
    board.tell(0, text)
    assert board.trouble() == kept


def test_a_forked_child_writes_on_the_same_page() -> None:
    board = Board(2)
    board.set(0, READY)
    pid = os.fork()
    if pid == 0:
        try:
            board.set(1, READY)
            board.tell(1, "of the child")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert board.trouble() == "of the child"
