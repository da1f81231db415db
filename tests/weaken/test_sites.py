"""Every ordered atomic of csrc is listed with what finds its weakening, and the
list is true to the sources.  The weakenings themselves are `make weaken`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import weaken

HOWS = {"tsan", "litmus", "model", "none", "open"}


def test_every_ordered_atomic_is_listed() -> None:
    missing = weaken.missing()
    assert not missing, (
        f"not in swaps.toml (weaken.py --missing prints entries): {missing}"
    )


def test_every_listed_atomic_is_still_there() -> None:
    there = set(weaken.sites())
    gone = [swap.site for swap in weaken.swaps() if swap.site not in there]
    assert not gone, f"in swaps.toml, no longer in csrc: {gone}"


def test_no_atomic_is_listed_twice() -> None:
    listed = [swap.site for swap in weaken.swaps()]
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("swap", weaken.swaps(), ids=lambda s: s.site.function)
def test_an_entry_names_what_finds_it_or_why_nothing_does(swap: weaken.Swap) -> None:
    tests = weaken.ROOT / "tests"
    assert swap.how in HOWS
    if swap.how in ("tsan", "litmus"):
        assert (tests / "c" / f"{swap.check.split()[0]}.c").is_file()
    elif swap.how == "model":
        model, fault = swap.check.split()
        assert fault in (tests / "models" / f"{model}.pml").read_text()
    else:
        assert swap.why


@pytest.mark.parametrize(
    ("text", "relaxed"),
    [
        ("load_seq_cst(&a->b)", "load_relaxed(&a->b)"),
        ("store_release(&a, load_acquire(&b))", "store_relaxed(&a, load_acquire(&b))"),
        (
            "atomic_exchange(&a, 1)",
            "atomic_exchange_explicit(&a, 1, memory_order_relaxed)",
        ),
        (
            "atomic_compare_exchange_strong(&a, &b, f(1))",
            "atomic_compare_exchange_strong_explicit"
            "(&a, &b, f(1), memory_order_relaxed, memory_order_relaxed)",
        ),
        (
            "atomic_fetch_sub_explicit(p, 1, memory_order_acq_rel)",
            "atomic_fetch_sub_explicit(p, 1, memory_order_relaxed)",
        ),
    ],
)
def test_weakening_keeps_the_access_and_drops_the_order(
    text: str, relaxed: str
) -> None:
    assert weaken.weakened(text) == relaxed


def test_a_weakened_copy_differs_in_that_site_only(tmp_path: Path) -> None:
    (tmp_path / "one.c").write_text(
        "int\nf(int *p)\n{\n    /* load_seq_cst(p) */\n    return load_seq_cst(p);\n}\n"
        "int\ng(int *p)\n{\n    return load_seq_cst(\n        p);\n}\n"
    )
    site = weaken.Site("one.c", "f", "load_seq_cst(p)")
    assert weaken.weaken(site, tmp_path) == 1
    source = (tmp_path / "one.c").read_text()
    assert source.count("load_relaxed(p)") == 1
    assert source.count("load_seq_cst") == 2


def test_the_list_is_written_as_it_is_read() -> None:
    assert weaken.SWAPS.read_text() == weaken.listed(weaken.swaps())


def test_no_thread_fence_is_used() -> None:
    """ThreadSanitizer does not understand atomic_thread_fence."""
    for path in [*weaken.sources(), weaken.ROOT / "csrc" / "atomics.h"]:
        assert not re.search(r"\batomic_thread_fence\b", path.read_text()), path


def test_the_table_is_what_the_list_says() -> None:
    assert weaken.TABLE.read_text() == weaken.table(), (
        "docs/atomics.md is out of date: tests/weaken/weaken.py --table"
    )
