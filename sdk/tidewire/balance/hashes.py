"""The hash functions of consistent hashing, for keys, too."""

from typing import Final

__all__ = ["Murmur32", "md5_32", "murmur32"]

_MASK: Final = 0xFFFF_FFFF
_C1: Final = 0xCC9E_2D51
_C2: Final = 0x1B87_3593


class Murmur32:
    """MurmurHash3 x86 32 of many texts that begin alike: their beginning is
    hashed once."""

    __slots__ = ("_length", "_rest", "_state")

    def __init__(self, beginning: bytes = b"", seed: int = 0) -> None:
        whole = len(beginning) & ~3
        self._state = _blocks(seed & _MASK, beginning, whole)
        self._rest = beginning[whole:]
        self._length = whole

    def of(self, ending: bytes) -> int:
        """The hash of the beginning and this."""
        data = self._rest + ending
        whole = len(data) & ~3
        state = _blocks(self._state, data, whole)
        state ^= _scrambled(int.from_bytes(data[whole:], "little"))
        state ^= self._length + len(data)
        state = (state ^ state >> 16) * 0x85EB_CA6B & _MASK
        state = (state ^ state >> 13) * 0xC2B2_AE35 & _MASK
        return state ^ state >> 16


def murmur32(data: bytes, seed: int = 0) -> int:
    """MurmurHash3 x86 32 of `data`: a key for c_murmurhash and the other hashing
    balancers, the same that brpc's MurmurHash32 gives."""
    return Murmur32(data, seed).of(b"")


def md5_32(data: bytes) -> int:
    """The first four bytes of MD5, little-endian: a key, as brpc's MD5Hash32
    gives it."""
    from hashlib import md5  # here, because most programs never need it

    digest = md5(data, usedforsecurity=False).digest()
    return int.from_bytes(digest[:4], "little")


def _blocks(state: int, data: bytes, length: int) -> int:
    for i in range(0, length, 4):
        state ^= _scrambled(int.from_bytes(data[i : i + 4], "little"))
        state = (state << 13 | state >> 19) & _MASK
        state = state * 5 + 0xE654_6B64 & _MASK
    return state


def _scrambled(block: int) -> int:
    block = block * _C1 & _MASK
    return (block << 15 | block >> 17) * _C2 & _MASK
