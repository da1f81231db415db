"""Balancers: which node of a cluster gets a call.  They decide and never wait."""

import random
from collections.abc import Mapping
from typing import Any, Final

from tidewire.balance.balancer import Balancer
from tidewire.balance.hashes import md5_32, murmur32
from tidewire.balance.hashing import Ketama, Md5Hash, MurmurHash
from tidewire.balance.la import LocalityAware
from tidewire.balance.p2c import P2C
from tidewire.balance.recovery import Recovering
from tidewire.balance.rr import RoundRobin
from tidewire.balance.uniform import Random
from tidewire.balance.weighted import WeightedRandom, WeightedRoundRobin
from tidewire.errors import OptionError

__all__ = ["Balancer", "make", "md5_32", "murmur32"]

_CHANCE: Final[tuple[type[Balancer], ...]] = (
    RoundRobin,
    Random,
    WeightedRoundRobin,
    WeightedRandom,
    LocalityAware,
    P2C,
)
_RINGS: Final[tuple[type[Balancer], ...]] = (MurmurHash, Md5Hash, Ketama)
_KINDS: Final = {kind.name: kind for kind in (*_CHANCE, *_RINGS)}
_RECOVERY: Final = ("min_working_instances", "hold_seconds")
_PARAMETERS: Final[Mapping[str, tuple[str, ...]]] = {
    P2C.name: ("choices", "tau_ms"),
    **{kind.name: _RECOVERY for kind in (RoundRobin, Random)},
    **{kind.name: ("replicas",) for kind in _RINGS},
}


def make(spec: str | Balancer, *, rng: random.Random | None = None) -> Balancer:
    """The balancer that a text such as "rr" or "p2c:choices=3 tau_ms=5000"
    means; one that is made already stays as it is.

    `rng` is what those that depend on chance ask.  Raises OptionError for
    unknown names and parameters, TypeError for what is neither.
    """
    if isinstance(spec, Balancer):
        return spec
    if not isinstance(spec, str):
        raise TypeError(
            f"balancer is {spec!r} ({type(spec).__name__}); allowed: a Balancer or a"
            f" str of {', '.join(_KINDS)}"
        )
    name, colon, text = spec.partition(":")
    if name not in _KINDS:
        raise OptionError(f"balancer {name!r} is unknown; allowed: {', '.join(_KINDS)}")
    arguments: dict[str, Any] = {}
    if colon:
        arguments.update(_parameters(name, text))
    if _PARAMETERS.get(name) is _RECOVERY and arguments:
        for parameter in _RECOVERY:
            if parameter not in arguments:
                raise OptionError(
                    f"{name}: {parameter} is missing; allowed: both of"
                    f" {' '.join(f'{one}=N' for one in _RECOVERY)}, or none"
                )
        inner = _KINDS[name](rng=rng)  # type: ignore[call-arg]
        return Recovering(inner, **arguments, rng=rng)
    if _KINDS[name] in _CHANCE:
        arguments["rng"] = rng
    return _KINDS[name](**arguments)


def _parameters(name: str, text: str) -> dict[str, int]:
    allowed = _PARAMETERS.get(name)
    if not allowed:
        raise OptionError(f"{name}: parameters are {text!r}; allowed: none")
    found: dict[str, int] = {}
    for part in text.split():
        parameter, _, value = part.partition("=")
        if parameter not in allowed:
            raise OptionError(
                f"{name}: parameter {part!r} is unknown; allowed:"
                f" {' '.join(f'{one}=N' for one in allowed)}"
            )
        if parameter in found:
            raise OptionError(f"{name}: {parameter} is there twice; allowed: once")
        if not (value.isascii() and value.isdigit() and len(value) <= 18):
            raise OptionError(
                f"{name}: {parameter} is {value!r}; allowed: a whole number"
            )
        found[parameter] = int(value)
    return found
