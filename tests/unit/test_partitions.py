"""Tags of partitions."""

import pytest
import tidewire as tw
from tidewire.combo.partitions import Partitions, fraction
from tidewire.node import Node


def nodes(*tags):
    return [Node(address=f"10.0.0.1:{i + 1}", tag=tag) for i, tag in enumerate(tags)]


@pytest.mark.parametrize(
    ("tag", "place"),
    [
        ("0/3", (0, 3)),
        (" 2/3 ", (2, 3)),
        ("12/100", (12, 100)),
        ("", None),
        ("3", None),
        ("1/2/3", None),
        ("-1/2", None),
        ("1 / 2", None),
        ("1/2 x", None),
        ("\u0661/\u0662", None),
        ("9999999999/9999999999", None),
    ],
)
def test_the_usual_tag(tag, place):
    assert fraction(tag) == place


def test_only_complete_schemes_are_there():
    found = Partitions("X", "list://a:1", None).schemes(
        nodes("0/2", "1/2", "1/2", "0/1", "0/3", "2/3", "3/3", "x")
    )
    counts = {count: [len(part) for part in parts] for count, parts in found.items()}
    assert counts == {1: [1], 2: [1, 2]}


@pytest.mark.parametrize(
    "parse",
    [
        lambda tag: (3, 3),
        lambda tag: (-1, 3),
        lambda tag: 7,
        lambda tag: ("a", "b"),
        lambda tag: {}["x"],
    ],
)
def test_what_a_parse_gives_is_checked_and_told_once(parse, caplog):
    partitions = Partitions("X", "list://a:1", parse)
    for _ in range(3):
        assert partitions.schemes(nodes("t", "t")) == {}
    assert len(caplog.records) == 1
    assert "10.0.0.1:1 is passed by: its tag 't'" in caplog.records[0].getMessage()


def test_an_address_is_no_list():
    with pytest.raises(tw.AddressError, match="that of a cluster, such as"):
        Partitions("X", "10.0.0.1:80", None)
