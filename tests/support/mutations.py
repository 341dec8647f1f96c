"""Random changes of valid bytes."""

import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

_LENGTHS: Final = (1, 2, 3, 4, 8)  # sizes of integers, in bytes
_NUMBERS: Final = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63, 2**64 - 1)
_DIGITS: Final = (b"-1", b"0", b"00", b"4294967296", b"9" * 20, b"9" * 400, b"+1", b"0x1", b" 1")

_Mutation = Callable[[Random, bytearray, Sequence[bytes]], None]


def mutated(random: Random, good: bytes, others: Sequence[bytes]) -> bytes:
    """Return ``good`` with one to four changes, some of which take a part of ``others``."""
    changed = bytearray(good)
    for _ in range(random.randint(1, 4)):
        random.choice(_MUTATIONS)(random, changed, others)
    return bytes(changed)


def _flip(random: Random, changed: bytearray, _others: Sequence[bytes]) -> None:
    if changed:
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)


def _overwrite(random: Random, changed: bytearray, _others: Sequence[bytes]) -> None:
    begin, end = _span(random, changed)
    changed[begin:end] = random.randbytes(end - begin)


def _cut(random: Random, changed: bytearray, _others: Sequence[bytes]) -> None:
    begin, end = _span(random, changed)
    del changed[begin:end]


def _truncate(random: Random, changed: bytearray, _others: Sequence[bytes]) -> None:
    del changed[random.randint(0, len(changed)) :]


def _insert(random: Random, changed: bytearray, _others: Sequence[bytes]) -> None:
    at = random.randint(0, len(changed))
    changed[at:at] = random.randbytes(random.randint(1, 16))


def _splice(random: Random, changed: bytearray, others: Sequence[bytes]) -> None:
    other = bytearray(random.choice(others))
    begin, end = _span(random, changed)
    first, last = _span(random, other)
    changed[begin:end] = other[first:last]


def _repeat(random: Random, changed: bytearray, _others: Sequence[bytes]) -> None:
    begin, end = _span(random, changed)
    changed[end:end] = changed[begin:end] * random.choice((1, 2, 30))


def _lie_of_length(random: Random, changed: bytearray, _others: Sequence[bytes]) -> None:
    """Replace the bytes of an integer by those of another."""
    size = random.choice(_LENGTHS)
    number = random.choice(_NUMBERS) % 256**size
    at = random.randint(0, len(changed))
    changed[at : at + size] = number.to_bytes(size)


def _lie_of_digits(random: Random, changed: bytearray, _others: Sequence[bytes]) -> None:
    """Replace a number in decimal digits, where there is one."""
    if numbers := list(re.finditer(rb"[0-9]+", changed)):
        begin, end = random.choice(numbers).span()
        changed[begin:end] = random.choice(_DIGITS)


def _span(random: Random, changed: bytearray) -> tuple[int, int]:
    begin = random.randint(0, len(changed))
    return begin, min(len(changed), begin + random.choice((1, 2, 4, 8, 16, 64)))


_MUTATIONS: Final[Sequence[_Mutation]] = (
    _flip,
    _flip,
    _overwrite,
    _cut,
    _truncate,
    _insert,
    _splice,
    _repeat,
    _lie_of_length,
    _lie_of_digits,
)
