"""The bigram bar equals a slow reading of its formulas, and does what a bar should."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import bigram
from trainer.errors import DataError
from trainer.tokenizer import ByteTable

V = 7
TABLE = ByteTable(
    base=np.array([0, 0, 1, 2, 3, 4, 5], np.int16),
    leading_space=np.array([False, False, False, True, True, False, True]),
    boundary=np.array([True, True, False, False, False, False, False]),
)

streams = st.lists(st.lists(st.integers(0, V - 1), max_size=40), min_size=1, max_size=4)


def arrays(lists: list[list[int]]) -> list[np.ndarray]:
    return [np.array(one, dtype=np.uint16) for one in lists]


def pairs(lists: list[list[int]]) -> list[tuple[int, int]]:
    return [pair for one in lists for pair in itertools.pairwise(one)]


def probability(train: list[list[int]], x: int, y: int) -> float:
    """Witten–Bell with dictionaries: bigram, unigram, uniform."""
    seen = Counter(pairs(train))
    after = {pair[1]: count for pair, count in seen.items() if pair[0] == x}
    unigram = Counter(pair[1] for pair in pairs(train))
    kinds, total = len(unigram), sum(unigram.values())
    p1 = (unigram[y] + kinds / V) / (total + kinds)
    if not after:
        return p1
    return (after.get(y, 0) + len(after) * p1) / (sum(after.values()) + len(after))


@given(train=streams, val=streams)
def test_bits_equal_a_slow_form(train: list[list[int]], val: list[list[int]]) -> None:
    """Bits per byte are those of the formulas with dictionaries, and no training pair or no byte is an error."""
    size = sum(int(TABLE.count(np.array([x]), np.array([y]))[0]) for x, y in pairs(val))
    if not pairs(train) or not size:
        with pytest.raises(DataError, match="bigram: got"):
            bigram.bits_per_byte(arrays(train), arrays(val), table=TABLE)
        return
    expected = sum(-math.log2(probability(train, x, y)) for x, y in pairs(val)) / size
    assert bigram.bits_per_byte(arrays(train), arrays(val), table=TABLE) == pytest.approx(expected, rel=1e-12)


@given(train=streams.filter(pairs), x=st.integers(0, V - 1))
def test_probabilities_sum_to_one(train: list[list[int]], x: int) -> None:
    """After any token, seen or not, the model is a distribution: 2^-bits over all targets sums to 1."""
    one = ByteTable(np.ones(V, np.int16), np.zeros(V, bool), np.zeros(V, bool))
    bits = [bigram.bits_per_byte(arrays(train), arrays([[x, y]]), table=one) for y in range(V)]
    assert sum(2.0**-b for b in bits) == pytest.approx(1.0, rel=1e-12)


def test_the_largest_vocabulary_does_not_overflow() -> None:
    """With 65,536 pieces the code of the last pair still fits 32 bits and is told from its neighbours."""
    size = 1 << 16
    table = ByteTable(np.ones(size, np.int16), np.zeros(size, bool), np.zeros(size, bool))
    train = [np.array([65535, 65535, 65535, 0, 65535, 65535], dtype=np.uint16)]
    likely = bigram.bits_per_byte(train, [np.array([65535, 65535], np.uint16)], table=table)
    unlikely = bigram.bits_per_byte(train, [np.array([65535, 65534], np.uint16)], table=table)
    p1 = (4 + 2 / size) / (5 + 2)
    assert likely == pytest.approx(-math.log2((3 + 2 * p1) / (4 + 2)), rel=1e-12)
    assert unlikely > 15


def test_only_the_first_tokens_of_training_are_counted() -> None:
    """Beyond the cap training tokens are left out: the bar equals that of the shortened streams."""
    draw = np.random.default_rng(1)
    train = [draw.integers(0, V, 100).astype(np.uint16) for _ in range(3)]
    val = [draw.integers(0, V, 50).astype(np.uint16)]
    capped = bigram.bits_per_byte(train, val, table=TABLE, max_tokens=130)
    assert capped == bigram.bits_per_byte([train[0], train[1][:30]], val, table=TABLE)
    assert capped != bigram.bits_per_byte(train, val, table=TABLE)


def test_structure_is_worth_bits() -> None:
    """A stream whose tokens follow from the one before costs far fewer bits than the same tokens shuffled."""
    draw = np.random.default_rng(2)
    cycle = np.tile(np.arange(2, V, dtype=np.uint16), 200)
    ordered = bigram.bits_per_byte([cycle], [cycle], table=TABLE)
    assert ordered < 0.1 * bigram.bits_per_byte([draw.permutation(cycle)], [draw.permutation(cycle)], table=TABLE)
