"""Plans: what is to happen to the connections of a proxy, as text.

A plan is a list of alternatives between `|`, of which every connection draws
one.  An alternative is `none` or faults between commas, each for both ways or,
after `up:` (client to server) or `down:`, for one:

    slice=N     pieces of N bytes           latency=S   S seconds before each
    reset@K     RST to both sides           fin@K       FIN to both sides
    half@K      FIN forward, the way back stays open
    swallow@K   a black hole: all further bytes are taken and dropped
    freeze@K    a reader that stopped: no further byte is taken

`@K`: bytes 0 to K-1 pass; when byte K arrives it happens instead.  A number may
be a range `A..B`, which is drawn from for each connection (latency: for each
piece).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

__all__ = ["PIECE", "Way", "drawn", "fresh_seed"]

PIECE: Final = 1 << 16
"""Bytes that are read at a time, at most."""
_ENDS: Final = ("reset", "fin", "half", "swallow", "freeze")
_ALLOWED: Final = (
    "none, slice=N, latency=S, reset@K, fin@K, half@K, swallow@K, freeze@K,"
    " each after up: or down: for one way; ranges A..B for the numbers"
)


def fresh_seed() -> int:
    """1 to 2**32 - 1; 0 stands for a fresh one everywhere."""
    return random.SystemRandom().randrange(1, 2**32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What happens to one direction of a connection."""

    slice: int = PIECE
    """Bytes of a piece."""
    latency: tuple[float, float] = (0.0, 0.0)
    """Seconds before each piece, the least and the most."""
    end: str | None = None
    """How it ends before its sender ends it."""
    at: int = 0
    """Bytes that pass before."""


def drawn(plan: str, seed: int, number: int) -> tuple[Way, Way]:
    """The ways (up, down) of the connection with that number.  Raises ValueError
    for a plan that is none."""
    rng = random.Random(f"{seed}/{number}")
    # Every alternative is drawn, so that a plan with a slip in it never works.
    alternatives = [_alternative(text.strip(), rng) for text in plan.split("|")]
    return rng.choice(alternatives)


def _alternative(text: str, rng: random.Random) -> tuple[Way, Way]:
    ways = {"up": Way(), "down": Way()}
    if text == "none":
        return ways["up"], ways["down"]
    for part in text.split(","):
        to, colon, fault = part.strip().rpartition(":")
        if colon and to not in ways:
            raise ValueError(f"{to!r} is no way; allowed: up and down")
        change = _fault(fault, rng)
        for name in [to] if colon else list(ways):
            ways[name] = replace(ways[name], **change)
    return ways["up"], ways["down"]


def _fault(text: str, rng: random.Random) -> dict[str, Any]:
    name, _, value = text.partition("=")
    if name == "slice" and (low := _range(value, int)):
        if low[0] < 1:
            raise ValueError(f"{text!r} is no fault: a slice has at least one byte")
        return {"slice": rng.randint(*low)}
    if name == "latency" and (span := _range(value, float)):
        return {"latency": span}
    name, _, value = text.partition("@")
    if name in _ENDS and (low := _range(value, int)):
        return {"end": name, "at": rng.randint(*low)}
    raise ValueError(f"{text!r} is no fault; allowed: {_ALLOWED}")


def _range(text: str, number: Callable[[str], Any]) -> tuple[Any, Any] | None:
    low, dots, high = text.partition("..")
    try:
        span = number(low), number(high if dots else low)
    except ValueError:
        return None
    return span if 0 <= span[0] <= span[1] else None
