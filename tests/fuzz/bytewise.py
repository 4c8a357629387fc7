"""Mutations of bytes that know nothing of what these mean: (rng, data, donor) -> bytes, `donor` being other bytes."""

from __future__ import annotations

import random
from collections.abc import Callable

Mutation = Callable[[random.Random, bytes, bytes], bytes]

EDGES = [0, 1, 2, 3, 7, 8, 9, 16, 127, 128, 255, 256, 257, 4095, 4096, 4097, 65535, 65536, 1 << 20, (1 << 20) + 1]
EDGES += [1 << 24, 1 << 25, 1 << 26, (1 << 26) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
"""Numbers at which fields and limits end."""


def number_near(rng: random.Random, number: int) -> int:
    """A number beside the given one, or far from it, at least 0."""
    steps = (number + 1, number - 1, number * 2, number // 2, number + rng.randrange(-9, 10), rng.randrange(1 << 32))
    return max(0, rng.choice([*steps, *rng.choices(EDGES, k=3)]))


def flip_bit(rng: random.Random, data: bytes, donor: bytes) -> bytes:
    at = rng.randrange(len(data) or 1)
    return data[:at] + bytes(byte ^ 1 << rng.randrange(8) for byte in data[at : at + 1]) + data[at + 1 :]


def set_byte(rng: random.Random, data: bytes, donor: bytes) -> bytes:
    at = rng.randrange(len(data) or 1)
    return data[:at] + bytes([rng.choice([0, 1, 2, 127, 128, 255, rng.randrange(256)])]) + data[at + 1 :]


def set_bytes(rng: random.Random, data: bytes, donor: bytes) -> bytes:
    at, count = rng.randrange(len(data) or 1), rng.randrange(1, 17)
    piece: bytes = rng.choice([rng.randbytes(count), bytes(count), b"\xff" * count])
    return data[:at] + piece + data[at + count :]


def change_number(rng: random.Random, data: bytes, donor: bytes) -> bytes:
    """A little-endian number of 1, 2 or 4 bytes becomes another."""
    width = rng.choice([1, 2, 4])
    at = rng.randrange(max(1, len(data) - width))
    number = number_near(rng, int.from_bytes(data[at : at + width], "little")) % (1 << 8 * width)
    return data[:at] + number.to_bytes(width, "little") + data[at + width :]


def insert(rng: random.Random, data: bytes, donor: bytes) -> bytes:
    at, count = rng.randrange(len(data) + 1), rng.choice([1, 1, 2, 4, rng.randrange(1, 64), rng.randrange(1, 4096)])
    return data[:at] + rng.choice([rng.randbytes(count), bytes(count)]) + data[at:]


def append(rng: random.Random, data: bytes, donor: bytes) -> bytes:
    return data + rng.choice([bytes(1), rng.randbytes(rng.randrange(1, 40)), donor])


def delete(rng: random.Random, data: bytes, donor: bytes) -> bytes:
    at = rng.randrange(len(data) or 1)
    return data[:at] + data[at + rng.choice([1, 1, 2, 4, rng.randrange(1, 64)]) :]


def truncate(rng: random.Random, data: bytes, donor: bytes) -> bytes:
    return data[: rng.choice([rng.randrange(len(data) + 1), max(0, len(data) - rng.randrange(1, 9))])]


def repeat(rng: random.Random, data: bytes, donor: bytes) -> bytes:
    at, count = rng.randrange(len(data) or 1), rng.randrange(1, 33)
    return data[: at + count] + data[at : at + count] * rng.randrange(1, 4) + data[at + count :]


def exchange(rng: random.Random, data: bytes, donor: bytes) -> bytes:
    """Two pieces of equal length change places."""
    count = rng.randrange(1, 17)
    first, second = sorted(rng.randrange(len(data) or 1) for _ in range(2))
    if first + count > second or second + count > len(data):
        return data[::-1] if len(data) < 8 else data[1:] + data[:1]
    a, b = data[first : first + count], data[second : second + count]
    return data[:first] + b + data[first + count : second] + a + data[second + count :]


def splice(rng: random.Random, data: bytes, donor: bytes) -> bytes:
    """Its beginning, and the end of other bytes."""
    return data[: rng.randrange(len(data) + 1)] + donor[rng.randrange(len(donor) + 1) :]


def transplant(rng: random.Random, data: bytes, donor: bytes) -> bytes:
    """A piece of other bytes over its own."""
    at, source, count = rng.randrange(len(data) or 1), rng.randrange(len(donor) or 1), rng.randrange(1, 65)
    piece = donor[source : source + count]
    return data[:at] + piece + data[at + len(piece) :]


MUTATIONS: tuple[Mutation, ...] = (
    flip_bit,
    flip_bit,
    set_byte,
    set_bytes,
    change_number,
    change_number,
    insert,
    append,
    delete,
    truncate,
    repeat,
    exchange,
    splice,
    transplant,
)


def mutate(rng: random.Random, data: bytes, donor: bytes) -> bytes:
    """One mutation, sometimes up to four."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        data = rng.choice(MUTATIONS)(rng, data, donor)
    return data
