"""Sets of targets in bits, and who knows what of them, against sets."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from audit.rules import bits
from audit.rules.bits import Bits, joined, pieces
from audit.rules.progress import Contents, Progress

SIZE = 83


@st.composite
def ranges(draw: st.DrawFn) -> tuple[int, int]:
    first = draw(st.integers(0, SIZE))
    return first, draw(st.integers(first, SIZE))


@given(st.lists(ranges(), max_size=8), ranges())
def test_bits_are_a_set(added: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    """Adding, counting, flags and the first absent place are those of a set of numbers, in pieces of any length."""
    whole, part = bits.PART, 8
    try:
        bits.PART = part  # pieces that end inside the ranges
        found, known = Bits(SIZE), set[int]()
        for first, stop in added:
            before = found.add(first, stop)
            assert before.tolist() == [place in known for place in range(first, stop)]
            known |= set(range(first, stop))
        assert found.total() == len(known)
        assert found.count(*asked) == len(known & set(range(*asked)))
        assert found.flags(*asked).tolist() == [place in known for place in range(*asked)]
        assert found.first_absent() == next((place for place in range(SIZE) if place not in known), None)
        assert [place for piece in pieces(*asked) for place in range(*piece)] == list(range(*asked))
    finally:
        bits.PART = whole


@given(st.lists(ranges().filter(lambda pair: pair[0] < pair[1]), max_size=8))
def test_joined_ranges_cover_the_same(given_ranges: list[tuple[int, int]]) -> None:
    """Ranges that follow on each other become one; nothing is added, lost or put in another order."""
    first, stop = (np.array([pair[side] for pair in given_ranges], dtype=np.int64) for side in (0, 1))
    found = list(joined(first, stop))
    assert [place for pair in found for place in range(*pair)] == [
        place for pair in given_ranges for place in range(*pair)
    ]
    assert all(left[1] != right[0] for left, right in itertools.pairwise(found)) or len(found) < 2


def test_ranks_know_of_each_other_when_a_count_is_over() -> None:
    """A rank knows its own scores at once, another's when the count is over; so it is with updates."""
    progress = Progress(SIZE)
    progress.begin(2)
    progress.add(0, 3, 9)
    assert progress.known(0, 0, 10).tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 0]
    assert not progress.known(1, 0, 10).any()
    progress.step(1)
    assert not progress.stale(0, 0, 10).any()
    progress.settle()
    assert progress.known(1, 0, 10).sum() == 6
    assert not progress.stale(1, 0, 10).any()  # the step was not known to follow the score
    progress.step(1)
    assert progress.stale(1, 0, 10).sum() == 6
    assert not progress.stale(0, 0, 10).any()
    progress.settle()
    assert progress.stale(0, 0, 10).sum() == 6


def test_what_a_rank_scores_after_its_step_is_not_before_it() -> None:
    """Of one count, what a rank scored before its step is stale when the count is over, and what came after is not."""
    progress = Progress(SIZE)
    progress.begin(2)
    progress.add(0, 0, 4)
    progress.step(0)
    progress.add(0, 4, 8)
    progress.settle()
    assert progress.stale(1, 0, 8).tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_a_new_stage_knows_all_of_the_one_before() -> None:
    """Stages follow each other, so rows known by content are then known to every rank."""
    contents = Contents(np.array([10, 20, 30], dtype=np.uint64))
    contents.begin(2)
    assert contents.add(0, np.array([0, 2])) == 0
    assert contents.add(0, np.array([0, 1, 1])) == 2
    assert contents.known(1, np.array([0, 1, 2, -1])).tolist() == [False] * 4
    contents.begin(1)
    assert contents.known(0, np.array([0, 1, 2, -1])).tolist() == [True, True, True, False]
