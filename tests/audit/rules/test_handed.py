"""Draws and the forwards that belong to them, against a list that is searched from its start."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from audit.records import LISTS
from audit.rules import handed
from audit.rules.handed import Draw, Handed, hashes

MOST = 4


def draw(at: int, number: int, checksum: int) -> Draw:
    return Draw(at=at, draw=number, split="train", content=False, length=8, checksum=checksum, rows=None)


@dataclass
class Plain:
    """The same as `Handed`, the slow way."""

    draws: list[Draw] = field(default_factory=list)

    def add(self, new: Draw) -> None:
        self.draws = [one for one in self.draws if one.draw != new.draw] + [new]
        self.draws = self.draws[-MOST:]

    def entered(self, checksum: int, *, grad: bool) -> Draw | None:
        same = [one for one in self.draws if one.checksum == checksum]
        fresh = [one for one in same if not (one.learned if grad else one.seen)]
        if not same:
            return None
        found = (fresh or same[-1:])[0]
        found.seen, found.learned = True, found.learned or grad
        return found

    def knows(self, checksum: int) -> bool:
        return any(one.seen for one in self.draws if one.checksum == checksum)


acts = st.lists(
    st.tuples(st.just("add"), st.integers(0, 5), st.integers(0, 1))
    | st.tuples(st.just("entered"), st.integers(0, 1), st.booleans()),
    max_size=20,
)


@given(acts)
@example([("add", 0, 0), ("add", 1, 0), ("add", 2, 0), ("entered", 0, True), ("add", 0, 1), ("entered", 0, True)])
@example(
    [("add", 0, 0), ("entered", 0, True), ("entered", 0, True), ("add", 1, 0), ("add", 2, 0), ("entered", 0, True)]
)
def test_forwards_belong_to_the_oldest_draw(story: list[tuple]) -> None:
    """Draws of few numbers and checksums, handed out again and forgotten: each forward has the draw it must have."""
    whole = handed.MOST_DRAWS
    handed.MOST_DRAWS = MOST
    try:
        fast, slow = Handed(), Plain()
        for at, (act, one, other) in enumerate(story):
            if act == "add":
                fast.add(draw(at, one, other))
                slow.add(draw(at, one, other))
            else:
                found, expected = fast.entered(one, grad=other), slow.entered(one, grad=other)
                assert (found and found.at) == (expected and expected.at)
            flags = [[(d.at, d.learned, d.seen) for d in draws] for draws in (fast.draws.values(), slow.draws)]
            assert flags[0] == flags[1]
            for checksum in (0, 1):
                assert fast.knows(checksum) == slow.knows(checksum)
                assert [d.at for d in fast.of(checksum)] == [d.at for d in slow.draws if d.checksum == checksum]
    finally:
        handed.MOST_DRAWS = whole


@pytest.mark.parametrize("value", [0, 1, 2**32 - 1, 2**32, 2**64 - 1])
def test_hashes_from_their_halves(value: int) -> None:
    """Shard and start of a row known by content, or begin and scored of a window, are its hash."""
    for kind in ("draw", "score"):
        rows = np.zeros(1, dtype=LISTS[kind][1])
        first, second = (rows.dtype.names or ())[:2]
        rows[first], rows[second] = value >> 32, value & 0xFFFFFFFF
        assert hashes(rows).tolist() == [value]
