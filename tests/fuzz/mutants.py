"""Mutant number n of a campaign's seed: the same bytes always, whoever asks."""

from __future__ import annotations

import functools
import random
from itertools import accumulate
from typing import NamedTuple

from tests.fuzz import bytewise, structural
from tests.fuzz.anatomy import DIGEST_BYTES, reseal
from tests.fuzz.corpus import Seed, seeds


class Mutant(NamedTuple):
    """`data` differs from that of `origin`. Odd numbers are `resealed`, even ones keep a digest of other bytes."""

    number: int
    origin: Seed
    mutation: str
    resealed: bool
    data: bytes


def mutant(seed: int, number: int) -> Mutant:
    rng = random.Random(seed << 64 | number)
    origin, donor = rng.choices(seeds(), cum_weights=_weights(), k=2)
    while True:
        if number % 2 == 0 and rng.random() < 0.8:
            mutation, data = "bytes", bytewise.mutate(rng, origin.data, donor.data)
        else:
            (mutate,) = rng.choices(tuple(structural.MUTATIONS), tuple(structural.MUTATIONS.values()))
            mutation, data = mutate.__name__, mutate(rng, origin.anatomy.copy(), donor.anatomy)
            if number % 2 == 0:
                data = data[:-DIGEST_BYTES] + origin.data[-DIGEST_BYTES:]
        resealed = reseal(data[:-DIGEST_BYTES]) == data
        if data not in (origin.data, origin.again) and resealed == bool(number % 2):
            return Mutant(number, origin, mutation, resealed, data)


@functools.cache
def _weights() -> tuple[float, ...]:
    return tuple(accumulate(seed.weight for seed in seeds()))
